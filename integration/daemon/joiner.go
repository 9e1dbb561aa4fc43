package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/integration/proc"
	"github.com/warrenmesh/warren/integration/require"
)

// JoinerConfig is a connector that comes by a token. It needs no file: its
// state directory is all that it has.
type JoinerConfig struct {
	Name  string   // --name; empty: none is asked for
	Token string   // in WARREN_TOKEN; empty: none, it has enrolled before
	State string   // the state directory; default: one of its own, not there yet
	Args  []string // more of them
	Env   []string // of the process
	Attr  *syscall.SysProcAttr
	Under []string // a program that runs it, with its arguments
}

// Joiner is a connector that came by a token.
type Joiner struct {
	*proc.Process // the latest
	State         string

	warren Warren
	tb     require.TB
	host   Host
	cfg    JoinerConfig
}

// NewJoiner makes the directory above the state and starts nothing.
func (w Warren) NewJoiner(tb require.TB, host Host, cfg JoinerConfig) *Joiner {
	tb.Helper()
	if cfg.State == "" {
		cfg.State = filepath.Join(netns.Directory(tb, "joiner"), "state")
	}
	if cfg.Attr == nil {
		cfg.Attr = attr(false)
	}
	return &Joiner{State: cfg.State, warren: w, tb: tb, host: host, cfg: cfg}
}

// StartJoiner starts a connector with a token and returns once it is ready.
func (w Warren) StartJoiner(tb require.TB, host Host, cfg JoinerConfig) *Joiner {
	tb.Helper()
	j := w.NewJoiner(tb, host, cfg)
	j.Start()
	j.WaitReady()
	return j
}

// Start starts the connector, or starts it again after it ended. It does not
// wait. The test's end is the process's at once.
func (j *Joiner) Start() {
	j.tb.Helper()
	j.Process = proc.Start(j.tb, j.host, j.spec(j.cfg.Token))
}

// StartWithoutToken starts a connector that enrolled before.
func (j *Joiner) StartWithoutToken() {
	j.tb.Helper()
	j.Process = proc.Start(j.tb, j.host, j.spec(""))
}

// Drain asks the connector to end and waits until it has: its flows may go on
// for as long as its drain lasts.
func (j *Joiner) Drain() {
	j.tb.Helper()
	if err := j.Signal(syscall.SIGTERM); err != nil {
		j.tb.Fatalf("%v", err)
	}
	if code, err := j.WaitEnd(drainLimit); err != nil || code != 0 {
		j.tb.Fatalf("connector %q was asked to end: exit code %d, %v", j.cfg.Name, code, err)
	}
}

// drainLimit is longer than a drain without long flows takes.
const drainLimit = 40 * time.Second

// Forget makes the state directory a fresh one for the next start, as that of
// a container is.
func (j *Joiner) Forget() {
	j.tb.Helper()
	if err := os.RemoveAll(j.State); err != nil {
		j.tb.Fatalf("forgetting the state of connector %q: %v", j.cfg.Name, err)
	}
}

func (j *Joiner) spec(token string) proc.Spec {
	args := []string{"connector", "run", "--state-dir", j.State}
	if j.cfg.Name != "" {
		args = append(args, "--name", j.cfg.Name)
	}
	env := append([]string(nil), j.cfg.Env...)
	if token != "" {
		env = append(env, "WARREN_TOKEN="+token)
	}
	command := slices.Concat(j.cfg.Under, []string{j.warren.Path}, args, j.cfg.Args)
	return proc.Spec{Name: "joiner " + j.cfg.Name, Path: command[0], Args: command[1:],
		Dir: filepath.Dir(j.State), Env: env, Attr: j.cfg.Attr, StopSignal: syscall.SIGKILL}
}

// WaitReady waits until the connector says that it is ready, and fails the
// test when it ends or readyLimit passes first.
func (j *Joiner) WaitReady() {
	j.tb.Helper()
	ctx, cancel := context.WithTimeout(j.tb.Context(), readyLimit)
	defer cancel()
	if err := j.WaitOutput(ctx, "msg=ready"); err != nil {
		j.tb.Fatalf("waiting for connector %q: %v", j.cfg.Name, err)
	}
}

// WaitEnd waits until the connector ends by itself, and returns its exit code.
func (j *Joiner) WaitEnd(limit time.Duration) (code int, err error) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-j.Done():
		return j.ExitCode(), nil
	case <-timer.C:
		return -1, fmt.Errorf("connector %q goes on after %v", j.cfg.Name, limit)
	}
}
