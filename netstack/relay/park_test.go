package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"testing"
	"time"

	"github.com/warrenmesh/warren/netstack/netx"
)

// awaitRest returns once both directions are parked, or watched.
func (s *Stream) awaitRest() {
	for !s.there.rests() || !s.back.rests() {
		runtime.Gosched()
	}
}

func (p *pipe) rests() bool { return p.state.Load() != running }

// parkedRig is a flow that is watched as it comes to rest.
type parkedRig struct {
	client, origin stream
	flow           *Stream
	over           chan Result
	cancel         context.CancelCauseFunc
}

func newParkedRig(t testing.TB, poller *Poller, makeA, makeB func(testing.TB) (near, far stream)) *parkedRig {
	a, client := makeA(t)
	b, origin := makeB(t)
	ctx, cancel := context.WithCancelCause(context.Background())
	r := &parkedRig{client: client, origin: origin, over: make(chan Result, 1), cancel: cancel}
	r.flow = Start(ctx, a, b, Options{Poller: poller, tick: time.Millisecond}, func(res Result) { r.over <- res })
	return r
}

func (r *parkedRig) close() {
	r.cancel(nil)
	r.client.Close()
	r.origin.Close()
}

// Everything that can happen to a flow happens to one at rest.
func TestWakingFromRest(t *testing.T) {
	killed := errors.New("killed")
	cases := []struct {
		name string
		do   func(t *testing.T, r *parkedRig)
		end  End
		side Side
	}{
		{"bytes, then both ends", func(t *testing.T, r *parkedRig) {
			send(t, r.client, "question")
			expect(t, r.origin, "question")
			r.flow.awaitRest()
			send(t, r.origin, "answer")
			expect(t, r.client, "answer")
			r.flow.awaitRest()
			_ = r.client.CloseWrite()
			expectEnd(t, r.origin)
			r.flow.awaitRest()
			send(t, r.origin, "more")
			expect(t, r.client, "more")
			r.flow.awaitRest()
			_ = r.origin.CloseWrite()
			expectEnd(t, r.client)
		}, EndOrderly, SideNone},
		{"both ends at once", func(t *testing.T, r *parkedRig) {
			_ = r.client.CloseWrite()
			_ = r.origin.CloseWrite()
			expectEnd(t, r.client)
			expectEnd(t, r.origin)
		}, EndOrderly, SideNone},
		{"the client's reset", func(t *testing.T, r *parkedRig) {
			netx.Abort(r.client)
			expectReset(t, r.origin)
		}, EndFailed, SideA},
		{"the origin's reset", func(t *testing.T, r *parkedRig) {
			netx.Abort(r.origin)
			expectReset(t, r.client)
		}, EndFailed, SideB},
		{"the client's reset after its end", func(t *testing.T, r *parkedRig) {
			_ = r.client.CloseWrite()
			expectEnd(t, r.origin)
			r.flow.awaitRest()
			netx.Abort(r.client)
		}, EndFailed, SideA},
		{"the origin's reset after its end", func(t *testing.T, r *parkedRig) {
			_ = r.origin.CloseWrite()
			expectEnd(t, r.client)
			r.flow.awaitRest()
			netx.Abort(r.origin)
		}, EndFailed, SideB},
		{"cancel", func(t *testing.T, r *parkedRig) {
			r.cancel(killed)
			expectReset(t, r.client)
			expectReset(t, r.origin)
		}, EndCanceled, SideNone},
		{"cancel after an end", func(t *testing.T, r *parkedRig) {
			_ = r.client.CloseWrite()
			expectEnd(t, r.origin)
			r.flow.awaitRest()
			r.cancel(killed)
			expectReset(t, r.client)
		}, EndCanceled, SideNone},
	}
	poller := NewPoller()
	defer poller.Close()
	for _, c := range cases {
		for _, a := range pairs[:2] {
			for _, b := range pairs[:2] {
				t.Run(fmt.Sprintf("%s, %s-%s", c.name, a.name, b.name), func(t *testing.T) {
					r := newParkedRig(t, poller, a.make, b.make)
					defer r.close()
					r.flow.awaitRest()
					c.do(t, r)
					if res := <-r.over; res.End != c.end || res.Side != c.side {
						t.Errorf("ended %v, side %v, %v; want %v, side %v", res.End, res.Side, res.Err, c.end, c.side)
					}
				})
			}
		}
	}
}

// A stream that has no poller left keeps its goroutines and works.
func TestClosedPoller(t *testing.T) {
	poller := NewPoller()
	poller.Close()
	r := newParkedRig(t, poller, tcpPair, tcpPair)
	defer r.close()
	for !r.flow.stays() {
		runtime.Gosched()
	}
	send(t, r.client, "question")
	expect(t, r.origin, "question")
	_ = r.client.CloseWrite()
	_ = r.origin.CloseWrite()
	expectEnd(t, r.client)
	if res := <-r.over; res.End != EndOrderly {
		t.Errorf("ended %v, %v", res.End, res.Err)
	}
}

func (s *Stream) stays() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.there.stays && s.back.stays
}

// FuzzParked plays one script to a flow whose directions never park and to one
// that parks whenever it may: nobody can tell which is which.
func FuzzParked(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4})
	f.Add([]byte{5, 0, 2, 1, 2, 3, 2, 0, 4})
	f.Add([]byte{2, 3, 2, 6, 0})
	f.Add([]byte{8, 0, 0, 1, 3, 7})
	poller := NewPoller()
	f.Cleanup(poller.Close)
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) == 0 || len(script) > 24 {
			return
		}
		makeA, makeB := pairs[script[0]&1].make, pairs[script[0]>>1&1].make
		want := play(t, newParkedRig(t, nil, makeA, makeB), script[1:])
		got := play(t, newParkedRig(t, poller, makeA, makeB), script[1:])
		if got != want {
			t.Errorf("script %v: parked %s, running %s", script, got, want)
		}
	})
}

// play does what script says, a byte a step, then ends both directions, and
// returns how it all went.
func play(t *testing.T, r *parkedRig, script []byte) string {
	defer r.close()
	ends := [2]stream{r.client, r.origin}
	var ended [2]bool
	var heard [2]string
	finish := func(i int) {
		if !ended[i] {
			ended[i] = true
			_ = ends[i].CloseWrite()
			expectEnd(t, ends[1-i])
		}
	}
	for _, step := range script {
		i := int(step >> 3 & 1)
		switch step & 7 {
		case 0, 1, 5:
			if ended[i] {
				continue
			}
			words := fmt.Sprint("words ", step)
			send(t, ends[i], words)
			expect(t, ends[1-i], words)
			heard[1-i] += words
		case 2, 4:
			if r.flow.poller != nil {
				r.flow.awaitRest()
			}
		case 3:
			finish(i)
		case 6, 7:
			netx.Abort(ends[i])
			if !ended[i] {
				_, err := io.Copy(io.Discard, ends[1-i])
				if err == nil {
					t.Errorf("the abort of %d reads as an end", i)
				}
			}
			res := <-r.over
			return fmt.Sprintln("aborted", heard, ended, res.End, res.Side, res.AToB, res.BToA)
		}
		if ended[0] && ended[1] {
			break
		}
	}
	finish(0)
	finish(1)
	res := <-r.over
	return fmt.Sprintln("ended", heard, ended, res.End, res.Side, res.AToB, res.BToA)
}
