package ingress_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/warrenmesh/warren/edge/ingress"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

// newServer returns a server that is closed at the end of the test.
func newServer(t testing.TB, handler ingress.Handler) *ingress.Server {
	t.Helper()
	s := ingress.New(slog.New(slog.DiscardHandler), handler)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = s.Close(ctx)
	})
	return s
}

// listen commits specs and returns the address of each app.
func listen(t testing.TB, s *ingress.Server, specs ...ingress.Spec) map[string]netip.AddrPort {
	t.Helper()
	change, err := s.Prepare(specs)
	if err != nil {
		t.Fatal(err)
	}
	change.Commit()
	at := map[string]netip.AddrPort{}
	for _, l := range s.Listening() {
		at[l.Spec.App] = l.Addr
	}
	return at
}

// echo answers with what it reads.
func echo(ctx context.Context, a ingress.Accepted) {
	stop := context.AfterFunc(ctx, func() { a.Conn.Close() })
	defer stop()
	buf := make([]byte, 1<<16)
	for {
		n, err := a.Conn.Read(buf)
		if err != nil {
			return
		}
		if _, err := a.Conn.Write(buf[:n]); err != nil {
			return
		}
	}
}

// freePort returns an address of network at which nobody listens.
func freePort(t testing.TB, network string) netip.AddrPort {
	t.Helper()
	if network == "udp" {
		pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		return netip.MustParseAddrPort(pc.LocalAddr().String())
	}
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return netip.MustParseAddrPort(ln.Addr().String())
}

func dial(t testing.TB, network string, to netip.AddrPort) net.Conn {
	t.Helper()
	c, err := net.Dial(network, to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second)) // a hung test, not a measure
	return c
}

func ask(t testing.TB, c net.Conn, question string) {
	t.Helper()
	if _, err := io.WriteString(c, question); err != nil {
		t.Fatalf("writing %q: %v", question, err)
	}
	buf := make([]byte, len(question))
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != question {
		t.Fatalf("read %q, %v; want %q back", buf, err, question)
	}
}

func drops(s *ingress.Server) map[string]uint64 {
	counts := map[string]uint64{}
	s.Drops(func(where, why string, n uint64) {
		if n > 0 {
			counts[where+"/"+why] = n
		}
	})
	return counts
}

func TestAcceptedSaysWhoAndWhere(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		for _, bind := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"} {
			t.Run(network+" "+bind, func(t *testing.T) {
				got := make(chan ingress.Accepted, 1)
				s := newServer(t, func(ctx context.Context, a ingress.Accepted) {
					got <- a
					echo(ctx, a)
				})
				spec := ingress.Spec{App: "db", Network: network, Addr: netip.MustParseAddrPort(bind)}
				change, err := s.Prepare([]ingress.Spec{spec})
				if err != nil {
					t.Skipf("no such address here: %v", err)
				}
				change.Commit()
				to := s.Listening()[0].Addr
				if to.Addr().IsUnspecified() {
					to = netip.AddrPortFrom(specific(to.Addr()), to.Port())
				}
				c := dial(t, network, to)
				ask(t, c, "hello")
				a := <-got
				if a.Client.String() != c.LocalAddr().String() || a.Local != to {
					t.Errorf("client %v, local %v; want %v, %v", a.Client, a.Local, c.LocalAddr(), to)
				}
				if a.Conn.LocalAddr().String() != to.String() || a.Conn.RemoteAddr().String() != c.LocalAddr().String() {
					t.Errorf("the conn is %v to %v", a.Conn.LocalAddr(), a.Conn.RemoteAddr())
				}
				if a.Spec.App != "db" || a.Spec.UDPIdle != ingress.DefaultUDPIdle || a.At.IsZero() {
					t.Errorf("accepted %+v", a)
				}
			})
		}
	}
}

func specific(wildcard netip.Addr) netip.Addr {
	if wildcard.Is4() {
		return netip.MustParseAddr("127.0.0.2") // not the address that a socket without a hint answers from
	}
	return netip.MustParseAddr("::1")
}

// What stays keeps its socket and its flows; what goes stops accepting while
// its flows go on; what is new begins.
func TestReload(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			s := newServer(t, echo)
			spec := func(app string) ingress.Spec {
				return ingress.Spec{App: app, Network: network, Addr: loopback}
			}
			before := listen(t, s, spec("stays"), spec("goes"))
			staying, going := dial(t, network, before["stays"]), dial(t, network, before["goes"])
			ask(t, staying, "one")
			ask(t, going, "one")

			after := listen(t, s, spec("stays"), spec("comes"))
			if after["stays"] != before["stays"] {
				t.Errorf("the unchanged listener moved from %v to %v", before["stays"], after["stays"])
			}
			if _, ok := after["goes"]; ok || len(after) != 2 {
				t.Errorf("listening on %v", after)
			}
			ask(t, staying, "two")
			ask(t, going, "two") // its flow goes on
			ask(t, dial(t, network, after["stays"]), "three")
			ask(t, dial(t, network, after["comes"]), "four")
			if network == "tcp" {
				if c, err := net.Dial("tcp", before["goes"].String()); err == nil {
					c.Close()
					t.Error("the removed listener still accepts")
				}
			}
		})
	}
}

func TestReloadChangesTheSpec(t *testing.T) {
	apps := make(chan string, 2)
	s := newServer(t, func(_ context.Context, a ingress.Accepted) { apps <- a.Spec.App })
	at := freePort(t, "tcp")
	for _, app := range []string{"old", "new"} {
		listen(t, s, ingress.Spec{App: app, Network: "tcp", Addr: at})
		dial(t, "tcp", at)
		if got := <-apps; got != app {
			t.Errorf("the flow came in for %q, want %q", got, app)
		}
	}
}

// A change that fails, or is given up, leaves what served as it was and frees
// what it had opened.
func TestFailedChangeTouchesNothing(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	opened := freePort(t, "tcp")

	s := newServer(t, echo)
	keep := ingress.Spec{App: "keep", Network: "tcp", Addr: loopback}
	at := listen(t, s, keep)
	fresh := ingress.Spec{App: "fresh", Network: "tcp", Addr: opened}
	busy := ingress.Spec{App: "busy", Network: "tcp", Addr: taken.Addr().(*net.TCPAddr).AddrPort()}

	if _, err := s.Prepare([]ingress.Spec{fresh, busy}); err == nil {
		t.Fatal("a port in use was given out")
	}
	change, err := s.Prepare([]ingress.Spec{fresh})
	if err != nil {
		t.Fatalf("after a failure: %v", err)
	}
	if _, err := s.Prepare(nil); err == nil {
		t.Error("two changes at once")
	}
	change.Rollback()
	if got := s.Listening(); len(got) != 1 || got[0].Spec.App != "keep" {
		t.Errorf("listening on %+v", got)
	}
	ask(t, dial(t, "tcp", at["keep"]), "still there")
	again, err := net.Listen("tcp", opened.String())
	if err != nil {
		t.Fatalf("the address of the change that was given up: %v", err)
	}
	again.Close()
}

func TestAllProblemsAtOnce(t *testing.T) {
	s := newServer(t, echo)
	same := netip.MustParseAddrPort("127.0.0.1:7")
	_, err := s.Prepare([]ingress.Spec{
		{App: "a", Network: "sctp", Addr: loopback},
		{App: "b", Network: "tcp"},
		{App: "c", Network: "udp", Addr: loopback, UDPIdle: -1},
		{App: "d", Network: "udp", Addr: loopback, MaxFlows: -1},
		{App: "e", Network: "udp", Addr: same},
		{App: "f", Network: "udp", Addr: same},
	})
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) || len(joined.Unwrap()) != 5 {
		t.Errorf("got %v, want five problems", err)
	}
}

func TestCloseHasTwoBeats(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			began := make(chan struct{})
			var ended sync.WaitGroup
			ended.Add(1)
			s := ingress.New(slog.New(slog.DiscardHandler), func(ctx context.Context, a ingress.Accepted) {
				defer ended.Done()
				close(began)
				echo(ctx, a)
			})
			at := listen(t, s, ingress.Spec{App: "db", Network: network, Addr: loopback})
			c := dial(t, network, at["db"])
			ask(t, c, "one")
			<-began

			s.StopAccepting()
			ask(t, c, "two") // the first beat cuts nothing
			if got := s.Listening(); len(got) != 0 {
				t.Errorf("still listening on %v", got)
			}
			if _, err := s.Prepare(nil); !errors.Is(err, ingress.ErrStopped) {
				t.Errorf("Prepare: %v, want ErrStopped", err)
			}
			late := errors.New("the drain took too long")
			ctx, cancel := context.WithCancelCause(context.Background())
			cancel(late)
			if err := s.Close(ctx); err != late {
				t.Errorf("Close: %v, want the cause", err)
			}
			ended.Wait()
		})
	}
}

func TestCloseWaitsForFlows(t *testing.T) {
	s := ingress.New(slog.New(slog.DiscardHandler), echo)
	at := listen(t, s, ingress.Spec{App: "db", Network: "tcp", Addr: loopback})
	c := dial(t, "tcp", at["db"])
	ask(t, c, "one")
	closed := make(chan error, 1)
	go func() { closed <- s.Close(context.Background()) }()
	ask(t, c, "two")
	c.Close()
	if err := <-closed; err != nil {
		t.Errorf("Close: %v", err)
	}
}

// A change that is committed after the end opens nothing.
func TestCommitAfterStop(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		s := newServer(t, echo)
		at := listen(t, s, ingress.Spec{App: "old", Network: network, Addr: loopback})
		change, err := s.Prepare([]ingress.Spec{
			{App: "old", Network: network, Addr: loopback},
			{App: "new", Network: network, Addr: loopback},
		})
		if err != nil {
			t.Fatal(err)
		}
		s.StopAccepting()
		change.Commit()
		if got := s.Listening(); len(got) != 0 {
			t.Errorf("listening on %v", got)
		}
		if network == "tcp" {
			if _, err := net.Dial("tcp", at["old"].String()); err == nil {
				t.Error("the old listener came back")
			}
		}
	}
}
