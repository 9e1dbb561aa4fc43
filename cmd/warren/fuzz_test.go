package main

import (
	"testing"

	"github.com/warrenmesh/warren/connector"
)

// What is accepted is a key and places that a connector can call.
func FuzzParseTokenEdge(f *testing.F) {
	for _, seed := range []string{
		"", "@", edgeKey, edgeKey + "@", edgeKey + "@fra2.example.net:51820", edgeKey + "@[2001:db8::1]:51820, udp://a.example:1",
		edgeKey + "@a:1,", edgeKey + "@a:1@b:2", "short@a:1", edgeKey + "@a:0", edgeKey + "@tcp://a:1",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		e, err := parseTokenEdge(text)
		if err != nil {
			return
		}
		if len(e.PublicKey) != len(edgeKey) || len(e.URLs) == 0 {
			t.Fatalf("accepted %q as %+v", text, e)
		}
		for _, u := range e.URLs {
			if again, err := connector.ParseEdgeURL(u); err != nil || again.String() != u {
				t.Fatalf("%q became %q, which is read as %v, %v", text, u, again, err)
			}
		}
	})
}
