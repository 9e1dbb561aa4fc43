package integration

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/integration/daemon"
)

// clockLimit is how long a connector may need, whatever its clock does, until
// it serves or says clearly why not.
const clockLimit = 60 * time.Second

// WireGuard takes a handshake from a key only with a later timestamp than the
// last, so a clock that went back locks its owner out (research/tunnel.md 12).
// clockStories are what clocks do. Each has a connector, a route and an app of its
// own, so all go on at once.
var clockStories = []struct {
	name string
	// steps are the clocks of one connector after the other, or of one that
	// runs where the name says so.
	steps   []time.Duration
	running bool
	long    bool // for the full size alone
}{
	{"right", []time.Duration{0, 0}, false, false},
	{"an hour behind at its enrolment", []time.Duration{-time.Hour, -time.Hour}, false, false},
	{"an hour ahead at its enrolment", []time.Duration{time.Hour, time.Hour}, false, false},
	{"right, then an hour behind, then right", []time.Duration{0, -time.Hour, 0}, false, false},
	{"right, then an hour ahead, then right", []time.Duration{0, time.Hour, 0}, false, false},
	{"stepped back an hour while it runs", []time.Duration{0, -time.Hour}, true, false},
	{"stepped on an hour while it runs", []time.Duration{0, time.Hour}, true, false},
	{"stepped on, and back again", []time.Duration{0, time.Hour, 0}, true, true},
}

// clockTables are a network and an app for each story: network and port by its
// number.
func clockTables() string {
	var b strings.Builder
	for i := range clockStories {
		fmt.Fprintf(&b, "[[network]]\nname = \"clock-%d\"\n[[app]]\nname = \"clock-%d\"\nlisten = [\"tcp/%d\"]\norigin = \"clock-%d/10.0.0.10:9001\"\n", i, i, 9100+i, i)
	}
	return b.String()
}

// TestClocks enrols and runs connectors whose clocks are an hour off, or go an
// hour forth or back between two runs or in the middle of one.
func TestClocks(t *testing.T) {
	t.Parallel() // it waits more than it works
	d, _, _ := deployEnrolmentWith(t, daemon.Find(t), daemon.EdgeConfig{Tables: clockTables()})
	moved := d.warren.WithClock(t, "..")
	var wg sync.WaitGroup
	defer wg.Wait()
	for i, story := range clockStories {
		if story.long && !full() {
			continue
		}
		clock := daemon.NewClock(t, story.steps[0])
		token := d.edged.Token(t, client.TokenRequest{Network: fmt.Sprintf("clock-%d", i), Routes: []string{"10.0.0.0/24"}})
		j := moved.NewJoiner(t, d.berlin1, daemon.JoinerConfig{Name: fmt.Sprintf("clock-%d", i), Token: token.Text, Env: clock.Env()})
		wg.Go(func() {
			for n, step := range story.steps {
				clock.Set(step)
				started := time.Now()
				switch {
				case n == 0:
					j.Start()
				case story.running:
					if err := d.interrupt(t, i); err != nil {
						t.Errorf("%s: %v", story.name, err)
						return
					}
				default:
					j.Kill()
					j.StartWithoutToken()
				}
				err := pollFor(t, clockLimit, func() error { return request(t.Context(), d.client, at(uint16(9100+i)).String(), 1) })
				if err != nil {
					t.Errorf("%s: step %d: %v; it printed:\n%s", story.name, n, err, j.Output())
					return
				}
				t.Logf("%s: step %d: served after %v", story.name, n, time.Since(started).Round(time.Millisecond))
			}
		})
	}
	d.testClocksOnOneToken(t, moved)
}

// interrupt makes the connector of a story shake hands anew, which is due two
// minutes after the last time: it drops its packets until it finds the edge
// dead.
func (d *deployment) interrupt(t *testing.T, story int) error {
	name := fmt.Sprintf("clock-%d", story)
	c, _ := d.edged.Connector(t, name)
	place, err := netip.ParseAddrPort(c.Endpoint)
	if err != nil {
		return fmt.Errorf("finding where connector %q sends from: %w", name, err)
	}
	before := c.Handshake
	d.berlin1.Filter(name, fmt.Sprintf(`chain output {
		type filter hook output priority 0
		udp sport %[1]d drop
	}
	chain input {
		type filter hook input priority 0
		udp dport %[1]d drop
	}`, place.Port()))
	err = pollFor(t, 20*time.Second, func() error {
		c, _ := d.edged.Connector(t, name)
		if c.State != client.ConnectorDown || time.Since(c.Since) < time.Second {
			return fmt.Errorf("connector %q is %q without its line", name, c.State)
		}
		return nil
	})
	d.berlin1.Filter(name, "")
	if err != nil {
		return err
	}
	return pollFor(t, clockLimit, func() error {
		if c, _ := d.edged.Connector(t, name); !c.Handshake.After(before) {
			return fmt.Errorf("connector %q has not shaken hands since %v", name, before)
		}
		return nil
	})
}

// testClocksOnOneToken lets joiners whose clocks are two hours apart share the
// keys of one token, at once and one after the other.
func (d *deployment) testClocksOnOneToken(t *testing.T, moved daemon.Warren) {
	ask := berlinToken()
	ask.Reusable = true
	token := d.edged.Token(t, ask).Text
	ahead, behind := daemon.NewClock(t, time.Hour), daemon.NewClock(t, -time.Hour)
	start := func(clock *daemon.Clock) *daemon.Joiner {
		j := moved.NewJoiner(t, d.berlin2, daemon.JoinerConfig{Token: token, Env: clock.Env()})
		j.Start()
		return j
	}
	started := time.Now()
	var joiners []*daemon.Joiner
	for range 4 {
		joiners = append(joiners, start(ahead), start(behind))
	}
	for _, late := range []bool{false, true} {
		if late { // than all that were ahead
			joiners = append(joiners, start(behind), start(behind))
		}
		if err := pollFor(t, clockLimit, func() error {
			states, err := d.states(t.Context(), "berlin")
			if err == nil && states[client.ConnectorUp] != len(joiners) {
				err = fmt.Errorf("%d joiners, and the connectors are %v", len(joiners), states)
			}
			return err
		}); err != nil {
			t.Errorf("on one token: %v", err)
			for _, j := range joiners {
				t.Logf("%s", j.Output())
			}
			return
		}
		t.Logf("on one token: %d joiners in after %v", len(joiners), time.Since(started).Round(time.Millisecond))
	}
}

// TestClockStepsUnderSessions steps the clock of a connector back under open
// sessions and waits until WireGuard has changed its keys by itself, every two
// minutes: the sessions go on.
func TestClockStepsUnderSessions(t *testing.T) {
	if !full() {
		t.Skip("takes four minutes: set " + envFull + "=1")
	}
	t.Parallel()
	clock := daemon.NewClock(t, 0)
	d, _, _ := deployEnrolment(t)
	j := d.warren.WithClock(t, "..").NewJoiner(t, d.berlin1, daemon.JoinerConfig{Token: d.edged.Token(t, berlinToken()).Text, Env: clock.Env()})
	j.Start()
	j.WaitReady()
	sessions := openSessions(t, d.client, at(9001).String(), 5)
	clock.Set(-time.Hour)
	for range 4 {
		waitFor(t, time.Minute)
		started := time.Now()
		goOnWithin(t, "with a clock that went back", sessions, clockLimit)
		t.Logf("the sessions moved after %v", time.Since(started).Round(time.Millisecond))
	}
}
