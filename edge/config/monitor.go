package config

import (
	"fmt"
	"strings"
	"time"

	"github.com/warrenmesh/warren/check"
	"github.com/warrenmesh/warren/configs/strict"
	"github.com/warrenmesh/warren/edge/monitor"
)

// monitorTable is a [[monitor]]: the active health check of endpoints, run
// through the tunnel, or by a connector. Each type has keys of its own besides
// the common ones; another's are an error.
type monitorTable struct {
	// Name is what pools refer to.
	Name string `toml:"name" required:"true" hint:"give the monitor a name for pools to refer to"`
	// Type is the kind of check: tcp connects, and sends and expects bytes
	// where it is told to; tls shakes hands; http and https ask for a page; udp
	// sends a datagram; icmp pings; dns asks a question over UDP; postgres,
	// smtp and redis greet such a server. Default: tcp.
	Type string `toml:"type" default:"tcp" oneof:"tcp tls http https udp icmp dns postgres smtp redis"`
	// Interval is the time from the end of one check to the start of the next,
	// give or take a tenth. Default: 5s; 100ms to 24h.
	Interval time.Duration `toml:"interval" default:"5s" range:"100ms..24h"`
	// Timeout is how long one check may take, at most the interval. Default:
	// 2s, or the interval where that is shorter.
	Timeout time.Duration `toml:"timeout" range:"1ms..24h"`
	// Retries is how often a check that fails is repeated at once before it
	// counts as failed. Default: 0; 0 to 10.
	Retries int `toml:"retries" range:"0..10"`
	// Rise is how many checks in a row must pass before an endpoint is up.
	// Default: 2; 1 to 100.
	Rise int `toml:"rise" default:"2" range:"1..100"`
	// Fall is how many checks in a row must fail before an endpoint is down.
	// Default: 2; 1 to 100.
	Fall int `toml:"fall" default:"2" range:"1..100"`
	// RunBy is who runs the checks: edge, through the tunnel; or connector,
	// where it stands, which costs the edge less and says nothing about the
	// tunnel. Pools of "@public" have the edge alone. Default: edge.
	RunBy string `toml:"run_by" default:"edge" oneof:"edge connector"`

	// ServerName is the name that the certificate must be for, and that is
	// asked for (SNI). Default: that of host for https, else the endpoint's
	// address. Of tls and https.
	ServerName string `toml:"server_name"`
	// CAFile is a PEM file with the authorities that are trusted. A relative
	// path starts at the directory of the file that names it. Default: those of
	// the machine that runs the check. Of tls and https.
	CAFile string `toml:"ca_file"`
	// Insecure accepts any certificate. Default: false. Of tls and https.
	Insecure bool `toml:"insecure"`

	// Method is GET, HEAD or OPTIONS. Default: GET. Of http and https.
	Method string `toml:"method"`
	// Path is what is asked for, with its query. Default: "/". Of http and
	// https.
	Path string `toml:"path"`
	// Host is the Host header. Default: the endpoint's address and port. Of http
	// and https.
	Host string `toml:"host"`
	// Headers are sent along, by name: headers = {Authorization = "…"}. Their
	// values are never shown. Of http and https.
	Headers map[string]string `toml:"headers" hidden:"true"`
	// ExpectedCodes are the status codes that pass: "301", "2xx", "200-204".
	// Default: ["2xx"]. Of http and https.
	ExpectedCodes []string `toml:"expected_codes"`
	// ExpectedBody has to occur in the answer's body, near its beginning.
	// Default: any body will do. Of http and https.
	ExpectedBody string `toml:"expected_body"`
	// FollowRedirects follows redirects to the same host, at the same endpoint.
	// Default: false. Of http and https.
	FollowRedirects bool `toml:"follow_redirects"`

	// Send is the text that is sent once connected, never shown. Default:
	// nothing. Of tcp and udp.
	Send string `toml:"send" hidden:"true"`
	// SendHex is the same in hexadecimal digits; one of the two. Of tcp and udp.
	SendHex string `toml:"send_hex" hidden:"true"`
	// Expect is the text that has to occur in the answer, near its beginning.
	// Default: none, and tcp passes once the endpoint has accepted, udp unless
	// it says that nobody listens. Of tcp and udp.
	Expect string `toml:"expect"`
	// ExpectHex is the same in hexadecimal digits; one of the two. Of tcp and
	// udp.
	ExpectHex string `toml:"expect_hex"`

	// Question is the name that is asked for. Of dns, which requires it.
	Question string `toml:"question"`
	// RecordType is the type that is asked for. Default: A. Of dns.
	RecordType string `toml:"record_type"`
	// ExpectedRcode is the response code that passes. Default: NOERROR. Of dns.
	ExpectedRcode string `toml:"expected_rcode"`
}

// Validate implements strict.Validator.
func (m *monitorTable) Validate(doc *strict.Doc, path string) { checkName(doc, path+".name", m.Name) }

// check is what a check does.
func (m *monitorTable) check() check.Spec {
	return check.Spec{
		Type:       m.Type,
		ServerName: m.ServerName, CAFile: m.CAFile, Insecure: m.Insecure,
		Method: m.Method, Path: m.Path, Host: m.Host, Headers: m.Headers,
		ExpectedCodes: m.ExpectedCodes, ExpectedBody: m.ExpectedBody, FollowRedirects: m.FollowRedirects,
		Send: m.Send, SendHex: m.SendHex, Expect: m.Expect, ExpectHex: m.ExpectHex,
		Question: m.Question, RecordType: m.RecordType, ExpectedRcode: m.ExpectedRcode,
	}
}

func (l *loader) buildMonitors() {
	for i := range l.file.Monitor {
		m := &l.file.Monitor[i]
		path := fmt.Sprintf("monitor[%d]", i)
		m.CAFile = l.resolve(path+".ca_file", m.CAFile)
		spec := monitor.Spec{
			Name: m.Name, Check: m.check(), Interval: m.Interval, Timeout: m.Timeout,
			Retries: m.Retries, Rise: m.Rise, Fall: m.Fall, RunBy: m.RunBy,
		}.WithDefaults()
		report := l.report(path)
		spec.Validate(func(key, value, hint string) {
			if name, ok := strings.CutPrefix(key, "headers."); ok {
				key = strict.KeyPath("headers", name)
			}
			if !l.doc.Bad(path + ".type") { // it says which keys there are
				report(key, value, hint)
			}
		})
		l.cfg.Monitors = append(l.cfg.Monitors, spec)
	}
}

// report returns the function that a room's Validate calls with what it finds
// in the table at path. What the file's own checks have found is left out.
func (l *loader) report(path string) func(key, value, hint string) {
	return func(key, _, hint string) {
		if at := path + "." + key; !l.doc.Bad(at) {
			l.doc.Add(at, hint, "")
		}
	}
}
