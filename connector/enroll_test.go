package connector

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

// visit is one attempt to enrol as an edge sees it, and what it makes of it.
type visit struct {
	TunnelConfig
	JoinConfig
	dialled netip.AddrPort
	request wire.EnrollRequest
	closed  bool

	sent   uint64 // bytes, to an edge that does not come up
	shook  bool   // but a handshake was made
	up     bool
	handle func(w io.Writer, r *http.Request) // nil: it never answers
}

// fakeDoor is the edge's side of enrolments, and the tunnels of the joiners.
type fakeDoor struct {
	next func(v *visit, n int) // fills in what becomes of attempt n

	mu     sync.Mutex
	visits []*visit
	serve  sync.WaitGroup
}

func (d *fakeDoor) open(cfg TunnelConfig) (Tunnel, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := &visit{TunnelConfig: cfg}
	d.visits = append(d.visits, v)
	return &fakeDoorway{fakeTunnel: &fakeTunnel{}, d: d, v: v, n: len(d.visits) - 1}, nil
}

type fakeDoorway struct {
	*fakeTunnel
	d    *fakeDoor
	v    *visit
	n    int
	conn net.Conn // what Dial returns; nil: one to the visit's handler
}

func (w *fakeDoorway) Join(cfg JoinConfig) (Peer, error) {
	p, err := w.fakeTunnel.Join(cfg)
	w.v.JoinConfig = cfg
	w.d.next(w.v, w.n)
	s := State{Alive: w.v.up, TxBytes: w.v.sent}
	if w.v.shook {
		s.LastHandshake = time.Now()
	}
	w.peers[cfg.Name].set(s)
	return p, err
}

func (w *fakeDoorway) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	w.v.dialled = to
	if w.conn != nil {
		return w.conn, nil
	}
	if w.v.handle == nil {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	ours, theirs := net.Pipe()
	w.d.serve.Go(func() {
		defer func() { _ = theirs.Close() }()
		r, err := http.ReadRequest(bufio.NewReader(theirs))
		if err != nil {
			return
		}
		if err := wire.Decode(r.Body, &w.v.request); err != nil {
			return
		}
		w.v.handle(theirs, r)
	})
	return ours, nil
}

func (w *fakeDoorway) Close() { w.v.closed = true }

// answerWith answers as an http.Server does.
func answerWith(status int, body any) func(io.Writer, *http.Request) {
	return func(w io.Writer, _ *http.Request) {
		text, err := json.Marshal(body)
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(w, "HTTP/1.1 %d x\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", status, len(text), text)
	}
}

// enrolBench is a Connector that has a token for the edge at 203.0.113.10.
type enrolBench struct {
	*bench
	door  *fakeDoor
	token wire.Token
	key   wgtypes.Key
	edge  EdgeSpec
	good  wire.EnrollAnswer
}

func newEnrolBench(t *testing.T, reusable bool) *enrolBench {
	t.Helper()
	b := &enrolBench{bench: newBench(t), door: &fakeDoor{}, key: newKey(t)}
	b.edge, b.spec.Edges = b.spec.Edges[0], nil
	b.token = wire.NewToken(reusable, []wire.Edge{{PublicKey: wire.Key{Key: b.edge.PublicKey}, URLs: []string{testEdge}}})
	b.spec.Token = b.token
	b.deps.Tunnel = b.door.open
	b.good = wire.EnrollAnswer{Name: "berlin-1", Network: "berlin", Time: b.deps.Wall(),
		Edges: []wire.Edge{{PublicKey: wire.Key{Key: newKey(t).PublicKey()}, URLs: []string{"evil.example:1"}}, {PublicKey: wire.Key{Key: b.edge.PublicKey}, URLs: []string{"fra2.example:51820", "fra1.example:51820"}}}}
	b.door.next = func(v *visit, _ int) { v.up, v.handle = true, answerWith(200, b.good) }
	return b
}

// enrol enrols, and wants that no secret left the joiner.
func (b *enrolBench) enrol(ctx context.Context) (wire.EnrollAnswer, error) {
	b.t.Helper()
	c, err := New(b.spec, b.deps)
	if err != nil {
		b.t.Fatal(err)
	}
	answer, err := c.enrolAt(ctx, b.edge, b.key.PublicKey())
	b.door.serve.Wait()
	for i, v := range b.door.visits {
		if !v.closed {
			b.t.Errorf("the tunnel of attempt %d was left open", i)
		}
	}
	said := strings.Join(b.log.with(""), "\n") + fmt.Sprint(err) + fmt.Sprintf("%v %+v %#v", b.spec, answer, err)
	for _, secret := range secrets(b.t, b.token, b.key) {
		if strings.Contains(said, secret) {
			b.t.Errorf("a secret was said: %s", said)
		}
	}
	return answer, err
}

// secrets are the forms in which a token's secrets might show themselves.
func secrets(t *testing.T, token wire.Token, keys ...wgtypes.Key) (list []string) {
	t.Helper()
	text, err := token.Text()
	if err != nil {
		t.Fatal(err)
	}
	list = []string{text, text[len(text)-40:]}
	keys = append(append(keys, *token.Secret, token.PresharedKey()), token.Bootstrap()...)
	for _, k := range keys {
		list = append(list, k.String(), k.String()[:16], hex.EncodeToString(k[:]), fmt.Sprint(k[:]), fmt.Sprintf("%#v", k)[:60])
	}
	return list
}

func inEnrolBubble(t *testing.T, reusable bool, f func(t *testing.T, b *enrolBench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newEnrolBench(t, reusable)) })
}

func TestEnrolIsAnswered(t *testing.T) {
	inEnrolBubble(t, true, func(t *testing.T, b *enrolBench) {
		answer, err := b.enrol(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if answer.Name != "berlin-1" || answer.Network != "berlin" || len(answer.Edges) != 1 ||
			answer.Edges[0].PublicKey.Key != b.edge.PublicKey || !slices.Equal(answer.Edges[0].URLs, []string{"fra2.example:51820", "fra1.example:51820"}) {
			t.Errorf("answer = %+v", answer)
		}
		v := b.door.visits[0]
		if len(b.door.visits) != 1 || !slices.Contains(b.token.Bootstrap(), v.PrivateKey) || v.PresharedKey != b.token.PresharedKey() ||
			v.PublicKey != b.edge.PublicKey || v.Endpoint.String() != "203.0.113.10:51820" || v.TCP != nil || v.UDP != nil {
			t.Errorf("%d attempts; the peers were not the token's and the edge: %+v", len(b.door.visits), v.Endpoint)
		}
		if v.dialled != netip.AddrPortFrom(tunnel.OverlayAddr(b.edge.PublicKey), wire.EnrollPort) {
			t.Errorf("dialled %s", v.dialled)
		}
		r := v.request
		if r.PublicKey.Key != b.key.PublicKey() || r.Name != "test" || r.Version != "v1" || !r.Time.Equal(b.deps.Wall()) {
			t.Errorf("request = %+v", r)
		}
	})
}

func TestEnrolKeepsTheTokensURLs(t *testing.T) {
	inEnrolBubble(t, false, func(t *testing.T, b *enrolBench) {
		b.good.Edges[1].URLs = nil
		answer, err := b.enrol(t.Context())
		if err != nil || !slices.Equal(answer.Edges[0].URLs, []string{testEdge}) {
			t.Errorf("answer = %+v, %v", answer, err)
		}
	})
}

// TestEnrolFails has the ways in which an edge is not there.
func TestEnrolFails(t *testing.T) {
	silent := func(v *visit, _ int) { v.sent = 3 * initiation }
	const at = `enrolling at edge "edge.example:51820": `
	for _, tt := range []struct {
		name   string
		change func(b *enrolBench)
		next   func(v *visit, n int)
		want   []string // in the error
		least  time.Duration
		most   time.Duration
	}{
		{name: "silence", next: silent, least: enrolSilent, most: enrolSilent + 8*time.Second,
			want: []string{at + "no answer from 203.0.113.10:51820: ", " handshake initiations (148 bytes each, UDP) were sent in 1", "and nothing came back: UDP is blocked on the way, or the edge there has another key than the token's ",
				"or does not know the token ", "`tcpdump -n udp port 51820 and host ADDRESS`", "`warren token list`"}},
		{name: "two silent addresses", next: silent, least: enrolSilent, most: 30 * time.Second,
			change: func(b *enrolBench) { b.resolver.set("edge.example", "203.0.113.10", "2001:db8::1") },
			want:   []string{"no answer from 203.0.113.10:51820 and [2001:db8::1]:51820: "}},
		{name: "nothing listens", next: silent, most: 4 * time.Second,
			change: func(b *enrolBench) { b.reach.probes["203.0.113.10:51820"] = errPortClosed },
			want:   []string{at + "nothing listens at UDP 203.0.113.10:51820 (port unreachable): does the edge run there, and is the port right?"}},
		{name: "a network that says no", next: silent, most: 4 * time.Second,
			change: func(b *enrolBench) { b.reach.probes["203.0.113.10:51820"] = syscall.EHOSTUNREACH },
			want:   []string{at + "UDP to 203.0.113.10:51820 fails: no route to host"}},
		{name: "no network", next: silent,
			change: func(b *enrolBench) { b.reach.routes["203.0.113.10:51820"] = syscall.ENETUNREACH },
			want:   []string{at + "this machine has no way to 203.0.113.10:51820: network is unreachable"}},
		{name: "no tunnel", change: func(b *enrolBench) {
			b.deps.Tunnel = func(TunnelConfig) (Tunnel, error) { return nil, syscall.EMFILE }
		}, want: []string{at + "opening a tunnel: too many open files"}},
		{name: "one address closed, one silent", next: silent, least: enrolSilent, most: 30 * time.Second,
			change: func(b *enrolBench) {
				b.resolver.set("edge.example", "203.0.113.10", "203.0.113.11")
				b.reach.probes["203.0.113.10:51820"] = errPortClosed
			},
			want: []string{at + "nothing listens at UDP 203.0.113.10:51820 ", "; no answer from 203.0.113.11:51820: "}},
		{name: "no address that can be read", change: func(b *enrolBench) { b.edge.URLs = nil }, want: []string{"no address of it is known: run again with a new token"}},
		{name: "no name", change: func(b *enrolBench) { b.resolver.set("edge.example") }, want: []string{at, "the name has no address"}},
		{name: "a session that is taken for ever", next: func(v *visit, _ int) { v.shook = true }, least: enrolWithin, most: enrolWithin + 10*time.Second,
			want: []string{at + "no answer from 203.0.113.10:51820"}},
		{name: "a port that hangs", next: func(v *visit, _ int) { v.up = true }, least: enrolWithin, most: enrolWithin + 20*time.Second,
			want: []string{at + "the edge shakes hands, but its enrolment port does not answer: "}},
		{name: "an answer that hangs", next: func(v *visit, _ int) {
			v.up, v.handle = true, func(w io.Writer, _ *http.Request) { _, _ = io.Copy(io.Discard, w.(net.Conn)) }
		},
			least: enrolWithin, most: enrolWithin + 20*time.Second,
			want: []string{at + "the edge shakes hands, but does not answer (others may be enrolling with the same token): "}},
		{name: "no HTTP", next: func(v *visit, _ int) {
			v.up, v.handle = true, func(w io.Writer, _ *http.Request) { _, _ = io.WriteString(w, "SSH-2.0-x\r\n\r\n") }
		}, least: enrolWithin, most: enrolWithin + 20*time.Second, want: []string{"malformed HTTP response"}},
		{name: "a failure without a reason", next: func(v *visit, _ int) { v.up, v.handle = true, answerWith(500, "x") },
			least: enrolWithin, most: enrolWithin + 20*time.Second, want: []string{"the edge answers with status 500"}},
		{name: "an answer without a network", next: func(v *visit, _ int) {
			v.up, v.handle = true, answerWith(200, wire.EnrollAnswer{Name: "a", Edges: []wire.Edge{{PublicKey: wire.Key{Key: v.PublicKey}}}})
		},
			least: enrolWithin, most: enrolWithin + 20*time.Second, want: []string{"holds no name or no network"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inEnrolBubble(t, true, func(t *testing.T, b *enrolBench) {
				if tt.change != nil {
					tt.change(b)
				}
				b.door.next = tt.next
				start := time.Now()
				_, err := b.enrol(t.Context())
				if err == nil {
					t.Fatal("it enrolled")
				}
				for _, want := range tt.want {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("it fails with\n%v\nwant %q", err, want)
					}
				}
				if took := time.Since(start); took < tt.least || took > tt.most {
					t.Errorf("it took %v, want %v to %v", took, tt.least, tt.most)
				}
				var refusal *wire.Refusal
				if errors.As(err, &refusal) || strings.Contains(err.Error(), "\n") {
					t.Errorf("a Refusal, or no sentence: %v", err)
				}
			})
		})
	}
}

func TestEnrolTriesOtherAddresses(t *testing.T) {
	inEnrolBubble(t, false, func(t *testing.T, b *enrolBench) {
		b.resolver.set("edge.example", "203.0.113.10", "203.0.113.11", "203.0.113.12")
		b.reach.routes["203.0.113.10:51820"] = syscall.ENETUNREACH
		good := b.door.next
		b.door.next = func(v *visit, n int) {
			if v.Endpoint.String() == "203.0.113.12:51820" {
				good(v, n)
			}
		}
		if _, err := b.enrol(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestEnrolAgainAfterTheft: others with the same key take the session at every
// point of an attempt.
func TestEnrolAgainAfterTheft(t *testing.T) {
	inEnrolBubble(t, true, func(t *testing.T, b *enrolBench) {
		b.resolver.set("edge.example", "203.0.113.10", "203.0.113.11")
		good := b.door.next
		used := make(map[wgtypes.Key]bool)
		b.door.next = func(v *visit, n int) {
			used[v.PrivateKey] = true
			v.up = true
			switch {
			case n%3 == 0:
				v.up, v.shook = false, true
			case n%3 == 1:
				v.handle = func(w io.Writer, _ *http.Request) { _, _ = io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Le") }
			case n == 5:
				good(v, n)
			}
			if v.Endpoint.String() != "203.0.113.10:51820" {
				t.Errorf("attempt %d leaves the address that shook hands for %s", n, v.Endpoint)
			}
		}
		if _, err := b.enrol(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(used) < 2 {
			t.Errorf("%d attempts had %d different keys", len(b.door.visits), len(used))
		}
	})
}

func TestEnrolIsRefused(t *testing.T) {
	for _, tt := range []struct {
		code     wire.Code
		attempts int // 1: not asked again
	}{
		{wire.CodeSpent, 1}, {wire.CodeExpired, 1}, {wire.CodeRevoked, 1}, {wire.CodeKnownKey, 1}, {wire.CodeVersion, 1}, {wire.CodeUnknown, 1},
		{wire.CodeBusy, 3}, {wire.CodeUnavailable, 3}, {"of a later release", 3},
	} {
		t.Run(string(tt.code), func(t *testing.T) {
			inEnrolBubble(t, false, func(t *testing.T, b *enrolBench) {
				good := b.door.next
				b.door.next = func(v *visit, n int) {
					if v.up, v.handle = true, answerWith(403, wire.Refuse(tt.code, "the token was used\x1b[2J by berlin-2")); n == 2 {
						good(v, n)
					}
				}
				_, err := b.enrol(t.Context())
				if len(b.door.visits) != tt.attempts {
					t.Errorf("%d attempts, want %d", len(b.door.visits), tt.attempts)
				}
				if tt.attempts > 1 {
					if err != nil {
						t.Error(err)
					}
					return
				}
				var refusal *wire.Refusal
				if !errors.As(err, &refusal) || refusal.Code != tt.code || !refusal.Final() || strings.Contains(err.Error(), "\x1b") || !strings.HasPrefix(err.Error(), "the token was used") {
					t.Errorf("it fails with %#v", err)
				}
			})
		})
	}
}

func TestEnrolAtAnotherEdge(t *testing.T) {
	inEnrolBubble(t, false, func(t *testing.T, b *enrolBench) {
		b.good.Edges = b.good.Edges[:1]
		_, err := b.enrol(t.Context())
		var refusal *wire.Refusal
		if !errors.As(err, &refusal) || !refusal.Final() || !strings.Contains(err.Error(), "the token is for another edge: what answers at edge.example:51820 with the key ") {
			t.Errorf("it fails with %v", err)
		}
	})
}

func TestEnrolEndsWithItsContext(t *testing.T) {
	for name, next := range map[string]func(v *visit, n int){
		"silence":   func(*visit, int) {},
		"a dial":    func(v *visit, _ int) { v.up = true },
		"an answer": func(v *visit, _ int) { v.up, v.handle = true, func(io.Writer, *http.Request) { time.Sleep(time.Hour) } },
	} {
		t.Run(name, func(t *testing.T) {
			inEnrolBubble(t, false, func(t *testing.T, b *enrolBench) {
				b.door.next = next
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if _, err := b.enrol(ctx); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("it fails with %v", err)
				}
				if len(b.door.visits) != 1 {
					t.Errorf("%d attempts", len(b.door.visits))
				}
			})
		})
	}
}

// answered is a conn on which an answer has come.
type answered struct {
	net.Conn // nil: what it has is not asked for
	in       io.Reader
}

func (c answered) Read(b []byte) (int, error)  { return c.in.Read(b) }
func (c answered) Write(b []byte) (int, error) { return len(b), nil }
func (c answered) Close() error                { return nil }
func (c answered) SetDeadline(time.Time) error { return nil }
func (c answered) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv6loopback, Port: wire.EnrollPort}
}

// FuzzEnrolAnswer: what an edge answers is bounded, never panics, and an error
// of it is one line without control characters.
func FuzzEnrolAnswer(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 54\r\n\r\n" + `{"name":"a","network":"b","edges":[],"time":"2026-07-01T12:00:00Z"}`,
		"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n2b\r\n" + `{"code":"spent","message":"it was \u001b used"}` + "\r\n0\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 500 x\r\n\r\n{}", "HTTP/1.0 200\r\nContent-Length: -1\r\n\r\n", "\r\n",
	} {
		f.Add([]byte(s))
	}
	spec := EdgeSpec{PublicKey: wgtypes.Key{1}, URLs: []EdgeURL{{Host: "a", Port: 1}}}
	j := &joiner{edge: spec, log: slog.New(slog.DiscardHandler), deps: Deps{}.withDefaults()}
	f.Fuzz(func(t *testing.T, text []byte) {
		door := &fakeDoorway{fakeTunnel: &fakeTunnel{}, v: &visit{}}
		door.conn = answered{in: bytes.NewReader(text)}
		answer, err := j.ask(t.Context(), door, &fakePeer{cfg: JoinConfig{PublicKey: spec.PublicKey}}, 0)
		if err != nil {
			if strings.ContainsFunc(err.Error(), unicode.IsControl) || len(err.Error()) > 2*wire.MaxText {
				t.Errorf("no sentence: %q", err)
			}
			return
		}
		if len(answer.Edges) != 1 || answer.Name == "" || len(answer.Name) > wire.MaxName || len(answer.Edges[0].URLs) == 0 || len(answer.Edges[0].URLs) > maxURLs {
			t.Errorf("answer = %+v", answer)
		}
	})
}
