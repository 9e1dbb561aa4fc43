package connector

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/warrenmesh/warren/edge/wire"
)

// maxHeader bounds what an answer holds besides its body, in bytes.
const maxHeader = 16 << 10

// errNoControl: the edge does not offer what this release speaks.
var errNoControl = errors.New("the edge does not speak this protocol")

// poster posts JSON to an edge on one connection, one message after the other
// (HTTP/1.1, RFC 9112), or, with send and receive, the next before the one
// before is answered. It holds no more of an answer than its bound and
// maxHeader. It is one goroutine's, but that one may send while another
// receives; and it owns the connection.
type poster struct {
	conn  net.Conn
	limit *io.LimitedReader
	in    *bufio.Reader
}

func newPoster(conn net.Conn) *poster {
	limit := &io.LimitedReader{R: conn}
	return &poster{conn: conn, limit: limit, in: bufio.NewReader(limit)}
}

func (p *poster) close() { _ = p.conn.Close() }

// post sends message to path and reads the answer, which must come within d,
// into answer. Its error is a *wire.Refusal where the edge said no, wraps
// errNoControl where it does not know the path, and is ctx's cause where ctx
// ended. After an error the poster is of no more use.
func (p *poster) post(ctx context.Context, path string, d time.Duration, message, answer any) error {
	if err := p.conn.SetDeadline(time.Now().Add(d)); err != nil {
		return fmt.Errorf("posting to %q: %w", path, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = p.conn.SetDeadline(time.Unix(1, 0)) })
	err := p.exchange(path, message, answer)
	if !stop() { // and it may yet spoil the deadline of a further message
		return context.Cause(ctx)
	}
	var refusal *wire.Refusal
	if err != nil && !errors.As(err, &refusal) {
		err = fmt.Errorf("posting to %q: %w", path, err)
	}
	return err
}

func (p *poster) exchange(path string, message, answer any) error {
	if err := p.send(path, message); err != nil {
		return err
	}
	return p.receive(wire.MaxBody, func(body io.Reader) error { return wire.Decode(body, answer) })
}

// send writes one message.
func (p *poster) send(path string, message any) error {
	body, err := json.Marshal(message)
	if err != nil {
		return err
	}
	request, err := http.NewRequest(http.MethodPost, "http://"+p.conn.RemoteAddr().String()+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "") // it says nothing that the message does not
	return request.Write(p.conn)
}

// receive reads the answer to the first message that has none yet, of at most
// so many bytes.
func (p *poster) receive(most int64, decode func(body io.Reader) error) error {
	p.limit.N = most + maxHeader
	response, err := http.ReadResponse(p.in, nil)
	if err != nil {
		return quoted(err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return refused(response)
	}
	if err := decode(response.Body); err != nil {
		return quoted(err)
	}
	return nil
}

// quoted is an error that may hold any of what came, fit for a log.
func quoted(err error) error { return errors.New(plain(err.Error(), wire.MaxText)) }

// refused is the error that an answer without success is.
func refused(response *http.Response) error {
	refusal := new(wire.Refusal)
	if err := wire.Decode(response.Body, refusal); err == nil && refusal.Code != "" {
		refusal.Message = plain(refusal.Message, wire.MaxText)
		switch refusal.Code {
		case wire.CodeVersion, wire.CodeBadRequest:
			return fmt.Errorf("%w: %w", errNoControl, refusal)
		}
		return refusal
	}
	switch response.StatusCode {
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return fmt.Errorf("%w: it answers with status %d", errNoControl, response.StatusCode)
	}
	return fmt.Errorf("the edge answers with status %d", response.StatusCode)
}

// plain is text from elsewhere as it may stand in a log line: at most n bytes,
// without control characters.
func plain(text string, n int) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return -1
		}
		return r
	}, text)
	if len(text) > n {
		text = strings.ToValidUTF8(text[:n], "")
	}
	return text
}
