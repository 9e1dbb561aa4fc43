package events

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// call is what a site was told.
type call struct {
	host, id, signature, authorization string
	body                               string
	payload
	at time.Time
}

// site answers webhooks in memory.
type site struct {
	// answer judges the n-th call, from 1: a status, or an error. Default 200.
	answer func(n int, c call) (int, error)
	header http.Header   // of each answer
	hang   bool          // never answer
	delay  time.Duration // before each answer

	mu    sync.Mutex
	calls []call // all that came in
	took  []call // those that were answered with 200
}

func (s *site) RoundTrip(req *http.Request) (*http.Response, error) {
	defer func() { _ = req.Body.Close() }()
	if s.hang {
		<-req.Context().Done()
		return nil, req.Context().Err()
	}
	select {
	case <-time.After(s.delay):
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	c := call{host: req.URL.Host, id: req.Header.Get(IDHeader), signature: req.Header.Get(SignatureHeader), authorization: req.Header.Get("Authorization"), body: string(body), at: time.Now()}
	if err := json.Unmarshal(body, &c.payload); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, c)
	status := http.StatusOK
	if s.answer != nil {
		if status, err = s.answer(len(s.calls), c); err != nil {
			return nil, err
		}
	}
	if status == http.StatusOK {
		s.took = append(s.took, c)
	}
	header := s.header
	if header == nil {
		header = make(http.Header)
	}
	return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(strings.NewReader("said")), Request: req}, nil
}

// took of one host (or of all) as events, in the order of the calls.
func (s *site) told(host string) (events []Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.took {
		if host == "" || c.host == host {
			events = append(events, c.Events...)
		}
	}
	return events
}

func (s *site) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.calls)
}

var errReset = errors.New("connection reset by peer")

var ops = Spec{Name: "ops", URL: "https://ops.example/hook?key=secret"}

// with runs f in a bubble, with one webhook that s answers.
func with(t *testing.T, s *site, spec Spec, f func(t *testing.T, l *Log)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := New(Deps{Node: "fra1", Transport: s})
		defer l.Stop()
		if err := l.Apply([]Spec{spec}); err != nil {
			t.Fatal(err)
		}
		f(t, l)
	})
}

func add(l *Log, n int, kind string) {
	for range n {
		l.Add(Event{Kind: kind, Pool: "db"})
	}
}

func after(d time.Duration) { time.Sleep(d); synctest.Wait() }
