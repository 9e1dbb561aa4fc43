package config

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/connector/state"
	"github.com/warrenmesh/warren/edge/wire"
)

func newToken(t *testing.T) (token wire.Token, text string) {
	t.Helper()
	key, err := wgtypes.ParseKey(edgeKey)
	if err != nil {
		t.Fatal(err)
	}
	token = wire.NewToken(false, []wire.Edge{{PublicKey: wire.Key{Key: key}, URLs: []string{"fra1.example.net:51820"}}})
	if text, err = token.Text(); err != nil {
		t.Fatal(err)
	}
	return token, text
}

func writeToken(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
}

// enrol makes a state directory that knows an edge.
func enrol(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state")
	d, err := state.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.SaveEdge(state.Edge{PublicKey: wire.Key{Key: wgtypes.Key{1}}, URLs: []string{"fra1.example.net:51820"}, Confirmed: true}); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadToken(t *testing.T) {
	token, text := newToken(t)
	for _, tt := range []struct {
		name, text string
		mode       os.FileMode // 0: no file
		enrolled   bool
		want       string // "": it is read
		none       bool   // or there is none, and no error
		note       string // but this, where it is not empty
	}{
		{name: "good", text: text, mode: 0o600},
		{name: "with a newline", text: text + "\r\n", mode: 0o440},
		{name: "open to all", text: text, mode: 0o644, want: "everybody on this machine has access (mode 0644): run chmod 600 "},
		{name: "cut short", text: text[:60], mode: 0o600, want: "the token was cut short: copy all of it"},
		{name: "typo", text: strings.Replace(text, text[30:31], string(text[30]^3), 1), mode: 0o600, want: "the token has a typo"},
		{name: "of a later release", text: "wrn2_" + text[5:], mode: 0o600, want: "install that release here"},
		{name: "empty", mode: 0o600, want: "it is empty: give what `warren token create` prints at the edge"},
		{name: "blank", text: " \n", mode: 0o600, want: "it is empty"},
		{name: "another secret", text: "hunter2 hunter2", mode: 0o600, want: "this is not a token"},
		{name: "missing", want: "no such file or directory: write into it, with mode 0600, what `warren token create` prints at the edge"},
		{name: "missing, and needed no more", enrolled: true, none: true},
		{name: "damaged, and needed no more", text: "hunter2 hunter2", mode: 0o600, enrolled: true, none: true, note: "this is not a token"},
		{name: "empty, and needed no more", mode: 0o600, enrolled: true, none: true, note: "it is empty"},
		{name: "cut short, and needed no more", text: text[:60], mode: 0o600, enrolled: true, none: true, note: "the token was cut short"},
		{name: "open to all, and needed no more", text: text, mode: 0o644, enrolled: true, none: true, note: "everybody on this machine has access"},
		{name: "good, and needed no more", text: text, mode: 0o600, enrolled: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "token")
			if tt.mode != 0 {
				writeToken(t, path, tt.text, tt.mode)
			}
			cfg := Default(home)
			cfg.TokenFile, cfg.Spec.StateDir = path, filepath.Join(t.TempDir(), "none")
			if tt.enrolled {
				cfg.Spec.StateDir = enrol(t)
			}
			err := cfg.ReadToken()
			notes := strings.Join(cfg.Notes(), "\n")
			if (notes == "") != (tt.note == "") || !strings.Contains(notes, tt.note) || strings.Contains(notes, "hunter2") {
				t.Errorf("it notes %q, want %q", notes, tt.note)
			}
			if tt.note != "" && !strings.HasSuffix(notes, "; not used: this connector has enrolled with edge fra1.example.net:51820") {
				t.Errorf("it notes %q, and not with whom it has enrolled", notes)
			}
			if tt.want == "" {
				if err != nil || (len(cfg.Spec.Token.Edges) == 0) != tt.none || !tt.none && cfg.Spec.Token.ID != token.ID {
					t.Errorf("ReadToken = %v, %v", cfg.Spec.Token, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), fmt.Sprintf("reading a token from file %q: ", path)) {
				t.Fatalf("ReadToken fails with %v, want %q", err, tt.want)
			}
			if errors.Is(err, ErrBadToken) != (tt.mode == 0o600) {
				t.Errorf("%v is an ErrBadToken: %v", err, errors.Is(err, ErrBadToken))
			}
			if len(tt.text) > 20 && strings.Contains(err.Error(), tt.text[len(tt.text)-20:]) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error holds the file's text: %v", err)
			}
			// The report of `connector check` has its place, and no secret either.
			cfg, err = parseText(home, fmt.Sprintf("[connector]\nstate_dir = %q\ntoken_file = %q\n%s", cfg.Spec.StateDir, path, least))
			if err != nil {
				t.Fatal(err)
			}
			err = cfg.Check(t.Context(), anyName{})
			if err == nil || !strings.HasPrefix(err.Error(), "/etc/warren/connector.toml:3: connector.token_file: ") || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("Check finds %v", err)
			}
		})
	}
}

// TestTokenFileThatIsNoFile: a pipe, as a shell's <(command) is one, and what
// nobody should be told to change the mode of.
func TestTokenFileThatIsNoFile(t *testing.T) {
	token, text := newToken(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString(text + "\n"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	cfg := Default(home)
	cfg.Spec.StateDir = filepath.Join(t.TempDir(), "none")
	cfg.TokenFile = fmt.Sprintf("/dev/fd/%d", r.Fd())
	if err := cfg.ReadToken(); err != nil || cfg.Spec.Token.ID != token.ID {
		t.Errorf("a pipe: %v, %v", cfg.Spec.Token, err)
	}
	for path, want := range map[string]string{os.TempDir(): "it is a directory", os.DevNull: "it is no regular file"} {
		cfg := Default(home)
		cfg.Spec.StateDir, cfg.TokenFile = filepath.Join(t.TempDir(), "none"), path
		if err := cfg.ReadToken(); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "chmod") || errors.Is(err, ErrBadToken) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestMountedToken: a secret as it is mounted, and one that a flag comes before.
func TestMountedToken(t *testing.T) {
	token, text := newToken(t)
	other, otherText := newToken(t)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "..data"), 0o700); err != nil {
		t.Fatal(err)
	}
	writeToken(t, filepath.Join(dir, "..data", "token"), text+"\n", 0o400)
	if err := os.Symlink(filepath.Join("..data", "token"), filepath.Join(dir, "token")); err != nil {
		t.Fatal(err)
	}
	cfg, err := parseText(env("HOME", "/h", "CREDENTIALS_DIRECTORY", dir), "[connector]\ntoken_file = 'token'\n")
	if err != nil {
		t.Fatal(err)
	}
	if err := cfg.ReadToken(); err != nil || cfg.Spec.Token.ID != token.ID {
		t.Errorf("ReadToken = %v, %v", cfg.Spec.Token, err)
	}
	if err := cfg.UseToken(otherText, "--token"); err != nil {
		t.Fatal(err)
	}
	if err := cfg.ReadToken(); err != nil || cfg.Spec.Token.ID != other.ID {
		t.Errorf("after --token, ReadToken = %v, %v", cfg.Spec.Token, err)
	}
	err = cfg.UseToken(text[:50], "--token")
	if err == nil || err.Error() != "reading a token from --token: the token was cut short: copy all of it" || cfg.Spec.Token.ID != other.ID {
		t.Errorf("a token that was cut: %v", err)
	}
}

// anyName is a resolver that knows every name.
type anyName struct{}

func (anyName) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	if host == "none.example" {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return []netip.Addr{netip.MustParseAddr("203.0.113.10")}, nil
}
