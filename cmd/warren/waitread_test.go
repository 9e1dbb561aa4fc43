package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/warrenmesh/warren/integration/require"
)

// terminal is a new terminal: what is written to keys is typed there.
func terminal(t *testing.T) (keys, screen *os.File) {
	t.Helper()
	keys, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		require.Missing(t, "a pseudo-terminal (/dev/ptmx): %v", err)
	}
	t.Cleanup(func() { _ = keys.Close() })
	n, err := unix.IoctlGetInt(int(keys.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(keys.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	screen, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		require.Missing(t, "a pseudo-terminal (/dev/pts): %v", err)
	}
	t.Cleanup(func() { _ = screen.Close() })
	return keys, screen
}

// A person is asked, and ends with either key, once.
func TestPastedToken(t *testing.T) {
	for name, end := range map[string]string{"Enter": "\n", "Ctrl-D": "\x04"} {
		t.Run(name, func(t *testing.T) {
			keys, screen := terminal(t)
			if _, err := io.WriteString(keys, "\n wrn1_AA"+end); err != nil {
				t.Fatal(err)
			}
			var said bytes.Buffer
			p := &program{stdin: screen, stderr: &said}
			if text, err := p.pastedToken(t.Context()); err != nil || text != "wrn1_AA" {
				t.Errorf("read %q, %v", text, err)
			}
			if said.String() != "paste the token, then Ctrl-D or Enter\n" {
				t.Errorf("said %q", &said)
			}
		})
	}
}

// The end of the context ends a read that has begun.
func TestWaitingReaderStops(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, err := io.WriteString(w, "half of a "); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	text, err := firstLine(newWaitingReader(ctx, r, stop))
	if text != "" || err == nil || !strings.Contains(err.Error(), "stopped") {
		t.Errorf("read %q, %v", text, err)
	}
}
