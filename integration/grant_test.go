package integration

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/integration/daemon"
)

// tellLimit is how soon what an operator changes at the edge takes effect: the
// issue's promise for grants and revocations.
const tellLimit = 2 * time.Second

// patience is what a pass line of so long becomes where the race detector
// makes everything ten times slower.
func patience(limit time.Duration) time.Duration {
	if daemon.Race {
		return 5 * limit
	}
	return limit
}

// endWithin wants sessions to have been told by then, and none of them to have
// been lied to.
func endWithin(t *testing.T, what string, sessions []*session, since time.Time, limit time.Duration) {
	t.Helper()
	var last time.Duration
	for _, s := range sessions {
		select {
		case <-s.ended:
			_, at, err := s.state()
			if errors.Is(err, errCorrupt) {
				t.Error(err)
			}
			last = max(last, at.Sub(since))
		case <-time.After(time.Until(since.Add(limit))):
			t.Fatalf("%s: session %d goes on after %v", what, s.seed, limit)
		}
	}
	t.Logf("%s: the last of %d sessions ended after %v", what, len(sessions), last.Round(time.Millisecond))
}

// goOn wants every session to move on from where it is.
func goOn(t *testing.T, what string, sessions []*session) {
	t.Helper()
	goOnWithin(t, what, sessions, 10*time.Second)
}

func goOnWithin(t *testing.T, what string, sessions []*session, limit time.Duration) {
	t.Helper()
	before := make([]int64, len(sessions))
	for i, s := range sessions {
		before[i], _, _ = s.state()
	}
	if err := pollFor(t, limit, func() error {
		for i, s := range sessions {
			if right, _, err := s.state(); err != nil {
				return fmt.Errorf("session %d ended: %w", s.seed, err)
			} else if right == before[i] {
				return fmt.Errorf("session %d stands still", s.seed)
			}
		}
		return nil
	}); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// TestRevoke cuts a connector off under its flows: they end, the connector
// hears of it and ends, and a restart of the edge changes nothing of it.
func TestRevoke(t *testing.T) {
	d, berlin, _ := deployEnrolment(t)
	token := d.edged.Token(t, berlinToken())
	j := d.warren.StartJoiner(t, d.berlin1, daemon.JoinerConfig{Name: "leaver", Token: token.Text})
	sessions := openSessions(t, d.client, at(9001).String(), 20)
	neighbours := openSessions(t, d.client, at(9002).String(), 5)

	revoked := time.Now()
	result, err := d.edged.Admin().RevokeConnector(t.Context(), "leaver")
	if err != nil {
		t.Fatal(err)
	}
	if result.Aborted != len(sessions) {
		t.Errorf("the edge says that it cut %d flows, want %d", result.Aborted, len(sessions))
	}
	endWithin(t, "revoked", sessions, revoked, patience(tellLimit))
	endsWith(t, j, 3, 15*time.Second, "revoked on ")
	t.Logf("the connector ended %v after the revocation", time.Since(revoked).Round(time.Millisecond))
	goOn(t, "a connector that was not revoked", neighbours)
	if err := pollFor(t, 5*time.Second, func() error {
		if live, corrupt := berlin.seen(); live > 0 || len(corrupt) > 0 {
			return fmt.Errorf("%d sessions are open at the origin; %v", live, corrupt)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}

	refused := func(when string) {
		t.Helper()
		if err := request(t.Context(), d.client, at(9001).String(), 1); err == nil {
			t.Errorf("%s: a request went through", when)
		}
		j.Start() // with its token, which is spent
		endsWith(t, j, 3, 30*time.Second, "revoked on ")
		if c, known := d.edged.Connector(t, "leaver"); known && c.State != client.ConnectorRevoked {
			t.Errorf("%s: the edge's connector is %q", when, c.State)
		}
	}
	refused("after the revocation")
	d.edged.Kill()
	d.edged.Start()
	d.edged.WaitReady()
	refused("after a restart of the edge")

	// Its machine may come in again as another: a new state, a new token.
	again := d.edged.Token(t, berlinToken())
	d.warren.StartJoiner(t, d.berlin1, daemon.JoinerConfig{Name: "leaver", Token: again.Text})
	d.waitUp(t, "tokyo", 1, 10*time.Second)
	if err := pollFor(t, 10*time.Second, func() error { return request(t.Context(), d.client, at(9001).String(), 1) }); err != nil {
		t.Errorf("after it came in again: %v", err)
	}
}

// TestRevokeDeclared cuts off a connector that the edge's config declares.
func TestRevokeDeclared(t *testing.T) {
	d, _, _ := deployEnrolment(t)
	sessions := openSessions(t, d.client, at(9002).String(), 5)
	revoked := time.Now()
	if _, err := d.edged.Admin().RevokeConnector(t.Context(), "tokyo-1"); err != nil {
		t.Fatal(err)
	}
	endWithin(t, "revoked", sessions, revoked, patience(tellLimit))
	for _, when := range []string{"at once", "after a reload", "after a restart"} {
		switch when {
		case "after a reload":
			if _, err := d.edged.Admin().Reload(t.Context()); err != nil {
				t.Fatal(err)
			}
			d.tokyo1d.Start()
		case "after a restart":
			d.edged.Kill()
			d.edged.Start()
			d.edged.WaitReady()
			d.tokyo1d.Start()
		}
		select {
		case <-d.tokyo1d.Done():
			if code := d.tokyo1d.ExitCode(); code != 3 || !strings.Contains(d.tokyo1d.Output(), "revoked on ") {
				t.Errorf("%s: the connector ended with exit code %d; it printed:\n%s", when, code, d.tokyo1d.Output())
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%s: the connector goes on; it printed:\n%s", when, d.tokyo1d.Output())
		}
		if err := request(t.Context(), d.client, at(9002).String(), 1); err == nil {
			t.Errorf("%s: a request went through", when)
		}
	}
}

// TestRoutesChange narrows and widens what connectors serve, of one that came
// by a token by a command, of a declared one by a reload: flows to what they
// still serve go on, the others end.
func TestRoutesChange(t *testing.T) {
	d, _, _ := deployEnrolment(t)
	token := d.edged.Token(t, berlinToken())
	d.warren.StartJoiner(t, d.berlin1, daemon.JoinerConfig{Name: "berlin-1", Token: token.Text})
	kept := openSessions(t, d.client, at(9001).String(), 5)  // to 10.0.0.10
	lost := openSessions(t, d.client, at(9011).String(), 5)  // to 10.0.0.11
	other := openSessions(t, d.client, at(9002).String(), 5) // of the declared connector

	narrowed := time.Now()
	result, err := d.edged.Admin().GrantConnector(t.Context(), "berlin-1", client.GrantRequest{Routes: []string{"10.0.0.10/32"}})
	if err != nil {
		t.Fatal(err)
	}
	if result.Aborted != len(lost) {
		t.Errorf("the edge says that it cut %d flows, want %d", result.Aborted, len(lost))
	}
	endWithin(t, "no longer covered", lost, narrowed, patience(tellLimit))
	goOn(t, "still covered", kept)
	goOn(t, "of another connector", other)
	if err := request(t.Context(), d.client, at(9011).String(), 1); err == nil {
		t.Error("a request went to a route that was taken away")
	}
	d.edged.Kill()
	d.edged.Start()
	d.edged.WaitReady()
	if err := pollFor(t, 10*time.Second, func() error { return request(t.Context(), d.client, at(9001).String(), 1) }); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if err := request(t.Context(), d.client, at(9011).String(), 1); err == nil {
		t.Error("after a restart a request went to a route that was taken away")
	}
	if _, err := d.edged.Admin().GrantConnector(t.Context(), "berlin-1", client.GrantRequest{Routes: []string{"10.0.0.0/24"}}); err != nil {
		t.Fatal(err)
	}
	if err := pollFor(t, patience(tellLimit), func() error { return request(t.Context(), d.client, at(9011).String(), 1) }); err != nil {
		t.Errorf("after the route was given back: %v", err)
	}
	d.testRoutesOfDeclared(t)
}

// testRoutesOfDeclared changes what the declared connector serves.
func (d *deployment) testRoutesOfDeclared(t *testing.T) {
	tables := fmt.Sprintf(enrolApps, d.tokyo1Key.Public)
	// An app may lead where no declared route does: one could enrol.
	tables = strings.Replace(tables, "name = \"tokyo\"\n", "name = \"tokyo\"\nenroll = true\n", 1)
	reload := func(routes string) time.Time {
		t.Helper()
		changed := time.Now()
		d.edged.Write(strings.Replace(tables, `routes = ["10.0.0.0/24"]`, "routes = ["+routes+"]", 1))
		if _, err := d.edged.Admin().Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		return changed
	}
	d.waitUp(t, "tokyo", 1, 10*time.Second)
	reload(`"10.0.0.0/24"`)
	kept := openSessions(t, d.client, at(9002).String(), 5)
	lost := openSessions(t, d.client, at(9012).String(), 5)
	changed := reload(`"10.0.0.0/29", "10.0.0.10/32"`)
	endWithin(t, "no longer declared", lost, changed, patience(tellLimit))
	goOn(t, "still declared", kept)
	if err := request(t.Context(), d.client, at(9012).String(), 1); err == nil {
		t.Error("a request went to a route that is declared no more")
	}
	changed = reload(`"10.0.0.0/24"`)
	if err := pollFor(t, patience(tellLimit), func() error { return request(t.Context(), d.client, at(9012).String(), 1) }); err != nil {
		t.Errorf("%v after the route was declared again: %v", time.Since(changed), err)
	}
	goOn(t, "declared all the time", kept)
}

// TestDrainConnector lets a connector go without cutting anything.
func TestDrainConnector(t *testing.T) {
	d, _, _ := deployEnrolment(t)
	ask := berlinToken()
	ask.Reusable = true
	token := d.edged.Token(t, ask)
	leaver := d.warren.StartJoiner(t, d.berlin1, daemon.JoinerConfig{Name: "leaver", Token: token.Text})
	sessions := openSessions(t, d.client, at(9001).String(), 4)
	d.warren.StartJoiner(t, d.berlin2, daemon.JoinerConfig{Name: "stayer", Token: token.Text})
	d.waitUp(t, "berlin", 2, 10*time.Second)
	flows := func(name string) int {
		c, _ := d.edged.Connector(t, name)
		return c.Flows
	}
	drain := func(off bool) {
		t.Helper()
		if _, err := d.edged.Admin().DrainConnector(t.Context(), "leaver", client.DrainRequest{Off: off}); err != nil {
			t.Fatal(err)
		}
	}
	drain(false)
	more := openSessions(t, d.client, at(9001).String(), 10)
	if before, after := flows("leaver"), flows("stayer"); before != len(sessions) || after != len(more) {
		t.Errorf("the drained connector carries %d flows, want %d; the other %d, want %d", before, len(sessions), after, len(more))
	}
	goOn(t, "through a connector that drains", sessions)
	if _, err := d.edged.Admin().Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c, _ := d.edged.Connector(t, "leaver"); !c.Held {
		t.Errorf("after a reload the connector is %+v", c)
	}

	drain(true)
	for _, s := range openSessions(t, d.client, at(9001).String(), 10) {
		defer s.close()
	}
	if flows("leaver") <= len(sessions) {
		t.Errorf("the drain was taken back, and the connector carries %d flows", flows("leaver"))
	}

	drain(false)
	select {
	case <-leaver.Done():
		t.Fatalf("the connector ended with flows open; it printed:\n%s", leaver.Output())
	case <-time.After(time.Second):
	}
	d.closeFlowsOf(t, "leaver")
	endsWith(t, leaver, 0, 30*time.Second, "drain")
	goOn(t, "through the connector that stays", more)
}

// closeFlowsOf ends every flow that a connector carries, as an operator may.
func (d *deployment) closeFlowsOf(t *testing.T, name string) {
	t.Helper()
	open, err := d.edged.Admin().Flows(t.Context(), client.FlowQuery{Connector: name})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range open.Flows {
		if err := d.edged.Admin().KillFlow(t.Context(), f.ID); err != nil {
			t.Error(err)
		}
	}
}
