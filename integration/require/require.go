// Package require says what a test needs of the machine it runs on.
//
// A test asks for a tool or a right through this package before it does
// anything else. Where the machine lacks it the test is skipped, and the skip
// names what was missing; with WARREN_REQUIRE_ALL=1 in the environment (as in
// .ci/run, which installs everything first) the same lack is a failure, so
// that a test cannot stop running without anybody noticing.
//
// The package must never decide by itself that a test is not worth running:
// it only reports what is missing.
package require

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
)

// EnvAll is the variable that turns every skip for a missing tool or right
// into a failure when it is set to "1".
const EnvAll = "WARREN_REQUIRE_ALL"

// TB is the part of testing.TB that the integration packages use. It is an
// interface of its own so that a program (a benchmark, say) can own hosts and
// daemons too.
type TB interface {
	Helper()
	Name() string
	Context() context.Context
	Cleanup(func())
	Failed() bool
	TempDir() string
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// Missing ends the test because the machine lacks something: as skipped, or
// as failed when EnvAll asks for everything. The text says what is missing
// and, where it helps, what would provide it.
func Missing(tb TB, format string, args ...any) {
	tb.Helper()
	if All() {
		tb.Fatalf(EnvAll+"=1 and this machine lacks "+format, args...)
		return
	}
	tb.Skipf("needs "+format, args...)
}

// All reports whether a lack is a failure.
func All() bool { return os.Getenv(EnvAll) == "1" }

// Tool returns the path of a program, which may lie where daemons are kept
// (/usr/sbin) rather than on an ordinary person's PATH. pkg is the Debian
// package that has it, for the message.
func Tool(tb TB, name, pkg string) string {
	tb.Helper()
	path, ok := Find(name)
	if !ok {
		Missing(tb, "the program %q (Debian package %s)", name, pkg)
	}
	return path
}

// Find looks for a program on PATH, then where Debian keeps daemons and the
// server programs of PostgreSQL, the newest version first.
func Find(name string) (string, bool) {
	// Debian keeps PostgreSQL's programs of each major version apart and puts
	// wrappers of another kind on PATH: look there first.
	versions, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	sort.Sort(sort.Reverse(sort.StringSlice(versions)))
	for _, path := range versions {
		if executable(path) {
			return path, true
		}
	}
	if path, err := exec.LookPath(name); err == nil {
		return path, true
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if path := filepath.Join(dir, name); executable(path) {
			return path, true
		}
	}
	return "", false
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}
