package host

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// ReadPrivate reads a file that holds a secret, at most limit bytes of it. It
// refuses one that everybody on the machine may read or write, and follows
// symlinks, as mounted secrets have them. The error begins with the quoted
// path, wraps fs.ErrNotExist where there is no file, and holds nothing of its
// content.
func ReadPrivate(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, about(path, err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, about(path, err)
	}
	// A group may read it: service managers hand out secrets so.
	if perm := info.Mode().Perm(); perm&0o007 != 0 {
		return nil, fmt.Errorf("%q: everybody on this machine has access (mode %04o): run chmod 600 %s, and replace what it holds if others use this machine", path, perm, path)
	}
	text, err := io.ReadAll(io.LimitReader(f, limit))
	if err != nil {
		return nil, about(path, err)
	}
	return text, nil
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
