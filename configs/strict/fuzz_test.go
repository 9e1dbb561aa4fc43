package strict

import (
	"strings"
	"testing"
)

// seeds are documents that exercise each form of key and value.
var seeds = []string{
	"",
	"a = 1\n",
	"\xef\xbb\xbfa = 1",
	"a.b.c = 1\na.b.d = 2\r\n",
	"[a]\nb = 1\n[a.c]\nd = 'x'\n",
	"[[a]]\nb = 1\n[[a.c]]\n[[a.c]]\nd = 1\n[a.e]\n[[a]]\n[a.e]\nx=1\n",
	"a = [1, 2, # c\n 3,\n]\n",
	"a = [[1], [{b = 1, c.d = 2}, {b = 3}]]\n",
	"a = {b = {c = 1}, d = [ {e = 1} ] }\n[f]\ng = {}",
	"\"quoted \\\" key\" = 1\n'lit.eral' . x = \"v\"\n\"\\u00e9\".\"\\x41\" = 2",
	"a = \"\"\"\nmany\nlines \\\n   cont \"\" \\\" \"\"\"\"\"\nb = '''\nx''''\nc = 1",
	"a = \"# no comment ] } ,\" # comment ] }\nb = 1979-05-27 07:32:32 # date\nc = 07:32:00",
	"a = +1_000\nb = 0xdead_beef\nc = -inf\nd = 1e5\ne = true",
	"[ a . \"b\" ]\nc=1\n[[ d ]]\n",
	"a = 1\na = 2\n[t]\n[u]\nx=1\n[t]\ny=1\n",
	"[a]\nx = {a=1, a=2}",
	"a = " + strings.Repeat("[", 200),
	"a = {\n b = 1, # c\n c = 2,\n}\n",
	"version = 1\n[[app]]\nname = \"db\"\nlisten = [\"tcp/5432\",\n  \"udp/53\"]\n",
	"'''a''' = 1", "a = \"\\", "[a", "[[a]", "a", "=", "[]", "a.b", "a = {b", "\x00", "a = \"\xff\"",
	"[a.b]\n[a]\nb.c = 1", "a = 1\n[a.b]\n", "x = []\n[[x]]\n", "0 = 1\n1.2 = 3", "0=\"\"\"\"\\\\\"\"\"\"\"\"#\"\"\"", "\xff\xfe\xff\xfe", "a.b= 1\na= 2\r\n",
}

// FuzzScan holds the scanner's keys equal to the decoder's for every document
// that the decoder accepts.
func FuzzScan(f *testing.F) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, src string) {
		src = trimBOM(src)
		places, err := scan(&file{}, src)
		if err == errDeep {
			return
		}
		_, keys, problem := decode(src)
		if problem != nil {
			return
		}
		if err != nil {
			t.Fatalf("scan stopped at line %d of a valid document: %v", places.line, err)
		}
		if !sameKeys(places.keys, keys) {
			t.Fatalf("keys differ\nscanned: %q\ndecoded: %q", places.keys, keys)
		}
		lines := strings.Count(src, "\n") + 1
		checkLines(t, places.root, lines)
	})
}

// checkLines wants every node on a line that exists.
func checkLines(t *testing.T, n *node, lines int) {
	t.Helper()
	if n.line < 1 || n.line > lines {
		t.Fatalf("%q is on line %d of %d", n.path, n.line, lines)
	}
	for _, c := range n.child {
		checkLines(t, c, lines)
	}
	for _, e := range n.elems {
		checkLines(t, e, lines)
	}
}

// FuzzFill wants no panic, and problems that can be rendered.
func FuzzFill(f *testing.F) {
	for _, s := range seeds {
		f.Add(s, "[edge]\nname = 'x'\n")
	}
	f.Add("[edge]\nname='x'\n[[item]]\nname='a'\n[item.weights]\n'a.b'=101\n", "")
	f.Add("[edge]\nname=''\nidle='5'\n[[item]]\nname='a'\nports=[1,99999]\n", "version=2")
	f.Fuzz(func(t *testing.T, a, b string) {
		doc := Parse(Source{"a", []byte(a)}, Source{"b", []byte(b)})
		var into sample
		doc.Fill(&into)
		doc.Add("item[0].name", "x", "y")
		doc.Bad("item")
		for _, p := range doc.Problems() {
			if s := p.String(); strings.ContainsAny(s, "\n\r") {
				t.Fatalf("a problem of several lines: %q", s)
			}
		}
	})
}
