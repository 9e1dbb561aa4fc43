// Package flow is the record of one flow: one accepted TCP connection, or one
// UDP session. One goroutine owns a Flow from Accept to Done and writes its
// fields as the flow walks through the rooms; when it ends it becomes one line
// of the flow log. The package holds data and imports nothing of Warren.
package flow

import (
	"net/netip"
	"sync/atomic"
	"time"
)

// Status says how a flow ended, or that it has not. The numbers have the
// meanings of Cloudflare Spectrum's event log.
type Status int

const (
	StatusOpen        Status = 0   // still running
	StatusClosed      Status = 200 // ended in order
	StatusDenied      Status = 403 // refused by policy
	StatusClientGone  Status = 499 // the client aborted
	StatusOriginGone  Status = 449 // the private side aborted
	StatusRefused     Status = 520 // the endpoint refused the connection
	StatusUnreachable Status = 521 // the endpoint is unreachable, or the connector's guard denied it
	StatusTimeout     Status = 522 // the endpoint did not answer in time
	StatusNoRoute     Status = 523 // no live connector serves the endpoint
	StatusNoEndpoint  Status = 530 // the pools have nothing to pick
	StatusInternal    Status = 999 // a failure that none of the others names
)

// Flow is one flow's record. Fields other than the byte counters belong to
// the goroutine that owns the flow; a Table hands out copies (Snapshot).
type Flow struct {
	ID       uint64         // unique in this process
	App      string         // the app's name
	Proto    string         // "tcp" or "udp"
	Listener netip.AddrPort // the public address that accepted it
	Client   netip.AddrPort // the client, as the edge sees it

	Network   string         // virtual network of the chosen endpoint
	Pool      string         // pool of the chosen endpoint
	Endpoint  netip.AddrPort // private address of the chosen endpoint
	Connector string         // the connector that carries it

	Start       time.Time
	End         time.Time
	ConnectTime time.Duration // from the decision to dial until the endpoint accepted

	Status Status
	Why    string // the last decision's reason, in words

	BytesIn  atomic.Uint64 // client to origin, payload bytes
	BytesOut atomic.Uint64 // origin to client, payload bytes
}
