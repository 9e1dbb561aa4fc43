package connector

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/memnet"
	"github.com/warrenmesh/warren/netstack/netx"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeTunnel is a Tunnel whose edges come and go as a test says.
type fakeTunnel struct {
	joinErr error

	mu       sync.Mutex
	peers    map[string]*fakePeer
	controls map[netip.Addr]*fakeControl // by the edge's overlay address
	keys     []wgtypes.Key               // those that SetPrivateKey was given
	keyErr   error                       // of SetPrivateKey
	draining bool
	closed   bool
}

func (f *fakeTunnel) Join(cfg JoinConfig) (Peer, error) {
	if f.joinErr != nil {
		return nil, f.joinErr
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	p := &fakePeer{cfg: cfg, calls: []netip.AddrPort{cfg.Endpoint}}
	if f.peers == nil {
		f.peers = make(map[string]*fakePeer)
	}
	f.peers[cfg.Name] = p
	return p, nil
}

func (f *fakeTunnel) Dial(ctx context.Context, overlay netip.AddrPort) (net.Conn, error) {
	f.mu.Lock()
	c := f.controls[overlay.Addr()]
	f.mu.Unlock()
	if c == nil || overlay.Port() != wire.ControlPort {
		return nil, netx.ErrRefused
	}
	return c.dial(ctx)
}

func (f *fakeTunnel) SetPrivateKey(key wgtypes.Key) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.keyErr != nil {
		return f.keyErr
	}
	f.keys = append(f.keys, key)
	for _, c := range f.controls {
		c.hangUp()
	}
	return nil
}

func (f *fakeTunnel) SetDraining(d bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.draining = d
}

func (f *fakeTunnel) Drops(yield func(where, why string, n uint64)) { yield("link", "queue_full", 7) }

func (f *fakeTunnel) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
}

func (f *fakeTunnel) peer(t *testing.T, name string) *fakePeer {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.peers[name]
	if p == nil {
		t.Fatalf("no edge %q was joined", name)
	}
	return p
}

// fakePeer answers at the addresses that a test says.
type fakePeer struct {
	cfg JoinConfig

	mu      sync.Mutex
	calls   []netip.AddrPort // the endpoints that were set, in order
	state   State
	removed bool
}

func (p *fakePeer) SetEndpoint(a netip.AddrPort) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, a)
	p.state.Endpoint = netip.AddrPort{}
	return nil
}

func (p *fakePeer) State() State {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.state
	if !s.Endpoint.IsValid() { // else it has roamed
		s.Endpoint = p.calls[len(p.calls)-1]
	}
	return s
}

func (p *fakePeer) Overlay() netip.Addr { return tunnel.OverlayAddr(p.cfg.PublicKey) }

func (p *fakePeer) Remove() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removed = true
}

func (p *fakePeer) isRemoved() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.removed
}

// set changes the state, as news from the tunnel.
func (p *fakePeer) set(s State) {
	p.mu.Lock()
	p.state = s
	p.mu.Unlock()
	p.cfg.OnState(s)
}

func (p *fakePeer) called() []netip.AddrPort {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.calls)
}

// fakeResolver answers from a map that a test may change.
type fakeResolver struct {
	mu      sync.Mutex
	names   map[string][]netip.Addr
	lookups int
}

func (f *fakeResolver) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lookups++
	if addrs, ok := f.names[host]; ok {
		return slices.Clone(addrs), nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func (f *fakeResolver) set(host string, addrs ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.names == nil {
		f.names = make(map[string][]netip.Addr)
	}
	f.names[host] = nil
	for _, a := range addrs {
		f.names[host] = append(f.names[host], netip.MustParseAddr(a))
	}
}

func (f *fakeResolver) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lookups
}

// fakeReach says what the network says, by address.
type fakeReach struct {
	routes map[string]error
	probes map[string]error
}

func (f *fakeReach) Route(a netip.AddrPort) error                    { return f.routes[a.String()] }
func (f *fakeReach) Probe(_ context.Context, a netip.AddrPort) error { return f.probes[a.String()] }

// memDialer dials origins in an in-memory network.
type memDialer struct{ net *memnet.Net }

func (d memDialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	return d.net.DialContext(ctx, network, a)
}

// logLines collects what is logged, a line a record: "message key=value …".
type logLines struct {
	mu    sync.Mutex
	lines []string
}

func (l *logLines) Enabled(context.Context, slog.Level) bool { return true }
func (l *logLines) WithGroup(string) slog.Handler            { return l }
func (l *logLines) WithAttrs(attrs []slog.Attr) slog.Handler { return l }

func (l *logLines) Handle(_ context.Context, r slog.Record) error {
	line := r.Message
	r.Attrs(func(a slog.Attr) bool {
		line += fmt.Sprintf(" %s=%v", a.Key, a.Value)
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
	return nil
}

// with returns the lines that hold text.
func (l *logLines) with(text string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return found
}

// messages returns the first words of the lines, those of flows and of the
// start left out.
func (l *logLines) messages() (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		message, _, _ := strings.Cut(line, "=")
		if i := strings.LastIndexByte(message, ' '); i > 0 {
			message = message[:i]
		}
		found = append(found, message)
	}
	return found
}

const testEdge = "edge.example:51820"

// bench is a Connector over fakes, in a bubble of fake time.
type bench struct {
	t        *testing.T
	c        *Connector
	spec     Spec
	deps     Deps
	tunnel   *fakeTunnel
	resolver *fakeResolver
	reach    *fakeReach
	origins  *memnet.Net
	log      *logLines
	force    chan struct{}
	prepare  func(*Connector) // before it runs
	asleep   atomic.Int64     // nanoseconds: how far the wall's clock is ahead

	stop func()
	end  chan error
}

// newBench makes a Connector with one edge, at 203.0.113.10. A test may
// change its spec and deps before start.
func newBench(t *testing.T) *bench {
	t.Helper()
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	url, err := ParseEdgeURL(testEdge)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{
		t:        t,
		tunnel:   &fakeTunnel{},
		resolver: &fakeResolver{},
		reach:    &fakeReach{routes: map[string]error{}, probes: map[string]error{}},
		origins:  memnet.New(),
		log:      &logLines{},
		force:    make(chan struct{}),
		end:      make(chan error, 1),
	}
	b.resolver.set("edge.example", "203.0.113.10")
	b.spec = Spec{Name: "test", StateDir: filepath.Join(t.TempDir(), "state"), Edges: []EdgeSpec{{PublicKey: key.PublicKey(), URLs: []EdgeURL{url}}}}
	b.deps = Deps{
		Log: slog.New(b.log), Force: b.force, Version: "v1",
		Resolver: b.resolver, OriginNet: memDialer{b.origins}, Reach: b.reach,
		Tunnel: func(TunnelConfig) (Tunnel, error) { return b.tunnel, nil },
		Wall:   func() time.Time { return time.Now().Round(0).Add(time.Duration(b.asleep.Load())) },
	}
	return b
}

// start runs the Connector until everything waits.
func (b *bench) start() {
	b.t.Helper()
	c, err := New(b.spec, b.deps)
	if err != nil {
		b.t.Fatal(err)
	}
	b.c = c
	if b.prepare != nil {
		b.prepare(c)
	}
	ctx, cancel := context.WithCancel(b.t.Context())
	b.stop = cancel
	go func() { b.end <- c.Run(ctx) }()
	synctest.Wait()
}

// join makes the edge answer.
func (b *bench) join() *fakePeer { return b.joinAt(testEdge) }

func (b *bench) joinAt(name string) *fakePeer {
	b.t.Helper()
	p := b.tunnel.peer(b.t, name)
	p.set(State{Alive: true, RTT: time.Millisecond})
	synctest.Wait()
	return p
}

// finish ends the Connector and returns what Run returned.
func (b *bench) finish() error {
	b.t.Helper()
	b.stop()
	err := <-b.end
	b.tunnel.mu.Lock()
	defer b.tunnel.mu.Unlock()
	if !b.tunnel.closed || !b.tunnel.draining && err == nil {
		b.t.Errorf("the tunnel was closed: %v, and told to drain: %v", b.tunnel.closed, b.tunnel.draining)
	}
	return err
}

// inBubble runs a test in fake time.
func inBubble(t *testing.T, f func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newBench(t)) })
}
