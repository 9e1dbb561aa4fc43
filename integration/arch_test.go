package integration

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

const module = "github.com/warrenmesh/warren"

// TestArchitecture holds the repository against DESIGN §2 and the parts of
// the house style that a program can see.
func TestArchitecture(t *testing.T) {
	problems, err := inspect(os.DirFS(".."))
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		t.Error(problem)
	}
}

// inspect reads every Go file of a source tree and returns what is wrong with it.
func inspect(tree fs.FS) ([]string, error) {
	in := &inspection{tree: tree, rooms: map[string]room{}, docs: map[string][]string{}, code: map[string]bool{}}
	for _, r := range rooms {
		in.rooms[r.path] = r
	}
	if err := fs.WalkDir(tree, ".", in.visit); err != nil {
		return nil, err
	}
	in.packageComments()
	slices.Sort(in.problems)
	return in.problems, nil
}

type inspection struct {
	tree     fs.FS
	rooms    map[string]room
	docs     map[string][]string // room → files that hold a package comment
	code     map[string]bool     // rooms that hold code, not only tests
	unknown  []string
	problems []string
}

func (in *inspection) problem(format string, args ...any) {
	in.problems = append(in.problems, fmt.Sprintf(format, args...))
}

func (in *inspection) visit(name string, entry fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	if entry.IsDir() {
		base := path.Base(name)
		if name != "." && (strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") || base == "testdata") {
			return fs.SkipDir // as the go tool does
		}
		return nil
	}
	if !strings.HasSuffix(name, ".go") {
		return nil
	}
	dir := path.Dir(name)
	r, known := in.rooms[dir]
	if !known {
		if !slices.Contains(in.unknown, dir) {
			in.unknown = append(in.unknown, dir)
			in.problem("%s: a folder that DESIGN §2 does not know: give it a line in the design and in arch_table_test.go, with its arrows", dir)
		}
		return nil
	}
	return in.file(r, name)
}

// file checks one file of a known room.
func (in *inspection) file(r room, name string) error {
	source, err := fs.ReadFile(in.tree, name)
	if err != nil {
		return err
	}
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		in.problem("%v", err)
		return nil
	}
	test := strings.HasSuffix(name, "_test.go")
	if !test {
		in.code[r.path] = true
		if file.Doc != nil {
			in.docs[r.path] = append(in.docs[r.path], name)
			in.commentForm(file, name)
		}
	}
	for _, spec := range file.Imports {
		imported, _ := strconv.Unquote(spec.Path.Value)
		in.arrow(r, name, imported, test)
		in.library(r, name, imported, test)
	}
	stem := strings.TrimSuffix(strings.TrimSuffix(path.Base(name), ".go"), "_test")
	if slices.Contains(attics, stem) {
		in.problem("%s: a file of this name becomes everybody's attic: name it after what it holds (STYLE 21)", name)
	}
	limit := maxLines
	if test {
		limit = maxTestLines
	}
	if lines := strings.Count(string(source), "\n"); lines > limit && !ast.IsGenerated(file) {
		in.problem("%s: %d lines, more than %d: it holds two ideas at least (STYLE 21)", name, lines, limit)
	}
	for _, decl := range file.Decls {
		if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
			in.problem("%s: func init runs before anybody asked for it and cannot be tested: do it in New or in Run", set.Position(f.Pos()))
		}
	}
	return nil
}

// arrow checks an import of ours.
func (in *inspection) arrow(r room, name, imported string, test bool) {
	target, ours := strings.CutPrefix(imported, module+"/")
	if !ours || target == r.path { // a _test package imports its own room
		return
	}
	if _, known := in.rooms[target]; !known {
		return // the folder itself is reported
	}
	if matches(r.may, target) || test && matches(testsMay, target) {
		return
	}
	in.problem("%s: %s imports %s: %s", name, r.path, target, r.why)
}

// library checks an import of somebody else's. Tests are exempt: see testsMay.
func (in *inspection) library(r room, name, imported string, test bool) {
	if test || r.path == "integration" || strings.HasPrefix(r.path, "integration/") {
		return
	}
	for _, l := range libraries {
		if !below(imported, l.prefix) || l.except != "" && below(imported, l.except) || matches(l.only, r.path) {
			continue
		}
		in.problem("%s: %s imports %s: %s", name, r.path, imported, l.why)
	}
}

// commentForm wants the form that go doc expects.
func (in *inspection) commentForm(file *ast.File, name string) {
	want := "Package " + file.Name.Name + " "
	if file.Name.Name == "main" {
		want = "Command "
		if strings.HasPrefix(file.Doc.Text(), "Warren") {
			return
		}
	}
	if !strings.HasPrefix(file.Doc.Text(), want) {
		in.problem("%s: the package comment does not begin with %q", name, want)
	}
}

// packageComments wants exactly one package comment in each room.
func (in *inspection) packageComments() {
	for dir := range in.code {
		switch docs := in.docs[dir]; len(docs) {
		case 1:
		case 0:
			in.problem("%s: no package comment: say what it is for, how it is used, what it must never do (STYLE 2)", dir)
		default:
			in.problem("%s: a package comment in each of %q: there is one (STYLE 2)", dir, docs)
		}
	}
}

// matches reports whether a room is among patterns: exact paths, "x/..." for
// x and everything below it, "..." for everything.
func matches(patterns []string, target string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		if pattern == "..." {
			return true
		}
		if root, tree := strings.CutSuffix(pattern, "/..."); tree {
			return below(target, root)
		}
		return pattern == target
	})
}

func below(target, root string) bool {
	return target == root || strings.HasPrefix(target, root+"/")
}

// TestInspectFindsWhatIsWrong proves each rule: a tree that breaks it, and
// the complaint.
func TestInspectFindsWhatIsWrong(t *testing.T) {
	doc := func(pkg, rest string) string { return "// Package " + pkg + " is.\npackage " + pkg + "\n" + rest }
	imports := func(pkg, what string) string { return doc(pkg, "import _ \""+what+"\"\n") }
	for _, test := range []struct {
		name, file, source, want string // want "" is a tree in order
	}{
		{"in order", "edge/balance/balance.go", imports("balance", module+"/edge/flow"), ""},
		{"unknown folder", "edge/magic/magic.go", doc("magic", ""), "does not know"},
		{"testdata is no room", "edge/balance/testdata/x.go", "package x", ""},
		{"room to room", "edge/balance/balance.go", imports("balance", module+"/edge/monitor"), "arrow 3"},
		{"room to room in a test", "edge/balance/balance_test.go", imports("balance", module+"/edge/monitor"), "arrow 3"},
		{"the fake network in a test", "edge/balance/balance_test.go", "package balance\nimport _ \"" + module + "/netstack/memnet\"\n", ""},
		{"the fake network in code", "edge/balance/balance.go", imports("balance", module+"/netstack/memnet"), "arrow 3"},
		{"config imports Specs", "edge/config/config.go", imports("config", module+"/edge/monitor"), ""},
		{"connector to edge", "connector/connector.go", imports("connector", module+"/edge/balance"), "arrow 4"},
		{"connector to wire", "connector/connector.go", imports("connector", module+"/edge/wire"), ""},
		{"edge to connector", "edge/run.go", imports("edge", module+"/connector"), "arrow 2"},
		{"dnsd to edge", "dnsd/dnsd.go", imports("dnsd", module+"/edge"), "arrow 5"},
		{"netstack upward", "netstack/tunnel/tunnel.go", imports("tunnel", module+"/edge/flow"), "arrow 6"},
		{"leaf", "edge/flow/flow.go", imports("flow", module+"/netstack/netx"), "arrow 7"},
		{"command to room", "cmd/warren/main.go", "// Command warren is.\npackage main\nimport _ \"" + module + "/edge/balance\"\n", "arrow 1"},
		{"gvisor outside", "edge/run.go", imports("edge", "gvisor.dev/gvisor/pkg/tcpip"), "arrow 6"},
		{"gvisor inside", "netstack/link/link.go", imports("link", "gvisor.dev/gvisor/pkg/tcpip"), ""},
		{"wireguard outside", "connector/connector.go", imports("connector", "golang.zx2c4.com/wireguard/device"), "arrow 6"},
		{"wgtypes anywhere", "connector/connector.go", imports("connector", "golang.zx2c4.com/wireguard/wgctrl/wgtypes"), ""},
		{"toml outside", "edge/config/config.go", imports("config", "github.com/BurntSushi/toml"), "strict reader"},
		{"dns outside", "edge/run.go", imports("edge", "github.com/miekg/dns"), "dnsd's trade"},
		{"dns in a test", "edge/run_test.go", "package edge\nimport _ \"github.com/miekg/dns\"\n", ""},
		{"testing in code", "edge/run.go", imports("edge", "testing"), "linked into a daemon"},
		{"no comment", "edge/balance/balance.go", "package balance\n", "no package comment"},
		{"malformed comment", "edge/balance/balance.go", "// Balance is.\npackage balance\n", "begin with"},
		{"attic", "edge/balance/util.go", doc("balance", ""), "attic"},
		{"attic in tests", "edge/balance/helpers_test.go", "package balance\n", "attic"},
		{"init", "edge/balance/balance.go", doc("balance", "func init() {}\n"), "func init"},
		{"method named init", "edge/balance/balance.go", doc("balance", "type t int\nfunc (t) init() {}\n"), ""},
		{"too long", "edge/balance/balance.go", doc("balance", strings.Repeat("\n", maxLines)), "more than 500"},
		{"does not parse", "edge/balance/balance.go", doc("balance", "func"), "expected"},
	} {
		t.Run(test.name, func(t *testing.T) {
			problems, err := inspect(fstest.MapFS{test.file: {Data: []byte(test.source)}})
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Join(problems, "\n")
			if test.want == "" && got != "" || test.want != "" && !strings.Contains(got, test.want) {
				t.Errorf("problems = %q, want one with %q", got, test.want)
			}
		})
	}
	t.Run("two comments", func(t *testing.T) {
		problems, err := inspect(fstest.MapFS{
			"edge/balance/a.go": {Data: []byte(doc("balance", ""))},
			"edge/balance/b.go": {Data: []byte(doc("balance", ""))},
		})
		if err != nil || len(problems) != 1 || !strings.Contains(problems[0], "there is one") {
			t.Errorf("problems = %q, %v", problems, err)
		}
	})
}
