package host

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// ReadPrivate reads a file that holds a secret, at most limit bytes of it. It
// refuses what is no regular file, and one that everybody on the machine may
// read or write, and follows symlinks, as mounted secrets have them. The error
// begins with the quoted path, wraps fs.ErrNotExist where there is no file, and
// holds nothing of its content.
func ReadPrivate(path string, limit int64) ([]byte, error) {
	return readSecret(path, limit, checkFile)
}

// ReadPrivateOrPipe is ReadPrivate, but takes a pipe too, as a shell's
// <(command) is one, and waits for its writer. A pipe is another user's where
// neither this one nor root made it: that is refused.
func ReadPrivateOrPipe(path string, limit int64) ([]byte, error) {
	return readSecret(path, limit, func(path string, info fs.FileInfo) error {
		if info.Mode().Type() != fs.ModeNamedPipe {
			return checkFile(path, info)
		}
		if of, ok := info.Sys().(*syscall.Stat_t); ok && of.Uid != 0 && int(of.Uid) != os.Geteuid() {
			return fmt.Errorf("%q: it is a pipe of another user (uid %d): name a file or a pipe of your own", path, of.Uid)
		}
		return nil
	})
}

// readSecret reads at most limit bytes of what check lets pass, before it is
// opened, which a pipe or a device would feel, and after.
func readSecret(path string, limit int64, check func(path string, info fs.FileInfo) error) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, about(path, err)
	}
	if err := check(path, info); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, about(path, err)
	}
	defer func() { _ = f.Close() }()
	if info, err = f.Stat(); err != nil {
		return nil, about(path, err)
	}
	if err := check(path, info); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, limit))
	if err != nil {
		return nil, about(path, err)
	}
	return text, nil
}

// checkFile refuses what is no file, and then one that is open to all: nobody
// is to be told to change the mode of /tmp or /dev/null.
func checkFile(path string, info fs.FileInfo) error {
	switch {
	case info.IsDir():
		return fmt.Errorf("%q: it is a directory: name a file", path)
	case !info.Mode().IsRegular():
		return fmt.Errorf("%q: it is no regular file: name one", path)
	}
	// A group may read it: service managers hand out secrets so.
	if perm := info.Mode().Perm(); perm&0o007 != 0 {
		return fmt.Errorf("%q: everybody on this machine has access (mode %04o): run chmod 600 %s, and replace what it holds if others use this machine", path, perm, path)
	}
	return nil
}

// about is what the system says about a file, in the words of this package.
func about(path string, err error) error {
	var of *fs.PathError
	if errors.As(err, &of) {
		err = of.Err
	}
	return fmt.Errorf("%q: %w", path, err)
}

// WritePrivate writes a file of mode 0600 so that a crash leaves what was
// there before or all of text, never less: temporary file, fsync, rename,
// fsync of the directory. The temporary file is path with ".tmp" behind it; a
// crash may leave it, and the next write replaces it. The caller is the only
// one that writes in the directory: it holds LockDir's lock.
func WritePrivate(path string, text []byte) (err error) {
	temp := path + ".tmp"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(temp)
		}
	}()
	if _, err := f.Write(text); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return Rename(temp, path)
}

// Rename renames a file within its directory, and returns once that outlives a
// crash of the machine.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}
