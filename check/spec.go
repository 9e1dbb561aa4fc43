package check

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
)

// The types of check.
const (
	TypeTCP      = "tcp"      // connects; sends and expects bytes where it is told to
	TypeTLS      = "tls"      // connects and completes a TLS handshake
	TypeHTTP     = "http"     // asks for a page
	TypeHTTPS    = "https"    // asks for a page over TLS
	TypeUDP      = "udp"      // sends a datagram
	TypeICMP     = "icmp"     // pings the address; the port means nothing
	TypeDNS      = "dns"      // asks a question over UDP
	TypePostgres = "postgres" // asks PostgreSQL whether it speaks TLS; either answer will do
	TypeSMTP     = "smtp"     // awaits the greeting of a mail server and says EHLO
	TypeRedis    = "redis"    // sends PING
)

// Types are the types of check in the order of documents.
func Types() []string {
	return []string{TypeTCP, TypeTLS, TypeHTTP, TypeHTTPS, TypeUDP, TypeICMP, TypeDNS, TypePostgres, TypeSMTP, TypeRedis}
}

// Spec says what one check does. Which field belongs to which type, its
// comment says; a field of another type must be empty. The JSON names are the
// keys of a monitor in an edge's configuration, too.
type Spec struct {
	// Type is the kind of check; empty is "tcp".
	Type string `json:"type,omitempty"`

	// ServerName is the name that the certificate must be for, and that is
	// asked for (SNI). Default: the host of Host for https, the endpoint's
	// address otherwise. Of tls and https.
	ServerName string `json:"server_name,omitempty"`
	// CAFile is a PEM file of the edge with the authorities that are trusted.
	// Default: those of the system that runs the check. Of tls and https.
	// Load reads it; it does not cross the wire.
	CAFile string `json:"-"`
	// CA is what CAFile holds, and what a check trusts. Of tls and https.
	CA string `json:"ca,omitempty"`
	// Insecure accepts any certificate. Of tls and https.
	Insecure bool `json:"insecure,omitempty"`

	// Method is GET (the default), HEAD or OPTIONS. Of http and https.
	Method string `json:"method,omitempty"`
	// Path is what is asked for, with its query. Default "/". Of http and
	// https.
	Path string `json:"path,omitempty"`
	// Host is the Host header. Default: the endpoint's address and port. Of
	// http and https.
	Host string `json:"host,omitempty"`
	// Headers are sent along. Their values are secrets: no error and no Key
	// shows them. Of http and https.
	Headers map[string]string `json:"headers,omitempty"`
	// ExpectedCodes are the status codes that pass, each a code ("301"), a
	// class ("2xx") or a range ("200-204"). Default: 2xx. Of http and https.
	ExpectedCodes []string `json:"expected_codes,omitempty"`
	// ExpectedBody must occur in the first MaxRead bytes of the answer's
	// body. Of http and https.
	ExpectedBody string `json:"expected_body,omitempty"`
	// FollowRedirects follows up to MaxRedirects redirects, to the same host
	// and always at the same endpoint. Of http and https.
	FollowRedirects bool `json:"follow_redirects,omitempty"`

	// Send is what is sent once connected, as text; SendHex the same as
	// hexadecimal digits, with spaces where one likes. At most one of them.
	// Of tcp and udp.
	Send    string `json:"send,omitempty"`
	SendHex string `json:"send_hex,omitempty"`
	// Expect must occur in the answer's first MaxRead bytes (tcp), or in one
	// datagram (udp); ExpectHex is the same as hexadecimal digits. At most one
	// of them. Of tcp and udp. Without either, tcp passes once the endpoint has
	// accepted, and udp unless the endpoint answers that nobody listens.
	Expect    string `json:"expect,omitempty"`
	ExpectHex string `json:"expect_hex,omitempty"`

	// Question is the name that is asked for. Required by dns, and of no other.
	Question string `json:"question,omitempty"`
	// RecordType is the type that is asked for. Default "A". Of dns.
	RecordType string `json:"record_type,omitempty"`
	// ExpectedRcode is the response code that passes. Default "NOERROR". Of
	// dns.
	ExpectedRcode string `json:"expected_rcode,omitempty"`
}

// Equal reports whether both say the same.
func (s Spec) Equal(o Spec) bool {
	return maps.Equal(s.Headers, o.Headers) && slices.Equal(s.ExpectedCodes, o.ExpectedCodes) &&
		reflect.DeepEqual(s.scalars(), o.scalars())
}

// scalars is s without what Equal compares apart: there an empty map and none
// are the same.
func (s Spec) scalars() Spec {
	s.Headers, s.ExpectedCodes = nil, nil
	return s
}

// Key is the same for two Specs that are Equal, and for no others. It is a
// digest of all fields, so it shows none of the secrets.
func (s Spec) Key() string {
	text, err := json.Marshal(s) // with the keys of maps in order
	if err != nil {
		panic("check: a Spec that is no JSON: " + err.Error()) // strings and flags always are
	}
	sum := sha256.Sum256(append(append(text, 0), s.CAFile...))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
