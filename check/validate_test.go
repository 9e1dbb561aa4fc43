package check

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// problems are what Validate has to say, as "path value".
func problems(t *testing.T, s Spec) []string {
	t.Helper()
	var list []string
	s.Validate(func(path, value, hint string) {
		if hint == "" || len(path)+len(value)+len(hint) > 3000 {
			t.Errorf("%s %q: hint %q", path, value, hint)
		}
		list = append(list, strings.TrimSpace(path+" "+value))
	})
	_, err := New(s)
	if (err == nil) != (len(list) == 0) {
		t.Errorf("New says %v, Validate %q", err, list)
	}
	return list
}

func TestValidate(t *testing.T) {
	long := strings.Repeat("x", MaxPayload+1)
	many := make([]string, maxCodes+1)
	for i := range many {
		many[i] = "200"
	}
	crowd := make(map[string]string)
	for i := range maxHeaders + 1 {
		crowd["X-"+strings.Repeat("a", i+1)] = ""
	}
	header := func(name, value string) Spec {
		return Spec{Type: "http", Headers: map[string]string{name: value}}
	}
	for _, tt := range []struct {
		name string
		spec Spec
		want string // the problems; "" for none
	}{
		{"nothing", Spec{}, ""},
		{"tcp", Spec{Type: "tcp", Send: "a", ExpectHex: "00 FF\tab"}, ""},
		{"tls", Spec{Type: "tls", ServerName: "db_1.example.com", CAFile: "/ca.pem"}, ""},
		{"tls of an address", Spec{Type: "tls", ServerName: "2001:db8::1"}, ""},
		{"http", Spec{Type: "http", Method: "HEAD", Path: "/a?b=c", Host: "www.example.com:8080", ExpectedCodes: []string{"2xx", "301"}, FollowRedirects: true}, ""},
		{"https", Spec{Type: "https", Host: "[2001:db8::1]:443", Insecure: true, ExpectedBody: "ok"}, ""},
		{"https of an address in brackets", Spec{Type: "https", Host: "[2001:db8::1]"}, ""},
		{"udp", Spec{Type: "udp", SendHex: "00", Expect: "x"}, ""},
		{"icmp", Spec{Type: "icmp"}, ""},
		{"dns", Spec{Type: "dns", Question: "_srv._tcp.example.com.", RecordType: "SRV", ExpectedRcode: "NXDOMAIN"}, ""},
		{"dns of the root", Spec{Type: "dns", Question: ".", RecordType: "SOA"}, ""},
		{"presets", Spec{Type: "postgres"}, ""},

		{"unknown type", Spec{Type: "gopher", Path: "/"}, "type gopher"},
		{"type in capitals", Spec{Type: "TCP"}, "type TCP"},
		{"fields of other types", Spec{Type: "tcp", Path: "/", Insecure: true, Question: "x", Headers: map[string]string{"Authorization": "geheim"}},
			"insecure true|path /|headers|question x"},
		{"payload of http", Spec{Type: "http", Send: "a", ServerName: "x"}, "server_name x|send a"},
		{"payload of a preset", Spec{Type: "smtp", Expect: "a"}, "expect a"},

		{"server name with a port", Spec{Type: "tls", ServerName: "db.example.com:5432"}, "server_name db.example.com:5432"},
		{"server name with a wildcard", Spec{Type: "tls", ServerName: "*.example.com"}, "server_name *.example.com"},
		{"insecure with authorities", Spec{Type: "tls", CAFile: "/ca.pem", Insecure: true}, "ca_file /ca.pem"},
		{"authorities that are none", Spec{Type: "tls", CAFile: "/ca.pem", CA: "x"}, "ca_file /ca.pem"},

		{"method", Spec{Type: "http", Method: "POST"}, "method POST"},
		{"method in small letters", Spec{Type: "http", Method: "get"}, "method get"},
		{"path without its slash", Spec{Type: "http", Path: "health"}, "path health"},
		{"path with a space", Spec{Type: "http", Path: "/a b"}, "path /a b"},
		{"path with a line", Spec{Type: "http", Path: "/a\r\nX: y"}, "path /a\r\nX: y"},
		{"path with a fragment", Spec{Type: "http", Path: "/a#b"}, "path /a#b"},
		{"host is a URL", Spec{Type: "http", Host: "http://x/"}, "host http://x/"},
		{"host with a line", Spec{Type: "http", Host: "x\r\nA: b"}, "host x\r\nA: b"},
		{"host with an odd port", Spec{Type: "http", Host: "x:0"}, "host x:0"},
		{"host is a bare IPv6 address", Spec{Type: "http", Host: "2001:db8::1"}, "host 2001:db8::1"},
		{"codes", Spec{Type: "http", ExpectedCodes: []string{"2xx", "99"}}, "expected_codes 2xx 99"},
		{"many codes", Spec{Type: "http", ExpectedCodes: many}, "expected_codes " + strings.Join(many, " ")},
		{"a body of HEAD", Spec{Type: "http", Method: "HEAD", ExpectedBody: "x"}, "expected_body x"},
		{"a long body", Spec{Type: "http", ExpectedBody: long}, "expected_body " + plain(long)},

		{"header", header("X-Key", "geheim"), ""},
		{"header's name", header("X Key", "geheim"), "headers.X Key"},
		{"header without a name", header("", "geheim"), "headers."},
		{"header's value", header("X-Key", "geheim\r\nX: y"), "headers.X-Key"},
		{"header's long value", header("X-Key", strings.Repeat("x", maxHeader+1)), "headers.X-Key"},
		{"header Host", header("host", "geheim"), "headers.host"},
		{"header Content-Length", header("content-LENGTH", "5"), "headers.content-LENGTH"},
		{"header twice", Spec{Type: "http", Headers: map[string]string{"x-key": "a", "X-Key": "b"}}, "headers."},
		{"many headers", Spec{Type: "http", Headers: crowd}, "headers"},

		{"text and digits", Spec{Send: "a", SendHex: "00"}, "send_hex 00"},
		{"odd digits", Spec{Type: "udp", ExpectHex: "0"}, "expect_hex 0"},
		{"no digits", Spec{Type: "udp", ExpectHex: "0g"}, "expect_hex 0g"},
		{"spaces for digits", Spec{Type: "udp", SendHex: "  "}, "send_hex"},
		{"too much to send", Spec{Send: long}, "send " + plain(long)},
		{"too many digits", Spec{SendHex: strings.Repeat("00", MaxPayload+1)}, "send_hex " + plain(strings.Repeat("00", MaxPayload+1))},
		{"text that is none", Spec{Expect: "\xff"}, "expect ?"},

		{"no question", Spec{Type: "dns"}, "question"},
		{"a long question", Spec{Type: "dns", Question: strings.Repeat("a", 64) + ".com"}, "question " + strings.Repeat("a", 64) + ".com"},
		{"a question with a space", Spec{Type: "dns", Question: "a b"}, "question a b"},
		{"record type", Spec{Type: "dns", Question: "x", RecordType: "a"}, "record_type a"},
		{"a transfer", Spec{Type: "dns", Question: "x", RecordType: "AXFR"}, "record_type AXFR"},
		{"rcode", Spec{Type: "dns", Question: "x", ExpectedRcode: "OK"}, "expected_rcode OK"},
		{"extended rcode", Spec{Type: "dns", Question: "x", ExpectedRcode: "BADVERS"}, "expected_rcode BADVERS"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := strings.Join(problems(t, tt.spec), "|")
			if tt.name == "header twice" && len(got) > len(tt.want) {
				got = got[:len(tt.want)] // whichever comes second
			}
			if got != tt.want {
				t.Errorf("problems = %q, want %q", got, tt.want)
			}
		})
	}
}

// filled has every field set.
func filled() Spec {
	return Spec{
		ServerName: "a", CAFile: "/b", CA: "c", Insecure: true, Method: "GET", Path: "/d", Host: "e",
		Headers: map[string]string{"F": "geheim"}, ExpectedCodes: []string{"200"}, ExpectedBody: "h", FollowRedirects: true,
		Send: "i", SendHex: "00", Expect: "k", ExpectHex: "01", Question: "m", RecordType: "A", ExpectedRcode: "NOERROR",
	}
}

// Every field is refused by every type that the comment does not name.
func TestFieldsOfOtherTypes(t *testing.T) {
	of := map[string][]string{
		"tcp": {"send", "send_hex", "expect", "expect_hex"}, "udp": {"send", "send_hex", "expect", "expect_hex"},
		"tls":   {"server_name", "ca_file", "ca", "insecure"},
		"http":  {"method", "path", "host", "headers", "expected_codes", "expected_body", "follow_redirects"},
		"https": {"server_name", "ca_file", "ca", "insecure", "method", "path", "host", "headers", "expected_codes", "expected_body", "follow_redirects"},
		"dns":   {"question", "record_type", "expected_rcode"},
		"icmp":  nil, "postgres": nil, "smtp": nil, "redis": nil,
	}
	for _, kind := range Types() {
		s := filled()
		s.Type = kind
		var refused []string
		s.Validate(func(path, value, hint string) {
			if strings.Contains(value+hint, "geheim") {
				t.Errorf("%s: %q %q shows a secret", path, value, hint)
			}
			if strings.Contains(hint, "has none") {
				refused = append(refused, path)
			}
		})
		all := s.fields()
		if len(all) != 18 {
			t.Fatalf("%d fields", len(all))
		}
		for _, f := range all {
			if !f.set {
				t.Errorf("%s is not set", f.key)
			}
			if slices.Contains(refused, f.key) == slices.Contains(of[kind], f.key) {
				t.Errorf("type %s, field %s: refused %v", kind, f.key, slices.Contains(refused, f.key))
			}
		}
	}
}

func TestKeyAndEqual(t *testing.T) {
	changes := []func(*Spec){
		func(s *Spec) {}, func(s *Spec) { s.Type = "udp" }, func(s *Spec) { s.ServerName = "z" }, func(s *Spec) { s.CAFile = "z" },
		func(s *Spec) { s.CA = "z" }, func(s *Spec) { s.Insecure = false }, func(s *Spec) { s.Method = "HEAD" },
		func(s *Spec) { s.Path = "z" }, func(s *Spec) { s.Host = "z" }, func(s *Spec) { s.Headers = map[string]string{"F": "z"} },
		func(s *Spec) { s.Headers = nil }, func(s *Spec) { s.ExpectedCodes = []string{"200", "201"} }, func(s *Spec) { s.ExpectedCodes = nil },
		func(s *Spec) { s.ExpectedBody = "z" }, func(s *Spec) { s.FollowRedirects = false }, func(s *Spec) { s.Send = "z" },
		func(s *Spec) { s.SendHex = "z" }, func(s *Spec) { s.Expect = "z" }, func(s *Spec) { s.ExpectHex = "z" },
		func(s *Spec) { s.Question = "z" }, func(s *Spec) { s.RecordType = "z" }, func(s *Spec) { s.ExpectedRcode = "z" },
	}
	for i, change := range changes {
		for j, other := range changes {
			a, b := filled(), filled()
			change(&a)
			other(&b)
			if a.Equal(b) != (i == j) || (a.Key() == b.Key()) != (i == j) {
				t.Errorf("changes %d and %d: equal %v, keys %s %s", i, j, a.Equal(b), a.Key(), b.Key())
			}
		}
	}
	empty := Spec{Headers: map[string]string{}, ExpectedCodes: []string{}}
	if !empty.Equal(Spec{}) || empty.Key() != (Spec{}).Key() {
		t.Error("an empty list is not as none")
	}
}

// A Spec crosses the wire whole, but for the path of a file of the edge's.
func TestJSON(t *testing.T) {
	text, err := json.Marshal(filled())
	if err != nil {
		t.Fatal(err)
	}
	var got Spec
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	want := filled()
	want.CAFile = ""
	if !got.Equal(want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if text, _ := json.Marshal(Spec{Type: "tcp"}); string(text) != `{"type":"tcp"}` {
		t.Errorf("a plain check is %s", text)
	}
}
