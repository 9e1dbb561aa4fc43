package monitor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/warrenmesh/warren/check"
)

// world is a hand-written place to dial: each address has a state, each dial
// is counted, and the conns that nobody has aborted are known.
type world struct {
	mu     sync.Mutex
	err    map[string]error // "network/addr" → what a dial gets; absent: accepted
	delay  time.Duration    // before the answer
	dials  map[string]int
	at     []time.Time // of each dial
	open   int         // conns neither aborted nor closed
	closed int         // conns closed in order, which leaves a TIME_WAIT
	most   int         // dials under way at one time, at most
	now    int
}

func newWorld() *world {
	return &world{err: make(map[string]error), dials: make(map[string]int)}
}

func (w *world) set(place string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		delete(w.err, place)
		return
	}
	w.err[place] = err
}

func (w *world) has(place string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err[place] != nil
}

func (w *world) count(place string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dials[place]
}

var errSilence = errors.New("silence") // a dial that only ctx ends

func (w *world) dial(ctx context.Context, network, proto string, addr netip.AddrPort) (net.Conn, error) {
	place := network + "/" + addr.String()
	w.mu.Lock()
	w.dials[place]++
	w.at = append(w.at, time.Now())
	w.now++
	w.most = max(w.most, w.now)
	err, delay := w.err[place], w.delay
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.now--
		w.mu.Unlock()
	}()
	if errors.Is(err, errSilence) {
		<-ctx.Done()
		return nil, fmt.Errorf("dialling %q in network %q: %w", addr, network, ctx.Err())
	}
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("dialling %q in network %q: %w", addr, network, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open++
	return &fakeConn{w: w}, nil
}

// fakeConn knows only how it ended.
type fakeConn struct {
	net.Conn
	w    *world
	once sync.Once
}

func (c *fakeConn) Abort() {
	c.once.Do(func() {
		c.w.mu.Lock()
		defer c.w.mu.Unlock()
		c.w.open--
	})
}

func (c *fakeConn) Close() error {
	c.once.Do(func() {
		c.w.mu.Lock()
		defer c.w.mu.Unlock()
		c.w.open--
		c.w.closed++
	})
	return nil
}

// events collects changes as "place from→to".
type events struct {
	mu   sync.Mutex
	list []string
}

func (e *events) add(c Change) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, fmt.Sprintf("%s/%s %s %s→%s", c.Network, c.Addr, c.Monitor, c.From, c.To))
}

func (e *events) take() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := e.list
	e.list = nil
	return list
}

const place = "berlin/10.0.0.10:5432"

var (
	pg     = Spec{Name: "pg", Check: check.Spec{Type: check.TypeTCP}, Interval: 5 * time.Second, Timeout: 2 * time.Second, Rise: 2, Fall: 2}
	addr10 = netip.MustParseAddrPort("10.0.0.10:5432")
	addr11 = netip.MustParseAddrPort("10.0.0.11:5432")
	target = Target{Network: "berlin", Addr: addr10, Monitor: "pg"}
)

// after lets d of the bubble's time go by, and all that happens in it.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// start makes a Monitor in a bubble, over the one target.
func start(t *testing.T, w *world, spec Spec) (*Monitor, *events) {
	t.Helper()
	e := new(events)
	m := New(Deps{Dial: w.dial, OnChange: e.add})
	t.Cleanup(m.Stop)
	if err := m.Apply([]Spec{spec}, []Target{target}); err != nil {
		t.Fatal(err)
	}
	return m, e
}

func wantUp(t *testing.T, m *Monitor, want bool, wantWhy string) {
	t.Helper()
	up, why := m.Up(target.Network, target.Addr, target.Monitor)
	if up != want || why != wantWhy {
		t.Fatalf("up = %v %q, want %v %q", up, why, want, wantWhy)
	}
}

func wantEvents(t *testing.T, e *events, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, e.take()); diff != "" {
		t.Fatalf("events differ (-want +got):\n%s", diff)
	}
}

// Apply makes targets all that is watched: new ones begin, unchanged ones go
// on with their state, the rest end. It is Prepare and Commit in one.
func (m *Monitor) Apply(specs []Spec, targets []Target) error {
	change, err := m.Prepare(specs, targets)
	if err != nil {
		return err
	}
	change.Commit()
	return nil
}
