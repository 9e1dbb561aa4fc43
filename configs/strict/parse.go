package strict

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// parseFile reads one file into a tree.
func (d *Doc) parseFile(f *file, text []byte) *node {
	src := trimBOM(string(text))
	src, places, err := d.resolveClashes(f, src)
	switch err {
	case errDeep:
		d.syntax(f, places.line, errDeep.Error())
		fallthrough
	case errTwice:
		return newNode(f, kindTable, 1, "")
	}
	values, keys, problem := decode(src)
	if problem != nil {
		d.broken = true
		problem.File, problem.file = f.name, f
		d.problems = append(d.problems, *problem)
		return newNode(f, kindTable, 1, "")
	}
	root := places.root
	if err != nil || !sameKeys(places.keys, keys) {
		// The scanner has misread a valid file: no place is better than a
		// wrong one.
		root = newNode(f, kindTable, 0, "")
	}
	root.attach(values)
	return root
}

// syntax reports a problem that keeps the file from being parsed.
func (d *Doc) syntax(f *file, line int, text string) {
	d.broken = true
	d.problems = append(d.problems, Problem{File: f.name, file: f, Line: line, Text: text})
}

// trimBOM strips byte order marks, as the decoder would strip the first:
// positions are then the same for both.
func trimBOM(s string) string {
	for {
		rest := s
		for _, bom := range []string{"\xef\xbb\xbf", "\xff\xfe", "\xfe\xff"} {
			rest = strings.TrimPrefix(rest, bom)
		}
		if rest == s {
			return s
		}
		s = rest
	}
}

// decode decodes src into maps and lists, with its keys in document order.
func decode(src string) (values map[string]any, keys []toml.Key, problem *Problem) {
	defer func() {
		// The decoder panics on its own bugs. A configuration file must not
		// be able to take a running edge down at a reload.
		if r := recover(); r != nil {
			problem = &Problem{Text: fmt.Sprintf("cannot be parsed as TOML: %v", firstLine(fmt.Sprint(r)))}
		}
	}()
	meta, err := toml.Decode(src, &values)
	if err == nil {
		return values, meta.Keys(), nil
	}
	var pe toml.ParseError
	if errors.As(err, &pe) {
		return nil, nil, &Problem{Line: pe.Position.Line, Path: shorten(pe.LastKey), Text: "bad TOML: " + firstLine(pe.Message)}
	}
	return nil, nil, &Problem{Text: "bad TOML: " + firstLine(err.Error())}
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s
}

// sameKeys tells whether the scanner and the decoder saw the same keys in the
// same order.
func sameKeys(scanned [][]string, decoded []toml.Key) bool {
	return slices.EqualFunc(scanned, decoded, func(a []string, b toml.Key) bool { return slices.Equal(a, b) })
}
