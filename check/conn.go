package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/warrenmesh/warren/netstack/netx"
)

// session is one connection of a check. Whoever opened it ends it.
type session struct {
	net.Conn
	opened time.Duration // how long the connect took
	stop   func()        // lets ctx's end mean nothing to the conn any more
}

// open connects, and binds the conn's reads and writes to ctx.
func open(ctx context.Context, d Dialer, proto string, addr netip.AddrPort) (*session, error) {
	start := time.Now()
	conn, err := d.Dial(ctx, proto, addr)
	if err != nil {
		return nil, err
	}
	return &session{Conn: conn, opened: time.Since(start), stop: bind(ctx, conn)}, nil
}

// end aborts the conn.
func (s *session) end() {
	s.stop()
	netx.Abort(s.Conn)
}

// bind makes the conn's reads and writes fail once ctx has ended. Once the
// function that it returns has returned, nothing of bind's runs any more.
func bind(ctx context.Context, conn net.Conn) (stop func()) {
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline) // a conn that cannot: its first read says so
	}
	done := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = conn.SetDeadline(time.Unix(1, 0))
	})
	return func() {
		if !cancel() {
			<-done
		}
	}
}

// fault is an error of an endpoint that was reached: doing, in a gerund, is
// what failed with err. It wraps nothing but netx.ErrNoRoute, for which the
// endpoint cannot be blamed.
func fault(doing string, err error) error {
	var timeout interface{ Timeout() bool }
	var op *net.OpError
	switch {
	case errors.Is(err, netx.ErrNoRoute):
		return fmt.Errorf("%s: %w", doing, err)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled),
		errors.As(err, &timeout) && timeout.Timeout():
		return errors.New(doing + ": nothing came in time")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New(doing + ": the endpoint ended the connection")
	case errors.As(err, &op):
		err = op.Err
	}
	return errors.New(doing + ": " + plain(err.Error()))
}

// maxQuote bounds, in bytes, what an error shows of an endpoint's words.
const maxQuote = 80

// quote shows bytes that an endpoint sent.
func quote(b []byte) string {
	if len(b) > maxQuote {
		return strconv.QuoteToASCII(string(b[:maxQuote])) + "…"
	}
	return strconv.QuoteToASCII(string(b))
}

// plain makes a library's error, which may hold an endpoint's words, fit for a
// line of a log.
func plain(s string) string {
	const most = 200
	if len(s) > most {
		for s = s[:most]; !utf8.ValidString(s) && len(s) > most-utf8.UTFMax; {
			s = s[:len(s)-1]
		}
		s += "…"
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// errAbsent: the bytes that were looked for did not come.
var errAbsent = errors.New("not found")

// find reads from r until want has come, and at most limit bytes. It returns
// nil if it has, errAbsent if limit bytes or the end came without it, and
// otherwise the error of r. start is the beginning of what came, for a message.
func find(r io.Reader, want []byte, limit int) (start []byte, err error) {
	// The buffer keeps the end of what came before, in which want may begin.
	buf := make([]byte, 0, max(4096, 2*len(want)))
	for seen := 0; ; {
		if bytes.Contains(buf, want) {
			return start, nil
		}
		if seen >= limit {
			return start, errAbsent
		}
		if keep := len(want) - 1; len(buf) > keep {
			buf = append(buf[:0], buf[len(buf)-keep:]...)
		}
		space := buf[len(buf):min(cap(buf), len(buf)+limit-seen)]
		n, err := r.Read(space)
		buf = buf[:len(buf)+n]
		seen += n
		if room := maxQuote + 1 - len(start); room > 0 {
			start = append(start, space[:min(n, room)]...)
		}
		if err != nil {
			switch {
			case bytes.Contains(buf, want):
				return start, nil
			case errors.Is(err, io.EOF) && seen > 0:
				return start, errAbsent
			}
			return start, err
		}
	}
}
