package connector

import (
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warrenmesh/warren/netstack/netx"
)

// liveFlow gives b a connection that stays until its edge's side ends.
func liveFlow(t *testing.T, b *bench) (r *tcpRequest, ended <-chan struct{}) {
	t.Helper()
	l := b.echo("10.0.0.10:80")
	t.Cleanup(func() { _ = l.Close() })
	b.start()
	b.join()
	r = newTCPRequest("10.0.0.10:80")
	ended = b.tcp(r)
	if err := r.verdict(t); err != nil {
		t.Fatal(err)
	}
	return r, ended
}

func TestDrainWaitsForFlows(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		r, ended := liveFlow(t, b)
		b.stop()
		synctest.Wait()
		if b.c.Status().Ready() || !b.c.Status().Draining {
			t.Error("ready though it drains")
		}
		b.tunnel.mu.Lock()
		if !b.tunnel.draining || b.tunnel.closed {
			t.Errorf("the edges were told: %v; the tunnel was closed: %v", b.tunnel.draining, b.tunnel.closed)
		}
		b.tunnel.mu.Unlock()

		refused := newTCPRequest("10.0.0.10:80")
		<-b.tcp(refused)
		if err := refused.verdict(t); netx.Classify(err) != netx.ErrUnreachable || b.dials("tcp", resultDraining) != 1 {
			t.Errorf("a new flow got %v", err)
		}

		time.Sleep(DefaultGrace - time.Second) // the live flow works to its own end
		if _, err := io.WriteString(r.edge, "late"); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4)
		if _, err := io.ReadFull(r.edge, buf); err != nil || string(buf) != "late" {
			t.Errorf("read %q, %v", buf, err)
		}
		_ = r.edge.CloseWrite()
		_, _ = io.ReadAll(r.edge)
		<-ended
		start := time.Now()
		if err := b.finish(); err != nil {
			t.Error(err)
		}
		if time.Since(start) > flushPoll {
			t.Errorf("the drain went on for %v after the last flow", time.Since(start))
		}
	})
}

func TestDrainIsOverAfterItsGrace(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.spec.Grace = 7 * time.Second
		r, ended := liveFlow(t, b)
		start := time.Now()
		if err := b.finish(); err != nil {
			t.Error(err)
		}
		if got := time.Since(start); got != 7*time.Second {
			t.Errorf("the drain took %v", got)
		}
		<-ended
		if _, err := r.edge.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("the cut flow reads %v: want a reset, not an end", err)
		}
		if got := b.log.with("drain is over cut_tcp_flows=1"); len(got) != 1 {
			t.Errorf("the log does not tell what was cut: %q", b.log.with("drain"))
		}
	})
}

func TestNegativeGraceWaitsForNone(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.spec.Grace = -1
		_, ended := liveFlow(t, b)
		start := time.Now()
		if err := b.finish(); err != nil || time.Since(start) != 0 {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		<-ended
	})
}

func TestDrainIsForced(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		_, ended := liveFlow(t, b)
		b.stop()
		time.Sleep(time.Second)
		close(b.force)
		start := time.Now()
		if err := b.finish(); !errors.Is(err, ErrForced) || time.Since(start) != 0 {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		<-ended
	})
}

func TestForceWithoutFlowsIsNoFailure(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.start()
		b.join()
		close(b.force)
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestEndDuringADial(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.spec.Grace = -1
		b.silence("10.0.0.10:80")
		b.start()
		b.join()
		r := newTCPRequest("10.0.0.10:80")
		ended := b.tcp(r)
		if err := b.finish(); err != nil {
			t.Error(err)
		}
		<-ended
		if err := r.verdict(t); err == nil {
			t.Error("the SYN was accepted")
		}
		if b.dials("tcp", resultCanceled) != 1 || len(b.log.with("flow failed")) != 0 {
			t.Errorf("counted %d, logged %q", b.dials("tcp", resultCanceled), b.log.with("flow failed"))
		}
	})
}

func TestDrainWaitsForTheLastBytes(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.start()
		p := b.join()
		p.set(State{Alive: true, Flows: 1}) // closed, and not yet acknowledged
		b.stop()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		b.tunnel.mu.Lock()
		if b.tunnel.closed {
			t.Error("the tunnel was closed over unsent bytes")
		}
		b.tunnel.mu.Unlock()
		p.set(State{Alive: true})
		start := time.Now()
		if err := b.finish(); err != nil || time.Since(start) > flushPoll {
			t.Errorf("the drain ended %v after the last byte, with %v", time.Since(start), err)
		}
	})
}

func TestDrainDoesNotWaitForBytesToALostEdge(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.start()
		b.join().set(State{Flows: 1})
		start := time.Now()
		if err := b.finish(); err != nil || time.Since(start) != 0 {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

func TestSecondConnectorOfAStateDirIsRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.start()
		if err := Run(t.Context(), b.spec, b.deps); err == nil {
			t.Error("a second connector runs in the same state directory")
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
		// The first one has let go of it.
		again := newBench(t)
		again.spec.StateDir = b.spec.StateDir
		again.start()
		if err := again.finish(); err != nil {
			t.Error(err)
		}
		if n := len(again.log.with("made a private key")); n != 0 {
			t.Error("the second run made another key")
		}
	})
}
