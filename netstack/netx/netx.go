// Package netx is the seam between the rooms that move bytes and the places
// the bytes come from: the kernel's sockets, a network's netstack, or the
// in-memory fake in netstack/memnet. It holds the small interfaces and the
// errors that the two sides agree on, and imports nothing of Warren.
//
// A conn that comes out of a Dialer or a Listener is a net.Conn. What it can
// do beyond that it says by implementing HalfCloser, Aborter, ReadWaiter,
// ReadNotifier or FailureReporter.
// A datagram conn (UDP) keeps message boundaries: one Write is one datagram,
// one Read returns one datagram and drops what does not fit the buffer.
package netx

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// Dialer opens flows. network is "tcp" or "udp".
//
// DialContext returns only once the far end has accepted (TCP). A failure to
// connect wraps one of the Err values below, so that the caller can tell a
// refusal from silence with errors.Is.
type Dialer interface {
	DialContext(ctx context.Context, network string, address netip.AddrPort) (net.Conn, error)
}

// Listener accepts flows; after Close, Accept returns an error that wraps
// net.ErrClosed.
type Listener = net.Listener

// HalfCloser is a stream whose two directions end apart: CloseWrite sends the
// FIN, and reading goes on.
type HalfCloser interface {
	CloseWrite() error
}

// Aborter is a conn that can end as a failure: Abort sends a RST (TCP) and
// frees the conn at once, unsent bytes included. A conn that was aborted
// needs no Close; Close after it is harmless.
type Aborter interface {
	Abort()
}

// ReadWaiter is a conn that can wait for input while it holds no buffer:
// WaitReadable returns nil once a Read would not block (data, end of stream,
// or an error that the Read will report). It honours the read deadline.
type ReadWaiter interface {
	WaitReadable() error
}

// ReadNotifier is a conn that can tell of input while nobody waits for it.
type ReadNotifier interface {
	// WhenReadable calls f once, as soon as a Read would not block (data, end
	// of stream, or an error that the Read will report), which may be before
	// it returns. f may be called with the conn's locks held: it must neither
	// block nor call the conn. The caller owes the Notice a Stop.
	WhenReadable(f func()) Notice
}

// Notice is what WhenReadable has promised.
type Notice interface {
	// Stop withdraws it. f may be running just then, and is not waited for.
	Stop()
}

// FailureReporter is a stream that can say that it has failed without being
// read: Failure returns the error (a reset, a time-out) that ended it from
// outside, nil while it lives, has ended in order, or was closed by its owner.
// It does not wait, takes no input, and may be called from any goroutine.
// The relay asks while it is blocked in a write to the other side.
type FailureReporter interface {
	Failure() error
}

// What can become of a dial. The edge turns each into a flow's status, the
// connector into the packet that answers the SYN.
var (
	// ErrRefused: the far end answered, with a RST or port-unreachable.
	ErrRefused = errors.New("connection refused")
	// ErrUnreachable: a router, or the connector's guard, said no.
	ErrUnreachable = errors.New("host unreachable")
	// ErrTimedOut: nothing came back in time.
	ErrTimedOut = errors.New("connection timed out")
	// ErrNoRoute: no live connector of the network serves the address.
	ErrNoRoute = errors.New("no live connector serves the address")
)

// Classify returns the Err value that err amounts to, or nil for a failure of
// another kind. It knows the Err values themselves, errno of the kernel's
// sockets, and deadlines.
func Classify(err error) error {
	for _, known := range []error{ErrRefused, ErrUnreachable, ErrTimedOut, ErrNoRoute} {
		if errors.Is(err, known) {
			return known
		}
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return ErrRefused
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTDOWN):
		return ErrUnreachable
	case errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, context.DeadlineExceeded):
		return ErrTimedOut
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return ErrTimedOut
	}
	return nil
}

// Abort ends c with a RST where it can, and closes it where it cannot.
func Abort(c net.Conn) {
	if a, ok := c.(Aborter); ok {
		a.Abort()
		return
	}
	// SO_LINGER 0 makes the kernel's close a RST.
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}
