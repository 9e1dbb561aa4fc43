// Package public dials public origins, the endpoints of the network "@public",
// from the edge itself.
//
// New makes a Dialer of a Spec; DialContext opens a flow to an address that
// Check has passed, and Ping sends an echo. A name is resolved elsewhere, and
// whoever answers for it must not choose what the edge reaches: an address
// that is not public (loopback, link-local, private, metadata, the edge's
// own…) is refused unless the operator has listed it, in whatever disguise it
// comes.
//
// The package never resolves a name, and nothing is dialled that Check refuses.
package public

import (
	"errors"
	"net/netip"
	"time"

	"github.com/warrenmesh/warren/host/ping"
)

// Defaults of a Spec.
const (
	// DefaultTimeout is the time to connect, as a connector's.
	DefaultTimeout = 5 * time.Second
	// MaxTimeout is what the edge waits for a connect.
	MaxTimeout = 7 * time.Second
	// DefaultKeepAlive is the time between TCP keep-alive probes to an idle origin.
	DefaultKeepAlive = 30 * time.Second
	// DefaultMaxDials is how many dials may wait for an answer at one time.
	DefaultMaxDials = 1024
	// endpointShare is which part of them one endpoint may have.
	endpointShare = 4
)

// Causes of a failed dial beyond netx's. An error that wraps one of them wraps
// netx.ErrUnreachable too. All but ErrNotPublic say nothing of the origin, and
// the edge counts them neither as its failure nor as a check that failed.
var (
	// ErrNotPublic: Check refuses the address.
	ErrNotPublic = errors.New("not a public address")
	// ErrBusy: MaxDials are waiting already, or that endpoint's share of them.
	ErrBusy = errors.New("too many dials to public origins at one time")
	// ErrDescriptors: no socket could be opened.
	ErrDescriptors = errors.New("the edge has no file descriptor left: raise its limit (LimitNOFILE= of the systemd unit, or ulimit -n; fs.file-max where the whole machine has none)")
	// ErrPingUnsupported: this machine does not let the process send pings.
	ErrPingUnsupported = ping.ErrForbidden
)

// Spec says what may be dialled, and how. The zero value dials public
// addresses alone, with the default times.
type Spec struct {
	// Allow are the prefixes that may be dialled though they are not public.
	// A metadata address needs its own single-address prefix; multicast and
	// unspecified addresses are never dialled.
	Allow []netip.Prefix
	// Own are the edge's own addresses: a flow to one of them would come back
	// in through the front door.
	Own []netip.Addr
	// Timeout bounds one dial. Default 5 s, at most 7 s.
	Timeout time.Duration
	// KeepAlive is the interval of TCP keep-alive probes. Default 30 s;
	// negative turns them off.
	KeepAlive time.Duration
	// MaxDials bounds the dials at one time, of which one endpoint has a
	// quarter at most, so that one that is silent leaves the others theirs.
	// Default 1024.
	MaxDials int
}
