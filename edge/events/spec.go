package events

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Defaults and bounds of a Spec.
const (
	DefaultTimeout = 10 * time.Second
	MinTimeout     = 100 * time.Millisecond
	MaxTimeout     = time.Minute
	DefaultMaxAge  = time.Hour
	MinMaxAge      = time.Second
	MaxMaxAge      = 24 * time.Hour
	DefaultQueue   = 1024
	MaxQueue       = 1 << 16
)

// Spec is one webhook.
type Spec struct {
	// Name is unique among webhooks; required.
	Name string
	// URL is where events are posted: https, or http with a warning. Required.
	URL string
	// SecretFile holds the key of the signature: the header Warren-Signature
	// is then "sha256=" and the HMAC-SHA256 of the body, in hexadecimal. The
	// file is read anew by each Apply.
	SecretFile string
	// TokenFile holds a token that is sent as "Authorization: Bearer …".
	TokenFile string
	// Kinds are the kinds of event that are told; empty tells every kind.
	Kinds []string
	// Timeout bounds one attempt, the answer included. Default 10 s.
	Timeout time.Duration
	// MaxAge is how old an event may grow before it is given up. Default 1 h.
	MaxAge time.Duration
	// Queue is how many events may wait; of more, the oldest are dropped.
	// Default 1024.
	Queue int
}

// Validate calls report once for each problem of specs, with the key path
// ("webhook[0].url"), the value as written, and what to do about it.
func Validate(specs []Spec, report func(path, value, hint string)) {
	seen := make(map[string]int, len(specs))
	for i, s := range specs {
		at := fmt.Sprintf("webhook[%d]", i)
		s.Validate(func(path, value, hint string) { report(at+"."+path, value, hint) })
		if first, dup := seen[s.Name]; dup && s.Name != "" {
			report(at+".name", s.Name, fmt.Sprintf("webhook[%d] has the same name: give each its own", first))
		} else {
			seen[s.Name] = i
		}
	}
}

// Validate calls report once for each problem, with the key ("url"), the value
// as written, and what to do about it.
func (s Spec) Validate(report func(path, value, hint string)) {
	if s.Name == "" || len(s.Name) > 64 || strings.ContainsFunc(s.Name, func(r rune) bool { return r <= ' ' || r > '~' }) {
		report("name", s.Name, "want 1 to 64 printable characters without a blank")
	}
	s.validateURL(report)
	for i, kind := range s.Kinds {
		if kind == "" {
			report(fmt.Sprintf("kinds[%d]", i), kind, "name a kind of event, such as \"pool\", or leave out kinds for all")
		}
	}
	within := func(key string, d, low, high time.Duration) {
		if d != 0 && (d < low || d > high) {
			report(key, d.String(), fmt.Sprintf("want %v to %v", low, high))
		}
	}
	within("timeout", s.Timeout, MinTimeout, MaxTimeout)
	within("max_age", s.MaxAge, MinMaxAge, MaxMaxAge)
	if s.Queue < 0 || s.Queue > MaxQueue {
		report("queue", fmt.Sprint(s.Queue), fmt.Sprintf("want 1 to %d", MaxQueue))
	}
}

func (s Spec) validateURL(report func(path, value, hint string)) {
	u, err := url.Parse(s.URL)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "":
		report("url", redact(s.URL), "want a whole URL, such as https://hooks.example.com/warren")
	case u.Scheme != "https" && u.Scheme != "http":
		report("url", redact(s.URL), "want https:// (or http:// inside your own network)")
	case u.User != nil:
		report("url", redact(s.URL), "leave the user and the password out of the URL: put a token into token_file")
	case u.Fragment != "":
		report("url", redact(s.URL), "leave out the part after #: it is never sent")
	default:
		if _, err := http.NewRequest(http.MethodPost, s.URL, nil); err != nil {
			report("url", redact(s.URL), "want a URL that can be posted to")
		}
	}
}

// Warnings are what is allowed but unwise, a sentence each.
func (s Spec) Warnings() []string {
	u, err := url.Parse(s.URL)
	if err != nil || u.Scheme != "http" {
		return nil
	}
	why := "anybody on the way can read the events"
	if s.TokenFile != "" {
		why = "anybody on the way can read the events and the token"
	}
	return []string{fmt.Sprintf("webhook %q posts over plain http to %q: %s; use https", s.Name, u.Host, why)}
}

// withDefaults fills what was left out.
func (s Spec) withDefaults() Spec {
	if s.Timeout == 0 {
		s.Timeout = DefaultTimeout
	}
	if s.MaxAge == 0 {
		s.MaxAge = DefaultMaxAge
	}
	if s.Queue == 0 {
		s.Queue = DefaultQueue
	}
	return s
}

// redact leaves of a URL what may be shown: many webhooks keep their secret in
// the path or the query.
func redact(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return "(not shown: no URL, and it may hold a secret)"
	}
	shown := u.Scheme + "://" + u.Host
	if u.Path != "" && u.Path != "/" || u.RawQuery != "" {
		shown += "/…"
	}
	return shown
}
