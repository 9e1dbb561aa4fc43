package admin

import (
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/warrenmesh/warren/edge/admin/client"
)

// What is accepted is whole and makes sense; what is not has a code and a
// reason.
func FuzzDecodeProbe(f *testing.F) {
	for _, seed := range []string{
		``, ` `, `{}`, `{"network":"berlin","address":"10.0.0.10:5432"}`, `{"network":"b","address":"[2001:db8::1]:53","proto":"udp"}`,
		`{"network":"b","address":"10.0.0.1:0"}`, `{"network":1}`, `{"x":1}`, `null`, `[]`, `{}{}`, `{"network":"b","network":"c"}`,
		`{"address":"[fe80::1%lo]:1","network":"b"}`, "\xff", `{"network":"\ud800","address":"[::ffff:1.2.3.4]:1"}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		r, err := decode[client.ProbeRequest](strings.NewReader(body))
		if err != nil {
			var e *client.Error
			if !errors.As(err, &e) || e.Code != client.CodeBadRequest || e.Message == "" {
				t.Fatalf("error = %#v", err)
			}
			return
		}
		if strings.Trim(body, " \t\r\n") != "" && !json.Valid([]byte(body)) {
			t.Fatalf("accepted %q, which is not JSON", body)
		}
		proto, addr, err := r.Check()
		if err != nil {
			return
		}
		if proto != "tcp" && proto != "udp" || !addr.IsValid() || addr.Port() == 0 || addr.Addr().Is4In6() ||
			addr.Addr().Zone() != "" || r.Network == "" {
			t.Fatalf("accepted %q as %s %v in %q", body, proto, addr, r.Network)
		}
	})
}

func FuzzDecodeToken(f *testing.F) {
	for _, seed := range []string{
		``, `{}`, `{"network":"berlin","routes":["10.0.0.0/16"]}`, `{"network":"b","routes":["2001:db8::/32","0.0.0.0/0"],"ttl_ms":60000,"ephemeral":true}`,
		`{"network":"b","routes":["10.0.0.1/16"]}`, `{"network":"b","routes":["::ffff:10.0.0.0/104"]}`, `{"network":"b","routes":["fe80::%a/10"]}`,
		`{"network":"b","routes":["10.0.0.0/8"],"ttl_ms":1e3}`, `{"network":"b","routes":["10.0.0.0/8"],"ttl_ms":-9223372036854775808}`,
		`{"network":"b","routes":["10.0.0.0/8"],"edges":[{"public_key":"k","urls":["a:1"]}]}`, `{"routes":null}`, `{"routes":[null]}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		r, err := decode[client.TokenRequest](strings.NewReader(body))
		if err != nil {
			return
		}
		checked, routes, err := r.Check()
		if err != nil {
			return
		}
		if checked.TTLMillis < client.MinTokenTTL.Milliseconds() || checked.TTLMillis > client.MaxTokenTTL.Milliseconds() ||
			checked.Network == "" || len(routes) == 0 || len(routes) != len(checked.Routes) || checked.Ephemeral && !checked.Reusable {
			t.Fatalf("accepted %q as %+v", body, checked)
		}
		for i, p := range routes {
			if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() || p.Addr().Zone() != "" {
				t.Fatalf("accepted route %q as %v", checked.Routes[i], p)
			}
		}
	})
}

func FuzzParseFlowQuery(f *testing.F) {
	for _, seed := range []string{"", "app=db", "limit=10000", "limit=10001", "limit=-1", "app=a&app=b", "network=%00", "x=y", "limit=1e3", "%zz"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, query string) {
		values, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		q, err := parseFlowQuery(values)
		if err != nil {
			return
		}
		if q.Limit < 1 || q.Limit > client.MaxFlows {
			t.Fatalf("accepted %q with limit %d", query, q.Limit)
		}
		if q.App != values.Get("app") || q.Network != values.Get("network") || q.Connector != values.Get("connector") {
			t.Fatalf("%q became %+v", query, q)
		}
	})
}
