package strict

import (
	"encoding"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"time"
)

// Unsupported is the type of a field whose key belongs to a later version.
// Setting it to anything but "" is an error that says so; the hint tag may add
// what to do today.
//
//	ProxyProtocol strict.Unsupported `toml:"proxy_protocol" hint:"…"`
type Unsupported struct{}

// Validator is what a table's struct may implement to check itself after its
// fields are filled. path is the table's own ("app[2]").
type Validator interface {
	Validate(doc *Doc, path string)
}

// Field describes one key of a struct, from its tags.
type Field struct {
	Key      string   // toml:"key"
	Default  string   // default:"5s", written as in TOML without quotes
	Low      string   // range:"1s..1h": the least legal value, "" for none
	High     string   // and the greatest
	OneOf    []string // oneof:"a b": the legal words
	Later    []string // later:"c d": words that a later version knows
	Hint     string   // hint:"…": what to write, for values that are wrong
	Required bool     // required:"true": must be set, and not to ""
	Hidden   bool     // hidden:"true": the value is never printed

	index int
}

// Fields returns the keys of the struct type t in the order of its fields.
// Fields without a toml tag are the program's own and are left out.
func Fields(t reflect.Type) []Field {
	var out []Field
	for i := range t.NumField() {
		tag := t.Field(i).Tag
		key := tag.Get("toml")
		if key == "" || key == "-" {
			continue
		}
		low, high, _ := strings.Cut(tag.Get("range"), "..")
		out = append(out, Field{
			Key:      key,
			Default:  tag.Get("default"),
			Low:      low,
			High:     high,
			OneOf:    strings.Fields(tag.Get("oneof")),
			Later:    strings.Fields(tag.Get("later")),
			Hint:     tag.Get("hint"),
			Required: tag.Get("required") == "true",
			Hidden:   tag.Get("hidden") == "true",
			index:    i,
		})
	}
	return out
}

// Legal says which values are legal, for a hint: `use 1 to 65535`; "" where
// the type alone says it.
func (f Field) Legal() string {
	switch {
	case len(f.OneOf) > 0:
		return "use " + strings.Join(f.OneOf, ", ")
	case f.Low != "" && f.High != "":
		return fmt.Sprintf("use %s to %s", f.Low, f.High)
	case f.Low != "":
		return fmt.Sprintf("use %s or more", f.Low)
	case f.High != "":
		return fmt.Sprintf("use %s or less", f.High)
	}
	return f.Hint
}

var (
	typeUnsupported = reflect.TypeFor[Unsupported]()
	typeDuration    = reflect.TypeFor[time.Duration]()
	typeSize        = reflect.TypeFor[Size]()
	typeAddr        = reflect.TypeFor[netip.Addr]()
	typeAddrPort    = reflect.TypeFor[netip.AddrPort]()
	typePrefix      = reflect.TypeFor[netip.Prefix]()
	typeText        = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// isText tells whether values of t are written as a string that needs parsing.
func isText(t reflect.Type) bool {
	return t == typeDuration || t == typeSize || reflect.PointerTo(t).Implements(typeText)
}

// noun names what is expected of a value of type t.
func noun(t reflect.Type) string {
	switch {
	case t == typeDuration:
		return `a duration like "5s"`
	case t == typeSize:
		return `a size like "64MiB"`
	case t == typeAddr:
		return `an address like "192.0.2.1"`
	case t == typeAddrPort:
		return `an address and port like "192.0.2.1:443"`
	case t == typePrefix:
		return `a prefix like "10.0.0.0/16"`
	case isText(t):
		return "a string"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return noun(t.Elem())
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Struct, reflect.Map:
		return "a table"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Struct && !isText(t.Elem()) {
			return "a list of tables"
		}
		return "a list"
	}
	return "an integer"
}

// kindNoun names what stands in the file.
func (n *node) kindNoun() string {
	switch n.kind {
	case kindTable:
		return "a table"
	case kindTables:
		return "a list of tables"
	case kindArray:
		return "a list"
	}
	switch n.value.(type) {
	case string:
		return "a string"
	case bool:
		return "a boolean"
	case int64:
		return "an integer"
	case float64:
		return "a number with a fraction"
	}
	return "a date"
}
