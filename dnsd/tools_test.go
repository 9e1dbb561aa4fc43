package dnsd

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// tool finds a program, or skips the test and says which is missing; where
// everything is required that is a failure.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("WARREN_REQUIRE_ALL") == "1" {
			t.Fatalf("%s is not installed", name)
		}
		t.Skipf("%s is not installed", name)
	}
	return path
}

func run(t *testing.T, path string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(path), strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestDig asks as operators do; each case is what must and must not be on the
// screen.
func TestDig(t *testing.T) {
	dig := tool(t, "dig")
	port := strconv.Itoa(int(start(t, Spec{}).Addrs()[0].Port()))
	cases := []struct {
		name, args string
		want       []string
		not        []string
	}{
		{"A", "db.apps.example.com A", []string{"status: NOERROR", "flags: qr aa rd;", "db.apps.example.com.\t30\tIN\tA\t203.0.113.10"}, []string{"ad", "WARNING: Message"}},
		{"TCP", "+tcp db.apps.example.com AAAA", []string{"2001:db8::10", "(TCP)"}, nil},
		{"NXDOMAIN", "no.apps.example.com A", []string{"status: NXDOMAIN", "AUTHORITY: 1", "\t30\tIN\tSOA\t"}, nil},
		{"NODATA", "four.apps.example.com AAAA", []string{"status: NOERROR", "ANSWER: 0, AUTHORITY: 1"}, nil},
		{"NS", "apps.example.com NS", []string{"ns1.apps.example.com.", "ADDITIONAL: 3"}, nil},
		{"falls back to TCP", "more.apps.example.com A", []string{"Truncated, retrying in TCP mode", "ANSWER: 300"}, nil},
		{"ANY", "+notcp db.apps.example.com ANY", []string{"ANSWER: 1,"}, nil},
		{"a cookie is not echoed", "+cookie db.apps.example.com A", []string{"status: NOERROR"}, []string{"COOKIE"}},
		{"unknown EDNS option", "+ednsopt=100:01 db.apps.example.com A", []string{"status: NOERROR", "udp: 1232"}, []string{"OPT=100"}},
		{"unknown EDNS flag", "+ednsflags=0x40 db.apps.example.com A", []string{"status: NOERROR"}, []string{"MBZ"}},
		{"EDNS version 1", "+edns=1 +noednsneg db.apps.example.com A", []string{"status: BADVERS", "ANSWER: 0"}, nil},
		{"an opcode of the future", "+opcode=15 +header-only", []string{"status: NOTIMP", "flags: qr;"}, nil},
		{"opcode STATUS", "+opcode=STATUS +ad +cd db.apps.example.com A", []string{"status: NOTIMP", "flags: qr;"}, nil},
		{"no question", "+header-only", []string{"status: FORMERR"}, nil},
		{"no EDNS", "+noedns db.apps.example.com A", []string{"status: NOERROR", "ADDITIONAL: 0"}, []string{"OPT PSEUDOSECTION"}},
		{"DO", "+dnssec db.apps.example.com A", []string{"flags: do; udp: 1232"}, nil},
		{"outside", "example.org A", []string{"status: REFUSED", "flags: qr rd;"}, nil},
		{"version.bind", "version.bind CH TXT", []string{"status: REFUSED"}, nil},
		{"AXFR", "apps.example.com AXFR", []string{"Transfer failed."}, []string{"203.0.113.10"}},
		{"IXFR over UDP", "+notcp apps.example.com IXFR=1", nil, []string{"203.0.113.10"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			out := run(t, dig, append([]string{"@127.0.0.1", "-p", port, "+tries=1"}, strings.Fields(c.args)...)...)
			for _, part := range c.want {
				if !strings.Contains(out, part) {
					t.Errorf("dig %s lacks %q:\n%s", c.args, part, out)
				}
			}
			for _, part := range c.not {
				if strings.Contains(out, part) {
					t.Errorf("dig %s has %q:\n%s", c.args, part, out)
				}
			}
		})
	}
}

// TestKdig uses what dig lacks: padding, and several queries on one TCP
// connection.
func TestKdig(t *testing.T) {
	kdig := tool(t, "kdig")
	port := strconv.Itoa(int(start(t, Spec{}).Addrs()[0].Port()))
	out := run(t, kdig, "@127.0.0.1", "-p", port, "+padding=700", "db.apps.example.com", "A")
	if !strings.Contains(out, "NOERROR") || !strings.Contains(out, "203.0.113.10") {
		t.Errorf("padded:\n%s", out)
	}
	out = run(t, kdig, "@127.0.0.1", "-p", port, "+tcp", "+keepopen", "db.apps.example.com", "A", "db.apps.example.com", "AAAA", "no.apps.example.com", "A")
	if !strings.Contains(out, "2001:db8::10") || !strings.Contains(out, "NXDOMAIN") {
		t.Errorf("over one connection:\n%s", out)
	}
}

// TestUnbound puts a real recursive resolver in front, with 0x20, QNAME
// minimisation and hardening, and resolves through it.
func TestUnbound(t *testing.T) {
	unbound := tool(t, "unbound")
	at := start(t, Spec{}).Addrs()[0]
	resolver := startUnbound(t, unbound, at)
	cases := []struct {
		qname  string
		qtype  uint16
		rcode  int
		answer string
	}{
		{"db.apps.example.com.", dns.TypeA, dns.RcodeSuccess, "203.0.113.10"},
		{"db.apps.example.com.", dns.TypeAAAA, dns.RcodeSuccess, "2001:db8::10"},
		{"db.apps.example.com.", dns.TypeCAA, dns.RcodeSuccess, ""},
		{"four.apps.example.com.", dns.TypeAAAA, dns.RcodeSuccess, ""},
		{"a.b.apps.example.com.", dns.TypeA, dns.RcodeSuccess, "203.0.113.10"}, // minimised: b is asked first, and must exist
		{"b.apps.example.com.", dns.TypeA, dns.RcodeSuccess, ""},
		{"no.apps.example.com.", dns.TypeA, dns.RcodeNameError, ""},
		{"any.dev.apps.example.com.", dns.TypeA, dns.RcodeSuccess, "203.0.113.11"},
		{"more.apps.example.com.", dns.TypeA, dns.RcodeSuccess, "198.18.1.1"}, // over TCP
	}
	for _, c := range cases {
		t.Run(c.qname+dns.TypeToString[c.qtype], func(t *testing.T) {
			m := ask(t, "tcp", resolver, query(c.qname, c.qtype))
			if m.Rcode != c.rcode || (c.answer == "") != (len(m.Answer) == 0) || !strings.Contains(lines(m.Answer), c.answer) {
				t.Errorf("%s %q, want %s %q", dns.RcodeToString[m.Rcode], lines(m.Answer), dns.RcodeToString[c.rcode], c.answer)
			}
			if c.answer == "" && !strings.Contains(lines(m.Ns), "SOA") {
				t.Errorf("no SOA in authority: %q", lines(m.Ns))
			}
		})
	}
}

// startUnbound runs a resolver until the test ends and returns where it is
// asked.
func startUnbound(t *testing.T, path string, server netip.AddrPort) netip.AddrPort {
	t.Helper()
	at := freePort(t)
	dir := t.TempDir()
	config := filepath.Join(dir, "unbound.conf")
	text := fmt.Sprintf(`server:
    interface: 127.0.0.1@%d
    directory: "%s"
    chroot: ""
    username: ""
    pidfile: ""
    use-syslog: no
    do-daemonize: no
    do-not-query-localhost: no
    do-ip6: no
    use-caps-for-id: yes
    qname-minimisation: yes
    harden-below-nxdomain: yes
    harden-short-bufsize: yes
    module-config: "iterator"
    local-zone: "example.com." nodefault
remote-control:
    control-enable: no
stub-zone:
    name: "apps.example.com"
    stub-addr: 127.0.0.1@%d
`, at.Port(), dir, server.Port())
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-c", config)
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("unbound said:\n%s", &log)
		}
	})
	eventually(t, "unbound answering", func() bool {
		c := dns.Client{Net: "tcp", Timeout: patience}
		_, _, err := c.Exchange(query("apps.example.com.", dns.TypeSOA), at.String())
		return err == nil
	})
	return at
}
