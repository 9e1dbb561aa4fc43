// Package strict reads TOML the way an operator wants it read: every problem
// is found in one go, and each names its file, line, key path (with index),
// value and what to write instead. Keys are case-sensitive, an unknown key is
// an error, and a value of the wrong type is never converted in silence.
//
// Use: Read the files, Parse them into a Doc, Fill a struct whose fields carry
// `toml:"name"` tags, Add what only the caller can know ("no such network"),
// then look at Err.
//
//	doc := strict.Parse(sources...)
//	var file File
//	doc.Fill(&file)
//	if dangling { doc.Add("app[0].network", "no such network", `add a [[network]]`) }
//	return file, doc.Err()
//
// Tags of a field: toml (its key), default, range ("1..65535", "1s..1h"),
// oneof ("a b"), later (values that a later version knows), required ("true").
//
// The package must never touch the machine except in Read, must never panic
// on any input, and must never print the value of a key that it does not
// know: it may be a secret in the wrong place.
package strict

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strings"
)

// MaxFile is the size in bytes above which a file is refused. 100,000 apps fit.
const MaxFile = 32 << 20

// Source is one file: the name that problems show, and its text.
type Source struct {
	Name string
	Text []byte
}

// Read reads the files at paths in the given order. A directory stands for
// its *.toml files in the order of their names; symbolic links are followed,
// so mounted secrets and config maps work. A directory without any such file
// is an error. All unreadable paths are reported together.
func Read(paths ...string) ([]Source, error) {
	var out []Source
	var errs []error
	for _, path := range paths {
		files, err := expand(path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, name := range files {
			text, err := readFile(name)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			out = append(out, Source{Name: name, Text: text})
		}
	}
	return out, errors.Join(errs...)
}

// expand returns path itself, or the *.toml files of the directory it names.
func expand(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading configuration %q: %w", path, cause(err))
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	files, err := filepath.Glob(filepath.Join(escapeGlob(path), "*.toml"))
	if err != nil {
		return nil, fmt.Errorf("reading configuration directory %q: %w", path, err)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("reading configuration directory %q: it holds no *.toml file", path)
	}
	sort.Strings(files)
	return files, nil
}

// escapeGlob quotes the characters that filepath.Glob gives a meaning to.
func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("reading configuration %q: %w", name, cause(err))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading configuration %q: %w", name, cause(err))
	}
	if info.IsDir() {
		return nil, fmt.Errorf("reading configuration %q: it is a directory", name)
	}
	if info.Size() > MaxFile {
		return nil, fmt.Errorf("reading configuration %q: it has %d bytes, more than %d", name, info.Size(), MaxFile)
	}
	// A pipe and a device say that they hold nothing, and may never end.
	text, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading configuration %q: %w", name, cause(err))
	}
	if len(text) > MaxFile {
		return nil, fmt.Errorf("reading configuration %q: it has more than %d bytes", name, MaxFile)
	}
	return text, nil
}

// cause strips the operation and the path, which the caller names already.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// Doc is the tree of one or several files merged, together with the problems
// found so far. It belongs to one goroutine.
type Doc struct {
	root     *node
	problems Problems
	broken   bool // a file could not be parsed, so the tree lacks what it says
	fields   map[reflect.Type][]Field
	top      reflect.Type // of the struct that Fill was given
}

// perFile names the key of the top level that every file may repeat with the
// same value.
const perFile = "version"

// Parse reads the sources into one tree. It never fails: syntax errors and
// duplicates are problems of the Doc.
//
// Tables of several files are merged key by key, arrays of tables are joined
// in the order of the sources. A key that two files set is a problem that
// names both places, except a top-level version of the same value.
func Parse(sources ...Source) *Doc {
	d := &Doc{fields: make(map[reflect.Type][]Field)}
	for i, src := range sources {
		f := &file{name: src.Name, order: i}
		root := d.parseFile(f, src.Text)
		if d.root == nil {
			d.root = root
			continue
		}
		d.merge(d.root, root, true)
	}
	if d.root == nil {
		d.root = newNode(&file{}, kindTable, 0, "")
	}
	return d
}

// Broken tells that a file had a syntax error, so that names which it would
// have declared are missing: checks across tables would only mislead.
func (d *Doc) Broken() bool { return d.broken }

// Err returns nil, or the sorted Problems.
func (d *Doc) Err() error {
	if ps := d.Problems(); len(ps) > 0 {
		return ps
	}
	return nil
}

// Problems returns all problems so far, sorted by file, line and key path,
// without repetitions.
func (d *Doc) Problems() Problems { return d.problems.sorted() }

// Add reports a problem with the value at path, which is written as problems
// show it ("app[0].listen[1]"); in a merged document an index counts over all
// files. Where path does not exist, the line is that of the closest table
// around it. The hint says what to write instead; it may be empty.
func (d *Doc) Add(path, problem, hint string) {
	n, rest := d.root.find(path)
	p := Problem{Path: join(n.path, rest), Text: problem, Hint: hint}
	if rest == "" {
		p.Value = n.show()
	}
	d.report(n, p)
}

// AddHidden is Add for a value that must not be printed.
func (d *Doc) AddHidden(path, problem, hint string) {
	n, rest := d.root.find(path)
	d.report(n, Problem{Path: join(n.path, rest), Text: problem, Hint: hint})
}

// Where returns "file:line" of the key at path, or of the closest table around
// it; "" where nothing is known.
func (d *Doc) Where(path string) string {
	n, _ := d.root.find(path)
	if n.file.name == "" || n.line == 0 {
		return n.file.name
	}
	return fmt.Sprintf("%s:%d", n.file.name, n.line)
}

// File returns the name of the file that sets path, or the closest table
// around it.
func (d *Doc) File(path string) string {
	n, _ := d.root.find(path)
	return n.file.name
}

// Fork returns a Doc of the same tree without any problem, for checks that come
// later. The two may be used at the same time.
func (d *Doc) Fork() *Doc { return &Doc{root: d.root, fields: make(map[reflect.Type][]Field)} }

// Has tells whether the document sets path.
func (d *Doc) Has(path string) bool {
	_, rest := d.root.find(path)
	return rest == ""
}

// Bad tells whether a problem was reported at path or below it. Callers use it
// to leave out what is only a consequence.
func (d *Doc) Bad(path string) bool {
	n, rest := d.root.find(path)
	full := join(n.path, rest)
	for _, p := range d.problems {
		tail, ok := strings.CutPrefix(p.Path, full)
		if ok && p.file == n.file && (tail == "" || tail[0] == '.' || tail[0] == '[') {
			return true
		}
	}
	return false
}

// report files p at the place of n.
func (d *Doc) report(n *node, p Problem) {
	p.File, p.file = n.file.name, n.file
	if p.Line == 0 {
		p.Line = n.line
	}
	d.problems = append(d.problems, p)
}
