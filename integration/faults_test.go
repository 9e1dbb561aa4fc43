package integration

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/warrenmesh/warren/integration/daemon"
)

// faultApps lead to a checkedEcho in each data centre.
const faultApps = `
[[app]]
name = "berlin-echo"
hostnames = ["berlin.example.com"]
listen = ["tcp/9001"]
origin = "berlin/10.0.0.10:9001"
[[app]]
name = "tokyo-echo"
hostnames = ["tokyo.example.com"]
listen = ["tcp/9002"]
origin = "tokyo/10.0.0.10:9002"
`

// deployEchoes is a deployment with a checkedEcho behind each app.
func deployEchoes(t *testing.T) (d *deployment, berlin, tokyo *checkedEcho) {
	t.Helper()
	d = deploy(t, faultApps)
	berlin, tokyo = new(checkedEcho), new(checkedEcho)
	listen(t, d.berlin, "10.0.0.10:9001", berlin.serve)
	listen(t, d.tokyo, "10.0.0.10:9002", tokyo.serve)
	d.waitConnectors(t, 3, 10*time.Second)
	return d, berlin, tokyo
}

// The pass lines of an edge that dies: what the issue promises.
const (
	clientsToldLimit    = 5 * time.Second
	connectorsBackLimit = 5 * time.Second
)

// TestEdgeKilledAndRestarted kills the edge under 200 long sessions: every
// client is told, no byte is corrupted at either end, the private side lets go
// of the sessions, and a new edge has its connectors back.
func TestEdgeKilledAndRestarted(t *testing.T) {
	d, berlin, tokyo := deployEchoes(t)
	sessions := openSessions(t, d.client, at(9001).String(), 100)
	sessions = append(sessions, openSessions(t, d.client, at(9002).String(), 100)...)

	killed := time.Now()
	d.edged.Kill()
	var told time.Duration
	for _, s := range sessions {
		select {
		case <-s.ended:
			_, at, err := s.state()
			if errors.Is(err, errCorrupt) {
				t.Error(err)
			}
			told = max(told, at.Sub(killed))
		case <-time.After(time.Until(killed.Add(clientsToldLimit))):
			t.Fatalf("session %d has not been told after %v", s.seed, clientsToldLimit)
		}
	}
	t.Logf("the last of %d clients was told after %v", len(sessions), told)

	started := time.Now()
	d.edged.Start()
	if err := pollFor(t, connectorsBackLimit, func() error {
		return errors.Join(
			request(t.Context(), d.client, at(9001).String(), 1),
			request(t.Context(), d.client, at(9002).String(), 2))
	}); err != nil {
		t.Errorf("no new session %v after the start: %v", connectorsBackLimit, err)
	}
	t.Logf("new sessions to both networks %v after the start", time.Since(started))
	d.waitConnectors(t, 3, connectorsBackLimit-time.Since(started))
	t.Logf("all connectors back %v after the start", time.Since(started))

	if err := pollFor(t, 10*time.Second, func() error {
		atBerlin, _ := berlin.seen()
		atTokyo, _ := tokyo.seen()
		if atBerlin+atTokyo > 0 {
			return fmt.Errorf("%d old sessions are still open at the origins", atBerlin+atTokyo)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	t.Logf("the origins let go of all sessions within %v of the kill", time.Since(killed))
	for _, echo := range []*checkedEcho{berlin, tokyo} {
		if _, corrupt := echo.seen(); len(corrupt) > 0 {
			t.Errorf("at an origin: %v", corrupt)
		}
	}
}

// deadLimit is when a dead connector is no longer chosen.
const deadLimit = 3 * time.Second

// TestReplicaLost takes one of two connectors away under a steady load of new
// connections: three seconds later every one succeeds, and of those in
// between at most one in a hundred fails.
func TestReplicaLost(t *testing.T) {
	for _, test := range []struct {
		name string
		lose func(*deployment)
	}{
		{"killed", func(d *deployment) { d.berlin1d.Kill() }},
		{"path blackholed", func(d *deployment) {
			d.internet.Filter("lost", `chain forward {
				type filter hook forward priority 0
				ip daddr 192.0.2.2 drop
				ip saddr 192.0.2.2 drop
			}`)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			d, berlin, _ := deployEchoes(t)
			rate := 1000
			if daemon.Race {
				rate = 30
			}
			stop := load(t, d.client, at(9001).String(), rate)
			waitFor(t, 2*time.Second)
			lost := time.Now()
			test.lose(d)
			waitFor(t, 6*time.Second)
			judgeLoss(t, stop(), lost)
			if _, corrupt := berlin.seen(); len(corrupt) > 0 {
				t.Error(corrupt)
			}
		})
	}
}

// judgeLoss splits the outcomes of a load at the moment of the loss.
func judgeLoss(t *testing.T, outcomes []outcome, lost time.Time) {
	t.Helper()
	var before, within, after, failedWithin int
	var slowest time.Duration
	reasons := map[string]int{}
	for _, o := range outcomes {
		switch since := o.start.Sub(lost); {
		case since < 0 && o.start.Add(o.took).Before(lost):
			before++
			if o.err != nil {
				t.Errorf("a request failed before anything was lost: %v", o.err)
			}
		case since < deadLimit:
			within++
			slowest = max(slowest, o.took)
			if o.err != nil {
				failedWithin++
				reasons[reason(o.err)]++
			}
		default:
			after++
			if o.err != nil {
				t.Errorf("a request %v after the loss failed: %v", since, o.err)
			}
		}
	}
	t.Logf("%d requests before the loss; %d within %v of it, of which %d failed and the slowest took %v; %d after",
		before, within, deadLimit, failedWithin, slowest, after)
	if before == 0 || within == 0 || after == 0 {
		t.Error("the load did not span the loss")
	}
	if failedWithin*100 > within {
		t.Errorf("%d of %d requests failed, more than 1 %%: %v", failedWithin, within, reasons)
	}
}

// reason is an error without the addresses in it, which all differ.
func reason(err error) string {
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		return op.Op + ": " + op.Err.Error()
	}
	return err.Error()
}

// waitFor lets a load run. It is the duration of the experiment, not a guess
// at when something is ready.
func waitFor(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
		t.Fatal("the test was ended")
	}
}

// TestCablePulled takes the only connector of a network off the line and puts
// it back: the sessions that were open go on where they were.
func TestCablePulled(t *testing.T) {
	down := 10 * time.Second
	if testing.Short() {
		down = 4 * time.Second
	}
	d, _, tokyo := deployEchoes(t)
	sessions := openSessions(t, d.client, at(9002).String(), 20)
	d.tokyo1Cable.Down()
	waitFor(t, down)
	before := make([]int64, len(sessions))
	for i, s := range sessions {
		before[i], _, _ = s.state()
	}
	d.tokyo1Cable.Up()
	up := time.Now()
	err := pollFor(t, 20*time.Second, func() error {
		for i, s := range sessions {
			right, _, err := s.state()
			if err != nil {
				return fmt.Errorf("session %d ended: %w", s.seed, err)
			}
			if right == before[i] {
				return fmt.Errorf("session %d stands still", s.seed)
			}
		}
		return nil
	})
	t.Logf("after %v without a line all %d sessions went on %v after it came back", down, len(sessions), time.Since(up))
	if err != nil {
		t.Error(err)
	}
	if err := pollFor(t, 5*time.Second, func() error { return request(t.Context(), d.client, at(9002).String(), 9) }); err != nil {
		t.Errorf("a new session after the line came back: %v", err)
	}
	if _, corrupt := tokyo.seen(); len(corrupt) > 0 {
		t.Error(corrupt)
	}
}
