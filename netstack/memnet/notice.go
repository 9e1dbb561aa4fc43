package memnet

import (
	"github.com/warrenmesh/warren/netstack/netx"
)

var _ netx.ReadNotifier = (*Conn)(nil)

// WhenReadable implements netx.ReadNotifier. A goroutine waits in its stead.
func (c *Conn) WhenReadable(f func()) netx.Notice {
	n := &notice{half: c.in}
	go n.wait(f)
	return n
}

type notice struct {
	half    *half
	stopped bool // guarded by half.mu
}

func (n *notice) wait(f func()) {
	if n.half.waitNotice(n) {
		f()
	}
}

// Stop implements netx.Notice.
func (n *notice) Stop() {
	n.half.mu.Lock()
	defer n.half.mu.Unlock()
	n.stopped = true
	n.half.changed.Broadcast()
}

// waitNotice waits until a read would not block, deadlines aside, and returns
// false once n is stopped.
func (h *half) waitNotice(n *notice) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case n.stopped:
			return false
		case h.gone, h.reset, h.ended, len(h.data) > 0:
			return true
		}
		h.changed.Wait()
	}
}
