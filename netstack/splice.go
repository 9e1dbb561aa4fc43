package netstack

import (
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/warrenmesh/warren/netstack/netx"
)

var _ netx.ReadNotifier = (*TCPConn)(nil)

// WhenReadable implements netx.ReadNotifier.
func (c *TCPConn) WhenReadable(f func()) netx.Notice {
	n := &readNotice{conn: c, f: f}
	n.entry.Init(n, waiter.ReadableEvents|waiter.EventRdHUp|waiter.EventHUp|waiter.EventErr)
	c.wq.EventRegister(&n.entry)
	if c.closed.Load() || c.ep.Readiness(waiter.ReadableEvents)&waiter.ReadableEvents != 0 {
		n.NotifyEvent(waiter.ReadableEvents)
	}
	return n
}

// readNotice tells once that a conn has become readable.
type readNotice struct {
	conn  *TCPConn
	entry waiter.Entry
	f     func()
	told  atomic.Bool
}

// NotifyEvent implements waiter.EventListener.
func (n *readNotice) NotifyEvent(waiter.EventMask) {
	if !n.told.Swap(true) {
		n.f()
	}
}

// Stop implements netx.Notice.
func (n *readNotice) Stop() { n.conn.wq.EventUnregister(&n.entry) }
