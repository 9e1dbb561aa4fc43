package config

import (
	"encoding"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/warrenmesh/warren/configs"
	"github.com/warrenmesh/warren/configs/strict"
	"github.com/warrenmesh/warren/configs/strict/mutate"
	"github.com/warrenmesh/warren/edge/balance"
)

// FuzzValues gives each value of the file any text: no panic, an error that
// says what is wrong in one line, and what was read reads back the same.
func FuzzValues(f *testing.F) {
	for _, seed := range []string{
		"tcp/5432", "udp/8000-8100", "tcp/0", "tcp/0-5", "tcp/9-5", "sctp/1", "80", "berlin/10.0.0.10:80", "b/[2001:db8::1]:80-90",
		"b/2001:db8::1:80", "@public/1.2.3.4:5", "/:", "b/[:]:1", ":51820", "[::]:1", "fra1.example.net:51820", "udp://[::1]:1", "://", keyOne, "=",
		"db.internal:5432", "@public/www.example.net:80-81", "B_1.x.:1", "-a:1", "1.2.3:4", "xn--a.:65535", "é:1",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var ports, portsAgain Ports
		var origin, originAgain Origin
		var host, hostAgain Host
		for _, v := range []encoding.TextUnmarshaler{&ports, &origin, &host, new(endpointAddr), new(Socket), new(Dial), new(Key)} {
			err := v.UnmarshalText([]byte(text))
			var fault *strict.Fault
			if err != nil && (!errors.As(err, &fault) || fault.Text == "") {
				t.Fatalf("%T of %q: no fault that says what is wrong: %v", v, text, err)
			}
		}
		if ports != (Ports{}) {
			if err := portsAgain.UnmarshalText([]byte(ports.String())); err != nil || ports != portsAgain {
				t.Fatalf("%q read as %v, and that as %v, %v", text, ports, portsAgain, err)
			}
		}
		if origin != (Origin{}) {
			if origin.Addr.IsValid() == (origin.Host != "") || origin.First == 0 || origin.Size() < 1 || origin.Network == "" {
				t.Fatalf("%q read as %+v", text, origin)
			}
			if err := originAgain.UnmarshalText([]byte(origin.String())); err != nil || origin != originAgain {
				t.Fatalf("%q read as %v, and that as %v, %v", text, origin, originAgain, err)
			}
		}
		if host != (Host{}) {
			if _, err := netip.ParseAddr(host.Name); err == nil || host.Port == 0 || host.Name == "" || len(host.Name) > 253 {
				t.Fatalf("%q read as %+v", text, host)
			}
			if err := hostAgain.UnmarshalText([]byte(host.String())); err != nil || host != hostAgain {
				t.Fatalf("%q read as %v, and that as %v, %v", text, host, hostAgain, err)
			}
		}
	})
}

// FuzzParse wants no panic of any file, and problems of one line each.
func FuzzParse(f *testing.F) {
	f.Add(full)
	f.Add(configs.Edge)
	f.Add(mutate.Edge(20000, "/state"))
	f.Add(mutate.Director(20000, "/state"))
	f.Add(steered)
	f.Add("[[app]]\nlisten=['tcp/1-65535']\n[[address]]\nadvertise=['1.1.1.1','::1']\nbind=['::']")
	f.Fuzz(func(t *testing.T, text string) {
		cfg, err := Parse(home, strict.Source{Name: "edge.toml", Text: []byte(text)})
		var problems strict.Problems
		switch {
		case err == nil && cfg == nil, err != nil && !errors.As(err, &problems):
			t.Fatalf("neither a config nor problems: %v", err)
		case err == nil:
			_ = fmt.Sprint(cfg.AllPools(), cfg.IngressSpecs(), Targets(cfg.AllPools()), cfg.Names(), cfg.Warnings())
			for _, app := range cfg.BalanceApps() {
				app.Validate(func(path, value, hint string) {
					t.Fatalf("the balancer refuses app %q: %s %s %s", app.Name, path, value, hint)
				})
			}
		}
		for _, p := range problems {
			if strings.ContainsAny(p.String(), "\n\r") {
				t.Fatalf("a problem of several lines: %q", p)
			}
		}
	})
}

// FuzzExpand compares the members that names resolve to with those of a naive
// oracle.
func FuzzExpand(f *testing.F) {
	f.Add([]byte{0, 1, 0x80, 2, 1, 0x81, 3, 2, 2})
	f.Add([]byte{0x80, 0, 0x81, 1, 1, 1})
	f.Add([]byte{0x82, 1, 0x87, 0x81})
	f.Fuzz(func(t *testing.T, data []byte) {
		addr := func(b byte) netip.AddrPort { return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, b % 8}), 1) }
		var members []balance.Member
		answers := make(map[string][]netip.Addr)
		var literal []netip.AddrPort
		for i, b := range data {
			m := balance.Member{Weight: i}
			if b < 0x80 {
				if slices.Contains(literal, addr(b)) {
					continue // refused when the file is read
				}
				m.Addr = addr(b)
				literal = append(literal, m.Addr)
			} else {
				m.Host, m.Addr = fmt.Sprint(i), netip.AddrPortFrom(netip.Addr{}, 1)
				for _, a := range data[i:min(len(data), i+int(b%5))] {
					answers[m.Host] = append(answers[m.Host], addr(a).Addr())
				}
			}
			members = append(members, m)
		}
		var want []balance.Member
		for _, m := range members {
			candidates := []netip.AddrPort{m.Addr}
			if m.Host != "" && len(answers[m.Host]) == 0 {
				want = append(want, m)
				continue
			}
			if m.Host != "" {
				candidates = nil
				for _, a := range answers[m.Host] {
					candidates = append(candidates, netip.AddrPortFrom(a, 1))
				}
			}
			for _, at := range candidates {
				have := slices.ContainsFunc(want, func(o balance.Member) bool { return o.Addr == at })
				if have || m.Host != "" && slices.Contains(literal, at) {
					continue
				}
				m.Addr = at
				want = append(want, m)
			}
		}
		got := expand(members, func(m balance.Member) []netip.Addr { return answers[m.Host] })
		if !slices.Equal(got, want) {
			t.Fatalf("got  %v\nwant %v", got, want)
		}
	})
}
