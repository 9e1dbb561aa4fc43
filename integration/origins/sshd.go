package origins

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/integration/proc"
	"github.com/warrenmesh/warren/integration/require"
)

// SSH is a running OpenSSH server and what a client needs to log in.
type SSH struct {
	*proc.Process
	User   string
	Config string // a client configuration file: key, host key, no questions
	Home   string // a directory for files to copy, writable by User
}

// OpenSSH starts sshd with fresh keys and returns once it has sent its banner.
// The server runs as the test's own user, the only one who can log in.
func OpenSSH(tb require.TB, host Host, addr netip.AddrPort) *SSH {
	tb.Helper()
	path := require.Tool(tb, "sshd", "openssh-server")
	keygen := require.Tool(tb, "ssh-keygen", "openssh-client")
	attr, name := login(tb)
	// sshd trusts a key file only if nobody else can write to any directory
	// above it, /tmp included; StrictModes off lifts that.
	dir := netns.Directory(tb, "sshd")
	for _, key := range []string{"host", "user"} {
		proc.Must(tb, host, proc.Spec{Path: keygen, Args: []string{"-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key)}})
	}
	home := filepath.Join(dir, "home")
	if err := os.Mkdir(home, 0o755); err != nil {
		tb.Fatalf("%v", err)
	}
	conf := write(tb, 0o600, fmt.Sprintf(`
ListenAddress %[2]s
HostKey %[1]s/host
PidFile none
AuthorizedKeysFile %[1]s/user.pub
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PubkeyAuthentication yes
PermitRootLogin yes
UsePAM no
UseDNS no
PrintMotd no
MaxStartups 100:30:200
Subsystem sftp internal-sftp
`, dir, addr), dir, "sshd_config")
	server := proc.Start(tb, host, proc.Spec{Path: path, Args: []string{"-D", "-e", "-f", conf}, Attr: attr})
	await(tb, server, "sshd", func(ctx context.Context) error {
		conn, err := host.Dial(ctx, "tcp", addr.String())
		if err != nil {
			return err
		}
		defer conn.Close()
		deadline, _ := ctx.Deadline()
		conn.SetDeadline(deadline)
		banner, err := bufio.NewReader(conn).ReadString('\n')
		if err == nil && !strings.HasPrefix(banner, "SSH-2.0-") {
			err = fmt.Errorf("it said %q", banner)
		}
		return err
	})
	hostKey, err := os.ReadFile(filepath.Join(dir, "host.pub"))
	if err != nil {
		tb.Fatalf("%v", err)
	}
	// One server behind many addresses: it is known by an alias, so that a
	// wrong server is noticed whatever address leads to it.
	known := write(tb, 0o644, "warren-origin "+string(hostKey), dir, "known_hosts")
	client := write(tb, 0o600, fmt.Sprintf(`
User %s
IdentityFile %s
IdentitiesOnly yes
HostKeyAlias warren-origin
UserKnownHostsFile %s
GlobalKnownHostsFile /dev/null
StrictHostKeyChecking yes
BatchMode yes
LogLevel ERROR
ConnectTimeout 10
`, name, filepath.Join(dir, "user"), known), dir, "ssh_config")
	return &SSH{Process: server, User: name, Config: client, Home: home}
}

// login is who sshd runs as and lets in. As real root it is root, with
// privilege separation; anybody else runs it as themselves, under the name
// that they have outside of the test's namespace.
func login(tb require.TB) (*syscall.SysProcAttr, string) {
	tb.Helper()
	attr, _, _ := netns.Ordinary()
	uid := os.Getuid()
	if attr.Credential != nil { // as root, who could become anybody: stay root
		attr = nil
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			require.Missing(tb, "the directory /run/sshd for sshd: %v", err)
		}
	} else if len(attr.UidMappings) > 0 {
		uid = attr.UidMappings[0].ContainerID
	}
	who, err := user.LookupId(fmt.Sprint(uid))
	if err != nil {
		require.Missing(tb, "an account for user id %d, to log in by ssh: %v", uid, err)
		return nil, ""
	}
	return attr, who.Username
}
