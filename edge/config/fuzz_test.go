package config

import (
	"encoding"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/warrenmesh/warren/configs"
	"github.com/warrenmesh/warren/configs/strict"
	"github.com/warrenmesh/warren/configs/strict/mutate"
)

// FuzzValues gives each value of the file any text: no panic, an error that
// says what is wrong in one line, and what was read reads back the same.
func FuzzValues(f *testing.F) {
	for _, seed := range []string{
		"tcp/5432", "udp/8000-8100", "tcp/0", "tcp/0-5", "tcp/9-5", "sctp/1", "80", "berlin/10.0.0.10:80", "b/[2001:db8::1]:80-90",
		"b/2001:db8::1:80", "@public/1.2.3.4:5", "/:", "b/[:]:1", ":51820", "[::]:1", "fra1.example.net:51820", "udp://[::1]:1", "://", keyOne, "=",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var ports, portsAgain Ports
		var origin Origin
		for _, v := range []encoding.TextUnmarshaler{&ports, &origin, new(Socket), new(Dial), new(Key)} {
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
		if origin != (Origin{}) && (!origin.Addr.IsValid() || origin.First == 0 || origin.Size() < 1 || origin.Network == "") {
			t.Fatalf("%q read as %+v", text, origin)
		}
	})
}

// FuzzParse wants no panic of any file, and problems of one line each.
func FuzzParse(f *testing.F) {
	f.Add(full)
	f.Add(configs.Edge)
	f.Add(mutate.Edge(20000, "/state"))
	f.Add("[[app]]\nlisten=['tcp/1-65535']\n[[address]]\nadvertise=['1.1.1.1','::1']\nbind=['::']")
	f.Fuzz(func(t *testing.T, text string) {
		cfg, err := Parse(home, strict.Source{Name: "edge.toml", Text: []byte(text)})
		var problems strict.Problems
		switch {
		case err == nil && cfg == nil, err != nil && !errors.As(err, &problems):
			t.Fatalf("neither a config nor problems: %v", err)
		case err == nil:
			_ = fmt.Sprint(cfg.AllPools(), cfg.IngressSpecs())
		}
		for _, p := range problems {
			if strings.ContainsAny(p.String(), "\n\r") {
				t.Fatalf("a problem of several lines: %q", p)
			}
		}
	})
}
