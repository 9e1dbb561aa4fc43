package load

import (
	"errors"
	"io"
	"net"
	"os"
	"time"
)

// pump writes the stream of a seed until conn fails, by its write deadline or
// because it was closed.
func pump(conn net.Conn, seed uint64, buf []byte) error {
	out := pattern{seed: seed}
	for {
		out.fill(buf)
		if _, err := conn.Write(buf); err != nil {
			return err
		}
	}
}

// receive reads the stream of a seed until the window ends, counts what
// arrives in it and checks every byte. It returns early, with the error also
// in the intake, when the stream ends or its content is wrong.
func receive(conn net.Conn, seed uint64, buf []byte, w window) (intake, error) {
	var (
		in     intake
		place  = pattern{seed: seed}
		moving = progress{window: w}
	)
	conn.SetReadDeadline(w.to)
	for {
		n, err := conn.Read(buf)
		now := time.Now()
		if at := place.check(buf[:n]); at >= 0 {
			wrong := pattern{seed: seed, offset: place.offset}
			var want [1]byte
			wrong.fill(want[:])
			in.Wrong = &Difference{Offset: place.offset, Want: want[0], Got: buf[at]}
			return in, in.Wrong
		}
		if n > 0 {
			moving.done(now)
		}
		if w.holds(now) {
			in.Bytes += uint64(n)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			in.Error = reason(err)
			return in, err
		}
	}
	in.Stall = moving.stall()
	return in, nil
}

// discard reads whatever comes until conn ends.
func discard(conn io.Reader, buf []byte) {
	for {
		if _, err := conn.Read(buf); err != nil {
			return
		}
	}
}
