package strict

import (
	"cmp"
	"errors"
	"slices"
)

// Place is where one key, or one table's header, stands in a file.
type Place struct {
	Path   string // as problems show it
	Line   int    // from 1
	Start  int    // first byte of "key = value", or of "[header]"
	End    int    // one behind it
	Header bool   // a table's header
	Inline bool   // a key of an inline table
}

// Places lists the keys and headers of a document in the order in which they
// stand there, for programs that edit files. It fails on what is not TOML.
func Places(text string) ([]Place, error) {
	src := trimBOM(text)
	if len(src) != len(text) {
		return nil, errors.New("finding the keys of a document: it begins with a byte order mark; remove it")
	}
	places, err := scan(&file{}, src)
	if err != nil {
		return nil, errors.New("finding the keys of a document: it is not TOML")
	}
	if _, _, problem := decode(src); problem != nil {
		return nil, errors.New("finding the keys of a document: " + problem.String())
	}
	var out []Place
	var walk func(n *node, inline bool)
	walk = func(n *node, inline bool) {
		if n.end > 0 {
			out = append(out, Place{Path: n.path, Line: n.line, Start: n.start, End: n.end, Header: n.headed, Inline: inline})
		}
		inline = inline || n.end > 0 && !n.headed
		for _, key := range n.keys {
			walk(n.child[key], inline)
		}
		for _, e := range n.elems {
			walk(e, inline)
		}
	}
	walk(places.root, false)
	slices.SortStableFunc(out, func(a, b Place) int { return cmp.Compare(a.Start, b.Start) })
	return out, nil
}
