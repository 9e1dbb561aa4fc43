package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// workDir is where a run keeps its files. netns.Main has mounted a tmpfs
// there that nobody else sees: the files end with the run, however it ends.
const workDir = "/run/bench"

// envBinary is how daemon.Build names the program that it made.
const envBinary = "WARREN_TEST_BINARY"

// settle moves everything that the run has on disk into workDir: a run that is
// killed has nothing left to clean up.
func settle(o *options) error {
	if err := os.MkdirAll(workDir, 0o777); err != nil {
		return err
	}
	if err := os.Chmod(workDir, 0o777|os.ModeSticky); err != nil {
		return err
	}
	if o.profile != "" {
		if err := os.MkdirAll(o.profile, 0o755); err != nil {
			return err
		}
	}
	built := ""
	if len(o.warrens) == 0 {
		if built = os.Getenv(envBinary); built == "" {
			return fmt.Errorf("the program is missing: %s", os.Getenv("WARREN_TEST_ERROR"))
		}
		o.warrens = []named{{nameWarren, built}}
	}
	for i, w := range o.warrens {
		to := filepath.Join(workDir, w.name)
		if err := copyProgram(to, w.path); err != nil {
			return fmt.Errorf("copying a program: %w", err)
		}
		o.warrens[i].path = to
	}
	for _, dir := range []string{filepath.Dir(built), os.TempDir()} {
		if name := filepath.Base(dir); strings.HasPrefix(name, "warren-build-") || strings.HasPrefix(name, "warren-test-") {
			os.RemoveAll(dir) // else it goes when the run ends
		}
	}
	// The mounts are the run's own, yet no peer shall get at the machine's
	// file through them.
	resolv := filepath.Join(workDir, "resolv.conf")
	if err := os.WriteFile(resolv, nil, 0o644); err != nil {
		return err
	}
	if err := unix.Mount(resolv, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("hiding /etc/resolv.conf: %w", err)
	}
	return os.Setenv("TMPDIR", workDir)
}

// copyProgram copies an executable that everybody may run.
func copyProgram(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// dieWithGo ends this process when the go command that runs it is killed,
// which passes no signal on.
func dieWithGo() {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", os.Getppid()))
	if err == nil && strings.TrimSpace(string(comm)) == "go" {
		unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
	}
}
