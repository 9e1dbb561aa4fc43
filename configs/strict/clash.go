package strict

import "fmt"

// clash is a key or header that cannot stand beside one before it. It is
// reported and left out, so that it does not hide the problems of the rest.
// The decoder would catch most of these itself, but it stops there, names one
// place of the two, and some ("a.b = 1", then "a = 2") it drops in silence.
type clash struct {
	path       string
	line       int
	start, end int  // what is left out
	section    bool // and the keys below that header too
	inline     bool // part of an inline table, so that it cannot be left out
	missed     bool // what is left out would have declared something
	text, hint string
}

// twiceKey records "key = value" from start to here, where first was before.
func (s *scanner) twiceKey(first *node, line, start int, inline bool) {
	s.clashes = append(s.clashes, clash{
		path: first.path, line: line, start: start, end: s.pos, inline: inline,
		text: fmt.Sprintf("duplicate key, already set at line %d", first.line), hint: "remove one of the two",
	})
}

// twiceTable records a second [header].
func (s *scanner) twiceTable(first *node, line, start int) {
	s.clashes = append(s.clashes, clash{
		path: first.path, line: line, start: start, end: s.pos, section: true,
		text: fmt.Sprintf("duplicate table, already set at line %d", first.line), hint: "put its keys into one table",
	})
}

// singleAfterList records [header] where [[header]] was before.
func (s *scanner) singleAfterList(list *node, line, start int) {
	s.clashes = append(s.clashes, clash{
		path: list.path, line: line, start: start, end: s.pos, section: true, missed: true,
		text: fmt.Sprintf("a list of tables since line %d", list.line), hint: fmt.Sprintf("write [[%s]]", list.path),
	})
}

// listAfterSingle records that [[header]] comes at line where single was
// before: [header], or [[header.below]], which implies it.
func (s *scanner) listAfterSingle(single *node, line int) {
	c := clash{path: single.path, line: single.line, start: single.start, end: single.end, section: true, missed: true,
		text: fmt.Sprintf("one table here, but a list of tables at line %d", line), hint: fmt.Sprintf("write [[%s]]", single.path)}
	if !single.headed {
		if single.implied < 0 {
			return // by a dotted key; the decoder says so
		}
		c.start, c.end = single.implied, single.implied+1
		c.text = fmt.Sprintf("a part of %s before the first [[%s]]", single.path, single.path)
		c.hint = fmt.Sprintf("begin with a [[%s]]", single.path)
	}
	s.clashes = append(s.clashes, c)
}

// rounds is how often a file is searched for clashes: what is left out may
// have hidden another. What is there after that is the decoder's to find.
const rounds = 16

// resolveClashes scans src, reports its clashes, and returns src with them
// blanked out (places stay the same) and its scan. The error is errTwice where
// that cannot be done.
func (d *Doc) resolveClashes(f *file, src string) (string, *scanner, error) {
	for range rounds {
		places, err := scan(f, src)
		if err != nil || len(places.clashes) == 0 {
			return src, places, err
		}
		blanked := []byte(src)
		for _, c := range places.clashes {
			d.problems = append(d.problems, Problem{File: f.name, file: f, Line: c.line, Path: c.path, Text: c.text, Hint: c.hint})
			d.broken = d.broken || c.missed || c.inline
			if c.inline {
				err = errTwice
				continue
			}
			if c.section {
				c.end = places.sectionEnd(c.start)
			}
			for i := c.start; i < c.end; i++ {
				if blanked[i] != '\n' {
					blanked[i] = ' '
				}
			}
		}
		if err != nil {
			return src, places, err
		}
		src = string(blanked)
	}
	places, err := scan(f, src)
	return src, places, err
}

// sectionEnd returns where the section ends whose header starts at start: at
// the next header, or at the end of the file.
func (s *scanner) sectionEnd(start int) int {
	for _, h := range s.headers { // in ascending order
		if h > start {
			return h
		}
	}
	return len(s.src)
}
