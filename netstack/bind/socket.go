package bind

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"github.com/warrenmesh/warren/host"
)

const (
	// patience is how many receive errors in a row a socket may have before it
	// is held to be dead, although each of them was of a passing kind.
	patience = 100

	errorPause = 10 * time.Millisecond // between such errors, from the tenth on
	reopenMin  = 10 * time.Millisecond // between attempts to reopen, doubled
	reopenMax  = time.Second
)

// socket is a family's place in a generation, or that of both. The kernel's socket under it
// may die and be replaced; the address stays.
type socket struct {
	gen     *generation
	network string // "udp4", "udp6", or "udp" for both
	at      netip.AddrPort
	kernel  atomic.Pointer[kernelConn]
	turn    chan struct{} // held by the one Send that waits for room

	complained atomic.Bool // the log knows that segmentation was refused
}

// kernelConn is a socket of the kernel.
type kernelConn struct {
	*net.UDPConn
	raw syscall.RawConn

	fragments sync.RWMutex // held for writing while what is sent may not be fragmented

	segments bool // it sends several datagrams in one message
	gathers  bool // it hands over several datagrams in one message
}

// alone returns the size in bytes from which a datagram to e is a message of
// its own.
func (k *kernelConn) alone(e *Endpoint) int {
	if !k.segments {
		return 0
	}
	return e.alone(time.Now)
}

// options is what listenKernel sets on a socket before it binds it.
type options struct {
	receiveBuffer, sendBuffer int
	mark                      uint32
}

func (b *Bind) optionsLocked() options {
	return options{receiveBuffer: b.config.ReceiveBuffer, sendBuffer: b.config.SendBuffer, mark: b.mark}
}

// openSocketLocked opens a socket of g. The caller holds mu.
func (b *Bind) openSocketLocked(g *generation, network string, at netip.AddrPort) (*socket, error) {
	k, err := b.listen(network, at, b.optionsLocked())
	if err != nil {
		return nil, err
	}
	if local, ok := k.LocalAddr().(*net.UDPAddr); ok {
		at = netip.AddrPortFrom(at.Addr(), uint16(local.Port))
	}
	s := &socket{gen: g, network: network, at: at, turn: make(chan struct{}, 1)}
	s.kernel.Store(k)
	return s, nil
}

// listenError says what is wrong with listening at and what to do about it.
func listenError(at netip.AddrPort, err error) error {
	var call *os.SyscallError
	if errors.As(err, &call) {
		err = call.Err // without the name of the call, and the address twice
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("listening on udp %v: %w, by %s: stop it or choose another port", at, err, host.Holder("udp", at))
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("listening on udp %v: %w: ports below 1024 need CAP_NET_BIND_SERVICE", at, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("listening on udp %v: %w: no interface of this machine has the address", at, err)
	}
	return fmt.Errorf("listening on udp %v: %w", at, err)
}

// receive is the state of one receive function. WireGuard calls each from one
// goroutine.
type receive struct {
	bind  *Bind
	s     *socket
	batch *receiver
	cache *endpointCache
	flood *floodGuard
	scatter
}

func (b *Bind) newReceive(s *socket) *receive {
	return &receive{bind: b, s: s, batch: newReceiver(b.BatchSize()), cache: newEndpointCache(), flood: newFloodGuard()}
}

// receiveBoth, receiveIPv4 and receiveIPv6 are named for wireguard-go's log, which prints
// how the name of a receive function ends.
func (r *receive) receiveBoth(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	return r.receive(bufs, sizes, eps)
}

func (r *receive) receiveIPv4(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	return r.receive(bufs, sizes, eps)
}

func (r *receive) receiveIPv6(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	return r.receive(bufs, sizes, eps)
}

// receive waits for datagrams. The only error that it returns is
// net.ErrClosed: every other one would end the device's goroutine for good.
func (r *receive) receive(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	b := batch{bufs, sizes, eps}.to(min(len(bufs), r.bind.BatchSize()))
	for failures := 0; ; {
		if len(r.left) > 0 && !r.s.gen.closed() {
			return r.admit(b.to(r.deliver(b))), nil
		}
		k := r.s.kernel.Load()
		sh := r.shape(b.bufs, k.gathers)
		n, err := r.batch.read(k, b.bufs, sh, r.spare)
		if r.s.gen.closed() {
			return 0, net.ErrClosed
		}
		if err == nil {
			return r.admit(b.to(r.take(n, sh, b))), nil
		}
		r.bind.counts.rxErrors.Add(1)
		failures++
		switch {
		case !passing(err) || failures == patience:
			if err := r.bind.reopen(r.s, k, err); err != nil {
				return 0, err
			}
			failures = 0
		case failures >= 10:
			if !r.s.gen.pause(errorPause) {
				return 0, net.ErrClosed
			}
		}
	}
}

// take gives the datagrams of n messages their buffers, and returns how many
// buffers are in use.
func (r *receive) take(n int, sh shape, b batch) (used int) {
	c := &r.bind.counts
	most := 1
	var from origin
	for lane := range n {
		var m message
		var whole bool
		m.size, m.segment, whole = r.batch.message(lane, &from)
		m.ep = r.cache.get(&from)
		if !whole {
			r.truncated++
			m.size = 0
		}
		most = max(most, m.datagrams())
		r.learn(m)
		used = r.place(b, sh, lane, lane == n-1, m)
		c.rxDatagrams.Add(uint64(m.datagrams()))
	}
	r.learnCall(n, most)
	c.rxMessages.Add(uint64(n))
	c.rxCalls.Add(1)
	return used
}

// admit takes out the datagrams that the device is not to see, and returns how
// many there were with them.
func (r *receive) admit(b batch) int {
	c := &r.bind.counts
	if r.truncated > 0 {
		c.drop(whyTruncated, r.truncated)
		r.truncated = 0
	}
	total := 0
	for i, size := range b.sizes {
		if data := b.bufs[i][:size]; isHandshake(data) {
			answer := r.bind.config.Answer
			switch {
			case answer != nil && isInitiation(data) && !answer():
				c.drop(whyUnwanted, 1)
				b.sizes[i] = 0
			case !r.flood.allow(b.eps[i].(*Endpoint).source(), time.Now()):
				c.drop(whyFlood, 1)
				b.sizes[i] = 0
			}
		}
		total += b.sizes[i]
	}
	c.rxBytes.Add(uint64(total))
	return len(b.sizes)
}

// isInitiation reports whether a datagram is the first message of a handshake
// (wireguard.com/protocol).
func isInitiation(b []byte) bool {
	return len(b) == device.MessageInitiationSize && binary.LittleEndian.Uint32(b) == device.MessageInitiationType
}

// passing reports whether a receive error says something about one datagram
// or one moment, rather than that the socket is no more.
func passing(err error) bool {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return false
	}
	switch errno {
	case syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EHOSTDOWN, // ICMP
		syscall.ENETDOWN, syscall.ENETRESET, syscall.ETIMEDOUT, syscall.EPROTO, syscall.EMSGSIZE,
		syscall.ENOBUFS, syscall.ENOMEM, syscall.EINTR, syscall.EAGAIN, syscall.EPERM, syscall.EACCES:
		return true
	}
	return false
}

// pause waits and reports whether the generation is still open.
func (g *generation) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-g.done:
		return false
	case <-timer.C:
		return true
	}
}

// reopen replaces dead, which failed with cause, by a new socket on the same
// address. It tries until it has one, or returns net.ErrClosed. Only the
// socket's receive function calls it.
func (b *Bind) reopen(s *socket, dead *kernelConn, cause error) error {
	b.config.Log.Warn("udp socket died, opening it again", "listen", s.at, "err", cause)
	b.mu.Lock()
	if s.gen.closed() {
		b.mu.Unlock()
		return net.ErrClosed
	}
	b.counts.kernelDrops.Add(dead.dropped())
	_ = dead.Close() // it may well be closed: that can be how it died
	b.mu.Unlock()
	for wait := reopenMin; ; wait = min(2*wait, reopenMax) {
		done, err := b.tryReopen(s)
		if done {
			return err
		}
		b.config.Log.Debug("udp socket is not back yet", "listen", s.at, "err", err)
		if !s.gen.pause(wait) {
			return net.ErrClosed
		}
	}
}

// tryReopen makes one attempt; done is false where another is worth while.
func (b *Bind) tryReopen(s *socket) (done bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.gen.closed() {
		return true, net.ErrClosed
	}
	k, err := b.listen(s.network, s.at, b.optionsLocked())
	if err != nil {
		return false, err
	}
	s.kernel.Store(k)
	b.counts.reopened.Add(1)
	b.config.Log.Info("udp socket is open again", "listen", s.at)
	return true, nil
}
