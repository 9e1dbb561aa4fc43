// Package flow is the record of one flow: one accepted TCP connection, or one
// UDP session. A Flow has one owner at a time from Accept to Done: a goroutine
// that notes in it what each room decided, then the relay that moves its bytes.
// When it ends, its Record becomes one line of the flow log. Whoever lists the
// open flows meanwhile takes a Snapshot. The package holds data and imports
// nothing of Warren.
package flow

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Record is what is known of a flow at one moment: plain data, safe to copy,
// to keep and to hand to another goroutine.
type Record struct {
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
	End         time.Time     // zero while the flow is open
	ConnectTime time.Duration // from the decision to dial until the endpoint accepted

	Status Status
	Why    string // the last decision's reason, in words

	BytesIn  uint64 // client to origin, payload bytes
	BytesOut uint64 // origin to client, payload bytes
}

// Flow is one flow while it runs. Make it with New. The owner changes its
// record with Update and ends it with Done; the relay adds to the byte
// counters; any goroutine may take a Snapshot at any time.
type Flow struct {
	BytesIn  atomic.Uint64 // client to origin, payload bytes
	BytesOut atomic.Uint64 // origin to client, payload bytes

	mu     sync.Mutex
	record Record // its byte counts are filled in by Snapshot alone
}

// New returns a flow that starts with what r says. The byte counts of r are
// taken over into the counters.
func New(r Record) *Flow {
	f := &Flow{record: r}
	f.BytesIn.Store(r.BytesIn)
	f.BytesOut.Store(r.BytesOut)
	return f
}

// Update lets change edit the record while no Snapshot is being taken. change
// must be quick and must not call f's methods. Byte counts that it sets are
// ignored: the counters hold them.
func (f *Flow) Update(change func(*Record)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.record)
}

// Done notes how the flow ended. Only the first call counts, so that a path
// may end early with a precise reason and defer a general one.
func (f *Flow) Done(at time.Time, status Status, why string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.record.End.IsZero() {
		return
	}
	f.record.End, f.record.Status, f.record.Why = at, status, why
}

// Snapshot returns the flow as it stands: the record of one moment, and the
// byte counts read right after it.
func (f *Flow) Snapshot() Record {
	f.mu.Lock()
	r := f.record
	f.mu.Unlock()
	r.BytesIn, r.BytesOut = f.BytesIn.Load(), f.BytesOut.Load()
	return r
}
