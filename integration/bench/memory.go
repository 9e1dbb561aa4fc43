package main

import (
	"fmt"
	"time"

	"github.com/warrenmesh/warren/integration/bench/load"
)

// rest lets the contender be.
func (m *measurement) rest() {
	select {
	case <-time.After(m.o.rest):
	case <-m.s.ctx.Done():
	}
}

// weight is what one end holds, in bytes.
type weight struct {
	inUse int64 // HeapInuse + StackInuse after garbage collection; 0: not known
	rss   int64
}

// weigh weighs the ends that the contender has.
func (m *measurement) weigh() (map[string]weight, error) {
	cost := m.accounts()
	if cost.problem != nil {
		return nil, cost.problem
	}
	weights := map[string]weight{}
	for _, end := range m.ends(cost) {
		w := weight{rss: end.rss}
		if door := m.served.inspect[end.name]; door != nil {
			var err error
			if w.inUse, err = door.memory(m.s.ctx); err != nil {
				return nil, fmt.Errorf("weighing %s: %w", end.name, err)
			}
		}
		weights[end.name] = w
	}
	return weights, nil
}

// restMemory weighs a contender that has carried one connection, before
// anybody tells it to collect its garbage.
func restMemory(m *measurement) error {
	m.rest()
	weights, err := m.weigh()
	if err != nil {
		return err
	}
	for _, name := range []string{"edge", "connector"} {
		if w, ok := weights[name]; ok {
			m.add(name+" RSS", "MB", less, float64(w.rss)/1e6)
		}
	}
	return nil
}

// idleMemory weighs connections that have carried something and are silent.
func idleMemory(m *measurement) error {
	// A first lot makes what is made once.
	first := m.startLoad(load.Spec{Kind: load.KindIdle, Target: m.to(load.PortIdle), Streams: min(64, m.o.idle)})
	if err := first.wait(m.s.ctx, sayBegan); err != nil {
		return err
	}
	first.process.Stop()
	m.rest()
	before, err := m.weigh()
	if err != nil {
		return err
	}
	crowd := m.startLoad(load.Spec{Kind: load.KindIdle, Target: m.to(load.PortIdle), Streams: m.o.idle})
	if err := crowd.wait(m.s.ctx, sayBegan); err != nil {
		return err
	}
	m.rest()
	after, err := m.weigh()
	if err != nil {
		return err
	}
	for _, name := range []string{"edge", "connector"} {
		a, ok := after[name]
		if !ok {
			continue
		}
		if a.inUse > 0 {
			m.add(name, "KB", less, float64(a.inUse-before[name].inUse)/float64(m.o.idle)/1024)
		}
		m.add(name+" RSS", "KB", less, float64(a.rss-before[name].rss)/float64(m.o.idle)/1024)
	}
	crowd.process.Stop()
	report, err := crowd.report(m.s.ctx)
	if err != nil {
		return err
	}
	return m.sound(report)
}
