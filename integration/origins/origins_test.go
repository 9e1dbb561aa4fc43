package origins

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/integration/proc"
	"github.com/warrenmesh/warren/integration/require"
)

func TestMain(m *testing.M) { os.Exit(netns.Main(m.Run)) }

var site = netip.MustParseAddr("10.0.0.10")

// hosts is a client and a site on one cable: 10.0.0.2 and 10.0.0.10.
func hosts(t *testing.T) (client, server *netns.Host) {
	lab := netns.New(t)
	client, server = lab.Host("client"), lab.Host("site")
	lab.Link(client, "eth0", server, "eth0")
	client.IP("address add 10.0.0.2/24 dev eth0")
	server.IP("address add 10.0.0.10/24 dev eth0")
	return client, server
}

func TestNginxServesItsFiles(t *testing.T) {
	client, server := hosts(t)
	addr := netip.AddrPortFrom(site, 80)
	Nginx(t, server, NginxConfig{Addr: addr, Files: map[string]string{"index.html": "berlin\n"}})
	curl := require.Tool(t, "curl", "curl")
	if out := proc.Must(t, client, proc.Spec{Path: curl, Args: []string{"-sS", "--max-time", "10", "http://" + addr.String() + "/"}}); out != "berlin\n" {
		t.Errorf("nginx served %q", out)
	}
}

func TestPostgresAnswersQueries(t *testing.T) {
	client, server := hosts(t)
	addr := netip.AddrPortFrom(site, 5432)
	Postgres(t, server, addr)
	psql := require.Tool(t, "psql", "postgresql-client")
	out := proc.Must(t, client, proc.Spec{Path: psql, Args: PsqlArgs(addr, "-c", "select inet_client_addr(), 6*7")})
	if strings.TrimSpace(out) != "10.0.0.2|42" {
		t.Errorf("psql printed %q", out)
	}
}

func TestOpenSSHLogsInAndCopies(t *testing.T) {
	client, server := hosts(t)
	addr := netip.AddrPortFrom(site, 22)
	ssh := OpenSSH(t, server, addr)
	out := proc.Must(t, client, proc.Spec{Path: require.Tool(t, "ssh", "openssh-client"),
		Args: []string{"-F", ssh.Config, site.String(), "echo $((6*7)) from ${SSH_CONNECTION%% *}"}})
	if strings.TrimSpace(out) != "42 from 10.0.0.2" {
		t.Errorf("the session printed %q", out)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("copied"), 0o644); err != nil {
		t.Fatal(err)
	}
	proc.Must(t, client, proc.Spec{Path: require.Tool(t, "scp", "openssh-client"),
		Args: []string{"-q", "-F", ssh.Config, file, site.String() + ":" + ssh.Home + "/there"}})
	if got, err := os.ReadFile(ssh.Home + "/there"); err != nil || string(got) != "copied" {
		t.Errorf("the copy is %q, %v", got, err)
	}
}

func TestNSDAnswersOverUDP(t *testing.T) {
	client, server := hosts(t)
	NSD(t, server, netip.AddrPortFrom(site, 53), "example.test", ExampleZone("10.9.8.7"))
	out := proc.Must(t, client, proc.Spec{Path: require.Tool(t, "dig", "bind9-dnsutils"),
		Args: []string{"@10.0.0.10", "+short", "+notcp", "+tries=1", "www.example.test"}})
	if strings.TrimSpace(out) != "10.9.8.7" {
		t.Errorf("dig printed %q", out)
	}
}

func TestIperf3Measures(t *testing.T) {
	client, server := hosts(t)
	Iperf3(t, server, netip.AddrPortFrom(site, 5201))
	out := proc.Must(t, client, proc.Spec{Path: require.Tool(t, "iperf3", "iperf3"),
		Args: []string{"-c", site.String(), "-n", "10M", "-J"}})
	var report struct {
		End struct {
			SumReceived struct{ Bytes int64 } `json:"sum_received"`
		}
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || report.End.SumReceived.Bytes == 0 {
		t.Errorf("iperf3 received %d bytes, %v", report.End.SumReceived.Bytes, err)
	}
}

// The same server twice at the same address, on two hosts: each has its own.
func TestTwoSitesHoldTheSameAddress(t *testing.T) {
	for _, name := range []string{"berlin", "tokyo"} {
		client, server := hosts(t)
		addr := netip.AddrPortFrom(site, 80)
		Nginx(t, server, NginxConfig{Addr: addr, Files: map[string]string{"index.html": name}})
		curl := require.Tool(t, "curl", "curl")
		out := proc.Must(t, client, proc.Spec{Path: curl, Args: []string{"-sS", fmt.Sprintf("http://%s/", addr)}})
		if out != name {
			t.Errorf("%s served %q", name, out)
		}
	}
}

// Servers start on the loopback too, without any host.
func TestOnTheLoopback(t *testing.T) {
	Nginx(t, Loopback{}, NginxConfig{Addr: FreePort(t), Files: map[string]string{"index.html": "here"}})
}
