package proc

import (
	"strings"
	"sync"
)

// tailSize bounds what is kept of a program's output: enough for a log of a
// failed test, little enough for two hundred processes.
const tailSize = 256 << 10

// tail is a writer that keeps the last tailSize bytes.
type tail struct {
	mu      sync.Mutex
	buf     []byte
	dropped bool
}

func newTail() *tail { return &tail{} }

// Write never fails and never blocks.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - tailSize; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
		t.dropped = true
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dropped {
		return "[…]" + string(t.buf)
	}
	return string(t.buf)
}

// indent sets a program's output off from the test's own lines.
func indent(s string) string {
	if s == "" {
		return "    (nothing)"
	}
	return "    " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n    ")
}

// last is the end of s, at most n bytes of it, from the start of a line.
func last(s string, n int) string {
	if len(s) <= n {
		return s
	}
	s = s[len(s)-n:]
	return "[…]\n" + s[strings.IndexByte(s, '\n')+1:]
}
