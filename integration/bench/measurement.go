package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/warrenmesh/warren/integration/bench/load"
	"github.com/warrenmesh/warren/integration/proc"
)

// measurement is one case for one contender in one round, in a world of its
// own.
type measurement struct {
	s       *scope
	o       *options
	c       *benchCase
	who     contender
	round   int
	world   *world
	served  *running
	results *results
}

// errCorrupt is a contender that did not carry what it was given.
type errCorrupt struct{ what string }

func (e errCorrupt) Error() string { return "corrupted: " + e.what }

// measure makes a world, starts origin and contender there, and runs the case.
func measure(ctx context.Context, o *options, c *benchCase, who contender, round int, res *results) error {
	return within(ctx, c.name+" "+who.name, o.log, func(s *scope) error {
		m := &measurement{s: s, o: o, c: c, who: who, round: round, results: res}
		m.world = newWorld(s, c.pathOf(o.path))
		if c.run != nil {
			return c.run(m)
		}
		origin := proc.Start(s, m.world.dc, part(roleOrigin, originAddr))
		waitPort(s, m.world.dc, origin, netip.AddrPortFrom(originAddr, load.PortEcho))
		m.served = who.start(s, m.world)
		m.waitServed()
		return c.measure(m)
	})
}

// waitServed waits until the whole way to the origin carries a byte: a
// connector may still be calling when it says that it is ready.
func (m *measurement) waitServed() {
	ctx, cancel := context.WithTimeout(m.s.ctx, startLimit)
	defer cancel()
	err := proc.Poll(ctx, func() error {
		for _, p := range append(append([]*proc.Process{}, m.served.edge...), m.served.connector...) {
			select {
			case <-p.Done():
				return proc.Fatal(fmt.Errorf("%s ended: %s", p.Name(), lastLine(p.Output())))
			default:
			}
		}
		return m.greeted(ctx)
	})
	if err != nil {
		m.s.Fatalf("waiting for the way to the origin: %v", err)
	}
	for _, port := range tcpPorts { // who opens them one by one is at the last soon
		waitPort(m.s, m.world.client, nil, m.to(port))
	}
}

// greeted opens a connection that hears from the origin.
func (m *measurement) greeted(ctx context.Context) error {
	conn, err := m.world.client.Dial(ctx, "tcp", m.to(load.PortGreet).String())
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Second))
	_, err = conn.Read(make([]byte, 1))
	return err
}

// to is a port of the origin as the client sees it.
func (m *measurement) to(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(m.served.target, port)
}

func (m *measurement) add(name, unit string, better int, value float64) {
	m.results.add(key{m.c.name, m.who.name, metric{name, unit, better}}, value)
}

// spent is what a load cost at the two ends.
type spent struct {
	edge, connector usage // cpu is of the load's window alone
	problem         error
}

// load runs a load and accounts for its window.
func (m *measurement) load(spec load.Spec) (load.Report, spent, error) {
	l := m.startLoad(spec)
	var cost spent
	if err := l.wait(m.s.ctx, sayBegan); err == nil {
		before := m.accounts()
		var profiles sync.WaitGroup
		m.profiles(&profiles, spec.Duration)
		err := l.wait(m.s.ctx, sayEnded)
		cost = m.accounts()
		cost.edge.cpu -= before.edge.cpu
		cost.connector.cpu -= before.connector.cpu
		cost.problem = errors.Join(err, before.problem, cost.problem)
		profiles.Wait()
	}
	report, err := l.report(m.s.ctx)
	if err == nil {
		err = m.sound(report)
	}
	return report, cost, err
}

func (m *measurement) accounts() (a spent) {
	var problems [2]error
	a.edge, problems[0] = account(m.served.edge)
	a.connector, problems[1] = account(m.served.connector)
	a.problem = errors.Join(problems[:]...)
	return a
}

// sound fails a report that shows corruption, and notes other failures.
func (m *measurement) sound(report load.Report) error {
	if report.Corrupt > 0 {
		return errCorrupt{report.Example}
	}
	if report.Failures > 0 {
		var why []string
		for reason, n := range report.Reasons {
			why = append(why, fmt.Sprintf("%d × %s", n, reason))
		}
		m.results.fail(m.c.name, m.who.name, "failures: "+strings.Join(why, ", "))
	}
	return nil
}

// profiles records CPU profiles of both ends while a load runs, where the run
// asks for them and the contender is Warren.
func (m *measurement) profiles(wg *sync.WaitGroup, d time.Duration) {
	seconds := int(d.Seconds())
	if m.o.profile == "" || seconds < 1 || !strings.HasPrefix(m.who.name, nameWarren) {
		return
	}
	for end, door := range m.served.inspect {
		wg.Go(func() {
			data, err := door.profile(m.s.ctx, seconds)
			if err == nil {
				file := fmt.Sprintf("%s.%s.%s.%d.pprof", m.c.name, m.who.name, end, m.round)
				err = os.WriteFile(filepath.Join(m.o.profile, file), data, 0o644)
			}
			if err != nil {
				fmt.Fprintf(m.o.log, "profiling %s: %v\n", end, err)
			}
		})
	}
}
