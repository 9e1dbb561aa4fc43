package enroll

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/warrenmesh/warren/edge/wire"
)

// fuzzed is a world with one connector, and a handler for each port.
func fuzzed(t testing.TB) (w *world, request func(p port, from netip.Addr, method, path, body string) (int, []byte)) {
	w = newWorld(t)
	work := newFakeWork()
	work.assigned["web"] = wire.WorkAnswer{Revision: 7, Work: wire.Work{
		Specs: []wire.WorkSpec{{Check: json.RawMessage(`{}`)}}, Checks: []wire.Check{{ID: 1, Addr: netip.MustParseAddrPort("10.0.0.1:80")}}, Names: []wire.Name{{Host: "db"}},
	}}
	w.work = work
	w.restart()
	gone, cancel := context.WithCancel(t.Context())
	cancel() // nobody waits for a held sync
	return w, func(p port, from netip.Addr, method, path, body string) (int, []byte) {
		req := httptest.NewRequestWithContext(gone, "POST", "/", strings.NewReader(body))
		req.Method, req.URL.Path = method, path
		req.RemoteAddr = netip.AddrPortFrom(from, 40000).String()
		recorder := httptest.NewRecorder()
		(&handler{registry: w.Registry, port: p, stopping: context.Background()}).ServeHTTP(recorder, req)
		return recorder.Code, recorder.Body.Bytes()
	}
}

// wantAnswer wants JSON: an answer, or a refusal with a code.
func wantAnswer(t *testing.T, status int, body []byte) {
	t.Helper()
	var refusal wire.Refusal
	if err := json.Unmarshal(body, &refusal); err != nil {
		t.Fatalf("answered %d %q: %v", status, body, err)
	}
	if (status == http.StatusOK) != (refusal.Code == "") || status >= 500 && refusal.Code != wire.CodeUnavailable || !utf8.ValidString(refusal.Message) {
		t.Fatalf("answered %d %q", status, body)
	}
}

func FuzzEnrol(f *testing.F) {
	f.Add("POST", wire.PathEnroll, fmt.Sprintf(`{"public_key":%q,"name":"web","hostname":"db7","version":"1","time":"2026-11-22T05:13:02Z"}`, wire.Key{Key: newKey()}))
	f.Add("POST", wire.PathEnroll, `{"public_key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","x":[{}]}`)
	f.Add("POST", wire.PathEnroll, `{"hostname":"\u0000\ud800","name":"`+strings.Repeat("a", 100)+`"}`)
	f.Add("GET", "/v2/enroll", "")
	f.Add("POST", "/v99999999999999999999/", "{}")
	f.Fuzz(func(t *testing.T, method, path, body string) {
		w, request := fuzzed(t)
		_, token := w.token(reusable)
		status, answer := request(w.enrollPort(), overlayOf(joiner(token, 0)), method, path, body)
		wantAnswer(t, status, answer)
		if n := len(w.Connectors()); n != 0 != (status == http.StatusOK) {
			t.Errorf("answered %d %q, and there are %d connectors", status, answer, n)
		}
		w.check()
		w.restart()
		w.check()
	})
}

func FuzzControl(f *testing.F) {
	f.Add("POST", wire.PathSync, `{"revision":7,"report":{"version":"1","hostname":"db7","time":"2026-11-22T05:13:02Z","load":{"tcp_flows":3,"load1":0.5},"errors":[{"destination":"tcp/10.0.0.1:80","result":"refused","count":3}]}}`)
	f.Add("POST", wire.PathSync, `{"report":{"time":"0000-01-01T00:00:00-23:59","started":"9999-12-31T23:59:59-23:59","load":{"tcp_flows":-3,"load1":1e308}}}`)
	f.Add("POST", wire.PathKey, fmt.Sprintf(`{"public_key":%q}`, wire.Key{Key: newKey()}))
	f.Add("POST", wire.PathKey, `{}`)
	f.Add("POST", wire.PathWork, `{"revision":0,"results":[{"id":1}],"names":[{"host":"db"}]}`)
	f.Add("POST", wire.PathWork, `{"revision":7,"results":[{"id":1,"error":"\u0000","class":"refused"},{"id":2}],"names":[{"host":"db","addrs":["10.0.0.1","fe80::1%x"]},{"host":""}]}`)
	f.Add("PUT", "/v1/", "\x00")
	f.Fuzz(func(t *testing.T, method, path, body string) {
		w, request := fuzzed(t)
		_, token := w.token()
		_, key := w.enrolled(token, "web")
		w.reassign()
		for range 2 { // the second finds the connector as the first has left it
			status, answer := request(w.controlPort(), overlayOf(key), method, path, body)
			wantAnswer(t, status, answer)
		}
		w.check()
		if _, err := json.Marshal(w.Connectors()); err != nil {
			t.Errorf("what it reported cannot be shown: %v", err)
		}
		r := w.connector("web").Report
		if len(r.Version) > wire.MaxName || len(r.Hostname) > wire.MaxName || len(r.Errors) > wire.MaxOriginErrors {
			t.Errorf("kept %+v", r)
		}
		w.restart()
		w.check()
	})
}

func FuzzImport(f *testing.F) {
	w := newWorld(f)
	created, _ := w.token(func(r *TokenRequest) {
		r.Edges = []wire.Edge{{PublicKey: wire.Key{Key: newKey()}, URLs: []string{"b.example.net:51820"}}}
	})
	body := decoded(f, created.Record)
	f.Add(created.Record, string(body[:len(body)-4]))
	f.Add(created.Text, `{"id":"0123456789abcdef","created":"9999-12-31T23:00:00-23:00","routes":[""]}`)
	f.Add("wrntr1_", "{}")
	f.Fuzz(func(t *testing.T, text, body string) {
		if body != "" {
			text = sealRecord([]byte(body))
		}
		rec, err := readRecord(text)
		if err != nil {
			if body := strings.TrimPrefix(text, recordPrefix); len(body) > 30 && strings.Contains(err.Error(), body) {
				t.Errorf("the error repeats the record: %v", err)
			}
			return
		}
		again, err := readRecord(writeRecord(rec))
		if err != nil || again.ID != rec.ID || !slices.Equal(again.Bootstrap, rec.Bootstrap) || !slices.Equal(again.Routes, rec.Routes) {
			t.Errorf("read again: %+v, %v; want %+v", again, err, rec)
		}
		w := newWorld(t)
		w.self = rec.Edges[0].Key
		w.restart()
		_, _ = w.ImportToken(text)
		if _, err := json.Marshal(w.Tokens()); err != nil {
			t.Errorf("it cannot be shown: %v", err)
		}
		w.check()
		w.restart()
		w.check()
	})
}

func FuzzNames(f *testing.F) {
	f.Add("db7.example.com", 63)
	f.Add("ü\xff\x00", 2)
	f.Fuzz(func(t *testing.T, text string, limit int) {
		if name := nameOf(text); name != "" && checkName(name) != nil {
			t.Errorf("%q becomes the name %q: %v", text, name, checkName(name))
		}
		limit = min(max(limit, 0), 1000)
		if got := clean(text, limit); len(got) > limit || !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Errorf("%q is cleaned to %q", text, got)
		}
	})
}
