package main

import (
	"slices"
	"strings"
)

// metric is one figure of a case.
type metric struct {
	name   string // "rate", "p99", "edge cpu" …
	unit   string
	better int // +1: more is better; -1: less is
}

// key is what samples are collected under.
type key struct {
	testCase, contender string
	metric              metric
}

// results is what a run has measured so far.
type results struct {
	order   []key // as first seen
	samples map[key][]float64
	// failures says why a contender has no figures, or fewer, in a case.
	failures map[[2]string][]string // case, contender
	// disqualified contenders have corrupted data; the reason.
	disqualified map[string]string
}

func newResults() *results {
	return &results{samples: map[key][]float64{}, failures: map[[2]string][]string{}, disqualified: map[string]string{}}
}

func (r *results) add(k key, value float64) {
	if _, seen := r.samples[k]; !seen {
		r.order = append(r.order, k)
	}
	r.samples[k] = append(r.samples[k], value)
}

func (r *results) fail(testCase, contender, why string) {
	k := [2]string{testCase, contender}
	if !slices.Contains(r.failures[k], why) {
		r.failures[k] = append(r.failures[k], why)
	}
}

// summary is the middle and the ends of some samples.
type summary struct {
	median, min, max float64
	rounds           int
}

// find returns the summary of a contender's metric; none of a contender that
// is disqualified.
func (r *results) find(testCase, contender, metricName string) (summary, bool) {
	if r.disqualified[contender] != "" {
		return summary{}, false
	}
	for _, k := range r.order {
		if k.testCase == testCase && k.contender == contender && k.metric.name == metricName {
			return summarize(r.samples[k]), true
		}
	}
	return summary{}, false
}

// ratio divides two medians.
func (r *results) ratio(aCase, a, aMetric, bCase, b, bMetric string) (float64, bool) {
	top, ok := r.find(aCase, a, aMetric)
	bottom, there := r.find(bCase, b, bMetric)
	if !ok || !there || bottom.median == 0 {
		return 0, false
	}
	return top.median / bottom.median, true
}

func summarize(samples []float64) summary {
	sorted := slices.Sorted(slices.Values(samples))
	n := len(sorted)
	if n == 0 {
		return summary{}
	}
	return summary{
		median: (sorted[(n-1)/2] + sorted[n/2]) / 2,
		min:    sorted[0], max: sorted[n-1], rounds: n,
	}
}

// metrics are the metrics that a contender has in a case, in order.
func (r *results) metrics(testCase, contender string) (list []metric) {
	for _, k := range r.order {
		if k.testCase == testCase && k.contender == contender {
			list = append(list, k.metric)
		}
	}
	return list
}

// columns are the metrics that anybody has in a case, in the order of who has
// the most.
func (r *results) columns(testCase string) (list []metric) {
	var whose []string
	for _, k := range r.order {
		if k.testCase == testCase && !slices.Contains(whose, k.contender) {
			whose = append(whose, k.contender)
		}
	}
	slices.SortStableFunc(whose, func(a, b string) int {
		return len(r.metrics(testCase, b)) - len(r.metrics(testCase, a))
	})
	for _, who := range whose {
		for _, m := range r.metrics(testCase, who) {
			if !slices.Contains(list, m) {
				list = append(list, m)
			}
		}
	}
	return list
}

// latest is the last sample of each metric, for the log of the run.
func (r *results) latest(testCase, contender string) string {
	var parts []string
	for _, m := range r.metrics(testCase, contender) {
		samples := r.samples[key{testCase, contender, m}]
		parts = append(parts, m.name+" "+figure(samples[len(samples)-1])+" "+m.unit)
	}
	return strings.Join(parts, ", ")
}
