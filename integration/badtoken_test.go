package integration

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/netns"
)

// TestTokensThatCannotBeRead ends a connector at once, with one sentence.
func TestTokensThatCannotBeRead(t *testing.T) {
	w := daemon.Find(t)
	edge, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	text, err := wire.NewToken(false, []wire.Edge{{PublicKey: wire.Key{Key: edge.PublicKey()}, URLs: []string{"203.0.113.10:51820"}}}).Text()
	if err != nil {
		t.Fatal(err)
	}
	typo := []byte(text)
	if typo[20]++; typo[20] > 'y' {
		typo[20] = 'b'
	}
	lab := netns.New(t)
	host := lab.Host("alone")
	for _, test := range []struct{ name, token, want string }{
		{"cut short", text[:len(text)-9], "cut short"},
		{"a typo", string(typo), "typo"},
		{"of a later release", strings.Replace(text, "wrn1_", "wrn2_", 1), "later release"},
		{"something else", "ghp_0123456789abcdefghijklmnopqrstuvwxyz", "not a token"},
	} {
		t.Run(test.name, func(t *testing.T) {
			j := w.NewJoiner(t, host, daemon.JoinerConfig{Token: test.token})
			j.Start()
			code, err := j.WaitEnd(20 * time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if code == 0 || !strings.Contains(j.Output(), test.want) {
				t.Errorf("exit code %d; it printed:\n%s", code, j.Output())
			}
			if strings.Contains(j.Output(), test.token[12:40]) {
				t.Errorf("it printed the token:\n%s", j.Output())
			}
			if _, err := os.Stat(filepath.Join(j.State, "connector.key")); err == nil {
				t.Error("it made a key for a token that is none")
			}
		})
	}
}

// TestTokensThatAreRefused uses tokens that were good once, or are elsewhere,
// or are good, but a firewall is before the edge.
func TestTokensThatAreRefused(t *testing.T) {
	t.Parallel() // it waits more than it works
	clock := daemon.NewClock(t, 0)
	d, _, _ := deployEnrolmentWith(t, daemon.Find(t).WithClock(t, ".."), daemon.EdgeConfig{Env: clock.Env()})
	// What nobody answers takes its time to say so.
	walledIn := d.startWalledIn(t)
	elsewhere := d.warren.NewJoiner(t, d.berlin2, daemon.JoinerConfig{Name: "elsewhere", Token: d.tokenOfAnotherEdge(t)})
	elsewhere.Start()

	ask := berlinToken()
	ask.TTLMillis = time.Minute.Milliseconds()
	expired, revoked := d.edged.Token(t, ask), d.edged.Token(t, berlinToken())
	if _, err := d.edged.Admin().RevokeToken(t.Context(), revoked.Token.ID); err != nil {
		t.Fatal(err)
	}
	clock.Set(2 * time.Minute)
	for _, test := range []struct{ name, token, want string }{
		{"expired", expired.Text, "expired on "},
		{"revoked", revoked.Text, "revoked on "},
	} {
		j := d.warren.NewJoiner(t, d.berlin2, daemon.JoinerConfig{Name: test.name, Token: test.token})
		j.Start()
		endsWith(t, j, 3, 30*time.Second, test.want)
	}

	// What was sent where, that nothing came back, and how to test it.
	const silence = "no answer from 203.0.113.10:51820"
	says(t, walledIn, silence, "handshake initiations", "nothing came back", "UDP is blocked", "Test at the edge", "tcpdump")
	says(t, elsewhere, silence, "nothing came back", "has another key than the token's")
	for _, j := range []*daemon.Joiner{walledIn, elsewhere} {
		select {
		case <-j.Done():
			t.Errorf("it ended with exit code %d, though another try may succeed; it printed:\n%s", j.ExitCode(), j.Output())
		default:
		}
	}
	d.internet.Filter("firewall", "")
	lifted := time.Now()
	walledIn.WaitReady()
	t.Logf("ready %v after the firewall let it", time.Since(lifted).Round(time.Millisecond))

	d.testForgottenTokens(t, clock, expired.Text, revoked.Text)
}

// testForgottenTokens wants a token that can still be told why it is good for
// nothing to be good for not one packet a week later.
func (d *deployment) testForgottenTokens(t *testing.T, clock *daemon.Clock, expired, revoked string) {
	d.edge.Filter("ended", `
		counter answers { }
		chain output {
			type filter hook output priority 0
			ip daddr 198.51.100.10 udp sport 51820 counter name answers
		}`)
	if conn, err := d.guestsOf(t, d.client, revoked)[0].dial(t.Context(), wire.EnrollPort); err != nil {
		t.Errorf("before a week is over: %v", err)
	} else {
		conn.Close()
	}
	clock.Set(8 * 24 * time.Hour)
	waitFor(t, 2*time.Second) // the registry looks each second what is due
	before, _ := d.edge.Counter("ended", "answers")
	if before == 0 {
		t.Error("the counter saw no answer to a token that was revoked a moment ago")
	}
	d.guestsOf(t, d.client, expired)
	d.guestsOf(t, d.client, revoked)
	waitFor(t, 2*time.Second)
	if after, _ := d.edge.Counter("ended", "answers"); after != before {
		t.Errorf("the edge answered a token that ended a week ago with %d packets", after-before)
	}
}

// startWalledIn starts a joiner with a good token behind a firewall.
func (d *deployment) startWalledIn(t *testing.T) *daemon.Joiner {
	t.Helper()
	d.internet.Filter("firewall", `chain forward {
		type filter hook forward priority 0
		ip saddr 192.0.2.2 udp dport 51820 drop
	}`)
	j := d.warren.NewJoiner(t, d.berlin1, daemon.JoinerConfig{Name: "walled-in", Token: d.edged.Token(t, berlinToken()).Text})
	j.Start()
	return j
}

// tokenOfAnotherEdge leads to this edge's address, where another key lives.
func (d *deployment) tokenOfAnotherEdge(t *testing.T) string {
	t.Helper()
	token, err := wire.ParseToken(d.edged.Token(t, berlinToken()).Text)
	if err != nil {
		t.Fatal(err)
	}
	other, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	token.Edges[0].PublicKey = wire.Key{Key: other.PublicKey()}
	text, err := token.Text()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// says waits until a connector has printed each text.
func says(t *testing.T, j *daemon.Joiner, texts ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for _, text := range texts {
		if err := j.WaitOutput(ctx, text); err != nil {
			t.Errorf("%v; it printed:\n%s", err, j.Output())
		}
	}
}

// TestStateDirectoriesThatCannotBe ends a connector before it uses its token.
func TestStateDirectoriesThatCannotBe(t *testing.T) {
	d, _, _ := deployEnrolment(t)
	token := d.edged.Token(t, berlinToken()).Text
	open := filepath.Join(netns.Directory(t, "open"), "state")
	if err := os.Mkdir(open, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o755); err != nil {
		t.Fatal(err)
	}
	netns.Give(t, open)
	closed := filepath.Join(netns.Directory(t, "closed"), "state")
	if err := os.Chmod(filepath.Dir(closed), 0o555); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, dir, want string }{
		{"open to others", open, "chmod 700"},
		{"not writable", closed, "permission denied"},
	} {
		j := d.warren.NewJoiner(t, d.berlin1, daemon.JoinerConfig{Token: token, State: test.dir})
		j.Start()
		endsWith(t, j, 1, 20*time.Second, test.want, test.dir)
	}
	// Neither used the token up.
	d.warren.StartJoiner(t, d.berlin1, daemon.JoinerConfig{Token: token})
}
