// Package enroll knows who may be a connector of this edge, and tells each what
// it may do: the tokens, the enrolment of connectors that come by one, the
// grants, and the two servers inside the tunnel (enrolment for the guests that
// tokens make, control for connectors).
//
//	registry, err := enroll.New(spec, enroll.Deps{Store: store, Peers: tunnel, PublicKey: key})
//	go registry.Run(ctx)                             // sweeps
//	go registry.Serve(ctx, enrollPort, controlPort)  // listeners of the overlay stack
//	created, err := registry.CreateToken(enroll.TokenRequest{Network: "berlin", Routes: routes})
//
// A connector of a token goes through these states:
//
//	           the token's bootstrap peer         the key itself
//	           registers a key                    syncs
//	(unknown) ─────────────────────▶  pending  ──────────────▶  enrolled
//	    ▲                                │                          │ Revoke
//	    ├──── ConfirmWithin without ─────┘                          ▼
//	    └──── ephemeral, absent for 10 minutes ────────────────  denied, for ever
//
// Everything that must outlive the process goes through Store before it is
// acknowledged, and before it shows in memory; where that fails, nothing has
// changed. What a crash may forget is a drain and what connectors report.
//
// The package must never hold a private key or a token's secret beyond the call
// that makes it, nor put a preshared key into a log, an error or an answer.
package enroll

import (
	"context"
	"net"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

// Kind says what an Error means to a program.
type Kind int

const (
	BadRequest  Kind = iota + 1 // it makes no sense
	NotFound                    // there is none of that name
	Refused                     // it cannot be, as things are
	Unavailable                 // the edge cannot store it just now
)

// Error is what the operator's methods fail with. Its text is one sentence
// with what to do.
type Error struct {
	Kind Kind
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns what it was made of.
func (e *Error) Unwrap() error { return e.Err }

// TokenRequest asks for a token.
type TokenRequest struct {
	Network   string
	Routes    []netip.Prefix
	Name      string        // that its connector gets; empty: the one that the connector asks for
	TTL       time.Duration // 0: DefaultTTL
	Reusable  bool
	Ephemeral bool        // implies Reusable; its connectors are forgotten after 10 minutes of absence
	Edges     []wire.Edge // others that the token is good for too, once they have imported its record
}

// Bounds of TokenRequest.TTL.
const (
	MinTTL     = time.Minute
	MaxTTL     = 366 * 24 * time.Hour
	DefaultTTL = time.Hour
)

// Created is a token that was just made. It is the only thing of this package
// that holds a secret.
type Created struct {
	Token  TokenInfo
	Text   string // the token itself
	Record string // for ImportToken of the request's other edges; empty where there are none. It enrols nobody
}

// TokenState is one of the Token values.
type TokenState string

const (
	TokenActive  TokenState = "active"
	TokenSpent   TokenState = "spent" // its one use is over
	TokenExpired TokenState = "expired"
	TokenRevoked TokenState = "revoked"
)

// TokenInfo is what is known of a token. Its secret is not.
type TokenInfo struct {
	ID        string
	Name      string
	Network   string
	Routes    []netip.Prefix
	State     TokenState
	Reusable  bool
	Ephemeral bool
	Imported  bool          // made by another edge
	Edges     []wgtypes.Key // public keys of all that it is good for
	Created   time.Time
	Expires   time.Time
	Ended     time.Time // when State was entered; zero while it is active
	Forgotten time.Time // when an ended one is forgotten; zero while it is active

	Used       int       // connectors that were confirmed
	Pending    int       // registrations whose key has not synced yet
	LastUsed   time.Time // zero: never
	Connectors []string  // those that came by it and are still there, sorted
	SpentBy    string    // the connector that spent a single-use token
}

// ConnectorState is one of the Connector values.
type ConnectorState string

const (
	ConnectorPending   ConnectorState = "pending"    // its key has not synced yet
	ConnectorEnrolled  ConnectorState = "enrolled"   // or declared
	ConnectorNoNetwork ConnectorState = "no_network" // edge.toml no longer has its network
	ConnectorRevoked   ConnectorState = "revoked"    // declared, but its key is denied
)

// Stages of a change of a connector's key.
const (
	RotationAsked      = "asked"      // the grant tells the connector to make a new key
	RotationRegistered = "registered" // the new key is known, and has not synced yet
)

// Connector is what is known of a connector; the tunnel knows the rest.
type Connector struct {
	Name      string
	Network   string
	Routes    []netip.Prefix
	State     ConnectorState
	Why       string // one that is not in the tunnel though it should be
	PublicKey wgtypes.Key
	NextKey   wgtypes.Key // zero: none is registered
	Declared  bool        // by edge.toml; else by a token
	Token     string      // id of the token that it came by
	Ephemeral bool

	PendingUntil time.Time // of a pending one
	Enrolled     time.Time // when its first key synced
	KeySince     time.Time // when its present key was registered
	Revoked      time.Time // of a declared one whose key is denied
	Rotation     string    // RotationAsked, RotationRegistered or empty
	Draining     bool      // by an operator

	Revision                 uint64 // of its grant
	MaxTCPFlows, MaxUDPFlows int

	LastSync    time.Time     // zero: none since this edge started
	Report      wire.Report   // of LastSync
	ClockOffset time.Duration // its clock less this edge's, half a round trip included; 0 where it told no time
}

// Registry is all of that. Make it with New; its methods may be called from
// any goroutine.
type Registry struct{}

// New loads the store, and adds guests and enrolled connectors to the tunnel.
// It fails where the store cannot be read, or where spec declares a name or a
// key that is enrolled.
func New(spec Spec, deps Deps) (*Registry, error) { return nil, nil }

// Check tells whether spec can be applied: not if it declares a name or a key
// that is enrolled. Until the next Apply, Check or Release nobody enrols with a
// name or key that spec declares.
func (r *Registry) Check(spec Spec) error { return nil }

// Release gives up what Check has set aside.
func (r *Registry) Release() {}

// Apply brings spec into force; it is for the time after the tunnel has its
// networks and declared connectors. Enrolled connectors whose network has gone
// are asleep until it comes back. Grants that changed are pushed.
func (r *Registry) Apply(spec Spec) {}

// Run sweeps each second until ctx ends.
func (r *Registry) Run(ctx context.Context) {}

// Sweep ends what is due: registrations without confirmation, expired tokens,
// what has been told for 7 days, ephemeral connectors that are absent; and asks
// for keys in place of old ones.
func (r *Registry) Sweep() {}

// Serve answers on both listeners until ctx ends, closes them, and returns nil
// then. It fails if one of them does.
func (r *Registry) Serve(ctx context.Context, enroll, control net.Listener) error { return nil }

// CreateToken makes a token and opens this edge to its bootstrap keys.
func (r *Registry) CreateToken(req TokenRequest) (Created, error) { return Created{}, nil }

// ImportToken makes a token known that another edge created.
func (r *Registry) ImportToken(record string) (TokenInfo, error) { return TokenInfo{}, nil }

// Tokens returns the tokens, the latest first.
func (r *Registry) Tokens() []TokenInfo { return nil }

// RevokeToken ends a token; the connectors that it has enrolled stay.
func (r *Registry) RevokeToken(idOrName string) (TokenInfo, error) { return TokenInfo{}, nil }

// Connectors returns the enrolled and the declared connectors, sorted by
// network and name.
func (r *Registry) Connectors() []Connector { return nil }

// Revoke cuts a connector off, for good: its flows are aborted, and its key is
// denied.
func (r *Registry) Revoke(name string) error { return nil }

// Grant gives an enrolled connector other routes. Flows that they do not cover
// are aborted.
func (r *Registry) Grant(name string, routes []netip.Prefix) error { return nil }

// Rotate asks an enrolled connector for a new key.
func (r *Registry) Rotate(name string) error { return nil }

// Drain gives a connector no new flows and tells it to leave once its flows
// have ended, or takes that back. It lasts as long as the process.
func (r *Registry) Drain(name string, off bool) error { return nil }

// Denied reports whether the key was revoked, and when.
func (r *Registry) Denied(key wgtypes.Key) (when time.Time, ok bool) { return time.Time{}, false }
