package ingress

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/warrenmesh/warren/netstack/netx"
	"github.com/warrenmesh/warren/netstack/relay"
)

const (
	// receiveBuffer holds the largest datagram. There is one for each socket.
	receiveBuffer = 64 << 10
	// socketBuffer is asked of the kernel, which may grant less: bursts wait
	// there while the reader is busy.
	socketBuffer = 4 << 20
)

// udpSocket is what a listener needs of a *net.UDPConn.
type udpSocket interface {
	ReadMsgUDPAddrPort(b, oob []byte) (n, oobn, flags int, addr netip.AddrPort, err error)
	WriteMsgUDPAddrPort(b, oob []byte, addr netip.AddrPort) (n, oobn int, err error)
	LocalAddr() net.Addr
	Close() error
}

// udpListener is one UDP socket, its sessions, and the goroutine that reads
// from it. The socket stays open while a session needs it: replies leave from
// the address that the client spoke to.
type udpListener struct {
	s    *Server
	key  key
	pc   udpSocket
	many *relay.Socket // pc, where the kernel moves many datagrams a call; else nil
	info *packetInfo   // nil: the socket has one address, datagrams need not say
	spec atomic.Pointer[Spec]
	stop chan struct{} // closed with the socket: ends a back-off

	mu       sync.Mutex
	started  bool
	ended    bool // takes no new session
	closed   bool // the socket is closed
	holds    int
	sessions map[sessionKey]*session
	census   census // of sessions
}

// sessionKey is what makes datagrams a session: who sent them, and which of
// the machine's addresses they went to.
type sessionKey struct {
	client netip.AddrPort
	local  netip.Addr // zero where the socket has one address
}

func newUDPListener(s *Server, k key, pc net.PacketConn, spec Spec) (*udpListener, error) {
	socket, ok := pc.(udpSocket)
	if !ok {
		return nil, net.UnknownNetworkError(pc.LocalAddr().Network())
	}
	l := &udpListener{s: s, key: k, pc: socket, stop: make(chan struct{}), sessions: map[sessionKey]*session{}, census: newCensus()}
	if u, ok := pc.(*net.UDPConn); ok {
		l.many, _ = relay.NewSocket(u)
		relay.GrowBuffers(u, socketBuffer, socketBuffer)
		if k.addr.Addr().IsUnspecified() {
			info, err := askPacketInfo(u, spec.family())
			if err != nil {
				return nil, err
			}
			l.info = info
		}
	}
	return l, nil
}

func (l *udpListener) local() netip.AddrPort { return addrPort(l.pc.LocalAddr()) }
func (l *udpListener) current() Spec         { return *l.spec.Load() }

func (l *udpListener) serve(spec Spec) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spec.Store(&spec)
	if l.closed {
		return
	}
	l.ended = false
	if !l.started {
		l.started = true
		l.s.loops.Go(l.receive)
	}
}

func (l *udpListener) retired() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ended
}

func (l *udpListener) hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holds++
}

func (l *udpListener) release() {
	l.mu.Lock()
	l.holds--
	closing := l.closeLocked(false)
	l.mu.Unlock()
	l.finish(closing)
}

func (l *udpListener) retire() {
	l.mu.Lock()
	l.ended = true
	closing := l.closeLocked(false)
	l.mu.Unlock()
	l.finish(closing)
}

func (l *udpListener) cut() {
	l.mu.Lock()
	l.ended = true
	closing := l.closeLocked(true)
	all := make([]*session, 0, len(l.sessions))
	for _, se := range l.sessions {
		all = append(all, se)
	}
	l.mu.Unlock()
	l.finish(closing)
	for _, se := range all {
		_ = se.Close()
	}
}

// closeLocked marks the socket closed if nothing needs it, or if it must go,
// and reports whether the caller is to finish that once mu is free.
func (l *udpListener) closeLocked(must bool) bool {
	needed := !l.ended || l.holds > 0 || len(l.sessions) > 0
	if l.closed || needed && !must {
		return false
	}
	l.closed = true
	return true
}

func (l *udpListener) finish(closing bool) {
	if closing {
		close(l.stop)
		_ = l.pc.Close()
		l.s.forget(l.key, l)
	}
}

// receive hands datagrams to their sessions until the socket is closed.
func (l *udpListener) receive() {
	take := l.takeOne()
	if l.many != nil {
		take = l.takeMany()
	}
	wait := time.Duration(0)
	for {
		err := take()
		if err == nil {
			wait = 0
			continue
		}
		if isClosed(err) {
			return
		}
		l.s.counts.drop(DropReceiveFailed)
		if wait == 0 {
			l.s.log.Warn("receiving fails, trying on", "app", l.current().App, "address", l.local().String(), "err", err)
		}
		wait = min(max(wait*2, firstBackoff), mostBackoff)
		select {
		case <-time.After(wait):
		case <-l.stop:
		}
	}
}

// takeOne returns the function that receives a datagram and delivers it.
func (l *udpListener) takeOne() func() error {
	buf := make([]byte, receiveBuffer)
	var oob []byte
	if l.info != nil {
		oob = make([]byte, packetInfoSpace)
	}
	return func() error {
		n, oobn, _, client, err := l.pc.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			return err
		}
		l.dispatch(buf[:n], oob[:oobn], unmapped(client))
		return nil
	}
}

// takeMany returns the function that receives what there is and delivers it.
// Those who read the sessions are woken behind that, so that each finds all
// that came for it.
func (l *udpListener) takeMany() func() error {
	var r relay.Received
	var waiting [netx.BatchSize]*session
	return func() error {
		if err := l.many.Receive(&r); err != nil {
			return err
		}
		n := 0
		for i, d := range r.Datagrams() {
			if se := l.deliver(d, r.Control(i), unmapped(r.From(i))); se != nil {
				waiting[n] = se
				n++
			}
		}
		r.Release()
		for _, se := range waiting[:n] {
			se.changed.Broadcast()
		}
		clear(waiting[:n])
		return nil
	}
}

// dispatch delivers one datagram, and wakes who waits for it.
func (l *udpListener) dispatch(b, oob []byte, client netip.AddrPort) {
	if se := l.deliver(b, oob, client); se != nil {
		se.changed.Broadcast()
	}
}

// deliver puts one datagram into its session, or begins one. It returns the
// session where somebody may wait for this one: the caller wakes them.
func (l *udpListener) deliver(b, oob []byte, client netip.AddrPort) *session {
	k := sessionKey{client: client}
	if l.info != nil {
		k.local = l.info.destination(oob)
	}
	for {
		l.mu.Lock()
		se := l.sessions[k]
		if se != nil {
			l.mu.Unlock()
			why, first, open := se.put(b)
			if !open {
				l.remove(se) // it closed just now: the datagram begins another
				continue
			}
			l.count(why)
			if first {
				return se
			}
			return nil
		}
		se, why := l.beginLocked(k)
		if why != "" {
			l.mu.Unlock()
			l.count(why)
			return nil
		}
		// Under mu, so that the end of the server waits for this flow too.
		l.s.flows.Add(1)
		l.mu.Unlock()
		why, _, _ = se.put(b)
		l.count(why)
		a := Accepted{Conn: se, Client: client, Local: se.local, Spec: l.current(), At: time.Now()}
		go func() {
			defer l.s.flows.Done()
			l.s.run(a)
		}()
		return nil
	}
}

// send sends datagrams to a client, each as one, with the control message
// reply. It answers as netx.BatchWriter says.
func (l *udpListener) send(datagrams [][]byte, reply []byte, client netip.AddrPort) (int, error) {
	if l.many != nil {
		return l.many.SendTo(datagrams, client, reply)
	}
	for i, d := range datagrams {
		if _, _, err := l.pc.WriteMsgUDPAddrPort(d, reply, client); err != nil {
			return i, err
		}
	}
	return len(datagrams), nil
}

func (l *udpListener) count(why string) {
	if why != "" {
		l.s.counts.drop(why)
	}
}

// beginLocked enters a new session into the table, or says why not. A full
// table loses no session that it has: what a flood fills it with ages out,
// and the clients that were there go on.
func (l *udpListener) beginLocked(k sessionKey) (*session, string) {
	spec := l.spec.Load()
	switch {
	case l.ended:
		return nil, DropRetired
	case k.client.Port() == 0 || !k.client.Addr().IsValid() || k.client.Addr().IsMulticast() || k.client.Addr().IsUnspecified():
		return nil, DropBadSource
	case l.s.Admit != nil && !l.s.Admit(spec, k.client.Addr()):
		return nil, DropDenied
	}
	if why := l.census.enter(k.client.Addr(), spec); why != "" {
		return nil, why
	}
	local := l.local()
	var reply []byte
	if l.info != nil && k.local.IsValid() {
		local = netip.AddrPortFrom(k.local, local.Port())
		reply = l.info.from(k.local)
	}
	se := newSession(l, k, local, reply)
	l.sessions[k] = se
	return se, ""
}

// remove takes a closed session out of the table.
func (l *udpListener) remove(se *session) {
	l.mu.Lock()
	closing := false
	if l.sessions[se.key] == se {
		delete(l.sessions, se.key)
		l.census.leave(se.key.client.Addr())
		closing = l.closeLocked(false)
	}
	l.mu.Unlock()
	l.finish(closing)
}
