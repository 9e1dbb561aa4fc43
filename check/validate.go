package check

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/miekg/dns"
)

// Bounds of a Spec.
const (
	MaxPayload = 1024     // bytes of what is sent, or expected
	MaxCA      = 64 << 10 // bytes of a CA file
	maxHeaders = 32
	maxHeader  = 4096 // bytes of a header's value
	maxName    = 255  // bytes of a host or a name
)

var (
	ofTLS  = []string{TypeTLS, TypeHTTPS}
	ofHTTP = []string{TypeHTTP, TypeHTTPS}
	ofRaw  = []string{TypeTCP, TypeUDP}
	ofDNS  = []string{TypeDNS}
)

// methods are those that a check may use: they change nothing and have no body.
var methods = []string{http.MethodGet, http.MethodHead, http.MethodOptions}

// field is a key of a Spec that only some types have.
type field struct {
	key   string
	set   bool
	value string // to show
	of    []string
}

func (s *Spec) fields() []field {
	text := func(key, value string, of []string) field { return field{key, value != "", value, of} }
	flag := func(key string, value bool, of []string) field { return field{key, value, "true", of} }
	return []field{
		text("server_name", s.ServerName, ofTLS),
		text("ca_file", s.CAFile, ofTLS),
		{"ca", s.CA != "", "", ofTLS},
		flag("insecure", s.Insecure, ofTLS),
		text("method", s.Method, ofHTTP),
		text("path", s.Path, ofHTTP),
		text("host", s.Host, ofHTTP),
		{"headers", len(s.Headers) > 0, "", ofHTTP},
		{"expected_codes", len(s.ExpectedCodes) > 0, strings.Join(s.ExpectedCodes, " "), ofHTTP},
		text("expected_body", s.ExpectedBody, ofHTTP),
		flag("follow_redirects", s.FollowRedirects, ofHTTP),
		text("send", s.Send, ofRaw),
		text("send_hex", s.SendHex, ofRaw),
		text("expect", s.Expect, ofRaw),
		text("expect_hex", s.ExpectHex, ofRaw),
		text("question", s.Question, ofDNS),
		text("record_type", s.RecordType, ofDNS),
		text("expected_rcode", s.ExpectedRcode, ofDNS),
	}
}

// WithDefaults returns s with the empty fields of its type filled in, but for
// those whose default depends on the endpoint.
func (s Spec) WithDefaults() Spec {
	or := func(value *string, otherwise string) {
		if *value == "" {
			*value = otherwise
		}
	}
	or(&s.Type, TypeTCP)
	switch s.Type {
	case TypeHTTP, TypeHTTPS:
		or(&s.Method, http.MethodGet)
		or(&s.Path, "/")
		if len(s.ExpectedCodes) == 0 {
			s.ExpectedCodes = []string{"2xx"}
		}
		if s.Type == TypeHTTPS {
			or(&s.ServerName, hostName(s.Host))
		}
	case TypeDNS:
		or(&s.RecordType, "A")
		or(&s.ExpectedRcode, "NOERROR")
	}
	return s
}

// hostName is a Host header without its port.
func hostName(host string) string {
	return (&url.URL{Host: host}).Hostname()
}

// Validate calls report for every problem of the check, with the defaults
// filled in. path is the key that is wrong, value what it holds, which is
// never a secret, hint what to do.
func (s Spec) Validate(report func(path, value, hint string)) {
	s = s.WithDefaults()
	if !slices.Contains(Types(), s.Type) {
		report("type", s.Type, "use one of: "+strings.Join(Types(), " "))
		return
	}
	for _, f := range s.fields() {
		if f.set && !slices.Contains(f.of, s.Type) {
			report(f.key, f.value, fmt.Sprintf("a check of type %s has none; remove it, or use type %s", s.Type, strings.Join(f.of, " or ")))
		}
	}
	switch s.Type {
	case TypeTLS, TypeHTTPS:
		s.validateTLS(report)
	case TypeTCP, TypeUDP:
		s.validatePayload("send", s.Send, s.SendHex, report)
		s.validatePayload("expect", s.Expect, s.ExpectHex, report)
	case TypeDNS:
		s.validateDNS(report)
	}
	if s.Type == TypeHTTP || s.Type == TypeHTTPS {
		s.validateHTTP(report)
		s.validateHeaders(report)
	}
}

func (s Spec) validateTLS(report func(path, value, hint string)) {
	if s.ServerName != "" && !isHost(s.ServerName) {
		key := "server_name"
		if s.ServerName == hostName(s.Host) {
			key = "host"
		}
		report(key, s.ServerName, `write a host name or an address without a port, as in "db.example.com"`)
	}
	if s.Insecure && (s.CAFile != "" || s.CA != "") {
		report("ca_file", s.CAFile, "insecure trusts any certificate; keep one of the two")
	}
	if _, err := authorities(s.CA); err != nil {
		report("ca_file", s.CAFile, "it holds no certificate; write them in PEM form, with BEGIN CERTIFICATE")
	}
	if len(s.CA) > MaxCA {
		report("ca_file", s.CAFile, fmt.Sprintf("keep it below %d KiB: only the authorities of these endpoints", MaxCA>>10))
	}
}

func (s Spec) validateHTTP(report func(path, value, hint string)) {
	if !slices.Contains(methods, s.Method) {
		report("method", s.Method, "use one of: "+strings.Join(methods, " "))
	}
	if _, err := url.ParseRequestURI(s.Path); err != nil || !validTarget(s.Path) {
		report("path", s.Path, fmt.Sprintf(`write a path of at most %d bytes that begins with "/", and spaces as %%20`, maxTarget))
	}
	if s.Host != "" && !isHostPort(s.Host) {
		report("host", s.Host, `write a host name, with a port where it is wanted, as in "www.example.com"`)
	}
	if _, err := parseCodes(s.ExpectedCodes); err != nil {
		report("expected_codes", strings.Join(s.ExpectedCodes, " "), err.Error())
	}
	switch {
	case s.ExpectedBody == "":
	case s.Method == http.MethodHead:
		report("expected_body", s.ExpectedBody, "the answer to HEAD has no body; use GET")
	case len(s.ExpectedBody) > MaxPayload || !utf8.ValidString(s.ExpectedBody):
		report("expected_body", plain(s.ExpectedBody), fmt.Sprintf("write a text of at most %d bytes", MaxPayload))
	}
}

// notHeaders are those that the request itself writes.
var notHeaders = []string{"Host", "Connection", "Content-Length", "Transfer-Encoding", "Trailer", "Upgrade", "Te", "Expect"}

func (s Spec) validateHeaders(report func(path, value, hint string)) {
	if len(s.Headers) > maxHeaders {
		report("headers", "", fmt.Sprintf("at most %d headers", maxHeaders))
	}
	seen := make(map[string]bool, len(s.Headers))
	for name, value := range s.Headers {
		canonical := http.CanonicalHeaderKey(name)
		key := "headers." + plain(name)
		switch {
		case !isToken(name) || len(name) > maxName:
			report(key, "", `write the header's name, as in "Authorization"`)
		case canonical == "Host":
			report(key, "", "use host instead")
		case slices.Contains(notHeaders, canonical):
			report(key, "", "a check sets it itself; remove it")
		case !isHeaderValue(value) || len(value) > maxHeader || !utf8.ValidString(value):
			report(key, "", fmt.Sprintf("write a value of at most %d bytes without control characters", maxHeader))
		case seen[canonical]:
			report(key, "", "it is there twice, written differently; remove one")
		}
		seen[canonical] = true
	}
}

func (s Spec) validatePayload(key, text, digits string, report func(path, value, hint string)) {
	switch {
	case text != "" && digits != "":
		report(key+"_hex", digits, "it is also written as text, in "+key+"; keep one of the two")
	case len(text) > MaxPayload || !utf8.ValidString(text):
		report(key, plain(text), fmt.Sprintf("write a text of at most %d bytes; for other bytes use %s_hex", MaxPayload, key))
	case digits != "":
		if b, err := payload("", digits); err != nil || len(b) > MaxPayload || len(b) == 0 {
			report(key+"_hex", plain(digits), fmt.Sprintf(`write 1 to %d bytes as pairs of hexadecimal digits, as in "00 ff 7f"`, MaxPayload))
		}
	}
}

func (s Spec) validateDNS(report func(path, value, hint string)) {
	if _, ok := dns.IsDomainName(s.Question); !ok || len(s.Question) > maxName || strings.ContainsFunc(s.Question, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		report("question", plain(s.Question), `write the name to ask for, as in "www.example.com"`)
	}
	if _, ok := recordTypes()[s.RecordType]; !ok {
		report("record_type", s.RecordType, `write a record type in capitals, as in "A", "AAAA" or "SOA"`)
	}
	if _, ok := rcodes()[s.ExpectedRcode]; !ok {
		report("expected_rcode", s.ExpectedRcode, `write a response code in capitals, as in "NOERROR", "NXDOMAIN" or "REFUSED"`)
	}
}

// isToken reports whether s can be a header's name (RFC 9110 §5.6.2).
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return s != ""
}

// isHeaderValue reports whether s can be a header's value (RFC 9110 §5.5).
func isHeaderValue(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' && s[i] != '\t' || s[i] == 0x7f {
			return false
		}
	}
	return strings.TrimSpace(s) == s
}

// payload is text, or what the hexadecimal digits say.
func payload(text, digits string) ([]byte, error) {
	if digits == "" {
		return []byte(text), nil
	}
	return hex.DecodeString(strings.Join(strings.Fields(digits), ""))
}

func isHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	if s == "" || len(s) > maxName || s[0] == '-' || s[0] == '.' || strings.Contains(s, "..") {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_'
	})
}

// isHostPort reports whether s can be a Host header: a host, in brackets where
// it is an IPv6 address, and perhaps a port.
func isHostPort(s string) bool {
	host := s
	if h, port, err := net.SplitHostPort(s); err == nil {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return false
		}
		host = h
		if strings.Contains(h, ":") && s[0] != '[' {
			return false
		}
	} else if inner, ok := strings.CutPrefix(s, "["); ok {
		if host, ok = strings.CutSuffix(inner, "]"); !ok {
			return false
		}
	} else if strings.Contains(s, ":") {
		return false
	}
	return isHost(host)
}

// Load returns s with the file that CAFile names read into CA, which is what a
// check trusts.
func (s Spec) Load() (Spec, error) {
	if s.CAFile == "" {
		return s, nil
	}
	info, err := os.Stat(s.CAFile)
	if err != nil {
		return s, fmt.Errorf("reading the ca_file: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > MaxCA {
		return s, fmt.Errorf("reading the ca_file %q: not a file of at most %d KiB", s.CAFile, MaxCA>>10)
	}
	text, err := os.ReadFile(s.CAFile)
	if err != nil {
		return s, fmt.Errorf("reading the ca_file: %w", err)
	}
	if _, err := authorities(string(text)); err != nil || len(text) == 0 {
		return s, fmt.Errorf("reading the ca_file %q: %w", s.CAFile, errors.New("no certificate in PEM form"))
	}
	s.CA = string(text)
	return s, nil
}
