package strict

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// Fill sets the fields of the struct that into points at from the document:
// values, then defaults for what is absent. Whatever does not fit becomes a
// problem and leaves its field alone. A struct that implements Validator is
// asked once it is filled, inner ones first.
//
// A field may be: string, bool, any integer (range by its type and the range
// tag), float64, time.Duration, Size, netip.Addr, AddrPort and Prefix, any
// encoding.TextUnmarshaler (an error made by Reject carries its hint or takes
// the field's, another one stands alone), a struct (table), a map from names
// that the file chooses to any of these (table; the range tag is that of its
// values), a slice of any of these, or a pointer to one (nil: absent).
// An empty string leaves a text field that is not required at its zero value,
// which is how a default is turned off.
func (d *Doc) Fill(into any) {
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		panic("strict: Fill wants a pointer to a struct") // a programmer's mistake, never the file's
	}
	d.top = v.Elem().Type()
	d.fillTable(d.root, "", v.Elem())
}

// fillTable fills a struct. path is that of the merged document.
func (d *Doc) fillTable(n *node, path string, v reflect.Value) {
	fields, cached := d.fields[v.Type()]
	if !cached {
		fields = Fields(v.Type())
		d.fields[v.Type()] = fields
	}
	known := make([]string, 0, len(fields))
	for _, f := range fields {
		known = append(known, f.Key)
		fv := v.Field(f.index)
		c := n.child[f.Key]
		if c == nil {
			d.absent(n, join(path, f.Key), fv, f)
			continue
		}
		d.fillValue(c, join(path, f.Key), fv, f)
	}
	for _, key := range n.keys {
		if !slices.Contains(known, key) {
			d.unknown(n.child[key], key, known)
		}
	}
	if val, ok := v.Addr().Interface().(Validator); ok {
		val.Validate(d, path)
	}
}

// unknown reports a key that the struct does not have. Its value stays
// unprinted: it may be a secret under a wrong name.
func (d *Doc) unknown(n *node, key string, known []string) {
	hint := Suggest(key, known)
	if isTable := n.kind == kindTable || n.kind == kindTables; !isTable && !strings.HasPrefix(hint, "did") {
		if inner := holders(d.top, key); len(inner) > 0 && len(inner) < 4 {
			hint = fmt.Sprintf("it belongs into %s", strings.Join(inner, " or "))
		}
	}
	d.report(n, Problem{Path: n.path, Text: "unknown key", Hint: hint})
}

// holders names the tables of the whole file, t, that know key.
func holders(t reflect.Type, key string) []string {
	var out []string
	for _, f := range Fields(t) {
		ft, format := t.Field(f.index).Type, "[%s]"
		if ft.Kind() == reflect.Slice {
			ft, format = ft.Elem(), "[[%s]]"
		}
		if ft.Kind() != reflect.Struct || isText(ft) {
			continue
		}
		for _, inner := range Fields(ft) {
			if inner.Key == key && ft.Field(inner.index).Type != typeUnsupported {
				out = append(out, fmt.Sprintf(format, f.Key))
			}
		}
	}
	return out
}

// absent sets the default of a field that the file does not set.
func (d *Doc) absent(parent *node, path string, v reflect.Value, f Field) {
	if f.Required && d.broken {
		return // it may stand in the file that could not be parsed
	}
	if f.Required {
		hint := f.Hint
		if hint == "" && len(f.OneOf) > 0 {
			hint = f.Legal()
		}
		d.report(parent, Problem{Path: join(parent.path, f.Key), Text: "missing", Hint: hint})
		return
	}
	t := v.Type()
	switch {
	case f.Default != "":
		if err := setDefault(v, f.Default); err != nil {
			panic(fmt.Sprintf("strict: default of %s: %v", path, err)) // found by any test that fills the struct
		}
	case t.Kind() == reflect.Struct && !isText(t) && t != typeUnsupported:
		none := newNode(parent.file, kindTable, parent.line, join(parent.path, f.Key))
		d.fillTable(none, path, v)
	}
}

// setDefault sets v from the text of a default tag.
func setDefault(v reflect.Value, text string) error {
	if isText(v.Type()) {
		return setText(v, text)
	}
	var value any = text
	switch v.Kind() {
	case reflect.Bool:
		value = text == "true"
	case reflect.Float32, reflect.Float64, reflect.String:
	default:
		i, err := parseInt(text)
		if err != nil {
			return err
		}
		value = i
	}
	return setPlain(v, value)
}

// fillValue sets v from n.
func (d *Doc) fillValue(n *node, path string, v reflect.Value, f Field) {
	t := v.Type()
	n.hidden = n.hidden || f.Hidden
	switch {
	case t == typeUnsupported:
		if n.value == "" {
			return // "": off, as it is
		}
		d.report(n, Problem{Path: n.path, Text: "not supported by this version", Hint: f.Hint})
	case t.Kind() == reflect.Pointer:
		p := reflect.New(t.Elem())
		d.fillValue(n, path, p.Elem(), f)
		v.Set(p)
	case isText(t):
		d.fillText(n, v, f)
	case t.Kind() == reflect.Struct:
		if n.kind != kindTable {
			d.mismatch(n, t, f)
			return
		}
		d.fillTable(n, path, v)
	case t.Kind() == reflect.Slice:
		d.fillList(n, path, v, f)
	case t.Kind() == reflect.Map:
		d.fillMap(n, path, v, f)
	default:
		d.fillPlain(n, v, f)
	}
}

// fillList sets a slice from [a, b] or [[tables]].
func (d *Doc) fillList(n *node, path string, v reflect.Value, f Field) {
	if n.kind != kindArray && n.kind != kindTables {
		d.mismatch(n, v.Type(), f)
		return
	}
	if f.Required && len(n.elems) == 0 {
		d.report(n, Problem{Path: n.path, Text: "empty list", Hint: f.Hint})
	}
	list := reflect.MakeSlice(v.Type(), len(n.elems), len(n.elems))
	item := f
	item.Required = true // an empty string in a list means nothing
	for i, e := range n.elems {
		d.fillValue(e, fmt.Sprintf("%s[%d]", path, i), list.Index(i), item)
	}
	v.Set(list)
}

// fillMap sets a map from the keys of a table.
func (d *Doc) fillMap(n *node, path string, v reflect.Value, f Field) {
	if n.kind != kindTable {
		d.mismatch(n, v.Type(), f)
		return
	}
	m := reflect.MakeMapWithSize(v.Type(), len(n.keys))
	item := f
	item.Required = false
	for _, key := range n.keys {
		value := reflect.New(v.Type().Elem()).Elem()
		d.fillValue(n.child[key], KeyPath(path, key), value, item)
		m.SetMapIndex(reflect.ValueOf(key), value)
	}
	v.Set(m)
}

// fillText sets a field that is written as a string with a meaning.
func (d *Doc) fillText(n *node, v reflect.Value, f Field) {
	text, ok := n.value.(string)
	if n.kind != kindScalar || !ok {
		d.mismatch(n, v.Type(), f)
		return
	}
	if text == "" && !f.Required {
		v.SetZero()
		return
	}
	err := setText(v, text)
	if err == nil {
		err = inRange(v, f)
	}
	d.reject(n, err, f)
}

// fillPlain sets a string, bool, integer or float.
func (d *Doc) fillPlain(n *node, v reflect.Value, f Field) {
	if n.kind != kindScalar || !fits(n.value, v.Kind()) {
		d.mismatch(n, v.Type(), f)
		return
	}
	err := setPlain(v, n.value)
	if err == nil {
		err = inRange(v, f)
	}
	if s, ok := n.value.(string); ok && err == nil {
		err = word(s, f)
	}
	d.reject(n, err, f)
}

// word checks a string against the required and oneof tags.
func word(s string, f Field) error {
	switch {
	case s == "" && f.Required:
		return Reject("empty", f.Hint)
	case len(f.OneOf) == 0 || slices.Contains(f.OneOf, s):
		return nil
	case slices.Contains(f.Later, s):
		return Reject("not supported by this version", f.Legal())
	}
	hint := Suggest(s, f.OneOf)
	if !strings.HasPrefix(hint, "did") {
		hint = f.Legal()
	}
	return Reject("not one of the legal words", hint)
}

// reject reports err, if any, as a problem of the value at n.
func (d *Doc) reject(n *node, err error, f Field) {
	if err == nil {
		return
	}
	p := Problem{Path: n.path, Value: n.show(), Text: firstLine(err.Error())}
	if fault, ok := err.(*Fault); ok {
		p.Text, p.Hint = fault.Text, cmp.Or(fault.Hint, f.Hint)
	}
	d.report(n, p)
}

// mismatch reports a value of the wrong type.
func (d *Doc) mismatch(n *node, want reflect.Type, f Field) {
	p := Problem{
		Path: n.path, Value: n.show(), Hint: mismatchHint(n, want, f.Key),
		Text: fmt.Sprintf("expected %s, not %s", noun(want), n.kindNoun()),
	}
	d.report(n, p)
}

// mismatchHint says how the value is written in the type that is wanted.
func mismatchHint(n *node, want reflect.Type, key string) string {
	text, isString := n.value.(string)
	isString = isString && n.kind == kindScalar
	isTable := (want.Kind() == reflect.Struct || want.Kind() == reflect.Map) && !isText(want)
	switch {
	case isTable:
		return fmt.Sprintf("write it as a table: [%s]", key)
	case want.Kind() == reflect.Slice && noun(want) == "a list of tables":
		return fmt.Sprintf("write each as a table with double brackets: [[%s]]", key)
	case want.Kind() == reflect.Slice && n.kind == kindScalar:
		return fmt.Sprintf("put it in brackets: [%s]", n.show())
	case n.kind == kindArray && want.Kind() != reflect.Slice:
		return "write one value without brackets"
	case n.kind != kindScalar:
		return ""
	case want == typeDuration || want == typeSize:
		return "write it in quotes and with its unit"
	case isString && fits(int64(0), want.Kind()):
		if _, err := parseInt(text); err == nil {
			return "write it without quotes"
		}
	case isString && want.Kind() == reflect.Bool && (text == "true" || text == "false"):
		return "write it without quotes"
	case !isString && n.hidden:
		return "put it in quotes"
	case !isString && (want.Kind() == reflect.String || isText(want)):
		return fmt.Sprintf("put it in quotes: \"%s\"", n.show())
	}
	return ""
}
