package proc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/warrenmesh/warren/integration/require"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// failing is a TB that has failed, and collects what is logged.
type failing struct {
	*testing.T
	cleanups []func()
	log      strings.Builder
}

func (f *failing) Cleanup(c func())               { f.cleanups = append(f.cleanups, c) }
func (f *failing) Failed() bool                   { return true }
func (f *failing) Logf(format string, a ...any)   { fmt.Fprintf(&f.log, format+"\n", a...) }
func (f *failing) Errorf(format string, a ...any) { fmt.Fprintf(&f.log, format+"\n", a...) }
func (f *failing) Fatalf(format string, a ...any) { f.T.Fatalf(format, a...) }

func TestRun(t *testing.T) {
	sh := require.Tool(t, "sh", "dash")
	for _, test := range []struct {
		name, script, out, err string
	}{
		{name: "prints", script: "echo out; echo err >&2", out: "out\nerr\n"},
		{name: "fails", script: "echo why; exit 3", out: "why\n", err: "exit status 3; it printed:\n    why"},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, err := Run(t.Context(), Here{}, Spec{Path: sh, Args: []string{"-c", test.script}})
			if out != test.out {
				t.Errorf("output = %q, want %q", out, test.out)
			}
			if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
				t.Errorf("error = %v, want %q", err, test.err)
			}
		})
	}
}

func TestRunIsKilledWithItsContext(t *testing.T) {
	sh := require.Tool(t, "sh", "dash")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := Run(ctx, Here{}, Spec{Path: sh, Args: []string{"-c", "sleep 600"}})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error = %v, want the context's", err)
	}
}

// A program that ignores SIGTERM and left a child behind is gone, child
// included, after the clean-up, and a failed test shows what it printed.
func TestCleanupKillsTheGroupAndShowsTheOutput(t *testing.T) {
	sh := require.Tool(t, "sh", "dash")
	tb := &failing{T: t}
	p := Start(tb, Here{}, Spec{Path: sh, Args: []string{"-c", "sleep 600 & echo child $!; echo ready; wait"}})
	if err := p.WaitOutput(t.Context(), "ready"); err != nil {
		t.Fatal(err)
	}
	var child int
	if _, err := fmt.Sscanf(p.Output(), "child %d", &child); err != nil {
		t.Fatal(err)
	}
	for _, c := range tb.cleanups {
		c()
	}
	if !strings.Contains(tb.log.String(), "ready") {
		t.Errorf("the log of a failed test lacks the output: %q", tb.log.String())
	}
	// The child is the init process's to reap: until then a signal still finds it.
	err := Poll(t.Context(), func() error {
		if state := stateOf(child); state != "" && state != "Z" {
			return fmt.Errorf("child %d is in state %s", child, state)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestRaceReportIsAFailure(t *testing.T) {
	sh := require.Tool(t, "sh", "dash")
	tb := &failing{T: t}
	p := Start(tb, Here{}, Spec{Path: sh, Args: []string{"-c", "echo WARNING: DATA RACE; exec sleep 600"}, StopSignal: syscall.SIGKILL})
	if err := p.WaitOutput(t.Context(), "RACE"); err != nil {
		t.Fatal(err)
	}
	for _, c := range tb.cleanups {
		c()
	}
	if !strings.Contains(tb.log.String(), "the race detector") {
		t.Errorf("a race report went unnoticed: %q", tb.log.String())
	}
}

func TestWaitOutputEndsWithTheProgram(t *testing.T) {
	sh := require.Tool(t, "sh", "dash")
	p := Start(t, Here{}, Spec{Path: sh, Args: []string{"-c", "echo one; exit 7"}})
	err := p.WaitOutput(t.Context(), "two")
	if err == nil || !strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("error = %v, want one that tells the exit status", err)
	}
	if p.ExitCode() != 7 {
		t.Errorf("exit code = %d, want 7", p.ExitCode())
	}
}

func TestSignalReachesTheProgram(t *testing.T) {
	sh := require.Tool(t, "sh", "dash")
	p := Start(t, Here{}, Spec{Path: sh, Args: []string{"-c", "trap 'exit 9' USR1; echo ready; while :; do sleep 0.01; done"}})
	if err := p.WaitOutput(t.Context(), "ready"); err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if p.ExitCode() != 9 {
		t.Errorf("exit code = %d, want 9", p.ExitCode())
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	tail := newTail()
	for range 3 {
		tail.Write([]byte(strings.Repeat("x", tailSize/2)))
	}
	tail.Write([]byte("end"))
	got := tail.String()
	if !strings.HasPrefix(got, "[…]") || !strings.HasSuffix(got, "xend") || len(got) > tailSize+8 {
		t.Errorf("kept %d bytes, %q … %q", len(got), got[:8], got[len(got)-8:])
	}
}

func TestPollStopsAtFatal(t *testing.T) {
	calls := 0
	err := Poll(t.Context(), func() error {
		calls++
		if calls == 2 {
			return Fatal(errors.New("hopeless"))
		}
		return errors.New("not yet")
	})
	if calls != 2 || err == nil || err.Error() != "hopeless" {
		t.Errorf("calls = %d, error = %v", calls, err)
	}
}
