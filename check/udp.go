package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/warrenmesh/warren/netstack/netx"
)

// maxStray is how many datagrams that are not the answer a check bears with.
const maxStray = 64

// maxSilence is how long a check without an expected answer waits for a
// port-unreachable: longer than any path takes, and half the time that it has
// where that is less.
const maxSilence = time.Second

// nothing is what is sent where the Spec does not say: a datagram without a
// byte is lost on some ways.
var nothing = []byte{0}

// udp sends a datagram and awaits the answer.
func (c *Check) udp(ctx context.Context, d Dialer, addr netip.AddrPort) Result {
	s, err := open(ctx, d, "udp", addr)
	if err != nil {
		return Result{Err: err}
	}
	defer s.end()
	send := c.send
	if len(send) == 0 {
		send = nothing
	}
	if len(c.expect) > 0 {
		took, err := ask(s, send, "awaiting "+quote(c.expect), func(answer []byte) (bool, error) {
			if !bytes.Contains(answer, c.expect) {
				return false, fmt.Errorf("answered %s, want %s", quote(answer), quote(c.expect))
			}
			return true, nil
		})
		return Result{RTT: took, Err: err}
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = s.SetReadDeadline(time.Now().Add(min(maxSilence, time.Until(deadline)/2)))
	} else {
		_ = s.SetReadDeadline(time.Now().Add(maxSilence))
	}
	took, err := ask(s, send, "awaiting nothing", func([]byte) (bool, error) { return true, nil })
	if errors.Is(err, errSilent) && ctx.Err() == nil {
		return Result{}
	}
	return Result{RTT: took, Err: err}
}

// errSilent is a deadline that passed without an answer.
var errSilent = errors.New("silent")

// silent wraps errSilent and says more.
type silent struct{ text string }

func (e silent) Error() string { return e.text }
func (silent) Unwrap() error   { return errSilent }

// ask sends a datagram and reads until judge takes one for the answer. What it
// does not take is forgotten, but for its error, which is told if no answer
// comes.
func ask(s *session, send []byte, doing string, judge func(answer []byte) (mine bool, err error)) (time.Duration, error) {
	start := time.Now()
	if _, err := s.Write(send); err != nil {
		return 0, datagramFault("sending", err)
	}
	buf := make([]byte, 2048)
	var wrong error
	for range maxStray {
		n, err := s.Read(buf)
		took := time.Since(start)
		if err != nil && wrong != nil {
			return 0, wrong
		}
		if err != nil {
			return 0, datagramFault(doing, err)
		}
		mine, err := judge(buf[:n])
		if mine {
			return took, err
		}
		if err != nil {
			wrong = err
		}
	}
	if wrong != nil {
		return 0, wrong
	}
	return 0, fmt.Errorf("%s: %d datagrams came that are no answer", doing, maxStray)
}

// datagramFault is fault for a datagram conn, whose reads and writes fail with
// what became of the datagrams before.
func datagramFault(doing string, err error) error {
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, netx.ErrRefused), errors.Is(netx.Classify(err), netx.ErrRefused):
		return fmt.Errorf("nobody listens on the port: %w", netx.ErrRefused)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return silent{fault(doing, err).Error()}
	}
	if known := netx.Classify(err); known != nil {
		return fmt.Errorf("%s: %w", doing, known)
	}
	return fault(doing, err)
}
