// Package load is what the clients and the origin of a benchmark do, and what
// they measure.
//
// An Origin listens on the private side (Listen, Origin.Serve, or Serve for
// both) at one fixed port for each service; a contender leads each port to the
// public side; Run connects to the contender there, does what a Spec says and
// returns a Report, which is JSON like the Spec. Both sides use kernel sockets
// alone and know nothing of what lies between them.
//
// A client and an origin share the machine's cores with what they measure, so
// they are built to cost little: large reads and writes, a content check that
// is cheaper than the kernel's copy, batched system calls for datagrams,
// histograms of fixed size, no allocation for each operation but a
// connection's own. Report.CPU says what is left. Give each a process of its
// own, with GOMAXPROCS=1: a second processor makes the Go runtime look for work
// at every wake-up, which at 5,000 requests a second, or for a ping, costs half
// as much again and does nothing for bulk or datagrams.
//
// Figures are counted by the receiver, after a warm-up. Content is compared
// byte by byte (see pattern): a Report that says Corrupt is a contender that
// is out. The package must never repeat an operation in silence, nor leave a
// slow one out: what failed, was lost or was never sent has a counter.
//
// # Ports of the client
//
// A connect load uses up client ports: whoever closes first keeps the port in
// TIME_WAIT for a minute, and one source address has 28,000 of them by
// default. SO_LINGER 0 would free the port at once, but by a reset, and then
// every flow of the benchmark would be an abort: the orderly close, and the
// TIME_WAIT that it leaves within the contender, are what is to be measured.
// So connections close in order, and the load is spread over Spec.Sources,
// bound without a port (IP_BIND_ADDRESS_NO_PORT), so that the kernel chooses
// the port at connect for source and target together. Each source is good for
// 470 connects a second for ever; with net.ipv4.tcp_tw_reuse=1 in the client's
// namespace for 28,000. Where ports run out all the same, Run fails and says
// so: it is not the contender's fault.
//
// The machine that a contender dials origins from has the same limit when the
// client closes first. It wants tcp_tw_reuse=1 too.
package load

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Run does what s says and returns what it measured. It fails where s is not
// valid, where the target cannot be reached at the start, where the client's
// own ports run out and where ctx ends first; what fails later is counted in
// the Report. An idle load without a duration is ended by ctx, and well.
func Run(ctx context.Context, s Spec) (Report, error) {
	if err := s.Validate(); err != nil {
		return Report{}, fmt.Errorf("checking the load's spec: %w", err)
	}
	s = s.filled()
	kinds := map[string]func(context.Context, Spec) (Report, error){
		KindBulk: runBulk, KindRR: runRR, KindPing: runRR, KindConnect: runConnect, KindUDP: runUDP, KindIdle: runIdle,
	}
	r, err := kinds[s.Kind](ctx, s)
	r.Kind = s.Kind
	if err == nil && s.Kind != KindIdle {
		err = ctx.Err()
	}
	if err != nil {
		return r, fmt.Errorf("running %s to %q: %w", s.Kind, s.Target, err)
	}
	return r, nil
}

// opening is how many connections are opened at a time before a load begins.
const opening = 32

// each calls f for 0 to n-1, at most `opening` at a time, until one fails.
func each(n int, f func(i int) error) error {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		next  int
		first error
	)
	take := func() (int, bool) {
		mu.Lock()
		defer mu.Unlock()
		next++
		return next - 1, first == nil && next <= n
	}
	for range min(n, opening) {
		wg.Go(func() {
			for i, ok := take(); ok; i, ok = take() {
				if err := f(i); err != nil {
					mu.Lock()
					first = errors.Join(first, err)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return first
}
