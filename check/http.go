package check

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// A check speaks HTTP/1.1 over the connection that it opened, without
// http.Transport: that one dials, reads and closes on goroutines of its own,
// which may outlive the request, and takes three times the memory.

// userAgent is what servers find in their logs, unless a header says otherwise.
const userAgent = "warren-check"

// maxInformational is how many 1xx answers may come before the answer.
const maxInformational = 5

// errLongHeaders is an answer whose headers do not end.
var errLongHeaders = fmt.Errorf("its headers are longer than %d KiB", MaxRead>>10)

// http asks for a page, and for those that it is redirected to.
func (c *Check) http(ctx context.Context, d Dialer, addr netip.AddrPort) Result {
	host := c.spec.Host
	if host == "" {
		host = netip.AddrPortFrom(addr.Addr().Unmap().WithZone(""), addr.Port()).String()
	}
	at := request{method: c.spec.Method, host: host, target: c.spec.Path}
	var first Result
	for hop := 0; ; hop++ {
		location, r := c.fetch(ctx, d, addr, at)
		if hop == 0 {
			first = r
		}
		first.Err = r.Err
		if r.Err != nil || location == "" {
			return first
		}
		if hop == MaxRedirects {
			first.Err = fmt.Errorf("redirected more than %d times", MaxRedirects)
			return first
		}
		if at.target, first.Err = c.redirect(at, location); first.Err != nil {
			return first
		}
	}
}

// request is what differs between the requests of one check.
type request struct{ method, host, target string }

// fetch makes one request and judges the answer, unless that is a redirect
// that has to be followed, to location.
func (c *Check) fetch(ctx context.Context, d Dialer, addr netip.AddrPort, at request) (location string, r Result) {
	s, err := open(ctx, d, "tcp", addr)
	if err != nil {
		return "", Result{Err: err}
	}
	defer s.end()
	r.RTT = s.opened
	var conn io.ReadWriter = s.Conn
	if c.spec.Type == TypeHTTPS {
		secure, expires, err := c.handshake(s, addr, []string{"http/1.1"})
		r.Expires = expires
		if err != nil {
			r.Err = err
			return "", r
		}
		conn = secure
	}
	if _, err := io.WriteString(conn, at.method+" "+at.target+" HTTP/1.1\r\nHost: "+at.host+"\r\n"+c.headers); err != nil {
		r.Err = fault("sending the request", err)
		return "", r
	}
	location, r.Err = c.judgeHTTP(conn, at.method)
	return location, r
}

// headerLines are the lines of a request that are the same for every endpoint,
// with the empty one that ends it.
func headerLines(headers map[string]string) string {
	var b strings.Builder
	b.WriteString("Connection: close\r\n")
	agent, accept := "User-Agent: "+userAgent+"\r\n", "Accept: */*\r\n"
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		switch http.CanonicalHeaderKey(name) {
		case "User-Agent":
			agent = ""
		case "Accept":
			accept = ""
		}
		b.WriteString(name + ": " + headers[name] + "\r\n")
	}
	return b.String() + agent + accept + "\r\n"
}

// readers are bufio.Readers of 4 KiB.
var readers = sync.Pool{New: func() any { return bufio.NewReader(nil) }}

// judgeHTTP reads the answer to a request. A redirect that has to be followed
// is not judged.
func (c *Check) judgeHTTP(conn io.Reader, method string) (location string, err error) {
	limit := &bounded{from: conn, left: MaxRead}
	r := readers.Get().(*bufio.Reader)
	r.Reset(limit)
	defer func() {
		r.Reset(nil)
		readers.Put(r)
	}()
	answer, err := c.readHead(r, limit, method)
	if err != nil {
		return "", err
	}
	// The body is read here or never: its Close would read on.
	to := answer.Header.Get("Location")
	if c.spec.FollowRedirects && isRedirect(answer.StatusCode) && to != "" {
		return to, nil
	}
	if !c.codes.has(answer.StatusCode) {
		return "", fmt.Errorf("answered %d, want %s", answer.StatusCode, strings.Join(c.spec.ExpectedCodes, " or "))
	}
	if c.spec.ExpectedBody == "" {
		return "", nil
	}
	limit.left = 2 * MaxRead // chunks of a byte each would take more; then so be it
	_, err = find(answer.Body, []byte(c.spec.ExpectedBody), MaxRead)
	if errors.Is(err, errAbsent) || errors.Is(err, io.EOF) || errors.Is(err, errLongHeaders) {
		// What came is not shown: it may repeat a header.
		return "", fmt.Errorf("answered %d, but the body's first %d KiB lack %s", answer.StatusCode, MaxRead>>10, quote([]byte(c.spec.ExpectedBody)))
	}
	if err != nil {
		if limit.err != nil {
			return "", fault("reading the body", limit.err)
		}
		return "", fmt.Errorf("answered %d, with a malformed body", answer.StatusCode)
	}
	return "", nil
}

// readHead reads the answer up to its body.
func (c *Check) readHead(r *bufio.Reader, limit *bounded, method string) (*http.Response, error) {
	_, _ = r.Peek(1) // an error comes again
	start, _ := r.Peek(min(r.Buffered(), maxQuote))
	begins := string(start)
	for range maxInformational + 1 {
		answer, err := http.ReadResponse(r, &http.Request{Method: method})
		switch {
		case err == nil && (answer.StatusCode >= 200 || answer.StatusCode == http.StatusSwitchingProtocols):
			return answer, nil
		case err == nil:
			continue
		case errors.Is(limit.err, errLongHeaders):
			return nil, fmt.Errorf("not a sound HTTP answer: %w", limit.err)
		case limit.err != nil && !errors.Is(limit.err, io.EOF):
			return nil, fault("awaiting the answer", limit.err)
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil, fault("awaiting the answer", io.EOF)
		case len(c.spec.Headers) > 0: // an endpoint that repeats them must not bring them into an error
			return nil, errors.New("not an HTTP answer")
		}
		return nil, fmt.Errorf("not an HTTP answer: it begins %s", quote([]byte(begins)))
	}
	return nil, fmt.Errorf("more than %d answers of kind 1xx came", maxInformational)
}

// bounded reads at most left bytes, and remembers how reading ended.
type bounded struct {
	from io.Reader
	left int
	err  error
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		b.err = errLongHeaders
		return 0, b.err
	}
	n, err := b.from.Read(p[:min(len(p), b.left)])
	b.left -= n
	b.err = err
	return n, err
}

func isRedirect(code int) bool {
	switch code {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// maxTarget bounds what is asked for.
const maxTarget = 2048

// redirect returns what to ask for next. The next request goes to the same
// endpoint, so a redirect to another host, or to the other scheme, is a wrong
// answer: it says nothing about this endpoint. The methods of a Spec have no
// body, so that each may be repeated (RFC 9110 §15.4).
func (c *Check) redirect(at request, location string) (target string, err error) {
	base := &url.URL{Scheme: c.spec.Type, Host: at.host}
	if from, err := url.ParseRequestURI(at.target); err == nil {
		base.Path, base.RawPath = from.Path, from.RawPath
	}
	to, err := base.Parse(location)
	if err != nil {
		return "", errors.New("redirected to something that is no URL")
	}
	if to.Scheme != base.Scheme || !sameHost(to, base) {
		return "", fmt.Errorf("redirected to %s, which is not this endpoint; expect that code, or have the Host header right",
			quote([]byte(to.Scheme+"://"+to.Host)))
	}
	target = strings.ReplaceAll(to.RequestURI(), " ", "%20")
	if !validTarget(target) {
		return "", errors.New("redirected to a path that cannot be asked for")
	}
	return target, nil
}

func sameHost(a, b *url.URL) bool {
	return strings.EqualFold(a.Hostname(), b.Hostname()) && portOf(a) == portOf(b)
}

func portOf(u *url.URL) string {
	switch port := u.Port(); {
	case port != "":
		return port
	case u.Scheme == TypeHTTPS:
		return "443"
	}
	return "80"
}

// validTarget reports whether s can stand in a request line.
func validTarget(s string) bool {
	if len(s) == 0 || len(s) > maxTarget || s[0] != '/' {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f || s[i] == '#' {
			return false
		}
	}
	return true
}
