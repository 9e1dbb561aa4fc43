package strict

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sample has a field of every form.
type sample struct {
	Version int         `toml:"version" default:"1" range:"1..1"`
	Edge    sampleEdge  `toml:"edge"`
	Items   []item      `toml:"item"`
	Policy  Unsupported `toml:"policy" hint:"use allow and deny"`
}

type sampleEdge struct {
	Name   string         `toml:"name" required:"true" hint:"give the edge a name"`
	Idle   time.Duration  `toml:"idle" default:"5s" range:"1s..1h"`
	Buffer Size           `toml:"buffer" default:"64KiB" range:"4KiB..1GiB"`
	Addr   netip.Addr     `toml:"addr"`
	Listen netip.AddrPort `toml:"listen" default:"127.0.0.1:9191"`
	Inner  netip.Prefix   `toml:"inner" default:"100.127.0.0/24"`
	On     bool           `toml:"on" default:"true"`
	Mode   string         `toml:"mode" default:"one" oneof:"one two" later:"three"`
	Port   uint16         `toml:"port"`
	Ratio  float64        `toml:"ratio"`
	Secret string         `toml:"secret" hidden:"true" oneof:"xyzzy"`
	Opt    *int           `toml:"opt"`
}

type item struct {
	Name  string   `toml:"name" required:"true"`
	Ports []int    `toml:"ports" range:"1..65535"`
	Tags  []string `toml:"tags"`
	Proto proto    `toml:"proto"`
	Subs  []sub    `toml:"sub"`

	Weights map[string]int `toml:"weights" range:"0..100"`
}

type sub struct {
	Addr netip.AddrPort `toml:"addr" required:"true"`
}

// proto is a TextUnmarshaler.
type proto string

func (p *proto) UnmarshalText(text []byte) error {
	if s := string(text); s != "tcp" && s != "udp" {
		return Reject("not a protocol", "use tcp or udp")
	}
	*p = proto(text)
	return nil
}

// Validate makes item a Validator.
func (i *item) Validate(doc *Doc, path string) {
	if i.Name == "forbidden" {
		doc.Add(path+".name", "forbidden name", "")
	}
}

func parse(t *testing.T, texts ...string) (*Doc, sample) {
	t.Helper()
	var sources []Source
	for i, text := range texts {
		sources = append(sources, Source{Name: string(rune('a'+i)) + ".toml", Text: []byte(text)})
	}
	doc := Parse(sources...)
	var s sample
	doc.Fill(&s)
	return doc, s
}

func TestFill(t *testing.T) {
	doc, got := parse(t, `version = 1
[edge]
name = "fra1"
idle = "1m"
buffer = "1MiB"
addr = "192.0.2.1"
listen = ""
inner = "10.0.0.0/8"
on = false
mode = "two"
port = 443
ratio = 2
secret = "xyzzy"
opt = 3
[[item]]
name = "one"
ports = [1, 65535]
proto = "udp"
[[item.sub]]
addr = "[2001:db8::1]:53"
[item.weights]
a = 1
"b.c" = 2
[[item]]
name = "two"
sub = [{addr = "192.0.2.1:1"}]
weights = {}
`)
	if err := doc.Err(); err != nil {
		t.Fatal(err)
	}
	three := 3
	want := sample{
		Version: 1,
		Edge: sampleEdge{
			Name: "fra1", Idle: time.Minute, Buffer: 1 << 20, Addr: netip.MustParseAddr("192.0.2.1"),
			Inner: netip.MustParsePrefix("10.0.0.0/8"), Mode: "two", Port: 443, Ratio: 2, Secret: "xyzzy", Opt: &three,
		},
		Items: []item{
			{Name: "one", Ports: []int{1, 65535}, Proto: "udp", Subs: []sub{{netip.MustParseAddrPort("[2001:db8::1]:53")}}, Weights: map[string]int{"a": 1, "b.c": 2}},
			{Name: "two", Subs: []sub{{netip.MustParseAddrPort("192.0.2.1:1")}}, Weights: map[string]int{}},
		},
	}
	if diff := cmp.Diff(want, got, cmp.Exporter(func(reflect.Type) bool { return true })); diff != "" {
		t.Fatal(diff)
	}
}

func TestDefaults(t *testing.T) {
	doc, got := parse(t, "[edge]\nname = 'x'\n")
	if err := doc.Err(); err != nil {
		t.Fatal(err)
	}
	want := sample{Version: 1, Edge: sampleEdge{
		Name: "x", Idle: 5 * time.Second, Buffer: 64 << 10, Listen: netip.MustParseAddrPort("127.0.0.1:9191"),
		Inner: netip.MustParsePrefix("100.127.0.0/24"), On: true, Mode: "one",
	}}
	if diff := cmp.Diff(want, got, cmp.Exporter(func(reflect.Type) bool { return true })); diff != "" {
		t.Fatal(diff)
	}
}

// base makes the required keys of sample present, in two lines.
const base = "[edge]\nname = 'x'\n"

func TestProblems(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []string
	}{
		{"empty file", "", []string{`a.toml:1: edge.name: missing; give the edge a name`}},
		{"unknown key with a near one", base + "idel = '5s'\n", []string{`a.toml:3: edge.idel: unknown key; did you mean "idle"?`}},
		{"unknown key hides its value", base + "password = 'hunter2'\n", []string{
			`a.toml:3: edge.password: unknown key; known here: addr, buffer, idle, inner, listen, mode, name, on, opt, port, ratio, secret`}},
		{"key of another case", base + "Idle = '5s'\n", []string{`a.toml:3: edge.Idle: unknown key; did you mean "idle"? upper and lower case differ`}},
		{"key at the wrong level", "buffer = '1MiB'\n" + base, []string{`a.toml:1: buffer: unknown key; it belongs into [edge]`}},
		{"unknown table", base + "[egde]\n", []string{`a.toml:3: egde: unknown key; did you mean "edge"?`}},
		{"quoted key", base + "\"a b\" = 1\n", []string{`a.toml:3: edge."a b": unknown key; known here: addr, buffer, idle, inner, listen, mode, name, on, opt, port, ratio, secret`}},
		{"later key", base + "[policy]\nx = 1\n", []string{`a.toml:3: policy: not supported by this version; use allow and deny`}},
		{"later word", base + "mode = 'three'\n", []string{`a.toml:3: edge.mode: "three": not supported by this version; use one, two`}},
		{"wrong word", base + "mode = 'tow'\n", []string{`a.toml:3: edge.mode: "tow": not one of the legal words; did you mean "two"?`}},
		{"wrong word, none near", base + "mode = 'xyz'\n", []string{`a.toml:3: edge.mode: "xyz": not one of the legal words; use one, two`}},
		{"empty required", "[edge]\nname = ''\n", []string{`a.toml:2: edge.name: "": empty; give the edge a name`}},
		{"duration without unit", base + "idle = '5'\n", []string{`a.toml:3: edge.idle: "5": a duration needs a unit; did you mean "5s"?`}},
		{"duration as number", base + "idle = 5\n", []string{`a.toml:3: edge.idle: 5: expected a duration like "5s", not an integer; write it in quotes and with its unit`}},
		{"duration out of range", base + "idle = '2h'\n", []string{`a.toml:3: edge.idle: "2h": out of range; use 1s to 1h`}},
		{"negative duration", base + "idle = '-2s'\n", []string{`a.toml:3: edge.idle: "-2s": negative duration`}},
		{"size", base + "buffer = '64 MB'\n", []string{`a.toml:3: edge.buffer: "64 MB": not a size; write a whole number and a unit: "512KiB", "64MiB", "1GiB"`}},
		{"size out of range", base + "buffer = '1B'\n", []string{`a.toml:3: edge.buffer: "1B": out of range; use 4KiB to 1GiB`}},
		{"size that overflows", base + "buffer = '9999999999TiB'\n", []string{`a.toml:3: edge.buffer: "9999999999TiB": size out of range`}},
		{"address", base + "addr = '192.0.2'\n", []string{`a.toml:3: edge.addr: "192.0.2": not an IP address; write it like "192.0.2.1" or "2001:db8::1"`}},
		{"address with port", base + "addr = '192.0.2.1:80'\n", []string{`a.toml:3: edge.addr: "192.0.2.1:80": not an IP address; write it without the port: "192.0.2.1"`}},
		{"v4 in v6", base + "addr = '::ffff:192.0.2.1'\n", []string{`a.toml:3: edge.addr: "::ffff:192.0.2.1": an IPv4 address in IPv6 clothes; write "192.0.2.1"`}},
		{"port missing", base + "listen = '192.0.2.1'\n", []string{`a.toml:3: edge.listen: "192.0.2.1": the port is missing; write it like "192.0.2.1:443"`}},
		{"port too great", base + "listen = '192.0.2.1:99999'\n", []string{`a.toml:3: edge.listen: "192.0.2.1:99999": port out of range; use 1 to 65535`}},
		{"host bits", base + "inner = '10.0.0.1/16'\n", []string{`a.toml:3: edge.inner: "10.0.0.1/16": address bits behind the prefix length are set; write "10.0.0.0/16"`}},
		{"no prefix length", base + "inner = '10.0.0.1'\n", []string{`a.toml:3: edge.inner: "10.0.0.1": the prefix length is missing; write "10.0.0.1/32" for this one address`}},
		{"bool as string", base + "on = 'true'\n", []string{`a.toml:3: edge.on: "true": expected true or false, not a string; write it without quotes`}},
		{"string as int", base + "mode = 1\n", []string{`a.toml:3: edge.mode: 1: expected a string, not an integer; put it in quotes: "1"`}},
		{"port over its type", base + "port = 70000\n", []string{`a.toml:3: edge.port: 70000: out of range; use 0 to 65535`}},
		{"int as string", base + "port = '443'\n", []string{`a.toml:3: edge.port: "443": expected an integer, not a string; write it without quotes`}},
		{"list for one", base + "mode = ['one']\n", []string{`a.toml:3: edge.mode: expected a string, not a list; write one value without brackets`}},
		{"table as scalar", "edge = 'x'\n", []string{`a.toml:1: edge: "x": expected a table, not a string; write it as a table: [edge]`}},
		{"list of tables as table", base + "[item]\nname = 'x'\n", []string{`a.toml:3: item: expected a list of tables, not a table; write each as a table with double brackets: [[item]]`}},
		{"table as list of tables", "[[edge]]\nname = 'x'\n", []string{`a.toml:1: edge: expected a table, not a list of tables; write it as a table: [edge]`}},
		{"hidden value", base + "secret = 'hunter2'\n", []string{`a.toml:3: edge.secret: not one of the legal words; use xyzzy`}},
		{"hidden value of another type", base + "secret = 5\n", []string{`a.toml:3: edge.secret: expected a string, not an integer; put it in quotes`}},
		{"index and own line of an element", base + "[[item]]\nname = 'a'\nports = [1,\n 2,\n 99999]\n[[item]]\nname='b'\nports=['1']", []string{
			`a.toml:7: item[0].ports[2]: 99999: out of range; use 1 to 65535`,
			`a.toml:10: item[1].ports[0]: "1": expected an integer, not a string; write it without quotes`}},
		{"nested list of tables", base + "[[item]]\nname='a'\n[[item.sub]]\naddr='1.2.3.4:5'\n[[item.sub]]\n", []string{
			`a.toml:7: item[0].sub[1].addr: missing`}},
		{"scalar for a list", base + "[[item]]\nname='a'\ntags = 'x'\n", []string{
			`a.toml:5: item[0].tags: "x": expected a list, not a string; put it in brackets: ["x"]`}},
		{"values of a map", base + "[[item]]\nname='a'\n[item.weights]\n'b.c' = 101\nd = '1'\n", []string{
			`a.toml:6: item[0].weights."b.c": 101: out of range; use 0 to 100`,
			`a.toml:7: item[0].weights.d: "1": expected an integer, not a string; write it without quotes`}},
		{"list for a map", base + "[[item]]\nname='a'\nweights = [1]\n", []string{
			`a.toml:5: item[0].weights: expected a table, not a list; write it as a table: [weights]`}},
		{"own type", base + "[[item]]\nname='a'\nproto = 'sctp'\n", []string{
			`a.toml:5: item[0].proto: "sctp": not a protocol; use tcp or udp`}},
		{"validator", base + "[[item]]\nname='forbidden'\n", []string{`a.toml:4: item[0].name: "forbidden": forbidden name`}},
		{"syntax error", base + "idle = \nmode = 'one'\n", []string{`a.toml:3: edge.idle: bad TOML: expected value but found '\n' instead`}},
		{"duplicate key does not hide the rest", base + "idle = '1m'\nidle = '2m'\nport = 70000\n", []string{
			`a.toml:4: edge.idle: duplicate key, already set at line 3; remove one of the two`,
			`a.toml:5: edge.port: 70000: out of range; use 0 to 65535`}},
		{"duplicate table", base + "[[item]]\nname='a'\n[edge]\nport = 1\n", []string{
			`a.toml:5: edge: duplicate table, already set at line 1; put its keys into one table`}},
		{"duplicate in an inline table", "edge = {name = 'x', name = 'y'}\n", []string{
			`a.toml:1: edge.name: duplicate key, already set at line 1; remove one of the two`}},
		{"table and value of one name", "edge.name = 'x'\nedge = 2\n", []string{
			`a.toml:2: edge: duplicate key, already set at line 1; remove one of the two`}},
		{"single after a list", base + "[[item]]\nname='a'\n[item]\nports=[0]\n", []string{
			`a.toml:5: item: a list of tables since line 3; write [[item]]`}},
		{"list after a single", base + "[item]\nname='a'\n[[item]]\nports=[0]\n", []string{
			`a.toml:3: item: one table here, but a list of tables at line 5; write [[item]]`,
			`a.toml:6: item[0].ports[0]: 0: out of range; use 1 to 65535`}},
		{"part before its table", base + "[[itm]]\n[[item.sub]]\naddr='x'\n[[item.sub]]\naddr='y'\n[[item]]\nports=[0]\n", []string{
			`a.toml:3: itm: unknown key; did you mean "item"?`,
			`a.toml:4: item: a part of item before the first [[item]]; begin with a [[item]]`,
			`a.toml:6: item: a part of item before the first [[item]]; begin with a [[item]]`,
			`a.toml:9: item[0].ports[0]: 0: out of range; use 1 to 65535`}},
		{"value and table of one name", "edge = 2\n[edge]\nname = 'x'\n", []string{
			`a.toml:2: bad TOML: Key 'edge' has already been defined.`}},
		{"nested too deeply", "x = " + strings.Repeat("[", 1000), []string{
			`a.toml:1: arrays or inline tables are nested deeper than 64`}},
		{"long values are cut", base + "mode = '" + strings.Repeat("é", 300) + "'\n", []string{
			`a.toml:3: edge.mode: "` + strings.Repeat("é", 39) + `…: not one of the legal words; use one, two`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			doc, _ := parse(t, tt.text)
			var got []string
			for _, p := range doc.Problems() {
				got = append(got, p.String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Fatal(diff)
			}
		})
	}
}

func TestSeveralFiles(t *testing.T) {
	doc, got := parse(t,
		"version = 1\n[edge]\nname = 'x'\n[[item]]\nname = 'a'\n",
		"version = 1\n[edge]\nname = 'y'\nport = 5\n[[item]]\nname = 'b'\nports = [0]\n")
	want := []string{
		`b.toml:3: edge.name: already set in a.toml:3; keep one of the two`,
		`b.toml:7: item[0].ports[0]: 0: out of range; use 1 to 65535`,
	}
	if diff := cmp.Diff(want, strings.Split(doc.Err().Error(), "\n")); diff != "" {
		t.Fatal(diff)
	}
	if got.Edge.Port != 5 || len(got.Items) != 2 || got.Items[1].Name != "b" {
		t.Errorf("merged wrongly: %+v", got)
	}
	if where := doc.Where("item[1].name"); where != "b.toml:6" {
		t.Errorf("item[1].name is at %q", where)
	}
	doc.Add("item[1].name", "no such thing", "")
	if s := doc.Err().Error(); !strings.Contains(s, `b.toml:6: item[0].name: "b": no such thing`) {
		t.Errorf("added problem is wrong: %s", s)
	}
	if !doc.Bad("item[1].ports") || !doc.Bad("item[1]") || doc.Bad("item[0]") || doc.Bad("item[1].tags") {
		t.Error("Bad is wrong")
	}
}

func TestKeyPath(t *testing.T) {
	doc, _ := parse(t, base+"[[item]]\nname = 'a'\n[item.weights]\n'b.c[0]' = 1\n'x\"' = 1\nd=1\n")
	for _, key := range []string{"b.c[0]", `x"`, "d"} {
		doc.Add(KeyPath("item[0].weights", key), "bad", "")
	}
	want := "a.toml:6: item[0].weights.\"b.c[0]\": 1: bad\na.toml:7: item[0].weights.\"x\\\"\": 1: bad\na.toml:8: item[0].weights.d: 1: bad"
	if got := doc.Err().Error(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestSeveralFilesDisagreeOnVersion(t *testing.T) {
	doc, _ := parse(t, "version = 1\n"+base, "version = 2\n")
	if got, want := doc.Err().Error(), "b.toml:1: version: already set in a.toml:1; keep one of the two"; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestAddToWhatIsMissing(t *testing.T) {
	doc, _ := parse(t, base+"[[item]]\nname = 'a'\n")
	doc.Add("item[0].sub[3].addr", "missing", "add it")
	doc.AddHidden("item[0].name", "secret", "")
	want := "a.toml:3: item[0].sub[3].addr: missing; add it\na.toml:4: item[0].name: secret"
	if got := doc.Err().Error(); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	one := write("one.toml", "1")
	b, a := write("edge[1].d/b.toml", "b"), write("edge[1].d/a.toml", "a")
	write("edge[1].d/readme.md", "no")
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	got, err := Read(one, filepath.Join(dir, "edge[1].d"))
	want := []Source{{one, []byte("1")}, {a, []byte("a")}, {b, []byte("b")}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Fatal(err, diff)
	}
	_, err = Read(filepath.Join(dir, "absent.toml"), filepath.Join(dir, "empty"))
	for _, part := range []string{"absent.toml", "no such file", "holds no *.toml file"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error %v lacks %q", err, part)
		}
	}
}

// TestReadEndless: a device and a pipe say that they hold nothing; what is read
// from them must end all the same, and a pipe that does end is a config.
func TestReadEndless(t *testing.T) {
	_, err := Read("/dev/zero")
	if err == nil || !strings.Contains(err.Error(), "more than 33554432") {
		t.Errorf("reading /dev/zero: %v", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("version = 1"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	got, err := Read(fmt.Sprintf("/dev/fd/%d", r.Fd()))
	if err != nil || len(got) != 1 || string(got[0].Text) != "version = 1" {
		t.Errorf("reading a pipe: %q, %v", got, err)
	}
}

func TestSuggest(t *testing.T) {
	for _, tt := range []struct{ word, want string }{
		{"lisen", `did you mean "listen"?`},
		{"hostname", `did you mean "hostnames"?`},
		{"LISTEN", `did you mean "listen"? upper and lower case differ`},
		{"zzz", "known here: hostnames, listen, on"},
		{"no", `did you mean "on"?`},
	} {
		if got := Suggest(tt.word, []string{"listen", "hostnames", "on"}); got != tt.want {
			t.Errorf("Suggest(%q) = %q, want %q", tt.word, got, tt.want)
		}
	}
}

func TestSizeString(t *testing.T) {
	for size, want := range map[Size]string{0: "0B", 1: "1B", 64 << 10: "64KiB", 1 << 20: "1MiB", 1000: "1000B"} {
		got := size.String()
		if got != want {
			t.Errorf("Size(%d) = %q, want %q", int64(size), got, want)
		}
		if back, err := ParseSize(got); back != size || err != nil {
			t.Errorf("ParseSize(%q) = %d, %v", got, back, err)
		}
	}
}
