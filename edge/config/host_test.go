package config

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/configs/strict"
)

// hostConfig is a config whose state is in dir; extra is more TOML.
func hostConfig(t *testing.T, dir, tables, extra string) *Config {
	t.Helper()
	text := fmt.Sprintf("[edge]\nstate_dir = %q\n[wireguard]\nlisten = '127.0.0.1:0'\n%s\n[metrics]\nlisten = ''\n%s\n", dir, tables, extra)
	cfg, err := Parse(env(), strict.Source{Name: "edge.toml", Text: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// wantProblems wants each of parts in the error of a check of this machine; none
// means that there is no error.
func wantProblems(t *testing.T, err error, parts ...string) {
	t.Helper()
	if len(parts) == 0 && err != nil {
		t.Errorf("unexpected problems:\n%v", err)
	}
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("no %q in:\n%v", part, err)
		}
	}
}

func TestHostInOrder(t *testing.T) {
	wantProblems(t, CheckHost(hostConfig(t, filepath.Join(t.TempDir(), "not", "yet"), "", "")))
}

func TestHostPorts(t *testing.T) {
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	tcpPort, udpPort := tcp.Addr().(*net.TCPAddr).Port, udp.LocalAddr().(*net.UDPAddr).Port
	cfg := hostConfig(t, privateDir(t), "", fmt.Sprintf(`[[network]]
name = "n"
[[address]]
name = "main"
advertise = ["127.0.0.1"]
[[address]]
name = "elsewhere"
advertise = ["192.0.2.77"]
[[app]]
name = "a"
on = ["main"]
listen = ["tcp/%d", "udp/%d"]
origin = "n/10.0.0.1:1"
[[app]]
name = "b"
on = ["elsewhere"]
listen = ["tcp/1"]
origin = "n/10.0.0.1:1"
`, tcpPort, udpPort))
	pid := fmt.Sprintf("(pid %d)", os.Getpid())
	err = CheckHost(cfg)
	wantProblems(t, err,
		fmt.Sprintf(`edge.toml:19: app[0].listen[0]: "tcp/%d": tcp/127.0.0.1:%d is in use by this process %s; stop that`, tcpPort, tcpPort, pid),
		fmt.Sprintf(`edge.toml:19: app[0].listen[1]: "udp/%d": udp/127.0.0.1:%d is in use by this process %s; stop that`, udpPort, udpPort, pid),
		`edge.toml:15: address[1].advertise[0]: "192.0.2.77": this machine does not have the address; if it is behind NAT, set bind to the machine's own address: `)
	if strings.Contains(err.Error(), "app[1]") {
		t.Errorf("an address that is missing is reported more than once:\n%v", err)
	}
}

func TestHostPermission(t *testing.T) {
	cfg := hostConfig(t, privateDir(t), "", "")
	cfg.WireGuard.Listen = Socket{netip.MustParseAddrPort("127.0.0.1:53")}
	h := &hostCheck{cfg: cfg, doc: cfg.doc.Fork(), try: func(string, netip.AddrPort) error { return syscall.EACCES }}
	wantProblems(t, h.run(), `edge.toml:4: wireguard.listen: "127.0.0.1:0": no permission to listen on udp/127.0.0.1:53; ports below 1024 need root or CAP_NET_BIND_SERVICE`)
}

func TestHostKey(t *testing.T) {
	dir := privateDir(t)
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "edge.key")
	if err := os.WriteFile(path, []byte(key.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tables := fmt.Sprintf("private_key_file = %q", path)
	wantProblems(t, CheckHost(hostConfig(t, dir, tables, "")))
	wantProblems(t, CheckHost(hostConfig(t, dir, fmt.Sprintf("private_key_file = %q", path+"2"), "")), `edge.toml:5: wireguard.private_key_file: there is no file "`+path+`2"; make one: (umask 077; warren genkey > `)
	wantProblems(t, CheckHost(hostConfig(t, dir, tables, fmt.Sprintf("[[network]]\nname='n'\n[[connector]]\nname='c'\nnetwork='n'\nroutes=['10.0.0.0/8']\npublic_key='%s'", key.PublicKey()))),
		`edge.toml:14: connector[0].public_key: this is the edge's own key`)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	wantProblems(t, CheckHost(hostConfig(t, dir, tables, "")), `edge.toml:5: wireguard.private_key_file: `, "chmod 600")
}

func TestHostPlaces(t *testing.T) {
	dir := privateDir(t)
	open := filepath.Join(dir, "open")
	if err := os.Mkdir(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	wantProblems(t, CheckHost(hostConfig(t, open, "", "")), `edge.toml:2: edge.state_dir: opening state directory "`+open+`": everybody on this machine has access (mode 0777): run chmod 700`)

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wantProblems(t, CheckHost(hostConfig(t, file, "", "")), `edge.state_dir: opening state directory "`+file+`": it is a file: choose another state_dir`)
	wantProblems(t, CheckHost(hostConfig(t, dir, "", fmt.Sprintf("[log]\nflows = %q\n[admin]\nsocket = %q", filepath.Join(dir, "x", "f"), filepath.Join(dir, "y", "s")))),
		`log.flows: there is no directory "`+filepath.Join(dir, "x")+`"`)
	wantProblems(t, CheckHost(hostConfig(t, dir, "", fmt.Sprintf("[log]\nflows = %q\n[admin]\nsocket = %q", open, file))),
		`log.flows: "`+open+`" is a directory`, `admin.socket: "`+file+`" is there and no socket`)
	wantProblems(t, CheckHost(hostConfig(t, dir, "", fmt.Sprintf("[log]\nflows = %q", filepath.Join(dir, strings.Repeat("x", 300))))), `log.flows: cannot open`)

	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	wantProblems(t, CheckHost(hostConfig(t, dir, "", fmt.Sprintf("[admin]\nsocket = %q", socket))), `admin.socket: a running edge answers on "`+socket+`"`)
}

func TestHostFiles(t *testing.T) {
	dir := privateDir(t)
	write := func(name, text string, mode os.FileMode) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tables := func(secret, token, ca string) string {
		return fmt.Sprintf("[[webhook]]\nname = 'w'\nurl = 'https://x.example'\nsecret_file = %q\ntoken_file = %q\n[[monitor]]\nname = 'm'\ntype = 'tls'\nca_file = %q\n",
			secret, token, ca)
	}
	key, token := write("key", strings.Repeat("k", 32)+"\n", 0o600), write("token", "abc\n", 0o600)
	ca := write("ca.pem", testCA, 0o644)
	cfg := hostConfig(t, dir, tables(key, token, ca), "")
	wantProblems(t, CheckHost(cfg))
	if specs, err := cfg.ReadMonitors(); err != nil || specs[0].Check.CA != testCA || cfg.Monitors[0].Check.CA != "" {
		t.Errorf("monitors = %+v, %v", specs, err)
	}
	cfg = hostConfig(t, dir, tables(key+"-gone", write("open", "abc", 0o644), write("bad.pem", "hello", 0o644)), "")
	wantProblems(t, CheckHost(cfg),
		`edge.toml:8: webhook[0].secret_file: "`+key+`-gone": `,
		`edge.toml:9: webhook[0].token_file: "`+filepath.Join(dir, "open")+`": `,
		`edge.toml:13: monitor[0].ca_file: reading the ca_file "`+filepath.Join(dir, "bad.pem")+`": no certificate in PEM form`)
	if _, err := cfg.ReadMonitors(); err == nil || !strings.HasPrefix(err.Error(), "edge.toml:13: monitor[0].ca_file: ") {
		t.Errorf("reading the monitors: %v", err)
	}
	wantProblems(t, CheckHost(hostConfig(t, dir, tables(write("short", "abc", 0o600), token, ca+"-gone"), "")),
		`webhook[0].secret_file: "`+filepath.Join(dir, "short")+`": the key has 3 bytes`, `monitor[0].ca_file: reading the ca_file: `)
}

// privateDir is a directory that can be a state directory.
func privateDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// testCA is the certificate of an authority of nobody.
const testCA = `-----BEGIN CERTIFICATE-----
MIIBPzCB56ADAgECAgEBMAoGCCqGSM49BAMCMA8xDTALBgNVBAMTBHRlc3QwIBcN
NzAwMTAxMDAwMDAwWhgPMjA5NjEwMDIwNzA2NDBaMA8xDTALBgNVBAMTBHRlc3Qw
WTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQYzhYWbbzpRBsMwgZPgROO6UecBD+b
FPzkV6rDW38SV0sD1KDhkC15OxRqV6q4y2qovrbqzTPo+FlKQ+968qkOozIwMDAP
BgNVHRMBAf8EBTADAQH/MB0GA1UdDgQWBBR9yRj8NWm8zr2800vKWGrFch7cjTAK
BggqhkjOPQQDAgNHADBEAiBGbbbRKDee87SWfFPNDh7RzG1VgFP4quS+Zh9nf9Lv
jAIgBygO9cQ+w0lWdMiL5gU7pCWHPz9sh6OilgijOUyCeRE=
-----END CERTIFICATE-----
`
