package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/integration/require"
)

// runContained makes everything read-only but an empty tmpfs at dir, and
// becomes the command. It needs a mount namespace of its own.
func runContained(dir string, command []string) error {
	runtime.LockOSThread()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("making everything read-only: %w", err)
	}
	_, uid, gid := netns.Ordinary()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("mode=0700,uid=%d,gid=%d", uid, gid)); err != nil {
		return fmt.Errorf("mounting a tmpfs at %q: %w", dir, err)
	}
	return syscall.Exec(command[0], command, os.Environ())
}

// contained is what comes before a command so that it runs as in a container:
// on a read-only root with a tmpfs at dir, without a capability, and with no
// way to get one.
func contained(t *testing.T, dir string) (under []string, env []string, attr *syscall.SysProcAttr) {
	t.Helper()
	setpriv := []string{require.Tool(t, "setpriv", "util-linux"), "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"}
	if attr, uid, gid := netns.Ordinary(); attr.Credential != nil {
		setpriv = append(setpriv, fmt.Sprintf("--reuid=%d", uid), fmt.Sprintf("--regid=%d", gid), "--clear-groups")
	} else { // root is the only one here: a root that is worth nothing
		setpriv = append(setpriv, "--securebits=+noroot,+noroot_locked")
	}
	return append([]string{"/proc/self/exe", dir}, setpriv...), []string{envRole + "=" + roleContainer},
		&syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
}

// TestContainer runs a connector as containers do: a read-only root, no
// capability, no file but a state directory that is a tmpfs, an ephemeral
// token in the environment. It serves, and does so again after a restart that
// forgets everything.
func TestContainer(t *testing.T) {
	d, _, _ := deployEnrolment(t)
	ask := berlinToken()
	ask.Ephemeral = true
	token := d.edged.Token(t, ask)
	state := netns.Directory(t, "container")
	under, env, attr := contained(t, state)
	j := d.warren.NewJoiner(t, d.berlin1, daemon.JoinerConfig{Name: "pod", Token: token.Text, State: state, Env: env, Attr: attr, Under: under})
	for range 2 {
		j.Start()
		j.WaitReady()
		if err := pollFor(t, 10*time.Second, func() error { return request(t.Context(), d.client, at(9001).String(), 1) }); err != nil {
			t.Errorf("through the container: %v", err)
		}
		// The first is remembered for ten minutes: its name was its own a moment ago.
		// A flow may pass before the edge has noted that the new key confirmed.
		if err := pollFor(t, 10*time.Second, func() error {
			states, err := d.states(t.Context(), "berlin")
			if err == nil && states[client.ConnectorUp] != 1 {
				err = fmt.Errorf("the connectors are %v; want one that is up", states)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
		checkContained(t, j, state)
		j.Drain()
	}
	// What is forgotten is enrolled again with such a token, and not with others.
	const warning = "is on tmpfs"
	if strings.Contains(j.Output(), warning) {
		t.Errorf("with an ephemeral token it warns of its state:\n%s", j.Output())
	}
	other := d.warren.NewJoiner(t, d.berlin1, daemon.JoinerConfig{Name: "pod", Token: d.edged.Token(t, berlinToken()).Text, State: state, Env: env, Attr: attr, Under: under})
	other.Start()
	other.WaitReady()
	says(t, other, warning)
}

// checkContained wants a process to be without powers and without places to
// write to: that the test tests what it says.
func checkContained(t *testing.T, j *daemon.Joiner, state string) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", j.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !strings.Contains(string(status), line) {
			t.Errorf("the connector's status has no line %q:\n%s", line, status)
		}
	}
	root := fmt.Sprintf("/proc/%d/root", j.Pid())
	for _, dir := range []string{"/", "/tmp", "/run", "/var/tmp", "/dev/shm", os.TempDir(), filepath.Dir(state)} {
		file, err := os.Create(filepath.Join(root, dir, "warren-test"))
		if err == nil {
			file.Close()
			t.Errorf("%q can be written to in the container", dir)
		} else if !errors.Is(err, unix.EROFS) && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("writing to %q in the container: %v", dir, err)
		}
	}
	if _, err := os.Stat(filepath.Join(root, state, "connector.key")); err != nil {
		t.Errorf("the connector's key is not in its state directory: %v", err)
	}
	entries, err := os.ReadDir(state)
	if err != nil || len(entries) > 0 {
		t.Errorf("outside of the container the state directory holds %v, %v", entries, err)
	}
}
