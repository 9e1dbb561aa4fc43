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
	m.fill(bufs, e)
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
			b.counts.txDatagrams.Add(uint64(n))
			b.counts.txBytes.Add(uint64(bytes))
			b.counts.txCalls.Add(1)
			continue
		}
		v := judge(err, m.hasSource())
		if v.do == tryAgain && retries < maxBatch {
			retries++
			continue
		}
		if v.do == dropSource {
			e.ClearSrc()
			m.clearSource()
			continue
		}
		why := v.why
		if errors.Is(err, net.ErrClosed) && !s.gen.closed() {
			why, v.lasting = whyReopening, false // it died under us, and will be back
		}
		if failed == nil && v.lasting {
			failed = err
		}
		count := 1
		if v.do == dropRest {
			count = m.left()
		}
		b.counts.drop(why, count)
		m.skip(count)
	}
	return sent, failed
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
