package integration

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/curve25519"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/netns"
)

// TestSecretsStay makes tokens of every kind, enrols, changes keys, revokes,
// and then looks for what was secret in everything that the edge and its
// connectors leave behind or say.
func TestSecretsStay(t *testing.T) {
	d, _, _ := deployEnrolmentWith(t, daemon.Find(t), daemon.EdgeConfig{Log: "flows = \"flows.jsonl\"\nlevel = \"debug\""})
	var h hunt
	h.addKey(t, "the edge's private key", d.edgeKey.Private)
	h.addKey(t, "the declared connector's private key", d.tokyo1Key.Private)
	joiners := d.liveThroughEverything(t, &h)

	admin := d.edged.Admin()
	state := filepath.Join(d.edged.Dir, "state")
	for what, args := range map[string][]string{
		"status": {"status", "--json"}, "connectors": {"connector", "list", "--json"}, "tokens": {"token", "list", "--all", "--json"},
		"flows": {"flow", "list", "--json"}, "networks": {"network", "list", "--json"},
		"tokens for people": {"token", "list", "--all"}, "a connector": {"connector", "show", "stays"},
	} {
		out, err := d.edged.Ask(t.Context(), args...)
		if err != nil {
			t.Error(err)
		}
		h.check(t, "the edge's answer of "+what, []byte(out))
	}
	tokens, err := admin.Tokens(t.Context())
	if err != nil || len(tokens) < 4 {
		t.Errorf("the edge has %d tokens, %v", len(tokens), err)
	}
	status, metrics, err := d.edged.Get(t.Context(), "/metrics")
	if err != nil || status != 200 {
		t.Errorf("/metrics: %d, %v", status, err)
	}
	h.check(t, "/metrics", []byte(metrics))
	h.check(t, "a connector's /metrics", d.metricsAt(t, d.berlin2, "127.0.0.1:9192"))
	for _, j := range joiners {
		h.check(t, "the log of "+j.Name(), []byte(j.Output()))
		d.checkJoinerState(t, &h, j)
	}
	d.edged.Kill() // what it holds back is written by then
	h.check(t, "the edge's log", []byte(d.edged.Output()))
	files := h.checkTree(t, d.edged.Dir, func(path string) []string {
		switch path {
		case filepath.Join(d.edged.Dir, "edge.key"):
			return []string{"the edge's private key"}
		case filepath.Join(state, "edge.db"):
			return slices.DeleteFunc(slices.Collect(maps.Keys(h.forms)), func(name string) bool { return !strings.HasPrefix(name, "the preshared key of ") })
		}
		return nil
	})
	t.Logf("%d secrets in %d files", len(h.forms), files)
	db, err := os.ReadFile(filepath.Join(state, "edge.db"))
	if err != nil {
		t.Fatal(err)
	}
	if found := h.in(db); len(found) == 0 {
		t.Error("edge.db holds no preshared key either: the search does not see what is there")
	}
}

// addKey adds a key in base64.
func (h *hunt) addKey(t *testing.T, name, key string) {
	t.Helper()
	k, err := wgtypes.ParseKey(key)
	if err != nil {
		t.Fatal(err)
	}
	h.add(name, k[:])
}

// addToken adds what must stay secret of a token.
func (h *hunt) addToken(t *testing.T, name, text string) {
	t.Helper()
	token, err := wire.ParseToken(text)
	if err != nil {
		t.Fatal(err)
	}
	h.addText("the token "+name, text)
	h.add("the secret of "+name, token.Secret[:])
	for i, key := range token.Bootstrap() {
		h.add(fmt.Sprintf("bootstrap key %d of %s", i, name), key[:])
	}
	psk := token.PresharedKey()
	h.add("the preshared key of "+name, psk[:])
}

// life is what goes on at an edge while a hunt learns what is secret of it.
type life struct {
	*deployment
	hunt    *hunt
	dir     string // with a config by which a connector says all that it can
	joiners []*daemon.Joiner
}

// token makes one.
func (l *life) token(t *testing.T, name string, reusable, ephemeral bool) string {
	t.Helper()
	ask := berlinToken()
	ask.Reusable, ask.Ephemeral = reusable, ephemeral
	made := l.edged.Token(t, ask)
	l.hunt.addToken(t, name, made.Text)
	return made.Text
}

// join starts a connector; args, where there are some, tell it the token.
func (l *life) join(t *testing.T, host *netns.Host, name, token string, args ...string) *daemon.Joiner {
	t.Helper()
	cfg := daemon.JoinerConfig{Name: name, Token: token, Args: append(args, "-c", filepath.Join(l.dir, "connector.toml"))}
	if len(args) > 0 {
		cfg.Token = ""
	}
	j := l.warren.NewJoiner(t, host, cfg)
	j.Start()
	l.joiners = append(l.joiners, j)
	return j
}

// liveThroughEverything is the life of an edge in a second. It returns the
// connectors that took part.
func (d *deployment) liveThroughEverything(t *testing.T, h *hunt) []*daemon.Joiner {
	t.Helper()
	l := &life{deployment: d, hunt: h, dir: netns.Directory(t, "life")}
	for name, text := range map[string]string{
		"connector.toml": "version = 1\n[metrics]\nlisten = \"127.0.0.1:9192\"\n[log]\nlevel = \"debug\"\n",
		"token":          l.token(t, "ephemeral", false, true) + "\n",
	} {
		if err := os.WriteFile(filepath.Join(l.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	netns.Give(t, l.dir)
	// One a host, for they all listen on the same port.
	single := l.token(t, "single", false, false)
	goes := l.join(t, l.berlin1, "goes", "", "--token", l.token(t, "reusable", true, false))
	goes.WaitReady()
	l.join(t, l.berlin2, "stays", single).WaitReady()
	l.join(t, l.tokyo1, "comes-and-goes", "", "--token-file", filepath.Join(l.dir, "token")).WaitReady()
	endsWith(t, l.join(t, l.client, "late", single), 3, 30*time.Second, "used on ")
	l.token(t, "unused", false, false)
	ended := l.token(t, "revoked", false, false)
	if token, err := wire.ParseToken(ended); err != nil {
		t.Fatal(err)
	} else if _, err := d.edged.Admin().RevokeToken(t.Context(), token.ID.String()); err != nil {
		t.Fatal(err)
	}
	endsWith(t, l.join(t, l.client, "too-late", ended), 3, 30*time.Second, "revoked on ")

	l.addStates(t, "before")
	before, _ := d.edged.Connector(t, "stays")
	if _, err := d.edged.Admin().RotateConnector(t.Context(), "stays"); err != nil {
		t.Fatal(err)
	}
	if err := pollFor(t, 20*time.Second, func() error {
		if c, _ := d.edged.Connector(t, "stays"); c.PublicKey == before.PublicKey || c.Rotation != "" {
			return fmt.Errorf("the key has not changed: %+v", c)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	l.addStates(t, "after")
	if _, err := d.edged.Admin().RevokeConnector(t.Context(), "goes"); err != nil {
		t.Fatal(err)
	}
	endsWith(t, goes, 3, 20*time.Second, "revoked on ")
	return l.joiners
}

// addStates adds the private keys of all connectors.
func (l *life) addStates(t *testing.T, when string) {
	t.Helper()
	for _, j := range l.joiners {
		key, err := os.ReadFile(filepath.Join(j.State, "connector.key"))
		if err != nil {
			t.Fatal(err)
		}
		l.hunt.addKey(t, "the private key of "+j.Name()+", "+when, strings.TrimSpace(string(key)))
	}
}

// metricsAt is what a daemon on a host says at /metrics.
func (d *deployment) metricsAt(t *testing.T, host *netns.Host, address string) []byte {
	t.Helper()
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: host.Dial}}
	response, err := client.Get("http://" + address + "/metrics")
	if err != nil {
		t.Error(err)
		return nil
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("asking %s for /metrics: %s, %v", address, response.Status, err)
	}
	return text
}

// checkJoinerState wants a connector's directory to hold its own key and no
// token, and nothing that others may read.
func (d *deployment) checkJoinerState(t *testing.T, h *hunt, j *daemon.Joiner) {
	t.Helper()
	h.checkTree(t, j.State, func(path string) []string {
		if filepath.Base(path) == "connector.key" {
			return slices.DeleteFunc(slices.Collect(maps.Keys(h.forms)), func(name string) bool { return !strings.HasPrefix(name, "the private key of ") })
		}
		return nil
	})
	err := filepath.WalkDir(j.State, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%q has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestStateEnrolsNoOne gives somebody a copy of all that an edge keeps, with
// and without the file of its key, while tokens are open: no 32 bytes of it,
// however they are written, are a key that the edge would let enrol.
func TestStateEnrolsNoOne(t *testing.T) {
	d, _, _ := deployEnrolment(t)
	ask := berlinToken()
	single := d.edged.Token(t, ask).Text
	ask.Reusable = true
	reusable := d.edged.Token(t, ask).Text
	d.warren.StartJoiner(t, d.berlin1, daemon.JoinerConfig{Name: "berlin-1", Token: reusable})
	enrols := map[wgtypes.Key]string{} // public keys that let enrol, and the way in of who is in
	var preshared wgtypes.Key
	for what, text := range map[string]string{"single": single, "reusable": reusable} {
		token, err := wire.ParseToken(text)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range token.Bootstrap() {
			enrols[key.PublicKey()] = "the bootstrap key of the token " + what
		}
		if what == "single" {
			preshared = token.PresharedKey()
		}
	}
	c, _ := d.edged.Connector(t, "berlin-1")
	key, err := wgtypes.ParseKey(c.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	enrols[key] = "the key of a connector"

	db, err := os.ReadFile(filepath.Join(d.edged.Dir, "state", "edge.db"))
	if err != nil {
		t.Fatal(err)
	}
	edgeKey, err := os.ReadFile(filepath.Join(d.edged.Dir, "edge.key"))
	if err != nil {
		t.Fatal(err)
	}
	known := 0
	for public := range enrols {
		text, _ := json.Marshal(wire.Key{Key: public})
		if bytes.Contains(db, bytes.Trim(text, `"`)) || bytes.Contains(db, public[:]) {
			known++
		}
	}
	if known != len(enrols) {
		t.Errorf("edge.db holds %d of the %d public keys: this is not the state of an edge with tokens", known, len(enrols))
	}
	searchForPrivateHalves(t, enrols, db, edgeKey)
	// The same search finds the key where it is.
	token, err := wire.ParseToken(single)
	if err != nil {
		t.Fatal(err)
	}
	planted := token.Bootstrap()[0]
	for how, text := range map[string]string{"raw": string(planted[:]), "base64": planted.String(), "hex": hex.EncodeToString(planted[:])} {
		if !keysIn([]byte("x" + text + "yz"))[planted] {
			t.Errorf("the search does not find a key that is there as %s", how)
		}
	}
	d.testCopyIsNotAnswered(t, enrols, preshared)
}

// searchForPrivateHalves fails the test where a state holds one.
func searchForPrivateHalves(t *testing.T, enrols map[wgtypes.Key]string, state ...[]byte) {
	t.Helper()
	candidates := keysIn(state...)
	for private := range candidates {
		if what, ok := enrols[publicOf(private)]; ok {
			t.Errorf("the edge's state holds the private half of %s", what)
		}
	}
	t.Logf("%d candidates for a private key in %d bytes of state", len(candidates), len(state[0]))
}

// testCopyIsNotAnswered shakes hands with what a thief of edge.db has: public
// keys and preshared keys. Not one packet comes back.
func (d *deployment) testCopyIsNotAnswered(t *testing.T, enrols map[wgtypes.Key]string, preshared wgtypes.Key) {
	d.edge.Filter("thief", `
		counter answers { }
		chain output {
			type filter hook output priority 0
			ip daddr 198.51.100.10 udp sport 51820 counter name answers
		}`)
	for public := range enrols {
		d.newGuest(t, d.client, public, preshared)
		d.newGuest(t, d.client, public, wgtypes.Key{})
	}
	thief := d.newGuest(t, d.client, preshared, preshared)
	waitFor(t, 3*time.Second)
	if packets, bytes := d.edge.Counter("thief", "answers"); packets != 0 {
		t.Errorf("the edge answered a thief of its state with %d packets, %d bytes", packets, bytes)
	}
	if _, err := thief.tunnel.DialOverlay(t.Context(), netip.AddrPortFrom(thief.edge, wire.EnrollPort)); err == nil {
		t.Error("a thief of the edge's state reached the enrolment port")
	}
	// The counter sees answers where there are some.
	made := d.edged.Token(t, berlinToken())
	conn, err := d.guestsOf(t, d.client, made.Text)[0].dial(t.Context(), wire.EnrollPort)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if packets, _ := d.edge.Counter("thief", "answers"); packets == 0 {
		t.Error("the counter did not see the answers to somebody with a token")
	}
}

// keysIn returns every 32 bytes of some texts that could be a private key:
// each window of them as it is, and what is written in base64 or hexadecimal.
func keysIn(texts ...[]byte) map[wgtypes.Key]bool {
	keys := map[wgtypes.Key]bool{}
	add := func(raw []byte) {
		for at := 0; at+wgtypes.KeyLen <= len(raw); at++ {
			window := raw[at : at+wgtypes.KeyLen]
			// A window of a page's zeros or of its text is no key: keys are
			// drawn at random, and have many different bytes.
			if different(window) < 18 || printable(window) {
				continue
			}
			keys[wgtypes.Key(window)] = true
		}
	}
	for _, text := range texts {
		add(text)
		for _, run := range inBase64.FindAll(text, -1) {
			run = []byte(strings.NewReplacer("-", "+", "_", "/").Replace(string(run)))
			for shift := range 4 {
				if len(run) <= shift {
					break
				}
				part := run[shift:]
				raw, _ := base64.RawStdEncoding.DecodeString(string(part[:len(part)/4*4]))
				add(raw)
				if len(part)%4 > 1 {
					raw, _ = base64.RawStdEncoding.DecodeString(string(part))
					add(raw)
				}
			}
		}
		for _, run := range inHex.FindAll(text, -1) {
			for shift := range 2 {
				raw := make([]byte, hex.DecodedLen(len(run)))
				n, _ := hex.Decode(raw, run[shift:])
				add(raw[:n])
			}
		}
	}
	return keys
}

var (
	inBase64 = regexp.MustCompile(`[A-Za-z0-9+/_-]{43,}`)
	inHex    = regexp.MustCompile(`[0-9a-fA-F]{64,}`)
)

func different(b []byte) (count int) {
	var seen [256]bool
	for _, c := range b {
		if !seen[c] {
			seen[c] = true
			count++
		}
	}
	return count
}

func printable(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool { return c < ' ' || c > '~' })
}

// publicOf is the public half of any 32 bytes: curve25519 clamps them as
// WireGuard does.
func publicOf(private wgtypes.Key) (public wgtypes.Key) {
	out, err := curve25519.X25519(private[:], curve25519.Basepoint)
	if err == nil {
		copy(public[:], out)
	}
	return public
}
