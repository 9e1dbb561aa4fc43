package enroll

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

// Work that changes while a connector is given what it was before reaches it
// all the same.
func TestWorkThatChangesWhileItIsGiven(t *testing.T) {
	for _, c := range []struct {
		name string
		to   uint64 // revision that it changes to
	}{{"another", 8}, {"none", 0}} {
		t.Run(c.name, func(t *testing.T) {
			working(t, func(t *testing.T, s *served, work *fakeWork) {
				_, token := s.token()
				_, web := s.enrolled(token, "web")
				s.assign("web", 7, []uint64{1})
				l := s.line(t, web)
				defer l.Close()
				work.mu.Lock()
				work.during = func() { s.change("web", c.to, []uint64{2}) }
				work.mu.Unlock()
				l.send(t, workText(t, wire.WorkRequest{}))
				if c.to == 0 {
					wantRefusal(t, l.refused(t), wire.CodeNotAllowed, `"web"`)
					return
				}
				a := l.works(t)
				if a.Revision == 7 { // then the next must be answered with what is new
					l.send(t, workText(t, wire.WorkRequest{Revision: 7}))
					began := time.Now()
					if a = l.works(t); time.Since(began) > 0 {
						t.Errorf("the change was told %v later", time.Since(began))
					}
				}
				if a.Revision != 8 || !slices.Equal(idsOf(a.Work), []uint64{2}) {
					t.Errorf("told %+v", a)
				}
			})
		})
	}
}

// A connector that asks again for what it was told costs no work.
func TestAnAnswerIsMadeOnce(t *testing.T) {
	working(t, func(t *testing.T, s *served, work *fakeWork) {
		_, token := s.token()
		_, web := s.enrolled(token, "web")
		s.assign("web", 7, []uint64{1}, "a")
		l := s.line(t, web)
		defer l.Close()
		asked := work.asked
		for range 10 {
			l.send(t, workText(t, wire.WorkRequest{}))
			if a := l.works(t); a.Revision != 7 || !slices.Equal(idsOf(a.Work), []uint64{1}) || len(a.Names) != 1 {
				t.Fatalf("told %+v", a)
			}
		}
		if n := work.asked - asked; n != 1 {
			t.Errorf("the answer was made %d times", n)
		}
		l.send(t, workText(t, wire.WorkRequest{Revision: 7, Results: []wire.CheckResult{{ID: 1}}}))
		if got := work.taken("web"); len(got) != 1 {
			t.Errorf("reported %+v", got)
		}
		s.assign("web", 9, []uint64{3})
		if a := l.works(t); a.Revision != 9 || !slices.Equal(idsOf(a.Work), []uint64{3}) {
			t.Errorf("told %+v", a)
		}
	})
}

// A connector is answered as often as one that is well asks, and no more.
func TestRequestsForWorkArePaced(t *testing.T) {
	working(t, func(t *testing.T, s *served, work *fakeWork) {
		_, token := s.token(reusable)
		_, web := s.enrolled(token, "web")
		_, db := s.enrolled(token, "db")
		s.assign("web", 7, []uint64{1})
		s.assign("db", 8, []uint64{2})
		ask := func(key wgtypes.Key) *wire.Refusal {
			status, body, err := s.control.post(key, wire.PathWork, wire.WorkRequest{Results: []wire.CheckResult{{ID: 1}}})
			if status == 200 && err == nil {
				return nil
			}
			return refused(t, status, body, err)
		}
		served := 0
		for served < 10*workBurst && ask(web) == nil {
			served++
		}
		if served != workBurst {
			t.Errorf("%d requests at once were answered", served)
		}
		wantRefusal(t, ask(web), wire.CodeBusy, `"web"`)
		if refusal := ask(db); refusal != nil {
			t.Errorf("another is refused: %v", refusal)
		}
		var dropped uint64
		s.Drops(func(_, why string, n uint64) {
			if why == "work_too_often" {
				dropped = n
			}
		})
		if dropped != 2 {
			t.Errorf("%d are counted", dropped)
		}
		for range 200 { // as a connector that has always something to tell
			time.Sleep(100 * time.Millisecond)
			if refusal := ask(web); refusal != nil {
				t.Fatal(refusal)
			}
		}
	})
}

// fakePoll waits for nothing but its time.
type fakePoll struct {
	waits time.Duration
	count atomic.Int64
}

func (p *fakePoll) look(mine *hold, wake func(), overdue bool) (any, *hold, *wire.Refusal) {
	if overdue {
		return struct{}{}, nil, nil
	}
	return nil, &hold{wake: wake}, nil
}
func (p *fakePoll) giveUp(*hold)           {}
func (p *fakePoll) held() *atomic.Int64    { return &p.count }
func (p *fakePoll) hurried() bool          { return false }
func (p *fakePoll) holdFor() time.Duration { return p.waits }

// Each kind of poll has its own time.
func TestPollsAreHeldForTheirOwnTime(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		p := &fakePoll{waits: 3 * time.Second}
		port := w.controlPort()
		port.methods["/v1/fake"] = func(ctx context.Context, _ wgtypes.Key, _ func(any) *wire.Refusal) (any, *wire.Refusal) {
			at, ok := placeOf(ctx)
			if !ok {
				t.Error("it cannot be parked")
			}
			return lookParked(at, p)
		}
		_, token := w.token()
		_, key := w.enrolled(token, "web")
		ctx, stop := context.WithCancel(t.Context())
		at, over := newOverlay(), make(chan error)
		go func() { over <- w.serve(ctx, port, at) }()
		began := time.Now()
		status, _, err := at.post(key, "/v1/fake", struct{}{})
		if d := time.Since(began); status != 200 || err != nil || d != p.waits {
			t.Errorf("answered %d, %v, after %v", status, err, d)
		}
		stop()
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
	if (&workPoll{}).holdFor() != wire.HoldWork || (&syncPoll{}).holdFor() != wire.HoldSync {
		t.Error("a poll is held for another's time")
	}
}
