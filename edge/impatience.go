package edge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/warrenmesh/warren/netstack/relay"
)

// errClientGone is the cause that ends a connect whose client has left.
var errClientGone = errors.New("the client aborted before the private side had answered")

// lookEvery is tuning: a client that leaves during a connect frees its place
// among those that wait for the same endpoint within this time. Most connects
// end before the first look.
const lookEvery = 250 * time.Millisecond

// watchClient looks after a client's conn while nobody reads from it, and
// cancels the flow if the client has reset it. It ends with stop.
func watchClient(conn net.Conn, cancel context.CancelCauseFunc) (stop func()) {
	w := &clientWatch{conn: conn, cancel: cancel}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(lookEvery, w.look)
	return w.stop
}

type clientWatch struct {
	conn   net.Conn
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
}

// look runs on the timer's goroutine. It holds mu, so that after stop nobody
// touches the conn, which is the relay's then.
func (w *clientWatch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return
	}
	if err := relay.Failure(w.conn); err != nil {
		w.cancel(fmt.Errorf("%w: %w", errClientGone, err))
		return
	}
	w.timer.Reset(lookEvery)
}

func (w *clientWatch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	w.timer.Stop()
}
