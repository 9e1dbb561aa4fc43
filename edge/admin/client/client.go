// Package client speaks to a running edge through its admin socket, and
// declares the JSON that crosses it.
//
// New names the socket; nothing is connected until a method is called. Every
// method honours its context, and its errors say what to do. What the edge
// itself answered with is an *Error, which carries a code to branch on.
//
// The package imports nothing of Warren: the commands use it without pulling
// in the edge.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
	"time"
)

const (
	// maxAnswer bounds what is read of one answer: MaxFlows flows are 5 MB.
	maxAnswer = 64 << 20
	// answerTimeout is how long the edge may take to begin its answer; a
	// probe or a reload takes as long as the slowest thing that it waits for.
	answerTimeout = 60 * time.Second
)

// Client is an edge's admin socket. It is safe for use by many goroutines.
type Client struct {
	socket string
	http   *http.Client
}

// New returns a client for the socket at path.
func New(path string) *Client {
	return &Client{socket: path, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
		ResponseHeaderTimeout: answerTimeout,
		DisableCompression:    true,
	}}}
}

// Close lets go of idle connections. The client stays usable.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status returns the edge as a whole.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, http.MethodGet, "/v1/status", nil)
}

// Apps returns the apps, sorted by name.
func (c *Client) Apps(ctx context.Context) ([]App, error) {
	return call[[]App](ctx, c, http.MethodGet, "/v1/apps", nil)
}

// Networks returns the networks, sorted by name.
func (c *Client) Networks(ctx context.Context) ([]Network, error) {
	return call[[]Network](ctx, c, http.MethodGet, "/v1/networks", nil)
}

// Flows returns the open flows that q selects, oldest first.
func (c *Client) Flows(ctx context.Context, q FlowQuery) (FlowList, error) {
	path := "/v1/flows"
	if values := q.values(); len(values) > 0 {
		path += "?" + values.Encode()
	}
	return call[FlowList](ctx, c, http.MethodGet, path, nil)
}

func (q FlowQuery) values() url.Values {
	values := make(url.Values)
	for key, value := range map[string]string{"app": q.App, "network": q.Network, "connector": q.Connector} {
		if value != "" {
			values.Set(key, value)
		}
	}
	if q.Limit != 0 {
		values.Set("limit", strconv.Itoa(q.Limit))
	}
	return values
}

// KillFlow ends one flow.
func (c *Client) KillFlow(ctx context.Context, id uint64) error {
	_, err := call[struct{}](ctx, c, http.MethodDelete, "/v1/flows/"+strconv.FormatUint(id, 10), nil)
	return err
}

// Probe dials an address in a network and tells whether the tunnel or the
// origin is at fault.
func (c *Client) Probe(ctx context.Context, r ProbeRequest) (ProbeResult, error) {
	return call[ProbeResult](ctx, c, http.MethodPost, "/v1/probe", r)
}

// Reload makes the edge read its configuration again.
func (c *Client) Reload(ctx context.Context) (ReloadResult, error) {
	return call[ReloadResult](ctx, c, http.MethodPost, "/v1/reload", nil)
}

// Drain makes the edge accept no new flows, or accept them again.
func (c *Client) Drain(ctx context.Context, r DrainRequest) (DrainResult, error) {
	return call[DrainResult](ctx, c, http.MethodPost, "/v1/drain", r)
}

// call makes one request and decodes its answer into a T.
func call[T any](ctx context.Context, c *Client, method, path string, body any) (answer T, err error) {
	var sent io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return answer, fmt.Errorf("encoding the request: %w", err)
		}
		sent = bytes.NewReader(text)
	}
	// The host is for the Host header alone; the socket decides where it goes.
	request, err := http.NewRequestWithContext(ctx, method, "http://edge"+path, sent)
	if err != nil {
		return answer, fmt.Errorf("making the request: %w", err)
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := c.http.Do(request)
	if err != nil {
		return answer, c.explain(ctx, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	switch {
	case err != nil:
		return answer, fmt.Errorf("reading the answer from admin socket %q: %w", c.socket, unwrapURL(err))
	case len(text) > maxAnswer:
		return answer, fmt.Errorf("reading the answer from admin socket %q: longer than %d MiB; ask for less", c.socket, maxAnswer>>20)
	case response.StatusCode/100 != 2:
		return answer, c.refusal(response.StatusCode, text)
	case len(text) == 0:
		return answer, nil
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return answer, fmt.Errorf("decoding the answer from admin socket %q: %w; is it an edge of this release?", c.socket, err)
	}
	return answer, nil
}

// refusal turns an answer that is not a success into an *Error.
func (c *Client) refusal(status int, text []byte) error {
	var e Error
	if err := json.Unmarshal(text, &e); err == nil && e.Message != "" && e.Code != "" {
		return &e
	}
	return &Error{Code: CodeUnknown, Message: fmt.Sprintf(
		"asking admin socket %q: it answered %d %s, which is not an edge's answer; is the socket the right one?",
		c.socket, status, http.StatusText(status))}
}

// explain says what a failure to reach the socket means.
func (c *Client) explain(ctx context.Context, err error) error {
	err = unwrapURL(err)
	const doing = "connecting to the edge's admin socket"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s %q: %w; is the edge running? use --socket or WARREN_SOCKET to name another", doing, c.socket, plain{"no such file", err})
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%s %q: %w; the edge that made it is gone, start the edge", doing, c.socket, plain{"nobody listens", err})
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s %q: %w; run this as the edge's user or in its group", doing, c.socket, plain{"permission denied", err})
	case errors.Is(err, syscall.ENOTSOCK), errors.Is(err, syscall.EPROTOTYPE), errors.Is(err, syscall.EINVAL):
		return fmt.Errorf("%s %q: %w; use --socket to name the edge's", doing, c.socket, err)
	case ctx.Err() != nil:
		return fmt.Errorf("waiting for the edge's answer on %q: %w", c.socket, context.Cause(ctx))
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Errorf("waiting for the edge's answer on %q: none within %s; the edge is stuck or very busy: %w", c.socket, answerTimeout, err)
	}
	return fmt.Errorf("asking the edge on admin socket %q: %w", c.socket, err)
}

// plain says err in plain words; errors.Is still finds what is below.
type plain struct {
	words string
	err   error
}

func (p plain) Error() string { return p.words }
func (p plain) Unwrap() error { return p.err }

// unwrapURL removes the made-up URL that net/http puts before its errors.
func unwrapURL(err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}
