package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/integration/origins"
	"github.com/warrenmesh/warren/integration/proc"
	"github.com/warrenmesh/warren/integration/require"
)

// serviceApps publish the real servers of both data centres.
const serviceApps = `
[[zone]]
name = "apps.example.com"
nameservers = ["ns1.apps.example.com"]

[[app]]
name = "berlin-web"
hostnames = ["berlin"]
listen = ["tcp/8081"]
origin = "berlin/10.0.0.10:80"
[[app]]
name = "tokyo-web"
hostnames = ["tokyo"]
listen = ["tcp/8082"]
origin = "tokyo/10.0.0.10:80"
[[app]]
name = "db"
hostnames = ["db"]
listen = ["tcp/5432"]
origin = "berlin/10.0.0.10:5432"
[[app]]
name = "shell"
hostnames = ["shell"]
listen = ["tcp/2222"]
origin = "berlin/10.0.0.10:22"
[[app]]
name = "names"
hostnames = ["names"]
listen = ["udp/5353", "tcp/5353"]
origin = "tokyo/10.0.0.10:53"
[[app]]
name = "speed"
hostnames = ["speed"]
listen = ["tcp/5201"]
origin = "berlin/10.0.0.10:5201"
[[app]]
name = "echo"
hostnames = ["echo"]
listen = ["udp/7007"]
origin = "berlin/10.0.0.10:7"
[[app]]
name = "closed"
hostnames = ["closed"]
listen = ["tcp/8099"]
origin = "berlin/10.0.0.11:81"
`

// TestServices publishes real servers of two data centres that hold the same
// addresses, and uses each with the client that people use.
func TestServices(t *testing.T) {
	d := deploy(t, serviceApps)
	t.Run("nginx", d.testNginx)
	t.Run("names of apps", d.testNames)
	t.Run("postgres", d.testPostgres)
	t.Run("ssh", d.testSSH)
	t.Run("dns over udp", d.testDNS)
	t.Run("large datagrams", d.testDatagrams)
	t.Run("iperf3", d.testIperf3)
	t.Run("refused", d.testRefused)
}

// run runs a client program on the client's host, within a time that only a
// hang exceeds.
func (d *deployment) run(t *testing.T, tool, pkg string, args ...string) string {
	t.Helper()
	path := require.Tool(t, tool, pkg)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := proc.Run(ctx, d.client, proc.Spec{Path: path, Args: args})
	if err != nil {
		t.Fatalf("%v", err)
	}
	return out
}

// The same private address is another server in each network.
func (d *deployment) testNginx(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	for _, site := range []struct {
		host *netns.Host
		name string
	}{{d.berlin, "berlin"}, {d.tokyo, "tokyo"}} {
		origins.Nginx(t, site.host, origins.NginxConfig{
			Addr:  netip.AddrPortFrom(origin, 80),
			Files: map[string]string{"index.html": "hello from " + site.name + "\n", "big": big + site.name},
		})
	}
	for _, test := range []struct {
		port uint16
		name string
	}{{8081, "berlin"}, {8082, "tokyo"}} {
		for _, address := range []string{at(test.port).String(), fmt.Sprintf("[2001:db8:e::10]:%d", test.port)} {
			if got, want := d.run(t, "curl", "curl", "-sS", "http://"+address+"/"), "hello from "+test.name+"\n"; got != want {
				t.Errorf("%s served %q, want %q", address, got, want)
			}
			file := filepath.Join(t.TempDir(), "big")
			d.run(t, "curl", "curl", "-sS", "-o", file, "http://"+address+"/big")
			if got, err := os.ReadFile(file); err != nil || string(got) != big+test.name {
				t.Errorf("%s served %d bytes of the large file, %v; want %d and the right end", address, len(got), err, len(big)+len(test.name))
			}
		}
	}
}

// Warren's own DNS hands out the address that the apps listen on.
func (d *deployment) testNames(t *testing.T) {
	for _, test := range []struct{ kind, name, want string }{
		{"A", "berlin.apps.example.com", "203.0.113.10"},
		{"A", "TOKYO.apps.example.com", "203.0.113.10"},
		{"AAAA", "berlin.apps.example.com", "2001:db8:e::10"},
		{"A", "ns1.apps.example.com", "203.0.113.10"},
		{"NS", "apps.example.com", "ns1.apps.example.com."},
	} {
		for _, transport := range []string{"+notcp", "+tcp"} {
			out := d.run(t, "dig", "bind9-dnsutils", "@"+edgeAddr.String(), transport, "+short", "+tries=1", "+norecurse", test.name, test.kind)
			if got := strings.TrimSpace(out); got != test.want {
				t.Errorf("dig %s %s %s = %q, want %q", transport, test.name, test.kind, got, test.want)
			}
		}
	}
	for name, want := range map[string]string{"nobody.apps.example.com": "NXDOMAIN", "www.example.org": "REFUSED"} {
		out := d.run(t, "dig", "bind9-dnsutils", "@"+edgeAddr.String(), "+tries=1", "+norecurse", name)
		if !strings.Contains(out, "status: "+want) {
			t.Errorf("dig %s is not %s:\n%s", name, want, out)
		}
	}
}

// A query, and a table of 100 MB in and out again.
func (d *deployment) testPostgres(t *testing.T) {
	origins.Postgres(t, d.berlin, netip.AddrPortFrom(origin, 5432))
	psql := func(commands ...string) string {
		t.Helper()
		var args []string
		for _, c := range commands {
			args = append(args, "-c", c)
		}
		return d.run(t, "psql", "postgresql-client", origins.PsqlArgs(at(5432), args...)...)
	}
	if got := strings.TrimSpace(psql("select 6*7, inet_server_addr()")); got != "42|10.0.0.10" {
		t.Fatalf("the query's answer is %q", got)
	}
	rows := 1_000_000
	if testing.Short() || daemon.Race {
		rows = 50_000
	}
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	sent := writeRows(t, in, rows)
	psql("create table t (id int, text text)", fmt.Sprintf(`\copy t from '%s'`, in))
	psql(fmt.Sprintf(`\copy t to '%s'`, out))
	if got := hashFile(t, out); got != sent {
		t.Errorf("the table that came back differs from the one sent: %x, %x", got, sent)
	}
}

// writeRows writes rows of 100 bytes in PostgreSQL's text format, and returns
// the hash of the file.
func writeRows(t *testing.T, path string, rows int) [sha256.Size]byte {
	t.Helper()
	var b bytes.Buffer
	b.Grow(rows * 100)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range rows {
		fmt.Fprintf(&b, "%d\t", 100_000_000+i)
		for range 5 {
			fmt.Fprintf(&b, "%016x.", random.Uint64())
		}
		b.WriteString("end.\n")
	}
	text := b.Bytes()
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(text)
}

func hashFile(t *testing.T, path string) (sum [sha256.Size]byte) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		t.Fatal(err)
	}
	hash.Sum(sum[:0])
	return sum
}

// A session, and a file there and back.
func (d *deployment) testSSH(t *testing.T) {
	ssh := origins.OpenSSH(t, d.berlin, netip.AddrPortFrom(origin, 22))
	there := edgeAddr.String()
	out := d.run(t, "ssh", "openssh-client", "-F", ssh.Config, "-p", "2222", there, "read x </dev/null; echo $((6*7)); seq 1 10000 | tail -1; exit 0")
	if strings.Join(strings.Fields(out), " ") != "42 10000" {
		t.Errorf("the session printed %q", out)
	}
	size := int64(64 << 20)
	if testing.Short() || daemon.Race {
		size = 4 << 20
	}
	dir := t.TempDir()
	sent, back := filepath.Join(dir, "sent"), filepath.Join(dir, "back")
	file, err := os.Create(sent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(file, plan{Seed: 22}.bytesOf(0), size); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	remote := there + ":" + ssh.Home + "/file"
	d.run(t, "scp", "openssh-client", "-q", "-F", ssh.Config, "-P", "2222", sent, remote)
	d.run(t, "scp", "openssh-client", "-q", "-F", ssh.Config, "-P", "2222", remote, back)
	if hashFile(t, sent) != hashFile(t, back) || hashFile(t, sent) != hashFile(t, filepath.Join(ssh.Home, "file")) {
		t.Error("a file changed on its way there or back")
	}
}

// A name server of a private network, asked through the tunnel.
func (d *deployment) testDNS(t *testing.T) {
	origins.NSD(t, d.tokyo, netip.AddrPortFrom(origin, 53), "example.test", origins.ExampleZone("10.9.8.7"))
	args := []string{"@" + edgeAddr.String(), "-p", "5353", "+short", "+tries=1", "+timeout=10", "+norecurse"}
	for _, transport := range []string{"+notcp", "+tcp"} {
		out := d.run(t, "dig", "bind9-dnsutils", append(args, transport, "www.example.test")...)
		if strings.TrimSpace(out) != "10.9.8.7" {
			t.Errorf("dig %s printed %q", transport, out)
		}
	}
	out := d.run(t, "dig", "bind9-dnsutils", append(args, "+notcp", "+ignore", "+bufsize=4096", "big.example.test", "TXT")...)
	if len(out) < 750 {
		t.Errorf("the large answer has %d bytes: %q", len(out), out)
	}
}

// Datagrams of every size arrive whole, up to the largest that there is.
func (d *deployment) testDatagrams(t *testing.T) {
	pc, err := d.berlin.ListenPacket(t.Context(), "udp", "10.0.0.10:7")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { pc.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 65535)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			pc.WriteTo(buf[:n], from)
		}
	}()
	conn, err := d.client.Dial(t.Context(), "udp", at(7007).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	got, want := make([]byte, 65536), make([]byte, 65507)
	for _, size := range []int{1, 0, 512, 1232, 1372, 1373, 1472, 1473, 4096, 9000, 32768, 65507} {
		io.ReadFull(plan{Seed: uint64(size)}.bytesOf(0), want[:size])
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := conn.Write(want[:size]); err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		n, err := conn.Read(got)
		if err != nil || !bytes.Equal(got[:n], want[:size]) {
			t.Errorf("a datagram of %d bytes came back with %d, %v", size, n, err)
		}
	}
}

// Both directions complete; what they reach is the benchmark's business.
func (d *deployment) testIperf3(t *testing.T) {
	server := origins.Iperf3(t, d.berlin, netip.AddrPortFrom(origin, 5201))
	tests := 1 // that the server has listened for; the first was the harness's own connect
	for name, extra := range map[string][]string{"up": nil, "down": {"-R"}, "4 streams": {"-P", "4"}} {
		// It has one client at a time, and listens anew for the next.
		tests++
		if err := pollFor(t, 20*time.Second, func() error {
			if strings.Count(server.Output(), "Server listening on") < tests {
				return errors.New("the iperf3 server does not listen for the next test")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		out := d.run(t, "iperf3", "iperf3", append([]string{"-J", "-t", "2", "-c", edgeAddr.String()}, extra...)...)
		var report struct {
			Error string
			End   struct {
				SumReceived struct {
					Bytes         int64
					BitsPerSecond float64 `json:"bits_per_second"`
				} `json:"sum_received"`
			}
		}
		if err := json.Unmarshal([]byte(out), &report); err != nil || report.End.SumReceived.Bytes == 0 {
			t.Errorf("%s: %d bytes arrived, %v %s", name, report.End.SumReceived.Bytes, err, report.Error)
		}
		t.Logf("%s: %.0f Mbit/s", name, report.End.SumReceived.BitsPerSecond/1e6)
	}
}

// A closed port of the private side ends the client's connection at once and
// without a byte: it is no silence.
func (d *deployment) testRefused(t *testing.T) {
	conn, err := d.client.Dial(t.Context(), "tcp", at(8099).String())
	if err != nil {
		return // refused before it was accepted is as good
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	n, err := conn.Read(make([]byte, 1))
	if n != 0 || err == nil || os.IsTimeout(err) {
		t.Errorf("read %d bytes, %v; want the end of the connection", n, err)
	}
}
