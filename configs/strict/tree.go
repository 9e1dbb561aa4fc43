package strict

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// file is one source; nodes point at it so that a merged tree knows where each
// key came from.
type file struct {
	name  string
	order int
}

type kind uint8

const (
	kindScalar kind = iota
	kindTable       // [a], a.b = …, {…}
	kindTables      // [[a]]
	kindArray       // […]
)

// node is one key or array element with its place.
type node struct {
	file *file
	kind kind
	line int    // of the key, of the table's header, or of the array's element
	path string // as problems show it; indices count within the file

	start, end int  // bytes of "key = value", or of a header, in the file
	headed     bool // a table with a header of its own, not implied by another
	implied    int  // where the header starts that implies it; negative: a dotted key does

	keys   []string // a table's keys in document order
	child  map[string]*node
	elems  []*node // kindTables, kindArray
	value  any     // a scalar: string, int64, float64, bool, time.Time
	hidden bool    // the value is never printed
}

func newNode(f *file, k kind, line int, path string) *node {
	return &node{file: f, kind: k, line: line, path: path}
}

// put adds c under key, which must not exist yet.
func (n *node) put(key string, c *node) {
	if n.child == nil {
		n.child = make(map[string]*node)
	}
	n.keys = append(n.keys, key)
	n.child[key] = c
}

// table returns the table to go on in where the path of a key or header runs
// through n: n itself, or the last of [[n]].
func (n *node) table() *node {
	if n.kind == kindTables && len(n.elems) > 0 {
		return n.elems[len(n.elems)-1]
	}
	return n
}

// attach hangs the decoded values into the tree of places. Where the places
// lack a node, it is made with the line of its parent.
func (n *node) attach(v any) {
	switch v := v.(type) {
	case map[string]any:
		n.kind = kindTable
		for key, cv := range v {
			c := n.child[key]
			if c == nil {
				c = newNode(n.file, kindScalar, n.line, join(n.path, quoteKey(key)))
				n.put(key, c)
			}
			c.attach(cv)
		}
	case []map[string]any:
		if n.kind != kindArray {
			n.kind = kindTables
		}
		for i, cv := range v {
			n.elem(i).attach(cv)
		}
	case []any:
		n.kind = kindArray
		for i, cv := range v {
			n.elem(i).attach(cv)
		}
	default:
		n.kind, n.value = kindScalar, v
	}
}

// elem returns the i-th element, and makes the missing ones.
func (n *node) elem(i int) *node {
	for len(n.elems) <= i {
		path := fmt.Sprintf("%s[%d]", n.path, len(n.elems))
		n.elems = append(n.elems, newNode(n.file, kindScalar, n.line, path))
	}
	return n.elems[i]
}

// find walks path from n and returns the last node that exists, with the rest
// of the path ("" when all of it exists).
func (n *node) find(path string) (*node, string) {
	for path != "" {
		next, rest := n.step(path)
		if next == nil {
			return n, path
		}
		n, path = next, rest
	}
	return n, ""
}

// step takes the first key or index off path.
func (n *node) step(path string) (*node, string) {
	path = strings.TrimPrefix(path, ".")
	if strings.HasPrefix(path, "[") {
		num, rest, ok := strings.Cut(path[1:], "]")
		i, err := strconv.Atoi(num)
		if !ok || err != nil || i < 0 || i >= len(n.elems) {
			return nil, ""
		}
		return n.elems[i], rest
	}
	if quoted, err := strconv.QuotedPrefix(path); err == nil {
		key, _ := strconv.Unquote(quoted)
		return n.child[key], path[len(quoted):]
	}
	end := strings.IndexAny(path, ".[")
	if end < 0 {
		end = len(path)
	}
	return n.child[path[:end]], path[end:]
}

// join appends a key or an index to a path.
func join(path, rest string) string {
	rest = strings.TrimPrefix(rest, ".")
	if path == "" || rest == "" || rest[0] == '[' {
		return path + rest
	}
	return path + "." + rest
}

// KeyPath is the path of the key in the table at path, as Add wants it: for
// keys that the file chooses.
func KeyPath(path, key string) string { return join(path, quoteKey(key)) }

// quoteKey writes a key as TOML does: bare where that is allowed.
func quoteKey(key string) string {
	for i := 0; i < len(key); i++ {
		if !bareKey(key[i]) {
			return shorten(strconv.Quote(key))
		}
	}
	if key == "" {
		return `""`
	}
	return shorten(key)
}

// show renders a scalar as TOML does; "" for anything else, and for what must
// not be printed.
func (n *node) show() string {
	if n.kind != kindScalar || n.hidden {
		return ""
	}
	switch v := n.value.(type) {
	case string:
		return shorten(strconv.Quote(v))
	case time.Time:
		return v.Format(time.RFC3339)
	case nil:
		return ""
	default:
		return fmt.Sprint(v)
	}
}

// shorten cuts a rendered value to a length that keeps a problem on one line.
func shorten(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	cut := most
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}

// merge takes the keys of src, another file, into dst.
func (d *Doc) merge(dst, src *node, top bool) {
	for _, key := range src.keys {
		have, add := dst.child[key], src.child[key]
		switch {
		case have == nil:
			dst.put(key, add)
		case have.kind == kindTable && add.kind == kindTable:
			d.merge(have, add, false)
		case have.kind == kindTables && add.kind == kindTables:
			have.elems = append(have.elems, add.elems...)
		case top && key == perFile && have.kind == kindScalar && add.kind == kindScalar && have.value == add.value:
		default:
			d.report(add, Problem{
				Path: add.path,
				Text: fmt.Sprintf("already set in %s:%d", have.file.name, have.line),
				Hint: "keep one of the two",
			})
		}
	}
}
