package events

import (
	"context"
	"crypto/hmac"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warrenmesh/warren/integration/proc"
)

// eventually polls the first webhook's status.
func eventually(t *testing.T, l *Log, is func(HookStatus) bool) HookStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err := proc.Poll(ctx, func() error {
		if !is(l.Hooks()[0]) {
			return context.DeadlineExceeded
		}
		return nil
	})
	if err != nil {
		t.Fatalf("status = %+v", l.Hooks()[0])
	}
	return l.Hooks()[0]
}

// real makes a Log with its own transport and one webhook.
func real(t *testing.T, spec Spec) *Log {
	t.Helper()
	l := New(Deps{Grace: 10 * time.Millisecond, Secret: files{"key": key, "token": "hunter2"}.read})
	t.Cleanup(l.Stop)
	spec.Name = "real"
	if err := l.Apply([]Spec{spec}); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestRealServer(t *testing.T) {
	var signed atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Method == http.MethodPost && r.Header.Get("Content-Type") == "application/json" && hmac.Equal([]byte(r.Header.Get(SignatureHeader)), []byte(Sign([]byte(key), body))) {
			signed.Add(1)
		}
	}))
	defer server.Close()
	l := real(t, Spec{URL: server.URL + "/hook", SecretFile: "key"})
	add(l, 3, "pool")
	eventually(t, l, func(s HookStatus) bool { return s.Delivered == 3 })
	if signed.Load() == 0 {
		t.Error("no call was signed")
	}
}

func TestRealFailures(t *testing.T) {
	var followed, begun atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed.Add(1) }))
	defer other.Close()
	endless := strings.Repeat("x", 1<<20)
	for _, test := range []struct {
		name string
		tls  bool
		h    http.HandlerFunc
		want string
	}{
		{"untrusted", true, func(http.ResponseWriter, *http.Request) {}, "certificate"},
		{"redirect", false, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		}, "a redirect, which is not followed"},
		{"hangs", false, func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // or the server does not see that the client has gone
			begun.Add(1)
			<-r.Context().Done()
		}, "deadline exceeded"},
		{"hangs up", false, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
		{"endless error", false, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, endless); err != nil {
					return
				}
			}
		}, "it answered 500 Internal Server Error"},
		{"repeats the URL", false, func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "no such hook: "+r.URL.Path, http.StatusNotFound)
		}, "it answered 404 Not Found"},
		{"repeats the token", false, func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "who is "+r.Header.Get("Authorization")+"?", http.StatusForbidden)
		}, "it answered 403 Forbidden"},
		{"is no HTTP", false, func(w http.ResponseWriter, r *http.Request) {
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "you said "+r.RequestURI+" "+r.Header.Get("Authorization")+"\r\n\r\n")
			_ = c.Close()
		}, "no HTTP that makes sense"},
		{"repeats the URL in its headers", false, func(w http.ResponseWriter, r *http.Request) {
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 400 no\r\nTransfer-Encoding: "+r.RequestURI+"\r\n\r\n")
			_ = c.Close()
		}, "no HTTP that makes sense"},
		{"endless headers", false, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", endless) }, "header"},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := httptest.NewUnstartedServer(test.h)
			server.Config.ErrorLog = log.New(io.Discard, "", 0)
			if test.tls {
				server.StartTLS()
			} else {
				server.Start()
			}
			defer server.Close()
			l := real(t, Spec{URL: server.URL + "/secret/1?k=hunter3", TokenFile: "token", Timeout: 200 * time.Millisecond})
			add(l, 1, "pool")
			s := eventually(t, l, func(s HookStatus) bool { return strings.Contains(s.LastError, test.want) }) // a slow machine may time out first
			shows := func(secret string) bool { return strings.Contains(s.LastError, secret) }
			if shows("secret/") || shows("hunter") || len(s.LastError) > 1000 || s.Delivered != 0 {
				t.Errorf("status = %+v", s)
			}
			l.Stop()
		})
	}
	if followed.Load() > 0 {
		t.Error("a redirect was followed")
	}
	if begun.Load() == 0 {
		t.Error("the hanging server was never asked")
	}
}

// TestEndlessSuccess: a webhook that takes the events and never stops talking
// has taken them.
func TestEndlessSuccess(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, strings.Repeat("x", 1<<16)); err != nil {
				return
			}
		}
	}))
	defer server.Close()
	l := real(t, Spec{URL: server.URL})
	for range 3 {
		add(l, 1, "pool")
	}
	eventually(t, l, func(s HookStatus) bool { return s.Delivered == 3 && s.Failures == 0 })
	l.Stop()
}
