package lookup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/warrenmesh/warren/integration/proc"
	"github.com/warrenmesh/warren/integration/require"
)

// text writes an answer as a line.
func text(addrs []netip.Addr, ttl time.Duration) string {
	return strings.Trim(fmt.Sprint(addrs), "[]") + " " + ttl.String()
}

const soa = "example. 100 IN SOA ns.example. me.example. 1 2 3 4 40"

func TestLookup(t *testing.T) {
	r := serve(t, plain(zone(t, soa,
		"a.example. 60 IN A 192.0.2.9", "a.example. 60 IN A 192.0.2.1", "a.example. 20 IN AAAA 2001:db8::1",
		"four.example. 77 IN A 192.0.2.4",
		"six.example. 33 IN AAAA 2001:db8::6",
		"short.example. 5 IN CNAME far.example.", "far.example. 300 IN A 192.0.2.5",
		"twice.example. 9 IN A 192.0.2.2", "twice.example. 9 IN AAAA ::ffff:192.0.2.2", "twice.example. 9 IN A 192.0.2.2",
		"zero.example. 0 IN A 192.0.2.3",
		"signed.example. 4294967295 IN A 192.0.2.3",
		"UPPER.example. 8 IN A 192.0.2.8",
		"text.example. 60 IN TXT hello",
		"nowhere.example. 70 IN CNAME gone.example.",
		"loop.example. 70 IN CNAME loop.example.",
	)))
	for _, test := range []struct{ host, want string }{
		{"a.example", "192.0.2.1 192.0.2.9 2001:db8::1 20s"},
		{"a.example.", "192.0.2.1 192.0.2.9 2001:db8::1 20s"},
		{"four.example", "192.0.2.4 1m17s"},
		{"six.example", "2001:db8::6 33s"},
		{"short.example", "192.0.2.5 5s"},
		{"twice.example", "192.0.2.2 9s"},
		{"zero.example", "192.0.2.3 0s"},
		{"signed.example", "192.0.2.3 0s"}, // RFC 2181 section 8
		{"UPPER.example", "192.0.2.8 8s"},
		{"192.0.2.1", "192.0.2.1 30s"},
		{"::ffff:192.0.2.1", "192.0.2.1 30s"},
		{"2001:db8::1", "2001:db8::1 30s"},
	} {
		addrs, ttl, err := r.Lookup(t.Context(), test.host)
		if got := text(addrs, ttl); err != nil || got != test.want {
			t.Errorf("Lookup(%q) = %s, %v, want %s", test.host, got, err, test.want)
		}
	}
	for _, test := range []struct {
		host string
		ttl  time.Duration
	}{
		{"none.example.", 40 * time.Second}, // the SOA's minimum, RFC 2308 section 5
		{"text.example.", 40 * time.Second},
		{"nowhere.example.", 70 * time.Second},
		{"loop.example.", 70 * time.Second},
		{"a..example", DefaultTTL}, // never asked: it is no name
		{"", DefaultTTL},
		{strings.Repeat("a.", 200), DefaultTTL},
	} {
		addrs, ttl, err := r.Lookup(t.Context(), test.host)
		var d *net.DNSError
		if len(addrs) > 0 || ttl != test.ttl || !errors.Is(err, ErrNotFound) || !errors.As(err, &d) || !d.IsNotFound {
			t.Errorf("Lookup(%q) = %v, %v, %v, want not found for %v", test.host, addrs, ttl, err, test.ttl)
		}
	}
	if _, _, err := r.Lookup(t.Context(), "fe80::1%eth0"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("a zone: %v", err)
	}
}

// TestHosts asks for what the file of every machine has.
func TestHosts(t *testing.T) {
	r := New(Deps{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("asked a resolver") }})
	addrs, ttl, err := r.Lookup(t.Context(), "localhost")
	if err != nil {
		require.Missing(t, "localhost in /etc/hosts: %v", err)
	}
	if ttl != DefaultTTL || !slices.ContainsFunc(addrs, netip.Addr.IsLoopback) {
		t.Errorf("localhost = %v, %v", addrs, ttl)
	}
}

func TestManyAddresses(t *testing.T) {
	var records []string
	for i := range 100 {
		records = append(records, fmt.Sprintf("many.example. %d IN A 192.0.2.%d", 500-i, 200-i))
	}
	r := serve(t, plain(zone(t, "", records...)))
	addrs, ttl, err := r.Lookup(t.Context(), "many.example.")
	if err != nil || len(addrs) != MaxAddrs || addrs[0] != netip.MustParseAddr("192.0.2.101") || !slices.IsSortedFunc(addrs, netip.Addr.Compare) {
		t.Fatalf("%v, %v", addrs, err)
	}
	if ttl != 401*time.Second {
		t.Errorf("ttl = %v", ttl)
	}
}

// TestLiars: whatever a resolver does, a lookup ends, in bounds, and says that
// it failed or what an honest reply said.
func TestLiars(t *testing.T) {
	good := zone(t, soa, "x.example. 60 IN A 192.0.2.1", "x.example. 60 IN AAAA 2001:db8::1")
	forged := zone(t, soa, "x.example. 1 IN A 198.51.100.66", "x.example. 1 IN AAAA 2001:db8::66")
	honest := "192.0.2.1 2001:db8::1 1m0s"
	first := func(change func(m *dns.Msg)) handler {
		return func(network string, q *dns.Msg) [][]byte {
			m := forged(q)
			change(m)
			return [][]byte{pack(m), pack(good(q))}
		}
	}
	rcode := func(a, aaaa int) handler {
		return func(_ string, q *dns.Msg) [][]byte {
			m, code := good(q), a
			if q.Question[0].Qtype == dns.TypeAAAA {
				code = aaaa
			}
			if code != dns.RcodeSuccess {
				m.Rcode, m.Answer = code, nil
			}
			return [][]byte{pack(m)}
		}
	}
	big := func(n int) handler {
		return func(network string, q *dns.Msg) [][]byte {
			m := new(dns.Msg).SetReply(q)
			m.RecursionAvailable, m.Truncated = true, network == "udp"
			for i := range n {
				if network == "tcp" && q.Question[0].Qtype == dns.TypeA {
					m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: "x.example.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 9}, A: net.IPv4(10, 0, byte(i>>8), byte(i))})
				}
			}
			return [][]byte{pack(m)}
		}
	}
	for _, test := range []struct {
		name string
		h    handler
		want string // "" is a failure
	}{
		{"wrong id", first(func(m *dns.Msg) { m.Id++ }), honest},
		{"wrong name", first(func(m *dns.Msg) { m.Question[0].Name = "y.example." }), honest},
		{"wrong type", first(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeTXT }), honest},
		{"no question", first(func(m *dns.Msg) { m.Question = nil }), honest},
		{"a query", first(func(m *dns.Msg) { m.Response = false }), honest},
		{"garbage first", func(_ string, q *dns.Msg) [][]byte {
			return [][]byte{{}, {1}, []byte(strings.Repeat("x", 600)), pack(good(q))}
		}, honest},
		{"garbage alone", func(string, *dns.Msg) [][]byte { return [][]byte{[]byte("not DNS at all")} }, ""},
		{"cut short", func(_ string, q *dns.Msg) [][]byte { b := pack(good(q)); return [][]byte{b[:len(b)-3]} }, ""},
		{"silence", func(string, *dns.Msg) [][]byte { return nil }, ""},
		{"server failure", rcode(dns.RcodeServerFailure, dns.RcodeServerFailure), ""},
		{"refused", rcode(dns.RcodeRefused, dns.RcodeRefused), ""},
		{"one family fails", rcode(dns.RcodeSuccess, dns.RcodeServerFailure), "192.0.2.1 5s"},
		{"one family fails, the other does not exist", rcode(dns.RcodeServerFailure, dns.RcodeNameError), ""},
		{"the same the other way round", rcode(dns.RcodeNameError, dns.RcodeServerFailure), ""},
		{"1,000 addresses", big(1000), "9s"},
		{"4,000 addresses", big(4000), ""},
		{"an end in the middle", func(network string, q *dns.Msg) [][]byte {
			m := new(dns.Msg).SetReply(q)
			m.Truncated = true
			if network == "tcp" {
				return nil
			}
			return [][]byte{pack(m)}
		}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := serve(t, test.h)
			if test.want == "" {
				r.deps.Timeout = 300 * time.Millisecond
			}
			addrs, ttl, err := r.Lookup(t.Context(), "x.example.")
			if test.want == "" {
				if err == nil || len(addrs) > 0 || ttl != 0 || errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "does this machine's DNS work?") {
					t.Errorf("%v, %v, %v, want a failure", addrs, ttl, err)
				}
				return
			}
			if got := text(addrs, ttl); err != nil || len(addrs) > MaxAddrs || !strings.HasSuffix(got, test.want) {
				t.Errorf("%s, %v, want %s", got, err, test.want)
			}
		})
	}
}

// TestGivenUp: with ctx ends everything that the lookup began.
func TestGivenUp(t *testing.T) {
	asked := make(chan struct{}, 8)
	r := serve(t, func(string, *dns.Msg) [][]byte { asked <- struct{}{}; return nil })
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	if _, _, err := r.Lookup(ctx, "x.example."); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("err = %v", err)
	}
}

func TestDialFails(t *testing.T) {
	r := New(Deps{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no way out") }})
	if _, ttl, err := r.Lookup(t.Context(), "x.example."); err == nil || errors.Is(err, ErrNotFound) || ttl != 0 || !strings.Contains(err.Error(), "no way out") {
		t.Errorf("%v, %v", ttl, err)
	}
}

// TestUnbound asks a real resolver.
func TestUnbound(t *testing.T) {
	path := require.Tool(t, "unbound", "unbound")
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.LocalAddr().(*net.UDPAddr)
	_ = l.Close()
	conf := filepath.Join(t.TempDir(), "unbound.conf")
	var many strings.Builder
	for i := range 90 {
		fmt.Fprintf(&many, "\tlocal-data: \"many.example. 50 IN A 192.0.2.%d\"\n", i+1)
	}
	err = os.WriteFile(conf, fmt.Appendf(nil, `server:
	interface: 127.0.0.1@%d
	do-daemonize: no
	use-syslog: no
	username: ""
	chroot: ""
	pidfile: ""
	num-threads: 1
	module-config: "iterator"
	local-zone: "example." static
	local-data: "example. 100 IN SOA ns.example. me.example. 1 2 3 4 40"
	local-data: "db.example. 60 IN A 192.0.2.1"
	local-data: "db.example. 25 IN AAAA 2001:db8::1"
	local-zone: "broken.example." always_refuse
%s
remote-control:
	control-enable: no
`, addr.Port, &many), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	server := proc.Start(t, proc.Here{}, proc.Spec{Path: path, Args: []string{"-d", "-c", conf}})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	r := New(Deps{Dial: to(addr.String()), Timeout: 3 * time.Second})
	if err := proc.Poll(ctx, func() error { _, _, err := r.Lookup(ctx, "db.example."); return err }); err != nil {
		t.Fatalf("%v\n%s", err, server.Output())
	}
	for _, test := range []struct{ host, want string }{
		{"db.example.", "192.0.2.1 2001:db8::1 25s"},
		{"DB.example", "192.0.2.1 2001:db8::1 25s"},
	} {
		addrs, ttl, err := r.Lookup(ctx, test.host)
		if got := text(addrs, ttl); err != nil || got != test.want {
			t.Errorf("%s = %s, %v", test.host, got, err)
		}
	}
	if addrs, ttl, err := r.Lookup(ctx, "many.example."); err != nil || len(addrs) != MaxAddrs || ttl != 50*time.Second {
		t.Errorf("many.example. = %v, %v, %v", addrs, ttl, err)
	}
	if _, ttl, err := r.Lookup(ctx, "none.example."); !errors.Is(err, ErrNotFound) || ttl != 40*time.Second {
		t.Errorf("none.example. = %v, %v", ttl, err)
	}
	if _, ttl, err := r.Lookup(ctx, "x.broken.example."); err == nil || errors.Is(err, ErrNotFound) || ttl != 0 {
		t.Errorf("x.broken.example. = %v, %v", ttl, err)
	}
}
