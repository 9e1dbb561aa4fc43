package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warrenmesh/warren/integration/bench/load"
	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/netns"
)

// TestMain is main, with the tests in the place of the run.
func TestMain(m *testing.M) {
	switch role := os.Getenv(envRole); role {
	case "":
	case roleMain:
		main()
		return
	default:
		os.Exit(play(role, os.Args[1:]))
	}
	os.Exit(daemon.Build("../..", func() int { return netns.Main(m.Run) }))
}

// TestEveryCase runs one case of each kind for a moment with three contenders,
// and looks whether the report is whole. It judges no speed. Where a busy
// machine has let a moment pass without anything done, it tries a longer one.
func TestEveryCase(t *testing.T) {
	netns.Require(t)
	cases, moment := "bulk-up-1,bulk-both-8,jumbo-bulk-down-1,impaired-bulk-up-8,rr-*,connect-origin-first,connect-open,udp-1200,ping-during-bulk,*-memory", 250*time.Millisecond
	if daemon.Race {
		cases, moment = "bulk-up-1,rr-1,udp-1200,networks-memory", time.Second
	}
	problems := everyCase(t, cases, moment)
	if len(problems) > 0 {
		t.Logf("once more, and longer: %q", problems)
		problems = everyCase(t, cases, 8*moment)
	}
	for _, problem := range problems {
		t.Error(problem)
	}
}

// everyCase runs cases for a moment each and returns what is wrong with the
// report.
func everyCase(t *testing.T, cases string, moment time.Duration) (problems []string) {
	o, err := parse([]string{
		"-cases", cases, "-contenders", "direct,naive,warren", "-warren", daemon.Find(t).Path, "-rounds", "1", "-rest", "100ms",
		"-duration", moment.String(), "-connect-duration", moment.String(), "-warmup", "100ms", "-idle", "50", "-networks", "5", "-json",
	}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	o.log = testLog{t}
	r, err := run(t.Context(), o)
	if err != nil {
		return []string{err.Error()}
	}
	var out, table bytes.Buffer
	r.print(&out, &table)
	t.Logf("%s", &table)
	lines := map[[3]string]line{}
	for decoder := json.NewDecoder(&out); decoder.More(); {
		var l line
		if err := decoder.Decode(&l); err != nil {
			t.Fatal(err)
		}
		if l.Unit == "" && l.Metric != "failed" || l.Rounds != 1 || l.Min > l.Median || l.Median > l.Max {
			problems = append(problems, fmt.Sprintf("a line is not sound: %+v", l))
		}
		lines[[3]string{l.Case, l.Contender, l.Metric}] = l
	}
	for _, want := range wholeReport {
		if !slices.ContainsFunc(o.cases, func(c *benchCase) bool { return c.name == want.testCase }) {
			continue
		}
		for who := range strings.FieldsSeq(want.contenders) {
			for name := range strings.SplitSeq(want.metrics, ",") {
				l, ok := lines[[3]string{want.testCase, who, name}]
				if !ok || l.Unit != want.unit || l.Median <= 0 && !mayBeZero(want.testCase, name) {
					problems = append(problems, fmt.Sprintf("%s of %s in %s: %+v, want a figure in %s", name, who, want.testCase, l, want.unit))
				}
			}
		}
	}
	for k, whys := range r.results.failures {
		problems = append(problems, fmt.Sprintf("%s in %s: %q", k[1], k[0], whys))
	}
	return problems
}

// mayBeZero says which figures of a short run may be nothing, or less: what
// was lost, times below the kernel's tick, and the memory of a few
// connections, of which the collector takes back more meanwhile.
func mayBeZero(testCase, name string) bool {
	return strings.HasPrefix(name, "lost") || strings.HasSuffix(name, "cpu") || strings.HasSuffix(testCase, "-memory")
}

// wholeReport is what everyCase looks for.
var wholeReport = []struct{ testCase, metrics, unit, contenders string }{
	{"bulk-up-1", "rate", "Gbit/s", "direct naive warren"},
	{"bulk-up-1", "edge cpu,connector cpu", "s/GB", "naive warren"},
	{"bulk-both-8", "rate", "Gbit/s", "direct naive warren"},
	{"jumbo-bulk-down-1", "rate", "Gbit/s", "direct naive warren"},
	{"impaired-bulk-up-8", "rate", "Gbit/s", "direct naive warren"},
	{"rr-1", "rate", "/s", "direct naive warren"},
	{"rr-1", "edge cpu,connector cpu", "µs/op", "naive warren"},
	{"rr-64", "p50,p99,p99.9", "µs", "direct naive warren"},
	{"rr-open", "p50,p99,p99.9", "µs", "direct naive warren"},
	{"connect-origin-first", "rate", "/s", "direct naive warren"},
	{"connect-origin-first", "stall", "ms", "direct naive warren"},
	{"connect-open", "p50", "µs", "direct naive warren"},
	{"udp-1200", "rate", "/s", "direct naive warren"},
	{"udp-1200", "edge cpu,connector cpu", "µs/op", "naive warren"},
	{"udp-1200", "lost,lost at 80 %", "%", "direct naive warren"},
	{"ping-during-bulk", "p99", "µs", "direct naive warren"},
	{"ping-during-bulk", "bulk", "Gbit/s", "direct naive warren"},
	{"rest-memory", "edge RSS,connector RSS", "MB", "naive warren"},
	{"idle-memory", "edge,connector", "KB", "naive warren"},
	{"networks-memory", "edge,edge RSS", "KB", "warren"},
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s", bytes.TrimRight(p, "\n"))
	return len(p), nil
}

// TestCorruptionDisqualifies gives a sound run one report that shows
// corruption.
func TestCorruptionDisqualifies(t *testing.T) {
	m := &measurement{c: &benchCase{name: "bulk-up-1"}, who: contender{name: "x"}, results: newResults()}
	if err := m.sound(load.Report{Ops: 1}); err != nil {
		t.Fatalf("a sound report: %v", err)
	}
	err := m.sound(load.Report{Corrupt: 1, Example: "byte 7 is 0x01 and not 0x02"})
	if err == nil || !strings.Contains(err.Error(), "byte 7") {
		t.Fatalf("a corrupt report: %v", err)
	}
	m.add("rate", "Gbit/s", more, 1)
	if _, ok := m.results.find("bulk-up-1", "x", "rate"); !ok {
		t.Fatal("no figure before")
	}
	m.results.disqualified["x"] = err.Error()
	if _, ok := m.results.find("bulk-up-1", "x", "rate"); ok {
		t.Fatal("a disqualified contender has a figure")
	}
	var out bytes.Buffer
	r := &report{o: &options{cases: []*benchCase{m.c}, rounds: 1, path: path{mtu: 1500}}, results: m.results, contenders: []contender{m.who}}
	r.table(&out)
	if !strings.Contains(out.String(), "disqualified: x corrupted") {
		t.Errorf("the table does not say so:\n%s", &out)
	}
}

func TestParse(t *testing.T) {
	for _, test := range []struct {
		args string
		want string // in the error; empty: none
	}{
		{"", ""},
		{"-cases bulk-*,rr-1 -mtu 9000 -impair delay=20ms,loss=0.1%,reorder=1%", ""},
		{"-warren /a -warren old=/b", ""},
		{"-cases bulk-sideways-*", `there is no case "bulk-sideways-*"`},
		{"-contenders [", "reading the pattern"},
		{"-impair delay=x", "delay=x"},
		{"-mtu 100", "-mtu 100"},
		{"-rounds 0", "-rounds 0"},
		{"-duration 0s", "-duration"},
		{"bulk-up-1", "is not a flag"},
	} {
		_, err := parse(strings.Fields(test.args), io.Discard)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%q: %v, want %q", test.args, err, test.want)
		}
	}
}

func TestTurnsAlternate(t *testing.T) {
	c := &benchCase{name: "rr-1"}
	datagrams := &benchCase{name: "udp-64", udp: true}
	o := &options{cases: []*benchCase{c, datagrams}, rounds: 2}
	var got []string
	for _, turn := range turnsOf(o, []contender{{name: "a", udp: true}, {name: "b"}}) {
		got = append(got, turn.c.name+"/"+turn.who.name)
	}
	want := "rr-1/a rr-1/b rr-1/a rr-1/b udp-64/a udp-64/a"
	if strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSummarize(t *testing.T) {
	for _, test := range []struct {
		samples []float64
		want    summary
	}{
		{nil, summary{}},
		{[]float64{2}, summary{2, 2, 2, 1}},
		{[]float64{3, 1, 2}, summary{2, 1, 3, 3}},
		{[]float64{4, 1, 3, 2}, summary{2.5, 1, 4, 4}},
	} {
		if got := summarize(test.samples); got != test.want {
			t.Errorf("summarize(%v) = %+v, want %+v", test.samples, got, test.want)
		}
	}
}

func TestAccount(t *testing.T) {
	const stat = "12 (a name) with) S 1 77 12 0 -1 4194560 1 0 0 0 150 50 25 25 20 0 7 0 100 9999 300 1 2\n"
	group, cpu, rss, err := parseStat(stat)
	if err != nil || group != 77 || cpu != 2.5 || rss != 300*int64(os.Getpagesize()) {
		t.Errorf("got group %d, %v s, %d bytes, %v", group, cpu, rss, err)
	}
	if _, _, _, err := parseStat("12 (x) S 1"); err == nil {
		t.Error("a line that ends early is taken")
	}
}

func TestInUse(t *testing.T) {
	got, err := inUse("heap profile: 1: 2 [3: 4] @ heap/1\n# Stack = 1000 / 2000\n# HeapInuse = 24\n")
	if err != nil || got != 1024 {
		t.Errorf("got %d, %v", got, err)
	}
	if _, err := inUse("nothing"); err == nil {
		t.Error("a profile without figures is taken")
	}
}

// TestScope ends scopes in each way that there is.
func TestScope(t *testing.T) {
	for _, test := range []struct {
		name string
		f    func(s *scope) error
		want string
		skip bool
	}{
		{"in order", func(*scope) error { return nil }, "", false},
		{"error", func(*scope) error { return io.EOF }, "EOF", false},
		{"fatal", func(s *scope) error { s.Fatalf("no %s", "luck"); return nil }, "no luck", false},
		{"errors", func(s *scope) error { s.Errorf("a"); s.Errorf("b"); return nil }, "a; b", false},
		{"skip", func(s *scope) error { s.Skipf("no tool"); return nil }, "no tool", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			var order []string
			err := within(t.Context(), test.name, nil, func(s *scope) error {
				s.Cleanup(func() { order = append(order, "first made") })
				s.Cleanup(func() {
					if s.Context().Err() == nil {
						t.Error("the context lives when the clean-up runs")
					}
					order = append(order, "last made")
				})
				return test.f(s)
			})
			if (err == nil) != (test.want == "") || err != nil && err.Error() != test.want {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if _, skipped := err.(skipError); skipped != test.skip {
				t.Errorf("skipped: %v", skipped)
			}
			if strings.Join(order, ", ") != "last made, first made" {
				t.Errorf("the clean-up ran in the order %q", order)
			}
		})
	}
}

// TestPathsOfCases holds what the altered paths are.
func TestPathsOfCases(t *testing.T) {
	base := path{mtu: 1500}
	if got := jumbo(base).mtu; got != 9000 {
		t.Errorf("jumbo is MTU %d", got)
	}
	if got := impaired(base).impair; got.Delay != 20*time.Millisecond || got.Loss != 0.001 {
		t.Errorf("impaired is %v", got)
	}
	base.impair.Delay = time.Second
	if got := impaired(base); got != base {
		t.Errorf("a path that the flags impair becomes %v", got)
	}
}

// TestGoals judges made-up figures.
func TestGoals(t *testing.T) {
	r := newResults()
	put := func(testCase, who, name string, values ...float64) {
		for _, v := range values {
			r.add(key{testCase, who, metric{name, "", more}}, v)
		}
	}
	put("bulk-up-1", "warren", "rate", 3.9, 4.1, 4.2)
	put("bulk-up-1", nameNaive, "rate", 1)
	put("bulk-up-8", "warren", "rate", 3.5)
	put("ping-during-bulk", "warren", "p99", 500)
	put("ping-idle", nameNaive, "p99", 200)
	put("idle-memory", "warren", "edge", 12)
	for _, test := range []struct {
		name           string
		g              goal
		figure         float64
		reached, known bool
	}{
		{"ratio", goal{testCase: "bulk-up-1", metric: "rate", by: nameNaive, bound: 4}, 4.1, true, true},
		{"itself", goal{testCase: "bulk-up-8", metric: "rate", by: itself, byCase: "bulk-up-1", bound: 0.9}, 3.5 / 4.1, false, true},
		{"another case", goal{testCase: "ping-during-bulk", metric: "p99", by: nameNaive, byCase: "ping-idle", bound: 2, less: true}, 2.5, false, true},
		{"alone", goal{testCase: "idle-memory", metric: "edge", bound: 12, less: true}, 12, true, true},
		{"nobody to divide by", goal{testCase: "bulk-up-1", metric: "rate", by: nameFRP, bound: 1}, 0, false, false},
	} {
		got, reached, known := r.judge(test.g, "warren")
		if math.Abs(got-test.figure) > 1e-9 || known != test.known || known && reached != test.reached {
			t.Errorf("%s: %v, reached %v, known %v", test.name, got, reached, known)
		}
	}
	names := map[string]bool{}
	for _, c := range allCases() {
		names[c.name] = true
	}
	for _, g := range goals() {
		if !names[g.testCase] || g.byCase != "" && !names[g.byCase] {
			t.Errorf("a goal speaks of a case that is not there: %+v", g)
		}
	}
}

// TestDenominators tells naive from something else.
func TestDenominators(t *testing.T) {
	for _, test := range []struct {
		naive float64
		want  string
	}{{1.1, ", within 15 %"}, {0.9, ", within 15 %"}, {1.2, "NOT within"}, {0.8, "NOT within"}} {
		r := &report{o: &options{cases: []*benchCase{{name: "rr-1"}}}, results: newResults()}
		r.results.add(key{"rr-1", nameNaive, metric{"rate", "/s", more}}, test.naive)
		r.results.add(key{"rr-1", nameWireproxy, metric{"rate", "/s", more}}, 1)
		var out bytes.Buffer
		r.denominators(&out)
		if !strings.Contains(out.String(), test.want) {
			t.Errorf("naive at %v: %q, want %q", test.naive, &out, test.want)
		}
	}
}

// TestPeersNameWhatIsMissing looks for programs that are not there, and takes
// a recipe that is.
func TestPeersNameWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"frps", "frpc", "chisel", "recipes/newt.edge", "recipes/newt.connector"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	missing := func(dir string) map[string]string {
		all := map[string]string{}
		for _, c := range peers(dir) {
			all[c.name] = c.missing
		}
		return all
	}
	got := missing(dir)
	if got["frp"] != "" || got["chisel"] != "" || got["newt"] != "" {
		t.Errorf("what is there is missed: %q", got)
	}
	if !strings.Contains(got["wireproxy"], `"wireproxy"`) || !strings.Contains(got["tailscale"], `"tailscaled"`) {
		t.Errorf("what is not there is not named: %q", got)
	}
	for name, why := range missing("") {
		if why == "" {
			t.Errorf("%s takes part without -peers", name)
		}
	}
}
