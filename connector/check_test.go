package connector

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/warrenmesh/warren/connector/guard"
	"github.com/warrenmesh/warren/connector/origin"
	"github.com/warrenmesh/warren/edge/wire"
)

func writeFile(t *testing.T, path, text string, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func TestCheck(t *testing.T) {
	resolver := &fakeResolver{}
	resolver.set("edge.example", "203.0.113.10")
	resolver.set("db.example", "10.0.0.9")
	resolver.set("loop.example", "10.0.0.9", "127.0.0.1")
	alias := func(from, to string) origin.Alias {
		b := &bench{t: t}
		b.alias(from, to)
		return b.spec.Origin.Aliases[0]
	}
	// made is a state directory with a file in it.
	made := func(s *Spec, mode fs.FileMode, name, text string) {
		if err := errors.Join(os.Mkdir(s.StateDir, 0o700), os.Chmod(s.StateDir, mode)); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(s.StateDir, name), text, 0o600)
	}
	const enrolled = `{"version":1,"edges":[{"public_key":"HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=","urls":["a:1"]}]}`
	tests := []struct {
		name   string
		change func(s *Spec)
		want   map[string]string // path → a part of the hint
	}{
		{name: "good", change: func(s *Spec) { s.Origin.Aliases = []origin.Alias{alias("tcp/10.0.0.1:80", "db.example:80")} }},
		{name: "edge without an address", change: func(s *Spec) { s.Edges[0].URLs[0].Host = "none.example" }, want: map[string]string{"edge[0].url": "no such host"}},
		{name: "alias without an address", change: func(s *Spec) { s.Origin.Aliases = []origin.Alias{alias("tcp/10.0.0.1:80", "none.example:80")} },
			want: map[string]string{"alias[0].to": "no such host"}},
		{name: "alias to loopback by name", change: func(s *Spec) { s.Origin.Aliases = []origin.Alias{alias("tcp/10.0.0.1:80", "loop.example:80")} },
			want: map[string]string{"alias[0].to": "127.0.0.1 is a loopback address"}},
		{name: "alias that the guard denies", change: func(s *Spec) {
			s.Origin.Aliases = []origin.Alias{alias("tcp/10.0.0.1:80", "db.example:80")}
			s.Guard.Allow = []guard.Rule{rule("tcp/10.0.0.2:80")}
		}, want: map[string]string{"alias[0].from": "the guard denies it"}},
		{name: "no key file", change: func(s *Spec) { s.PrivateKeyFile = "/none/key" }, want: map[string]string{"connector.private_key_file": "no such file"}},
		{name: "open key in the state directory", change: func(s *Spec) {
			made(s, 0o700, "lock", "")
			writeFile(t, s.keyFile(), "x", 0o644)
		}, want: map[string]string{"connector.state_dir": "chmod 600"}},
		{name: "open state directory", change: func(s *Spec) { made(s, 0o755, "lock", "") },
			want: map[string]string{"connector.state_dir": "everybody on this machine has access (mode 0755): run chmod 700"}},
		{name: "open state directory that keeps nothing", change: func(s *Spec) {
			made(s, 0o755, "lock", "")
			s.PrivateKeyFile = filepath.Join(s.StateDir, "mine")
			writeFile(t, s.PrivateKeyFile, newKey(t).String(), 0o600)
		}},
		{name: "open state directory that is to keep an enrolment", change: func(s *Spec) {
			made(s, 0o755, "mine", newKey(t).String())
			s.PrivateKeyFile = filepath.Join(s.StateDir, "mine")
			s.Token = wire.NewToken(false, []wire.Edge{{PublicKey: wire.Key{Key: s.Edges[0].PublicKey}, URLs: []string{"edge.example:51820"}}})
		}, want: map[string]string{"connector.state_dir": "chmod 700"}},
		{name: "damaged state", change: func(s *Spec) { made(s, 0o700, "state.json", "{") }, want: map[string]string{"connector.state_dir": "it is damaged"}},
		{name: "no edge", change: func(s *Spec) { s.Edges = nil }, want: map[string]string{"edge": "none is declared, and none is known in "}},
		{name: "an edge in the state", change: func(s *Spec) { s.Edges = nil; made(s, 0o700, "state.json", enrolled) }},
		{name: "an edge in the token", change: func(s *Spec) {
			s.Token = wire.NewToken(false, []wire.Edge{{PublicKey: wire.Key{Key: s.Edges[0].PublicKey}, URLs: []string{"edge.example:51820"}}})
			s.Edges = nil
		}},
		{name: "problems of the spec come first", change: func(s *Spec) { s.Edges[0].URLs = nil; s.PrivateKeyFile = "/none/key" }, want: map[string]string{"edge[0].url": "is needed"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := goodSpec(t)
			tt.change(&s)
			got := Check(t.Context(), s, resolver)
			if len(got) != len(tt.want) {
				t.Errorf("Check finds %v", got)
			}
			for _, p := range got {
				if hint, ok := tt.want[p.Path]; !ok || !strings.Contains(p.String(), hint) {
					t.Errorf("Check finds %v, want %q", p, hint)
				}
			}
		})
	}
}
