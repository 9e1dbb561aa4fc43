// Package host is what a daemon needs of the machine that it runs on, beyond
// its sockets: a private key in a file (LoadKey), a state directory for itself
// alone (LockDir), and the name of the process that has taken a port (Holder).
//
// It imports nothing of Warren, and must never log or return a secret in an
// error.
package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// lockName is the file in a state directory that its daemon locks.
const lockName = "lock"

// LockDir makes the state directory dir, mode 0700, and takes it for this
// process until release is called or the process ends, however it ends. what
// names the kind of daemon ("edge", "connector") in the error that a second
// one gets.
func LockDir(dir, what string) (release func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making state directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking state directory: %w", err)
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
