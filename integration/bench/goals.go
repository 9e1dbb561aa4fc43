package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
)

// goal is a line that Warren's figures are held against.
type goal struct {
	aim      bool // hoped for; else a must
	testCase string
	metric   string
	// What the figure is divided by: the same metric of another contender, or
	// of Warren itself, in a case. Empty: nothing, the figure stands alone.
	by, byCase string
	bound      float64
	less       bool // the bound is the most; else it is the least
}

// itself as a goal's divisor is the contender that is judged.
const itself = "itself"

// goals are what the fast path must reach, and what it aims for.
func goals() (all []goal) {
	add := func(g ...goal) { all = append(all, g...) }
	for _, direction := range []string{"up", "down"} {
		one, eight := "bulk-"+direction+"-1", "bulk-"+direction+"-8"
		add(goal{testCase: one, metric: "rate", by: nameNaive, bound: 4},
			goal{testCase: one, metric: "rate", by: nameFRP, bound: 1, aim: true},
			goal{testCase: eight, metric: "rate", by: nameNaive, bound: 4},
			goal{testCase: eight, metric: "rate", by: itself, byCase: one, bound: 0.9},
			goal{testCase: eight, metric: "rate", by: nameFRP, bound: 1, aim: true},
			goal{testCase: "jumbo-" + one, metric: "rate", by: itself, byCase: one, bound: 1.5},
			goal{testCase: "jumbo-" + one, metric: "rate", by: itself, byCase: one, bound: 2.5, aim: true},
			goal{testCase: "impaired-" + eight, metric: "rate", by: nameFRP, bound: 2},
			goal{testCase: "impaired-" + eight, metric: "rate", by: nameDirect, bound: 1, aim: true})
	}
	add(goal{testCase: "rr-1", metric: "p50", by: nameNaive, bound: 0.6, less: true},
		goal{testCase: "rr-1", metric: "p50", by: nameFRP, bound: 1, less: true, aim: true},
		goal{testCase: "rr-64", metric: "rate", by: nameNaive, bound: 1.8},
		goal{testCase: "rr-64", metric: "rate", by: nameFRP, bound: 1.2, aim: true})
	for _, closer := range []string{closeClient, closeOrigin} {
		name := "connect-" + closer + "-first"
		add(goal{testCase: name, metric: "rate", by: nameNaive, bound: 2},
			goal{testCase: name, metric: "rate", by: nameFRP, bound: 2, aim: true},
			goal{testCase: name, metric: "stall", bound: stallLimit, less: true},
			goal{testCase: name, metric: "failed", bound: 0, less: true})
	}
	add(goal{testCase: "udp-1200", metric: "rate", by: nameFRP, bound: 4},
		goal{testCase: "udp-1200", metric: "rate", by: nameFRP, bound: 10, aim: true},
		goal{testCase: "udp-1200", metric: "lost at 80 %", bound: 0, less: true},
		goal{testCase: "ping-during-bulk", metric: "p99", by: nameNaive, byCase: "ping-idle", bound: 2, less: true})
	for _, end := range []string{"edge", "connector"} {
		add(goal{testCase: "idle-memory", metric: end, bound: 12, less: true},
			goal{testCase: "idle-memory", metric: end, bound: 8, less: true, aim: true})
		for _, direction := range []string{"up", "down", "both"} {
			add(goal{testCase: "bulk-" + direction + "-128", metric: end + " peak RSS", bound: 256, less: true},
				goal{testCase: "bulk-" + direction + "-128", metric: end + " peak RSS", bound: 128, less: true, aim: true})
		}
	}
	add(goal{testCase: "networks-memory", metric: "edge", bound: 96, less: true},
		goal{testCase: "networks-memory", metric: "edge", bound: 64, less: true, aim: true},
		goal{testCase: "rest-memory", metric: "edge RSS", bound: 40, less: true},
		goal{testCase: "rest-memory", metric: "edge RSS", bound: 25, less: true, aim: true})
	return all
}

// stallLimit is the longest time, in milliseconds, in which no connection may
// be made: shorter than the first repetition of a lost SYN (RFC 6298: 1 s).
const stallLimit = 900

// judge returns a contender's figure for a goal, where the run has what it
// takes, and whether it is reached.
func (r *results) judge(g goal, who string) (figure float64, reached, known bool) {
	if g.by == "" {
		s, ok := r.find(g.testCase, who, g.metric)
		figure, known = s.median, ok
	} else {
		by, byCase := g.by, g.byCase
		if by == itself {
			by = who
		}
		if byCase == "" {
			byCase = g.testCase
		}
		figure, known = r.ratio(g.testCase, who, g.metric, byCase, by, g.metric)
	}
	return figure, g.less && figure <= g.bound || !g.less && figure >= g.bound, known
}

// String is what the goal asks for.
func (g goal) String() string {
	word, sign := "must", "≥"
	if g.aim {
		word = "aim"
	}
	if g.less {
		sign = "≤"
	}
	text := fmt.Sprintf("%s\t%s %s\t%s %s", word, g.testCase, g.metric, sign, trim(g.bound))
	switch {
	case g.by == itself:
		text += " × its own"
	case g.by != "":
		text += " × " + g.by + "'s"
	}
	if g.byCase != "" {
		text += " " + g.byCase
	}
	return text
}

// trim writes a bound as short as it goes.
func trim(f float64) string { return fmt.Sprintf("%g", f) }

// goalTable says which goals each Warren of the run has reached. A goal whose
// divisor did not take part is left out.
func (r *report) goalTable(w io.Writer) {
	for _, who := range r.contenders {
		if !strings.HasPrefix(who.name, nameWarren) {
			continue
		}
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		rows := 0
		for _, g := range goals() {
			value, reached, known := r.results.judge(g, who.name)
			if !known {
				continue
			}
			if rows++; rows == 1 {
				fmt.Fprintf(w, "goals of %s:\n", who.name)
			}
			verdict := "reached"
			if !reached {
				verdict = "NOT reached"
			}
			fmt.Fprintf(t, "  %s\t%s\t%s\n", g, figure(value), verdict)
		}
		t.Flush()
	}
}

// denominatorSlack is how far naive may lie from wireproxy, which is the same
// thing by other people.
const denominatorSlack = 0.15

// denominators says, for each case in which both have a rate, whether naive is
// what it claims to be.
func (r *report) denominators(w io.Writer) {
	for _, c := range r.o.cases {
		ratio, ok := r.results.ratio(c.name, nameNaive, "rate", c.name, nameWireproxy, "rate")
		if !ok {
			continue
		}
		verdict := "within 15 %"
		if math.Abs(ratio-1) > denominatorSlack {
			verdict = "NOT within 15 %: do not divide by naive here"
		}
		fmt.Fprintf(w, "denominator: in %s naive has %s of wireproxy's rate, %s\n", c.name, figure(ratio), verdict)
	}
}
