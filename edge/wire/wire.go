// Package wire is what crosses between a connector and its edge besides flows:
// the token that a person carries over, and the messages of enrolment and
// control.
//
// Both protocols are HTTP/1.1 and JSON over TCP between the overlay addresses
// of one WireGuard session, so whoever asks is known by the source address:
//
//	EnrollPort   POST /v1/enroll   a token's bootstrap peer registers the key of its connector
//	ControlPort  POST /v1/sync     a connector reports and waits for a change of its grant
//	             POST /v1/key      a connector registers the key that it will change to
//	             POST /v1/work     a connector asks what to check and to resolve for the edge, and tells what came of it
//
// The version is in the path. A field that the reader does not know is
// ignored; a version that it does not know is refused with a Refusal, as is
// everything else that cannot be.
//
// The package holds no state and speaks to nobody. It must never put a secret
// into an error or a log line: a Token shows its secret in Text alone.
package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// TCP ports of the edge's overlay address. A bootstrap peer reaches the first
// and nothing else, a connector the second and nothing else.
const (
	EnrollPort  = 7801
	ControlPort = 7802
)

// Version of both protocols, the N of "/vN/" in their paths.
const Version = 1

// Paths of the requests, all POST.
const (
	PathEnroll = "/v1/enroll"
	PathSync   = "/v1/sync"
	PathKey    = "/v1/key"
	PathWork   = "/v1/work"
)

// Bounds of the messages.
const (
	MaxBody         = 256 << 10 // bytes of any message but those of PathWork
	MaxRoutes       = 1024      // of one connector
	MaxOriginErrors = 16        // in a report
	MaxName         = 64        // bytes of a name or a hostname
	MaxText         = 256       // bytes of any other text

	// HoldSync is how long the edge holds a sync back for want of news.
	HoldSync = 20 * time.Second
	// ConfirmWithin is how long a registration waits for its key to sync.
	ConfirmWithin = 60 * time.Second
)

// Key is a WireGuard public key, base64 in JSON.
type Key struct{ wgtypes.Key }

// MarshalText implements encoding.TextMarshaler.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.Key.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *Key) UnmarshalText(text []byte) error {
	key, err := wgtypes.ParseKey(string(text))
	if err != nil {
		return errKey
	}
	k.Key = key
	return nil
}

// errKey is static: it must not hold what was taken for a key.
var errKey = errors.New("reading a public key: want 44 characters of base64")

// Edge names an edge and where its WireGuard listens.
type Edge struct {
	PublicKey Key      `json:"public_key"`
	URLs      []string `json:"urls"` // "host:port" each; all are this edge's
}

// EnrollRequest is the body of POST /v1/enroll.
type EnrollRequest struct {
	PublicKey Key       `json:"public_key"`         // of the connector, which has saved it
	Name      string    `json:"name,omitempty"`     // what it would be called; the token's name wins
	Hostname  string    `json:"hostname,omitempty"` // of its machine
	Version   string    `json:"version,omitempty"`  // of its program
	Time      time.Time `json:"time"`               // of its clock
}

// EnrollAnswer is the answer to it. The same token and key get the same answer
// as long as the token is remembered. The registration stands once the key
// itself has synced, which it must within ConfirmWithin.
type EnrollAnswer struct {
	Name      string    `json:"name"`
	Network   string    `json:"network"`
	Ephemeral bool      `json:"ephemeral,omitempty"` // forgotten after 10 minutes of absence
	Edges     []Edge    `json:"edges"`               // this edge, with the addresses of the moment
	Time      time.Time `json:"time"`                // of the edge's clock
}

// SyncRequest is the body of POST /v1/sync.
type SyncRequest struct {
	// Revision of the grant that the connector holds; 0 asks for an answer at
	// once. The edge answers when it has another one, or after HoldSync.
	Revision uint64 `json:"revision"`
	Report   Report `json:"report"`
}

// Report is what a connector says of itself.
type Report struct {
	Version  string        `json:"version"`
	Hostname string        `json:"hostname"`
	Time     time.Time     `json:"time"` // of its clock, as the request was sent
	Started  time.Time     `json:"started"`
	Load     Load          `json:"load"`
	Errors   []OriginError `json:"errors,omitempty"` // latest first, at most MaxOriginErrors
}

// Load is what a connector's machine and process carry.
type Load struct {
	TCPFlows int     `json:"tcp_flows"` // over all its edges
	UDPFlows int     `json:"udp_flows"`
	CPUs     int     `json:"cpus"`
	Load1    float64 `json:"load1"`        // load average of a minute; 0: unknown
	Memory   uint64  `json:"memory"`       // bytes that the process has from the system
	Dropped  uint64  `json:"dropped"`      // packets and datagrams, all places and reasons
	Failed   uint64  `json:"failed_dials"` // of origins, since it started
}

// OriginError is one way in which flows to one destination failed.
type OriginError struct {
	Destination string    `json:"destination"` // "tcp/10.0.0.10:5432"
	Result      string    `json:"result"`      // refused, unreachable, timed_out, denied, …
	Error       string    `json:"error"`
	Count       uint64    `json:"count"` // since the connector started
	Last        time.Time `json:"last"`
}

// SyncAnswer is the answer to a sync.
type SyncAnswer struct {
	Revision uint64    `json:"revision"` // never 0
	Grant    Grant     `json:"grant"`
	Time     time.Time `json:"time"` // of the edge's clock, as the answer was sent
}

// Grant is what an edge lets a connector do, and what it wants of it.
type Grant struct {
	Name    string         `json:"name"`
	Network string         `json:"network"`
	Routes  []netip.Prefix `json:"routes"` // nothing else may be dialled for this edge
	Edges   []Edge         `json:"edges"`  // this edge, with the addresses of the moment

	// MaxTCPFlows and MaxUDPFlows bound the flows of this edge; 0: the
	// connector's own limits alone.
	MaxTCPFlows int `json:"max_tcp_flows,omitempty"`
	MaxUDPFlows int `json:"max_udp_flows,omitempty"`

	Drain  bool `json:"drain,omitempty"`  // take no new flows, and leave once the last has ended
	Rotate bool `json:"rotate,omitempty"` // change the key, as soon as all edges can learn the new one
	Work   bool `json:"work,omitempty"`   // ask at PathWork what there is to do
}

// KeyRequest is the body of POST /v1/key. An empty JSON object answers it: the
// edge has stored the key, and takes the connector's packets from either key
// until the new one syncs; then the old one is forgotten.
type KeyRequest struct {
	PublicKey Key `json:"public_key"`
}

// Code says what a Refusal means to a program.
type Code string

// Codes of refusals. Those that are Final will be answered to the same request
// for ever.
const (
	CodeSpent       Code = "spent"       // the single-use token was used
	CodeExpired     Code = "expired"     // the token
	CodeRevoked     Code = "revoked"     // the token, or the connector
	CodeKnownKey    Code = "known_key"   // the key is somebody's already
	CodeNotAllowed  Code = "not_allowed" // as rotating a key that the edge's config declares
	CodeBadRequest  Code = "bad_request" // it could not be read
	CodeUnknown     Code = "unknown"     // no such path; or no connector with that key, which may pass
	CodeVersion     Code = "version"     // of the protocol
	CodeBusy        Code = "busy"        // a registration in the way is being confirmed, or too many ask: ask again
	CodeUnavailable Code = "unavailable" // the edge cannot just now, as with a full disk: ask again
)

// Refusal is the body of every answer that is not a success (HTTP 4xx, 5xx),
// and an error. Message is one sentence for a person, in lower case, without a
// secret.
type Refusal struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

func (r *Refusal) Error() string {
	if r.Message == "" {
		return fmt.Sprintf("the edge refused with code %q and gave no reason", r.Code)
	}
	return r.Message
}

// Final reports that asking again is of no use. A code that this release does
// not know is not final: who gives up for ever must know why.
func (r *Refusal) Final() bool {
	switch r.Code {
	case CodeSpent, CodeExpired, CodeRevoked, CodeKnownKey, CodeNotAllowed, CodeBadRequest, CodeUnknown, CodeVersion:
		return true
	}
	return false
}

// Refuse makes a Refusal.
func Refuse(code Code, format string, args ...any) *Refusal {
	return &Refusal{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Decode reads one message, a JSON object of at most MaxBody bytes, and leaves
// out what it does not know. Its error tells in bounded words what was wrong
// and holds no value of the message; it wraps what r failed with.
func Decode(r io.Reader, into any) error { return decode(r, MaxBody, into) }

func decode(r io.Reader, limit int64, into any) error {
	body, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return fmt.Errorf("reading a message: %w", err)
	}
	if int64(len(body)) > limit {
		return fmt.Errorf("reading a message: it is longer than %d bytes", limit)
	}
	body = bytes.TrimLeft(body, " \t\r\n")
	if len(body) == 0 {
		return errors.New("reading a message: it is empty")
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("reading a message: %w", withoutValue(err))
	}
	if body[0] != '{' { // "null" is valid JSON for anything
		return errors.New("reading a message: it is no JSON object")
	}
	return nil
}

// withoutValue says what json.Unmarshal found wrong. Its own words may hold the
// value, in any length.
func withoutValue(err error) error {
	var kind *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &kind):
		what, _, _ := strings.Cut(kind.Value, " ") // "number 1e999"
		if kind.Field == "" {
			return fmt.Errorf("it is no JSON object but a JSON %s", what)
		}
		return fmt.Errorf("field %q cannot be such a JSON %s", kind.Field, what)
	case errors.As(err, &syntax):
		return fmt.Errorf("it is no JSON at byte %d: %w", syntax.Offset, syntax)
	case errors.Is(err, errKey):
		return errKey
	}
	return errors.New("a time or a prefix in it is none")
}
