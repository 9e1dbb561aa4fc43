package integration

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/integration/proc"
)

// enrolApps lead into berlin, whose connectors come by tokens, and into tokyo,
// whose connector is declared.
const enrolApps = `
[[address]]
name = "main"
advertise = ["203.0.113.10"]
[[network]]
name = "berlin"
[[network]]
name = "tokyo"
[[connector]]
name = "tokyo-1"
network = "tokyo"
public_key = %q
routes = ["10.0.0.0/24"]
[[app]]
name = "berlin-echo"
listen = ["tcp/9001"]
origin = "berlin/10.0.0.10:9001"
[[app]]
name = "berlin-other"
listen = ["tcp/9011"]
origin = "berlin/10.0.0.11:9001"
[[app]]
name = "berlin-closed"
listen = ["tcp/9021"]
origin = "berlin/10.0.0.10:9021"
[[app]]
name = "tokyo-echo"
listen = ["tcp/9002"]
origin = "tokyo/10.0.0.10:9002"
[[app]]
name = "tokyo-other"
listen = ["tcp/9012"]
origin = "tokyo/10.0.0.11:9002"
`

// deployEnrolment runs an edge at which connectors enrol for berlin, and a
// declared connector of tokyo, with a checkedEcho in each.
func deployEnrolment(t *testing.T) (d *deployment, berlin, tokyo *checkedEcho) {
	t.Helper()
	return deployEnrolmentWith(t, daemon.Find(t), daemon.EdgeConfig{})
}

// deployEnrolmentWith is deployEnrolment with an edge of another kind.
func deployEnrolmentWith(t *testing.T, program daemon.Warren, cfg daemon.EdgeConfig) (d *deployment, berlin, tokyo *checkedEcho) {
	t.Helper()
	d = &deployment{world: newWorld(t), warren: daemon.Find(t)}
	d.edgeKey, d.tokyo1Key = d.warren.GenKey(t), d.warren.GenKey(t)
	cfg.Name, cfg.Key, cfg.Listen = "edge", d.edgeKey, ":51820"
	if len(cfg.Calls) == 0 {
		cfg.Calls = []string{at(51820).String()}
	}
	cfg.Tables += fmt.Sprintf(enrolApps, d.tokyo1Key.Public)
	d.edged = program.StartEdge(t, d.edge, cfg)
	d.tokyo1d = d.connector(t, d.tokyo1, "tokyo-1", d.tokyo1Key)
	berlin, tokyo = new(checkedEcho), new(checkedEcho)
	listen(t, d.berlin, "0.0.0.0:9001", berlin.serve)
	listen(t, d.tokyo, "0.0.0.0:9002", tokyo.serve)
	d.tokyo1d.WaitReady()
	return d, berlin, tokyo
}

// berlinToken asks for what most tests need.
func berlinToken() client.TokenRequest {
	return client.TokenRequest{Network: "berlin", Routes: []string{"10.0.0.0/24"}}
}

// names counts the connectors of a network by their state.
func (d *deployment) states(ctx context.Context, network string) (states map[string]int, err error) {
	all, err := d.edged.Admin().Connectors(ctx)
	states = map[string]int{}
	for _, c := range all {
		if c.Network == network {
			states[c.State]++
		}
	}
	return states, err
}

// waitStates waits until a network has so many connectors that are up, and
// none in another state.
func (d *deployment) waitUp(t *testing.T, network string, want int, limit time.Duration) {
	t.Helper()
	err := pollFor(t, limit, func() error {
		states, err := d.states(t.Context(), network)
		if err == nil && (states[client.ConnectorUp] != want || len(states) > 1) {
			err = fmt.Errorf("the connectors of %q are %v, want %d that are up", network, states, want)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// endsWith waits until a connector ends by itself with an exit code, and wants
// each text in what it printed.
func endsWith(t *testing.T, j *daemon.Joiner, code int, limit time.Duration, texts ...string) {
	t.Helper()
	got, err := j.WaitEnd(limit)
	if err != nil {
		t.Errorf("%v; it printed:\n%s", err, j.Output())
		return
	}
	if got != code {
		t.Errorf("%s ended with exit code %d, want %d; it printed:\n%s", j.Name(), got, code, j.Output())
	}
	for _, text := range texts {
		if !strings.Contains(j.Output(), text) {
			t.Errorf("%s does not say %q; it printed:\n%s", j.Name(), text, j.Output())
		}
	}
}

// TestSingleUseTokenAtOnce has twenty processes use one single-use token at
// once: one connector comes of it, and the others are told.
func TestSingleUseTokenAtOnce(t *testing.T) {
	d, _, _ := deployEnrolment(t)
	token := d.edged.Token(t, berlinToken())
	joiners := make([]*daemon.Joiner, 20)
	started := time.Now()
	for i := range joiners {
		joiners[i] = d.warren.NewJoiner(t, []*netns.Host{d.berlin1, d.berlin2}[i%2],
			daemon.JoinerConfig{Name: fmt.Sprintf("joiner-%d", i), Token: token.Text})
		joiners[i].Start()
	}
	ended := 0
	if err := pollFor(t, 60*time.Second, func() error {
		ended = 0
		for _, j := range joiners {
			select {
			case <-j.Done():
				ended++
			default:
			}
		}
		if ended < len(joiners)-1 {
			return fmt.Errorf("%d of %d have ended", ended, len(joiners))
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	t.Logf("%d of %d processes had their answer after %v", ended, len(joiners), time.Since(started).Round(time.Millisecond))
	winner := slices.IndexFunc(joiners, func(j *daemon.Joiner) bool { return j.ExitCode() == -1 })
	if winner < 0 {
		t.Fatal("every process has ended: nobody enrolled")
	}
	name := fmt.Sprintf("joiner-%d", winner)
	for i, j := range joiners {
		if i != winner {
			// When, and by whom.
			endsWith(t, j, 3, time.Second, "used on ", name)
		}
	}
	d.waitUp(t, "berlin", 1, 10*time.Second)
	if c, ok := d.edged.Connector(t, name); !ok || c.TokenID != token.Token.ID {
		t.Errorf("the edge's connector is %+v", c)
	}
	if err := pollFor(t, 10*time.Second, func() error { return request(t.Context(), d.client, at(9001).String(), 1) }); err != nil {
		t.Errorf("through the one that enrolled: %v", err)
	}

	late := d.warren.NewJoiner(t, d.berlin2, daemon.JoinerConfig{Name: "late", Token: token.Text})
	late.Start()
	endsWith(t, late, 3, 30*time.Second, "used on ", name)
	// The one that is in needs the token no more, nor another name.
	joiners[winner].Kill()
	joiners[winner].StartWithoutToken()
	joiners[winner].WaitReady()
	d.waitUp(t, "berlin", 1, 10*time.Second)
}

// TestReusableTokenAtOnce has fifty processes enrol with one token at once.
func TestReusableTokenAtOnce(t *testing.T) {
	const limit = 30 * time.Second
	count, patience := 50, limit
	if testing.Short() || daemon.Race {
		count, patience = 12, 2*limit
	}
	d, _, _ := deployEnrolment(t)
	ask := berlinToken()
	ask.Reusable = true
	token := d.edged.Token(t, ask)
	joiners := make([]*daemon.Joiner, count)
	started := time.Now()
	for i := range joiners {
		joiners[i] = d.warren.NewJoiner(t, []*netns.Host{d.berlin1, d.berlin2}[i%2], daemon.JoinerConfig{Token: token.Text})
		joiners[i].Start()
	}
	if err := pollFor(t, patience, func() error {
		for i, j := range joiners {
			select {
			case <-j.Done():
				return proc.Fatal(fmt.Errorf("process %d ended with exit code %d:\n%s", i, j.ExitCode(), j.Output()))
			default:
			}
		}
		states, err := d.states(t.Context(), "berlin")
		if err == nil && states[client.ConnectorUp] < count {
			err = fmt.Errorf("the connectors are %v", states)
		}
		return err
	}); err != nil {
		t.Fatalf("after %v: %v", time.Since(started).Round(time.Millisecond), err)
	}
	t.Logf("%d processes were in after %v", count, time.Since(started).Round(time.Millisecond))
	// None asked for a name, and all run on hosts of one name: each has its own.
	all, err := d.edged.Admin().Connectors(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, c := range all {
		names[c.Name] = true
	}
	if len(names) != count+1 {
		t.Errorf("%d connectors have %d names", count+1, len(names))
	}
}

// TestRollingRestart replaces ten replicas of an ephemeral token one after the
// other, each with a state directory that knows nothing, as a container's. All
// are back, and the edge forgets those that are gone.
func TestRollingRestart(t *testing.T) {
	t.Parallel() // it waits more than it works
	clock := daemon.NewClock(t, 0)
	d, _, _ := deployEnrolmentWith(t, daemon.Find(t).WithClock(t, ".."), daemon.EdgeConfig{Env: clock.Env()})
	ask := berlinToken()
	ask.Ephemeral = true
	token := d.edged.Token(t, ask)
	replicas := d.startReplicas(t, 10, token.Text)
	// One more dies, and nobody comes in its place.
	lost := d.warren.StartJoiner(t, d.berlin1, daemon.JoinerConfig{Name: "lost", Token: token.Text})
	// Ready is its session; a key that never confirmed would stay pending.
	if err := pollFor(t, 10*time.Second, func() error {
		if c, _ := d.edged.Connector(t, "lost"); c.State != client.ConnectorUp {
			return fmt.Errorf("the connector that is to die is %q", c.State)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	lost.Kill()
	stop := load(t, d.client, at(9001).String(), 20)
	for _, r := range replicas {
		r.Drain()
		r.Forget()
		r.Start()
		r.WaitReady()
	}
	if err := pollFor(t, 20*time.Second, func() error {
		states, err := d.states(t.Context(), "berlin")
		if err == nil && states[client.ConnectorUp] != len(replicas) {
			err = fmt.Errorf("the connectors are %v", states)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	for _, o := range stop() {
		if o.err != nil {
			t.Errorf("a request failed during the restart: %v", o.err)
		}
	}
	if err := pollFor(t, 10*time.Second, func() error {
		if c, _ := d.edged.Connector(t, "lost"); c.State != client.ConnectorDown {
			return fmt.Errorf("the connector that died is %q", c.State)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	waitFor(t, 1500*time.Millisecond) // the registry looks each second who is absent
	clock.Pass(11 * time.Minute)
	d.waitUp(t, "berlin", len(replicas), 30*time.Second)
	if _, known := d.edged.Connector(t, "lost"); known {
		t.Error("the edge knows a connector that was absent for 11 minutes")
	}
	// For the edge the sessions of WireGuard are long over too: each connector
	// shakes hands anew.
	if err := pollFor(t, 20*time.Second, func() error {
		for i := range len(replicas) {
			if err := request(t.Context(), d.client, at(9001).String(), uint64(i)); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Errorf("after the dead were forgotten: %v", err)
	}
}

// startReplicas starts connectors with one token and waits for them. Half ask
// for a name, which they take again; half are called by their host's.
func (d *deployment) startReplicas(t *testing.T, count int, token string) []*daemon.Joiner {
	t.Helper()
	replicas := make([]*daemon.Joiner, count)
	for i := range replicas {
		name := ""
		if i%2 == 0 {
			name = fmt.Sprintf("replica-%d", i)
		}
		replicas[i] = d.warren.NewJoiner(t, []*netns.Host{d.berlin1, d.berlin2}[i%2], daemon.JoinerConfig{Name: name, Token: token})
		replicas[i].Start()
	}
	for _, r := range replicas {
		r.WaitReady()
	}
	return replicas
}
