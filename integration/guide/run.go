package guide

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/warrenmesh/warren/integration/proc"
)

// blockLimit is how long a block may run, and how long until may wait: longer
// than any reader would.
const blockLimit = time.Minute

// Machine is one of the machines that a guide speaks of.
type Machine struct {
	Place proc.Place
	Home  string   // an empty directory
	Env   []string // of its shell
	Spec  proc.Spec
}

// Runner runs a guide's blocks on machines.
type Runner struct {
	Machines map[string]Machine
	// Logf is told of every block; nil for nobody.
	Logf func(format string, args ...any)

	shells     map[string]*shell
	background []*proc.Process
	captured   map[string]string
}

// Run runs the blocks in order and stops at the first that fails. What it
// started has ended when it returns.
func (r *Runner) Run(ctx context.Context, blocks []Block) error {
	if len(blocks) == 0 {
		return errors.New("the guide has no block to run")
	}
	if err := checkCaptures(blocks); err != nil {
		return err
	}
	r.shells, r.captured = map[string]*shell{}, map[string]string{}
	defer r.stop()
	for _, b := range blocks {
		if r.Logf != nil {
			r.Logf("line %d, %s", b.Line, b.Host)
		}
		if err := r.block(ctx, b); err != nil {
			return fmt.Errorf("line %d, on machine %q: %w%s", b.Line, b.Host, err, r.terminals())
		}
		for _, p := range r.background {
			select {
			case <-p.Done():
				return fmt.Errorf("line %d: what runs in the background has ended%s", b.Line, r.terminals())
			default:
			}
		}
	}
	return nil
}

// checkCaptures refuses a word that is captured and never used.
func checkCaptures(blocks []Block) error {
	for i, b := range blocks {
		if b.Capture == "" {
			continue
		}
		used := false
		for _, later := range blocks[i+1:] {
			used = used || strings.Contains(later.Text, b.Capture)
		}
		if !used {
			return fmt.Errorf("line %d: no later block uses the captured word %q", b.Line, b.Capture)
		}
	}
	return nil
}

func (r *Runner) block(ctx context.Context, b Block) error {
	ctx, cancel := context.WithTimeoutCause(ctx, blockLimit, fmt.Errorf("the block ran for more than %v", blockLimit))
	defer cancel()
	machine, ok := r.Machines[b.Host]
	if !ok {
		return errors.New("there is no such machine")
	}
	text := b.Text
	for w, value := range r.captured {
		text = strings.ReplaceAll(text, w, value)
	}
	switch {
	case b.File != "":
		path := b.File
		if !filepath.IsAbs(path) {
			path = filepath.Join(machine.Home, path)
		}
		// Through the shell's own user, whose file it is to be.
		return machine.write(ctx, path, text)
	case b.Background:
		return r.start(ctx, machine, b, text)
	}
	sh := r.shells[b.Host]
	if sh == nil {
		var err error
		if sh, err = newShell(machine); err != nil {
			return err
		}
		r.shells[b.Host] = sh
	}
	output, err := sh.run(ctx, text)
	if err == nil {
		err = meets(output, b.Expect)
	}
	if err != nil {
		return fmt.Errorf("%w; the block printed:\n%s", err, output)
	}
	if b.Capture != "" {
		if r.captured[b.Capture] = strings.TrimSpace(output); r.captured[b.Capture] == "" {
			return fmt.Errorf("there is nothing to capture for %q", b.Capture)
		}
	}
	return nil
}

// write writes a file of a machine.
func (m Machine) write(ctx context.Context, path, text string) error {
	spec := m.Spec
	spec.Path, spec.Stdin = "/bin/sh", text
	spec.Args = []string{"-c", `mkdir -p "$(dirname "$1")" && cat > "$1"`, "sh", path}
	_, err := proc.Run(ctx, m.Place, spec)
	return err
}

// start runs a block in a terminal of its own.
func (r *Runner) start(ctx context.Context, m Machine, b Block, text string) error {
	spec := m.Spec
	spec.Name, spec.Path, spec.Dir, spec.Env = fmt.Sprintf("line %d", b.Line), "/bin/bash", m.Home, m.environ()
	spec.Args = []string{"--noprofile", "--norc", "-e", "-c", text}
	p, err := proc.Launch(m.Place, spec)
	if err != nil {
		return err
	}
	r.background = append(r.background, p)
	if b.Until == "" {
		return nil
	}
	return p.WaitOutput(ctx, b.Until)
}

func (m Machine) environ() []string { return append([]string{"HOME=" + m.Home}, m.Env...) }

// terminals is what the background has printed, for a message.
func (r *Runner) terminals() string {
	var b strings.Builder
	for _, p := range r.background {
		fmt.Fprintf(&b, "\nin the background, %s:\n%s", p.Name(), p.Output())
	}
	return b.String()
}

func (r *Runner) stop() {
	for _, sh := range r.shells {
		sh.close()
	}
	for _, p := range r.background {
		p.Stop()
	}
}

// shell is a machine's bash. Blocks are files that it reads in; a trap notes
// the commands that fail.
type shell struct {
	machine Machine
	process *proc.Process
	stdin   *os.File
	blocks  int
}

func newShell(m Machine) (*shell, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close()
	spec := m.Spec
	spec.Name, spec.Path, spec.Dir, spec.Env, spec.StdinFile = "shell", "/bin/bash", m.Home, m.environ(), read
	spec.Args = []string{"--noprofile", "--norc"}
	p, err := proc.Launch(m.Place, spec)
	if err != nil {
		write.Close()
		return nil, err
	}
	return &shell{machine: m, process: p, stdin: write}, nil
}

// run runs one block and returns what it printed.
func (s *shell) run(ctx context.Context, text string) (string, error) {
	s.blocks++
	file := filepath.Join(s.machine.Home, fmt.Sprintf(".block%d", s.blocks))
	if err := s.machine.write(ctx, file, text); err != nil {
		return "", err
	}
	begin, end := fmt.Sprintf("<<begin %d>>", s.blocks), fmt.Sprintf("<<end %d ", s.blocks)
	// ERR traps fire where set -e would end the shell; the block goes on and
	// the first failure is told at its end.
	_, err := fmt.Fprintf(s.stdin, `echo '%s'; failed=0; set -E
trap 'code=$?; [ "$failed" != 0 ] || { failed=$code; echo "failed with $code: $BASH_COMMAND"; }' ERR
. %s </dev/null
trap - ERR; echo; echo '%s'$failed'>>'
`, begin, file, end)
	if err != nil {
		return "", fmt.Errorf("the shell has ended: %w", err)
	}
	waitErr := s.process.WaitOutput(ctx, end)
	_, output, _ := strings.Cut(s.process.Output(), begin+"\n")
	output, tail, _ := strings.Cut(output, end)
	output = strings.TrimSuffix(output, "\n")
	switch {
	case waitErr != nil:
		return output, waitErr
	case !strings.HasPrefix(tail, "0>>"):
		return output, errors.New("a command failed")
	}
	return output, nil
}

func (s *shell) close() {
	s.stdin.Close()
	s.process.Stop()
}
