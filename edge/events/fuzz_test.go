package events

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// FuzzURL: whatever passes can be posted to, and what is shown of a URL holds
// neither its path nor its query.
func FuzzURL(f *testing.F) {
	for _, s := range []string{"https://hooks.example.com/T0/secret?x=y", "http://[::1]:80", "https://user:pw@x", "//x", "https:///x", "https://x/%zz", "https://x y", "https://x:port/", "HTTPS://X", "https://x?q"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		valid := true
		Spec{Name: "a", URL: s}.Validate(func(_, value, _ string) {
			valid = false
			u, err := url.Parse(s)
			hidden := strings.HasPrefix(value, "(not shown")
			if !hidden && (err != nil || strings.TrimSuffix(value, "/…") != u.Scheme+"://"+u.Host) {
				t.Fatalf("%q is shown as %q", s, value)
			}
		})
		u, err := url.Parse(s)
		if valid && (err != nil || u.Hostname() == "" || u.User != nil || u.Scheme != "http" && u.Scheme != "https") {
			t.Fatalf("%q passes", s)
		}
	})
}

// FuzzEvent: whatever texts an event has, its JSON is valid and bounded, and
// says them.
func FuzzEvent(f *testing.F) {
	f.Add("endpoint", "connection \"refused\"\n\x00", int64(0))
	f.Add("\xff\xfe", strings.Repeat("ä", 600), int64(1<<40))
	f.Fuzz(func(t *testing.T, kind, why string, at int64) {
		l := New(Deps{})
		defer l.Stop()
		l.Add(Event{Kind: kind, Why: why, Time: time.Unix(at, 0)})
		events, _ := l.Since(0, 0)
		text, err := json.Marshal(payload{Events: events})
		if err != nil || len(text) > 2*6*maxText+1000 {
			t.Fatalf("%d bytes, %v", len(text), err)
		}
		var back payload
		if err := json.Unmarshal(text, &back); err != nil {
			t.Fatal(err)
		}
		e := back.Events[0]
		if !e.Time.Equal(events[0].Time) || utf8.ValidString(why) && (!strings.HasPrefix(why, e.Why) || len(why) <= maxText && e.Why != why) {
			t.Fatalf("%q came back as %q, %v as %v", why, e.Why, events[0].Time, e.Time)
		}
	})
}
