package require

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// recorder is a TB that remembers how the test ended instead of ending.
type recorder struct {
	testing.TB
	skipped, failed string
}

func (r *recorder) Helper() {}
func (r *recorder) Skipf(format string, args ...any) {
	r.skipped = fmt.Sprintf(format, args...)
}
func (r *recorder) Fatalf(format string, args ...any) {
	r.failed = fmt.Sprintf(format, args...)
}

func TestMissingToolSkipsOrFails(t *testing.T) {
	for _, test := range []struct {
		name, all   string
		skip, fatal bool
	}{
		{name: "unset skips", all: "", skip: true},
		{name: "one fails", all: "1", fatal: true},
		{name: "zero skips", all: "0", skip: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv(EnvAll, test.all)
			r := &recorder{TB: t}
			if path := Tool(r, "no-such-program", "nothing"); path != "" {
				t.Fatalf("Tool returned %q for a program that does not exist", path)
			}
			if got := r.skipped != ""; got != test.skip {
				t.Errorf("skipped = %q", r.skipped)
			}
			if got := r.failed != ""; got != test.fatal {
				t.Errorf("failed = %q", r.failed)
			}
			if !strings.Contains(r.skipped+r.failed, `"no-such-program"`) {
				t.Errorf("the message does not name the program: %q", r.skipped+r.failed)
			}
		})
	}
}

func TestFindTakesOnlyExecutables(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	for name, mode := range map[string]os.FileMode{"runs": 0o755, "reads": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	if path, ok := Find("runs"); !ok || path != filepath.Join(dir, "runs") {
		t.Errorf(`Find("runs") = %q, %v`, path, ok)
	}
	if path, ok := Find("reads"); ok {
		t.Errorf("Find took %q, which is not executable", path)
	}
}
