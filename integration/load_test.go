package integration

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/integration/proc"
)

// pollFor polls until attempt succeeds, for at most limit.
func pollFor(t *testing.T, limit time.Duration, attempt func() error) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return proc.Poll(ctx, attempt)
}

// checkedEcho is an origin that reads a seed, checks that what follows is what
// the seed grows, and sends it back. It counts what it sees.
type checkedEcho struct {
	mu      sync.Mutex
	live    int
	corrupt []error
}

func (e *checkedEcho) serve(conn net.Conn) {
	e.mu.Lock()
	e.live++
	e.mu.Unlock()
	err := e.echo(conn)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.live--
	if errors.Is(err, errCorrupt) {
		e.corrupt = append(e.corrupt, err)
	}
}

func (e *checkedEcho) echo(conn net.Conn) error {
	var head [8]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return err
	}
	seed := binary.BigEndian.Uint64(head[:])
	want := plan{Seed: seed}.bytesOf(0)
	got, expected := make([]byte, 16<<10), make([]byte, 16<<10)
	for at := int64(0); ; {
		n, err := conn.Read(got)
		io.ReadFull(want, expected[:n])
		if !bytes.Equal(got[:n], expected[:n]) {
			return fmt.Errorf("%w: session %d at the origin, between bytes %d and %d", errCorrupt, seed, at, at+int64(n))
		}
		at += int64(n)
		if err != nil {
			return err
		}
		if _, err := conn.Write(got[:n]); err != nil {
			return err
		}
	}
}

func (e *checkedEcho) seen() (live int, corrupt []error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.live, slices.Clone(e.corrupt)
}

// session is a long connection that talks to a checkedEcho without a pause
// longer than pace, until it fails or is closed.
type session struct {
	conn  net.Conn
	seed  uint64
	ended chan struct{}

	mu    sync.Mutex
	right int64 // bytes that came back as they were sent
	err   error
	at    time.Time // when it ended
}

// sessionPace is the pause between two writes of a session.
const sessionPace = 20 * time.Millisecond

// openSession dials and waits until the first bytes have come back.
func openSession(ctx context.Context, host *netns.Host, address string, seed uint64) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := host.Dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	s := &session{conn: conn, seed: seed, ended: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(s.talk)
	wg.Go(s.listen)
	go func() { wg.Wait(); close(s.ended) }()
	err = proc.Poll(ctx, func() error {
		if right, _, err := s.state(); err != nil {
			return proc.Fatal(err)
		} else if right == 0 {
			return errors.New("nothing has come back")
		}
		return nil
	})
	if err != nil {
		s.close()
		return nil, fmt.Errorf("opening session %d: %w", seed, err)
	}
	return s, nil
}

// talk sends up to a KiB every sessionPace.
func (s *session) talk() {
	source, buf := plan{Seed: s.seed}.bytesOf(0), make([]byte, 1024)
	if _, err := s.conn.Write(binary.BigEndian.AppendUint64(nil, s.seed)); err != nil {
		return
	}
	ticker := time.NewTicker(sessionPace)
	defer ticker.Stop()
	for i := 0; ; i++ {
		n := 1 + (i*131)%len(buf)
		io.ReadFull(source, buf[:n])
		if _, err := s.conn.Write(buf[:n]); err != nil {
			return // listen hears of it too
		}
		<-ticker.C
	}
}

// listen checks what comes back, until the end.
func (s *session) listen() {
	defer s.conn.Close()
	want := plan{Seed: s.seed}.bytesOf(0)
	got, expected := make([]byte, 4096), make([]byte, 4096)
	for {
		n, err := s.conn.Read(got)
		io.ReadFull(want, expected[:n])
		s.mu.Lock()
		if !bytes.Equal(got[:n], expected[:n]) {
			err = fmt.Errorf("%w: session %d after byte %d", errCorrupt, s.seed, s.right)
		}
		s.right += int64(n)
		if err != nil {
			s.err, s.at = err, time.Now()
		}
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (s *session) state() (right int64, at time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.right, s.at, s.err
}

func (s *session) close() {
	s.conn.Close()
	<-s.ended
}

// openSessions opens many and closes them with the test.
func openSessions(t *testing.T, host *netns.Host, address string, count int) []*session {
	t.Helper()
	sessions, errs := make([]*session, count), make([]error, count)
	var wg sync.WaitGroup
	for i := range sessions {
		wg.Go(func() { sessions[i], errs[i] = openSession(t.Context(), host, address, uint64(i+1)) })
	}
	wg.Wait()
	t.Cleanup(func() {
		for _, s := range sessions {
			if s != nil {
				s.close()
			}
		}
	})
	if err := errors.Join(errs...); err != nil {
		t.Fatalf("opening %d sessions: %v", count, err)
	}
	return sessions
}

// outcome is one short request of a load.
type outcome struct {
	start time.Time
	took  time.Duration
	err   error
}

// load sends requests at a fixed rate, whether or not earlier ones have been
// answered, until stop is called, which waits for all of them.
func load(t *testing.T, host *netns.Host, address string, rate int) (stop func() []outcome) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var (
		wg       sync.WaitGroup
		mu       sync.Mutex
		outcomes []outcome
	)
	wg.Go(func() {
		ticker := time.NewTicker(time.Second / time.Duration(rate))
		defer ticker.Stop()
		for seed := uint64(1); ; seed++ {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			wg.Go(func() {
				o := outcome{start: time.Now()}
				o.err = request(t.Context(), host, address, seed)
				o.took = time.Since(o.start)
				mu.Lock()
				defer mu.Unlock()
				outcomes = append(outcomes, o)
			})
		}
	})
	stopped := false
	stop = func() []outcome {
		cancel()
		wg.Wait()
		stopped = true
		return outcomes
	}
	t.Cleanup(func() {
		if !stopped {
			stop()
		}
	})
	return stop
}

// requestLimit is what a patient client waits.
const requestLimit = 10 * time.Second

// request opens a connection to a checkedEcho, sends 256 bytes and wants them
// back.
func request(ctx context.Context, host *netns.Host, address string, seed uint64) error {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	conn, err := host.Dial(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	message := binary.BigEndian.AppendUint64(nil, seed)
	message = append(message, make([]byte, 256)...)
	io.ReadFull(plan{Seed: seed}.bytesOf(0), message[8:])
	if _, err := conn.Write(message); err != nil {
		return err
	}
	answer := make([]byte, 256)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return err
	}
	if !bytes.Equal(answer, message[8:]) {
		return errCorrupt
	}
	return nil
}

// connectorsUp counts the connectors that the edge's metrics call up.
func (d *deployment) connectorsUp(ctx context.Context) (up int, err error) {
	select {
	case <-d.edged.Done():
		return 0, proc.Fatal(fmt.Errorf("the edge has ended with exit code %d", d.edged.ExitCode()))
	default:
	}
	status, body, err := d.edged.Get(ctx, "/metrics")
	if err != nil || status != 200 {
		return 0, fmt.Errorf("asking for /metrics: status %d, %v", status, err)
	}
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "warren_connector_up{") && strings.HasSuffix(strings.TrimSpace(line), " 1") {
			up++
		}
	}
	return up, nil
}

// waitConnectors waits until that many connectors are up at the edge.
func (d *deployment) waitConnectors(t *testing.T, want int, limit time.Duration) {
	t.Helper()
	err := pollFor(t, limit, func() error {
		up, err := d.connectorsUp(t.Context())
		if err == nil && up != want {
			err = fmt.Errorf("%d connectors are up, want %d", up, want)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
