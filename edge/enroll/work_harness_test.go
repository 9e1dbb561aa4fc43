package enroll

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warrenmesh/warren/edge/wire"
)

// fakeWork is what a test assigns.
type fakeWork struct {
	mu       sync.Mutex
	assigned map[string]wire.WorkAnswer
	reports  map[string][]WorkReport // those that say something
	calls    map[string]int
	asked    int    // how often it was asked what is assigned
	during   func() // called once, before the next answer to that is taken in
}

func newFakeWork() *fakeWork {
	return &fakeWork{assigned: map[string]wire.WorkAnswer{}, reports: map[string][]WorkReport{}, calls: map[string]int{}}
}

func (f *fakeWork) Assigned(connector string) (uint64, wire.Work) {
	f.mu.Lock()
	f.asked++
	a, during := f.assigned[connector], f.during
	f.during = nil
	f.mu.Unlock()
	if during != nil {
		during()
	}
	return a.Revision, a.Work
}

func (f *fakeWork) Report(connector string, report WorkReport) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[connector]++
	if len(report.Results)+len(report.Names) > 0 {
		f.reports[connector] = append(f.reports[connector], report)
	}
}

// taken returns what a connector has reported, and forgets it.
func (f *fakeWork) taken(connector string) []WorkReport {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := f.reports[connector]
	delete(f.reports, connector)
	return all
}

// working runs a test in a bubble, with both servers, where there is work.
func working(t *testing.T, f func(t *testing.T, s *served, work *fakeWork)) {
	t.Helper()
	bubble(t, func(t *testing.T, w *world) {
		work := newFakeWork()
		w.work = work
		w.restart()
		w.serving(t, func(t *testing.T, s *served) { f(t, s, work) })
	})
}

// assign gives a connector checks of these ids and names; revision 0: nothing.
func (s *served) assign(connector string, revision uint64, ids []uint64, names ...string) {
	s.change(connector, revision, ids, names...)
	synctest.Wait()
}

// change is assign, and does not wait until it is told.
func (s *served) change(connector string, revision uint64, ids []uint64, names ...string) {
	work := wire.Work{Specs: []wire.WorkSpec{{Check: json.RawMessage(`{"type":"tcp"}`), Interval: 5 * time.Second, Timeout: time.Second}}}
	for _, id := range ids {
		work.Checks = append(work.Checks, wire.Check{ID: id, Addr: netip.MustParseAddrPort("10.0.0.1:80")})
	}
	for _, name := range names {
		work.Names = append(work.Names, wire.Name{Host: name})
	}
	f := s.work.(*fakeWork)
	f.mu.Lock()
	if f.assigned[connector] = (wire.WorkAnswer{Revision: revision, Work: work}); revision == 0 {
		delete(f.assigned, connector)
	}
	f.mu.Unlock()
	s.WorkChanged(connector)
	s.reassign()
}

func workText(t testing.TB, req wire.WorkRequest) string {
	t.Helper()
	body, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: e\r\nContent-Length: %d\r\n\r\n%s", wire.PathWork, len(body), body)
}

// works reads one answer to a request for work.
func (l *line) works(t *testing.T) wire.WorkAnswer {
	t.Helper()
	response, err := http.ReadResponse(l.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	return accepted[wire.WorkAnswer](t, response.StatusCode, body, err)
}

func (l *line) refused(t *testing.T) *wire.Refusal {
	t.Helper()
	response, err := http.ReadResponse(l.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	return refused(t, response.StatusCode, body, err)
}

func idsOf(w wire.Work) (ids []uint64) {
	for _, c := range w.Checks {
		ids = append(ids, c.ID)
	}
	return ids
}
