package integration

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/warrenmesh/warren/integration/netns"
)

// A stream test moves pseudo-random bytes both ways at once, in writes of
// random sizes, half-closes, and compares every byte that arrives with what
// was sent: the two ends grow the same bytes from the same seed, so a byte
// that is lost, doubled, changed or another connection's is seen at its offset.

// plan is what one connection moves. The client sends it ahead of its stream.
type plan struct {
	Seed     uint64
	Up, Down int64  // bytes from client to origin, and back
	MaxWrite uint32 // the largest single write
}

const planSize = 8 + 8 + 8 + 4

// bytesOf grows the bytes of one direction (0 up, 1 down) of a plan.
func (p plan) bytesOf(direction byte) io.Reader {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], p.Seed)
	seed[31] = direction
	return rand.NewChaCha8(seed)
}

// send writes n bytes of a reader in writes of random sizes, and half-closes.
func (p plan) send(conn net.Conn, source io.Reader, n int64, direction byte) error {
	sizes := rand.New(rand.NewPCG(p.Seed, uint64(direction)))
	buf := make([]byte, p.MaxWrite)
	for sent := int64(0); sent < n; {
		size := min(int64(1+sizes.IntN(int(p.MaxWrite))), n-sent)
		io.ReadFull(source, buf[:size]) // a generator does not fail
		wrote, err := conn.Write(buf[:size])
		sent += int64(wrote)
		if err != nil {
			return fmt.Errorf("writing after %d of %d bytes: %w", sent, n, err)
		}
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return fmt.Errorf("half-closing after %d bytes: %w", n, err)
	}
	return nil
}

// errCorrupt is what no test may ever see.
var errCorrupt = errors.New("corrupt data")

// receive reads to the end and compares with what was to come. It returns the
// number of right bytes.
func receive(conn net.Conn, want io.Reader, n int64) (int64, error) {
	got, expected := make([]byte, 64<<10), make([]byte, 64<<10)
	var right int64
	for {
		count, err := conn.Read(got)
		io.ReadFull(want, expected[:count])
		if !bytes.Equal(got[:count], expected[:count]) {
			at := 0
			for got[at] == expected[at] {
				at++
			}
			return right, fmt.Errorf("%w: byte %d is %#02x, was sent as %#02x", errCorrupt, right+int64(at), got[at], expected[at])
		}
		right += int64(count)
		switch {
		case right > n:
			return right, fmt.Errorf("%w: %d bytes arrived of %d", errCorrupt, right, n)
		case err == io.EOF && right < n:
			return right, fmt.Errorf("%w: the stream ended in order after %d of %d bytes", errCorrupt, right, n)
		case err == io.EOF:
			return right, nil
		case err != nil:
			return right, fmt.Errorf("reading after %d of %d bytes: %w", right, n, err)
		}
	}
}

// both runs the two directions of a connection and closes it.
func (p plan) both(conn net.Conn, out, in byte, nOut, nIn int64) error {
	defer conn.Close()
	var sendErr error
	var wg sync.WaitGroup
	wg.Go(func() {
		if sendErr = p.send(conn, p.bytesOf(out), nOut, out); sendErr != nil {
			conn.SetDeadline(time.Unix(1, 0)) // ends the other direction too
		}
	})
	_, receiveErr := receive(conn, p.bytesOf(in), nIn)
	if receiveErr != nil {
		conn.SetDeadline(time.Unix(1, 0))
	}
	wg.Wait()
	return errors.Join(sendErr, receiveErr)
}

// run is the client's side: it dials from a host, tells the plan, moves it.
func (p plan) run(ctx context.Context, host *netns.Host, address string) error {
	conn, err := host.Dial(ctx, "tcp", address)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	head := binary.BigEndian.AppendUint64(nil, p.Seed)
	head = binary.BigEndian.AppendUint64(head, uint64(p.Up))
	head = binary.BigEndian.AppendUint64(head, uint64(p.Down))
	head = binary.BigEndian.AppendUint32(head, p.MaxWrite)
	if _, err := conn.Write(head); err != nil {
		conn.Close()
		return err
	}
	return p.both(conn, 0, 1, p.Up, p.Down)
}

// streamOrigin is the private end: it reads each connection's plan and does
// the other half. Errors other than a client's disappearance are kept.
type streamOrigin struct {
	mu       sync.Mutex
	served   int
	problems []error
}

func (o *streamOrigin) serve(conn net.Conn) {
	var head [planSize]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		conn.Close()
		return
	}
	p := plan{
		Seed: binary.BigEndian.Uint64(head[0:]), Up: int64(binary.BigEndian.Uint64(head[8:])),
		Down: int64(binary.BigEndian.Uint64(head[16:])), MaxWrite: binary.BigEndian.Uint32(head[24:]),
	}
	err := p.both(conn, 1, 0, p.Down, p.Up)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.served++
	if err != nil {
		o.problems = append(o.problems, fmt.Errorf("stream %d at the origin: %w", p.Seed, err))
	}
}

// result is what the origin has seen since the last call.
func (o *streamOrigin) result() (served int, problems []error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	served, problems = o.served, o.problems
	o.served, o.problems = 0, nil
	return served, problems
}

// listen serves connections on a host until the test ends, each on its own
// goroutine, and waits for them at the end.
func listen(t *testing.T, host *netns.Host, address string, serve func(net.Conn)) {
	t.Helper()
	ln, err := host.Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{conns: map[net.Conn]bool{}}
	s.accept(ln, serve)
	t.Cleanup(func() { ln.Close(); s.close(); s.wg.Wait() })
}

// server is the connections that listen has accepted.
type server struct {
	wg     sync.WaitGroup
	mu     sync.Mutex
	conns  map[net.Conn]bool
	closed bool
}

// accept serves what a listener accepts until it is closed.
func (s *server) accept(ln net.Listener, serve func(net.Conn)) {
	s.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			if s.add(conn) {
				s.wg.Go(func() { defer s.remove(conn); serve(conn) })
			}
		}
	})
}

func (s *server) add(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		conn.Close()
		return false
	}
	s.conns[conn] = true
	return true
}

func (s *server) remove(conn net.Conn) {
	conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
}

func (s *server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for conn := range s.conns {
		conn.Close()
	}
}

// moveStreams runs many plans at once and fails the test for each that went
// wrong at either end, or stands still for so long that limit is over.
func moveStreams(t *testing.T, limit time.Duration, o *streamOrigin, host *netns.Host, address string, plans []plan) {
	t.Helper()
	o.result()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	errs := make([]error, len(plans))
	var wg sync.WaitGroup
	for i, p := range plans {
		wg.Go(func() { errs[i] = p.run(ctx, host, address) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("stream %d: %v", plans[i].Seed, err)
		}
	}
	err := pollFor(t, 10*time.Second, func() error {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.served < len(plans) {
			return fmt.Errorf("the origin has seen the end of %d streams of %d", o.served, len(plans))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	_, problems := o.result()
	for _, problem := range problems {
		t.Error(problem)
	}
}
