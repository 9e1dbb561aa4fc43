package client

import (
	"context"
	"net/http"
	"net/netip"
	"time"
)

// State of a connector.
const (
	ConnectorUp       = "up"
	ConnectorDown     = "down"
	ConnectorDraining = "draining" // alive, and takes no new flows: it asks for that, or an operator does (Held)
	ConnectorPending  = "pending"  // registered with a token; its key has not called yet
	ConnectorRevoked  = "revoked"  // its key is refused
	ConnectorAsleep   = "asleep"   // not in the tunnel: its network is not in the config any more, or what Why says
)

// Origin of a connector: how this edge came to know it.
const (
	OriginDeclared = "declared" // by a [[connector]] of the config
	OriginToken    = "token"
)

// Stages of a change of a connector's key.
const (
	RotationAsked      = "asked"      // the connector has been told to make a new key
	RotationRegistered = "registered" // the new key is known, and has not called yet
)

// Connector is one element of GET /v1/connectors, sorted by network and name.
type Connector struct {
	Name      string   `json:"name"`
	Network   string   `json:"network"`
	Origin    string   `json:"origin"` // declared or token
	State     string   `json:"state"`  // up, down, draining, pending, revoked or asleep
	Why       string   `json:"why,omitempty"`
	PublicKey string   `json:"public_key"`
	Overlay   string   `json:"overlay"`
	Endpoint  string   `json:"endpoint,omitempty"` // where its packets come from
	Routes    []string `json:"routes"`

	RTTMillis    float64   `json:"rtt_ms,omitempty"`
	PathMTU      int       `json:"path_mtu,omitempty"`      // bytes an inner packet may have
	Handshake    time.Time `json:"last_handshake,omitzero"` // zero: never
	HandshakeAge float64   `json:"handshake_age_ms,omitempty"`
	RxBytes      uint64    `json:"rx_bytes"` // received from it by WireGuard
	TxBytes      uint64    `json:"tx_bytes"`
	Flows        int       `json:"flows"`
	Since        time.Time `json:"since,omitzero"` // when State was entered

	Held         bool      `json:"held,omitempty"`            // drained by an operator of this edge
	PendingUntil time.Time `json:"pending_until,omitzero"`    // when a pending one is given up
	TokenID      string    `json:"token_id,omitempty"`        // that it enrolled with
	Ephemeral    bool      `json:"ephemeral,omitempty"`       // forgotten after 10 minutes of absence
	Enrolled     time.Time `json:"enrolled,omitzero"`         // when its first key called
	KeySince     time.Time `json:"key_since,omitzero"`        // when its present key was registered
	NextKey      string    `json:"next_public_key,omitempty"` // registered, to take the present key's place
	Rotation     string    `json:"rotation,omitempty"`        // asked or registered; empty: none is under way
	Revision     uint64    `json:"revision,omitempty"`        // of its grant
	MaxTCPFlows  int       `json:"max_tcp_flows,omitempty"`   // of its grant; 0: its own limits alone
	MaxUDPFlows  int       `json:"max_udp_flows,omitempty"`

	Report *Report `json:"report,omitempty"` // the last; nil: none since this edge started
}

// Report is what a connector last said of itself.
type Report struct {
	Received          time.Time     `json:"received"`
	Version           string        `json:"version,omitempty"` // of its program
	Hostname          string        `json:"hostname,omitempty"`
	Started           time.Time     `json:"started,omitzero"`
	ClockOffsetMillis float64       `json:"clock_offset_ms"` // its clock minus this edge's
	Load              Load          `json:"load"`
	Errors            []OriginError `json:"errors"` // of its origins, the latest first
}

// Load is what a connector's machine and process carry.
type Load struct {
	TCPFlows    int     `json:"tcp_flows"` // over all its edges
	UDPFlows    int     `json:"udp_flows"`
	CPUs        int     `json:"cpus,omitempty"`
	Load1       float64 `json:"load1,omitempty"`  // load average of a minute; 0: unknown
	Memory      uint64  `json:"memory,omitempty"` // bytes that its process has from the system
	Dropped     uint64  `json:"dropped"`          // packets and datagrams, all places and reasons
	FailedDials uint64  `json:"failed_dials"`     // of origins, since it started
}

// OriginError is one way in which flows to one destination fail behind a
// connector.
type OriginError struct {
	Destination string    `json:"destination"` // "tcp/10.0.0.10:5432"
	Result      string    `json:"result"`      // refused, unreachable, timed_out, denied, …
	Error       string    `json:"error,omitempty"`
	Count       uint64    `json:"count"` // since the connector started
	Last        time.Time `json:"last,omitzero"`
}

// GrantRequest is the body of POST /v1/connectors/{name}/grant: all the routes
// that an enrolled connector has from now on. Flows that they do not cover are
// aborted.
type GrantRequest struct {
	Routes []string `json:"routes"`
}

// Check returns the prefixes that the request asks for, or what is wrong with
// it.
func (r GrantRequest) Check() ([]netip.Prefix, error) { return checkRoutes(r.Routes) }

// ConnectorResult is the answer to an action on a connector.
type ConnectorResult struct {
	// Connector is as the action left it: one that was revoked is as it was,
	// but for its State and its flows.
	Connector Connector `json:"connector"`
	// Aborted counts the flows that a revocation or other routes cut.
	Aborted int    `json:"aborted"`
	Note    string `json:"note,omitempty"` // what is worth knowing besides, a sentence
}

// Connectors returns the connectors, sorted by network and name.
func (c *Client) Connectors(ctx context.Context) ([]Connector, error) {
	return call[[]Connector](ctx, c, http.MethodGet, "/v1/connectors", nil)
}

// RevokeConnector cuts a connector off, for good: its flows are aborted and
// its key is refused.
func (c *Client) RevokeConnector(ctx context.Context, name string) (ConnectorResult, error) {
	return c.actOn(ctx, name, "/revoke", nil)
}

// GrantConnector gives a connector that enrolled with a token other routes.
func (c *Client) GrantConnector(ctx context.Context, name string, r GrantRequest) (ConnectorResult, error) {
	return c.actOn(ctx, name, "/grant", r)
}

// RotateConnector asks a connector that enrolled with a token for a new key.
func (c *Client) RotateConnector(ctx context.Context, name string) (ConnectorResult, error) {
	return c.actOn(ctx, name, "/rotate", nil)
}

// DrainConnector gives a connector no new flows, or gives it some again.
func (c *Client) DrainConnector(ctx context.Context, name string, r DrainRequest) (ConnectorResult, error) {
	return c.actOn(ctx, name, "/drain", r)
}

func (c *Client) actOn(ctx context.Context, name, action string, body any) (ConnectorResult, error) {
	path, err := item("/v1/connectors/", "connector", name, action)
	if err != nil {
		return ConnectorResult{}, err
	}
	return call[ConnectorResult](ctx, c, http.MethodPost, path, body)
}
