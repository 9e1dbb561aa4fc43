package admin

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	// socketMode lets the edge's user and group in, and nobody else.
	socketMode = 0o660
	// directoryMode is for a directory that Listen has to make: the group
	// must be able to reach the socket.
	directoryMode = 0o750
	// maxPath is what sockaddr_un holds, less the closing zero (unix(7)).
	maxPath = 107
	// liveTimeout is how long the edge that may hold the socket has to accept.
	liveTimeout = 2 * time.Second
)

// Listen makes the unix socket at path, with mode 0660. Where its directory
// is missing it is made, with mode 0750. A socket that nobody listens on any
// more is replaced; one that answers is another edge's, and is refused, and so
// is anything else of that name. Closing the listener removes the socket, if
// it is still its own.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), directoryMode); err != nil {
		return nil, fmt.Errorf("making the directory of admin socket %q: %w; set admin.socket to a path that the edge may write to", path, err)
	}
	if err := refuseLive(path); err != nil {
		return nil, err
	}
	// The socket gets its mode under another name and is then moved into
	// place: so nobody can open it before, and there is never no socket.
	staged := filepath.Join(filepath.Dir(path), ".w"+rand.Text()[:6])
	if n := max(len(path), len(staged)); n > maxPath {
		return nil, fmt.Errorf("listening on admin socket %q: its path has %d bytes and the system allows %d; set admin.socket to a shorter one", path, n, maxPath)
	}
	ln, err := net.Listen("unix", staged)
	if err != nil {
		return nil, fmt.Errorf("listening on admin socket %q: %w; set admin.socket to a path that the edge may write to", path, plainErrno(err))
	}
	s := &socket{UnixListener: ln.(*net.UnixListener), path: path}
	s.SetUnlinkOnClose(false) // the name it knows is the staged one
	if err := s.place(staged); err != nil {
		_ = s.UnixListener.Close()
		_ = os.Remove(staged)
		return nil, fmt.Errorf("placing admin socket %q: %w", path, err)
	}
	return s, nil
}

// refuseLive returns an error unless path is free or a socket that is stale.
func refuseLive(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("looking at admin socket %q: %w", path, err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("listening on admin socket %q: the name is taken by something that is not a socket; remove it or set admin.socket to another path", path)
	}
	conn, err := net.DialTimeout("unix", path, liveTimeout)
	switch {
	case err == nil:
		_ = conn.Close()
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("looking at admin socket %q: %w; it belongs to another user", path, plainErrno(err))
	}
	// It accepted, or its queue is full, or it is some other kind of socket
	// that somebody holds: in each case it is alive.
	return fmt.Errorf("listening on admin socket %q: another edge runs and answers there; stop it, or set admin.socket to another path", path)
}

// socket is the listener, which knows its file.
type socket struct {
	*net.UnixListener
	path string
	file os.FileInfo
	once sync.Once
}

// place gives the staged socket its mode and its name.
func (s *socket) place(staged string) error {
	if err := os.Chmod(staged, socketMode); err != nil {
		return err
	}
	info, err := os.Lstat(staged)
	if err != nil {
		return err
	}
	s.file = info
	return os.Rename(staged, s.path)
}

// Close stops listening and removes the socket's file, unless another
// process has put its own in its place.
func (s *socket) Close() error {
	s.once.Do(func() {
		if info, err := os.Lstat(s.path); err == nil && os.SameFile(info, s.file) {
			_ = os.Remove(s.path)
		}
	})
	return s.UnixListener.Close()
}

// Addr is the socket's path, and not the name that it was staged under.
func (s *socket) Addr() net.Addr { return &net.UnixAddr{Name: s.path, Net: "unix"} }

// plainErrno takes the staged name out of err.
func plainErrno(err error) error {
	var number syscall.Errno
	if errors.As(err, &number) {
		return number
	}
	return err
}
