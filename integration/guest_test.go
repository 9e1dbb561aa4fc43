package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

// guest is somebody who holds a key that the edge knows and speaks to it as
// they please: a WireGuard peer of the edge in the test's own process.
type guest struct {
	tunnel *tunnel.Tunnel
	edge   netip.Addr // its overlay address
}

// newGuest calls the edge from a host with any private key. It is not waited
// for.
func (d *deployment) newGuest(t *testing.T, host *netns.Host, private, preshared wgtypes.Key) *guest {
	t.Helper()
	public, err := wgtypes.ParseKey(d.edgeKey.Public)
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{edge: tunnel.OverlayAddr(public)}
	// The socket is opened on this thread, so it is the host's.
	if err := host.Do(func() (err error) {
		g.tunnel, err = tunnel.New(tunnel.Config{PrivateKey: private})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.tunnel.Close)
	if _, err := g.tunnel.AddEdge(tunnel.EdgeConfig{Name: "edge", PublicKey: public, PresharedKey: preshared, Endpoint: at(51820)}); err != nil {
		t.Fatal(err)
	}
	return g
}

// guestsOf calls with each bootstrap key of a token.
func (d *deployment) guestsOf(t *testing.T, host *netns.Host, text string) (guests []*guest) {
	t.Helper()
	token, err := wire.ParseToken(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, private := range token.Bootstrap() {
		guests = append(guests, d.newGuest(t, host, private, token.PresharedKey()))
	}
	return guests
}

// dial waits until the edge has answered the handshake, and opens a connection
// to a port of its overlay address.
func (g *guest) dial(ctx context.Context, port uint16) (conn net.Conn, err error) {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		if conn, err = g.tunnel.DialOverlay(ctx, netip.AddrPortFrom(g.edge, port)); err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-ticker.C:
		}
	}
}

// post sends a request of its own making to the enrolment port.
func (g *guest) post(ctx context.Context, path string, body io.Reader) (status int, answer string, err error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return g.dial(ctx, wire.EnrollPort)
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://edge"+path, body)
	if err != nil {
		return 0, "", err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	return response.StatusCode, string(text), err
}

// endless is a body that does not end, and how much of it was taken.
type endless struct{ taken *atomic.Int64 }

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' ' // what JSON leaves out
	}
	e.taken.Add(int64(len(p)))
	return len(p), nil
}

// trickle is a body of one byte a second.
type trickle struct{ ctx context.Context }

func (s trickle) Read(p []byte) (int, error) {
	select {
	case <-s.ctx.Done():
		return 0, s.ctx.Err()
	case <-time.After(time.Second):
		p[0] = ' '
		return 1, nil
	}
}

// rss is the memory of a process that is in RAM, in bytes, as the kernel
// counts it: VmRSS now, VmHWM at its most.
func rss(t *testing.T, pid int, what string) (bytes int64) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := strings.Cut(string(status), what+":")
	if _, err := fmt.Sscan(after, &bytes); !found || err != nil {
		t.Fatalf("reading %s of process %d: %v", what, pid, err)
	}
	return bytes << 10
}

// guestFloodLimit is what a flood of guests may make an edge hold besides.
const guestFloodLimit = 96 << 20

// TestFloodByGuests lets somebody with a token do what they can to the edge:
// bodies without end, bodies that never come, connections that say nothing,
// other versions, other ports. The edge's memory is bounded, and connectors
// and other joiners notice nothing.
func TestFloodByGuests(t *testing.T) {
	d, _, _ := deployEnrolment(t)
	ask := berlinToken()
	ask.Reusable = true
	guests, slow := d.guestsOf(t, d.client, d.edged.Token(t, ask).Text), d.guestsOf(t, d.client, d.edged.Token(t, ask).Text)
	honest := d.edged.Token(t, berlinToken())
	d.testGuestsAreRefused(t, guests[0])
	d.testGuestsReachOnePort(t, guests[0])

	sessions := openSessions(t, d.client, at(9002).String(), 5)
	stop := load(t, d.client, at(9002).String(), 50)
	before := rss(t, d.edged.Pid(), "VmRSS")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	var taken, requests atomic.Int64
	for _, g := range guests {
		g.flood(ctx, &wg, &taken, &requests)
	}
	// Somebody else's token is as good as ever meanwhile.
	started := time.Now()
	d.warren.StartJoiner(t, d.berlin1, daemon.JoinerConfig{Name: "honest", Token: honest.Text})
	t.Logf("an honest joiner was in after %v", time.Since(started).Round(time.Millisecond))
	if err := pollFor(t, 5*time.Second, func() error { return request(t.Context(), d.client, at(9001).String(), 1) }); err != nil {
		t.Errorf("through a connector that enrolled during the flood: %v", err)
	}
	testSlowGuests(t, slow)
	cancel()
	wg.Wait()
	grown := rss(t, d.edged.Pid(), "VmHWM") - before
	t.Logf("%d requests, %d MiB of bodies written; the edge grew by %d MiB at most", requests.Load(), taken.Load()>>20, grown>>20)
	if grown > guestFloodLimit && !daemon.Race {
		t.Errorf("the edge grew by %d MiB", grown>>20)
	}
	for _, o := range stop() {
		if o.err != nil {
			t.Errorf("a request through a connector failed during the flood: %v", o.err)
		}
	}
	goOn(t, "through a connector, during the flood", sessions)
	if err := pollFor(t, 20*time.Second, func() error {
		status, answer, err := guests[0].post(t.Context(), wire.PathEnroll, strings.NewReader("{}"))
		if err == nil && status/100 != 4 {
			err = fmt.Errorf("the answer is %d %q", status, answer)
		}
		return err
	}); err != nil {
		t.Errorf("after the flood a guest is not answered: %v", err)
	}
}

// flood keeps 24 connections busy until ctx ends.
func (g *guest) flood(ctx context.Context, wg *sync.WaitGroup, taken, requests *atomic.Int64) {
	for n := range 24 {
		wg.Go(func() {
			for ctx.Err() == nil {
				requests.Add(1)
				switch n % 3 {
				case 0:
					g.post(ctx, wire.PathEnroll, io.LimitReader(endless{taken}, 1<<30))
				case 1:
					g.post(ctx, wire.PathEnroll, trickle{ctx})
				case 2:
					g.silent(ctx, "")
				}
			}
		})
	}
}

// silent opens a connection, says something, and then nothing more until the
// edge has enough of it.
func (g *guest) silent(ctx context.Context, something string) error {
	conn, err := g.dial(ctx, wire.EnrollPort)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := io.WriteString(conn, something); err != nil {
		return err
	}
	io.Copy(io.Discard, conn)
	return ctx.Err()
}

// testSlowGuests wants connections that take their time to be ended: a header
// that does not come after 5 s, a body after 10.
func testSlowGuests(t *testing.T, guests []*guest) {
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	head := "POST " + wire.PathEnroll + " HTTP/1.1\r\nHost: edge\r\n"
	var wg sync.WaitGroup
	for i, something := range []string{"", head, head + "Content-Length: 100\r\n\r\n{"} {
		wg.Go(func() {
			started := time.Now()
			if err := guests[i].silent(ctx, something); err != nil {
				t.Errorf("after %q the edge still waits: %v", something, err)
			}
			t.Logf("after %q the edge waited for %v", something, time.Since(started).Round(time.Millisecond))
		})
	}
	wg.Wait()
}

// testGuestsAreRefused sends what is no enrolment, and wants a refusal that
// says so.
func (d *deployment) testGuestsAreRefused(t *testing.T, g *guest) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	own, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	body := func(key wgtypes.Key) string {
		text, err := json.Marshal(wire.EnrollRequest{PublicKey: wire.Key{Key: key}, Time: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	known, err := wgtypes.ParseKey(d.tokyo1Key.Public)
	if err != nil {
		t.Fatal(err)
	}
	edge, err := wgtypes.ParseKey(d.edgeKey.Public)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, path, body string
		code             wire.Code
	}{
		{"a version of the future", "/v9/enroll", body(own.PublicKey()), wire.CodeVersion},
		{"no such path", "/v1/nothing", "{}", wire.CodeUnknown},
		{"no JSON", wire.PathEnroll, "\x00\x01\x02", wire.CodeBadRequest},
		{"no key", wire.PathEnroll, "{}", wire.CodeBadRequest},
		{"a long body", wire.PathEnroll, strings.Repeat(" ", wire.MaxBody) + body(own.PublicKey()), wire.CodeBadRequest},
		{"a deep body", wire.PathEnroll, strings.Repeat("[", wire.MaxBody/2), wire.CodeBadRequest},
		{"another connector's key", wire.PathEnroll, body(known), wire.CodeKnownKey},
		{"the edge's own key", wire.PathEnroll, body(edge), wire.CodeKnownKey},
		{"the bootstrap key itself", wire.PathEnroll, body(g.tunnel.PublicKey()), wire.CodeKnownKey},
		{"the control protocol", wire.PathSync, "{}", wire.CodeUnknown},
	} {
		status, answer, err := g.post(ctx, test.path, strings.NewReader(test.body))
		var refusal wire.Refusal
		if err == nil {
			err = wire.Decode(bytes.NewReader([]byte(answer)), &refusal)
		}
		if err != nil || status/100 == 2 || refusal.Code != test.code || refusal.Message == "" {
			t.Errorf("%s: %d %q, %v; want a refusal of code %q", test.name, status, answer, err, test.code)
		}
	}
}

// testGuestsReachOnePort tries what else the tunnel might lead to.
func (d *deployment) testGuestsReachOnePort(t *testing.T, g *guest) {
	if conn, err := g.dial(t.Context(), wire.EnrollPort); err != nil {
		t.Fatal(err)
	} else {
		conn.Close()
	}
	for _, port := range []uint16{wire.ControlPort, 1, 22, 80, 9191, 51820} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		conn, err := g.tunnel.DialOverlay(ctx, netip.AddrPortFrom(g.edge, port))
		cancel()
		if err == nil {
			conn.Close()
			t.Errorf("a guest reaches port %d of the edge's overlay address", port)
		} else if errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}
