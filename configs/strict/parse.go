package strict

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// parseFile reads one file into a tree. A duplicate is reported with both
// places and left out, so that one does not hide the rest of the problems.
func (d *Doc) parseFile(f *file, text []byte) *node {
	src := trimBOM(string(text))
	src, places, err := d.dropDuplicates(f, src)
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

// dropDuplicates scans src, reports what is there twice, and returns src with
// the later ones blanked out (places stay the same) and its scan. What is twice
// inside an inline table cannot be blanked out: errTwice. The decoder would
// catch most of them itself, but without the first place, and some ("a.b = 1",
// then "a = 2") it drops in silence.
func (d *Doc) dropDuplicates(f *file, src string) (string, *scanner, error) {
	places, err := scan(f, src)
	if err != nil || len(places.twice) == 0 {
		return src, places, err
	}
	blanked := []byte(src)
	for _, twice := range places.twice {
		what, hint := "key", "remove one of the two"
		if twice.table {
			what, hint = "table", "put its keys into one table"
		}
		d.problems = append(d.problems, Problem{
			File: f.name, file: f, Line: twice.line, Path: twice.path,
			Text: fmt.Sprintf("duplicate %s, already set at line %d", what, twice.first.line),
			Hint: hint,
		})
		if !twice.blank {
			d.broken = true
			err = errTwice
			continue
		}
		end := twice.end
		if twice.table {
			end = places.sectionEnd(twice.start)
		}
		for i := twice.start; i < end; i++ {
			if blanked[i] != '\n' {
				blanked[i] = ' '
			}
		}
	}
	if err != nil {
		return src, places, err
	}
	src = string(blanked)
	places, err = scan(f, src)
	return src, places, err
}

// sectionEnd returns where the section ends whose header starts at start: at
// the next header, or at the end of the file.
func (s *scanner) sectionEnd(start int) int {
	end := len(s.src)
	for _, h := range s.headers {
		if h > start && h < end {
			end = h
		}
	}
	return end
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
