package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lookEvery is how often waitingReader looks whether its context has ended: a
// person who presses Ctrl-C does not notice it, and neither does the machine.
const lookEvery = 50 * time.Millisecond

// silentLooks is how often it looks before it tells that it waits: a command
// at the other end of a pipe is done by then.
const silentLooks = 20

// waitingReader reads a file whose other end may take its time, as a terminal,
// a pipe or a FIFO, and gives up with ctx: a plain read would go on for good.
// The caller keeps the file and closes it.
type waitingReader struct {
	ctx      context.Context
	file     *os.File
	waits    func() // called once, when nothing has come for a second
	looks    int
	terminal bool // one read is one line, ended by Enter or by Ctrl-D
	ended    bool
}

func newWaitingReader(ctx context.Context, f *os.File, waits func()) *waitingReader {
	return &waitingReader{ctx: ctx, file: f, waits: waits, terminal: isTerminal(f)}
}

// Read fails once the context has ended.
func (r *waitingReader) Read(p []byte) (int, error) {
	if r.ended {
		return 0, io.EOF
	}
	if err := r.wait(); err != nil {
		return 0, err
	}
	n, err := r.file.Read(p)
	// Ctrl-D behind a word ends the read, not the terminal (termios(3), VEOF).
	r.ended = r.terminal && n > 0 && p[n-1] != '\n'
	return n, err
}

// wait returns once there is something to read, or the end.
func (r *waitingReader) wait() error {
	fd := r.file.Fd()
	if fd > math.MaxInt32 {
		return os.ErrClosed
	}
	for {
		if r.ctx.Err() != nil {
			return errors.New("stopped before one came")
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(lookEvery/time.Millisecond))
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("waiting for input: %w", err)
		case err == nil && n > 0:
			return nil
		}
		if r.looks++; r.looks == silentLooks {
			r.waits()
		}
	}
}

// isTerminal tells whether a person may be at the other end.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
