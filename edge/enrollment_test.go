package edge

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

// caller is somebody with a key who calls the edge.
type caller struct {
	*tunnel.Tunnel
	edge *tunnel.Peer
}

// call opens a tunnel to the edge until the test ends, and waits until the
// edge answers in it.
func (w *world) call(key, preshared wgtypes.Key) *caller {
	w.t.Helper()
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(w.Edge.tunnel.ListenPort()))
	t, err := tunnel.New(tunnel.Config{PrivateKey: key, Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(t.Close)
	p, err := t.AddEdge(tunnel.EdgeConfig{Name: "edge", PublicKey: w.key.PublicKey(), PresharedKey: preshared, Endpoint: at})
	if err != nil {
		w.t.Fatal(err)
	}
	await(w.t, "the edge to answer", p.Alive)
	return &caller{Tunnel: t, edge: p}
}

// post asks the edge inside the tunnel. A refusal is the error.
func (c *caller) post(ctx context.Context, port uint16, path string, request, answer any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return c.DialOverlay(ctx, netip.AddrPortFrom(c.edge.Overlay(), port))
		},
	}
	defer transport.CloseIdleConnections()
	asker := http.Client{Transport: transport}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://edge"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	got, err := asker.Do(r)
	if err != nil {
		return err
	}
	defer got.Body.Close()
	if got.StatusCode != http.StatusOK {
		refusal := new(wire.Refusal)
		if err := wire.Decode(got.Body, refusal); err != nil {
			return err
		}
		return refusal
	}
	return wire.Decode(got.Body, answer)
}

// sync reports and returns the grant.
func (c *caller) sync(t *testing.T, revision uint64) (wire.SyncAnswer, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var answer wire.SyncAnswer
	err := c.post(ctx, wire.ControlPort, wire.PathSync, wire.SyncRequest{
		Revision: revision, Report: wire.Report{Version: "test", Hostname: "db7", Time: time.Now()},
	}, &answer)
	return answer, err
}

// enrol registers key with a token's text.
func (w *world) enrol(text string, key wgtypes.Key) (wire.EnrollAnswer, error) {
	w.t.Helper()
	token, err := wire.ParseToken(text)
	if err != nil {
		w.t.Fatal(err)
	}
	guest := w.call(token.Bootstrap()[0], token.PresharedKey())
	defer guest.Close()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	var answer wire.EnrollAnswer
	err = guest.post(ctx, wire.EnrollPort, wire.PathEnroll, wire.EnrollRequest{
		PublicKey: wire.Key{Key: key.PublicKey()}, Hostname: "db7", Version: "test", Time: time.Now(),
	}, &answer)
	return answer, err
}

// enrolledWorld is an edge with one connector that came by a token and serves
// an app; its flows go to a site that echoes.
func enrolledWorld(t *testing.T) (w *world, c *caller, key wgtypes.Key, text string) {
	t.Helper()
	w = newWorld(t, network("berlin")+appTo("web", "berlin/10.0.0.10:7"))
	w.replace("[wireguard]\n", "[wireguard]\nadvertise = [\"127.0.0.1:51820\"]\n")
	w.run(5 * time.Second)
	made, err := w.admin.CreateToken(t.Context(), client.TokenRequest{Network: "berlin", Routes: []string{"10.0.0.0/24"}, Name: "berlin-1"})
	if err != nil {
		t.Fatal(err)
	}
	key = newKey(t)
	answer, err := w.enrol(made.Text, key)
	if err != nil || answer.Name != "berlin-1" || answer.Network != "berlin" || len(answer.Edges) != 1 || answer.Edges[0].PublicKey.Key != w.key.PublicKey() {
		t.Fatalf("enrolled: %+v, %v", answer, err)
	}
	if got := w.connectorState("berlin-1"); got != client.ConnectorPending {
		t.Errorf("before its key has called the connector is %q", got)
	}
	return w, w.serveAs(key), key, made.Text
}

// serveAs calls with a connector's key, syncs, and echoes whatever the edge
// asks for.
func (w *world) serveAs(key wgtypes.Key) *caller {
	w.t.Helper()
	c := w.call(key, wgtypes.Key{})
	if err := c.edge.Stack().ForwardTCP(netstack.ForwardTCPConfig{Handler: echo("berlin")}); err != nil {
		w.t.Fatal(err)
	}
	if _, err := c.sync(w.t, 0); err != nil {
		w.t.Fatal(err)
	}
	await(w.t, "the connector is up", func() bool { return w.connectorState("berlin-1") == client.ConnectorUp })
	return c
}

func TestEnrolment(t *testing.T) {
	w, c, _, text := enrolledWorld(t)
	if got, err := w.converse("web", "hello"); err != nil || got != "berlin\nhello" {
		t.Fatalf("%q, %v", got, err)
	}
	got, _ := w.connectorNamed("berlin-1")
	if got.Origin != client.OriginToken || got.Report == nil || got.Report.Hostname != "db7" || !slices.Equal(got.Routes, []string{"10.0.0.0/24"}) {
		t.Errorf("shown as %+v", got)
	}
	_, err := w.enrol(text, newKey(t))
	if err == nil || !strings.Contains(err.Error(), `by connector "berlin-1"`) {
		t.Errorf("the token a second time: %v", err)
	}

	// A reload leaves it alone, and cannot declare its name.
	conn := w.dialApp("web", "tcp")
	hello(t, conn)
	if _, err := w.admin.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.write(network("berlin") + connector("berlin-1", "berlin", newKey(t), "10.0.0.0/8") + appTo("web", "berlin/10.0.0.10:7"))
	if _, err := w.admin.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "berlin-1") {
		t.Errorf("its name is declared: %v", err)
	}
	w.write(network("berlin") + appTo("web", "berlin/10.0.0.10:7"))

	// Other routes reach it within its held sync, and cut what they leave out.
	held := make(chan wire.SyncAnswer, 1)
	first, err := c.sync(t, 0)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		answer, _ := c.sync(t, first.Revision)
		held <- answer
	}()
	if _, err := w.admin.GrantConnector(t.Context(), "berlin-1", client.GrantRequest{Routes: []string{"10.0.0.0/16", "10.9.0.0/24"}}); err != nil {
		t.Fatal(err)
	}
	if a := <-held; len(a.Grant.Routes) != 2 {
		t.Errorf("pushed: %+v", a.Grant)
	}
	hello(t, conn)
	if _, err := w.admin.GrantConnector(t.Context(), "berlin-1", client.GrantRequest{Routes: []string{"10.9.0.0/24"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("a flow outlived its route")
	}
	if got := w.flows("web", 2)[1]; got.Status != 498 || !strings.Contains(got.Why, "lost its route to 10.0.0.10") {
		t.Errorf("its line: %+v", got)
	}
}

// hello has a word with an app that echoes, which greets first.
func hello(t *testing.T, conn net.Conn) {
	t.Helper()
	buf := make([]byte, 64)
	fmt.Fprint(conn, "ping")
	for got := ""; !strings.HasSuffix(got, "ping"); {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("after %q: %v", got, err)
		}
		got += string(buf[:n])
	}
}

func TestRevocation(t *testing.T) {
	w, c, key, _ := enrolledWorld(t)
	conn := w.dialApp("web", "tcp")
	hello(t, conn)
	first, err := c.sync(t, 0)
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan error, 1)
	go func() {
		_, err := c.sync(t, first.Revision)
		told <- err
	}()
	result, err := w.admin.RevokeConnector(t.Context(), "berlin-1")
	if err != nil || result.Aborted != 1 || result.Connector.State != client.ConnectorRevoked {
		t.Errorf("revoked: %+v, %v", result, err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("its flow goes on")
	}
	wantRevoked := func(err error) {
		t.Helper()
		if refusal, ok := err.(*wire.Refusal); !ok || refusal.Code != wire.CodeRevoked {
			t.Errorf("the connector is told %v", err)
		}
	}
	wantRevoked(<-told)
	c.Close()
	if got := w.flows("web", 1)[0]; got.Status != 498 || !strings.Contains(got.Why, "revoked") {
		t.Errorf("the line of its flow: %+v", got)
	}

	// It holds after a restart, and is still told.
	w.restart()
	if got := w.connectorState("berlin-1"); got != "" {
		t.Errorf("after a restart it is %q", got)
	}
	_, err = w.call(key, wgtypes.Key{}).sync(t, 0)
	wantRevoked(err)
}

// restart ends the edge and starts it again with its state.
func (w *world) restart() {
	w.t.Helper()
	w.stop()
	<-w.ended
	if w.err != nil {
		w.t.Fatal(w.err)
	}
	w.ended = make(chan struct{})
	w.run(5 * time.Second)
}

func TestEnrolmentOutlivesARestart(t *testing.T) {
	w, c, key, text := enrolledWorld(t)
	c.Close()
	w.restart()
	w.serveAs(key)
	if got, err := w.converse("web", "again"); err != nil || got != "berlin\nagain" {
		t.Fatalf("%q, %v", got, err)
	}
	if answer, err := w.enrol(text, key); err != nil || answer.Name != "berlin-1" {
		t.Errorf("the same token and key: %+v, %v", answer, err)
	}
	state, err := os.ReadFile(filepath.Join(w.dir, "state", storeName))
	if err != nil {
		t.Fatal(err)
	}
	token, _ := wire.ParseToken(text)
	bootstrap := token.Bootstrap()[0]
	for what, secret := range map[string]string{
		"the token": text[len(wire.TokenPrefix):], "its secret": string(token.Secret[:]),
		"a bootstrap key": string(bootstrap[:]), "a bootstrap key in base64": bootstrap.String(),
	} {
		if bytes.Contains(state, []byte(secret)) {
			t.Errorf("the state holds %s", what)
		}
	}
}

// TestRevokedDeclaration: the config cannot bring back what was revoked.
func TestRevokedDeclaration(t *testing.T) {
	key := newKey(t)
	tables := network("berlin") + connector("berlin-1", "berlin", key, "10.0.0.0/24") + appTo("web", "berlin/10.0.0.10:7")
	w := startWorld(t, tables)
	w.startSite("berlin-1", key, map[string]func(*netstack.TCPRequest){"10.0.0.10:7": echo("berlin")})
	conn := w.dialApp("web", "tcp")
	hello(t, conn)
	result, err := w.admin.RevokeConnector(t.Context(), "berlin-1")
	if err != nil || !strings.Contains(result.Note, "remove it there") {
		t.Errorf("revoked: %+v, %v", result, err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("its flow goes on")
	}
	for _, after := range []func(){
		func() {
			done, err := w.admin.Reload(t.Context())
			if err != nil || len(done.Warnings) != 1 || !strings.Contains(done.Warnings[0], "revoked") {
				t.Errorf("reload: %+v, %v", done, err)
			}
		},
		w.restart,
	} {
		after()
		if got := w.connectorState("berlin-1"); got != client.ConnectorRevoked {
			t.Errorf("it is %q", got)
		}
		if w.nets.peer("berlin-1") != nil {
			t.Error("it is in the tunnel")
		}
	}
}

// TestOneStateOneEdge: a second edge on the state directory is refused.
func TestOneStateOneEdge(t *testing.T) {
	w := startWorld(t, network("berlin"))
	err := Run(t.Context(), w.opts)
	if err == nil || !strings.Contains(err.Error(), "another edge runs with it") {
		t.Errorf("a second edge: %v", err)
	}
}

// TestKeyChange: the flows of a connector go on while its key changes, and the
// old key is nobody's then.
func TestKeyChange(t *testing.T) {
	w, c, old, _ := enrolledWorld(t)
	conn := w.dialApp("web", "tcp")
	hello(t, conn)
	if _, err := w.admin.RotateConnector(t.Context(), "berlin-1"); err != nil {
		t.Fatal(err)
	}
	if a, err := c.sync(t, 0); err != nil || !a.Grant.Rotate {
		t.Fatalf("asked for a new key: %+v, %v", a, err)
	}
	next := newKey(t)
	if err := c.post(t.Context(), wire.ControlPort, wire.PathKey, wire.KeyRequest{PublicKey: wire.Key{Key: next.PublicKey()}}, new(struct{})); err != nil {
		t.Fatal(err)
	}
	if err := c.SetPrivateKey(next); err != nil {
		t.Fatal(err)
	}
	hello(t, conn)
	var a wire.SyncAnswer
	await(t, "control from the new address", func() bool {
		var err error
		a, err = c.sync(t, 0)
		return err == nil
	})
	if a.Grant.Rotate {
		t.Error("it is asked for another key at once")
	}
	hello(t, conn)
	got, _ := w.connectorNamed("berlin-1")
	if got.PublicKey != next.PublicKey().String() || got.Flows != 1 || got.Rotation != "" {
		t.Errorf("shown as %+v", got)
	}
	if _, known := w.nets.KeyAt(tunnel.OverlayAddr(old.PublicKey())); known {
		t.Error("the old key is still in the tunnel")
	}
}

// TestStateBelongsToAKey: an edge does not take up another identity, or the
// state of another edge, without a word.
func TestStateBelongsToAKey(t *testing.T) {
	w := newWorld(t, network("berlin"))
	w.replace("private_key_file = \"edge.key\"\n", "")
	w.run(5 * time.Second)
	w.stop()
	<-w.ended
	keyFile := filepath.Join(w.dir, "state", "edge.key")
	key, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what, want string) {
		t.Helper()
		err := Run(t.Context(), w.opts)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "restore that key") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := os.Remove(keyFile); err != nil {
		t.Fatal(err)
	}
	refused("without its key", "no such file")
	if _, err := os.Stat(keyFile); err == nil {
		t.Error("it made another key")
	}
	if err := os.WriteFile(keyFile, []byte(newKey(t).String()), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("with another key", "holds another")
	if err := os.WriteFile(keyFile, key, 0o600); err != nil {
		t.Fatal(err)
	}
	w.ended = make(chan struct{})
	w.run(5 * time.Second)
}

// TestReloadTellsOfEnrolment: what a reload changed about enrolment is said.
func TestReloadTellsOfEnrolment(t *testing.T) {
	w := startWorld(t, network("berlin"))
	w.write("[enrollment]\nkey_max_age = \"24h\"\n" + network("berlin") + "enroll = false\n")
	w.replace("[wireguard]\n", "[wireguard]\nadvertise = [\"127.0.0.1:51820\"]\n")
	done, err := w.admin.Reload(t.Context())
	if want := []string{`network "berlin" changed`, "enrollment changed", "wireguard.advertise changed"}; err != nil || !slices.Equal(done.Changes, want) {
		t.Errorf("%q, %v; want %q", done.Changes, err, want)
	}
	_, err = w.admin.CreateToken(t.Context(), client.TokenRequest{Network: "berlin", Routes: []string{"10.0.0.0/24"}})
	if err == nil || !strings.Contains(err.Error(), "enroll") {
		t.Errorf("a token for a network that takes none: %v", err)
	}
}
