package enroll

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/netx"
)

// lot is where connections wait without a goroutine and without a buffer: each
// connector holds a poll for all of its life, and net/http would spend two
// stacks and 10 KB of buffers on each. It gives a connection up when a poll is
// held, and is given it again when the next request comes.
//
//	net/http ──a poll is held──→ held ──answered──→ idle ──a request──→ net/http
//	                              └──its other end has gone, or the server stops──→ closed
//
// Only connections that implement netx.ReadNotifier are parked.
type lot struct {
	registry *Registry
	idle     time.Duration // that a connection may be without a request
	back     chan net.Conn // to net/http
	closed   chan struct{} // no more of them
	once     sync.Once
	all      sync.WaitGroup // what is parked, its goroutines included

	mu       sync.Mutex
	stopping *wire.Refusal // what the held are told; nil: it does not stop
	parked   map[*parked]struct{}
}

func newLot(r *Registry, p port) *lot {
	return &lot{registry: r, idle: p.idle, back: make(chan net.Conn), closed: make(chan struct{}), parked: make(map[*parked]struct{})}
}

// Accept implements net.Listener: the conns that have a request.
func (l *lot) Accept() (net.Conn, error) {
	select {
	case c := <-l.back:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *lot) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener.
func (l *lot) Addr() net.Addr { return &net.TCPAddr{} }

// stop answers what is held with refusal, and closes all that is parked, now
// or later.
func (l *lot) stop(refusal *wire.Refusal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopping = refusal
	for p := range l.parked {
		p.tell(toldStop)
	}
}

// cut aborts what is parked still: an answer that is not taken.
func (l *lot) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p := range l.parked {
		netx.Abort(p.conn.Conn)
	}
}

// What a parked connection is told. They are bits.
const (
	toldNews    = 1 << iota // there may be news for its poll
	toldTime                // it has waited long enough
	toldInput               // it can be read: a request, or its end
	toldStop                // the server stops
	toldRunning             // a goroutine has it, and looks at the other bits
)

// parked is a connection in a lot. Its fields are of the goroutine that has
// toldRunning, but told.
type parked struct {
	lot  *lot
	conn *conn
	poll poll
	hold *hold // of poll; nil once it is answered
	told atomic.Uint32

	until  time.Time
	timer  *time.Timer
	notice netx.Notice // of input; nil: there is some that the next request begins with
}

// parking is what a handler answers where the connection is to be parked.
type parking struct{ *parked }

// parkable returns the connection of a request that may be parked, or nil.
func parkable(w http.ResponseWriter, req *http.Request) *conn {
	c, ok := req.Context().Value(connKey{}).(*conn)
	if !ok || req.Close || !req.ProtoAtLeast(1, 1) {
		return nil
	}
	if _, ok := c.Conn.(netx.ReadNotifier); !ok {
		return nil
	}
	if _, ok := w.(http.Hijacker); !ok {
		return nil
	}
	return c
}

// parkKey is where the context of a request has the lot that it may use.
type parkKey struct{}

type place struct {
	lot  *lot
	conn *conn
}

// lookParked is await for a connection that can be parked: it answers, or
// returns a parking.
func lookParked(at place, of poll) (any, *wire.Refusal) {
	p := &parked{lot: at.lot, conn: at.conn, poll: of}
	p.told.Store(toldRunning)
	answer, next, refusal := of.look(nil, func() { p.tell(toldNews) }, false)
	if refusal != nil || next == nil {
		return answer, refusal
	}
	p.hold = next
	return parking{p}, nil
}

// park takes the connection from net/http. The request's body was read.
func (p *parked) park(w http.ResponseWriter) error {
	p.lot.all.Add(1) // before net/http counts it no more
	_, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		p.lot.all.Done()
		p.poll.giveUp(p.hold)
		return fmt.Errorf("parking a connection: %w", err)
	}
	p.conn.early, _ = buffered.Reader.Peek(buffered.Reader.Buffered())
	p.conn.early = bytes.Clone(p.conn.early)
	l := p.lot
	p.poll.held().Add(1)
	l.mu.Lock()
	l.parked[p] = struct{}{}
	if l.stopping != nil {
		p.tell(toldStop)
	}
	l.mu.Unlock()
	p.await(p.poll.holdFor())
	if len(p.conn.early) > 0 {
		p.tell(toldInput)
	}
	p.run()
	return nil
}

// tell lets p look at what has happened. It does not block, and may be called
// with any lock held.
func (p *parked) tell(what uint32) {
	if p.told.Or(what|toldRunning)&toldRunning == 0 {
		go p.run()
	}
}

// await says for how long p waits, and begins to look out for input.
func (p *parked) await(d time.Duration) {
	p.until = time.Now().Add(d)
	if p.timer == nil {
		p.timer = time.AfterFunc(d, func() { p.tell(toldTime) })
	} else {
		p.timer.Reset(d)
	}
	p.listen()
}

// listen begins to look out for input, where none is there already.
func (p *parked) listen() {
	p.unlisten()
	if len(p.conn.early) == 0 {
		p.notice = p.conn.Conn.(netx.ReadNotifier).WhenReadable(func() { p.tell(toldInput) })
	}
}

func (p *parked) unlisten() {
	if p.notice != nil {
		p.notice.Stop()
		p.notice = nil
	}
}

// run does what p was told, until there is no more, or p is parked no more.
func (p *parked) run() {
	for {
		told := p.told.Swap(toldRunning) &^ toldRunning
		if told == 0 {
			if p.told.CompareAndSwap(toldRunning, 0) {
				return
			}
			continue
		}
		step := p.whileHeld
		if p.hold == nil {
			step = p.whileIdle
		}
		if over := step(told); over {
			return
		}
	}
}

// whileHeld does what a held poll is told.
func (p *parked) whileHeld(told uint32) (over bool) {
	if told&toldStop != 0 {
		p.poll.giveUp(p.hold)
		return p.answer(nil, p.lot.refusal())
	}
	if told&toldInput != 0 && p.ended() {
		p.poll.giveUp(p.hold)
		return p.leave(nil)
	}
	hurried := len(p.conn.early) > 0 && p.poll.hurried()
	answer, next, refusal := p.poll.look(p.hold, func() { p.tell(toldNews) }, hurried || p.overdue(told))
	if next != nil {
		p.hold = next
		return false
	}
	return p.answer(answer, refusal)
}

// overdue reports whether p has waited for long enough. It may be told of the
// time that it waited for before.
func (p *parked) overdue(told uint32) bool {
	return told&toldTime != 0 && !time.Now().Before(p.until)
}

func (l *lot) refusal() *wire.Refusal {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stopping
}

// tasteWithin bounds a read of what should be there.
const tasteWithin = time.Second

// ended reads a byte, which the next request will begin with, and reports
// whether there is none because the other end has gone.
func (p *parked) ended() bool {
	p.unlisten()
	if len(p.conn.early) > 0 {
		return false
	}
	var b [1]byte
	_ = p.conn.Conn.SetReadDeadline(time.Now().Add(tasteWithin))
	n, err := p.conn.Conn.Read(b[:])
	_ = p.conn.Conn.SetReadDeadline(time.Time{})
	if n > 0 {
		p.conn.early = append(p.conn.early, b[0])
		return false
	}
	if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
		p.listen()
		return false
	}
	return true
}

// answer sends the answer, and lets p wait for the next request.
func (p *parked) answer(answer any, refusal *wire.Refusal) (over bool) {
	p.hold = nil
	p.poll.held().Add(-1)
	p.timer.Stop()
	status, body, err := encode(answer, refusal)
	if err != nil {
		p.lot.registry.log.Error("answering a connector: " + err.Error())
	}
	stopping := p.lot.refusal() != nil
	_ = p.conn.SetWriteDeadline(time.Now().Add(answerWithin))
	if _, err := p.conn.Write(message(status, body, stopping)); err != nil || stopping {
		return p.leave(nil) // who does not hear it asks again
	}
	_ = p.conn.SetWriteDeadline(time.Time{})
	if refusal == nil {
		p.conn.answered.Store(true)
	}
	if len(p.conn.early) > 0 {
		return p.leave(p.lot.back)
	}
	p.await(p.lot.idle)
	return false
}

// message is an HTTP/1.1 response (RFC 9112).
func message(status int, body []byte, last bool) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nDate: %s\r\n",
		status, http.StatusText(status), len(body), time.Now().UTC().Format(http.TimeFormat))
	if last {
		b.WriteString("Connection: close\r\n")
	}
	b.WriteString("\r\n")
	b.Write(body)
	return b.Bytes()
}

// whileIdle does what a connection is told that waits for a request.
func (p *parked) whileIdle(told uint32) (over bool) {
	switch {
	case told&toldStop != 0:
		return p.leave(nil)
	case told&toldInput != 0: // or its end, which net/http sees as well
		return p.leave(p.lot.back)
	case p.overdue(told):
		return p.leave(nil)
	}
	return false
}

// leave takes p out of the lot: to back, or closed where that is nil. Who
// calls it keeps toldRunning, so nothing more is done with p.
func (p *parked) leave(back chan<- net.Conn) (over bool) {
	l := p.lot
	if p.hold != nil {
		p.poll.held().Add(-1)
	}
	p.unlisten()
	p.timer.Stop()
	l.mu.Lock()
	delete(l.parked, p)
	l.mu.Unlock()
	defer l.all.Done()
	if back != nil {
		select {
		case back <- p.conn:
			return true
		case <-l.closed:
		}
	}
	_ = p.conn.Close()
	return true
}

// placeOf is where a request's connection can be parked, if it can.
func placeOf(ctx context.Context) (place, bool) {
	at, ok := ctx.Value(parkKey{}).(place)
	return at, ok
}
