package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// report is what a run found.
type report struct {
	o          *options
	results    *results
	contenders []contender
	skipped    []contender
	busy       string // the load average before the run
}

// line is one figure for machines.
type line struct {
	Case      string   `json:"case"`
	Contender string   `json:"contender"`
	Metric    string   `json:"metric"`
	Unit      string   `json:"unit"`
	Median    float64  `json:"median"`
	Min       float64  `json:"min"`
	Max       float64  `json:"max"`
	Rounds    int      `json:"rounds"`
	VsNaive   *float64 `json:"vs_naive"` // the median divided by naive's; null: naive has none
}

// print writes the lines or the table, as the options say.
func (r *report) print(stdout, stderr io.Writer) {
	if !r.o.json {
		r.table(stdout)
		return
	}
	r.table(stderr)
	encoder := json.NewEncoder(stdout)
	for _, l := range r.lines() {
		encoder.Encode(l)
	}
}

// lines are the figures of everybody who is not disqualified.
func (r *report) lines() (lines []line) {
	for _, c := range r.o.cases {
		for _, who := range r.contenders {
			for _, m := range r.results.metrics(c.name, who.name) {
				s, ok := r.results.find(c.name, who.name, m.name)
				if !ok {
					continue
				}
				l := line{Case: c.name, Contender: who.name, Metric: m.name, Unit: m.unit,
					Median: s.median, Min: s.min, Max: s.max, Rounds: s.rounds}
				if ratio, ok := r.vsNaive(c, who.name, m.name); ok {
					l.VsNaive = &ratio
				}
				lines = append(lines, l)
			}
		}
	}
	return lines
}

// vsNaive divides a median by naive's in the case's base.
func (r *report) vsNaive(c *benchCase, who, metricName string) (float64, bool) {
	base := c.base
	if base == "" {
		base = c.name
	}
	return r.results.ratio(c.name, who, metricName, base, nameNaive, metricName)
}

// table writes a table for people.
func (r *report) table(w io.Writer) {
	fmt.Fprintf(w, "%s; load average before the run: %s\n%s; medians of %d rounds (least – most), and how many times naive's\n",
		machine(), r.busy, r.o.path, r.o.rounds)
	for _, c := range r.o.cases {
		columns := r.results.columns(c.name)
		fmt.Fprintf(w, "\n%s: %s\n", c.name, c.about)
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		row := []string{""}
		for _, m := range columns {
			row = append(row, strings.TrimSpace(m.name+" "+m.unit))
		}
		fmt.Fprintln(t, "  "+strings.Join(row, "\t"))
		for _, who := range r.contenders {
			if c.fits(who) {
				r.row(t, c, who.name, columns)
			}
		}
		t.Flush()
		for _, who := range r.contenders {
			for _, why := range r.results.failures[[2]string{c.name, who.name}] {
				fmt.Fprintf(w, "  %s: %s\n", who.name, why)
			}
		}
	}
	r.notes(w)
}

func (r *report) row(w io.Writer, c *benchCase, who string, columns []metric) {
	row := []string{who}
	for _, m := range columns {
		s, ok := r.results.find(c.name, who, m.name)
		if !ok {
			row = append(row, "–")
			continue
		}
		cell := figure(s.median)
		if s.rounds > 1 {
			cell += " (" + figure(s.min) + " – " + figure(s.max) + ")"
		}
		if ratio, ok := r.vsNaive(c, who, m.name); ok && (who != nameNaive || c.base != "") {
			cell += " " + figure(ratio) + "×"
		}
		row = append(row, cell)
	}
	fmt.Fprintln(w, "  "+strings.Join(row, "\t"))
}

// notes says who is not in the table, and whether its denominators hold.
func (r *report) notes(w io.Writer) {
	fmt.Fprintln(w)
	for _, who := range r.skipped {
		fmt.Fprintf(w, "skipped: %s: %s\n", who.name, who.missing)
	}
	for _, who := range r.contenders {
		if why := r.results.disqualified[who.name]; why != "" {
			fmt.Fprintf(w, "disqualified: %s %s\n", who.name, why)
		}
	}
	r.denominators(w)
	r.goalTable(w)
}

// figure writes a number with three digits that mean something.
func figure(f float64) string {
	switch a := math.Abs(f); {
	case f == 0:
		return "0"
	case a >= 1000:
		return strconv.FormatFloat(math.Round(f), 'f', 0, 64)
	case a >= 100:
		return strconv.FormatFloat(f, 'f', 0, 64)
	case a >= 10:
		return strconv.FormatFloat(f, 'f', 1, 64)
	case a >= 0.1:
		return strconv.FormatFloat(f, 'f', 2, 64)
	default:
		return strconv.FormatFloat(f, 'g', 2, 64)
	}
}

// machine says what the figures are of.
func machine() string {
	model := "an unknown processor"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, after, found := strings.Cut(string(text), "model name"); found {
			name, _, _ := strings.Cut(after, "\n")
			model = strings.TrimSpace(strings.TrimLeft(name, "\t :"))
		}
	}
	kernel := "an unknown kernel"
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	}
	return fmt.Sprintf("%d × %s, %s, %s", runtime.NumCPU(), model, kernel, runtime.Version())
}

// busy is the machine's load average of the last minute, which other programs
// have made where it is high before a run.
func busy() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(text), " ")
	return first
}
