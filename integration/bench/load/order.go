package load

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// A bulk stream begins with one line from the client, the order, and a byte
// from the origin. When all its streams have come so far the client sends a
// byte in each, and the stream runs: down until the client cuts it, up until
// the origin has sent one line, its intake. Nothing depends on half-close.
const (
	readyByte = 'R'
	goByte    = 'G'
)

// order is the first line of a bulk stream.
type order struct {
	Up       bool          `json:"up"`
	Seed     uint64        `json:"seed"`
	Buffer   int           `json:"buffer"`
	Warmup   time.Duration `json:"warmup"`
	Duration time.Duration `json:"duration"`
}

// Buffers of bulk: large enough that system calls do not count, and of 32
// streams together no more than what the caches of a server hold.
const (
	maxBuffer   = 256 << 10
	minBuffer   = 32 << 10
	allBuffers  = 8 << 20
	maxLine     = 1024
	handshaking = time.Minute // from connect to the go byte
	// grace is how long a stream may take to end after its window: the
	// origin's intake has to come through a tunnel that is full.
	grace = 10 * time.Second
)

func bufferFor(streams int) int {
	return max(minBuffer, min(maxBuffer, allBuffers/streams&^4095))
}

func parseOrder(line []byte) (order, error) {
	var o order
	if err := json.Unmarshal(line, &o); err != nil {
		return order{}, fmt.Errorf("reading the order of a stream: %w", err)
	}
	if o.Buffer < 1 || o.Buffer > maxBuffer || o.Warmup < 0 || o.Warmup > maxDuration || o.Duration <= 0 || o.Duration > maxDuration {
		return order{}, fmt.Errorf("reading the order of a stream: %q is out of bounds", line)
	}
	return o, nil
}

// intake is what a receiver counted of one stream.
type intake struct {
	Bytes uint64        `json:"bytes"`
	Stall time.Duration `json:"stall"`
	Wrong *Difference   `json:"wrong,omitempty"`
	Error string        `json:"error,omitempty"` // another reason for which it ended early
}

// remoteError is the reason for which the origin's end of a stream failed.
type remoteError string

func (e remoteError) Error() string { return string(e) }

// err is the failure that the other side reports, if any.
func (in intake) err() error {
	switch {
	case in.Wrong != nil:
		return in.Wrong
	case in.Error != "":
		return remoteError("at the origin " + in.Error)
	}
	return nil
}

func writeLine(w io.Writer, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(line, '\n'))
	return err
}

// readLine reads up to a newline, which it removes, a byte at a time: what
// follows belongs to somebody else.
func readLine(r io.Reader) ([]byte, error) {
	line := make([]byte, 0, 256)
	for len(line) < maxLine {
		var b [1]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return nil, err
		}
		if b[0] == '\n' {
			return line, nil
		}
		line = append(line, b[0])
	}
	return nil, errors.New("reading a line: it is too long")
}

// expect reads one byte, which must be want.
func expect(r io.Reader, want byte) error {
	var b [1]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return err
	}
	if b[0] != want {
		return &Difference{Want: want, Got: b[0]}
	}
	return nil
}
