package state

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

// Of the process that a test starts from its own program.
const (
	childDir  = "WARREN_STATE_TEST_DIR"
	childWork = "WARREN_STATE_TEST_WORK" // "change": until it is killed; "open": once
)

func TestMain(m *testing.M) {
	dir := os.Getenv(childDir)
	if dir == "" {
		os.Exit(m.Run())
	}
	d, err := Open(dir)
	if err == nil && os.Getenv(childWork) == "change" {
		err = change(d)
	}
	fmt.Println("failed", err)
	os.Exit(1)
}

// change changes everything in turn and says so before and after.
//
//	begin WHAT VALUE
//	done WHAT VALUE
//
// WHAT is "key", "next" or the public key of an edge; VALUE is a public key,
// or the edge's name.
func change(d *Dir) error {
	key, _, err := d.Key()
	if err != nil {
		return err
	}
	fmt.Println("done key", key.PublicKey())
	var edges [4]wire.Key
	for i := range edges { // the same in each run
		edges[i].Key[0] = byte(i + 1)
	}
	step := func(what, value string, do func() error) error {
		fmt.Println("begin", what, value)
		err := do()
		fmt.Println("done", what, value)
		return err
	}
	for err == nil {
		if rand.N(4) == 0 {
			var next wgtypes.Key
			if next, err = d.NextKey(); err != nil {
				return err
			}
			fmt.Println("done next", next.PublicKey())
			err = step("key", next.PublicKey().String(), func() error { _, err := d.TakeNext(); return err })
			continue
		}
		e := Edge{PublicKey: edges[rand.N(len(edges))], Name: fmt.Sprint(rand.Uint64()), URLs: []string{strings.Repeat("x", rand.N(5000))}}
		err = step(e.PublicKey.String(), e.Name, func() error { return d.SaveEdge(e) })
	}
	return err
}

// child is this program as another process, working in dir.
func child(t *testing.T, dir, work string) *exec.Cmd {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program)
	cmd.Env = append(os.Environ(), childDir+"="+dir, childWork+"="+work)
	cmd.Stderr = os.Stderr
	return cmd
}

// told is what a child has said of its changes.
type told struct {
	done  map[string]string
	begun map[string]string // and not done
	count int
}

// listen reads what a child says until its end.
func listen(r io.Reader) (told, error) {
	said := told{done: make(map[string]string), begun: make(map[string]string)}
	for lines := bufio.NewScanner(r); lines.Scan(); {
		verb, rest, _ := strings.Cut(lines.Text(), " ")
		what, value, whole := strings.Cut(rest, " ")
		switch {
		case verb == "failed":
			return said, errors.New(rest)
		case !whole: // the last line of a killed process
		case verb == "begin":
			said.begun[what] = value
		default:
			said.done[what] = value
			delete(said.begun, what)
			said.count++
		}
	}
	return said, nil
}

// TestKilled kills a process at random moments of its changes, and wants what
// it acknowledged: nothing older, nothing half, and nothing that was not begun.
func TestKilled(t *testing.T) {
	rounds := 60
	if testing.Short() {
		rounds = 10
	}
	dir := statePath(t)
	before := told{done: map[string]string{}}
	changes := 0
	for range rounds {
		cmd := child(t, dir, "change")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Some are killed before they have made a key.
		kill := time.AfterFunc(rand.N(60*time.Millisecond), func() { _ = cmd.Process.Signal(syscall.SIGKILL) })
		said, failed := listen(out)
		kill.Stop()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if failed != nil {
			t.Fatalf("a process that starts after a crash: %v", failed)
		}
		for what, value := range said.done {
			before.done[what] = value
		}
		before.begun = said.begun
		changes += said.count
		before = compare(t, dir, before)
		if t.Failed() {
			return
		}
	}
	t.Logf("%d processes made %d changes", rounds, changes)
}

// compare opens the directory and returns what it holds, as told.
func compare(t *testing.T, dir string, want told) told {
	t.Helper()
	d, err := Open(dir)
	if err != nil {
		t.Fatalf("opening after a crash: %v", err)
	}
	defer d.Close()
	held := told{done: make(map[string]string)}
	for _, e := range d.Edges() {
		held.done[e.PublicKey.String()] = e.Name
	}
	if want.done["key"] != "" || want.begun["key"] != "" {
		key, made, err := d.Key()
		if err != nil || made {
			t.Fatalf("the key after a crash: made %v, %v", made, err)
		}
		held.done["key"] = key.PublicKey().String()
	}
	// A next key lives until it is taken.
	if next := want.done["next"]; next != "" && held.done["key"] != next {
		key, err := d.NextKey()
		if err != nil {
			t.Fatalf("the next key after a crash: %v", err)
		}
		held.done["next"] = key.PublicKey().String()
	} else {
		delete(want.done, "next")
	}
	for what := range merge(want.done, held.done) {
		got, done, begun := or(held.done[what]), or(want.done[what]), want.begun[what]
		if got != done && got != begun {
			t.Errorf("%s is %s after a crash; %s was done, %q begun", what, got, done, begun)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.tmp")); len(left) > 0 {
		t.Errorf("left are %q", left)
	}
	return held
}

func merge(a, b map[string]string) map[string]string {
	all := make(map[string]string)
	for _, m := range []map[string]string{a, b} {
		for k, v := range m {
			all[k] = v
		}
	}
	return all
}

func or(value string) string {
	if value == "" {
		return "-"
	}
	return value
}

// TestUnwritable: a directory of somebody else's. Root may write anywhere, so
// a root's test asks as nobody.
func TestUnwritable(t *testing.T) {
	const nobody = 65534
	parent := t.TempDir()
	// The way there, for nobody.
	for up := parent; up != os.TempDir() && up != "/"; up = filepath.Dir(up) {
		if err := os.Chmod(up, 0o755); err != nil {
			break
		}
	}
	program := filepath.Join(parent, "program")
	copyProgram(t, program)
	uid := os.Geteuid()
	ask := func(dir string) string {
		cmd := child(t, dir, "open")
		cmd.Path, cmd.Args[0] = program, program
		if uid == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
			cmd.Dir = "/"
		}
		out, _ := cmd.Output()
		return string(out)
	}
	as := uid
	if uid == 0 {
		as = nobody
	}
	closed := filepath.Join(parent, "closed")
	if err := os.Mkdir(closed, 0o500); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(closed, as, -1); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{
		closed:                         fmt.Sprintf("failed writing in state directory %q: permission denied: run chown -R %d %s as root, or choose another state_dir\n", closed, as, closed),
		filepath.Join(closed, "state"): fmt.Sprintf("failed making state directory %q: permission denied: run install -d -m 700 -o %d %s/state as root, or choose another state_dir\n", closed+"/state", as, closed),
	} {
		if got := ask(dir); got != want {
			t.Errorf("Open says %q, want %q", got, want)
		}
	}
}

// copyProgram copies this program to where anybody may start it.
func copyProgram(t *testing.T, to string) {
	t.Helper()
	from, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, text, 0o755); err != nil {
		t.Fatal(err)
	}
}
