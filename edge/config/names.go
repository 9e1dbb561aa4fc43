package config

import (
	"fmt"

	"github.com/warrenmesh/warren/configs/strict"
)

// maxName is the most bytes of a name: that of a DNS label, and short enough
// for labels of metrics.
const maxName = 63

// checkName checks the name of a thing: it becomes a label of metrics, a word
// on command lines, and the left side of "network/ip:port".
func checkName(doc *strict.Doc, path, name string) {
	if name == "" || doc.Bad(path) {
		return // reported as missing or empty where it is required
	}
	const hint = `use letters, digits, "-", "_" and ".", beginning with a letter or a digit`
	if len(name) > maxName {
		doc.Add(path, fmt.Sprintf("name of %d bytes", len(name)), fmt.Sprintf("use %d at most", maxName))
		return
	}
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && (c == '-' || c == '_' || c == '.'):
		default:
			doc.Add(path, "bad character in a name", hint)
			return
		}
	}
}

// kind is the named tables of one kind, for references to them.
type kind struct {
	table string         // "pool"
	index map[string]int // of the first table that has the name
	names []string       // each once, in the order of the file
	sound bool           // every name could be read
}

// kindOf indexes names and reports those that are there twice.
func (l *loader) kindOf(table string, names []string) kind {
	k := kind{table: table, index: make(map[string]int, len(names))}
	k.sound = len(names) > 0 || !l.doc.Bad(table)
	for i, name := range names {
		path := fmt.Sprintf("%s[%d].name", table, i)
		if name == "" || l.doc.Bad(path) {
			k.sound = false
			continue
		}
		if first, twice := k.index[name]; twice {
			where := l.doc.Where(fmt.Sprintf("%s[%d].name", table, first))
			l.doc.Add(path, "the name is taken already, at "+where, "choose another")
			continue
		}
		k.index[name] = i
		k.names = append(k.names, name)
	}
	return k
}

// has reports whether the table exists that the value at path names. Where it
// does not, that is reported, unless it may be one of those that could not be
// read.
func (k kind) has(doc *strict.Doc, path, name string) bool {
	if _, ok := k.index[name]; ok {
		return true
	}
	if name == "" || !k.sound {
		return false
	}
	hint := strict.Suggest(name, k.names)
	if len(k.names) == 0 {
		hint = fmt.Sprintf("add a [[%s]] with that name", k.table)
	}
	doc.Add(path, "no such "+k.table, hint)
	return false
}
