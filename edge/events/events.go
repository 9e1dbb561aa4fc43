// Package events keeps the log of the edge's changes of state and tells
// webhooks of them.
//
// New makes a Log; Add appends an event, and never waits for anything; Since
// reads the newest ones, which a bounded ring keeps. Apply (or Prepare and
// Commit) says which webhooks there are: each has a goroutine and a bounded
// queue of its own, so that one that hangs holds up neither Add nor another.
// An event reaches a webhook at least once and in order, unless it grew too
// old, too many were waiting, or the webhook would not have it, all of which
// is counted. Stop ends the webhooks, after a short grace in which they send
// what is waiting.
//
// The package never follows a redirect, and never tells a secret.
package events

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	// DefaultRing is how many events a Log keeps.
	DefaultRing = 4096
	// DefaultGrace is for how long Stop lets webhooks send what is waiting.
	DefaultGrace = 3 * time.Second
	// maxText bounds each text of an event, bytes: what a far end said is in
	// some of them.
	maxText = 1024
)

// Event is one change of state. What does not apply is empty. A text is cut at
// 1024 bytes.
type Event struct {
	// ID counts from 1 since the Log was made. Add gives it.
	ID uint64 `json:"id"`
	// Time is when it happened; Add fills it where it is zero, and makes it
	// UTC.
	Time      time.Time `json:"time"`
	Kind      string    `json:"kind"` // "pool", "endpoint", "connector"…
	Pool      string    `json:"pool,omitempty"`
	Network   string    `json:"network,omitempty"`
	Endpoint  string    `json:"endpoint,omitempty"` // address and port
	Monitor   string    `json:"monitor,omitempty"`
	Connector string    `json:"connector,omitempty"`
	From      string    `json:"from,omitempty"`
	To        string    `json:"to,omitempty"`
	Why       string    `json:"why,omitempty"`
}

// Deps are what a Log works with. The zero value is enough without webhooks
// that name files.
type Deps struct {
	// Node is the edge's name, which webhooks are told.
	Node string
	// Ring is how many events are kept. Default 4096.
	Ring int
	// Secret reads a file that holds a secret, and refuses one that others
	// may read. Required where a Spec names a file.
	Secret func(path string) ([]byte, error)
	// Transport makes the calls. Default: one of the Log's own, which obeys
	// HTTPS_PROXY. It must honour the request's ctx.
	Transport http.RoundTripper
	// Log hears once of each webhook that begins to fail, and of its
	// recovery. Default: nobody.
	Log *slog.Logger
	// Grace is for how long Stop lets webhooks send what is waiting. Default
	// 3 s.
	Grace time.Duration
}

// Log keeps events. The zero value is not usable; call New.
type Log struct {
	deps   Deps
	boot   string // tells this Log's IDs from those of an earlier one
	client *http.Client
	ended  chan struct{} // closed by Stop

	turn sync.Mutex // serialises Commit and Stop; taken before mu

	mu      sync.Mutex
	ring    ring
	last    uint64        // ID of the newest event
	hooks   []*hook       // what Add tells; replaced, never changed
	waiting chan struct{} // closed by the next Add; nil while nobody waits
	pending bool          // a Pending is open
	stopped bool
}

// New makes a Log without webhooks. Stop ends it.
func New(deps Deps) *Log {
	if deps.Ring <= 0 {
		deps.Ring = DefaultRing
	}
	if deps.Grace <= 0 {
		deps.Grace = DefaultGrace
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	if deps.Transport == nil {
		deps.Transport = newTransport()
	}
	return &Log{
		deps:   deps,
		boot:   rand.Text()[:8],
		client: newClient(deps.Transport),
		ended:  make(chan struct{}),
		ring:   ring{max: deps.Ring},
	}
}

// Add appends e and returns its ID. It never waits for a webhook and allocates
// nothing once the ring is full; any goroutine may call it.
func (l *Log) Add(e Event) uint64 {
	if e.Time = e.Time.UTC(); e.Time.Year() <= 1 || e.Time.Year() > 9999 { // RFC 3339 knows no other
		e.Time = time.Now().UTC()
	}
	for _, s := range []*string{&e.Kind, &e.Pool, &e.Network, &e.Endpoint, &e.Monitor, &e.Connector, &e.From, &e.To, &e.Why} {
		*s = clip(*s)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	e.ID = l.last
	l.ring.push(e)
	for _, h := range l.hooks {
		h.offer(e)
	}
	if l.waiting != nil {
		close(l.waiting)
		l.waiting = nil
	}
	return e.ID
}

// clip bounds a text, at the beginning of a character.
func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	end := maxText
	for end > maxText-utf8.UTFMax && !utf8.RuneStart(s[end]) {
		end--
	}
	return strings.Clone(s[:end]) // or the whole of it would stay in memory
}

// Since returns the events later than id, oldest first, at most max of them (0
// for all that are kept), and how many later than id are kept no more: the
// caller missed those. An id that was never given is from an earlier Log,
// before a restart: that counts as 0, which reads from the beginning.
func (l *Log) Since(id uint64, max int) (events []Event, missed uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if id > l.last {
		id = 0
	}
	oldest := l.last - uint64(l.ring.n) // the ID before the first that is kept
	if id < oldest {
		missed, id = oldest-id, oldest
	}
	n := int(l.last - id)
	if max > 0 {
		n = min(n, max)
	}
	return l.ring.slice(int(id-oldest), n), missed
}

// Last is the ID of the newest event, 0 before the first.
func (l *Log) Last() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// Wait returns nil as soon as Since(id) has something to say, and an error
// when ctx or the Log ends before.
func (l *Log) Wait(ctx context.Context, id uint64) error {
	for {
		l.mu.Lock()
		if l.last != id {
			l.mu.Unlock()
			return nil
		}
		if l.waiting == nil {
			l.waiting = make(chan struct{})
		}
		news := l.waiting
		l.mu.Unlock()
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		case <-l.ended:
			return errors.New("the event log has ended")
		}
	}
}

// ring is a queue that drops its oldest where it is full. The memory grows
// with what it holds. The zero value with a max is empty.
type ring struct {
	max   int
	buf   []Event
	start int
	n     int
}

// push appends e and reports whether the oldest was dropped for it.
func (r *ring) push(e Event) (dropped bool) {
	if r.n == len(r.buf) && r.n < r.max {
		grown := make([]Event, min(max(2*r.n, 16), r.max))
		copy(grown, r.buf[r.start:])
		copy(grown[len(r.buf)-r.start:], r.buf[:r.start])
		r.buf, r.start = grown, 0
	}
	if r.n == len(r.buf) {
		r.buf[r.start] = e
		r.start = (r.start + 1) % len(r.buf)
		return true
	}
	r.buf[(r.start+r.n)%len(r.buf)] = e
	r.n++
	return false
}

// slice copies n events out, from the i-th on.
func (r *ring) slice(i, n int) []Event {
	out := make([]Event, n)
	for k := range out {
		out[k] = r.buf[(r.start+i+k)%len(r.buf)]
	}
	return out
}

// take removes the oldest n events.
func (r *ring) take(n int) []Event {
	out := r.slice(0, n)
	for k := range n {
		r.buf[(r.start+k)%len(r.buf)] = Event{} // let go of its texts
	}
	if r.n -= n; r.n == 0 {
		r.start = 0
	} else {
		r.start = (r.start + n) % len(r.buf)
	}
	return out
}
