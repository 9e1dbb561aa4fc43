package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/warrenmesh/warren/netstack/netx"
)

// MaxOpening is how many bytes of the client an Opening keeps, in case they
// have to be said again.
const MaxOpening = 16 << 10

// MaxOpeningTime is how long an Opening keeps them. Who has not answered by
// then is not known to have failed, and is waited for without a second try.
const MaxOpeningTime = 30 * time.Second

// openingRead is how much an Opening reads at once.
const openingRead = 4 << 10

// longAgo is a deadline that wakes whoever waits.
var longAgo = time.Unix(1, 0)

// errUnanswered: the far side closed in order before it said anything.
var errUnanswered = errors.New("closed before its first byte")

// Opening is the beginning of a stream up to the far side's first byte. What
// the client says meanwhile is kept, so that it can be said to another far side
// where the first fails without an answer. That is for services whose requests
// may arrive twice: nobody can tell whether the one that failed had begun to
// act.
//
// An Opening is its owner's alone; Try is called again after each failure.
type Opening struct {
	client net.Conn
	o      Options
	kept   []byte
	ended  bool  // the client has said all that it will
	failed error // of the client
	spent  bool  // more was said than is kept: nobody else can be told all of it
	until  time.Time
}

// NewOpening begins to keep what client says. Of the options it uses the
// counters.
func NewOpening(client net.Conn, o Options) *Opening {
	return &Opening{client: client, o: o, until: time.Now().Add(MaxOpeningTime)}
}

// Try tells far what the client has said and says, until far answers. Where the
// result has no error the stream may be relayed: far has said something, which
// the client has, or its time to do so has passed. Else it tells whose failure
// ended the try, as a relay's result does, and again whether somebody else may
// be tried. Both conns stay open, and the owner's.
func (op *Opening) Try(ctx context.Context, far net.Conn) (again bool, r Result) {
	// Deadlines first: whoever is to be woken is woken by a later one.
	_ = op.client.SetDeadline(time.Time{})
	_ = far.SetWriteDeadline(time.Time{})
	_ = far.SetReadDeadline(op.until)
	stop := context.AfterFunc(ctx, func() { op.interrupt(far) })
	defer stop()
	if err := op.repeat(far); err != nil {
		return op.failure(ctx, SideB, err)
	}
	var (
		listener sync.WaitGroup
		settled  atomic.Bool // the listener has ended the opening
	)
	listener.Go(func() {
		op.listen(far)
		if op.spent || op.failed != nil {
			settled.Store(true)
			_ = far.SetReadDeadline(longAgo) // wakes whoever waits for its answer
		}
	})
	answer := make([]byte, openingRead)
	n, err := far.Read(answer)
	_ = op.client.SetReadDeadline(longAgo) // wakes the listener
	listener.Wait()
	_ = op.client.SetReadDeadline(time.Time{})
	switch {
	case ctx.Err() != nil:
		return op.failure(ctx, SideNone, nil)
	case n > 0:
		if err := op.pass(answer[:n]); err != nil {
			return op.failure(ctx, SideA, err)
		}
		return false, Result{}
	case op.failed != nil:
		return op.failure(ctx, SideA, op.failed)
	case settled.Load(), errors.Is(err, os.ErrDeadlineExceeded):
		return false, Result{}
	case errors.Is(err, io.EOF) && op.ended:
		return false, Result{} // both have ended: an answer of nothing
	case errors.Is(err, io.EOF):
		err = errUnanswered
	}
	return op.failure(ctx, SideB, err)
}

// failure is the end of a try that the relay cannot go on from.
func (op *Opening) failure(ctx context.Context, side Side, err error) (again bool, r Result) {
	if ctx.Err() != nil {
		return false, Result{End: EndCanceled, Err: context.Cause(ctx)}
	}
	again = side == SideB && !op.spent && op.failed == nil && time.Now().Before(op.until)
	return again, Result{End: EndFailed, Side: side, Err: err}
}

// interrupt wakes whatever waits for either conn.
func (op *Opening) interrupt(far net.Conn) {
	_ = op.client.SetDeadline(longAgo)
	_ = far.SetDeadline(longAgo)
}

// repeat says what is kept.
func (op *Opening) repeat(far net.Conn) error {
	if len(op.kept) > 0 {
		if _, err := far.Write(op.kept); err != nil {
			return err
		}
	}
	if op.ended {
		return endWriting(far)
	}
	return nil
}

// listen keeps what the client says and passes it on, until it is woken, the
// client ends, or there is more than is kept.
func (op *Opening) listen(far net.Conn) {
	if op.ended {
		return
	}
	b := make([]byte, openingRead)
	for {
		n, err := op.client.Read(b[:min(len(b), MaxOpening-len(op.kept))])
		if n > 0 {
			op.kept = append(op.kept, b[:n]...)
			count(op.o.AToB, n)
			if _, failed := far.Write(b[:n]); failed != nil {
				return // far's Read tells the same
			}
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return
		case errors.Is(err, io.EOF):
			op.ended = true
			_ = endWriting(far)
			return
		case err != nil:
			op.failed = err
			return
		case len(op.kept) == MaxOpening:
			op.spent = true
			return
		}
	}
}

// pass gives the client the far side's first bytes.
func (op *Opening) pass(answer []byte) error {
	n, err := op.client.Write(answer)
	count(op.o.BToA, n)
	return err
}

// endWriting passes the end of a stream on, where the conn can.
func endWriting(c net.Conn) error {
	if h, ok := c.(netx.HalfCloser); ok {
		return h.CloseWrite()
	}
	return nil
}

func count(to *atomic.Uint64, n int) {
	if to != nil {
		to.Add(uint64(n))
	}
}
