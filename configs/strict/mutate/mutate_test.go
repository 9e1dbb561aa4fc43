package mutate

import (
	"slices"
	"strings"
	"testing"

	"github.com/warrenmesh/warren/configs/strict"
)

const sample = `version = 1
[edge]
name = "fra1" # a comment
[[app]]
name = "db"
listen = ["tcp/5432",
  "udp/53"]
inline = {a = 1}
[[app]]
name = "web"
`

// find returns the mutant with op, path and new text.
func find(t *testing.T, op Op, path, now string) Mutant {
	t.Helper()
	all, err := All(sample)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(m Mutant) bool { return m.Op == op && m.Path == path && m.New == now })
	if i < 0 {
		t.Fatalf("no %s of %s to %q", op, path, now)
	}
	return all[i]
}

func TestAll(t *testing.T) {
	for _, tt := range []struct {
		name               string
		op                 Op
		path, now          string
		from, to           string // what the text has instead of what
		first, last, table int
	}{
		{"drop a key", Drop, "edge.name", "", "name = \"fra1\" # a comment\n", "", 2, 4, 2},
		{"drop a list", Drop, "app[0].listen", "", "listen = [\"tcp/5432\",\n  \"udp/53\"]\n", "", 5, 7, 4},
		{"drop a table", Drop, "app[1]", "", "[[app]]\nname = \"web\"\n", "", 8, 10, 4},
		{"behead", Behead, "edge", "", "[edge]", "", 1, 3, 1},
		{"duplicate", Duplicate, "edge.name", "name = \"fra1\"\n", "# a comment\n", "# a comment\nname = \"fra1\"\n", 4, 4, 2},
		{"duplicate a table", Duplicate, "edge", "\n[edge]\nname = \"fra1\" # a comment\n", "# a comment\n", "# a comment\n\n[edge]\nname = \"fra1\" # a comment\n", 4, 6, 1},
		{"retype", Retype, "edge.name", "-1", `"fra1"`, "-1", 3, 3, 2},
		{"retype an inline key", Retype, "app[0].inline.a", `"x"`, "{a = 1}", `{a = "x"}`, 8, 8, 4},
		{"retype a table", Retype, "edge", "[[edge]]", "[edge]", "[[edge]]", 2, 2, 1},
		{"dangle", Dangle, "app[0].listen", "[\"tcp/5432\",\n  \"udp/53-gone\"]", "udp/53", "udp/53-gone", 6, 7, 4},
		{"rename", Rename, "app[1].name", "nmae", "name = \"web\"", "nmae = \"web\"", 10, 10, 9},
		{"rename a table", Rename, "edge", "[Edge]", "[edge]", "[Edge]", 2, 2, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := find(t, tt.op, tt.path, tt.now)
			if want := strings.Replace(sample, tt.from, tt.to, 1); m.Text != want {
				t.Errorf("text is\n%s\nwant\n%s", m.Text, want)
			}
			if m.First != tt.first || m.Last != tt.last || m.Table != tt.table {
				t.Errorf("lines %d to %d, table %d; want %d to %d, %d", m.First, m.Last, m.Table, tt.first, tt.last, tt.table)
			}
		})
	}
}

func TestNamed(t *testing.T) {
	m := find(t, Dangle, "edge.name", `"fra1-gone"`)
	for _, tt := range []struct {
		name    string
		problem strict.Problem
		want    bool
	}{
		{"its line", strict.Problem{Line: 3}, true},
		{"its table", strict.Problem{Line: 2}, true},
		{"another line", strict.Problem{Line: 5, Text: "bad"}, false},
		{"a mention of the line", strict.Problem{Line: 5, Text: "taken at edge.toml:3", Hint: "x"}, true},
		{"the old word", strict.Problem{Line: 5, Value: `"fra1"`, Text: "no such edge"}, true},
	} {
		if got := m.Named(strict.Problems{tt.problem}); got != tt.want {
			t.Errorf("%s: named is %v", tt.name, got)
		}
	}
	if m.Named(nil) || m.Named(strict.Reject("x", "")) {
		t.Error("what is no list of problems names nothing")
	}
}

func TestAllWantsTOML(t *testing.T) {
	for _, text := range []string{"a = ", "a = 1\na = 2\n", "\xef\xbb\xbfa = 1"} {
		if _, err := All(text); err == nil {
			t.Errorf("%q was mutated", text)
		}
	}
}

func TestEdgeIsTOML(t *testing.T) {
	all, err := All(Edge(20000, "/state"))
	if err != nil || len(all) < 10_000 {
		t.Errorf("%d mutants, %v", len(all), err)
	}
	if more, err := All(Director(20000, "/state")); err != nil || len(more) < 5_000 {
		t.Errorf("%d mutants of the director, %v", len(more), err)
	}
	if again, _ := All(Edge(20000, "/state")); !slices.Equal(all, again) {
		t.Error("two runs differ")
	}
}
