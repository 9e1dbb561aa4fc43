package connector

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/memnet"
)

// fakeOrigins are origins that a check meets: those that are not named accept.
type fakeOrigins struct {
	mu    sync.Mutex
	fail  map[string]error // by address and port
	quiet map[string]bool  // no answer
	dials map[string]int
	open  int // dials under way
	most  int
}

func newFakeOrigins() *fakeOrigins {
	return &fakeOrigins{fail: map[string]error{}, quiet: map[string]bool{}, dials: map[string]int{}}
}

func (o *fakeOrigins) DialContext(ctx context.Context, _, address string) (net.Conn, error) {
	o.mu.Lock()
	o.dials[address]++
	err, quiet := o.fail[address], o.quiet[address]
	o.open++
	o.most = max(o.most, o.open)
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.open--
	}()
	if quiet {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	near, _ := memnet.Pipe()
	return near, nil
}

func (o *fakeOrigins) set(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f()
}

func (o *fakeOrigins) count(address string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.dials[address]
}

func (o *fakeOrigins) total() (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, dials := range o.dials {
		n += dials
	}
	return n
}

// fakeNames is a resolver with TTLs.
type fakeNames struct {
	mu      sync.Mutex
	answers map[string]fakeAnswer
	asked   map[string]int
}

type fakeAnswer struct {
	addrs []netip.Addr
	ttl   time.Duration
	err   error
	hangs bool
}

func newFakeNames() *fakeNames {
	return &fakeNames{answers: map[string]fakeAnswer{}, asked: map[string]int{}}
}

func (f *fakeNames) Lookup(ctx context.Context, host string) ([]netip.Addr, time.Duration, error) {
	f.mu.Lock()
	a := f.answers[host]
	f.asked[host]++
	f.mu.Unlock()
	if a.hangs {
		<-ctx.Done()
		return nil, 0, ctx.Err()
	}
	return a.addrs, a.ttl, a.err
}

func (f *fakeNames) count(host string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[host]
}

func (f *fakeNames) set(host string, a fakeAnswer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers[host] = a
}

func addrs(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// tcpEvery is a way to check.
func tcpEvery(d time.Duration) wire.WorkSpec {
	return wire.WorkSpec{Check: json.RawMessage(`{"type":"tcp"}`), Interval: d, Timeout: min(d, 2*time.Second)}
}

// checksOf are checks by the first spec, with ids from 1 on.
func checksOf(list ...string) (out []wire.Check) {
	for i, a := range list {
		out = append(out, wire.Check{ID: uint64(i + 1), Addr: netip.MustParseAddrPort(a)})
	}
	return out
}

// employ gives the connector work, or none.
func (c *fakeControl) employ(work wire.Work) {
	c.set(func() {
		c.work = wire.WorkAnswer{Revision: c.work.Revision + 1, Work: work}
		if c.answer.Grant.Work = len(work.Checks)+len(work.Names) > 0; !c.answer.Grant.Work {
			c.work.Revision = 0
		}
		c.answer.Revision++
	})
	synctest.Wait()
}

// told returns what the connector has told since it was asked last.
func (c *fakeControl) told() (results []wire.CheckResult, names []wire.Found, requests int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.asked {
		results, names = append(results, r.Results...), append(names, r.Names...)
	}
	requests = len(c.asked)
	c.asked = nil
	return results, names, requests
}

// revisions returns those that were asked with, since told.
func (c *fakeControl) revisions() (out []uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.asked {
		out = append(out, r.Revision)
	}
	return out
}

func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// employed runs a test of a connector whose edge has work for it.
func employed(t *testing.T, f func(t *testing.T, b *bench, c *fakeControl, o *fakeOrigins, n *fakeNames)) {
	t.Helper()
	controlled(t, func(t *testing.T, b *bench, c *fakeControl) {
		o, n := newFakeOrigins(), newFakeNames()
		b.deps.OriginNet, b.deps.Lookup = o, n.Lookup
		f(t, b, c, o, n)
	})
}

func lastOf(results []wire.CheckResult, id uint64) (last wire.CheckResult) {
	for _, r := range results {
		if r.ID == id {
			last = r
		}
	}
	return last
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
