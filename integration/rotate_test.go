package integration

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/netns"
)

// twoEdges is a deployment with another edge on a host of its own, which
// serves the same networks and apps.
type twoEdges struct {
	*deployment
	host2 *netns.Host
	edge2 *daemon.Edge
	key2  daemon.Key
}

var edge2Addr = netip.MustParseAddr("192.0.2.130")

// at2 is an address of the other edge.
func at2(port uint16) string { return netip.AddrPortFrom(edge2Addr, port).String() }

func deployTwoEdges(t *testing.T) (d *twoEdges, berlin *checkedEcho) {
	t.Helper()
	one, berlin, _ := deployEnrolment(t)
	d = &twoEdges{deployment: one, host2: one.lab.Host("edge2"), key2: one.warren.GenKey(t)}
	d.lab.Link(d.host2, "wan", d.internet, "edge2")
	d.internet.IP("address add 192.0.2.129/30 dev edge2")
	d.host2.IP("address add 192.0.2.130/30 dev wan", "route add default via 192.0.2.129")
	d.edge2 = d.warren.StartEdge(t, d.host2, daemon.EdgeConfig{Name: "edge2", Key: d.key2, Listen: ":51820", Calls: []string{at2(51820)},
		Tables: strings.Replace(fmt.Sprintf(enrolApps, d.tokyo1Key.Public), "203.0.113.10", edge2Addr.String(), 1)})
	return d, berlin
}

// token is one that both edges know.
func (d *twoEdges) token(t *testing.T, ask client.TokenRequest) string {
	t.Helper()
	ask.Edges = append(ask.Edges, client.TokenEdge{PublicKey: d.key2.Public, URLs: []string{at2(51820)}})
	made := d.edged.Token(t, ask)
	if _, err := d.edge2.Admin().ImportToken(t.Context(), client.ImportRequest{Record: made.Record}); err != nil {
		t.Fatal(err)
	}
	return made.Text
}

// waitServed waits until requests go through both edges.
func (d *twoEdges) waitServed(t *testing.T) {
	t.Helper()
	if err := pollFor(t, 20*time.Second, func() error {
		return errors.Join(
			request(t.Context(), d.client, at(9001).String(), 1),
			request(t.Context(), d.client, at2(9001), 2))
	}); err != nil {
		t.Fatal(err)
	}
}

// TestTwoEdgesOfOneToken enrols one connector at two edges with one token, and
// takes one of them away.
func TestTwoEdgesOfOneToken(t *testing.T) {
	d, berlin := deployTwoEdges(t)
	d.warren.StartJoiner(t, d.berlin1, daemon.JoinerConfig{Name: "berlin-1", Token: d.token(t, berlinToken())})
	d.waitServed(t)
	mine := openSessions(t, d.client, at(9001).String(), 10)
	others := openSessions(t, d.client, at2(9001), 10)
	stop := load(t, d.client, at2(9001), 50)

	killed := time.Now()
	d.edged.Kill()
	endWithin(t, "of the edge that was killed", mine, killed, clientsToldLimit)
	goOn(t, "of the other edge", others)
	// Longer than a connector takes to find an edge dead.
	waitFor(t, 4*time.Second)
	goOn(t, "of the other edge", others)
	for _, o := range stop() {
		if o.err != nil {
			t.Errorf("a request through the other edge failed: %v", o.err)
		}
	}
	if _, corrupt := berlin.seen(); len(corrupt) > 0 {
		t.Error(corrupt)
	}
	d.edged.Start()
	d.edged.WaitReady()
	d.waitServed(t)
	goOn(t, "of the other edge", others)
}

// TestRotation changes the key of one connector after the other under flows and
// requests through two edges that all of them serve: nothing fails. (A
// connector changes its key once a minute at most.)
func TestRotation(t *testing.T) {
	count, rate, rounds := 20, 50, 1
	switch {
	case full():
		rounds = 2
	case testing.Short() || daemon.Race:
		count, rate = 4, 20
	}
	d, berlin := deployTwoEdges(t)
	ask := berlinToken()
	ask.Reusable = true
	token := d.token(t, ask)
	joiners, names := make([]*daemon.Joiner, count), make([]string, count)
	for i := range joiners {
		names[i] = fmt.Sprintf("berlin-%d", i)
		joiners[i] = d.warren.NewJoiner(t, []*netns.Host{d.berlin1, d.berlin2}[i%2], daemon.JoinerConfig{Name: names[i], Token: token})
		joiners[i].Start()
	}
	for _, e := range []*daemon.Edge{d.edged, d.edge2} {
		waitKeys(t, e, names)
	}
	sessions := openSessions(t, d.client, at(9001).String(), 2*count)
	sessions = append(sessions, openSessions(t, d.client, at2(9001), 2*count)...)
	stops := []func() []outcome{load(t, d.client, at(9001).String(), rate), load(t, d.client, at2(9001), rate)}
	started := time.Now()
	for range rounds {
		for i, name := range names {
			d.rotate(t, []*daemon.Edge{d.edged, d.edge2}[i%2], name)
		}
		t.Logf("%d changes of a key in %v", count, time.Since(started).Round(time.Millisecond))
	}
	goOn(t, "after all changes", sessions)
	requests := 0
	for _, stop := range stops {
		for _, o := range stop() {
			requests++
			if o.err != nil {
				t.Errorf("a request failed during a change: %v", o.err)
			}
		}
	}
	t.Logf("%d sessions and %d requests meanwhile", len(sessions), requests)
	if _, corrupt := berlin.seen(); len(corrupt) > 0 {
		t.Error(corrupt)
	}

	for _, j := range joiners[1:] {
		j.Kill()
	}
	d.testKeyIsSaved(t, joiners[0])
}

// testKeyIsSaved wants the last key, and no other, to be what a connector has
// on its disk, and the edges on theirs.
func (d *twoEdges) testKeyIsSaved(t *testing.T, j *daemon.Joiner) {
	j.Kill()
	if _, err := os.Stat(filepath.Join(j.State, "connector.key.next")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a next key is left: %v", err)
	}
	for _, e := range []*daemon.Edge{d.edged, d.edge2} {
		e.Kill()
		e.Start()
		e.WaitReady()
	}
	j.StartWithoutToken()
	j.WaitReady()
	d.waitServed(t)
}

// rotate asks for a change of a connector's key at one edge, and waits until
// both know the new one and no other.
func (d *twoEdges) rotate(t *testing.T, by *daemon.Edge, name string) {
	t.Helper()
	before := keysOf(t, by)[name]
	if _, err := by.Admin().RotateConnector(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if err := pollFor(t, 90*time.Second, func() error {
		one, two := keysOf(t, d.edged)[name], keysOf(t, d.edge2)[name]
		if one == "" || one == before || one != two {
			return fmt.Errorf("the edges know connector %q by the keys %q and %q, before by %q", name, one, two, before)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// waitKeys waits until connectors are up at an edge.
func waitKeys(t *testing.T, e *daemon.Edge, names []string) {
	t.Helper()
	if err := pollFor(t, 30*time.Second, func() error {
		keys := keysOf(t, e)
		for _, name := range names {
			if keys[name] == "" {
				return fmt.Errorf("connector %q is not there", name)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// keysOf are the keys of an edge's connectors, by name: of those that are up
// and have one key.
func keysOf(t *testing.T, e *daemon.Edge) map[string]string {
	t.Helper()
	all, err := e.Admin().Connectors(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]string{}
	for _, c := range all {
		if c.State == client.ConnectorUp && c.Rotation == "" {
			keys[c.Name] = c.PublicKey
		}
	}
	return keys
}
