// Package bind is the UDP sockets of WireGuard: a conn.Bind for wireguard-go
// that moves datagrams in batches, answers from the address that a peer spoke
// to, and outlives the sockets under it.
//
// New makes one, the WireGuard device opens and closes it. Everything that
// concerns the kernel's sockets stays in here: a socket that dies is replaced
// on the same port by the receive function that finds out, because a device
// that reopens its Bind holds locks for which the data path waits.
//
// Send never waits longer than Config.SendWait, drops what it cannot send,
// and counts it with a reason (Drops). It must never decide about a peer: a
// source address is a place to send an answer to and proves nothing. All that
// it knows of WireGuard's messages is which of them begins a handshake.
//
// Runs of datagrams of one size travel as one message, in both directions and
// without a copy: sender_linux.go puts them together, scatter.go lays them out
// over the device's buffers, which are arrays of 64 KiB. The receive function
// holds Config.Batch of them; there is one function, and one socket, for both
// families. flood.go guards the device from floods of handshakes.
package bind

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// Tuning. See Config for what each means.
const (
	// DefaultBatch: two devices over loopback on two cores (BenchmarkDevicePair)
	// spend 2.96, 2.77 and 2.77 µs of processor a packet at batches of 32, 64
	// and 128 (3.5 with upstream's Bind), while the device's buffers take 2, 4
	// and 8 MB of heap. 64 holds a whole message. Between namespaces, one stream
	// of bulk, 128 costs edge and connector together 3.40 s/GB and 64 3.82, but
	// an edge that guests flood then grows by 64 to 71 MiB instead of 53.
	DefaultBatch = 64
	maxBatch     = conn.IdealBatchSize
	// defaultBuffer: in bulk between namespaces, 1 to 128 streams, two cores for
	// everything, no socket dropped anything at 4 MiB; a larger one would only
	// let delay grow. It holds some 3,600 single datagrams of Ethernet's size
	// and 5,000 in messages: 30 ms at 1.5 Gbit/s.
	defaultBuffer   = 4 << 20
	defaultSendWait = 100 * time.Millisecond
)

// Config says where a Bind listens. The zero value listens on a port that the
// kernel picks, on every address of both families.
type Config struct {
	// Listen is the address and port to listen on. Without a valid address it
	// is every address of both families; 0.0.0.0 is IPv4 alone and :: IPv6
	// alone. The port is used where the device asks for none (port 0, its
	// default); port 0 here too lets the kernel pick, one for both families.
	Listen netip.AddrPort

	// ReceiveBuffer and SendBuffer are the socket buffers in bytes, default
	// 4 MiB. Without CAP_NET_ADMIN the kernel clamps them to
	// net.core.{r,w}mem_max; Buffers tells what came of it.
	ReceiveBuffer, SendBuffer int

	// Batch is how many datagrams one receive call takes at most, 1 to 128.
	// Each costs 64 KiB of the device's heap; what is resident is what has been
	// written to, a page for a datagram of Ethernet's size.
	Batch int

	// SendWait is how long one Send may wait for room in the socket's buffer
	// before the rest of its datagrams is dropped; default 100 ms.
	SendWait time.Duration

	// Answer says whether handshakes that others begin are wanted; nil: they
	// are. An end that begins them all itself wants none: WireGuard cannot
	// tell the first message of a handshake from a recording of it until it
	// has seen a later one, and sends to where it came from. It must not block.
	Answer func() bool

	// OnSent is called once for every Send, with its buffers, when each of
	// them has been handed to the kernel or dropped. It must not block or
	// keep the slices. Nil for none.
	OnSent func(bufs [][]byte)

	// Log receives one line when a socket dies and one when it is back. Nil
	// discards them.
	Log *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.ReceiveBuffer <= 0 {
		c.ReceiveBuffer = defaultBuffer
	}
	if c.SendBuffer <= 0 {
		c.SendBuffer = defaultBuffer
	}
	if c.Batch <= 0 {
		c.Batch = DefaultBatch
	}
	c.Batch = min(c.Batch, maxBatch)
	if c.SendWait <= 0 {
		c.SendWait = defaultSendWait
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Bind implements conn.Bind. Make it with New. All methods may be called at
// any time from any goroutine.
type Bind struct {
	config  Config
	counts  counts
	senders sync.Pool // of *sender

	// listen opens one socket; tests put failures in its place.
	listen func(network string, at netip.AddrPort, o options) (*kernelConn, error)

	// current is what Open opened last; nil while closed. Written under mu.
	current atomic.Pointer[generation]

	mu   sync.Mutex
	mark uint32
}

var _ conn.Bind = (*Bind)(nil)

// generation is what lives from one Open to the Close after it.
type generation struct {
	done chan struct{} // closed by Close
	port uint16
	v4   *socket // nil where the family is not listened on
	v6   *socket // the same one where both are
}

func (g *generation) closed() bool {
	select {
	case <-g.done:
		return true
	default:
		return false
	}
}

func (g *generation) sockets() []*socket {
	var out []*socket
	if g.v4 != nil {
		out = append(out, g.v4)
	}
	if g.v6 != nil && g.v6 != g.v4 {
		out = append(out, g.v6)
	}
	return out
}

// New returns a closed Bind; a WireGuard device opens it.
func New(config Config) *Bind {
	b := &Bind{config: config.withDefaults(), listen: listenKernel}
	b.senders.New = func() any { return newSender() }
	return b
}

// Open opens the socket and returns its receive function. port, if
// not 0, takes the place of the configured one: a device passes its
// listen_port, and the port it had when it opens again.
//
// An error names the address and, where the machine tells, the process that
// holds it. Opening an open Bind is conn.ErrBindAlreadyOpen.
func (b *Bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current.Load() != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	if port == 0 {
		port = b.config.Listen.Port()
	}
	g, err := b.openLocked(port)
	if err != nil {
		return nil, 0, err
	}
	var fns []conn.ReceiveFunc
	switch {
	case g.v4 == g.v6:
		fns = append(fns, b.newReceive(g.v4).receiveBoth)
	case g.v4 != nil:
		fns = append(fns, b.newReceive(g.v4).receiveIPv4)
	default:
		fns = append(fns, b.newReceive(g.v6).receiveIPv6)
	}
	b.current.Store(g)
	return fns, g.port, nil
}

// openLocked opens the family, or the two, that the configuration asks for.
// The caller holds mu.
func (b *Bind) openLocked(port uint16) (*generation, error) {
	g := &generation{done: make(chan struct{})}
	addr := b.config.Listen.Addr().Unmap()
	if !addr.IsValid() {
		return g, b.openBothLocked(g, port)
	}
	network, place := "udp6", &g.v6
	if addr.Is4() {
		network, place = "udp4", &g.v4
	}
	at := netip.AddrPortFrom(addr, port)
	s, err := b.openSocketLocked(g, network, at)
	if err != nil {
		return nil, listenError(at, err)
	}
	*place, g.port = s, s.at.Port()
	return g, nil
}

// openBothLocked opens one socket for both families, so that the device holds
// one batch of buffers and not a second one for a family that may never see a
// datagram. A machine without one of them has the other.
func (b *Bind) openBothLocked(g *generation, port uint16) error {
	at4 := netip.AddrPortFrom(netip.IPv4Unspecified(), port)
	at6 := netip.AddrPortFrom(netip.IPv6Unspecified(), port)
	s, err := b.openSocketLocked(g, "udp", at6)
	switch {
	case err == nil:
		g.v4, g.v6, g.port = s, s, s.at.Port()
		return nil
	case !noFamily(err):
		// Which of the two is taken? The other may be free.
		if k, err4 := b.listen("udp4", at4, b.optionsLocked()); err4 == nil {
			_ = k.Close()
		} else if !noFamily(err4) {
			return listenError(at4, err4)
		}
		return listenError(at6, err)
	}
	if s, err = b.openSocketLocked(g, "udp4", at4); err == nil {
		g.v4, g.port = s, s.at.Port()
		return nil
	} else if !noFamily(err) {
		return listenError(at4, err)
	}
	if s, err = b.openSocketLocked(g, "udp6", at6); err != nil {
		return listenError(at6, err)
	}
	g.v6, g.port = s, s.at.Port()
	return nil
}

// noFamily reports whether err says that the machine lacks the address family,
// as with ipv6.disable=1, rather than that this address cannot be had.
func noFamily(err error) bool {
	return errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EPROTONOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)
}

// Close closes the sockets. Every receive function of this Open returns
// net.ErrClosed from then on, and a Send that waits gives up. Closing a closed
// Bind does nothing.
func (b *Bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	g := b.current.Load()
	if g == nil {
		return nil
	}
	b.current.Store(nil)
	close(g.done)
	var errs []error
	for _, s := range g.sockets() {
		k := s.kernel.Load()
		b.counts.kernelDrops.Add(k.dropped())
		if err := k.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, fmt.Errorf("closing udp socket %v: %w", s.at, err))
		}
	}
	return errors.Join(errs...)
}

// SetMark sets the firewall mark (SO_MARK) of every datagram sent from now on,
// also through sockets opened later. It needs CAP_NET_ADMIN.
func (b *Bind) SetMark(mark uint32) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mark = mark
	g := b.current.Load()
	if g == nil {
		return nil
	}
	for _, s := range g.sockets() {
		if err := s.kernel.Load().setMark(mark); err != nil {
			return fmt.Errorf("setting mark %#x on udp socket %v: %w", mark, s.at, err)
		}
	}
	return nil
}

// BatchSize returns Config.Batch. Send takes more than that in one call.
func (b *Bind) BatchSize() int { return min(b.config.Batch, platformBatch) }

// ParseEndpoint reads address:port; it resolves no names.
func (b *Bind) ParseEndpoint(s string) (conn.Endpoint, error) { return parseEndpoint(s) }

// LocalPort returns the port that the Bind listens on, 0 while it is closed.
func (b *Bind) LocalPort() uint16 {
	if g := b.current.Load(); g != nil {
		return g.port
	}
	return 0
}

// Buffers returns the sizes in bytes that the kernel gave to the sockets'
// receive and send buffers, the smaller where the families differ; 0 while the
// Bind is closed.
func (b *Bind) Buffers() (receive, send int) {
	g := b.current.Load()
	if g == nil {
		return 0, 0
	}
	for i, s := range g.sockets() {
		r, w := s.kernel.Load().buffers()
		if i == 0 || r < receive {
			receive = r
		}
		if i == 0 || w < send {
			send = w
		}
	}
	return receive, send
}

// PathMTU returns what the kernel believes to be the MTU of the path to dst,
// in bytes with the IP header, for a datagram that leaves from where this Bind
// listens. It is where probing starts, not the truth: nothing has been sent.
func (b *Bind) PathMTU(dst netip.Addr) (int, error) {
	b.mu.Lock()
	mark := b.mark
	b.mu.Unlock()
	dst = dst.Unmap()
	if !dst.IsValid() {
		return 0, fmt.Errorf("asking for the path MTU to %q: not an address", dst)
	}
	src := b.config.Listen.Addr().Unmap()
	if src.IsValid() && src.Is4() != dst.Is4() {
		return 0, fmt.Errorf("asking for the path MTU to %v: listening on %v alone: %w", dst, src, syscall.EAFNOSUPPORT)
	}
	mtu, err := pathMTU(src, dst, mark)
	if err != nil {
		return 0, fmt.Errorf("asking for the path MTU to %v: %w", dst, err)
	}
	return mtu, nil
}
