// Package host is what a daemon needs of the machine that it runs on, beyond
// its sockets: files that hold secrets (ReadPrivate, WritePrivate), a private
// key in one (LoadKey), a state directory for itself alone (LockDir), and the
// name of the process that has taken a port (Holder).
//
// It imports nothing of Warren, and must never log or return a secret in an
// error.
package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// lockName is the file in a state directory that its daemon locks.
const lockName = "lock"

// LockDir makes the state directory dir, mode 0700, and takes it for this
// process until release is called or the process ends, however it ends. what
// names the kind of daemon ("edge", "connector") in the error that a second
// one gets. A directory that everybody on the machine may enter, or that this
// user may not write in, is refused.
func LockDir(dir, what string) (release func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making state directory %q: %w", dir, explain(err, dir))
	}
	if err := CheckDir(dir); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking state directory %q: %w", dir, explain(err, dir))
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("locking state directory %q: another %s runs with it: stop that one, or give this one its own state_dir", dir, what)
		}
		return nil, fmt.Errorf("locking state directory %q: %w", dir, err)
	}
	return func() { _ = f.Close() }, nil
}

// CheckDir says in one sentence why dir cannot be a state directory, and what
// to do about it; nil where it can, as one that is missing and can be made. It
// changes nothing.
func CheckDir(dir string) error {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err := unix.Access(existing(dir), unix.W_OK|unix.X_OK); err != nil {
			return fmt.Errorf("making state directory %q: %w", dir, explain(err, dir))
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening state directory %q: %w", dir, explain(err, dir))
	}
	if !info.IsDir() {
		return fmt.Errorf("opening state directory %q: it is a file: choose another state_dir", dir)
	}
	// A group may enter it: some service managers want that.
	if perm := info.Mode().Perm(); perm&0o007 != 0 {
		return fmt.Errorf("opening state directory %q: everybody on this machine has access (mode %04o): run chmod 700 %s, or under systemd set StateDirectoryMode=0700", dir, perm, dir)
	}
	if err := unix.Access(dir, unix.R_OK|unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("writing in state directory %q: %w", dir, explain(err, dir))
	}
	return nil
}

// existing returns the closest directory above path that is there.
func existing(path string) string {
	for {
		up := filepath.Dir(path)
		if _, err := os.Stat(up); err == nil || up == path {
			return up
		}
		path = up
	}
}

// explain adds what to do to what the system says about a state directory.
func explain(err error, dir string) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err // the caller names the directory
	}
	switch {
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: mount a volume or a tmpfs there, or choose another state_dir", err)
	case errors.Is(err, fs.ErrPermission):
		give := fmt.Sprintf("chown -R %d %s", os.Geteuid(), dir)
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			give = fmt.Sprintf("install -d -m 700 -o %d %s", os.Geteuid(), dir)
		}
		return fmt.Errorf("%w: run %s as root, or choose another state_dir", err, give)
	case errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%w: a part of the path is a file: choose another state_dir", err)
	}
	return err
}
