package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/warrenmesh/warren/integration/bench/impair"
	"github.com/warrenmesh/warren/integration/bench/load"
)

// benchCase is one thing that is measured.
type benchCase struct {
	name  string
	about string
	udp   bool            // needs a contender that carries datagrams
	long  bool            // takes -connect-duration
	alter func(path) path // another path than the run's; nil: the run's
	only  string          // a prefix of the names of who has it; empty: everybody
	base  string          // the case whose naive figure is 1; empty: this one
	// measure measures a contender that serves; run, where it is there
	// instead, starts by itself what it needs.
	measure, run func(m *measurement) error
}

func (c *benchCase) pathOf(p path) path {
	if c.alter != nil {
		return c.alter(p)
	}
	return p
}

// fits reports whether a contender has the case.
func (c *benchCase) fits(who contender) bool {
	return (who.udp || !c.udp) && strings.HasPrefix(who.name, c.only)
}

// jumbo and impaired are the two other paths that the round is about, so that
// one run holds every ratio. A path that the flags impair stays as it is.
func jumbo(p path) path { p.mtu = 9000; return p }

func impaired(p path) path {
	if p.impair == (impair.Spec{}) {
		p.impair = impair.Spec{Delay: 20 * time.Millisecond, Loss: 0.001}
	}
	return p
}

// allCases is every case, in the order of the table.
func allCases() []*benchCase {
	var all []*benchCase
	add := func(c benchCase) { all = append(all, &c) }
	for _, streams := range []int{1, 8, 128} {
		for _, direction := range []string{load.Up, load.Down, load.Both} {
			add(benchCase{name: fmt.Sprintf("bulk-%s-%d", direction, streams),
				about:   fmt.Sprintf("bulk, %s, %d streams each way", direction, streams),
				measure: bulk(direction, streams)})
		}
	}
	for _, direction := range []string{load.Up, load.Down} {
		add(benchCase{name: "jumbo-bulk-" + direction + "-1", about: "bulk, " + direction + ", 1 stream, MTU 9000",
			alter: jumbo, measure: bulk(direction, 1)})
	}
	for _, direction := range []string{load.Up, load.Down} {
		add(benchCase{name: "impaired-bulk-" + direction + "-8",
			about: "bulk, " + direction + ", 8 streams, 20 ms and 0.1 % loss (or as -impair says)",
			alter: impaired, measure: bulk(direction, 8)})
	}
	add(benchCase{name: "rr-1", about: "request and response of 64 B, 1 worker", measure: requests(1)})
	add(benchCase{name: "rr-64", about: "request and response of 64 B, 64 workers", measure: requests(64)})
	add(benchCase{name: "rr-open", about: "request and response of 64 B at a fixed rate", measure: requestsOpen})
	add(benchCase{name: "connect-client-first", about: "connections, the client closes first", long: true, measure: connects(closeClient)})
	add(benchCase{name: "connect-origin-first", about: "connections, the origin closes first", long: true, measure: connects(closeOrigin)})
	add(benchCase{name: "connect-open", about: "connections at a fixed rate, the client closes first", measure: connectsOpen})
	for _, size := range []int{64, 1200} {
		add(benchCase{name: fmt.Sprintf("udp-%d", size), udp: true,
			about:   fmt.Sprintf("UDP echo of %d B, 8 flows: at its peak, and at 80 %% of it", size),
			measure: datagrams(size)})
	}
	add(benchCase{name: "ping-idle", about: "64 B to and fro, 100 a second, nothing else", measure: pingIdle})
	add(benchCase{name: "ping-during-bulk", about: "the same beside bulk down; 1 is naive's ping without bulk",
		base: "ping-idle", measure: pingDuringBulk})
	add(benchCase{name: "rest-memory", about: "at rest: one network, one connector, no flow", measure: restMemory})
	add(benchCase{name: "idle-memory", about: "idle connections: each, after garbage collection", measure: idleMemory})
	add(benchCase{name: "networks-memory", about: "an edge's networks, each with a connector that is up", only: nameWarren, run: networksMemory})
	return all
}

// share is n divided by all, in percent.
func share(n, all uint64) float64 {
	if all == 0 {
		return 0
	}
	return 100 * float64(n) / float64(all)
}

// micro is a duration in microseconds.
func micro(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

const (
	more = +1
	less = -1
)

// manyStreams is where the memory of streams is looked at.
const manyStreams = 128

func bulk(direction string, streams int) func(*measurement) error {
	return func(m *measurement) error {
		report, cost, err := m.load(load.Spec{Kind: load.KindBulk, Target: m.to(load.PortBulk),
			Direction: direction, Streams: streams, Warmup: m.o.warmup, Duration: m.o.duration})
		if err != nil {
			return err
		}
		m.add("rate", "Gbit/s", more, report.BitsPerSecond()/1e9)
		m.addCost(cost, "s/GB", 1, float64(report.Bytes)/1e9)
		if streams < manyStreams || cost.problem != nil {
			return nil
		}
		for _, end := range m.ends(cost) {
			m.add(end.name+" peak RSS", "MB", less, float64(end.peak)/1e6)
		}
		return nil
	}
}

// addCost adds what a load cost at the two ends, for so many units of what it
// moved. Other programs on the machine move it less than a rate.
func (m *measurement) addCost(cost spent, unit string, scale, units float64) {
	if cost.problem != nil {
		m.results.fail(m.c.name, m.who.name, "accounting: "+cost.problem.Error())
		return
	}
	for _, end := range m.ends(cost) {
		if units > 0 {
			m.add(end.name+" cpu", unit, less, scale*end.cpu/units)
		}
	}
}

// addOpCost adds what an operation cost.
func (m *measurement) addOpCost(cost spent, report load.Report) {
	m.addCost(cost, "µs/op", 1e6, float64(report.Ops))
}

// end is what one end of a contender used.
type end struct {
	name string
	usage
}

// ends is the ends that the contender has.
func (m *measurement) ends(cost spent) (ends []end) {
	if len(m.served.edge) > 0 {
		ends = append(ends, end{"edge", cost.edge})
	}
	if len(m.served.connector) > 0 {
		ends = append(ends, end{"connector", cost.connector})
	}
	return ends
}

func requests(workers int) func(*measurement) error {
	return func(m *measurement) error {
		report, cost, err := m.load(load.Spec{Kind: load.KindRR, Target: m.to(load.PortEcho),
			Streams: workers, Warmup: m.o.warmup, Duration: m.o.duration})
		if err != nil {
			return err
		}
		m.add("rate", "/s", more, report.OpsPerSecond())
		m.addLatency(report)
		m.addOpCost(cost, report)
		return nil
	}
}

func (m *measurement) addLatency(report load.Report) {
	if report.Ops == 0 {
		m.results.fail(m.c.name, m.who.name, "no operation ended in time")
		return
	}
	m.add("p50", "µs", less, micro(report.Latency.P50))
	m.add("p99", "µs", less, micro(report.Latency.P99))
	m.add("p99.9", "µs", less, micro(report.Latency.P999))
}

func requestsOpen(m *measurement) error {
	report, cost, err := m.load(load.Spec{Kind: load.KindRR, Target: m.to(load.PortEcho),
		Streams: 64, Rate: m.o.rrRate, Warmup: m.o.warmup, Duration: m.o.duration})
	if err != nil {
		return err
	}
	m.addLatency(report)
	m.add("never begun", "%", less, share(report.Unsent, report.Unsent+report.Ops+report.Failures))
	m.addOpCost(cost, report)
	return nil
}

// Who closes a connection first, in a load.Spec.
const (
	closeClient = "client"
	closeOrigin = "origin"
)

// connectWorkers is how many connections are opened at a time.
const connectWorkers = 16

func connects(closer string) func(*measurement) error {
	return func(m *measurement) error { return m.connects(closer, 0, m.o.connectDuration) }
}

func connectsOpen(m *measurement) error {
	return m.connects(closeClient, m.o.connectRate, m.o.duration)
}

func (m *measurement) connects(closer string, rate float64, d time.Duration) error {
	spec := load.Spec{Kind: load.KindConnect, Target: m.to(load.PortConnect), Closer: closer,
		Streams: connectWorkers, Rate: rate, Warmup: m.o.warmup, Duration: d}
	if closer == closeOrigin {
		spec.Target = m.to(load.PortGreet)
	}
	if rate > 0 {
		spec.Streams = 64
	}
	report, cost, err := m.load(spec)
	if err != nil {
		return err
	}
	if rate == 0 {
		m.add("rate", "/s", more, report.OpsPerSecond())
	}
	m.addLatency(report)
	if rate > 0 {
		m.add("never begun", "%", less, share(report.Unsent, report.Unsent+report.Ops+report.Failures))
	}
	m.add("stall", "ms", less, float64(report.Stall)/1e6)
	m.add("failed", "", less, float64(report.Failures))
	m.addOpCost(cost, report)
	return nil
}

// udpFlows is the number of flows of a datagram load.
const udpFlows = 8

func datagrams(size int) func(*measurement) error {
	return func(m *measurement) error {
		spec := load.Spec{Kind: load.KindUDP, Target: m.to(load.PortUDP), Streams: udpFlows,
			Size: size, Warmup: m.o.warmup, Duration: m.o.duration}
		peak, cost, err := m.load(spec)
		if err != nil {
			return err
		}
		m.add("rate", "/s", more, peak.OpsPerSecond())
		m.add("lost", "%", less, 100*peak.LossRatio())
		if peak.Ops > 0 {
			m.add("p50", "µs", less, micro(peak.Latency.P50))
		}
		m.addOpCost(cost, peak)
		if spec.Rate = 0.8 * peak.OpsPerSecond(); spec.Rate == 0 {
			return nil
		}
		steady, _, err := m.load(spec)
		if err != nil {
			return err
		}
		m.add("lost at 80 %", "%", less, 100*steady.LossRatio())
		if steady.Ops > 0 {
			m.add("p99 at 80 %", "µs", less, micro(steady.Latency.P99))
		}
		return nil
	}
}

// pingSpec is a hundred round trips a second. A few connections share them, so
// that one that takes long does not hold up the next.
func (m *measurement) pingSpec() load.Spec {
	return load.Spec{Kind: load.KindRR, Target: m.to(load.PortEcho), Streams: 16, Rate: 100,
		Warmup: m.o.warmup, Duration: m.o.duration}
}

func pingIdle(m *measurement) error {
	report, _, err := m.load(m.pingSpec())
	if err == nil {
		m.addLatency(report)
	}
	return err
}

func pingDuringBulk(m *measurement) error {
	// The bulk begins before the ping's warm-up and outlives its window.
	beside := m.startLoad(load.Spec{Kind: load.KindBulk, Target: m.to(load.PortBulk), Direction: load.Down,
		Warmup: 300 * time.Millisecond, Duration: m.o.warmup + m.o.duration + time.Second})
	if err := beside.wait(m.s.ctx, sayBegan); err != nil {
		return err
	}
	report, _, err := m.load(m.pingSpec())
	if err != nil {
		return err
	}
	m.addLatency(report)
	bulk, err := beside.report(m.s.ctx)
	if err == nil {
		err = m.sound(bulk)
	}
	if err == nil {
		m.add("bulk", "Gbit/s", more, bulk.BitsPerSecond()/1e9)
	}
	return err
}
