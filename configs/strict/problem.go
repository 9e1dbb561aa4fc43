package strict

import (
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing to mend in a configuration file.
type Problem struct {
	File  string // as it was named to Read or Parse
	Line  int    // from 1; 0 where unknown
	Path  string // key path with indices, as in app[2].listen[0]; "" for the file itself
	Value string // what stands there, as written in TOML and shortened; "" where it does not help
	Text  string // what is wrong
	Hint  string // what to write instead; may be empty

	file *file
}

// String renders the problem on one line:
//
//	edge.toml:12: app[0].listen[1]: "tcp/99999": port out of range; use 1 to 65535
func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d", p.Line)
		}
		b.WriteString(": ")
	}
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	if p.Value != "" {
		b.WriteString(p.Value + ": ")
	}
	b.WriteString(p.Text)
	if p.Hint != "" {
		b.WriteString("; " + p.Hint)
	}
	return b.String()
}

// Problems is a list of problems. It is an error whose text has one line for
// each.
type Problems []Problem

// Error implements error: one problem a line, without a newline at the end.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// sorted returns a copy in the order of the files, then of the lines, without
// repetitions. Problems of one line stay in the order of their paths.
func (ps Problems) sorted() Problems {
	out := slices.Clone(ps)
	slices.SortStableFunc(out, func(a, b Problem) int {
		if c := a.order() - b.order(); c != 0 {
			return c
		}
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		if c := comparePaths(a.Path, b.Path); c != 0 {
			return c
		}
		return strings.Compare(a.Text, b.Text)
	})
	return slices.CompactFunc(out, func(a, b Problem) bool { return a.String() == b.String() })
}

func (p Problem) order() int {
	if p.file == nil {
		return -1
	}
	return p.file.order
}

// comparePaths compares two key paths so that listen[2] comes before
// listen[10]: a run of digits counts as a number.
func comparePaths(a, b string) int {
	for a != "" && b != "" {
		da, db := digits(a), digits(b)
		if da > 0 && db > 0 {
			if da != db {
				return da - db
			}
			if c := strings.Compare(a[:da], b[:db]); c != 0 {
				return c
			}
			a, b = a[da:], b[db:]
			continue
		}
		if a[0] != b[0] {
			return int(a[0]) - int(b[0])
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}

// digits returns the length of the run of decimal digits that s starts with.
func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}

// Fault is the error that a TextUnmarshaler returns to say both what is wrong
// with its text and what to write instead.
type Fault struct {
	Text string // what is wrong, as in "port out of range"
	Hint string // what to write instead; may be empty
}

// Error implements error.
func (f *Fault) Error() string {
	if f.Hint == "" {
		return f.Text
	}
	return f.Text + "; " + f.Hint
}

// Reject returns a Fault.
func Reject(text, hint string) error { return &Fault{Text: text, Hint: hint} }
