package integration

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/netns"
)

// TestConnectorIsShown reads what an operator sees of a connector that works,
// and of one whose origins do not.
func TestConnectorIsShown(t *testing.T) {
	d, _, _ := deployEnrolment(t)
	token := d.edged.Token(t, berlinToken())
	d.warren.StartJoiner(t, d.berlin1, daemon.JoinerConfig{Name: "berlin-1", Token: token.Text})
	openSessions(t, d.client, at(9001).String(), 3)
	if err := request(t.Context(), d.client, at(9021).String(), 1); err == nil {
		t.Error("somebody answered at an origin where nobody listens")
	}
	var c client.Connector
	// The connector tells of its origins soon, not at once.
	if err := pollFor(t, 40*time.Second, func() error {
		out, err := d.edged.Ask(t.Context(), "connector", "list", "--json")
		if err != nil {
			return err
		}
		var all []client.Connector
		if err := json.Unmarshal([]byte(out), &all); err != nil {
			return err
		}
		for _, c = range all {
			if c.Name == "berlin-1" && c.Report != nil && len(c.Report.Errors) > 0 && c.PathMTU > 0 && c.RxBytes > 1000 {
				return nil
			}
		}
		return fmt.Errorf("the connectors are %s", out)
	}); err != nil {
		t.Fatal(err)
	}
	for what, right := range map[string]bool{
		"state":        c.State == client.ConnectorUp && c.Origin == client.OriginToken && c.Network == "berlin",
		"routes":       fmt.Sprint(c.Routes) == "[10.0.0.0/24]",
		"token":        c.TokenID == token.Token.ID,
		"rtt":          c.RTTMillis > 0 && c.RTTMillis < 5000,
		"path mtu":     c.PathMTU == 1400,
		"handshake":    c.HandshakeAge > 0 && time.Since(c.Handshake) < time.Minute,
		"bytes":        c.RxBytes > 1000 && c.TxBytes > 1000,
		"flows":        c.Flows == 3,
		"since":        time.Since(c.Since) < time.Minute && time.Since(c.KeySince) < time.Minute,
		"version":      c.Report.Version != "",
		"hostname":     c.Report.Hostname != "",
		"clock":        c.Report.ClockOffsetMillis > -2000 && c.Report.ClockOffsetMillis < 2000,
		"load":         c.Report.Load.CPUs > 0 && c.Report.Load.Memory > 0,
		"origin error": c.Report.Errors[0].Destination == "tcp/10.0.0.10:9021" && c.Report.Errors[0].Result == "refused",
	} {
		if !right {
			t.Errorf("%s is wrong in %+v, report %+v", what, c, c.Report)
		}
	}
	for _, args := range [][]string{{"connector", "list"}, {"connector", "show", "berlin-1"}, {"token", "list", "--all"}} {
		out, err := d.edged.Ask(t.Context(), args...)
		if err != nil || !strings.Contains(out, "berlin-1") {
			t.Errorf("%q prints %q, %v", args, out, err)
		}
	}
}

// TestKeyOfAge lets a key grow old: the edge asks for another by itself, and
// flows go on.
func TestKeyOfAge(t *testing.T) {
	t.Parallel() // it waits more than it works
	clock := daemon.NewClock(t, 0)
	d, _, _ := deployEnrolmentWith(t, daemon.Find(t).WithClock(t, ".."), daemon.EdgeConfig{Env: clock.Env(), Tables: "[enrollment]\nkey_max_age = \"1h\"\n"})
	d.warren.StartJoiner(t, d.berlin1, daemon.JoinerConfig{Name: "berlin-1", Token: d.edged.Token(t, berlinToken()).Text})
	sessions := openSessions(t, d.client, at(9001).String(), 5)
	before, _ := d.edged.Connector(t, "berlin-1")
	waitFor(t, 1500*time.Millisecond) // the registry looks each second who is of age
	if now, _ := d.edged.Connector(t, "berlin-1"); now.PublicKey != before.PublicKey || now.Rotation != "" {
		t.Errorf("a young key changes: %+v", now)
	}
	clock.Pass(2 * time.Hour)
	if err := pollFor(t, 20*time.Second, func() error {
		if now, _ := d.edged.Connector(t, "berlin-1"); now.PublicKey == before.PublicKey || now.Rotation != "" {
			return fmt.Errorf("the key has not changed: %+v", now)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	goOn(t, "after the change", sessions)
}

// TestJoinerKilledAtAnyMoment kills joiners with single-use tokens at random
// moments of their enrolment and starts them again: no token is lost, for the
// same key gets the same answer.
func TestJoinerKilledAtAnyMoment(t *testing.T) {
	count := 16
	if testing.Short() || daemon.Race {
		count = 5
	}
	d, _, _ := deployEnrolment(t)
	random := rand.New(rand.NewPCG(3, 14))
	var joiners []*daemon.Joiner
	enrolled := 0
	for i := range count {
		j := d.warren.NewJoiner(t, []*netns.Host{d.berlin1, d.berlin2}[i%2],
			daemon.JoinerConfig{Name: fmt.Sprintf("joiner-%d", i), Token: d.edged.Token(t, berlinToken()).Text})
		j.Start()
		waitFor(t, time.Duration(random.Int64N(int64(40*time.Millisecond))))
		j.Kill()
		if strings.Contains(j.Output(), "msg=enrolled") {
			enrolled++
		}
		j.Start()
		joiners = append(joiners, j)
	}
	for _, j := range joiners {
		j.WaitReady()
	}
	d.waitUp(t, "berlin", count, 30*time.Second)
	t.Logf("%d of %d were killed after the edge had answered", enrolled, count)
}

// TestEdgeKilledUnderEnrolments kills the edge twice while connectors enrol:
// all come in, and none is there twice.
func TestEdgeKilledUnderEnrolments(t *testing.T) {
	count := 20
	if testing.Short() || daemon.Race {
		count = 6
	}
	d, _, _ := deployEnrolment(t)
	ask := berlinToken()
	ask.Reusable = true
	token := d.edged.Token(t, ask).Text
	started := time.Now()
	for i := range count {
		j := d.warren.NewJoiner(t, []*netns.Host{d.berlin1, d.berlin2}[i%2], daemon.JoinerConfig{Name: fmt.Sprintf("joiner-%d", i), Token: token})
		j.Start()
		if i == count/3 || i == 2*count/3 {
			d.edged.Kill()
			d.edged.Start()
		}
	}
	d.edged.WaitReady()
	d.waitUp(t, "berlin", count, 60*time.Second)
	t.Logf("%d connectors were in %v after the first began", count, time.Since(started).Round(time.Millisecond))
	all, err := d.edged.Admin().Connectors(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		if c.Network == "berlin" && strings.Count(c.Name, "-") != 1 {
			t.Errorf("connector %q has enrolled twice", c.Name)
		}
	}
}
