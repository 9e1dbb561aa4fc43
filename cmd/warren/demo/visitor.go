package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// callLimit is how long one call may take. The edge itself gives up earlier.
const callLimit = 20 * time.Second

// visitor is a client of the demo: it resolves names through the edge's DNS
// and nothing else, and makes a new connection for each call.
type visitor struct {
	dns   string        // the address that is asked
	limit time.Duration // of one call
	dial  func(ctx context.Context, network, address string) (net.Conn, error)
}

// newVisitor returns one that asks the DNS server at that address.
func newVisitor(dns string) *visitor {
	v := &visitor{dns: dns, limit: callLimit}
	v.dial = v.dialByName
	return v
}

// resolve asks for the IPv4 address of a name.
func (v *visitor) resolve(ctx context.Context, name string) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, v.limit)
	defer cancel()
	resolver := &net.Resolver{
		PreferGo: true, // or the machine's own resolver is asked
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, v.dns)
		},
	}
	// The final dot keeps the machine's search list out of it.
	addrs, err := resolver.LookupNetIP(ctx, "ip4", name+".")
	var failed *net.DNSError
	if errors.As(err, &failed) { // it names a server of the machine's, which was not asked
		err = errors.New(failed.Err)
	}
	if err != nil {
		return netip.Addr{}, fmt.Errorf("resolving %q at %s: %w", name, v.dns, err)
	}
	if len(addrs) != 1 {
		return netip.Addr{}, fmt.Errorf("resolving %q at %s: want one address, got %v", name, v.dns, addrs)
	}
	return addrs[0].Unmap(), nil
}

// dialByName resolves the host of address, and connects.
func (v *visitor) dialByName(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	addr, err := v.resolve(ctx, host)
	if err != nil {
		return nil, err
	}
	return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(addr.String(), port))
}

// get returns what an app answers to GET /, without the newline.
func (v *visitor) get(ctx context.Context, app string, port int) (string, error) {
	body, err := v.do(ctx, http.MethodGet, fmt.Sprintf("http://%s:%d/", hostname(app), port), nil)
	return strings.TrimSpace(string(body)), err
}

// mirror posts body to an app and returns what comes back.
func (v *visitor) mirror(ctx context.Context, app string, port int, body []byte) ([]byte, error) {
	return v.do(ctx, http.MethodPost, fmt.Sprintf("http://%s:%d/mirror", hostname(app), port), body)
}

func (v *visitor) do(ctx context.Context, method, url string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, v.limit)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	// A connection for each call: a flow of its own, balanced on its own.
	transport := &http.Transport{DisableKeepAlives: true, DialContext: v.dial}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, fmt.Errorf("calling %s: %w", url, err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", url, err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("calling %s: it answers %q", url, response.Status)
	}
	return answer, nil
}

// ask sends a datagram to an app and returns the answer. It asks again after
// silence: a datagram may be lost.
func (v *visitor) ask(ctx context.Context, app string, port int, text string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, v.limit)
	defer cancel()
	address := fmt.Sprintf("%s:%d", hostname(app), port)
	conn, err := v.dial(ctx, "udp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })()
	const tries = 3
	b := make([]byte, 1<<16)
	for range tries {
		if _, err = conn.Write([]byte(text)); err != nil {
			continue
		}
		_ = conn.SetReadDeadline(time.Now().Add(v.limit / (tries + 1)))
		var n int
		if n, err = conn.Read(b); err == nil {
			return string(b[:n]), nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return "", fmt.Errorf("asking udp %s: %w", address, err)
}
