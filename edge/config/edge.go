package config

import (
	"fmt"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/warrenmesh/warren/configs/strict"
)

// Edge is the [edge] table: what this machine is called and where it keeps
// its state.
type Edge struct {
	// Name of this edge in logs and in `warren status`: 1 to 63 letters,
	// digits, "-", "_" or ".". Default: edge.
	Name string `toml:"name" default:"edge"`
	// StateDir holds the private key and the state of this edge, mode 0700. A
	// relative path starts at the directory of the file that names it.
	// Default: $STATE_DIRECTORY, else $XDG_STATE_HOME/warren, else
	// $HOME/.local/state/warren.
	StateDir string `toml:"state_dir"`
}

// Validate implements strict.Validator.
func (e *Edge) Validate(doc *strict.Doc, path string) { checkName(doc, path+".name", e.Name) }

func (l *loader) buildEdge() {
	e := l.file.Edge
	switch {
	case e.StateDir != "":
		e.StateDir = l.resolve("edge.state_dir", e.StateDir)
	default:
		e.StateDir = StateDir(l.env)
	}
	if e.StateDir == "" && !l.doc.Bad("edge.state_dir") {
		l.doc.Add("edge.state_dir", "missing, and none of $STATE_DIRECTORY, $XDG_STATE_HOME and $HOME is set", "write a directory")
	}
	l.cfg.Edge = e
}

// StateDir is the default of [edge] state_dir: "" where the environment says
// nothing.
func StateDir(env Env) string {
	if dir := firstDir(env("STATE_DIRECTORY")); dir != "" {
		return dir
	}
	if dir := env("XDG_STATE_HOME"); filepath.IsAbs(dir) { // XDG: relative ones are to be ignored
		return filepath.Join(dir, "warren")
	}
	if dir := env("HOME"); dir != "" {
		return filepath.Join(dir, ".local", "state", "warren")
	}
	return ""
}

// firstDir returns the first of the directories that systemd sets, parted by
// colons.
func firstDir(list string) string {
	dir, _, _ := strings.Cut(list, ":")
	return dir
}

// resolve makes a path of the file absolute, or relative to where the file is.
func (l *loader) resolve(key, path string) string {
	if i := strings.IndexFunc(path, unicode.IsControl); i >= 0 && !l.doc.Bad(key) {
		l.doc.Add(key, fmt.Sprintf("a path with the control character %q", path[i]), "write a plain path")
	}
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(l.doc.File(key)), path)
}

// resolveSecret is resolve for secrets: a relative path is a credential where
// systemd provides them.
func (l *loader) resolveSecret(key, path string) string {
	resolved := l.resolve(key, path)
	if dir := l.env("CREDENTIALS_DIRECTORY"); dir != "" && path != "" && !filepath.IsAbs(path) {
		return filepath.Join(dir, path)
	}
	return resolved
}
