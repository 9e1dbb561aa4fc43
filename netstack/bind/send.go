package bind

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

const (
	// maxSegments is how many datagrams a message may hold: UDP_MAX_SEGMENTS
	// of linux/udp.h as it was at first.
	maxSegments = 64

	// maxMessage is how many bytes. What the kernel takes is 65,507, but with
	// its headers such a message reaches gso_max_size (65,536) of the device:
	// it is cut up in software then, and the other side gets single datagrams,
	// two a call instead of forty. Whole messages were worth 30 % of bulk over
	// veth at MTU 1500.
	maxMessage = 60000
)

// Send sends bufs, of which there may be any number, to ep, an Endpoint that
// this Bind made. When it returns, each has been handed to the kernel or
// dropped and counted, and Config.OnSent has been told.
//
// It waits at most Config.SendWait. An error says that nothing could be sent,
// for a reason that lasts: net.ErrClosed, conn.ErrWrongEndpointType, no
// socket of the family, no route, a firewall. Congestion, single datagrams
// that are too large and a socket on its way back are drops and no errors.
func (b *Bind) Send(bufs [][]byte, ep conn.Endpoint) error {
	if b.config.OnSent != nil {
		defer b.config.OnSent(bufs)
	}
	e, ok := ep.(*Endpoint)
	if !ok {
		b.counts.drop(whyEndpoint, len(bufs))
		return conn.ErrWrongEndpointType
	}
	g := b.current.Load()
	if g == nil {
		b.counts.drop(whyClosed, len(bufs))
		return net.ErrClosed
	}
	s := g.v6
	if e.dst.Addr().Is4() {
		s = g.v4
	}
	if s == nil {
		b.counts.drop(whyFamily, len(bufs))
		return fmt.Errorf("sending to %v: no socket of that family: %w", e.dst, syscall.EAFNOSUPPORT)
	}
	var deadline time.Time // of all chunks together; set when the first one waits
	var failed error
	sent := 0
	for len(bufs) > 0 {
		n := min(len(bufs), maxBatch)
		done, err := b.sendChunk(s, bufs[:n], e, &deadline)
		sent += done
		if failed == nil {
			failed = err
		}
		bufs = bufs[n:]
	}
	switch {
	case errors.Is(failed, net.ErrClosed):
		return net.ErrClosed
	case failed != nil && sent == 0:
		return fmt.Errorf("sending to %v: %w", e.dst, failed)
	}
	return nil
}

// sendChunk sends at most maxBatch datagrams and returns how many the kernel
// took, and the first error that lasts.
func (b *Bind) sendChunk(s *socket, bufs [][]byte, e *Endpoint, deadline *time.Time) (sent int, failed error) {
	m := b.senders.Get().(*sender)
	defer func() {
		m.release()
		b.senders.Put(m)
	}()
	alone := s.kernel.Load().alone(e)
	m.fill(bufs, e, alone)
	var split struct { // a message that failed and is sent one by one
		size int
		err  error // nil: there is none
	}
	retries := 0
	for m.left() > 0 {
		k := s.kernel.Load()
		n, bytes, err := m.try(k)
		if errors.Is(err, syscall.EAGAIN) {
			if deadline.IsZero() {
				*deadline = time.Now().Add(b.config.SendWait)
			}
			n, bytes, err = s.sendWaiting(m, k, *deadline)
		}
		if n > 0 {
			sent += n
			b.counts.sent(m.got, n, bytes)
			if split.err != nil && blames(split.err) {
				alone = b.refuse(s, e, split.size, split.err)
				m.group(0, alone)
			}
			split.err = nil
			continue
		}
		if datagrams, size := m.first(); datagrams > 1 && splits(err) {
			split.size, split.err = size, err
			m.group(datagrams, alone)
			continue
		}
		split.err = nil // a datagram that fails alone acquits the segmentation
		v := judge(err, m.hasSource())
		if v.do == tryAgain && retries < maxBatch {
			retries++
			continue
		}
		if v.do == dropSource {
			e.ClearSrc()
			m.clearSource(alone)
			continue
		}
		if errors.Is(err, net.ErrClosed) && !s.gen.closed() {
			v.why, v.lasting = whyReopening, false // it died under us, and will be back
		}
		if failed == nil && v.lasting {
			failed = err
		}
		b.counts.drop(v.why, m.skip(v.do == dropRest))
	}
	return sent, failed
}

// splits reports whether the datagrams of a message that failed with err may
// fare better one by one.
func splits(err error) bool {
	return blames(err) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM)
}

// blames reports whether err is what the kernel says of a message that it
// cannot segment: EIO where the device takes no checksum off it or IPsec is on
// the way, EINVAL or EMSGSIZE where a segment is larger than the path's MTU
// (alone it leaves in fragments). All of it is about the way to one peer.
func blames(err error) bool {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return false
	}
	switch errno {
	case syscall.EIO, syscall.EINVAL, syscall.EMSGSIZE, syscall.EOPNOTSUPP:
		return true
	}
	return false
}

// refuse notes that datagrams of size cannot be sent to e in one message, which
// failed with err, and returns the size from which they are sent alone.
func (b *Bind) refuse(s *socket, e *Endpoint, size int, err error) (alone int) {
	if errors.Is(err, syscall.EIO) || errors.Is(err, syscall.EOPNOTSUPP) {
		size = 1
	}
	e.refuse(size, time.Now())
	b.counts.refused.Add(1)
	if s.complained.CompareAndSwap(false, true) {
		b.config.Log.Info("udp segmentation is refused, sending datagrams one by one", "to", e.dst, "from_size", size, "err", err)
	}
	return size
}

// sendWaiting waits for room in the socket's buffer and sends. Those who wait
// take turns, and each of them waits no longer than its own deadline. Close
// wakes the one whose turn it is, and the rest fail one after the other.
func (s *socket) sendWaiting(m *sender, k *kernelConn, deadline time.Time) (n, bytes int, err error) {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-timer.C:
		return 0, 0, os.ErrDeadlineExceeded
	}
	if err := k.SetWriteDeadline(deadline); err != nil {
		return 0, 0, err
	}
	return m.tryWaiting(k)
}

// action is what becomes of the first of the datagrams that are left.
type action int

const (
	dropOne    action = iota // it alone is at fault
	dropRest                 // those behind it would fare no better
	dropSource               // send it again, from where the kernel likes
	tryAgain                 // the error was about something else
)

// verdict is what to do about a send error.
type verdict struct {
	do      action
	why     string // label of the drop
	lasting bool   // worth telling the caller
}

// judge decides about a send error; source says that the datagram asks for a
// source address.
func judge(err error, source bool) verdict {
	var errno syscall.Errno
	switch {
	case errors.Is(err, net.ErrClosed):
		return verdict{dropRest, whyClosed, true}
	case errors.Is(err, os.ErrDeadlineExceeded):
		return verdict{dropRest, whyBufferFull, false}
	case !errors.As(err, &errno):
		return verdict{dropRest, whySendOther, true}
	}
	switch errno {
	case syscall.EINTR, syscall.EAGAIN, syscall.ECONNREFUSED:
		// ECONNREFUSED is the answer to an earlier datagram; it is reported once.
		return verdict{tryAgain, whySendOther, false}
	case syscall.EMSGSIZE:
		return verdict{dropOne, whyTooLarge, false}
	case syscall.ENOBUFS, syscall.ENOMEM:
		return verdict{dropOne, whyNoBuffers, false}
	case syscall.EINVAL, syscall.EADDRNOTAVAIL, syscall.ENETUNREACH, syscall.EHOSTUNREACH:
		// An address that left this machine is EINVAL, one without a way to
		// the peer is unreachable: no interface change tells us otherwise.
		if source {
			return verdict{do: dropSource}
		}
		if errno == syscall.EINVAL || errno == syscall.EADDRNOTAVAIL {
			return verdict{dropRest, whyInvalid, true}
		}
		return verdict{dropRest, whyUnreachable, true}
	case syscall.ENETDOWN, syscall.EHOSTDOWN, syscall.EACCES, syscall.EAFNOSUPPORT:
		return verdict{dropRest, whyUnreachable, true} // EACCES: a prohibiting route
	case syscall.EPERM:
		return verdict{dropRest, whyFirewall, true}
	}
	return verdict{dropRest, whySendOther, true}
}
