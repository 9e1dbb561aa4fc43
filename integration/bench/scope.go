package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/warrenmesh/warren/integration/require"
)

// scope owns what a part of the run starts: hosts, daemons, directories. It is
// the require.TB of a program: the packages under integration hang their
// clean-up on it and end it with Fatalf, as they do with a test.
type scope struct {
	ctx  context.Context
	name string
	log  io.Writer // what a failed part says on top of its error; may be nil

	mu       sync.Mutex
	cleanups []func()
	failed   []string
	skipped  string
}

var _ require.TB = (*scope)(nil)

// ended is the panic with which Fatalf and Skipf leave a scope's function.
type ended struct{ s *scope }

// skipError says that a part cannot run on this machine.
type skipError struct{ why string }

func (e skipError) Error() string { return e.why }

// within calls f with a scope and cleans up behind it. The error is what f
// returned, or what somebody failed or skipped the scope with.
func within(ctx context.Context, name string, log io.Writer, f func(s *scope) error) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	s := &scope{ctx: ctx, name: name, log: log}
	func() {
		defer func() {
			if r := recover(); r != nil {
				if e, mine := r.(ended); !mine || e.s != s {
					s.clean()
					panic(r)
				}
			}
		}()
		if err = f(s); err != nil {
			s.mark(err.Error())
		}
	}()
	cancel()
	s.clean()
	switch {
	case err != nil:
		return err
	case len(s.failed) > 0:
		return fmt.Errorf("%s", strings.Join(s.failed, "; "))
	case s.skipped != "":
		return skipError{s.skipped}
	}
	return nil
}

// clean runs the clean-ups, the latest first, as a test does.
func (s *scope) clean() {
	for {
		s.mu.Lock()
		n := len(s.cleanups)
		if n == 0 {
			s.mu.Unlock()
			return
		}
		f := s.cleanups[n-1]
		s.cleanups = s.cleanups[:n-1]
		s.mu.Unlock()
		f()
	}
}

func (s *scope) mark(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = append(s.failed, why)
}

func (s *scope) Helper()                  {}
func (s *scope) Name() string             { return s.name }
func (s *scope) Context() context.Context { return s.ctx }

func (s *scope) Cleanup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, f)
}

func (s *scope) Failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.failed) > 0
}

func (s *scope) TempDir() string {
	dir, err := os.MkdirTemp("", "warren-bench-")
	if err != nil {
		s.Fatalf("making a directory: %v", err)
	}
	s.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (s *scope) Logf(format string, args ...any) {
	if s.log != nil {
		fmt.Fprintf(s.log, "    "+format+"\n", args...)
	}
}

func (s *scope) Errorf(format string, args ...any) { s.mark(fmt.Sprintf(format, args...)) }

func (s *scope) Fatalf(format string, args ...any) {
	s.mark(fmt.Sprintf(format, args...))
	panic(ended{s})
}

func (s *scope) Skipf(format string, args ...any) {
	s.mu.Lock()
	s.skipped = fmt.Sprintf(format, args...)
	s.mu.Unlock()
	panic(ended{s})
}
