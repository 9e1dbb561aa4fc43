// Package mutate makes wrong configuration files out of right ones, for tests:
// each mutant differs in one key, which is dropped, duplicated, given another
// type, made to dangle, or renamed.
//
//	for _, m := range mutate.All(text) {
//		_, err := config.Parse(os.Getenv, strict.Source{Name: "edge.toml", Text: []byte(m.Text)})
//		if err != nil && !m.Named(err) { t.Errorf("%s: not named:\n%v", m, err) }
//	}
//
// A mutant may be right still (a default took the place of what was dropped);
// then the daemon has to start with it. The package is for tests only.
package mutate

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/warrenmesh/warren/configs/strict"
)

// Op is a kind of mutation.
type Op string

// The kinds of mutation.
const (
	Drop      Op = "drop"      // the key, or the table with all its keys
	Behead    Op = "behead"    // a table's header alone: its keys join the table above
	Duplicate Op = "duplicate" // the key, or the table
	Retype    Op = "retype"    // the value
	Dangle    Op = "dangle"    // a string of the value
	Rename    Op = "rename"    // the key, or the table
)

// Mutant is a file with one mutation.
type Mutant struct {
	Text string
	Op   Op
	Path string // of the key, in the file before
	// First and Last are the lines of Text that the mutation touched. Where
	// something was dropped they are those around it and that of the table
	// that lacks it.
	First, Last int
	Table       int    // line of the header of the table that holds the key; 0: none
	Old         string // what stood there
	New         string // what stands there now; "" where nothing does
}

// String names the mutant in a test's message.
func (m Mutant) String() string {
	return fmt.Sprintf("%s %s (line %d): %q → %q", m.Op, m.Path, m.First, m.Old, m.New)
}

// Named reports whether err, the report on the mutant, leads its reader to the
// mutation. A problem does that which
//
//   - stands on a line that the mutation touched, or on the header of the table
//     around it;
//   - mentions such a line ("already set at line 7"), or the key, in its table;
//   - shows a word that went or came with the mutation (what referred to a name
//     that is no more).
func (m Mutant) Named(err error) bool {
	var problems strict.Problems
	if !errors.As(err, &problems) {
		return false
	}
	table, key := "", m.Path
	if dot := strings.LastIndexByte(m.Path, '.'); dot >= 0 {
		table, key = m.Path[:dot], m.Path[dot+1:]
	}
	words := append(words(m.Old), words(m.New)...)
	for line := m.First; line <= m.Last; line++ {
		words = append(words, fmt.Sprintf(":%d;", line), fmt.Sprintf("line %d;", line))
	}
	return slices.ContainsFunc(problems, func(p strict.Problem) bool {
		if p.Line >= m.First && p.Line <= m.Last || p.Line == m.Table && p.Line > 0 {
			return true
		}
		text := p.String()
		return strings.HasPrefix(p.Path, table+".") && strings.Contains(p.Text, key) ||
			slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) })
	})
}

// words are the strings of a piece of TOML, and its table: what other tables
// may refer to.
func words(text string) []string {
	var out []string
	if header, _, _ := strings.Cut(text, "\n"); strings.HasPrefix(header, "[") {
		out = append(out, header)
	}
	for i, part := range strings.Split(text, `"`) {
		if i%2 == 1 && len(part) > 1 {
			out = append(out, part)
		}
	}
	return out
}

// All returns every mutant of text, which has to be TOML, in a fixed order.
func All(text string) ([]Mutant, error) {
	places, err := strict.Places(text)
	if err != nil {
		return nil, fmt.Errorf("mutating: %w", err)
	}
	m := mutator{text: text, places: places}
	m.collectValues()
	for i, p := range places {
		if p.Header {
			m.header(i)
		} else {
			m.key(i)
		}
	}
	return m.out, nil
}

// mutator collects the mutants of one file.
type mutator struct {
	text   string
	places []strict.Place
	values []string // of every type, and those of the file itself
	out    []Mutant
}

// others are values of every type, some of them legal here and there.
var others = []string{`""`, `"x"`, `0`, `-1`, `99999`, `1.5`, `true`, `[]`, `["x"]`, `[1]`, `{}`, `{x = 1}`, `1979-05-27`, `"0s"`, `"::"`,
	`inf`, `9223372036854775807`, `"1ns"`, `"10000h"`, `"\u0000"`, `"a\nb"`, `'''é'''`, `[[]]`, `["", ""]`, `[true, 1, "x"]`,
	`"tcp/0"`, `["tcp/65535", "udp/65535"]`, `"0.0.0.0"`, `["::", "0.0.0.0"]`, `["0.0.0.0/0", "::/0"]`, `["fe80::1%lo"]`, `"255.255.255.255:1"`, `["127.0.0.1:0"]`, `"64MiB"`, `"-"`, `"/"`, `""" x """`, `"http://x"`, `"@public"`, `"*"`,
	`"` + strings.Repeat("long ", 60) + `"`,
}

// collectValues gathers what Retype puts in: what is legal at one key is
// likely to be nearly so at another.
func (m *mutator) collectValues() {
	m.values = slices.Clone(others)
	for _, p := range m.places {
		if _, value, ok := strings.Cut(m.text[p.Start:p.End], "="); ok && !p.Header {
			m.values = append(m.values, strings.TrimSpace(value))
		}
	}
	slices.Sort(m.values)
	m.values = slices.Compact(m.values)
}

// put adds the mutant that has insert instead of the bytes from start to end.
func (m *mutator) put(op Op, i, start, end int, insert string) {
	old := m.text[start:end]
	if old == insert {
		return
	}
	first := strings.Count(m.text[:start], "\n") + 1
	mut := Mutant{
		Text: m.text[:start] + insert + m.text[end:], Op: op, Path: m.places[i].Path, Old: old, New: insert,
		First: first, Last: first + strings.Count(strings.TrimSuffix(insert, "\n"), "\n"), Table: m.tableLine(i),
	}
	if op == Drop || op == Behead { // the neighbours have moved together
		mut.First, mut.Last = first-1, first+1
	}
	m.out = append(m.out, mut)
}

// tableLine returns the line of the header above the i-th place, 0 where there
// is none: it stands before whatever the mutation moves.
func (m *mutator) tableLine(i int) int {
	for i--; i >= 0; i-- {
		if m.places[i].Header {
			return m.places[i].Line
		}
	}
	return 1
}

// section returns where the table ends whose header is the i-th place: at the
// next header, or at the end.
func (m *mutator) section(i int) int {
	for _, p := range m.places[i+1:] {
		if p.Header {
			return p.Start
		}
	}
	return len(m.text)
}

// header mutates a table.
func (m *mutator) header(i int) {
	p := m.places[i]
	end := m.section(i)
	header, whole := m.text[p.Start:p.End], m.text[p.Start:end]
	m.put(Drop, i, p.Start, end, "")
	m.put(Behead, i, p.Start, p.End, "")
	m.put(Duplicate, i, end, end, "\n"+strings.TrimRight(whole, "\n")+"\n")
	name := strings.Trim(header, "[]")
	open, shut := header[:strings.Index(header, name)], header[strings.Index(header, name)+len(name):]
	for _, other := range renamed(name) {
		m.put(Rename, i, p.Start, p.End, open+other+shut)
	}
	if strings.HasPrefix(header, "[[") {
		m.put(Retype, i, p.Start, p.End, "["+name+"]")
	} else {
		m.put(Retype, i, p.Start, p.End, "[["+name+"]]")
	}
}

// key mutates "key = value".
func (m *mutator) key(i int) {
	p := m.places[i]
	both := m.text[p.Start:p.End]
	name, value, _ := strings.Cut(both, "=")
	valueStart := p.End - len(strings.TrimLeft(value, " \t"))
	if !p.Inline {
		m.put(Drop, i, p.Start, m.lineEnd(p.End), "")
		m.put(Duplicate, i, m.lineEnd(p.End), m.lineEnd(p.End), m.newline(p.End)+both+"\n")
	}
	for _, other := range renamed(strings.TrimSpace(name)) {
		m.put(Rename, i, p.Start, p.Start+len(strings.TrimRight(name, " \t")), other)
	}
	for _, other := range m.values {
		m.put(Retype, i, valueStart, p.End, other)
	}
	old := m.text[valueStart:p.End]
	for _, at := range stringsOf(old) {
		text := old[at[0]:at[1]]
		for _, other := range []string{
			text + "-gone", text[1:], text[:len(text)-1], strings.ToUpper(text), " " + text, text + text, text[1:] + text[:1],
		} {
			m.put(Dangle, i, valueStart, p.End, old[:at[0]]+other+old[at[1]:])
		}
	}
}

// lineEnd returns where the line of pos ends, its newline included.
func (m *mutator) lineEnd(pos int) int {
	if i := strings.IndexByte(m.text[pos:], '\n'); i >= 0 {
		return pos + i + 1
	}
	return len(m.text)
}

// newline returns what has to stand before a line that is put behind that of
// pos.
func (m *mutator) newline(pos int) string {
	if strings.IndexByte(m.text[pos:], '\n') < 0 {
		return "\n"
	}
	return ""
}

// renamed returns names that are close to name: what a person types.
func renamed(name string) []string {
	out := []string{name + "x", name + "-", "x" + name, name + name[len(name)-1:], strings.ToUpper(name[:1]) + name[1:], name[:len(name)-1] + "_"}
	if len(name) > 2 {
		out = append(out, name[:1]+name[2:], name[:1]+name[2:3]+name[1:2]+name[3:])
	}
	return slices.DeleteFunc(out, func(s string) bool { return s == name })
}

// stringsOf returns where each string of a value begins and ends, without its
// quotes. Strings of one byte are left out.
func stringsOf(value string) [][2]int {
	var out [][2]int
	open := -1
	for i := range len(value) {
		switch {
		case value[i] != '"':
		case open < 0:
			open = i + 1
		default:
			if i > open+1 {
				out = append(out, [2]int{open, i})
			}
			open = -1
		}
	}
	return out
}
