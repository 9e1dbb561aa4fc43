package check

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/warrenmesh/warren/netstack/netx"
)

// long is a timeout that no passing check comes near; short is for those that
// nothing but the timeout ends.
const (
	long  = 20 * time.Second
	short = 400 * time.Millisecond
)

type trial struct {
	name    string
	spec    Spec
	server  func(net.Conn)
	timeout time.Duration
	want    string // in the error; "" passes
}

func (tt trial) run(t *testing.T) {
	t.Helper()
	t.Run(tt.name, func(t *testing.T) {
		t.Parallel()
		if tt.timeout == 0 {
			tt.timeout = long
		}
		r := tries(t, new(kernel), tt.spec, serve(t, tt.server), tt.timeout)
		wantError(t, r.Err, tt.want)
		if r.Err == nil && r.RTT <= 0 {
			t.Errorf("passed with RTT %v", r.RTT)
		}
	})
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("error = %v, want it to pass", err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("error = %v, want it to contain %q", err, want)
	case err != nil && len(err.Error()) > 500:
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
}

func silence(conn net.Conn) { _, _ = conn.Read(make([]byte, 1)); buffer(conn) }
func buffer(conn net.Conn)  { _, _ = conn.Read(make([]byte, 1<<20)); _, _ = conn.Read(make([]byte, 1)) }
func hangUp(net.Conn)       {}

func TestTCP(t *testing.T) {
	for _, tt := range []trial{
		{"accepts", Spec{}, silence, 0, ""},
		{"sends only", Spec{Send: "hello"}, silence, 0, ""},
		{"expects a banner", Spec{Expect: "SSH-2.0"}, says(false, "SSH-2.0-OpenSSH_10\r\n"), 0, ""},
		{"sends and expects", Spec{Send: "ping\n", Expect: "pong"}, says(true, "well, pong\n"), 0, ""},
		{"as hex", Spec{SendHex: "00 01", ExpectHex: "ff FE"}, says(true, "\x00\xff\xfe"), 0, ""},
		{"and closes", Spec{Send: "ping", Expect: "pong"}, closes("pong"), 0, ""},
		{"in two pieces", Spec{Send: "ping", Expect: "pong"}, func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 10))
			_, _ = conn.Write([]byte("po"))
			time.Sleep(time.Millisecond)
			says(false, "ng")(conn)
		}, 0, ""},
		{"wrong answer, silence", Spec{Send: "ping", Expect: "pong"}, says(true, "pung"), short, `awaiting "pong", after "pung": nothing came in time`},
		{"wrong answer, end", Spec{Send: "ping", Expect: "pong"}, closes("pung"), 0, `answered "pung", want "pong"`},
		{"no answer", Spec{Send: "ping", Expect: "pong"}, silence, short, `awaiting "pong": nothing came in time`},
		{"hangs up", Spec{Expect: "pong"}, hangUp, 0, `awaiting "pong": the endpoint ended the connection`},
		{"endless", Spec{Send: "ping", Expect: "pong"}, endless("", strings.Repeat("x\x00\n", 1000)), 0, `answered "x\x00\nx`},
	} {
		tt.run(t)
	}
	t.Run("refused", func(t *testing.T) {
		if r := tries(t, new(kernel), Spec{}, closedPort(t), long); !errors.Is(r.Err, netx.ErrRefused) {
			t.Errorf("error = %v, want netx.ErrRefused", r.Err)
		}
	})
}

func TestPresets(t *testing.T) {
	mail := func(greeting, ehlo, quit string) func(net.Conn) {
		return func(conn net.Conn) {
			_, _ = conn.Write([]byte(greeting))
			for _, answer := range []string{ehlo, quit} {
				if n, _ := conn.Read(make([]byte, 100)); n > 0 {
					_, _ = conn.Write([]byte(answer))
				}
			}
		}
	}
	const ehlo = "250-mail.example\r\n250-8BITMIME\r\n250 HELP\r\n"
	pg, smtp, redis := Spec{Type: TypePostgres}, Spec{Type: TypeSMTP}, Spec{Type: TypeRedis}
	for _, tt := range []trial{
		{"postgres with TLS", pg, says(true, "S"), 0, ""},
		{"postgres without", pg, says(true, "N"), 0, ""},
		{"postgres in trouble", pg, says(true, "E\x00\x00\x00\x52SFATAL"), 0, `answered "E", want "S" or "N"`},
		{"postgres silent", pg, silence, short, "awaiting PostgreSQL's answer: nothing came in time"},
		{"postgres hangs up", pg, closes(""), 0, "the endpoint ended the connection"},

		{"smtp", smtp, mail("220-a\r\n220 mail.example ESMTP\r\n", ehlo, "221 bye\r\n"), 0, ""},
		{"smtp, bare", smtp, mail("220\n", "250\n", "221\n"), 0, ""},
		{"smtp is busy", smtp, mail("421 too many\r\n", "", ""), 0, `the greeting is "421 too many", want 220`},
		{"smtp of another code", smtp, mail("2200 hello\r\n", "", ""), 0, `the greeting is "2200 hello", want 220`},
		{"smtp refuses EHLO", smtp, mail("220 a\r\n", "550 go away\r\n", ""), 0, `the answer to EHLO is "550 go away"`},
		{"smtp silent", smtp, silence, short, "awaiting the greeting: nothing came in time"},
		{"smtp without end", smtp, func(conn net.Conn) {
			for err := error(nil); err == nil; {
				_, err = conn.Write([]byte("220-more\r\n"))
			}
		}, 0, "the greeting has more than 100 lines"},
		{"smtp with a long line", smtp, says(false, "220 "+strings.Repeat("x", 5000)), 0, "a line is too long"},

		{"redis", redis, says(true, "+PONG\r\n"), 0, ""},
		{"redis with a password", redis, says(true, "-NOAUTH Authentication required.\r\n"), 0, ""},
		{"redis loading", redis, says(true, "-LOADING Redis is loading\r\n"), 0, `answered "-LOADING Redis is loading" to PING`},
		{"redis silent", redis, silence, short, "awaiting PONG: nothing came in time"},
	} {
		tt.run(t)
	}
}

func TestUDP(t *testing.T) {
	answers := func(list ...string) func([]byte) [][]byte {
		return func([]byte) (out [][]byte) {
			for _, s := range list {
				out = append(out, []byte(s))
			}
			return out
		}
	}
	echo := func(b []byte) [][]byte { return [][]byte{b} }
	strays := func([]byte) [][]byte { return make([][]byte, 2*maxStray) }
	for _, tt := range []struct {
		name    string
		spec    Spec
		server  func([]byte) [][]byte
		timeout time.Duration
		want    string
		rtt     bool
	}{
		{"silent", Spec{}, answers(), short, "", false},
		{"answers", Spec{}, answers("anything"), long, "", true},
		{"echoes", Spec{Send: "hello", Expect: "ell"}, echo, long, "", true},
		{"hex", Spec{SendHex: "00ff", ExpectHex: "ff"}, echo, long, "", true},
		{"the answer is the second", Spec{Send: "a", Expect: "b"}, answers("a", "b"), long, "", true},
		{"wrong answer", Spec{Send: "a", Expect: "b"}, answers("a"), short, `answered "a", want "b"`, false},
		{"no answer", Spec{Send: "a", Expect: "b"}, answers(), short, `awaiting "b": nothing came in time`, false},
		{"many answers", Spec{Send: "a", Expect: "b"}, strays, long, `answered "", want "b"`, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.spec.Type = TypeUDP
			r := tries(t, new(kernel), tt.spec, serveUDP(t, tt.server), tt.timeout)
			wantError(t, r.Err, tt.want)
			if (r.RTT > 0) != tt.rtt {
				t.Errorf("RTT = %v", r.RTT)
			}
		})
	}
	for _, spec := range []Spec{{Type: TypeUDP}, {Type: TypeUDP, Send: "a", Expect: "b"}, {Type: TypeDNS, Question: "a.example"}} {
		r := tries(t, new(kernel), spec, closedPort(t), long)
		if !errors.Is(r.Err, netx.ErrRefused) {
			t.Errorf("%s %q of a closed port: %v, want netx.ErrRefused", spec.Type, spec.Expect, r.Err)
		}
	}
}

// A caller that gives up has learnt nothing: the silence is no pass.
func TestUDPCutShort(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	addr := serveUDP(t, func([]byte) [][]byte { cancel(); return nil })
	if r := Run(ctx, new(kernel), addr, &Spec{Type: TypeUDP}); r.Err == nil {
		t.Error("passed, though cut short")
	}
}

func TestDNS(t *testing.T) {
	// answer changes a sound answer, or makes bytes of its own.
	type change func(q, m *dns.Msg) []byte
	rcode := func(code int) change { return func(_, m *dns.Msg) []byte { m.Rcode = code; return nil } }
	for _, tt := range []struct {
		name   string
		spec   Spec
		answer change
		want   string
	}{
		{"answers", Spec{Question: "www.example.com"}, rcode(0), ""},
		{"the case differs", Spec{Question: "WWW.example.com."}, func(_, m *dns.Msg) []byte {
			m.Question[0].Name = "www.EXAMPLE.com."
			return nil
		}, ""},
		{"wants NXDOMAIN", Spec{Question: "x", ExpectedRcode: "NXDOMAIN"}, rcode(3), ""},
		{"refuses without the question", Spec{Question: "x", ExpectedRcode: "REFUSED"}, func(_, m *dns.Msg) []byte {
			m.Rcode, m.Question = 5, nil
			return nil
		}, ""},
		{"SERVFAIL", Spec{Question: "x"}, rcode(2), "answered SERVFAIL, want NOERROR"},
		{"an odd code", Spec{Question: "x"}, rcode(13), "answered code 13, want NOERROR"},
		{"another id", Spec{Question: "x"}, func(_, m *dns.Msg) []byte { m.Id++; return nil }, "nothing came in time"},
		{"another question", Spec{Question: "x"}, func(_, m *dns.Msg) []byte { m.Question[0].Name = "y."; return nil }, "nothing came in time"},
		{"another type", Spec{Question: "x"}, func(_, m *dns.Msg) []byte { m.Question[0].Qtype = 28; return nil }, "nothing came in time"},
		{"repeats the question", Spec{Question: "x"}, func(_, m *dns.Msg) []byte { m.Response = false; return nil }, "answered with a question"},
		{"garbage", Spec{Question: "x"}, func(q, _ *dns.Msg) []byte {
			return append([]byte{byte(q.Id >> 8), byte(q.Id), 0x80, 0, 0, 9, 0, 9, 0, 9, 0, 9}, "\xc0\xff\xc0"...)
		}, "malformed message"},
		{"a few bytes", Spec{Question: "x"}, func(*dns.Msg, *dns.Msg) []byte { return []byte{1, 2} }, "nothing came in time"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.spec.Type = TypeDNS
			addr := serveUDP(t, func(question []byte) [][]byte {
				var q, m dns.Msg
				if err := q.Unpack(question); err != nil {
					t.Error(err)
					return nil
				}
				m.SetReply(&q)
				if b := tt.answer(&q, &m); b != nil {
					return [][]byte{b}
				}
				b, err := m.Pack()
				if err != nil {
					t.Error(err)
				}
				return [][]byte{b}
			})
			timeout := long
			if tt.want == "nothing came in time" {
				timeout = short
			}
			r := tries(t, new(kernel), tt.spec, addr, timeout)
			wantError(t, r.Err, tt.want)
			if r.Err == nil && r.RTT <= 0 {
				t.Errorf("RTT = %v", r.RTT)
			}
		})
	}
}

func TestICMP(t *testing.T) {
	at := netip.MustParseAddrPort("10.0.0.10:0")
	for _, want := range []error{nil, netx.ErrUnreachable} {
		var asked netip.Addr
		k := &kernel{ping: func(_ context.Context, addr netip.Addr) error {
			asked = addr
			time.Sleep(time.Microsecond)
			return want
		}}
		r := tries(t, k, Spec{Type: TypeICMP}, at, long)
		if !errors.Is(r.Err, want) || asked != at.Addr() || (r.RTT > 0) != (want == nil) {
			t.Errorf("ping of %v: %+v, want error %v", asked, r, want)
		}
	}
}

// A dialer that does not honour its context makes nothing pass.
func TestALateAnswerIsATimeout(t *testing.T) {
	late := &kernel{ping: func(context.Context, netip.Addr) error { time.Sleep(20 * time.Millisecond); return nil }}
	if r := tries(t, late, Spec{Type: TypeICMP}, netip.MustParseAddrPort("10.0.0.1:0"), 10*time.Millisecond); !errors.Is(r.Err, netx.ErrTimedOut) {
		t.Errorf("%+v, want netx.ErrTimedOut", r)
	}
}

// The end of its context ends a check whatever it is doing, at once.
func TestCanceled(t *testing.T) {
	for _, spec := range []Spec{
		{Expect: "x"}, {Type: TypeTLS}, {Type: TypeHTTP}, {Type: TypeHTTPS}, {Type: TypePostgres}, {Type: TypeSMTP}, {Type: TypeRedis},
	} {
		t.Run(spec.Type, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			addr := serve(t, func(conn net.Conn) {
				cancel()
				buffer(conn)
			})
			k := new(kernel)
			r := Run(ctx, k, addr, &spec)
			if r.Err == nil || k.open != 0 {
				t.Errorf("%+v with %d conns open", r, k.open)
			}
		})
	}
}
