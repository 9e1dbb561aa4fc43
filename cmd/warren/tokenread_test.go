package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	connectorconfig "github.com/warrenmesh/warren/connector/config"
)

// readToken reads a token as `connector run` does.
func readToken(t *testing.T, stdin string, env map[string]string, args ...string) error {
	t.Helper()
	var given givenToken
	c := &cobra.Command{Use: "run"}
	given.add(c)
	if err := c.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	getenv := func(key string) string { return env[key] }
	return given.read(t.Context(), c, &program{
		env: getenv, unsetenv: func(key string) { delete(env, key) }, stdin: strings.NewReader(stdin),
	}, connectorconfig.Default(getenv))
}

// TestReadToken: which text is taken shows by the complaint about it, for none
// is a token. Whatever is taken, the environment has no token afterwards.
func TestReadToken(t *testing.T) {
	const wrong, newer, short = "hunter2", "wrn2_AAAA", "wrn1_"
	const isWrong, isNewer, isShort, isEmpty = "not a token", "later release", "cut short", "is empty"
	dir := t.TempDir()
	file, open := filepath.Join(dir, "token"), filepath.Join(dir, "open")
	empty, quoted := filepath.Join(dir, "empty"), filepath.Join(dir, "quoted")
	for _, f := range []struct {
		path, text string
		mode       os.FileMode
	}{{file, newer + "\n", 0o600}, {open, newer + "\n", 0o644}, {empty, " \n", 0o600}, {quoted, "'" + newer + "'\n", 0o600}} {
		if err := os.WriteFile(f.path, []byte(f.text), f.mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name, stdin string
		args        []string
		code        int
		from, want  string
	}{
		{"the environment", "", nil, exitRefused, "WARREN_TOKEN", isWrong},
		{"a flag", "", []string{"--token", newer}, exitRefused, "--token", isNewer},
		{"an empty flag", "", []string{"--token", ""}, exitRefused, "--token", isEmpty},
		{"a file", "", []string{"--token-file", file}, exitRefused, file, isNewer},
		{"standard input", "\n  " + newer + " \n" + short, []string{"--token-file", "-"}, exitRefused, "standard input", isNewer},
		{"standard input without an end of line", short, []string{"--token-file", "-"}, exitRefused, "standard input", isShort},
		{"an empty file", "", []string{"--token-file", empty}, exitRefused, empty, isEmpty},
		{"a quoted flag", "", []string{"--token", `"` + newer + `"`}, exitRefused, "--token", "without the quotes"},
		{"a quoted file", "", []string{"--token-file", quoted}, exitRefused, quoted, "without the quotes"},
		{"a byte order mark", byteOrderMark + newer, []string{"--token-file", "-"}, exitRefused, "standard input", "without the mark"},
		{"two flags", "", []string{"--token", wrong, "--token-file", file}, exitUsage, "--token and --token-file", "exclude each other"},
		{"no file", "", []string{"--token-file", filepath.Join(dir, "none")}, exitFailed, `none"`, "warren token create"},
		{"a file that others can read", "", []string{"--token-file", open}, exitFailed, `open"`, "run chmod 600"},
		{"a directory", "", []string{"--token-file", dir}, exitFailed, "file", dir},
		{"nothing on standard input", " \n\n", []string{"--token-file", "-"}, exitRefused, "standard input", isEmpty},
		{"white space without end", strings.Repeat(" ", 2*maxTokenInput), []string{"--token-file", "-"}, exitRefused, "standard input", isEmpty},
	} {
		t.Run(tc.name, func(t *testing.T) {
			env := map[string]string{"WARREN_TOKEN": wrong, "WARREN_STATE_DIR": "kept"}
			err := readToken(t, tc.stdin, env, tc.args...)
			if err == nil || exitCode(err) != tc.code || !strings.Contains(err.Error(), tc.from) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, exit code %d, want %d, %q, %q", err, exitCode(err), tc.code, tc.from, tc.want)
			}
			if err != nil && (strings.Contains(err.Error(), wrong) || strings.Contains(err.Error(), newer)) {
				t.Errorf("error = %v, which quotes a secret", err)
			}
			if _, there := env["WARREN_TOKEN"]; there || len(env) != 1 {
				t.Errorf("the environment is %q afterwards", env)
			}
		})
	}
	if err := readToken(t, wrong, map[string]string{}); err != nil {
		t.Errorf("none: %v", err)
	}
}

func TestUnsetenv(t *testing.T) {
	t.Setenv(tokenVariable, "x")
	if unsetenv(tokenVariable); os.Getenv(tokenVariable) != "" {
		t.Error("a child would have the token")
	}
}

func TestExitCodeOfTokens(t *testing.T) {
	if got := exitCode(&uselessError{errors.New("no token")}); got != exitRefused {
		t.Errorf("a wrong token has exit code %d", got)
	}
}
