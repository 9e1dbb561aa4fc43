package enroll

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/netx"
)

func TestWorkIsHeldUntilItChanges(t *testing.T) {
	working(t, func(t *testing.T, s *served, work *fakeWork) {
		_, token := s.token(reusable)
		_, web := s.enrolled(token, "web")
		_, db := s.enrolled(token, "db")
		s.assign("web", 7, []uint64{1, 2}, "db.internal")
		s.assign("db", 8, []uint64{3})
		l := s.line(t, web)
		defer l.Close()
		l.send(t, workText(t, wire.WorkRequest{}))
		a := l.works(t)
		if a.Revision != 7 || !slices.Equal(idsOf(a.Work), []uint64{1, 2}) || len(a.Names) != 1 || len(a.Specs) != 1 {
			t.Fatalf("told %+v", a)
		}
		l.send(t, workText(t, wire.WorkRequest{Revision: 7}))
		if s.Counts().WorkHeld != 1 || s.Counts().SyncsHeld != 0 {
			t.Error("it is not held")
		}
		s.assign("db", 9, []uint64{3, 4}) // another's
		l.quiet(t)
		s.assign("web", 10, []uint64{2, 5})
		if a = l.works(t); a.Revision != 10 || !slices.Equal(idsOf(a.Work), []uint64{2, 5}) || len(a.Names) != 0 {
			t.Errorf("told %+v", a)
		}
		began := time.Now()
		l.send(t, workText(t, wire.WorkRequest{Revision: 10}))
		if a = l.works(t); a.Revision != 10 || len(a.Checks) != 0 || time.Since(began) != wire.HoldWork {
			t.Errorf("told %+v after %v", a, time.Since(began))
		}
		l.send(t, workText(t, wire.WorkRequest{Revision: 10}))
		s.assign("web", 0, nil)
		wantRefusal(t, l.refused(t), wire.CodeNotAllowed, "no work", `"web"`)
		if c := s.Counts(); c.WorkHeld != 0 {
			t.Errorf("%+v", c)
		}
		if work.calls["web"] != 4 || work.calls["db"] != 0 || !s.connector("web").LastWork.Equal(s.clock.Now()) || !s.connector("db").LastWork.IsZero() {
			t.Errorf("calls %v", work.calls)
		}
		_, lost := s.poll(db)
		if lost != nil {
			t.Error(lost)
		}
		s.check()
	})
}

// The connector's next request ends the hold of the one before, on the same
// connection: what it has to say waits for nothing.
func TestWorkIsHurriedByTheNextRequest(t *testing.T) {
	for _, early := range []int{1, 40, 1 << 20} {
		t.Run(fmt.Sprint(early), func(t *testing.T) {
			working(t, func(t *testing.T, s *served, work *fakeWork) {
				_, token := s.token()
				_, web := s.enrolled(token, "web")
				s.assign("web", 7, []uint64{1})
				l := s.line(t, web)
				defer l.Close()
				l.send(t, workText(t, wire.WorkRequest{}))
				l.works(t)
				l.send(t, workText(t, wire.WorkRequest{Revision: 7}))
				began := time.Now()
				for i := range 5 {
					next := workText(t, wire.WorkRequest{Revision: 7, Results: []wire.CheckResult{{ID: 1, RTT: time.Duration(i + 1)}}})
					cut := min(early, len(next))
					l.send(t, next[:cut])
					if a := l.works(t); a.Revision != 7 || len(a.Checks) != 0 {
						t.Errorf("told %+v", a)
					}
					l.send(t, next[cut:])
					if got := work.taken("web"); len(got) != 1 || got[0].Results[0].RTT != time.Duration(i+1) {
						t.Fatalf("reported %+v", got)
					}
					l.quiet(t)
				}
				if d := time.Since(began); d > time.Second/2 {
					t.Errorf("that took %v", d)
				}
				// Two at once are answered in turn.
				l.send(t, workText(t, wire.WorkRequest{Revision: 7})+workText(t, wire.WorkRequest{Revision: 7}))
				l.works(t)
				l.works(t)
				l.quiet(t)
			})
		})
	}
}

func TestReportsOfWork(t *testing.T) {
	working(t, func(t *testing.T, s *served, work *fakeWork) {
		_, token := s.token(reusable)
		_, web := s.enrolled(token, "web")
		s.enrolled(token, "db")
		s.assign("db", 3, []uint64{50}, "other")
		s.assign("web", 7, []uint64{1, 2, 3, 4, 5, 6}, "a", "b", "c")
		l := s.line(t, web)
		defer l.Close()
		l.send(t, workText(t, wire.WorkRequest{Results: []wire.CheckResult{{ID: 1}}})) // nothing was assigned yet
		l.works(t)
		a1 := netip.MustParseAddr("10.0.0.1")
		l.send(t, workText(t, wire.WorkRequest{Revision: 7, Results: []wire.CheckResult{
			{ID: 1, RTT: time.Millisecond, Expires: 1_800_000_000}, {ID: 50}, {ID: 2, Error: "no\n", Class: wire.ClassRefused}, {ID: 3, Error: "x", Class: wire.ClassUnable},
			{ID: 4, Error: "x", Class: wire.ClassTimedOut}, {ID: 5, Error: "x", Class: wire.ClassDenied}, {ID: 6, Error: "wrong body"}, {ID: 7},
		}, Names: []wire.Found{{Host: "a", Addrs: []netip.Addr{a1}, TTL: time.Minute}, {Host: "other", Addrs: []netip.Addr{a1}}, {Host: "b", NotFound: true}, {Host: "c", Error: "broken"}}}))
		got := work.taken("web")
		if len(got) != 1 || len(got[0].Results) != 6 || len(got[0].Names) != 3 {
			t.Fatalf("reported %+v", got)
		}
		results, names := got[0].Results, got[0].Names
		if want := (CheckResult{ID: 1, RTT: time.Millisecond, Expires: time.Unix(1_800_000_000, 0).UTC()}); !reflect.DeepEqual(results[0], want) {
			t.Errorf("reported %+v, want %+v", results[0], want)
		}
		for i, want := range []error{nil, netx.ErrRefused, ErrUnable, netx.ErrTimedOut, netx.ErrUnreachable} {
			if !errors.Is(results[i].Err, want) || (netx.Classify(results[i].Err) == nil) != (want == nil || want == ErrUnable) {
				t.Errorf("result %d: %v, want %v", i, results[i].Err, want)
			}
		}
		if err := results[5].Err; err == nil || err.Error() != "wrong body" || netx.Classify(err) != nil {
			t.Errorf("result 5: %v", err)
		}
		var dns *net.DNSError
		if names[0].Err != nil || !slices.Equal(names[0].Addrs, []netip.Addr{a1}) || names[0].TTL != time.Minute ||
			!errors.As(names[1].Err, &dns) || !dns.IsNotFound || names[2].Err == nil || errors.As(names[2].Err, &dns) {
			t.Errorf("reported %+v", names)
		}
		// The work has changed; what was under way for the one before counts,
		// where it is the connector's still.
		s.assign("web", 8, []uint64{2, 9})
		l.works(t)
		l.send(t, workText(t, wire.WorkRequest{Revision: 7, Results: []wire.CheckResult{{ID: 1}, {ID: 2}}}))
		if got = work.taken("web"); len(got) != 1 || len(got[0].Results) != 1 || got[0].Results[0].ID != 2 {
			t.Errorf("reported %+v", got)
		}
		l.works(t)
		l.send(t, workText(t, wire.WorkRequest{Revision: 6, Results: []wire.CheckResult{{ID: 2}}}))
		if got = work.taken("web"); got != nil {
			t.Errorf("reported %+v", got)
		}
		want := map[string]uint64{ReportTaken: 10, ReportForeign: 4, ReportStale: 2}
		if counts := s.Counts().Reports; !reflect.DeepEqual(counts, want) {
			t.Errorf("counted %v, want %v", counts, want)
		}
	})
}

func TestARevokedConnectorReportsNothing(t *testing.T) {
	working(t, func(t *testing.T, s *served, work *fakeWork) {
		_, token := s.token()
		_, web := s.enrolled(token, "web")
		s.assign("web", 7, []uint64{1})
		l := s.line(t, web)
		defer l.Close()
		l.send(t, workText(t, wire.WorkRequest{}))
		l.works(t)
		l.send(t, workText(t, wire.WorkRequest{Revision: 7}))
		if err := s.Revoke("web"); err != nil {
			t.Fatal(err)
		}
		wantRefusal(t, l.refused(t), wire.CodeRevoked, `"web"`)
		for _, revision := range []uint64{7, 0} {
			status, body, err := s.control.post(web, wire.PathWork, wire.WorkRequest{Revision: revision, Results: []wire.CheckResult{{ID: 1}}})
			wantRefusal(t, refused(t, status, body, err), wire.CodeRevoked)
		}
		if got := work.taken("web"); got != nil {
			t.Errorf("reported %+v", got)
		}
		_, body, err := s.joins.post(joiner(token, 0), wire.PathWork, wire.WorkRequest{})
		wantRefusal(t, refused(t, 404, body, err), wire.CodeUnknown)
		s.check()
	})
}

// What was given does not outlive the edge: the connector is told all of it
// again, and what it says of it before is ignored.
func TestWorkAfterARestart(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		work := newFakeWork()
		w.work = work
		w.restart()
		_, token := w.token()
		var web wgtypes.Key
		w.serving(t, func(t *testing.T, s *served) {
			_, web = s.enrolled(token, "web")
			s.assign("web", 7, []uint64{1})
			status, body, err := s.control.post(web, wire.PathWork, wire.WorkRequest{})
			accepted[wire.WorkAnswer](t, status, body, err)
		})
		w.restart()
		w.serving(t, func(t *testing.T, s *served) {
			s.reassign() // as Run does first
			if now, _ := s.poll(web); !now.Grant.Work {
				t.Error("the grant does not speak of work")
			}
			status, body, err := s.control.post(web, wire.PathWork, wire.WorkRequest{Revision: 6, Results: []wire.CheckResult{{ID: 1}}})
			if a := accepted[wire.WorkAnswer](t, status, body, err); a.Revision != 7 || len(a.Checks) != 1 {
				t.Errorf("told %+v", a)
			}
			if got := work.taken("web"); got != nil || s.Counts().Reports[ReportStale] != 1 {
				t.Errorf("reported %+v", got)
			}
		})
	})
}

// The grant says whether there is work, and a connector that drains has none.
func TestTheGrantTellsOfWork(t *testing.T) {
	working(t, func(t *testing.T, s *served, work *fakeWork) {
		_, token := s.token()
		_, web := s.enrolled(token, "web")
		before, _ := s.poll(web)
		told := func() bool {
			t.Helper()
			now, refusal := s.poll(web)
			if refusal != nil {
				t.Fatal(refusal)
			}
			return now.Grant.Work
		}
		answered := s.hold(t.Context(), web)
		s.assign("web", 7, []uint64{1})
		if a := now(t, answered); !a.Grant.Work || !s.connector("web").Working {
			t.Errorf("told %+v", a)
		}
		if err := s.Drain("web", false); err != nil {
			t.Fatal(err)
		}
		if told() {
			t.Error("a connector that drains is to work")
		}
		if err := s.Drain("web", true); err != nil {
			t.Fatal(err)
		}
		if !told() {
			t.Error("the drain is over, and there is no work")
		}
		s.assign("web", 8, []uint64{1, 2})
		s.apply(s.spec)
		if !told() {
			t.Error("a reload took the work away")
		}
		s.assign("web", 0, nil)
		if after, _ := s.poll(web); after.Revision != before.Revision || after.Grant.Work {
			t.Errorf("told %+v", after)
		}
	})
}

// Who is new is asked for, once Run has its turn.
func TestRunAsksForTheWorkOfNewConnectors(t *testing.T) {
	working(t, func(t *testing.T, s *served, work *fakeWork) {
		work.assigned["web"] = wire.WorkAnswer{Revision: 5}
		work.assigned["declared"] = wire.WorkAnswer{Revision: 6}
		running := make(chan struct{})
		ctx, stop := context.WithCancel(t.Context())
		go func() { defer close(running); s.Run(ctx) }()
		_, token := s.token()
		s.enrolled(token, "web")
		spec := s.spec
		withDeclared(&spec)
		s.apply(spec)
		synctest.Wait()
		if !s.connector("web").Working || !s.connector("declared").Working {
			t.Errorf("%+v", s.Connectors())
		}
		stop()
		<-running
	})
}

func TestWithoutWorkThereIsNoSuchPath(t *testing.T) {
	serving(t, func(t *testing.T, s *served) {
		_, token := s.token()
		_, web := s.enrolled(token, "web")
		s.WorkChanged()
		status, body, err := s.control.post(web, wire.PathWork, wire.WorkRequest{})
		wantRefusal(t, refused(t, status, body, err), wire.CodeUnknown, "/v1/key and /v1/sync")
	})
}

// Whatever connectors do, at all moments, each hears its own work alone, and
// nothing is left behind.
func TestWorkAtRandom(t *testing.T) {
	working(t, func(t *testing.T, s *served, work *fakeWork) {
		rng := rand.New(rand.NewPCG(3, 4))
		_, token := s.token(reusable)
		type member struct {
			name     string
			key      wgtypes.Key
			line     *line
			revision uint64
			waits    int
			has      bool
		}
		var members []*member
		for i := range 6 {
			a, key := s.enrolled(token, fmt.Sprint("m", i))
			members = append(members, &member{name: a.Name, key: key})
		}
		for step := range 2500 {
			i := rng.IntN(len(members))
			m := members[i]
			switch rng.IntN(8) {
			case 0, 1, 2:
				if m.line == nil {
					m.line, m.revision, m.waits = s.line(t, m.key), 0, 0
				}
				if m.waits < 2 && m.has {
					m.waits++
					m.line.send(t, workText(t, wire.WorkRequest{Revision: m.revision, Results: []wire.CheckResult{{ID: uint64(i)}, {ID: uint64(i + 1)}}}))
				}
			case 3, 4:
				s.assign(m.name, uint64(step+1), []uint64{uint64(i)})
				m.has = true
			case 5:
				if m.line != nil {
					end := []func(){m.line.Abort, func() { _ = m.line.Close() }, func() { _ = m.line.CloseWrite() }}
					end[rng.IntN(len(end))]()
					m.line = nil
				}
			case 6:
				time.Sleep(time.Duration(rng.Int64N(int64(3 * time.Second))))
			case 7:
				s.WorkChanged()
				s.reassign()
			}
			synctest.Wait()
			for j, m := range members {
				for m.line != nil && m.waits > 0 {
					_ = m.line.SetReadDeadline(time.Now().Add(time.Nanosecond))
					if _, err := m.line.in.Peek(1); err != nil {
						if timeout, ok := err.(net.Error); !ok || !timeout.Timeout() {
							m.line.Close()
							m.line = nil
						}
						break
					}
					_ = m.line.SetReadDeadline(time.Time{})
					a := m.line.works(t)
					m.waits--
					if a.Revision != m.revision && (len(a.Checks) != 1 || a.Checks[0].ID != uint64(j)) || a.Revision < m.revision {
						t.Fatalf("step %d: %s was told %+v", step, m.name, a)
					}
					m.revision = a.Revision
				}
				for _, report := range work.taken(m.name) {
					for _, result := range report.Results {
						if result.ID != uint64(j) {
							t.Fatalf("step %d: %s reported %+v", step, m.name, report)
						}
					}
				}
			}
		}
		waiting := 0
		for _, m := range members {
			if m.line != nil && m.waits > 0 {
				waiting++
			}
		}
		if held := s.Counts().WorkHeld; held != waiting {
			t.Errorf("%d are held, want %d", held, waiting)
		}
		s.check()
	})
}

// BenchmarkReports is what 1,000 results cost the edge, from the bytes to the
// reports, without the connection.
func BenchmarkReports(b *testing.B) {
	w := newWorld(b)
	work := newFakeWork()
	w.work = work
	w.restart()
	_, token := w.token()
	_, key := w.enrolled(token, "web")
	answer := wire.WorkAnswer{Revision: 7, Work: wire.Work{Specs: []wire.WorkSpec{{Check: json.RawMessage(`{"type":"tcp"}`), Interval: 5 * time.Second, Timeout: time.Second}}}}
	for i := range wire.MaxChecks {
		answer.Checks = append(answer.Checks, wire.Check{ID: uint64(i), Addr: netip.MustParseAddrPort("10.0.0.1:80")})
	}
	work.assigned["web"] = answer
	w.WorkChanged()
	w.reassign()
	p := &workPoll{w.Registry, key, 0}
	if _, _, refusal := p.look(nil, func() {}, false); refusal != nil {
		b.Fatal(refusal)
	}
	var bodies [][]byte
	for first := 0; first < 1000; first += 500 {
		req := wire.WorkRequest{Revision: 7}
		for i := range 500 {
			r := wire.CheckResult{ID: uint64(first + i), RTT: 1_234_567}
			if i%20 == 0 {
				r = wire.CheckResult{ID: r.ID, Error: "dialling \"tcp/10.0.0.1:80\": connection refused", Class: wire.ClassRefused}
			}
			req.Results = append(req.Results, r)
		}
		body, err := json.Marshal(req)
		if err != nil {
			b.Fatal(err)
		}
		bodies = append(bodies, body)
	}
	b.ReportAllocs()
	for b.Loop() {
		for _, body := range bodies {
			var req wire.WorkRequest
			if err := wire.DecodeWork(bytes.NewReader(body), &req); err != nil {
				b.Fatal(err)
			}
			if refusal := w.arriveWork(key, &req); refusal != nil {
				b.Fatal(refusal)
			}
		}
		if got := work.taken("web"); len(got) != len(bodies) || len(got[0].Results) != 500 {
			b.Fatal("lost some")
		}
	}
}
