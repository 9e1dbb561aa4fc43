package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/warrenmesh/warren/configs/strict"
	"github.com/warrenmesh/warren/connector"
	"github.com/warrenmesh/warren/edge/admin/client"
)

// program is what a command has of the process that it runs in.
type program struct {
	args           []string // without the program's name
	env            func(string) string
	unsetenv       func(string)
	stdin          io.Reader
	stdout, stderr io.Writer
}

// Exit codes.
const (
	exitDone    = 0
	exitFailed  = 1
	exitUsage   = 2
	exitRefused = 3 // by an edge, mostly: the same again has the same answer
)

// run runs one command to its end and returns the exit code.
func run(ctx context.Context, p program) int {
	root := newRoot(&p)
	root.SetArgs(p.args)
	err := root.ExecuteContext(ctx)
	if err != nil {
		p.complain(err)
	}
	return exitCode(err)
}

// exitCode is what err means to a script.
func exitCode(err error) int {
	var usage *usageError
	var useless *uselessError
	var refusal *client.Error
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &useless), errors.Is(err, connector.ErrRefused):
		return exitRefused
	case errors.As(err, &refusal):
		switch refusal.Code {
		case client.CodeRefused, client.CodeNotFound, client.CodeBadRequest:
			return exitRefused
		}
	}
	return exitFailed
}

// complain writes err for a person. Problems of config files stand alone on
// their lines, so that an editor can jump to the place that each one names.
func (p *program) complain(err error) {
	var told *toldError
	if errors.As(err, &told) {
		return
	}
	var problems strict.Problems
	if errors.As(err, &problems) {
		fmt.Fprintln(p.stderr, problems)
		return
	}
	for line := range strings.Lines(err.Error()) { // several errors are one each
		if !strings.HasPrefix(line, " ") {
			line = "warren: " + line
		}
		fmt.Fprintln(p.stderr, strings.TrimRight(line, "\n"))
	}
	var usage *usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(p.stderr, "warren: run `%s --help` for its usage\n", usage.command)
	}
}

// usageError is a command line that the command does not take.
type usageError struct {
	command string // its path, as in "warren edge run"
	err     error
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// uselessError is a failure that the same command will have again.
type uselessError struct{ err error }

func (e *uselessError) Error() string { return e.err.Error() }
func (e *uselessError) Unwrap() error { return e.err }

// toldError is a failure of which the command's own output has told already.
type toldError struct{ why string }

func (e *toldError) Error() string { return e.why }
