package check

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority is a CA of a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}
}

// issue makes a certificate for names, addresses among them, until end.
func (a *authority) issue(t testing.TB, end time.Time, names ...string) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: end,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.key}
}

// overTLS lets f talk inside a TLS session.
func overTLS(config *tls.Config, f func(net.Conn)) func(net.Conn) {
	return func(conn net.Conn) {
		secure := tls.Server(conn, config)
		if secure.Handshake() == nil {
			f(secure)
		}
	}
}

func TestTLS(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	end := time.Now().Add(30 * time.Minute).Truncate(time.Second).UTC()
	past := time.Now().Add(-24 * time.Hour).Truncate(time.Second).UTC()
	good := ca.issue(t, end, "db.example.com", "127.0.0.1")
	named := ca.issue(t, end, "db.example.com")
	config := func(c tls.Certificate) *tls.Config { return &tls.Config{Certificates: []tls.Certificate{c}} }
	old := config(good)
	old.MaxVersion = tls.VersionTLS11
	old.MinVersion = tls.VersionTLS10
	for _, tt := range []struct {
		name    string
		spec    Spec
		server  func(net.Conn)
		timeout time.Duration
		expires time.Time
		want    string
	}{
		{"by name", Spec{ServerName: "db.example.com", CA: ca.pem}, overTLS(config(good), buffer), 0, end, ""},
		{"by address", Spec{CA: ca.pem}, overTLS(config(good), buffer), 0, end, ""},
		{"insecure", Spec{Insecure: true}, overTLS(config(other.issue(t, past, "x")), buffer), 0, past, ""},
		{"another name", Spec{ServerName: "www.example.com", CA: ca.pem}, overTLS(config(good), buffer), 0, end,
			`verifying the certificate for "www.example.com": x509: certificate is valid for db.example.com, not www.example.com`},
		{"no address in it", Spec{CA: ca.pem}, overTLS(config(named), buffer), 0, end, `it doesn't contain any IP SANs`},
		{"another authority", Spec{CA: other.pem}, overTLS(config(good), buffer), 0, end, "signed by unknown authority"},
		{"the system's authorities", Spec{}, overTLS(config(good), buffer), 0, end, "signed by unknown authority"},
		{"expired", Spec{CA: ca.pem}, overTLS(config(ca.issue(t, past, "127.0.0.1")), buffer), 0, past,
			"the certificate ended on " + past.Format(time.DateOnly)},
		{"TLS 1.1", Spec{CA: ca.pem}, overTLS(old, buffer), 0, time.Time{}, "the TLS handshake: "},
		{"not TLS", Spec{CA: ca.pem}, says(true, "HTTP/1.1 400 Bad Request\r\n\r\n"), 0, time.Time{}, "first record does not look like a TLS handshake"},
		{"silent", Spec{CA: ca.pem}, silence, short, time.Time{}, "the TLS handshake: nothing came in time"},
		{"hangs up", Spec{CA: ca.pem}, closes(""), 0, time.Time{}, "the TLS handshake: the endpoint ended the connection"},
		{"endless", Spec{CA: ca.pem}, endless("", "\x16\x03\x03\x40\x00"+strings.Repeat("\x0b\xff\xff\xff", 4096)), 0, time.Time{}, "the TLS handshake: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.spec.Type = TypeTLS
			if tt.timeout == 0 {
				tt.timeout = long
			}
			r := tries(t, new(kernel), tt.spec, serve(t, tt.server), tt.timeout)
			wantError(t, r.Err, tt.want)
			if !r.Expires.Equal(tt.expires) {
				t.Errorf("expires %v, want %v", r.Expires, tt.expires)
			}
		})
	}
}

func TestHTTPS(t *testing.T) {
	ca := newAuthority(t)
	end := time.Now().Add(30 * time.Minute).Truncate(time.Second)
	var asked string
	config := &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		asked = hello.ServerName
		cert := ca.issue(t, end, "www.example.com", "127.0.0.1")
		return &cert, nil
	}, NextProtos: []string{"h2", "http/1.1"}}
	addr := serve(t, overTLS(config, page("HTTP/1.1 200 OK\r\n\r\nneedle")))
	spec := Spec{Type: TypeHTTPS, Host: "www.example.com:8443", CA: ca.pem, ExpectedBody: "needle"}
	r := tries(t, new(kernel), spec, addr, long)
	if r.Err != nil || !r.Expires.Equal(end) || asked != "www.example.com" {
		t.Errorf("%+v, asked for %q", r, asked)
	}
	spec.ExpectedCodes = []string{"204"}
	r = tries(t, new(kernel), spec, addr, long)
	wantError(t, r.Err, "answered 200, want 204")
	if !r.Expires.Equal(end) {
		t.Errorf("expires %v, want %v", r.Expires, end)
	}
	spec.ServerName = "db.example.com"
	r = tries(t, new(kernel), spec, addr, long)
	wantError(t, r.Err, `verifying the certificate for "db.example.com"`)
	r = tries(t, new(kernel), spec, serve(t, page("HTTP/1.1 200 OK\r\n\r\n")), long)
	wantError(t, r.Err, "the TLS handshake: ")
}

// Nothing of the handshake is left behind when the context ends it.
func TestHandshakeCutShort(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	addr := serve(t, func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 4096))
		cancel()
		_, _ = io.Copy(io.Discard, conn)
	})
	k := new(kernel)
	if r := Run(ctx, k, addr, &Spec{Type: TypeTLS}); r.Err == nil || k.open != 0 || k.closed != 0 {
		t.Errorf("%+v; %d open, %d closed in order", r, k.open, k.closed)
	}
}

func TestLoad(t *testing.T) {
	ca := newAuthority(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tt := range []struct{ name, path, want string }{
		{"none", "", ""},
		{"good", write("good", "Our CA:\n"+ca.pem), ""},
		{"missing", filepath.Join(dir, "missing"), "no such file"},
		{"a directory", dir, "not a file of at most 64 KiB"},
		{"huge", write("huge", ca.pem+strings.Repeat("\n", MaxCA)), "not a file of at most 64 KiB"},
		{"empty", write("empty", ""), "no certificate in PEM form"},
		{"a key", write("key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), "no certificate in PEM form"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := Spec{Type: TypeTLS, CAFile: tt.path}.Load()
			wantError(t, err, tt.want)
			if err == nil && (s.CA == "") != (tt.path == "") {
				t.Errorf("CA = %q", s.CA)
			}
		})
	}
	addr := serve(t, overTLS(&tls.Config{Certificates: []tls.Certificate{ca.issue(t, time.Now().Add(time.Hour), "127.0.0.1")}}, buffer))
	s, err := Spec{Type: TypeTLS, CAFile: filepath.Join(dir, "good")}.Load()
	if err != nil {
		t.Fatal(err)
	}
	if r := tries(t, new(kernel), s, addr, long); r.Err != nil {
		t.Error(r.Err)
	}
}
