package store

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/warrenmesh/warren/integration/require"
)

const (
	envDisk = "WARREN_STORE_DISK" // set in the re-run that has namespaces of its own
	noDisk  = 3                   // its exit code where it cannot mount
)

// TestDiskFull runs in a mount namespace of its own, on a disk of 1 MB.
func TestDiskFull(t *testing.T) {
	if os.Getenv(envDisk) != "" {
		fillDisk(t, smallDisk(t))
		return
	}
	var why []string
	for _, flags := range []uintptr{syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, syscall.CLONE_NEWNS} { // the second as root alone
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestDiskFull$", fmt.Sprintf("-test.v=%v", testing.Verbose()))
		cmd.Env = append(os.Environ(), envDisk+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
		if flags&syscall.CLONE_NEWUSER != 0 {
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
		}
		output, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && (!errors.As(err, &exit) || exit.ExitCode() == noDisk) {
			why = append(why, fmt.Sprintf("%v %s", err, strings.TrimSpace(string(output))))
			continue
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, output)
		}
		t.Logf("%s", output)
		return
	}
	require.Missing(t, "a mount namespace (an unprivileged user namespace, or root): %s", strings.Join(why, "; "))
}

func smallDisk(t *testing.T) string {
	dir := t.TempDir()
	err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	if err == nil {
		err = unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,mode=0700")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mounting a small disk:", err)
		os.Exit(noDisk)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func fillDisk(t *testing.T, dir string) {
	path := filepath.Join(dir, "edge.db")
	s := mustOpen(t, path)
	want := map[string]string{}
	store := func(id string, size int) error {
		text := strings.Repeat("x", size)
		err := s.Update(func(tx *Tx) error { return tx.Put("a", id, text) })
		if err == nil {
			want["a/"+id] = `"` + text + `"`
		}
		return err
	}
	holds := func(when string) {
		t.Helper()
		if got := contents(t, s, "a"); !reflect.DeepEqual(got, want) {
			t.Fatalf("%s it holds %d records, want %d", when, len(got), len(want))
		}
		check(t, s)
	}
	var err error
	n := 0
	for ; err == nil; n++ {
		err = store(fmt.Sprint(n), 10_000)
	}
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "no space left on device: nothing was changed; make room there") {
		t.Fatalf("after %d records Update fails with %v", n, err)
	}
	t.Logf("%d records of 10 kB on a disk of 1 MB: %v", n-1, err)
	holds("when the disk is full")
	for i := range 20 { // again and again, of every size; a small one may find room in the file
		if err := store(fmt.Sprint("more", i), 1000<<(i%8)); err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("the disk is full, and Update fails with %v", err)
		}
	}
	holds("after twenty more updates")

	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, path)
	holds("opened again on the full disk")

	// No second file is half made.
	second, err := Open(filepath.Join(dir, "second.db"))
	if err == nil {
		_ = second.Close()
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("making a second state file: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("the disk has %v, %v", entries, err)
	}

	// With room again the store goes on, without being opened anew.
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=2m"); err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		if err := store(fmt.Sprint("later", i), 10_000); err != nil {
			t.Fatalf("with room again: %v", err)
		}
	}
	holds("with room again")
}
