package relay

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/warrenmesh/warren/netstack/memnet"
)

// Streams begin and end in any order, and the end of a context is the end of
// its own alone.
func TestContextsOfManyStreams(t *testing.T) {
	poller := NewPoller()
	defer poller.Close()
	over := errors.New("over")
	random := rand.New(rand.NewPCG(1, 2))
	type running struct {
		client *memnet.Conn
		done   chan Result
	}
	begin := func(ctx context.Context) running {
		a, client := memnet.Pipe()
		b, _ := memnet.Pipe()
		r := running{client, make(chan Result, 1)}
		Start(ctx, a, b, Options{Poller: poller}, func(res Result) { r.done <- res })
		return r
	}
	first, endFirst := context.WithCancelCause(t.Context())
	second, endSecond := context.WithCancelCause(t.Context())
	var ofFirst, ofSecond []running
	for range 200 {
		ofFirst = append(ofFirst, begin(first))
		ofSecond = append(ofSecond, begin(second))
		if i := random.IntN(len(ofFirst)); random.IntN(2) == 0 {
			ofFirst[i].client.Abort()
			if res := <-ofFirst[i].done; res.End != EndFailed || res.Side != SideA {
				t.Fatalf("ended %v, side %v, %v", res.End, res.Side, res.Err)
			}
			ofFirst = append(ofFirst[:i], ofFirst[i+1:]...)
		}
	}
	expectCut := func(streams []running) {
		t.Helper()
		for _, r := range streams {
			if res := <-r.done; res.End != EndCanceled || !errors.Is(res.Err, over) {
				t.Errorf("ended %v, %v", res.End, res.Err)
			}
		}
	}
	endFirst(over)
	expectCut(ofFirst)
	expectCut([]running{begin(first)}) // too late
	for _, r := range ofSecond {
		if len(r.done) > 0 {
			t.Error("a stream of the other context has ended")
		}
	}
	endSecond(over)
	expectCut(ofSecond)
	poller.crowds.mu.Lock()
	defer poller.crowds.mu.Unlock()
	if len(poller.crowds.of) > 0 {
		t.Errorf("%d contexts are still looked after", len(poller.crowds.of))
	}
}
