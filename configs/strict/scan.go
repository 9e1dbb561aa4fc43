package strict

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxDepth bounds the nesting of arrays and inline tables. The decoder
// recurses, so without a bound a file of brackets would exhaust the stack.
const maxDepth = 64

var (
	errScan  = errors.New("not TOML")
	errTwice = errors.New("a key of an inline table is there twice")
	errDeep  = fmt.Errorf("arrays or inline tables are nested deeper than %d", maxDepth)
)

// scanner finds the place of every key and array element of a TOML document.
// It judges nothing: the decoder says what is valid, the scanner only has to
// agree with it on what a valid document holds. On anything else it stops.
type scanner struct {
	src  string
	pos  int
	line int // of pos, from 1

	file  *file
	root  *node
	table *node    // the table that the last header opened
	ctx   []string // its key path

	keys    [][]string // in the order of toml.MetaData.Keys
	headers []int      // where each header starts
	clashes []clash
	depth   int
}

// scan reads src. The error says where it stopped understanding; what it found
// before is in the scanner.
func scan(f *file, src string) (*scanner, error) {
	s := &scanner{src: src, line: 1, file: f, root: newNode(f, kindTable, 1, "")}
	s.table = s.root
	for {
		s.blank(true)
		if s.pos >= len(s.src) {
			return s, nil
		}
		var err error
		if s.src[s.pos] == '[' {
			err = s.header()
		} else {
			err = s.keyValue(s.table, s.ctx, false)
		}
		if err == nil {
			err = s.endOfLine()
		}
		if err != nil {
			return s, err
		}
	}
}

// blank skips spaces and tabs, and with lines also newlines and comments.
func (s *scanner) blank(lines bool) {
	for s.pos < len(s.src) {
		switch c := s.src[s.pos]; {
		case c == ' ' || c == '\t':
		case lines && c == '\n':
			s.line++
		case lines && c == '\r':
		case lines && c == '#':
			s.comment()
			continue
		default:
			return
		}
		s.pos++
	}
}

// comment skips to the newline, and leaves it.
func (s *scanner) comment() {
	for s.pos < len(s.src) && s.src[s.pos] != '\n' {
		s.pos++
	}
}

// endOfLine wants a comment, a newline or the end.
func (s *scanner) endOfLine() error {
	s.blank(false)
	if s.pos < len(s.src) && s.src[s.pos] == '#' {
		s.comment()
	}
	if s.pos < len(s.src) && s.src[s.pos] != '\n' && s.src[s.pos] != '\r' {
		return errScan
	}
	return nil
}

// next takes c if it is the next byte.
func (s *scanner) next(c byte) bool {
	if s.pos < len(s.src) && s.src[s.pos] == c {
		s.pos++
		return true
	}
	return false
}

// header reads [a.b] or [[a.b]] and opens that table.
func (s *scanner) header() error {
	start, line := s.pos, s.line
	s.pos++
	array := s.next('[')
	parts, err := s.key()
	if err != nil {
		return err
	}
	if !s.next(']') || array && !s.next(']') {
		return errScan
	}
	s.keys = append(s.keys, parts)
	s.ctx, s.headers = parts, append(s.headers, start)

	parent, err := s.walk(s.root, parts[:len(parts)-1], line, start)
	if err != nil {
		return err
	}
	last := parts[len(parts)-1]
	if array {
		s.openElem(parent, last, line, start)
		return nil
	}
	have := parent.child[last]
	switch {
	case have == nil:
		have = newNode(s.file, kindTable, line, join(parent.path, quoteKey(last)))
		parent.put(last, have)
	case have.kind == kindTable && have.headed:
		s.twiceTable(have, line, start)
	case have.kind == kindTables:
		s.singleAfterList(have, line, start)
	}
	if !have.headed {
		have.headed, have.line, have.start, have.end = true, line, start, s.pos
	}
	s.table = have
	return nil
}

// openElem adds an element to [[last]] in parent and opens it.
func (s *scanner) openElem(parent *node, last string, line, start int) {
	list := parent.child[last]
	switch {
	case list == nil:
		list = newNode(s.file, kindTables, line, join(parent.path, quoteKey(last)))
		parent.put(last, list)
	case list.kind == kindTable:
		s.listAfterSingle(list, line)
	}
	elem := newNode(s.file, kindTable, line, fmt.Sprintf("%s[%d]", list.path, len(list.elems)))
	elem.headed, elem.start, elem.end = true, start, s.pos
	list.elems = append(list.elems, elem)
	s.table = elem
}

// walk follows parts from n through tables, and makes those that are implied
// by the header that starts at implied; by a dotted key where that is negative.
func (s *scanner) walk(n *node, parts []string, line, implied int) (*node, error) {
	for _, part := range parts {
		n = n.table()
		c := n.child[part]
		if c == nil {
			c = newNode(s.file, kindTable, line, join(n.path, quoteKey(part)))
			c.implied = implied
			n.put(part, c)
		}
		if c.kind != kindTable && c.kind != kindTables {
			return nil, errScan
		}
		n = c
	}
	return n.table(), nil
}

// keyValue reads one "a.b = value" into table, whose key path is ctx.
func (s *scanner) keyValue(table *node, ctx []string, inline bool) error {
	start, line := s.pos, s.line
	parts, err := s.key()
	if err != nil {
		return err
	}
	if !s.next('=') {
		return errScan
	}
	full := append(append([]string(nil), ctx...), parts...)
	s.keys = append(s.keys, full)

	table, err = s.walk(table, parts[:len(parts)-1], line, -1)
	if err != nil {
		return err
	}
	last := parts[len(parts)-1]
	have := table.child[last]
	n := newNode(s.file, kindScalar, line, join(table.path, quoteKey(last)))
	if have == nil {
		table.put(last, n)
	}
	n.start = start
	s.blank(false)
	if err := s.value(n, full); err != nil {
		return err
	}
	n.end = s.pos
	if have != nil {
		s.twiceKey(have, line, start, inline)
	}
	return nil
}

// key reads the parts of a dotted key, with the spaces around them.
func (s *scanner) key() ([]string, error) {
	var parts []string
	for {
		s.blank(false)
		part, err := s.keyPart()
		if err != nil {
			return nil, err
		}
		parts = append(parts, part)
		s.blank(false)
		if !s.next('.') {
			return parts, nil
		}
	}
}

func (s *scanner) keyPart() (string, error) {
	if s.pos >= len(s.src) {
		return "", errScan
	}
	start := s.pos
	switch s.src[s.pos] {
	case '"':
		if err := s.quoted('"'); err != nil {
			return "", err
		}
		return unescape(s.src[start+1 : s.pos-1])
	case '\'':
		if err := s.quoted('\''); err != nil {
			return "", err
		}
		return s.src[start+1 : s.pos-1], nil
	}
	for s.pos < len(s.src) && bareKey(s.src[s.pos]) {
		s.pos++
	}
	if s.pos == start {
		return "", errScan
	}
	return s.src[start:s.pos], nil
}

// bareKey tells whether c may stand in a key without quotes.
func bareKey(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-'
}

// quoted skips a string of one line from its opening quote to behind the
// closing one.
func (s *scanner) quoted(q byte) error {
	s.pos++
	for s.pos < len(s.src) {
		switch c := s.src[s.pos]; {
		case c == q:
			s.pos++
			return nil
		case c == '\n':
			return errScan
		case c == '\\' && q == '"':
			s.pos++
		}
		s.pos++
	}
	return errScan
}

// multiline skips a string of several lines from its opening quotes to behind
// the closing ones. One or two quotes may stand right before the closing three.
func (s *scanner) multiline(q byte) error {
	s.pos += 3
	three := strings.Repeat(string(q), 3)
	for start := s.pos; s.pos < len(s.src); s.pos++ {
		switch c := s.src[s.pos]; {
		case c == q && strings.HasPrefix(s.src[s.pos:], three):
			end := s.pos + 3
			if end >= len(s.src) || s.src[end] != q {
				s.pos = end
				return nil
			}
			// A sixth quote in a row is an error, unless the first is escaped.
			// The decoder looks no further back than one backslash.
			text, five := s.src[start:end], three+three[:2]
			if strings.HasSuffix(text, five) && (q == '\'' || !strings.HasSuffix(text, `\`+five)) {
				return errScan
			}
		case c == '\\' && q == '"':
			s.pos++
			if s.pos < len(s.src) && s.src[s.pos] == '\n' {
				s.line++
			}
		case c == '\n':
			s.line++
		}
	}
	return errScan
}

// value reads the value of n, whose key path is full.
func (s *scanner) value(n *node, full []string) error {
	if s.pos >= len(s.src) {
		return errScan
	}
	switch c := s.src[s.pos]; c {
	case '"', '\'':
		if strings.HasPrefix(s.src[s.pos:], strings.Repeat(string(c), 3)) {
			return s.multiline(c)
		}
		return s.quoted(c)
	case '[':
		return s.nested(func() error { return s.array(n, full) })
	case '{':
		return s.nested(func() error { return s.inline(n, full) })
	}
	start := s.pos
	for s.pos < len(s.src) && !strings.ContainsRune(",]}#\n\r", rune(s.src[s.pos])) {
		s.pos++
	}
	if strings.TrimRight(s.src[start:s.pos], " \t") == "" {
		return errScan
	}
	return nil
}

// nested runs f one level deeper.
func (s *scanner) nested(f func() error) error {
	if s.depth >= maxDepth {
		return errDeep
	}
	s.depth++
	defer func() { s.depth-- }()
	s.pos++
	return f()
}

// array reads the elements of n behind the opening bracket.
func (s *scanner) array(n *node, full []string) error {
	n.kind = kindArray
	for {
		s.blank(true)
		if s.next(']') {
			return nil
		}
		e := newNode(s.file, kindScalar, s.line, fmt.Sprintf("%s[%d]", n.path, len(n.elems)))
		n.elems = append(n.elems, e)
		if err := s.value(e, full); err != nil {
			return err
		}
		s.blank(true)
		if s.next(']') {
			return nil
		}
		if !s.next(',') {
			return errScan
		}
	}
}

// inline reads the keys of the inline table n behind the opening brace.
func (s *scanner) inline(n *node, full []string) error {
	n.kind = kindTable
	for {
		s.blank(true)
		if s.next('}') {
			return nil
		}
		if err := s.keyValue(n, full, true); err != nil {
			return err
		}
		s.blank(true)
		if s.next('}') {
			return nil
		}
		if !s.next(',') {
			return errScan
		}
	}
}

// unescape resolves the escapes of a basic string.
func unescape(s string) (string, error) {
	if !strings.Contains(s, `\`) {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		i++
		if i >= len(s) {
			return "", errScan
		}
		if at := strings.IndexByte(`btnfre"\`, s[i]); at >= 0 {
			b.WriteByte("\b\t\n\f\r\x1b\"\\"[at])
			continue
		}
		size := map[byte]int{'x': 2, 'u': 4, 'U': 8}[s[i]]
		if size == 0 || i+size >= len(s) {
			return "", errScan
		}
		code, err := strconv.ParseUint(s[i+1:i+1+size], 16, 32)
		if err != nil || !utf8.ValidRune(rune(code)) {
			return "", errScan
		}
		b.WriteRune(rune(code))
		i += size
	}
	return b.String(), nil
}
