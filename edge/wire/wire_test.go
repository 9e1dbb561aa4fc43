package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// A message crosses whole, and what a later release adds to it is left out.
func TestMessagesCross(t *testing.T) {
	now := time.Date(2026, 7, 1, 12, 0, 0, 123456789, time.UTC)
	edge := newEdge(t, "fra1.example.net:51820", "[2001:db8::1]:51820")
	tests := []any{
		EnrollRequest{PublicKey: edge.PublicKey, Name: "berlin-1", Hostname: "db7", Version: "1.2.3", Time: now},
		EnrollAnswer{Name: "berlin-1", Network: "berlin", Ephemeral: true, Edges: []Edge{edge}, Time: now},
		SyncRequest{Revision: 1<<64 - 1, Report: Report{
			Version: "1.2.3", Hostname: "db7", Time: now, Started: now,
			Load:   Load{TCPFlows: 1, UDPFlows: 2, CPUs: 3, Load1: 0.25, Memory: 1 << 40, Dropped: 5, Failed: 6},
			Errors: []OriginError{{Destination: "tcp/10.0.0.10:5432", Result: "refused", Error: "connection refused", Count: 7, Last: now}},
		}},
		SyncAnswer{Revision: 1, Time: now, Grant: Grant{
			Name: "berlin-1", Network: "berlin", Edges: []Edge{edge}, MaxTCPFlows: 8, MaxUDPFlows: 9, Drain: true, Rotate: true,
			Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("2001:db8::/32")},
		}},
		KeyRequest{PublicKey: edge.PublicKey},
		Refusal{Code: CodeSpent, Message: "the token was used"},
	}
	for _, message := range tests {
		t.Run(reflect.TypeOf(message).Name(), func(t *testing.T) {
			text, err := json.Marshal(message)
			if err != nil {
				t.Fatal(err)
			}
			newer := append([]byte(`{"of_a_later_release":{"a":[1,null]},`), text[1:]...)
			for _, body := range [][]byte{text, newer, append([]byte(" \r\n\t"), append(bytes.Clone(text), "\n "...)...)} {
				got := reflect.New(reflect.TypeOf(message))
				if err := Decode(iotest.OneByteReader(bytes.NewReader(body)), got.Interface()); err != nil {
					t.Fatalf("Decode(%s) fails with %v", body, err)
				}
				if !reflect.DeepEqual(got.Elem().Interface(), message) {
					t.Errorf("%s became %+v", body, got.Elem())
				}
			}
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	const secret = "hunter2hunter2"
	tests := []struct{ name, body, err string }{
		{"nothing", "", "it is empty"},
		{"space", " \n", "it is empty"},
		{"cut short", `{"revision":1`, "it is no JSON at byte 13: unexpected end of JSON input"},
		{"no JSON", secret, "it is no JSON at byte 1"},
		{"more behind", `{}{}`, "it is no JSON at byte 3"},
		{"a byte behind", `{} x`, "it is no JSON at byte 4"},
		{"null", ` null `, "it is no JSON object"},
		{"an array", `["` + secret + `"]`, "it is no JSON object but a JSON array"},
		{"a string", `"` + secret + `"`, "it is no JSON object but a JSON string"},
		{"a number", `77`, "it is no JSON object but a JSON number"},
		{"a field of another type", `{"revision":"` + secret + `"}`, `field "revision" cannot be such a JSON string`},
		{"a field deep inside", `{"report":{"load":{"cpus":true}}}`, `field "report.load.cpus" cannot be such a JSON bool`},
		{"a negative number", `{"revision":-77}`, `field "revision" cannot be such a JSON number`},
		{"a number that is too large", `{"revision":` + strings.Repeat("7", 1000) + `}`, `field "revision" cannot be such a JSON number`},
		{"a float", `{"revision":7.7}`, `field "revision" cannot be such a JSON number`},
		{"a time that is none", `{"report":{"time":"` + secret + `"}}`, "a time or a prefix in it is none"},
		{"too long", `{"report":{"hostname":"` + strings.Repeat("a", MaxBody) + `"}}`, "it is longer than 262144 bytes"},
		{"too long by a byte", `{}` + strings.Repeat(" ", MaxBody-1), "it is longer than 262144 bytes"},
		{"too deep", strings.Repeat(`{"report":`, 20_000), "exceeded max depth"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := Decode(strings.NewReader(tt.body), new(SyncRequest))
			if err == nil || !strings.HasPrefix(err.Error(), "reading a message: ") || !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("Decode fails with %v, want %q", err, tt.err)
			}
			if strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "77") || len(err.Error()) > 150 {
				t.Errorf("the error holds a value of the message: %v", err)
			}
		})
	}
}

func TestDecodeKeysAndPrefixes(t *testing.T) {
	const secret = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBm" // a private key, cut short
	tests := []struct{ name, body, err string }{
		{"short", `{"public_key":"` + secret + `"}`, "reading a public key: want 44 characters of base64"},
		{"long", `{"public_key":"` + strings.Repeat("A", 100) + `"}`, "reading a public key: want"},
		{"empty", `{"public_key":""}`, "reading a public key: want"},
		{"a number", `{"public_key":1}`, "cannot be such a JSON number"},
		{"an object", `{"public_key":{}}`, "cannot be such a JSON object"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := Decode(strings.NewReader(tt.body), new(KeyRequest))
			if err == nil || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), secret) {
				t.Errorf("Decode fails with %v, want %q", err, tt.err)
			}
		})
	}
	for _, route := range []string{"10.0.0.0", "10.0.0.0/33", "x", "fe80::1%eth0/64"} {
		err := Decode(strings.NewReader(`{"grant":{"routes":["`+route+`"]}}`), new(SyncAnswer))
		if err == nil || !strings.Contains(err.Error(), "a time or a prefix in it is none") {
			t.Errorf("the route %q: %v", route, err)
		}
	}
}

// A message of exactly MaxBody bytes is read, and of an endless one no more
// than a byte beyond.
func TestDecodeIsBounded(t *testing.T) {
	whole := `{}` + strings.Repeat(" ", MaxBody-2)
	if err := Decode(strings.NewReader(whole), new(KeyRequest)); err != nil {
		t.Errorf("%d bytes: %v", len(whole), err)
	}
	endless := &counter{Reader: io.MultiReader(strings.NewReader(whole), strings.NewReader(strings.Repeat(" ", 10*MaxBody)))}
	if err := Decode(endless, new(KeyRequest)); err == nil || endless.n > MaxBody+1 {
		t.Errorf("Decode read %d bytes and says %v", endless.n, err)
	}
}

type counter struct {
	io.Reader
	n int
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += n
	return n, err
}

func TestDecodePassesReadErrorsOn(t *testing.T) {
	broken := errors.New("the connection broke")
	for _, before := range []string{"", `{"revision":1`, `{}`} {
		err := Decode(io.MultiReader(strings.NewReader(before), iotest.ErrReader(broken)), new(SyncRequest))
		if !errors.Is(err, broken) {
			t.Errorf("after %q: %v", before, err)
		}
	}
}

func TestRefusalFinal(t *testing.T) {
	tests := map[Code]bool{
		CodeSpent: true, CodeExpired: true, CodeRevoked: true, CodeKnownKey: true, CodeNotAllowed: true,
		CodeBadRequest: true, CodeUnknown: true, CodeVersion: true,
		CodeBusy: false, CodeUnavailable: false,
		"of_a_later_release": false, "": false,
	}
	for code, want := range tests {
		if got := Refuse(code, "no").Final(); got != want {
			t.Errorf("Final of %q = %v, want %v", code, got, want)
		}
	}
}

func TestRefusalIsAnError(t *testing.T) {
	var refusal *Refusal
	if err := error(Refuse(CodeRevoked, "%q was revoked", "berlin-1")); !errors.As(err, &refusal) || err.Error() != `"berlin-1" was revoked` {
		t.Errorf("error = %v", err)
	}
	if err := (&Refusal{Code: "x"}); err.Error() != `the edge refused with code "x" and gave no reason` {
		t.Errorf("without a message: %v", err)
	}
}

// The ports, paths and codes are the protocol: a connector of one release
// speaks them to an edge of another.
func TestProtocolConstants(t *testing.T) {
	if EnrollPort != 7801 || ControlPort != 7802 || PathEnroll != "/v1/enroll" || PathSync != "/v1/sync" || PathKey != "/v1/key" {
		t.Error("the protocol's address has changed: that is a new Version")
	}
}
