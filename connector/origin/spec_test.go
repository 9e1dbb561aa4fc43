package origin

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func service(t testing.TB, s string) Service {
	t.Helper()
	got, err := ParseService(s)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func target(t testing.TB, s string) Target {
	t.Helper()
	got, err := ParseTarget(s)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestParseService(t *testing.T) {
	for _, s := range []string{"tcp/10.0.0.10:5432", "udp/10.0.0.10:53", "tcp/[2001:db8::1]:443"} {
		if got := service(t, s).String(); got != s {
			t.Errorf("ParseService(%q) reads as %q", s, got)
		}
	}
	for name, s := range map[string]string{
		"empty": "", "no protocol": "10.0.0.1:80", "other protocol": "sctp/10.0.0.1:80", "no port": "tcp/10.0.0.1",
		"port 0": "tcp/10.0.0.1:0", "a name": "tcp/db:5432", "a prefix": "tcp/10.0.0.0/8:80", "mapped": "tcp/[::ffff:10.0.0.1]:80",
		"zone": "tcp/[fe80::1%eth0]:80", "big port": "tcp/10.0.0.1:70000",
	} {
		if got, err := ParseService(s); err == nil {
			t.Errorf("%s: ParseService(%q) = %v", name, s, got)
		} else if !strings.Contains(err.Error(), "parsing service") {
			t.Errorf("%s: the error %q does not say what was parsed", name, err)
		}
	}
}

func TestParseTarget(t *testing.T) {
	for _, s := range []string{
		"db.internal:5432", "db:1", "my_db.svc.:65535", "10.0.0.1:80", "[2001:db8::1]:443", "[fe80::1%eth0]:80",
		"1db.example:80", "xn--bcher-kva.example:80",
	} {
		if got := target(t, s).String(); got != s {
			t.Errorf("ParseTarget(%q) reads as %q", s, got)
		}
	}
	for name, s := range map[string]string{
		"empty": "", "no port": "db.internal", "empty port": "db:", "port 0": "db:0", "named port": "db:postgres", "sign": "db:+80",
		"leading zero": "db:080", "no host": ":80", "a dot": ".:80", "empty label": "a..b:80", "space": "a b:80", "slash": "a/b:80",
		"bad address": "10.0.0.300:80", "short address": "10.1:80", "letters beyond ASCII": "bücher.example:80",
		"long label": strings.Repeat("a", 64) + ":80", "long name": strings.Repeat("a.", 130) + "a:80", "no brackets": "2001:db8::1:80",
	} {
		if got, err := ParseTarget(s); err == nil {
			t.Errorf("%s: ParseTarget(%q) = %v", name, s, got)
		}
	}
}

func TestTargetAddr(t *testing.T) {
	if a, ok := target(t, "[::ffff:10.0.0.1]:80").Addr(); !ok || a != netip.MustParseAddrPort("10.0.0.1:80") {
		t.Errorf("Addr() = %v, %v", a, ok)
	}
	if a, ok := target(t, "db:80").Addr(); ok {
		t.Errorf("Addr() of a name = %v", a)
	}
}

func TestTexts(t *testing.T) {
	var a Alias
	if err := a.From.UnmarshalText([]byte("tcp/10.0.0.10:5432")); err != nil {
		t.Fatal(err)
	}
	if err := a.To.UnmarshalText([]byte("db:5432")); err != nil {
		t.Fatal(err)
	}
	from, _ := a.From.MarshalText()
	to, _ := a.To.MarshalText()
	if string(from) != "tcp/10.0.0.10:5432" || string(to) != "db:5432" {
		t.Errorf("MarshalText gives %q and %q", from, to)
	}
	before := a
	if a.From.UnmarshalText([]byte("x")) == nil || a.To.UnmarshalText([]byte("x")) == nil || a != before {
		t.Errorf("nonsense was taken, or changed the alias to %v", a)
	}
}

func TestValidate(t *testing.T) {
	good := Alias{service(t, "tcp/10.0.0.10:5432"), target(t, "db:5432")}
	tests := []struct {
		name string
		spec Spec
		want []string
	}{
		{name: "zero"},
		{name: "good", spec: Spec{Aliases: []Alias{good}, Timeout: time.Second}},
		{name: "same port, other protocol", spec: Spec{Aliases: []Alias{good, {service(t, "udp/10.0.0.10:5432"), good.To}}}},
		{name: "twice", spec: Spec{Aliases: []Alias{good, good}}, want: []string{"alias[1].from"}},
		{name: "from loopback", spec: Spec{Aliases: []Alias{{service(t, "tcp/127.0.0.1:80"), good.To}}}, want: []string{"alias[0].from"}},
		{name: "to loopback is fine", spec: Spec{Aliases: []Alias{{good.From, target(t, "127.0.0.1:80")}}}},
		{name: "empty alias", spec: Spec{Aliases: []Alias{{}}}, want: []string{"alias[0].from", "alias[0].to"}},
		{name: "timeout longer than the edge's", spec: Spec{Timeout: 8 * time.Second}, want: []string{"timeout"}},
		{name: "negative timeout", spec: Spec{Timeout: -1}, want: []string{"timeout"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			tt.spec.Validate(func(path, _, hint string) {
				if hint == "" {
					t.Errorf("%s has no hint", path)
				}
				got = append(got, path)
			})
			if !slices.Equal(got, tt.want) {
				t.Errorf("Validate reports %q, want %q", got, tt.want)
			}
		})
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"db.internal:5432", "10.0.0.1:80", "[2001:db8::1]:443", "[fe80::1%eth0]:80", ":1", "a..b:80", "[]:80", "10.1:80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseTarget(s)
		if err != nil {
			return
		}
		again, err := ParseTarget(got.String())
		if err != nil || again != got || got.Port == 0 || got.Host == "" {
			t.Fatalf("ParseTarget(%q) = %+v, but %q reads as %+v, %v", s, got, got.String(), again, err)
		}
	})
}

func FuzzParseService(f *testing.F) {
	for _, s := range []string{"tcp/10.0.0.10:5432", "udp/[2001:db8::1]:53", "tcp/", "tcp/[::ffff:1.2.3.4]:1", "tcp/[fe80::1%a]:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseService(s)
		if err != nil {
			return
		}
		again, err := ParseService(got.String())
		if err != nil || again != got || !got.Addr.IsValid() || got.Addr.Port() == 0 {
			t.Fatalf("ParseService(%q) = %+v, but %q reads as %+v, %v", s, got, got.String(), again, err)
		}
	})
}
