// Package daemon runs the real warren binary in tests: it builds it once,
// writes its config files, starts edges and connectors as processes on hosts,
// and waits until they serve.
//
// A test binary calls Build from its TestMain, before it enters namespaces (a
// build may need the network for modules), and Find wherever a test needs the
// program.
//
// The package must never link the daemons into the test: what it starts is
// what a person starts.
package daemon

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/warrenmesh/warren/integration/require"
)

// How Build tells the tests, which may run in another process, what it made.
const (
	envBinary = "WARREN_TEST_BINARY" // the program's path
	envError  = "WARREN_TEST_ERROR"  // why there is none
)

// Build builds cmd/warren of the repository at root, for as long as run runs,
// and returns run's result. With the race detector in the test it is in the
// program too. In a re-run of the test binary, whose environment knows the
// program already, it only calls run.
func Build(root string, run func() int) int {
	if os.Getenv(envBinary) != "" || os.Getenv(envError) != "" {
		return run()
	}
	dir, err := os.MkdirTemp("", "warren-build-")
	if err != nil {
		os.Setenv(envError, err.Error())
		return run()
	}
	defer os.RemoveAll(dir)
	// Ordinary people run the program from here.
	os.Chmod(dir, 0o755)
	path := filepath.Join(dir, "warren")
	if err := build(root, path); err != nil {
		os.Setenv(envError, err.Error())
	} else {
		os.Setenv(envBinary, path)
	}
	return run()
}

var errNoCommand = errors.New("there is no cmd/warren yet")

func build(root, path string) error {
	if _, err := os.Stat(filepath.Join(root, "cmd", "warren", "main.go")); err != nil {
		return errNoCommand
	}
	args := []string{"build", "-o", path}
	if raceEnabled {
		// Built for its profile as well it would take minutes more.
		args = append(args, "-race", "-pgo=off")
	}
	cmd := exec.Command("go", append(args, "./cmd/warren")...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building cmd/warren: %w\n%s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Warren is the program.
type Warren struct{ Path string }

// Find returns the program that Build made. It fails the test if the build
// failed.
func Find(tb require.TB) Warren {
	tb.Helper()
	path := os.Getenv(envBinary)
	switch why := os.Getenv(envError); {
	case why == errNoCommand.Error():
		require.Missing(tb, "cmd/warren, which is not built yet")
	case path == "":
		tb.Fatalf("the program is missing: %s", why)
	}
	return Warren{Path: path}
}
