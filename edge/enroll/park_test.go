package enroll

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/memnet"
)

// line is one connection of a connector to the control port.
type line struct {
	*memnet.Conn
	in *bufio.Reader
}

func (s *served) line(t *testing.T, key wgtypes.Key) *line {
	t.Helper()
	c, err := s.control.dial(key)
	if err != nil {
		t.Fatal(err)
	}
	return &line{c, bufio.NewReader(c)}
}

func syncText(revision uint64) string {
	body := fmt.Sprintf(`{"revision":%d}`, revision)
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: e\r\nContent-Length: %d\r\n\r\n%s", wire.PathSync, len(body), body)
}

// answer reads one answer.
func (l *line) answer(t *testing.T) wire.SyncAnswer {
	t.Helper()
	response, err := http.ReadResponse(l.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if response.Close {
		t.Error("the edge would close the connection")
	}
	return accepted[wire.SyncAnswer](t, response.StatusCode, body, err)
}

// quiet wants nothing to come now.
func (l *line) quiet(t *testing.T) {
	t.Helper()
	_ = l.SetReadDeadline(time.Now().Add(time.Millisecond))
	if b, err := l.in.Peek(1); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%q, %v came, want nothing yet", b, err)
	}
	_ = l.SetReadDeadline(time.Time{})
}

func (l *line) send(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(l, text); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

// One connection carries one sync after the other: each is parked, and given
// back, and whatever comes early is not lost.
func TestSyncsOnOneConnection(t *testing.T) {
	for _, c := range []struct {
		name  string
		early int // bytes of the next request that come while the sync is held
	}{
		{"nothing early", 0}, {"a byte early", 1}, {"a head early", 30}, {"a whole request early", len(syncText(1 << 63))},
	} {
		t.Run(c.name, func(t *testing.T) {
			serving(t, func(t *testing.T, s *served) {
				_, token := s.token()
				_, key := s.enrolled(token, "web")
				l := s.line(t, key)
				defer l.Close()
				next := syncText(0)
				l.send(t, next)
				revision := l.answer(t).Revision
				sent := 0
				for round := range 5 {
					next = syncText(revision)
					l.send(t, next[sent:])
					if s.Counts().SyncsHeld != 1 {
						t.Fatalf("round %d: the sync is not held", round)
					}
					following := syncText(revision + 1) // answered at once
					sent = min(c.early, len(following))
					l.send(t, following[:sent])
					l.quiet(t)
					if err := s.Grant("web", prefixes(fmt.Sprintf("10.%d.0.0/16", round+1))); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
					a := l.answer(t)
					if a.Revision == revision || a.Grant.Routes[0].String() != fmt.Sprintf("10.%d.0.0/16", round+1) {
						t.Errorf("round %d: %+v", round, a)
					}
					l.send(t, following[sent:])
					if a = l.answer(t); s.Counts().SyncsHeld != 0 {
						t.Error("counted as held")
					}
					revision, sent = a.Revision, 0
				}
			})
		})
	}
}

// A connection that was answered waits for the next request as long as one
// that net/http has.
func TestParkedConnectionsAreLetGo(t *testing.T) {
	serving(t, func(t *testing.T, s *served) {
		_, token := s.token()
		_, key := s.enrolled(token, "web")
		l := s.line(t, key)
		defer l.Close()
		now, _ := s.poll(key)
		for range 3 { // a late request is not too late
			l.send(t, syncText(now.Revision))
			began := time.Now()
			l.answer(t)
			if d := time.Since(began); d != wire.HoldSync {
				t.Errorf("answered after %v", d)
			}
			time.Sleep(29 * time.Second)
		}
		began := time.Now()
		if _, err := l.in.Peek(1); err != io.EOF {
			t.Errorf("it ended with %v", err)
		}
		if d := time.Since(began); d != time.Second {
			t.Errorf("let go after %v more", d)
		}
	})
}

// Connections that end in all ways, at all moments, leave nothing behind, and
// those that stay are answered.
func TestParkedConnectionsAtRandom(t *testing.T) {
	serving(t, func(t *testing.T, s *served) {
		rng := rand.New(rand.NewPCG(1, 2))
		_, token := s.token(reusable)
		type member struct {
			key      wgtypes.Key
			name     string
			line     *line
			revision uint64
			waits    bool // for an answer
			route    string
		}
		var members []*member
		for i := range 8 {
			a, key := s.enrolled(token, fmt.Sprint("m", i))
			members = append(members, &member{key: key, name: a.Name})
		}
		for step := range 4000 {
			m := members[rng.IntN(len(members))]
			switch rng.IntN(8) {
			case 0, 1, 2: // a sync, of the last known revision
				if m.line == nil {
					m.line, m.revision, m.waits = s.line(t, m.key), 0, false
				}
				if !m.waits {
					m.waits = true
					m.line.send(t, syncText(m.revision))
				}
			case 3, 4: // a change
				m.route = fmt.Sprintf("10.%d.%d.0/24", step>>8, step&255)
				if err := s.Grant(m.name, prefixes(m.route)); err != nil {
					t.Fatal(err)
				}
			case 5:
				if m.line != nil {
					end := []func(){m.line.Abort, func() { _ = m.line.Close() }, func() { _ = m.line.CloseWrite() }}
					end[rng.IntN(len(end))]()
					m.line = nil
				}
			case 6:
				time.Sleep(time.Duration(rng.Int64N(int64(3 * time.Second))))
			case 7: // garbage, where a request should be
				if m.line != nil && !m.waits {
					m.line.send(t, "\x00garbage\r\n\r\n")
					m.line.Close()
					m.line = nil
				}
			}
			synctest.Wait()
			for _, m := range members {
				if m.line == nil || !m.waits {
					continue
				}
				_ = m.line.SetReadDeadline(time.Now().Add(time.Nanosecond))
				if _, err := m.line.in.Peek(1); errors.Is(err, os.ErrDeadlineExceeded) {
					continue // held
				} else if err != nil { // a request that came too late
					m.line = nil
					continue
				}
				_ = m.line.SetReadDeadline(time.Time{})
				a := m.line.answer(t)
				m.waits = false
				if m.route != "" && a.Grant.Routes[0].String() != m.route || a.Grant.Name != m.name {
					t.Fatalf("step %d: %s was granted %+v, want %s", step, m.name, a.Grant, m.route)
				}
				m.revision = a.Revision
			}
		}
		waiting := 0
		for _, m := range members {
			if m.line != nil && m.waits {
				waiting++
			}
		}
		if held := s.Counts().SyncsHeld; held != waiting {
			t.Errorf("%d syncs are held, want %d", held, waiting)
		}
		s.check()
	})
}

// An answer that nobody takes does not keep the server from stopping.
func TestStoppingCutsAnswersThatNobodyTakes(t *testing.T) {
	serving(t, func(t *testing.T, s *served) {
		_, token := s.token()
		_, key := s.enrolled(token, "web")
		l := s.line(t, key)
		for round := range 5 { // more than the connection holds
			now, _ := s.poll(key)
			l.send(t, syncText(now.Revision))
			var wide []string
			for i := range wire.MaxRoutes {
				wide = append(wide, fmt.Sprintf("10.%d.%d.%d/32", round, i>>8, i&255))
			}
			if err := s.Grant("web", prefixes(wide...)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		began := time.Now()
		if err := s.stop(); err != nil {
			t.Error(err)
		}
		if d := time.Since(began); d < stopWithin || d > 2*stopWithin {
			t.Errorf("stopping took %v", d)
		}
		if _, err := s.control.dial(key); !errors.Is(err, net.ErrClosed) {
			t.Errorf("dialling after the end: %v", err)
		}
		l.Close()
	})
}
