package enroll

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/memnet"
	"github.com/warrenmesh/warren/netstack/netx"
)

// endless is a body that does not end; it counts what it was asked for.
type endless struct {
	start string
	sent  int
}

func (e *endless) Read(b []byte) (int, error) {
	n := copy(b, e.start)
	e.start = e.start[n:]
	clear(b[n:])
	for i := n; i < len(b); i++ {
		b[i] = '0'
	}
	e.sent += len(b)
	return len(b), nil
}

// Bodies of 1 GB, sent as fast as they go, from a guest and from a connector:
// the edge reads little of each, and serves the others.
func TestEndlessBodies(t *testing.T) {
	serving(t, func(t *testing.T, s *served) {
		_, token := s.token(reusable)
		_, key := s.enrolled(token, "web")
		const gigabyte = 1 << 30
		for _, c := range []struct {
			name  string
			at    *overlay
			from  wgtypes.Key
			path  string
			start string
			head  string
		}{
			{"zeros", s.joins, joiner(token, 0), wire.PathEnroll, "\x00", fmt.Sprintf("Content-Length: %d", gigabyte)},
			{"a number", s.joins, joiner(token, 1), wire.PathEnroll, "", fmt.Sprintf("Content-Length: %d", gigabyte)},
			{"a string", s.joins, joiner(token, 2), wire.PathEnroll, `{"name":"`, fmt.Sprintf("Content-Length: %d", gigabyte)},
			{"one chunk", s.joins, joiner(token, 3), wire.PathEnroll, "40000000\r\n{\"name\":\"", "Transfer-Encoding: chunked"},
			{"many fields", s.control, key, wire.PathSync, `{"report":{"version":"`, fmt.Sprintf("Content-Length: %d", gigabyte)},
			{"of no path", s.control, key, "/v9/x", "", fmt.Sprintf("Content-Length: %d", gigabyte)},
			{"in the head", s.joins, joiner(token, 4), wire.PathEnroll, "", "X: "},
		} {
			part(t, c.name, func() {
				conn, err := c.at.dial(c.from)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				end := "\r\n\r\n"
				if c.head == "X: " {
					end = ""
				}
				body := &endless{start: fmt.Sprintf("POST %s HTTP/1.1\r\nHost: e\r\n%s%s%s", c.path, c.head, end, c.start)}
				var wg sync.WaitGroup
				wg.Go(func() { _, _ = io.Copy(conn, io.LimitReader(body, gigabyte)) })
				status, text, err := readAnswer(conn)
				if c.head != "X: " {
					if r := refused(t, status, text, err); r.Code != wire.CodeBadRequest && r.Code != wire.CodeVersion {
						t.Errorf("refused with %+v", r)
					}
				}
				wg.Wait() // the server has closed the connection
				if limit := 1 << 20; body.sent > limit {
					t.Errorf("it took %d bytes, more than %d", body.sent, limit)
				}
				status, text, err = s.joins.post(joiner(token, 7), wire.PathEnroll, wire.EnrollRequest{PublicKey: wire.Key{Key: newKey()}})
				accepted[wire.EnrollAnswer](t, status, text, err)
			})
		}
	})
}

// Peers that send slowly, or nothing, are let go, and do not keep others out.
func TestSlowRequests(t *testing.T) {
	serving(t, func(t *testing.T, s *served) {
		_, token := s.token(reusable)
		_, key := s.enrolled(token, "web")
		for _, c := range []struct {
			name   string
			at     *overlay
			from   wgtypes.Key
			start  string
			within time.Duration
		}{
			{"nothing", s.joins, joiner(token, 0), "", headerWithin},
			{"half a head", s.joins, joiner(token, 0), "POST /v1/enroll HTTP/1.1\r\nHost: e\r\nX: ", headerWithin},
			{"half a body", s.joins, joiner(token, 0), "POST /v1/enroll HTTP/1.1\r\nHost: e\r\nContent-Length: 1000\r\n\r\n{\"name\":\"", bodyWithin},
			{"half a body of a sync", s.control, key, "POST /v1/sync HTTP/1.1\r\nHost: e\r\nContent-Length: 1000\r\n\r\n{\"revision\":", bodyWithin},
			{"half a body of no path", s.control, key, "POST /v1/none HTTP/1.1\r\nHost: e\r\nContent-Length: 1000\r\n\r\n{\"revision\":", bodyWithin},
			{"an idle one", s.joins, joiner(token, 0), "POST /v1/enroll HTTP/1.1\r\nHost: e\r\nContent-Length: 2\r\n\r\n{}", 5 * time.Second},
		} {
			part(t, c.name, func() {
				conn, err := c.at.dial(c.from)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				began := time.Now()
				if _, err := io.WriteString(conn, c.start); err != nil {
					t.Fatal(err)
				}
				var wg sync.WaitGroup
				wg.Go(func() { // a byte a second
					for strings.HasPrefix(c.name, "half") {
						time.Sleep(time.Second)
						if _, err := io.WriteString(conn, "1"); err != nil {
							return
						}
					}
				})
				if _, err := io.Copy(io.Discard, conn); err != nil && !strings.Contains(err.Error(), "reset") {
					t.Error(err)
				}
				if d := time.Since(began); d < c.within || d > c.within+2*time.Second {
					t.Errorf("let go after %v, want %v", d, c.within)
				}
				conn.Close()
				wg.Wait()
			})
		}
	})
}

// A guest that keeps every connection it can get leaves room for others, and
// for the newest of its own.
func TestConnectionsAreBounded(t *testing.T) {
	serving(t, func(t *testing.T, s *served) {
		_, token := s.token(reusable)
		_, other := s.token()
		_, key := s.enrolled(token, "web")
		open := func(conns []*memnet.Conn) (n int) {
			for _, c := range conns {
				_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
				if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
					n++
				}
			}
			return n
		}
		var all, modest []*memnet.Conn
		for range 20 {
			_, token := s.token()
			c, err := s.joins.dial(joiner(token, 0))
			if err != nil {
				t.Fatal(err)
			}
			modest = append(modest, c)
		}
		for i := range wire.ReusableKeys {
			for range 100 {
				c, err := s.joins.dial(joiner(token, i))
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, c)
			}
		}
		synctest.Wait()
		if n := open(all); n != 512-len(modest) {
			t.Errorf("%d connections are open, want the rest of 512", n)
		}
		for i := range 3 {
			status, body, err := s.joins.post(joiner(other, 0), wire.PathEnroll, wire.EnrollRequest{PublicKey: wire.Key{Key: key}})
			wantRefusal(t, refused(t, status, body, err), wire.CodeKnownKey)
			status, body, err = s.joins.post(joiner(token, i), wire.PathEnroll, wire.EnrollRequest{PublicKey: wire.Key{Key: newKey()}})
			accepted[wire.EnrollAnswer](t, status, body, err)
		}
		if n := open(modest); n != len(modest) {
			t.Errorf("%d of %d peers with one connection have kept it", n, len(modest))
		}
		drops := map[string]uint64{}
		s.Drops(func(where, why string, n uint64) { drops[where+" "+why] = n })
		if drops["enroll connections_of_peer"] < 200 || drops["enroll connections"] == 0 {
			t.Errorf("counted %v", drops)
		}
		for _, c := range append(all, modest...) {
			c.Close()
		}
		for range 20 { // a connector that comes back before its old connections are gone
			if _, err := s.control.dial(key); err != nil {
				t.Fatal(err)
			}
		}
		status, body, err := s.control.post(key, wire.PathSync, wire.SyncRequest{})
		accepted[wire.SyncAnswer](t, status, body, err)
	})
}

func TestAGuestIsRenewedOnceItsLastConnectionEnds(t *testing.T) {
	serving(t, func(t *testing.T, s *served) {
		_, token := s.token()
		from := joiner(token, 0)
		status, body, err := s.joins.post(from, wire.PathEnroll, wire.EnrollRequest{})
		refused(t, status, body, err)
		synctest.Wait()
		if s.tun.renewed[from] != 0 {
			t.Error("renewed after a refusal")
		}
		waiting, err := s.joins.dial(from)
		if err != nil {
			t.Fatal(err)
		}
		status, body, err = s.joins.post(from, wire.PathEnroll, wire.EnrollRequest{PublicKey: wire.Key{Key: newKey()}})
		accepted[wire.EnrollAnswer](t, status, body, err)
		synctest.Wait()
		if s.tun.renewed[from] != 0 {
			t.Error("renewed under another joiner")
		}
		waiting.Close()
		synctest.Wait()
		if s.tun.renewed[from] != 1 {
			t.Errorf("renewed %d times, want once", s.tun.renewed[from])
		}
	})
}

// slowStore is a disk whose fsync takes until it is let go.
type slowStore struct {
	*fakeStore
	syncing chan struct{} // receives when an Update has begun
	let     chan struct{}
}

func (s slowStore) Update(f func(Tx) error) error {
	s.syncing <- struct{}{}
	<-s.let
	return s.fakeStore.Update(f)
}

// A disk that hangs holds up what must be stored, and nothing else.
func TestSyncsDoNotWaitForTheDisk(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		_, token := w.token(reusable)
		_, key := w.enrolled(token, "web")
		disk := slowStore{w.store, make(chan struct{}), make(chan struct{})}
		w.Registry.store = disk
		done := make(chan error, 1)
		go func() {
			_, refusal := w.register(token, newKey(), "slow")
			done <- codeError(refusal)
		}()
		<-disk.syncing
		for range 3 {
			if _, refusal := w.poll(key); refusal != nil {
				t.Error(refusal)
			}
		}
		if len(w.Connectors()) != 1 || len(w.Tokens()) != 1 {
			t.Error("what is not stored yet shows")
		}
		w.Denied(key)
		w.Counts()
		close(disk.let)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if len(w.Connectors()) != 2 {
			t.Error("it is stored, but does not show")
		}
	})
}

// A server that stops waits for what it is doing.
func TestServeWaitsForItsRequests(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		_, token := w.token()
		disk := slowStore{w.store, make(chan struct{}), make(chan struct{})}
		w.Registry.store = disk
		joins := newOverlay()
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- w.Serve(ctx, joins, newOverlay()) }()
		go func() {
			_, _, _ = joins.post(joiner(token, 0), wire.PathEnroll, wire.EnrollRequest{PublicKey: wire.Key{Key: newKey()}})
		}()
		<-disk.syncing
		cancel()
		time.Sleep(time.Minute) // of the bubble's time
		select {
		case <-served:
			t.Error("it has ended under a request")
		default:
		}
		close(disk.let)
		if err := <-served; err != nil {
			t.Error(err)
		}
		if len(w.Connectors()) != 1 {
			t.Error("the request was lost")
		}
	})
}

func codeError(r *wire.Refusal) error {
	if r == nil {
		return nil
	}
	return r
}

// loopback is a listener whose conns come from the keys in the order in which
// they were accepted.
type loopback struct {
	net.Listener
	keys []wgtypes.Key
	next atomic.Int64
}

type loopbackConn struct {
	net.Conn
	remote netip.Addr
}

// WhenReadable implements netx.ReadNotifier, for conns of which nothing more
// comes.
func (c loopbackConn) WhenReadable(func()) netx.Notice { return c }
func (c loopbackConn) Stop()                           {}

func (c loopbackConn) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.remote, 40000))
}

func (l *loopback) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return loopbackConn{c, overlayOf(l.keys[l.next.Add(1)-1])}, nil
}

// A sync that waits costs little memory: heap and stacks, over loopback TCP.
func TestMemoryOfHeldSyncs(t *testing.T) {
	const n = 1000
	w := newWorld(t)
	_, token := w.token(reusable)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	control := &loopback{Listener: ln}
	for range n {
		_, key := w.enrolled(token, "")
		control.keys = append(control.keys, key)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- w.Serve(ctx, newOverlay(), control) }()

	before, goroutines := inUse(), runtime.NumGoroutine()
	conns := make([]net.Conn, n)
	requests := make([]string, n)
	for i := range conns {
		now, refusal := w.poll(control.keys[i])
		if refusal != nil {
			t.Fatal(refusal)
		}
		body := fmt.Sprintf(`{"revision":%d,"report":{"version":"1.2.3","hostname":"db7"}}`, now.Revision)
		requests[i] = fmt.Sprintf("POST /v1/sync HTTP/1.1\r\nHost: e\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		if conns[i], err = net.Dial("tcp", ln.Addr().String()); err != nil {
			t.Fatal(err)
		}
		defer conns[i].Close()
	}
	for i, c := range conns {
		if _, err := io.WriteString(c, requests[i]); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(30 * time.Second); w.Counts().SyncsHeld < n; {
		if time.Now().After(deadline) {
			t.Fatalf("%d syncs are held, want %d", w.Counts().SyncsHeld, n)
		}
		time.Sleep(time.Millisecond)
	}
	each := (inUse() - before) / n
	t.Logf("a held sync costs %d bytes", each)
	if each > 8<<10 { // twice what was measured
		t.Errorf("a held sync costs %d bytes", each)
	}
	if more := runtime.NumGoroutine() - goroutines; more > n/10 {
		t.Errorf("%d held syncs have %d goroutines", n, more)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// inUse is the memory of heap and stacks.
func inUse() int64 {
	var m runtime.MemStats
	for range 3 { // stacks shrink and pools empty a collection later
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
