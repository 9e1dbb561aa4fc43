package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// allContenders is everybody, in the order of the table.
func allContenders(o *options) []contender {
	all := []contender{direct(), haproxy(), naiveContender()}
	warrens := o.warrens
	if len(warrens) == 0 { // for a list
		warrens = []named{{name: nameWarren}}
	}
	for _, w := range warrens {
		all = append(all, warrenContender(w.name, w.path))
	}
	return append(all, peers(o.peers)...)
}

// choose splits the contenders that the run is for into who takes part and who
// cannot.
func choose(o *options) (part, skipped []contender, err error) {
	for _, c := range allContenders(o) {
		switch {
		case !matches(o.contenders, c.name):
		case c.missing != "":
			skipped = append(skipped, c)
		default:
			part = append(part, c)
		}
	}
	if len(part) == 0 {
		return nil, skipped, errors.New("nobody takes part: -list shows the contenders")
	}
	return part, skipped, nil
}

// list prints what there is to choose from.
func list(w io.Writer, o *options) {
	fmt.Fprintln(w, "cases:")
	for _, c := range allCases() {
		fmt.Fprintf(w, "  %-22s %s\n", c.name, c.about)
	}
	fmt.Fprintln(w, "contenders:")
	for _, c := range allContenders(o) {
		line := "  " + c.name
		if c.missing != "" {
			line += " (skipped: " + c.missing + ")"
		}
		fmt.Fprintln(w, line)
	}
}

// turn is one measurement of the run.
type turn struct {
	c     *benchCase
	round int
	who   contender
}

// turnsOf is the order of a run: case by case, and within a case the
// contenders take turns, so that whatever drifts drifts for all of them.
func turnsOf(o *options, part []contender) (turns []turn) {
	for _, c := range o.cases {
		for round := range o.rounds {
			for _, who := range part {
				if c.fits(who) {
					turns = append(turns, turn{c, round + 1, who})
				}
			}
		}
	}
	return turns
}

// least is how long the loads of a run take, without what comes before and
// after each.
func (o *options) least(turns []turn) (sum time.Duration) {
	for _, t := range turns {
		switch {
		case t.c.long:
			sum += o.warmup + o.connectDuration
		case t.c.udp:
			sum += 2 * (o.warmup + o.duration)
		case strings.HasSuffix(t.c.name, "-memory"):
			sum += o.rest
		default:
			sum += o.warmup + o.duration
		}
	}
	return sum
}

// run measures everything that the options ask for. The report is there even
// where the run was cut short.
func run(ctx context.Context, o *options) (*report, error) {
	part, skipped, err := choose(o)
	if err != nil {
		return nil, err
	}
	r := &report{o: o, results: newResults(), contenders: part, skipped: skipped, busy: busy()}
	turns := turnsOf(o, part)
	fmt.Fprintf(o.log, "%d measurements, %v at the least\n", len(turns), o.least(turns).Round(time.Second))
	for i, t := range turns {
		if r.results.disqualified[t.who.name] != "" {
			continue
		}
		started := time.Now()
		err := measure(ctx, o, t.c, t.who, t.round, r.results)
		if ctx.Err() != nil {
			return r, errors.New("the run was cut short")
		}
		outcome := r.results.latest(t.c.name, t.who.name)
		if err != nil {
			outcome = "failed: " + err.Error()
			r.results.fail(t.c.name, t.who.name, err.Error())
			if corrupt := (errCorrupt{}); errors.As(err, &corrupt) {
				r.results.disqualified[t.who.name] = fmt.Sprintf("%s in %s", corrupt, t.c.name)
			}
		}
		fmt.Fprintf(o.log, "[%d/%d] %s, %s, round %d, %.0f s: %s\n", i+1, len(turns), t.c.name, t.who.name, t.round,
			time.Since(started).Seconds(), outcome)
	}
	return r, r.verdict()
}

// verdict is an error where Warren has no figures or has corrupted data: the
// run has not done what it is for.
func (r *report) verdict() error {
	var problems []error
	for _, who := range r.contenders {
		if !strings.HasPrefix(who.name, nameWarren) {
			continue
		}
		if why := r.results.disqualified[who.name]; why != "" {
			problems = append(problems, fmt.Errorf("measuring %s: %s", who.name, why))
		}
		for _, c := range r.o.cases {
			if c.fits(who) && len(r.results.metrics(c.name, who.name)) == 0 {
				problems = append(problems, fmt.Errorf("measuring %s: no figure in %s", who.name, c.name))
			}
		}
	}
	return errors.Join(problems...)
}
