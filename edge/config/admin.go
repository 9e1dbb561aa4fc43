package config

import (
	"fmt"
	"path/filepath"

	"github.com/warrenmesh/warren/configs/strict"
)

// Admin is the [admin] table: how commands reach a running edge.
type Admin struct {
	// Socket is the path of the Unix socket, mode 0660, at most 107 bytes.
	// Default: $RUNTIME_DIRECTORY/edge.sock, else
	// $XDG_RUNTIME_DIR/warren-edge.sock, else state_dir/edge.sock.
	Socket string `toml:"socket"`

	Listen strict.Unsupported `toml:"listen" hint:"the socket serves the same API"`
}

// maxSocketPath is what struct sockaddr_un holds besides its final zero.
const maxSocketPath = 107

func (l *loader) buildAdmin() {
	a := l.file.Admin
	if a.Socket != "" {
		a.Socket = l.resolve("admin.socket", a.Socket)
	} else {
		a.Socket = AdminSocket(l.env, l.cfg.Edge.StateDir)
	}
	if n := len(a.Socket); n > maxSocketPath {
		l.doc.AddHidden("admin.socket", fmt.Sprintf("%q has %d bytes, more than the %d of a Unix socket's path", a.Socket, n, maxSocketPath), "choose a shorter one")
	}
	l.cfg.Admin = a
}

// AdminSocket is the default of [admin] socket.
func AdminSocket(env Env, stateDir string) string {
	if dir := firstDir(env("RUNTIME_DIRECTORY")); dir != "" {
		return filepath.Join(dir, "edge.sock")
	}
	if dir := env("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "warren-edge.sock")
	}
	return filepath.Join(stateDir, "edge.sock")
}
