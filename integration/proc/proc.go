// Package proc runs the programs that an integration test needs: daemons,
// clients, real servers.
//
// A Process belongs to the test that started it. It leads a process group of
// its own; at the test's clean-up the group is asked to end, then killed, and
// waited for, and if the test failed the end of what it printed is logged.
// Waiting for a program to be ready is polling what it offers (Poll), never a
// sleep of a guessed length.
//
// The package must never signal a process that it did not start.
package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/warrenmesh/warren/integration/require"
)

// stopGrace is how long a process has between SIGTERM and SIGKILL at
// clean-up. A daemon that drains longer than this is cut off.
const stopGrace = 5 * time.Second

// loggedOutput is how much of a program's output a failed test shows.
const loggedOutput = 8 << 10

// raceReport is how the race detector begins a report (go.dev/doc/articles/race_detector).
const raceReport = "WARNING: DATA RACE"

// Place is where a process starts: a host in a namespace, or this machine.
// Start does what cmd.Start does, there.
type Place interface {
	Start(cmd *exec.Cmd) error
}

// Here is this very machine (or the namespace that the test binary is in).
type Here struct{}

// Start calls cmd.Start.
func (Here) Start(cmd *exec.Cmd) error { return cmd.Start() }

// Spec says what to run.
type Spec struct {
	Name  string   // for messages; default: the program's base name
	Path  string   // the program
	Args  []string // without the program's own name
	Dir   string   // working directory; default: the test's
	Env   []string // added to this process's environment
	Stdin string   // what it reads; default: nothing
	// StdinFile is what it reads instead, for who goes on writing to a pipe.
	// The caller closes it.
	StdinFile *os.File
	// Attr is copied into the command, for credentials and namespaces. The
	// process group is set in any case.
	Attr *syscall.SysProcAttr
	// StopSignal is what asks for the end at clean-up; default SIGTERM.
	StopSignal syscall.Signal
}

// Process is a started program. All its methods may be called from any
// goroutine.
type Process struct {
	name   string
	cmd    *exec.Cmd
	output *tail
	stop   syscall.Signal
	done   chan struct{} // closed once the program has been waited for
	err    error         // of Wait; valid after done
}

// Start starts a program at a place and registers its end with tb. It fails
// the test if the program cannot be started.
func Start(tb require.TB, place Place, spec Spec) *Process {
	tb.Helper()
	p, err := Launch(place, spec)
	if err != nil {
		tb.Fatalf("starting %q: %v", spec.Path, err)
		return nil
	}
	tb.Cleanup(func() {
		p.Stop()
		// A program that is killed here never reports it by its exit code.
		if strings.Contains(p.Output(), raceReport) {
			tb.Errorf("the race detector has something to say about %q", p.name)
		}
		if tb.Failed() {
			tb.Logf("%s ended with %v; the end of its output:\n%s", p.name, p.state(), indent(last(p.Output(), loggedOutput)))
		}
	})
	return p
}

// Launch starts a program that the caller ends, with Stop or Kill.
func Launch(place Place, spec Spec) (*Process, error) {
	p := &Process{name: spec.Name, output: newTail(), stop: spec.StopSignal, done: make(chan struct{})}
	if p.name == "" {
		p.name = spec.Path[strings.LastIndexByte(spec.Path, '/')+1:]
	}
	if p.stop == 0 {
		p.stop = syscall.SIGTERM
	}
	cmd := exec.Command(spec.Path, spec.Args...)
	cmd.Dir = spec.Dir
	cmd.Env = append(os.Environ(), spec.Env...)
	cmd.Stdout, cmd.Stderr = p.output, p.output
	switch {
	case spec.StdinFile != nil:
		cmd.Stdin = spec.StdinFile
	case spec.Stdin != "":
		cmd.Stdin = strings.NewReader(spec.Stdin)
	}
	// A grandchild that left the group and kept our pipe must not hold Wait.
	cmd.WaitDelay = 500 * time.Millisecond
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if spec.Attr != nil {
		attr := *spec.Attr
		cmd.SysProcAttr = &attr
	}
	cmd.SysProcAttr.Setpgid = true
	if err := place.Start(cmd); err != nil {
		return nil, err
	}
	p.cmd = cmd
	go func() { // ends with the process, which Stop waits for
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Run runs a program to its end and returns what it printed, standard error
// and output together. The error says how it ended and quotes the end of what
// it printed. When ctx is done the program is killed.
func Run(ctx context.Context, place Place, spec Spec) (string, error) {
	p, err := Launch(place, spec)
	if err != nil {
		return "", fmt.Errorf("starting %q: %w", spec.Path, err)
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		p.Kill()
		return p.Output(), fmt.Errorf("running %q: %w; it had printed:\n%s", p.name, context.Cause(ctx), indent(p.Output()))
	}
	if p.err != nil {
		return p.Output(), fmt.Errorf("running %q: %w; it printed:\n%s", p.name, p.err, indent(p.Output()))
	}
	return p.Output(), nil
}

// Must is Run that fails the test instead of returning an error.
func Must(tb require.TB, place Place, spec Spec) string {
	tb.Helper()
	out, err := Run(tb.Context(), place, spec)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	return out
}

// Name is the program's name, for messages.
func (p *Process) Name() string { return p.name }

// Pid is the process id as this process sees it.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed once the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Output is the end of what the program has printed so far, at most tailSize
// bytes of it.
func (p *Process) Output() string { return p.output.String() }

// ExitCode is the program's exit code, -1 while it runs or if a signal ended it.
func (p *Process) ExitCode() int {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	default:
		return -1
	}
}

// Signal sends a signal to the program alone (not to its children).
func (p *Process) Signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signalling %q: %w", p.name, err)
	}
	return nil
}

// Kill ends the whole group with SIGKILL and waits for the program.
func (p *Process) Kill() {
	p.signalGroup(syscall.SIGKILL)
	<-p.done
}

// Stop asks the program to end, gives it stopGrace, kills what is left of its
// group, and waits. Calling it again does nothing.
func (p *Process) Stop() {
	select {
	case <-p.done:
	default:
		// To the program alone: a server ends its own children in its own order.
		p.cmd.Process.Signal(p.stop)
		timer := time.NewTimer(stopGrace)
		defer timer.Stop()
		select {
		case <-p.done:
		case <-timer.C:
		}
	}
	p.signalGroup(syscall.SIGKILL)
	<-p.done
}

// signalGroup signals what is left of the group. The group's id cannot have
// been taken by anybody else while a member lives; with no member left the
// call finds nobody.
func (p *Process) signalGroup(sig syscall.Signal) {
	syscall.Kill(-p.cmd.Process.Pid, sig)
}

// WaitOutput waits until the program has printed text, and fails when it ends
// or ctx is done before.
func (p *Process) WaitOutput(ctx context.Context, text string) error {
	return Poll(ctx, func() error {
		if bytes.Contains([]byte(p.Output()), []byte(text)) {
			return nil
		}
		select {
		case <-p.done:
			return Fatal(fmt.Errorf("%q ended (%v) before it printed %q", p.name, p.state(), text))
		default:
			return fmt.Errorf("%q has not printed %q", p.name, text)
		}
	})
}

func (p *Process) state() string {
	select {
	case <-p.done:
		if p.err != nil {
			return p.err.Error()
		}
		return "exit status 0"
	default:
		return "still running"
	}
}
