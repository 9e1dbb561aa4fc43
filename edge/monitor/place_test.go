package monitor

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warrenmesh/warren/check"
)

// Dead endpoints of some networks do not keep those of another from their turn.
func TestPlacesAreSharedByNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := New(Deps{Dial: w.dial, Concurrency: 5})
		defer m.Stop()
		targets := []Target{target}
		for _, network := range []string{"dead", "gone", "lost"} {
			for _, t := range crowd(200) {
				t.Network = network
				w.set(network+"/"+t.Addr.String(), errSilence)
				targets = append(targets, t)
			}
		}
		if err := m.Apply([]Spec{pg}, targets); err != nil {
			t.Fatal(err)
		}
		const rounds = 20
		after(rounds * (pg.Interval + pg.Interval/10))
		if got := w.count(place); got < rounds-1 {
			t.Errorf("%d checks in %d intervals", got, rounds)
		}
		if w.most > 3*5+1 || w.most < 3*5 {
			t.Errorf("%d dials at one time", w.most)
		}
		if err := m.Apply([]Spec{pg}, targets[:1]); err != nil {
			t.Fatal(err)
		}
		if n := len(m.shares); n != 1 {
			t.Errorf("the places of %d networks are kept", n)
		}
	})
	synctest.Test(t, func(t *testing.T) { // and there is a bound for all
		w := newWorld()
		m := New(Deps{Dial: w.dial, Concurrency: 2})
		defer m.Stop()
		var targets []Target
		for _, network := range strings.Fields("a b c d e f g") {
			for _, t := range crowd(10) {
				t.Network = network
				w.set(network+"/"+t.Addr.String(), errSilence)
				targets = append(targets, t)
			}
		}
		if err := m.Apply([]Spec{pg}, targets); err != nil {
			t.Fatal(err)
		}
		after(time.Minute)
		if w.most != 2*networksAtOnce {
			t.Errorf("%d dials at one time, want %d", w.most, 2*networksAtOnce)
		}
	})
}

// silent is a udp conn that nobody answers on.
type silent struct {
	net.Conn
	ends    context.Context
	end     func()
	aborted *atomic.Int64
}

func (s silent) Write(b []byte) (int, error) { return len(b), nil }
func (s silent) SetDeadline(time.Time) error { return nil }
func (s silent) SetReadDeadline(at time.Time) error {
	time.AfterFunc(time.Until(at), s.end)
	return nil
}
func (s silent) Abort() { s.aborted.Add(1) }
func (s silent) Read([]byte) (int, error) {
	<-s.ends.Done()
	return 0, os.ErrDeadlineExceeded
}

// A udp check that waits in silence, which is how it passes, leaves its place
// to others.
func TestSilenceNeedsNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dials, aborted atomic.Int64
		m := New(Deps{Concurrency: 1, Dial: func(context.Context, string, string, netip.AddrPort) (net.Conn, error) {
			dials.Add(1)
			ends, end := context.WithCancel(context.Background())
			return silent{ends: ends, end: end, aborted: &aborted}, nil
		}})
		defer m.Stop()
		spec := pg
		spec.Check = check.Spec{Type: check.TypeUDP}
		if err := m.Apply([]Spec{spec}, crowd(100)); err != nil {
			t.Fatal(err)
		}
		after(500 * time.Millisecond) // less than the silence of one
		if got := dials.Load(); got != 100 {
			t.Errorf("%d of 100 checks have begun", got)
		}
		after(time.Second)
		for _, r := range m.Snapshot() {
			if r.State != StateUp {
				t.Fatalf("%v is %s: %s", r.Target, r.State, r.Why)
			}
		}
		if got := aborted.Load(); got != 100 {
			t.Errorf("%d of 100 conns are aborted", got)
		}
		if n := len(m.places) + len(m.shares["berlin"]); n != 0 {
			t.Errorf("%d places are held", n)
		}
	})
}

// Who gives up waiting for a place of all leaves the network's to others.
func TestPlaceGivenUp(t *testing.T) {
	share, all := make(chan struct{}, 1), make(chan struct{}, 1)
	first := takePlace(t.Context(), make(chan struct{}, 1), all)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 { // select chooses at random
		if p := takePlace(ctx, share, all); p != nil || len(share) != 0 {
			t.Fatalf("got %v, %d of its network's are held", p, len(share))
		}
	}
	first.give()
	first.give()
	if p := takePlace(t.Context(), share, all); p == nil || len(share)+len(all) != 2 {
		t.Error("there is no place")
	}
}
