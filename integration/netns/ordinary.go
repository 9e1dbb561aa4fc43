package netns

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/warrenmesh/warren/integration/require"
)

// Ordinary returns what makes a process run as somebody other than root, and
// that somebody's ids as this process must use them in chown. Servers refuse
// to run as root (PostgreSQL), or drop to an account that need not exist.
func Ordinary() (attr *syscall.SysProcAttr, uid, gid int) {
	mode, outer, _ := strings.Cut(os.Getenv(envMode), "/")
	me, _ := strconv.Atoi(outer)
	switch {
	case os.Getuid() != 0: // no namespaces, and nobody special
		return &syscall.SysProcAttr{}, os.Getuid(), os.Getgid()
	case mode == modeUser && me != 0:
		// Only one id exists here. A user namespace inside ours gives it back
		// its name of outside, and takes root's powers away.
		return &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: me, HostID: 0, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: me, HostID: 0, Size: 1}},
		}, 0, 0
	default:
		const nobody = 65534
		return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}, nobody, nobody
	}
}

// Directory makes a directory that an ordinary person can enter and that goes
// away with the test. (The test's own TempDir lies below a directory that only
// the test's user may enter.) what becomes part of its name; the name is short
// enough for a Unix socket in it.
func Directory(tb require.TB, what string) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "warren-"+what+"-")
	if err != nil {
		tb.Fatalf("making a directory for %s: %v", what, err)
		return ""
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Errorf("removing the directory of %s: %v", what, err)
		}
	})
	Give(tb, dir)
	return dir
}

// Give hands a directory and what is in it to the ordinary person.
func Give(tb require.TB, dir string) {
	tb.Helper()
	_, uid, gid := Ordinary()
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, gid)
	})
	if err != nil {
		tb.Fatalf("giving %q away: %v", dir, err)
	}
}
