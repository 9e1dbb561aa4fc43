package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"time"
)

// State of a token.
const (
	TokenActive  = "active"
	TokenSpent   = "spent" // its one use is over
	TokenExpired = "expired"
	TokenRevoked = "revoked"
)

// Bounds of how long a token is good for, in a TokenRequest.
const (
	MinTokenTTL     = time.Minute
	MaxTokenTTL     = 366 * 24 * time.Hour
	DefaultTokenTTL = time.Hour
)

// MaxTokenRoutes is the most routes of a token, and of a grant.
const MaxTokenRoutes = 1024

// Token is one element of GET /v1/tokens, sorted by the time of creation, the
// latest first. Its secret is not known to the edge.
type Token struct {
	ID      string   `json:"id"`
	Name    string   `json:"name,omitempty"` // that its connector gets; empty: the one that the connector asks for
	Network string   `json:"network"`
	Routes  []string `json:"routes"`

	State     string    `json:"state"` // active, spent, expired or revoked
	Reusable  bool      `json:"reusable"`
	Ephemeral bool      `json:"ephemeral"`
	Imported  bool      `json:"imported,omitempty"` // made by another edge
	Created   time.Time `json:"created,omitzero"`
	Expires   time.Time `json:"expires"`
	Ended     time.Time `json:"ended,omitzero"`     // when State was entered; zero while it is active
	Forgotten time.Time `json:"forgotten,omitzero"` // when an ended one goes from the list

	Uses       int       `json:"uses"`              // connectors whose key has called
	Pending    int       `json:"pending,omitempty"` // registrations whose key has not
	LastUsed   time.Time `json:"last_used,omitzero"`
	Connectors []string  `json:"connectors"`         // that came by it and are still there, sorted
	SpentBy    string    `json:"spent_by,omitempty"` // the connector that spent a single-use one
	Edges      []string  `json:"edges"`              // public keys of all edges that it is good for
}

// TokenEdge names another edge that a token is good for.
type TokenEdge struct {
	PublicKey string   `json:"public_key"` // of its WireGuard
	URLs      []string `json:"urls"`       // "host:port" each, where it listens
}

// TokenRequest is the body of POST /v1/tokens.
type TokenRequest struct {
	Network string   `json:"network"`
	Routes  []string `json:"routes"`         // prefixes, at least one
	Name    string   `json:"name,omitempty"` // what the connector will be called

	TTLMillis int64 `json:"ttl_ms,omitempty"`    // 0: DefaultTokenTTL
	Reusable  bool  `json:"reusable,omitempty"`  // by any number of connectors
	Ephemeral bool  `json:"ephemeral,omitempty"` // reusable, and its connectors are forgotten after 10 minutes of absence

	Edges []TokenEdge `json:"edges,omitempty"` // beside the one that is asked
}

// Check returns the request with its defaults and the prefixes that it asks
// for, or what is wrong with it.
func (r TokenRequest) Check() (TokenRequest, []netip.Prefix, error) {
	if r.Network == "" {
		return r, nil, errors.New("naming a network is required")
	}
	routes, err := checkRoutes(r.Routes)
	if err != nil {
		return r, nil, err
	}
	if r.TTLMillis == 0 {
		r.TTLMillis = DefaultTokenTTL.Milliseconds()
	}
	if r.TTLMillis < MinTokenTTL.Milliseconds() || r.TTLMillis > MaxTokenTTL.Milliseconds() {
		return r, nil, fmt.Errorf("reading a time to live of %d ms: use 1 minute to %d days", r.TTLMillis, MaxTokenTTL/(24*time.Hour))
	}
	for _, e := range r.Edges {
		if e.PublicKey == "" || len(e.URLs) == 0 {
			return r, nil, errors.New("naming another edge: its public key and at least one host:port are required")
		}
	}
	r.Reusable = r.Reusable || r.Ephemeral
	return r, routes, nil
}

// checkRoutes reads prefixes, each written once and without host bits.
func checkRoutes(texts []string) ([]netip.Prefix, error) {
	if len(texts) == 0 {
		return nil, errors.New(`naming at least one route is required, as in "10.0.0.0/16"`)
	}
	if len(texts) > MaxTokenRoutes {
		return nil, fmt.Errorf("reading %d routes: use %d at most", len(texts), MaxTokenRoutes)
	}
	var routes []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
			return nil, fmt.Errorf(`reading route %q: write an address and a length, as in "10.0.0.0/16"`, text)
		case p != p.Masked():
			return nil, fmt.Errorf("reading route %q: it has bits set beyond its length: write %s", text, p.Masked())
		case p.Addr().Is4In6():
			return nil, fmt.Errorf("reading route %q: write it as IPv4", text)
		case slices.Contains(routes, p):
			return nil, fmt.Errorf("reading route %q: it is there twice", text)
		}
		routes = append(routes, p)
	}
	return routes, nil
}

// CreatedToken is the answer of POST /v1/tokens. It is the only one that holds
// a secret.
type CreatedToken struct {
	Token Token `json:"token"`
	// Text is the token itself, for `warren connector run --token`. Nobody can
	// ask for it again.
	Text string `json:"text"`
	// Record makes the token known to the other edges that were named, with
	// `warren token import`; empty where none was. It enrols nobody.
	Record string `json:"record,omitempty"`
}

// ImportRequest is the body of POST /v1/tokens/import.
type ImportRequest struct {
	Record string `json:"record"` // of a CreatedToken of another edge
}

// Tokens returns the tokens that are active, or ended within 7 days, the
// latest first.
func (c *Client) Tokens(ctx context.Context) ([]Token, error) {
	return call[[]Token](ctx, c, http.MethodGet, "/v1/tokens", nil)
}

// CreateToken makes a token with which connectors enrol.
func (c *Client) CreateToken(ctx context.Context, r TokenRequest) (CreatedToken, error) {
	return call[CreatedToken](ctx, c, http.MethodPost, "/v1/tokens", r)
}

// ImportToken makes a token that another edge made known to this one.
func (c *Client) ImportToken(ctx context.Context, r ImportRequest) (Token, error) {
	return call[Token](ctx, c, http.MethodPost, "/v1/tokens/import", r)
}

// RevokeToken ends a token, by its id or its name. The connectors that have
// enrolled with it stay.
func (c *Client) RevokeToken(ctx context.Context, idOrName string) (Token, error) {
	path, err := item("/v1/tokens/", "token", idOrName, "")
	if err != nil {
		return Token{}, err
	}
	return call[Token](ctx, c, http.MethodDelete, path, nil)
}

// item is the path of one thing, or of an action on it. A name that would be
// another path is nobody's.
func item(parent, kind, name, action string) (string, error) {
	if name == "" || name == "." || name == ".." {
		return "", &Error{Code: CodeNotFound, Message: fmt.Sprintf("looking for %s %q: nothing has such a name", kind, name)}
	}
	return parent + url.PathEscape(name) + action, nil
}
