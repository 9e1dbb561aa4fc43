package events

import (
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestTold(t *testing.T) {
	s := &site{delay: time.Millisecond}
	with(t, s, ops, func(t *testing.T, l *Log) {
		l.Add(Event{Kind: "pool", Pool: "db", From: "up", To: "down", Why: "\"no\" endpoint is up\n"})
		synctest.Wait()
		add(l, 250, "endpoint")
		after(time.Second)
		if got := ids(s.told("")); got != "1-251" {
			t.Errorf("told %s", got)
		}
		if len(s.calls) != 4 || len(s.calls[1].Events) != maxBatch {
			t.Errorf("%d calls, want 1 + 100 + 100 + 50 events", len(s.calls))
		}
		c := s.calls[0]
		if c.Node != "fra1" || c.ID != c.id || c.id == "" || c.id == s.calls[1].id || c.Missed != 0 || c.signature != "" || c.authorization != "" {
			t.Errorf("call = %+v", c)
		}
		if e := c.Events[0]; e.Pool != "db" || e.To != "down" || !strings.HasPrefix(e.Why, `"no"`) || e.Time.IsZero() || strings.Contains(c.body, "monitor") {
			t.Errorf("body = %s", c.body)
		}
		if st := l.Hooks()[0]; st.Name != "ops" || st.URL != "https://ops.example/…" || st.Delivered != 251 || st.Attempts != 4 || st.Failures != 0 || st.Waiting != 0 || st.Failing || st.Told.IsZero() {
			t.Errorf("status = %+v", st)
		}
	})
}

// TestAtLeastOnceInOrder: a site fails at random, sometimes after it has
// taken the events. What it was told, but for what came again, is all of it
// and in order, and a call that is repeated has the same ID and body.
func TestAtLeastOnceInOrder(t *testing.T) {
	for seed := range uint64(20) {
		rng, far := rand.New(rand.NewPCG(seed, 7)), rand.New(rand.NewPCG(seed, 8)) // one for each goroutine
		bodies := make(map[string]string)
		var seen []Event
		s := &site{delay: 10 * time.Millisecond}
		s.answer = func(n int, c call) (int, error) {
			if was, known := bodies[c.id]; known && was != c.body {
				t.Errorf("call %s came with another body", c.id)
			}
			bodies[c.id] = c.body
			verdict := far.IntN(6)
			if n > 40 || verdict >= 4 {
				verdict = 0
			}
			if verdict <= 1 { // taken, whatever is answered
				for _, e := range c.Events {
					if len(seen) == 0 || e.ID > seen[len(seen)-1].ID {
						seen = append(seen, e)
					}
				}
			}
			return []int{200, 500, 503, 0}[verdict], map[bool]error{true: errReset}[verdict == 3]
		}
		with(t, s, ops, func(t *testing.T, l *Log) {
			for range 50 {
				add(l, rng.IntN(20), "pool")
				time.Sleep(time.Duration(rng.IntN(2000)) * time.Millisecond)
			}
			after(30 * time.Minute)
			all, _ := l.Since(0, 0)
			if ids(seen) != ids(all) {
				t.Errorf("seen %s of %s", ids(seen), ids(all))
			}
			if st := l.Hooks()[0]; st.Failing || st.Dropped+st.Expired+st.Rejected > 0 || st.Delivered != l.Last() || st.Waiting > 0 {
				t.Errorf("status = %+v", st)
			}
		})
	}
}

// TestOutage: pauses grow to a minute and no more, and everything is told
// after it.
func TestOutage(t *testing.T) {
	s := &site{answer: func(n int, _ call) (int, error) {
		if n <= 20 {
			return 0, errReset
		}
		return 200, nil
	}}
	var log strings.Builder
	synctest.Test(t, func(t *testing.T) {
		l := New(Deps{Transport: s, Log: slog.New(slog.NewTextHandler(&log, nil))})
		defer l.Stop()
		if err := l.Apply([]Spec{ops}); err != nil {
			t.Fatal(err)
		}
		add(l, 3, "pool")
		after(time.Minute / 2)
		if st := l.Hooks()[0]; !st.Failing || st.Waiting != 3 || !strings.Contains(st.LastError, "connection reset") || st.Failures != st.Attempts {
			t.Errorf("status = %+v", st)
		}
		add(l, 3, "pool")
		after(30 * time.Minute)
		if got := ids(s.told("")); got != "1-6" {
			t.Errorf("told %s", got)
		}
		for i := range 20 {
			d := s.calls[i+1].at.Sub(s.calls[i].at)
			want := min(firstPause<<min(i, 6), maxPause)
			if d < want*3/4 || d > want*5/4 {
				t.Errorf("pause %d is %v, want about %v", i, d, want)
			}
		}
	})
	if got := log.String(); strings.Count(got, "webhook fails") != 1 || strings.Count(got, "webhook recovered") != 1 || strings.Contains(got, "secret") || strings.Contains(got, "/hook") {
		t.Errorf("log = %s", got)
	}
}

// TestHang: a webhook that hangs holds up nobody, and its calls end in time.
func TestHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{}
		l := New(Deps{Transport: hosts{"bad.example": &site{hang: true}, "good.example": s}})
		specs := []Spec{{Name: "bad", URL: "https://bad.example", Timeout: 5 * time.Second, Queue: 50}, {Name: "good", URL: "https://good.example"}}
		if err := l.Apply(specs); err != nil {
			t.Fatal(err)
		}
		before := time.Now()
		for range 10 {
			add(l, 20, "pool")
			synctest.Wait()
		}
		if !time.Now().Equal(before) {
			t.Error("Add waited")
		}
		if got := ids(s.told("")); got != "1-200" {
			t.Errorf("the good one was told %s", got)
		}
		after(time.Minute)
		bad := l.Hooks()[0]
		if bad.Failures < 3 || !strings.Contains(bad.LastError, "deadline exceeded") || bad.Dropped+uint64(bad.Waiting) != 200 || bad.Waiting > 50+maxBatch {
			t.Errorf("bad = %+v", bad)
		}
		l.Stop()
		if took := time.Since(before) - time.Minute; took != DefaultGrace {
			t.Errorf("Stop took %v", took)
		}
	})
}

// hosts sends each host's calls to a site of its own.
type hosts map[string]http.RoundTripper

func (h hosts) RoundTrip(req *http.Request) (*http.Response, error) {
	return h[req.URL.Host].RoundTrip(req)
}

func TestQueueDropsTheOldest(t *testing.T) {
	s, up := down()
	spec := ops
	spec.Queue = 10
	with(t, s, spec, func(t *testing.T, l *Log) {
		add(l, 2, "pool")
		after(time.Second / 2) // the first are being sent
		first := len(s.calls[0].Events)
		add(l, 30, "pool")
		up()
		after(time.Minute)
		events := s.told("")
		if got := ids(events[first:]); got != "23-32" {
			t.Errorf("told %s", got)
		}
		st := l.Hooks()[0]
		if st.Dropped != uint64(22-first) || st.Delivered != uint64(10+first) {
			t.Errorf("status = %+v", st)
		}
		missed := uint64(0)
		for _, c := range s.took {
			missed += c.Missed
		}
		if missed != st.Dropped {
			t.Errorf("the webhook knows of %d missed, not of %d", missed, st.Dropped)
		}
	})
}

func TestExpired(t *testing.T) {
	s := &site{answer: func(n int, c call) (int, error) {
		if c.Events[0].ID <= 5 {
			return 500, nil
		}
		return 200, nil
	}}
	spec := ops
	spec.MaxAge = 10 * time.Minute
	with(t, s, spec, func(t *testing.T, l *Log) {
		add(l, 5, "pool")
		after(9 * time.Minute)
		add(l, 5, "pool")
		after(10 * time.Minute)
		st := l.Hooks()[0]
		if got := ids(s.told("")); got != "6-10" || st.Expired != 5 || st.Waiting != 0 {
			t.Errorf("told %s; status = %+v", got, st)
		}
		if s.took[0].Missed != 5 {
			t.Errorf("missed = %d", s.took[0].Missed)
		}
	})
}

func TestRejected(t *testing.T) {
	for _, status := range []int{400, 404, 413, 302, 308} {
		s := &site{header: http.Header{"Location": {"https://elsewhere.example/new?token=x"}}}
		s.answer = func(n int, c call) (int, error) {
			if c.Events[0].ID == 1 {
				return status, nil
			}
			return 200, nil
		}
		with(t, s, ops, func(t *testing.T, l *Log) {
			add(l, 1, "pool")
			after(time.Second / 2)
			add(l, 1, "pool")
			last := l.Hooks()[0].LastError
			after(10 * time.Minute)
			st := l.Hooks()[0]
			if got := ids(s.told("")); got != "2" || st.Rejected != 1 || st.Failures != maxRejections || len(s.calls) != maxRejections+1 || s.took[0].Missed != 1 {
				t.Errorf("%d: told %s, status = %+v", status, got, st)
			}
			if strings.Contains(last, "key=") || strings.Contains(last, "token=x") {
				t.Errorf("the error tells a secret: %s", last)
			}
			for _, c := range s.calls {
				if c.host != "ops.example" {
					t.Errorf("a redirect was followed to %s", c.host)
				}
			}
			if status/100 == 3 && !strings.Contains(last, `"https://elsewhere.example/…"`) {
				t.Errorf("err = %s", last)
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	for _, test := range []struct {
		after    string
		low, top time.Duration
	}{{"120", 2 * time.Minute, 2 * time.Minute}, {"86400", maxRetryAfter, maxRetryAfter}, {"0", 0, 2 * time.Second}, {"Wed, 21 Oct 2015 07:28:00 GMT", 0, 2 * time.Second}, {"-5", 0, 2 * time.Second}} {
		s := &site{header: http.Header{"Retry-After": {test.after}}}
		s.answer = func(n int, _ call) (int, error) { return []int{429, 200}[min(n-1, 1)], nil }
		with(t, s, ops, func(t *testing.T, l *Log) {
			add(l, 1, "pool")
			after(time.Hour)
			if d := s.calls[1].at.Sub(s.calls[0].at); d < test.low || d > test.top {
				t.Errorf("Retry-After %s: %v", test.after, d)
			}
		})
	}
}

func TestKinds(t *testing.T) {
	s := &site{}
	spec := ops
	spec.Kinds = []string{"pool", "connector"}
	with(t, s, spec, func(t *testing.T, l *Log) {
		for _, kind := range []string{"endpoint", "pool", "endpoint", "connector", "other", "pool"} {
			add(l, 1, kind)
		}
		synctest.Wait()
		if got := ids(s.told("")); got != "2 4 6" {
			t.Errorf("told %s", got)
		}
	})
}

func TestStopDrains(t *testing.T) {
	s := &site{delay: time.Second / 2}
	with(t, s, ops, func(t *testing.T, l *Log) {
		add(l, 1, "pool")
		synctest.Wait()
		add(l, 150, "pool")
		began := time.Now()
		l.Stop()
		if got := ids(s.told("")); got != "1-151" || time.Since(began) != 3*time.Second/2 {
			t.Errorf("told %s in %v", got, time.Since(began))
		}
		add(l, 1, "pool")
		after(time.Hour)
		if s.count() != 3 {
			t.Errorf("%d calls", s.count())
		}
		if events, _ := l.Since(151, 0); len(events) != 1 || l.Hooks()[0].Waiting != 1 {
			t.Error("Add after Stop is not kept")
		}
		if err := l.Apply(nil); err == nil {
			t.Error("Apply after Stop")
		}
	})
}

func TestStopInAnOutage(t *testing.T) {
	s, _ := down()
	with(t, s, ops, func(t *testing.T, l *Log) {
		add(l, 1, "pool")
		after(time.Hour / 2)
		began, calls := time.Now(), s.count()
		l.Stop()
		if took := time.Since(began); took != DefaultGrace {
			t.Errorf("Stop took %v", took)
		}
		if n := s.count() - calls; n < 3 || n > 5 {
			t.Errorf("%d last attempts, want one at once and one a second", n)
		}
	})
	s, up := down() // and is over, though the next attempt is far
	with(t, s, ops, func(t *testing.T, l *Log) {
		add(l, 1, "pool")
		after(time.Hour / 2)
		up()
		began := time.Now()
		l.Stop()
		if ids(s.told("")) != "1" || time.Since(began) > 0 {
			t.Errorf("told %s in %v", ids(s.told("")), time.Since(began))
		}
	})
}
