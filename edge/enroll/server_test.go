package enroll

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/memnet"
)

// overlay is a listener of the overlay stack: who dials comes from the address
// of a key.
type overlay struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newOverlay() *overlay { return &overlay{conns: make(chan net.Conn), closed: make(chan struct{})} }

// peerConn is a conn whose other end is at a key's address.
type peerConn struct {
	*memnet.Conn
	remote netip.Addr
}

func (c peerConn) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.remote, 40000))
}

func (o *overlay) dial(from wgtypes.Key) (*memnet.Conn, error) {
	here, there := memnet.Pipe()
	select {
	case o.conns <- peerConn{there, overlayOf(from)}:
		return here, nil
	case <-o.closed:
		return nil, net.ErrClosed
	}
}

func (o *overlay) Accept() (net.Conn, error) {
	select {
	case c := <-o.conns:
		return c, nil
	case <-o.closed:
		return nil, net.ErrClosed
	}
}

func (o *overlay) Close() error {
	o.once.Do(func() { close(o.closed) })
	return nil
}

func (o *overlay) Addr() net.Addr { return &net.TCPAddr{} }

// served is a world whose servers run.
type served struct {
	*world
	joins, control *overlay
	stop           func() error
}

// serving runs a test in a bubble, with both servers.
func serving(t *testing.T, f func(t *testing.T, s *served)) {
	t.Helper()
	bubble(t, func(t *testing.T, w *world) { w.serving(t, f) })
}

func (w *world) serving(t *testing.T, f func(t *testing.T, s *served)) {
	t.Helper()
	s := &served{world: w, joins: newOverlay(), control: newOverlay()}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Serve(ctx, s.joins, s.control) }()
	s.stop = sync.OnceValue(func() error { cancel(); return <-done })
	f(t, s)
	if err := s.stop(); err != nil {
		t.Errorf("serving ended with %v", err)
	}
}

// post sends one request over a connection of its own, and gives the answer's
// status and body.
func (o *overlay) post(from wgtypes.Key, path string, body any) (int, []byte, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return 0, nil, err
	}
	return o.request(from, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: edge\r\nContent-Length: %d\r\n\r\n%s", path, len(text), text))
}

func (o *overlay) request(from wgtypes.Key, text string) (int, []byte, error) {
	c, err := o.dial(from)
	if err != nil {
		return 0, nil, err
	}
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		return 0, nil, err
	}
	return readAnswer(c)
}

func readAnswer(c net.Conn) (int, []byte, error) {
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	return response.StatusCode, answer, err
}

// refused wants an answer to be a refusal.
func refused(t testing.TB, status int, body []byte, err error) *wire.Refusal {
	t.Helper()
	var refusal wire.Refusal
	if err != nil || status < 400 || json.Unmarshal(body, &refusal) != nil || refusal.Code == "" {
		t.Fatalf("answered %d %q, %v; want a refusal", status, body, err)
	}
	return &refusal
}

// accepted wants an answer to be none.
func accepted[T any](t testing.TB, status int, body []byte, err error) T {
	t.Helper()
	var answer T
	if err != nil || status != http.StatusOK || json.Unmarshal(body, &answer) != nil {
		t.Fatalf("answered %d %q, %v", status, body, err)
	}
	return answer
}

// part runs one case of a table where t.Run cannot be, in a bubble.
func part(t *testing.T, name string, f func()) {
	t.Helper()
	failed := t.Failed()
	f()
	if t.Failed() && !failed {
		t.Errorf("that was in %q", name)
	}
}

func TestOverHTTP(t *testing.T) {
	serving(t, func(t *testing.T, s *served) {
		_, token := s.token(func(r *TokenRequest) { r.Name = "berlin-1" })
		bootstrap, key := joiner(token, 0), newKey()
		status, body, err := s.joins.post(bootstrap, wire.PathEnroll, wire.EnrollRequest{PublicKey: wire.Key{Key: key}, Hostname: "db7"})
		if a := accepted[wire.EnrollAnswer](t, status, body, err); a.Name != "berlin-1" {
			t.Errorf("answered %+v", a)
		}
		synctest.Wait()
		if s.tun.renewed[bootstrap] != 1 {
			t.Errorf("the guest was renewed %d times once the joiner had closed its connection, want once", s.tun.renewed[bootstrap])
		}
		status, body, err = s.control.post(key, wire.PathSync, wire.SyncRequest{Report: wire.Report{Version: "1.2.3"}})
		now := accepted[wire.SyncAnswer](t, status, body, err)
		if now.Grant.Name != "berlin-1" || s.connector("berlin-1").Report.Version != "1.2.3" {
			t.Errorf("answered %+v", now)
		}
		began := time.Now() // longer than a body may take
		status, body, err = s.control.post(key, wire.PathSync, wire.SyncRequest{Revision: now.Revision})
		if again := accepted[wire.SyncAnswer](t, status, body, err); again.Revision != now.Revision || time.Since(began) != wire.HoldSync {
			t.Errorf("answered %+v after %v", again, time.Since(began))
		}
		next := newKey()
		status, body, err = s.control.post(key, wire.PathKey, wire.KeyRequest{PublicKey: wire.Key{Key: next}})
		accepted[struct{}](t, status, body, err)
		status, body, err = s.control.post(next, wire.PathSync, wire.SyncRequest{})
		accepted[wire.SyncAnswer](t, status, body, err)
		if err := s.Revoke("berlin-1"); err != nil {
			t.Fatal(err)
		}
		status, body, err = s.control.post(next, wire.PathSync, wire.SyncRequest{})
		wantRefusal(t, refused(t, status, body, err), wire.CodeRevoked, "berlin-1")
		if status != http.StatusForbidden {
			t.Errorf("status %d", status)
		}
		status, body, err = s.joins.post(bootstrap, wire.PathEnroll, wire.EnrollRequest{PublicKey: wire.Key{Key: newKey()}})
		wantRefusal(t, refused(t, status, body, err), wire.CodeSpent, "berlin-1")
		s.check()
	})
}

func TestRequestsThatMakeNoSense(t *testing.T) {
	serving(t, func(t *testing.T, s *served) {
		_, token := s.token(reusable)
		_, key := s.enrolled(token, "web")
		bootstrap := joiner(token, 0)
		long := strings.Repeat("a", wire.MaxBody)
		for _, c := range []struct {
			name    string
			at      *overlay
			from    wgtypes.Key
			request string
			code    wire.Code
			words   []string
		}{
			{"a later version", s.joins, bootstrap, "POST /v2/enroll HTTP/1.1\r\nHost: e\r\nContent-Length: 2\r\n\r\n{}", wire.CodeVersion, []string{"speaks version 1", "not 2"}},
			{"a later version, of control", s.control, key, "POST /v17/anything/else HTTP/1.1\r\nHost: e\r\n\r\n", wire.CodeVersion, []string{"not 17"}},
			{"no version", s.control, key, "GET / HTTP/1.1\r\nHost: e\r\n\r\n", wire.CodeUnknown, []string{`no "/"`, "/v1/key and /v1/sync"}},
			{"no number", s.control, key, "GET /version HTTP/1.1\r\nHost: e\r\n\r\n", wire.CodeUnknown, nil},
			{"the other port's", s.joins, bootstrap, "POST /v1/sync HTTP/1.1\r\nHost: e\r\nContent-Length: 2\r\n\r\n{}", wire.CodeUnknown, []string{"/v1/enroll"}},
			{"GET", s.control, key, "GET /v1/sync HTTP/1.1\r\nHost: e\r\n\r\n", wire.CodeBadRequest, []string{"wants POST, not GET"}},
			{"no body", s.control, key, "POST /v1/sync HTTP/1.1\r\nHost: e\r\n\r\n", wire.CodeBadRequest, []string{"empty"}},
			{"garbage", s.control, key, "POST /v1/sync HTTP/1.1\r\nHost: e\r\nContent-Length: 4\r\n\r\n\x00\x01\x02\x03", wire.CodeBadRequest, []string{"reading a message"}},
			{"a wrong type", s.control, key, "POST /v1/sync HTTP/1.1\r\nHost: e\r\nContent-Length: 14\r\n\r\n{\"revision\":[]", wire.CodeBadRequest, nil},
			{"a long one", s.control, key, fmt.Sprintf("POST /v1/sync HTTP/1.1\r\nHost: e\r\nContent-Length: %d\r\n\r\n{\"x\":\"%s\"}", len(long)+8, long), wire.CodeBadRequest, []string{"reading a message"}},
			{"a long one, for an enrolment", s.joins, bootstrap, fmt.Sprintf("POST /v1/enroll HTTP/1.1\r\nHost: e\r\nContent-Length: %d\r\n\r\n{\"x\":\"%s\"}", maxEnrollBody+8, long[:maxEnrollBody]), wire.CodeBadRequest, []string{"reading a message"}},
			{"a stranger", s.control, newKey(), "POST /v1/sync HTTP/1.1\r\nHost: e\r\nContent-Length: 2\r\n\r\n{}", wire.CodeBusy, []string{"who asks"}},
			{"a connector that would enrol", s.joins, key, "POST /v1/enroll HTTP/1.1\r\nHost: e\r\nContent-Length: 2\r\n\r\n{}", wire.CodeNotAllowed, nil},
			{"a joiner at the control port", s.control, bootstrap, "POST /v1/sync HTTP/1.1\r\nHost: e\r\nContent-Length: 2\r\n\r\n{}", wire.CodeNotAllowed, nil},
			{"an unreadable path", s.control, key, "GET /%1b%5b2J%00 HTTP/1.1\r\nHost: e\r\n\r\n", wire.CodeUnknown, []string{"?[2J?"}},
		} {
			part(t, c.name, func() {
				status, body, err := c.at.request(c.from, c.request)
				wantRefusal(t, refused(t, status, body, err), c.code, c.words...)
			})
		}
		if s.Counts().Enrollments[string(wire.CodeBadRequest)] == 0 {
			t.Error("a body that cannot be read is not counted")
		}
	})
}

func TestStoppingAnswersHeldSyncs(t *testing.T) {
	serving(t, func(t *testing.T, s *served) {
		_, token := s.token()
		_, key := s.enrolled(token, "web")
		now, _ := s.poll(key)
		type reply struct {
			status int
			body   []byte
			err    error
		}
		replies := make(chan reply, 1)
		go func() {
			status, body, err := s.control.post(key, wire.PathSync, wire.SyncRequest{Revision: now.Revision})
			replies <- reply{status, body, err}
		}()
		slow, err := s.joins.dial(joiner(token, 0))
		if err != nil {
			t.Fatal(err)
		}
		defer slow.Close()
		_, _ = io.WriteString(slow, "POST /v1/enroll HTTP/1.1\r\nHost: e\r\nContent-Length: 10\r\n\r\n")
		synctest.Wait()
		if s.Counts().SyncsHeld != 1 {
			t.Fatal("the sync is not held")
		}
		began := time.Now()
		if err := s.stop(); err != nil {
			t.Errorf("serving ended with %v", err)
		}
		if d := time.Since(began); d > 2*stopWithin {
			t.Errorf("stopping took %v", d)
		}
		r := <-replies
		wantRefusal(t, refused(t, r.status, r.body, r.err), wire.CodeUnavailable, "stopping")
		if _, err := s.control.dial(key); !errors.Is(err, net.ErrClosed) {
			t.Errorf("dialling after the end: %v", err)
		}
	})
}

func TestALostConnectionEndsItsSync(t *testing.T) {
	serving(t, func(t *testing.T, s *served) {
		_, token := s.token()
		_, key := s.enrolled(token, "web")
		now, _ := s.poll(key)
		c, err := s.control.dial(key)
		if err != nil {
			t.Fatal(err)
		}
		body := fmt.Sprintf(`{"revision":%d}`, now.Revision)
		fmt.Fprintf(c, "POST /v1/sync HTTP/1.1\r\nHost: e\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		synctest.Wait()
		if s.Counts().SyncsHeld != 1 {
			t.Fatal("the sync is not held")
		}
		c.Abort()
		synctest.Wait()
		if s.Counts().SyncsHeld != 0 {
			t.Error("it is held for nobody")
		}
	})
}

func TestServeFailsWithItsListener(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		joins, control := newOverlay(), newOverlay()
		joins.Close()
		if err := w.Serve(t.Context(), joins, control); err == nil || !strings.Contains(err.Error(), "serving enrolment") {
			t.Errorf("ended with %v", err)
		}
		if _, err := control.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Error("the other listener is open")
		}
	})
}

// 1,000 registrations of different keys on one single-use token, at once: one
// gets in, the others are told who it was.
func TestAThousandJoinersOfASingleUseToken(t *testing.T) {
	serving(t, func(t *testing.T, s *served) {
		_, token := s.token(func(r *TokenRequest) { r.Name = "only" })
		from := joiner(token, 0)
		var mu sync.Mutex
		outcomes := map[wire.Code]int{}
		won := 0
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				key := newKey()
				for {
					status, body, err := s.joins.post(from, wire.PathEnroll, wire.EnrollRequest{PublicKey: wire.Key{Key: key}})
					if err != nil { // its connection was one too many
						time.Sleep(time.Millisecond)
						continue
					}
					if status == http.StatusOK {
						time.Sleep(10 * time.Second) // the others ask meanwhile
						status, body, err := s.control.post(key, wire.PathSync, wire.SyncRequest{})
						accepted[wire.SyncAnswer](t, status, body, err)
						mu.Lock()
						won++
						mu.Unlock()
						return
					}
					refusal := refused(t, status, body, err)
					mu.Lock()
					outcomes[refusal.Code]++
					mu.Unlock()
					if refusal.Final() {
						wantRefusal(t, refusal, wire.CodeSpent, `"only"`)
						return
					}
					time.Sleep(time.Second)
				}
			})
		}
		wg.Wait()
		if won != 1 || outcomes[wire.CodeSpent] != 999 || outcomes[wire.CodeBusy] == 0 || len(outcomes) != 2 {
			t.Errorf("%d won, the others were told %v", won, outcomes)
		}
		if list := s.Tokens(); list[0].Used != 1 || len(s.Connectors()) != 1 {
			t.Errorf("in the end: %+v, %d connectors", list[0], len(s.Connectors()))
		}
		s.check()
	})
}
