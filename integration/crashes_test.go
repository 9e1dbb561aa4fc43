package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/google/go-cmp/cmp"

	"github.com/warrenmesh/warren/edge/enroll"
	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/netns"
)

// TestKilledWhileItChanges makes a thousand random enrolments, revocations and
// changes of keys in a process that is killed at random points of them. What
// it acknowledged stands each time it starts again; of what it was at, either
// all stands or nothing.
func TestKilledWhileItChanges(t *testing.T) {
	changes := 1000
	if testing.Short() || daemon.Race {
		changes = 300
	}
	r := &ruin{t: t, dir: t.TempDir(), random: rand.New(rand.NewPCG(14, 3)), is: newBelief()}
	started := time.Now()
	t.Cleanup(func() { r.kill() })
	for r.made < changes {
		r.step()
	}
	r.kill()
	r.start() // which checks all once more
	t.Logf("%d changes and %d kills, %d of them in the middle of one, in %v; %d connectors, %d revoked",
		r.made, r.kills, r.halfway, time.Since(started).Round(time.Millisecond), len(r.is.connectors), len(r.is.denied))
	if r.kills < changes/100 || r.halfway == 0 {
		t.Error("the process was hardly killed")
	}
}

// TestStateInUse starts a second edge on a state directory that one runs with.
func TestStateInUse(t *testing.T) {
	w, lab := daemon.Find(t), netns.New(t)
	key := w.GenKey(t)
	first := w.StartEdge(t, lab.Host("first"), daemon.EdgeConfig{Name: "first", Key: key, Listen: ":51820"})
	state := filepath.Join(first.Dir, "state")
	second := w.NewEdge(t, lab.Host("second"), daemon.EdgeConfig{Name: "second", Key: key, Listen: ":51820", State: state})
	other := w.NewEdge(t, lab.Host("other"), daemon.EdgeConfig{Name: "other", Key: w.GenKey(t), Listen: ":51820", State: state})
	refused := func(e *daemon.Edge, why string) {
		t.Helper()
		e.Start()
		select {
		case <-e.Done():
			if out := e.Output(); e.ExitCode() != 1 || !strings.Contains(out, state) || !strings.Contains(out, why) {
				t.Errorf("it ended with exit code %d and says:\n%s", e.ExitCode(), out)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("it runs:\n%s", e.Output())
		}
	}
	refused(second, "another edge runs with it")
	if status, _, err := first.Get(t.Context(), "/readyz"); err != nil || status != 200 {
		t.Errorf("the first edge is ready: %d, %v", status, err)
	}
	// A process that was killed holds nothing.
	first.Kill()
	refused(other, "belongs to the edge with key") // whoever has the key is this edge
	second.Start()
	second.WaitReady()
}

// belief is what the test knows of the registry.
type belief struct {
	connectors map[string]dumped
	owner      map[string]wgtypes.Key // the current key of each
	next       map[string]wgtypes.Key
	came       map[string]string // the token that each came by
	tokens     map[string]string // state by id
	texts      map[string]string // of the active tokens, by id
	denied     map[string]bool
}

func newBelief() *belief {
	return &belief{connectors: map[string]dumped{}, owner: map[string]wgtypes.Key{}, next: map[string]wgtypes.Key{},
		came: map[string]string{}, tokens: map[string]string{}, texts: map[string]string{}, denied: map[string]bool{}}
}

func (b *belief) clone() *belief {
	return &belief{connectors: maps.Clone(b.connectors), owner: maps.Clone(b.owner), next: maps.Clone(b.next),
		came: maps.Clone(b.came), tokens: maps.Clone(b.tokens), texts: maps.Clone(b.texts), denied: maps.Clone(b.denied)}
}

// after is the belief once a change has been made.
func (b *belief) after(c change) *belief {
	b = b.clone()
	now := b.connectors[c.Name]
	switch c.Do {
	case "token":
		token, err := wire.ParseToken(c.Text)
		if err != nil {
			return b // it was not told which
		}
		b.tokens[token.ID.String()], b.texts[token.ID.String()] = string(enroll.TokenActive), c.Text
	case "enroll":
		token, _ := wire.ParseToken(c.Text)
		b.connectors[c.Name] = dumped{Key: c.Key.String(), State: string(enroll.ConnectorPending)}
		b.owner[c.Name], b.came[c.Name] = c.Key, token.ID.String()
		delete(b.texts, token.ID.String())
	case "sync":
		now.State = string(enroll.ConnectorEnrolled)
		b.tokens[b.came[c.Name]] = string(enroll.TokenSpent)
		if next, ok := b.next[c.Name]; ok && next == c.Key {
			now.Key, now.Next, now.Rotation = next.String(), "", ""
			b.owner[c.Name] = next
			delete(b.next, c.Name)
		}
		b.connectors[c.Name] = now
	case "rotate":
		now.Rotation = string(enroll.RotationAsked)
		b.connectors[c.Name] = now
	case "key":
		now.Next, now.Rotation = c.Next.String(), string(enroll.RotationRegistered)
		b.next[c.Name], b.connectors[c.Name] = c.Next, now
	case "revoke":
		b.denied[now.Key] = true
		if now.Next != "" {
			b.denied[now.Next] = true
		}
		delete(b.connectors, c.Name)
		delete(b.owner, c.Name)
		delete(b.next, c.Name)
	}
	return b
}

// ruin is a registry child, and the one who kills it.
type ruin struct {
	t      *testing.T
	dir    string
	random *rand.Rand

	child   *exec.Cmd
	in      io.WriteCloser
	lines   *json.Encoder
	answers *json.Decoder

	is    *belief // what was acknowledged
	doing *change // what was not, when the child was killed

	takes time.Duration // that a change takes here: a running mean

	made, kills, halfway, born int
}

// step makes one change, and may kill the child at any moment of it.
func (r *ruin) step() {
	if r.child == nil {
		r.start()
	}
	c := r.choose()
	if r.random.IntN(25) != 0 {
		r.ask(c)
		return
	}
	// A change takes what the last ones took: milliseconds on one disk, a
	// twentieth of one on another. A timer would be too coarse for that.
	err := r.lines.Encode(c)
	sent, moment := time.Now(), time.Duration(r.random.Int64N(int64(r.takes)+1))
	for time.Since(sent) < moment {
		runtime.Gosched()
	}
	r.child.Process.Kill()
	r.hear(c, err)
	r.reap()
}

// choose takes a change that makes sense as things are.
func (r *ruin) choose() change {
	byState := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(r.is.connectors)) {
		c := r.is.connectors[name]
		state := c.State
		if state == string(enroll.ConnectorEnrolled) && c.Rotation != "" {
			state = c.Rotation
		}
		byState[state] = append(byState[state], name)
	}
	pick := func(names []string) string { return names[r.random.IntN(len(names))] }
	for {
		switch r.random.IntN(8) {
		case 0:
			return change{Do: "token"}
		case 1, 2:
			if ids := slices.Sorted(maps.Keys(r.is.texts)); len(ids) > 0 {
				r.born++
				return change{Do: "enroll", Text: r.is.texts[pick(ids)], Key: newKey(r.t), Name: fmt.Sprintf("c-%d", r.born)}
			}
		case 3:
			if names := byState[string(enroll.ConnectorPending)]; len(names) > 0 {
				name := pick(names)
				return change{Do: "sync", Name: name, Key: r.is.owner[name]}
			}
		case 4:
			if names := byState[string(enroll.ConnectorEnrolled)]; len(names) > 0 {
				return change{Do: "rotate", Name: pick(names)}
			}
		case 5:
			if names := byState[string(enroll.RotationAsked)]; len(names) > 0 {
				name := pick(names)
				return change{Do: "key", Name: name, Key: r.is.owner[name], Next: newKey(r.t)}
			}
		case 6:
			if names := byState[string(enroll.RotationRegistered)]; len(names) > 0 {
				name := pick(names)
				return change{Do: "sync", Name: name, Key: r.is.next[name]}
			}
		case 7:
			if names := byState[string(enroll.ConnectorEnrolled)]; len(names) > 3 {
				return change{Do: "revoke", Name: pick(names)}
			}
		}
	}
}

func newKey(t *testing.T) wgtypes.Key {
	t.Helper()
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key.PublicKey()
}

// ask has the child make a change, and believes it once it is acknowledged.
func (r *ruin) ask(c change) {
	r.t.Helper()
	sent := time.Now()
	r.hear(c, r.lines.Encode(c))
	r.takes += (time.Since(sent) - r.takes) / 8
}

// hear waits for the answer to a change that was sent, or not.
func (r *ruin) hear(c change, err error) {
	r.t.Helper()
	var answer changed
	if err == nil {
		err = r.answers.Decode(&answer)
	}
	switch {
	case err != nil: // it was killed
		r.doing = &c
	case answer.Error != "":
		r.t.Fatalf("%+v: %s", c, answer.Error)
	default:
		if c.Do == "token" {
			c.Text = answer.Text
		}
		r.is = r.is.after(c)
		r.made++
	}
}

// start starts the child on what the last one left, and compares.
func (r *ruin) start() {
	r.t.Helper()
	child := exec.Command("/proc/self/exe", r.dir)
	child.Env = append(os.Environ(), envRole+"="+roleRegistry)
	child.Stderr = os.Stderr
	in, err := child.StdinPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.child, r.in, r.lines, r.answers = child, in, json.NewEncoder(in), json.NewDecoder(out)
	possible := []*belief{r.is}
	if r.doing != nil {
		r.halfway++
		possible = append(possible, r.is.after(*r.doing))
	}
	ask := change{Do: "dump"}
	for _, b := range possible {
		for key := range b.denied {
			k, _ := wgtypes.ParseKey(key)
			ask.Ask = append(ask.Ask, wire.Key{Key: k})
		}
	}
	var answer changed
	if err := errors.Join(r.lines.Encode(ask), r.answers.Decode(&answer)); err != nil || answer.Dump == nil {
		r.t.Fatalf("after %d kills the store cannot be read: %v", r.kills, err)
	}
	var differences []string
	for _, b := range possible {
		difference := b.compare(answer.Dump, r.doing)
		if difference == "" {
			r.is, r.doing = b, nil
			return
		}
		differences = append(differences, difference)
	}
	r.t.Fatalf("after %d kills, the last while it was at %+v, the registry is not as it was acknowledged (-want +got):\n%s", r.kills, r.doing, differences)
}

// compare says how a registry differs from the belief. A token that was being
// made may be there: nobody knows its text.
func (b *belief) compare(got *dump, doing *change) string {
	denied := map[string]bool{}
	for key, is := range got.Denied {
		if is {
			denied[key] = true
		}
	}
	tokens := maps.Clone(got.Tokens)
	for id := range got.Tokens {
		if _, known := b.tokens[id]; !known && doing != nil && doing.Do == "token" {
			delete(tokens, id)
			b.tokens[id] = got.Tokens[id]
			tokens[id] = got.Tokens[id]
			doing = nil // one
		}
	}
	return cmp.Diff(
		dump{Connectors: b.connectors, Tokens: b.tokens, Denied: b.denied},
		dump{Connectors: got.Connectors, Tokens: tokens, Denied: denied})
}

func (r *ruin) kill() {
	if r.child != nil {
		r.child.Process.Kill()
		r.reap()
	}
}

// reap waits for a child that was killed.
func (r *ruin) reap() {
	r.in.Close()
	r.child.Wait()
	r.child = nil
	r.kills++
}
