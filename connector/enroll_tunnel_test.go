package connector

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

// realDoor is an edge that enrols: the real tunnel with a token's guests, and
// an HTTP server in place of the registry.
type realDoor struct {
	*tunnel.Tunnel
	token  wire.Token
	guests map[netip.Addr]*tunnel.Guest // by overlay address

	mu       sync.Mutex
	answered map[netip.Addr]bool // since it was renewed
	members  map[wgtypes.Key]bool
}

func openDoor(t *testing.T, reusable bool) *realDoor {
	t.Helper()
	key := newKey(t)
	device, err := tunnel.New(tunnel.Config{PrivateKey: key, Listen: netip.MustParseAddrPort("127.0.0.1:0"), ControlPort: wire.ControlPort})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(device.Close)
	d := &realDoor{Tunnel: device, guests: make(map[netip.Addr]*tunnel.Guest), answered: make(map[netip.Addr]bool), members: make(map[wgtypes.Key]bool)}
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(device.ListenPort()))
	d.token = wire.NewToken(reusable, []wire.Edge{{PublicKey: wire.Key{Key: key.PublicKey()}, URLs: []string{at.String()}}})
	for _, k := range d.token.Bootstrap() {
		g, err := device.AddGuest(tunnel.GuestConfig{Name: "token", PublicKey: k.PublicKey(), PresharedKey: d.token.PresharedKey(), Port: wire.EnrollPort})
		if err != nil {
			t.Fatal(err)
		}
		d.guests[tunnel.OverlayAddr(k.PublicKey())] = g
	}
	l, err := device.ListenOverlay(t.Context(), wire.EnrollPort)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: d, ConnState: d.changed}
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close(); <-served })
	return d
}

func (d *realDoor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var request wire.EnrollRequest
	if err := wire.Decode(r.Body, &request); err != nil || r.URL.Path != wire.PathEnroll {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	key := request.PublicKey.Key
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answered[netip.MustParseAddrPort(r.RemoteAddr).Addr()] = true
	if !d.token.Reusable && !d.members[key] && len(d.members) > 0 {
		w.WriteHeader(http.StatusForbidden)
		_ = json.NewEncoder(w).Encode(wire.Refuse(wire.CodeSpent, "the token was used by another"))
		return
	}
	d.members[key] = true
	_ = json.NewEncoder(w).Encode(wire.EnrollAnswer{Name: request.Name, Network: "berlin", Edges: d.token.Edges, Time: request.Time})
}

// changed renews a guest whose joiner leaves with an answer, as an edge does.
func (d *realDoor) changed(c net.Conn, s http.ConnState) {
	if s != http.StateClosed {
		return
	}
	from := netip.MustParseAddrPort(c.RemoteAddr().String()).Addr()
	d.mu.Lock()
	renew := d.answered[from]
	delete(d.answered, from)
	d.mu.Unlock()
	if renew {
		_ = d.guests[from].Renew()
	}
}

// joiner is a Connector with a token and its edge; log collects what it says.
func (d *realDoor) joiner(t *testing.T, token wire.Token, log *logLines) (*Connector, EdgeSpec) {
	t.Helper()
	spec := Spec{Name: "berlin-1", StateDir: filepath.Join(t.TempDir(), "state"), Token: token, Listen: netip.MustParseAddrPort("127.0.0.1:0")}
	c, err := New(spec, Deps{Log: slog.New(log)})
	if err != nil {
		t.Fatal(err)
	}
	url, err := ParseEdgeURL(token.Edges[0].URLs[0])
	if err != nil {
		t.Fatal(err)
	}
	return c, EdgeSpec{PublicKey: token.Edges[0].PublicKey.Key, URLs: []EdgeURL{url}}
}

// TestEnrolCrowd: joiners that take the keys' sessions from each other are all
// answered, and a token that may be used once is used by one.
func TestEnrolCrowd(t *testing.T) {
	for _, tt := range []struct {
		name     string
		reusable bool
		joiners  int
		in       int
	}{
		{"alone", false, 1, 1}, {"once for all", false, 6, 1}, {"reusable", true, 16, 16},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := openDoor(t, tt.reusable)
			log := &logLines{}
			var all sync.WaitGroup
			var mu sync.Mutex
			in := 0
			for range tt.joiners {
				c, edge := d.joiner(t, d.token, log)
				key := newKey(t).PublicKey()
				all.Go(func() {
					_, err := c.enrolAt(t.Context(), edge, key)
					var refusal *wire.Refusal
					switch {
					case err == nil:
						mu.Lock()
						defer mu.Unlock()
						in++
					case !errors.As(err, &refusal) || refusal.Code != wire.CodeSpent:
						t.Error(err)
					}
				})
			}
			all.Wait()
			if in != tt.in || len(d.members) != tt.in {
				t.Errorf("%d of %d joiners are in, %d at the edge; want %d", in, tt.joiners, len(d.members), tt.in)
			}
			said := strings.Join(log.with(""), "\n")
			for _, secret := range secrets(t, d.token) {
				if strings.Contains(said, secret) {
					t.Errorf("a secret was said: %s", said)
				}
			}
		})
	}
}

// TestEnrolIsNotAnswered: an edge says nothing to a token that it does not
// know, and the error has counted what it was sent.
func TestEnrolIsNotAnswered(t *testing.T) {
	d := openDoor(t, false)
	foreign := wire.NewToken(false, d.token.Edges)
	c, edge := d.joiner(t, foreign, &logLines{})
	j := c.newJoiner(edge, newKey(t).PublicKey())
	if err := j.resolve(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := j.attempt(t.Context(), j.tried[0], 0); err == nil || j.met {
		t.Errorf("an edge answered a foreign token: %v", err)
	}
	if to := j.tried[0]; to.sent < initiation || to.sent%initiation != 0 || to.why != nil {
		t.Errorf("%d bytes were sent, and %v said; want handshakes alone, and nothing", to.sent, to.why)
	}
	d.Close()
	if _, err := c.enrolAt(t.Context(), edge, newKey(t).PublicKey()); err == nil || !strings.Contains(err.Error(), "nothing listens at UDP "+edge.String()+" (port unreachable)") {
		t.Errorf("a closed port: %v", err)
	}
}
