package check

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/warrenmesh/warren/integration/proc"
	"github.com/warrenmesh/warren/integration/require"
)

// Against the real servers, each from Debian's package: up, wrong, and gone.

// ordinary is a person who is not root, and a directory of theirs.
func ordinary(t *testing.T) (dir string, attr *syscall.SysProcAttr) {
	t.Helper()
	// Root's t.TempDir lies in a directory that nobody else may enter.
	dir, err := os.MkdirTemp("", "check")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if os.Getuid() != 0 {
		return dir, nil
	}
	const nobody = 65534
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	return dir, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// comesUp waits until the server passes the check, as a monitor would see it.
func comesUp(t *testing.T, server *proc.Process, spec Spec, addr netip.AddrPort) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	err := proc.Poll(ctx, func() error {
		select {
		case <-server.Done():
			return proc.Fatal(fmt.Errorf("it ended: %s", server.Output()))
		default:
		}
		return tries(t, new(kernel), spec, addr, time.Second).Err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func passes(t *testing.T, spec Spec, addr netip.AddrPort) {
	t.Helper()
	if r := tries(t, new(kernel), spec, addr, long); r.Err != nil {
		t.Errorf("%+v: %v", spec, r.Err)
	}
}

func fails(t *testing.T, spec Spec, addr netip.AddrPort, want string) {
	t.Helper()
	wantError(t, tries(t, new(kernel), spec, addr, long).Err, want)
}

func TestNginx(t *testing.T) {
	path := require.Tool(t, "nginx", "nginx-light")
	dir := t.TempDir()
	ca := newAuthority(t)
	cert := ca.issue(t, time.Now().Add(time.Hour), "www.example.com")
	writeKeyPair(t, dir, cert)
	put(t, filepath.Join(dir, "index.html"), "all is well")
	web, secure := closedPort(t), closedPort(t)
	conf := filepath.Join(dir, "nginx.conf")
	put(t, conf, fmt.Sprintf(`
daemon off; master_process off;
pid %[1]s/nginx.pid;
error_log stderr warn;
events { worker_connections 64; }
http {
	access_log off;
	client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
	server { listen %[2]s default_server; return 421; }
	server {
		listen %[2]s; listen %[3]s ssl; server_name www.example.com;
		ssl_certificate %[1]s/cert.pem; ssl_certificate_key %[1]s/key.pem;
		root %[1]s;
		location /old { return 301 $scheme://www.example.com/index.html; }
		location /key { if ($http_x_key != "geheim") { return 403; } return 204; }
	}
}
`, dir, web, secure))
	server := proc.Start(t, proc.Here{}, proc.Spec{Path: path, Args: []string{"-p", dir, "-e", "stderr", "-c", conf}})
	page := Spec{Type: TypeHTTP, Host: "www.example.com", Path: "/index.html", ExpectedBody: "is well"}
	comesUp(t, server, page, web)
	with := func(change func(*Spec)) Spec {
		s := page
		change(&s)
		return s
	}
	passes(t, Spec{}, web)
	passes(t, with(func(s *Spec) { s.Path, s.FollowRedirects = "/old", true }), web)
	passes(t, with(func(s *Spec) { s.Path, s.ExpectedBody, s.ExpectedCodes = "/old", "", []string{"301"} }), web)
	passes(t, with(func(s *Spec) { s.Path, s.ExpectedBody, s.Headers = "/key", "", map[string]string{"X-Key": "geheim"} }), web)
	passes(t, with(func(s *Spec) { s.Method, s.ExpectedBody = "HEAD", "" }), web)
	passes(t, with(func(s *Spec) { s.Type, s.CA = TypeHTTPS, ca.pem }), secure)
	passes(t, Spec{Type: TypeTLS, ServerName: "www.example.com", CA: ca.pem}, secure)
	passes(t, Spec{Send: "GET / HTTP/1.0\r\n\r\n", Expect: "421"}, web)
	fails(t, with(func(s *Spec) { s.Host = "" }), web, "answered 421, want 2xx")
	fails(t, with(func(s *Spec) { s.Path = "/missing" }), web, "answered 404, want 2xx")
	fails(t, with(func(s *Spec) { s.Path = "/key" }), web, "answered 403, want 2xx")
	fails(t, with(func(s *Spec) { s.ExpectedBody = "on fire" }), web, `lack "on fire"`)
	fails(t, with(func(s *Spec) { s.Type = TypeHTTPS }), secure, "unknown authority")
	fails(t, with(func(s *Spec) { s.Type, s.Host, s.CA = TypeHTTPS, "db.example.com", ca.pem }), secure, "not db.example.com")
	fails(t, with(func(s *Spec) { s.Type, s.Insecure = TypeHTTPS, true }), web, "the TLS handshake")
	fails(t, page, secure, "answered 400, want 2xx")
	server.Stop()
	fails(t, page, web, "connection refused")
}

func writeKeyPair(t *testing.T, dir string, cert tls.Certificate) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "key.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))
	put(t, filepath.Join(dir, "cert.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})))
}

func TestPostgreSQL(t *testing.T) {
	initdb := require.Tool(t, "initdb", "postgresql")
	path := require.Tool(t, "postgres", "postgresql")
	dir, attr := ordinary(t)
	data := filepath.Join(dir, "data")
	proc.Must(t, proc.Here{}, proc.Spec{Path: initdb, Attr: attr, Dir: dir, Args: []string{
		"--pgdata", data, "--username", "warren", "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions"}})
	addr := closedPort(t)
	server := proc.Start(t, proc.Here{}, proc.Spec{Path: path, Attr: attr, Dir: dir, StopSignal: syscall.SIGINT, Args: []string{
		"-D", data, "-h", addr.Addr().String(), "-p", fmt.Sprint(addr.Port()), "-k", dir,
		"-F", "-c", "shared_buffers=16MB", "-c", "max_connections=10", "-c", "dynamic_shared_memory_type=mmap"}})
	spec := Spec{Type: TypePostgres}
	comesUp(t, server, spec, addr)
	for range 50 { // and leaves no session behind that would fill the server
		passes(t, spec, addr)
	}
	fails(t, Spec{Type: TypeRedis}, addr, "awaiting PONG")
	server.Stop()
	fails(t, spec, addr, "connection refused")
}

func TestNSD(t *testing.T) {
	path := require.Tool(t, "nsd", "nsd")
	dir, attr := ordinary(t)
	addr := freeDatagramPort(t)
	put(t, filepath.Join(dir, "zone"), "$ORIGIN example.test.\n@ 60 SOA ns hostmaster 1 3600 600 86400 60\n@ 60 NS ns\nns 60 A 10.0.0.10\n")
	conf := filepath.Join(dir, "nsd.conf")
	put(t, conf, fmt.Sprintf(`
server:
	ip-address: %[2]s@%[3]d
	server-count: 1
	username: ""
	chroot: ""
	zonesdir: "%[1]s"
	pidfile: ""
	xfrdfile: "%[1]s/xfrd.state"
	zonelistfile: "%[1]s/zone.list"
	xfrdir: "%[1]s"
	database: ""
remote-control:
	control-enable: no
zone:
	name: "example.test"
	zonefile: "zone"
`, dir, addr.Addr(), addr.Port()))
	server := proc.Start(t, proc.Here{}, proc.Spec{Path: path, Attr: attr, Args: []string{"-d", "-c", conf}})
	spec := Spec{Type: TypeDNS, Question: "ns.example.test"}
	comesUp(t, server, spec, addr)
	passes(t, Spec{Type: TypeDNS, Question: "EXAMPLE.test.", RecordType: "SOA"}, addr)
	passes(t, Spec{Type: TypeDNS, Question: "no.example.test", ExpectedRcode: "NXDOMAIN"}, addr)
	passes(t, Spec{Type: TypeDNS, Question: "example.org", ExpectedRcode: "REFUSED"}, addr)
	passes(t, Spec{Type: TypeUDP}, addr)
	// The root's SOA, with id 1: whatever the server says, the id comes back.
	passes(t, Spec{Type: TypeUDP, SendHex: "0001 0000 0001 0000 0000 0000 00 0006 0001", ExpectHex: "0001 80"}, addr)
	fails(t, Spec{Type: TypeDNS, Question: "no.example.test"}, addr, "answered NXDOMAIN, want NOERROR")
	fails(t, Spec{Type: TypeDNS, Question: "ns.example.test", ExpectedRcode: "SERVFAIL"}, addr, "answered NOERROR, want SERVFAIL")
	server.Stop()
	fails(t, spec, addr, "connection refused")
	fails(t, Spec{Type: TypeUDP}, addr, "connection refused")
}

func freeDatagramPort(t *testing.T) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}
