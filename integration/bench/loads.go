package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/warrenmesh/warren/integration/bench/load"
	"github.com/warrenmesh/warren/integration/proc"
)

// loadGrace is how long a load may take on top of its warm-up and duration. A
// load that hangs is a failure of whom it measures, not of the run.
const loadGrace = time.Minute

// runningLoad is a load in a process of its own on the client.
type runningLoad struct {
	process *proc.Process
	limit   time.Duration
}

func (m *measurement) startLoad(spec load.Spec) *runningLoad {
	p, err := proc.Launch(m.world.client, part(roleLoad, spec))
	if err != nil {
		m.s.Fatalf("starting a load: %v", err)
	}
	m.s.Cleanup(p.Kill)
	return &runningLoad{process: p, limit: spec.Warmup + spec.Duration + loadGrace}
}

// wait waits until the load has said text.
func (l *runningLoad) wait(ctx context.Context, text string) error {
	ctx, cancel := context.WithTimeout(ctx, l.limit)
	defer cancel()
	return l.process.WaitOutput(ctx, text)
}

// report waits for the load's end and returns what it measured.
func (l *runningLoad) report(ctx context.Context) (report load.Report, err error) {
	timer := time.NewTimer(l.limit)
	defer timer.Stop()
	select {
	case <-l.process.Done():
	case <-timer.C:
		l.process.Kill()
		return report, fmt.Errorf("the load hung; it had printed %q", l.process.Output())
	case <-ctx.Done():
		return report, context.Cause(ctx)
	}
	_, text, found := strings.Cut(l.process.Output(), sayReport)
	if !found {
		return report, fmt.Errorf("the load ended without a report (exit code %d): %s",
			l.process.ExitCode(), strings.TrimSpace(l.process.Output()))
	}
	text, _, _ = strings.Cut(text, "\n")
	return report, json.Unmarshal([]byte(text), &report)
}
