package link

import (
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Read moves packets out of the queue: packet i into bufs[i][offset:], its
// length into sizes[i]. TCP's are cut into segments that fit the MTU and, where
// the peer is not one of ours, the flow's MSS; what one packet leaves of a
// segment the next of its flow fills. What bufs has no room for is the next
// Read's. It returns how many, fewer than len(bufs) only where nothing waits, and
// never blocks. Packets that do not fit a buffer, and TCP's that cannot be cut,
// are dropped and counted.
func (e *Endpoint) Read(bufs [][]byte, sizes []int, offset int) int {
	e.readMu.Lock()
	defer e.readMu.Unlock()
	mtu := int(e.mtu.Load())
	e.split.own = e.own.Load()
	n := e.readSegments(bufs, sizes, offset, mtu, false)
	var taken [32]*stack.PacketBuffer
	for n < len(bufs) {
		room := len(bufs) - n
		if e.split.pkt != nil {
			room-- // where nothing joins what is left of it
		}
		batch := e.take(taken[:], room, mtu)
		if len(batch) == 0 {
			n += e.readSegments(bufs[n:], sizes[n:], offset, mtu, true)
			if room > 0 {
				break // the queue is empty
			}
			continue
		}
		for i, pkt := range batch {
			batch[i] = nil
			if !e.split.joins(pkt) {
				n += e.readSegments(bufs[n:], sizes[n:], offset, mtu, true)
			}
			if pkt.GSOOptions.Type != stack.GSONone {
				if !e.split.begin(pkt, &e.tcpID) {
					pkt.DecRef()
					e.drops.Add(WhyOversize, 1)
					continue
				}
				n += e.readSegments(bufs[n:], sizes[n:], offset, mtu, false)
				continue
			}
			if size := pkt.Size(); size > len(bufs[n])-offset {
				e.drops.Add(WhyOversize, 1)
			} else {
				at := start(pkt)
				at.copy(bufs[n][offset : offset+size])
				sizes[n] = size
				n++
			}
			pkt.DecRef()
		}
	}
	e.rest.Store(e.split.pkt != nil)
	return n
}

// readSegments goes on with the packet that is being cut, if there is one. What
// makes no full segment is left for the packet behind to fill, unless there is
// to be none.
func (e *Endpoint) readSegments(bufs [][]byte, sizes []int, offset, mtu int, end bool) (n int) {
	if e.split.pkt == nil {
		return 0
	}
	for n < len(bufs) && (end || !e.split.waits(mtu)) {
		size := e.split.next(bufs[n][offset:], mtu)
		if size == 0 {
			e.drops.Add(WhyOversize, uint64(e.split.end()))
			return n
		}
		sizes[n] = size
		n++
		if e.split.done {
			e.split.end()
			return n
		}
	}
	return n
}

// take pops packets into dst until they make as many segments as there is
// room for; the last may make more. Their references pass to the caller.
func (e *Endpoint) take(dst []*stack.PacketBuffer, room, mtu int) []*stack.PacketBuffer {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for n < len(dst) && room > 0 && e.queue.len() > 0 {
		dst[n] = e.queue.pop()
		room -= segments(dst[n], mtu, e.split.own)
		n++
	}
	if n > 0 {
		e.wakeLocked()
		e.admitLocked()
	}
	return dst[:n]
}

// dropRest gives up the packet that was read in part, and returns how many
// there were.
func (e *Endpoint) dropRest() int {
	e.readMu.Lock()
	defer e.readMu.Unlock()
	if e.split.pkt == nil {
		return 0
	}
	e.rest.Store(false)
	return e.split.end()
}

// cursor walks through the bytes of a packet.
type cursor struct {
	view *buffer.View
	skip int // bytes of view that are behind
}

// start returns a cursor at pkt's first header.
func start(pkt *stack.PacketBuffer) cursor {
	views, skip := pkt.AsViewList()
	return cursor{views.Front(), skip}
}

// copy fills b, or less where the packet ends, and returns how much.
func (c *cursor) copy(b []byte) int {
	n := 0
	for c.view != nil {
		s := c.view.AsSlice()
		if c.skip < len(s) {
			m := copy(b[n:], s[c.skip:])
			n += m
			c.skip += m
			if c.skip < len(s) {
				return n
			}
		}
		c.skip -= len(s)
		c.view = c.view.Next()
	}
	return n
}
