package check

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/warrenmesh/warren/netstack/netx"
)

// tcp connects, and has a talk where the Spec asks for one.
func (c *Check) tcp(ctx context.Context, d Dialer, addr netip.AddrPort) Result {
	if len(c.send) > 0 || len(c.expect) > 0 {
		return talk(ctx, d, addr, c.exchange)
	}
	start := time.Now()
	conn, err := d.Dial(ctx, "tcp", addr)
	took := time.Since(start)
	if err != nil {
		return Result{Err: err}
	}
	netx.Abort(conn)
	return Result{RTT: took}
}

// talk connects and lets f, which judges, talk with the endpoint.
func talk(ctx context.Context, d Dialer, addr netip.AddrPort, f func(s *session) error) Result {
	s, err := open(ctx, d, "tcp", addr)
	if err != nil {
		return Result{Err: err}
	}
	defer s.end()
	return Result{RTT: s.opened, Err: f(s)}
}

// exchange sends and expects.
func (c *Check) exchange(s *session) error {
	if len(c.send) > 0 {
		if _, err := s.Write(c.send); err != nil {
			return fault("sending", err)
		}
	}
	if len(c.expect) == 0 {
		return nil
	}
	start, err := find(s, c.expect, MaxRead)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errAbsent):
		return fmt.Errorf("answered %s, want %s", quote(start), quote(c.expect))
	case len(start) > 0:
		return fault(fmt.Sprintf("awaiting %s, after %s", quote(c.expect), quote(start)), err)
	}
	return fault("awaiting "+quote(c.expect), err)
}

// sslRequest is PostgreSQL's SSLRequest: length 8, code 80877103. The server
// answers with one byte, 'S' or 'N', before anybody has to log in. (PostgreSQL
// 17, "Message Formats".)
var sslRequest = []byte{0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f}

func (c *Check) postgres(ctx context.Context, d Dialer, addr netip.AddrPort) Result {
	return talk(ctx, d, addr, func(s *session) error {
		if _, err := s.Write(sslRequest); err != nil {
			return fault("asking for TLS", err)
		}
		var answer [1]byte
		if _, err := io.ReadFull(s, answer[:]); err != nil {
			return fault("awaiting PostgreSQL's answer", err)
		}
		if answer[0] != 'S' && answer[0] != 'N' {
			return fmt.Errorf("not PostgreSQL, or it is in trouble: answered %s, want \"S\" or \"N\"", quote(answer[:]))
		}
		return nil
	})
}

func (c *Check) redis(ctx context.Context, d Dialer, addr netip.AddrPort) Result {
	return talk(ctx, d, addr, func(s *session) error {
		if _, err := io.WriteString(s, "PING\r\n"); err != nil {
			return fault("sending PING", err)
		}
		line, err := readLine(bufio.NewReaderSize(s, maxLine))
		if err != nil {
			return fault("awaiting PONG", err)
		}
		// Whoever asks for a password is alive.
		if line != "+PONG" && !strings.HasPrefix(line, "-NOAUTH ") {
			return fmt.Errorf("answered %s to PING, want \"+PONG\"", quote([]byte(line)))
		}
		return nil
	})
}

// smtp greets and leaves, as RFC 5321 §4.1.1.1 and §4.1.1.10 have it.
func (c *Check) smtp(ctx context.Context, d Dialer, addr netip.AddrPort) Result {
	return talk(ctx, d, addr, func(s *session) error {
		r := bufio.NewReaderSize(s, maxLine)
		if err := reply(r, "220", "the greeting"); err != nil {
			return err
		}
		if _, err := io.WriteString(s, "EHLO warren.invalid\r\n"); err != nil {
			return fault("sending EHLO", err)
		}
		if err := reply(r, "250", "the answer to EHLO"); err != nil {
			return err
		}
		if _, err := io.WriteString(s, "QUIT\r\n"); err != nil {
			return fault("sending QUIT", err)
		}
		return reply(r, "221", "the answer to QUIT")
	})
}

const (
	maxLine  = 1024 // bytes; RFC 5321 §4.5.3.1.5 has 512
	maxLines = 100  // of one reply
)

// reply reads one reply of a mail server, of many lines perhaps (RFC 5321
// §4.2.1).
func reply(r *bufio.Reader, want, what string) error {
	for range maxLines {
		line, err := readLine(r)
		if err != nil {
			return fault("awaiting "+what, err)
		}
		rest, ok := strings.CutPrefix(line, want)
		if !ok || rest != "" && rest[0] != ' ' && rest[0] != '-' {
			return fmt.Errorf("%s is %s, want %s", what, quote([]byte(line)), want)
		}
		if rest == "" || rest[0] == ' ' {
			return nil
		}
	}
	return fmt.Errorf("%s has more than %d lines", what, maxLines)
}

// errLongLine: no end of line within the buffer.
var errLongLine = errors.New("a line is too long")

// readLine reads a line without its end.
func readLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return "", errLongLine
	}
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(line), "\r\n"), nil
}
