package main

import (
	"strings"
	"testing"
	"time"
)

func TestByteCount(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1 << 20: "1.0 MiB", 5 << 30: "5.0 GiB", 1<<64 - 1: "16.0 EiB",
	} {
		if got := byteCount(n); got != want {
			t.Errorf("byteCount(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 400 * time.Millisecond: "0s", 59 * time.Second: "59s",
		59*time.Second + 600*time.Millisecond: "1m0s", 61 * time.Second: "1m1s",
		3*time.Hour + 12*time.Minute + 59*time.Second: "3h12m", 24 * time.Hour: "1d0h", 52 * time.Hour: "2d4h",
	} {
		if got := span(d); got != want {
			t.Errorf("span(%v) = %q, want %q", d, got, want)
		}
	}
	if got := ago(time.Time{}); got != "" {
		t.Errorf("never was %q ago", got)
	}
}

func TestMillis(t *testing.T) {
	for ms, want := range map[float64]string{0: "", -1: "", 0.333: "0.33 ms", 9.994: "9.99 ms", 12.6: "13 ms"} {
		if got := millis(ms); got != want {
			t.Errorf("millis(%v) = %q, want %q", ms, got, want)
		}
	}
}

// A table lines its columns up, has no white space at the ends of its lines,
// and a dash where there is nothing.
func TestTable(t *testing.T) {
	var b strings.Builder
	table := newTable(&b, "NAME", "FLOWS", "WHY")
	table.row("a-long-name", "1", "")
	table.row("b", "22", "because")
	if err := table.flush(); err != nil {
		t.Fatal(err)
	}
	want := "NAME         FLOWS  WHY\na-long-name  1      -\nb            22     because\n"
	if b.String() != want {
		t.Errorf("table:\n%swant:\n%s", &b, want)
	}
}

func TestSetKey(t *testing.T) {
	const text = "# name = \"no\" is not this file's first\nname = \"berlin-1\"                # in logs\n" +
		"# key_file = \"/etc/key\"   # mode 0600\nurl = \"x:1\"\nurl = \"y:2\"\n"
	for _, tc := range []struct{ name, key, value, want string }{
		{"a comment stays in its column", "url", "z:3", "url = \"z:3\"\nurl = \"y:2\"\n"},
		{"what a comment shows is set", "key_file", "k", "\nkey_file = \"k\"            # mode 0600\n"},
		{"a longer value moves the comment", "key_file", strings.Repeat("k", 30), "\nkey_file = \"" + strings.Repeat("k", 30) + "\" # mode 0600\n"},
		{"what is not there", "nothing", "x", text},
	} {
		if got := setKey(text, tc.key, tc.value); !strings.Contains(got, tc.want) {
			t.Errorf("%s: %q has no %q", tc.name, got, tc.want)
		}
	}
}
