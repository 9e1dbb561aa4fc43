package observe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/warrenmesh/warren/edge/flow"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func sample() flow.Record {
	return flow.Record{
		ID: 7, App: "db", Proto: "tcp",
		Listener: netip.MustParseAddrPort("203.0.113.10:5432"),
		Client:   netip.MustParseAddrPort("[::ffff:198.51.100.7]:40000"),
		Network:  "berlin", Pool: "berlin-db",
		Endpoint: netip.MustParseAddrPort("10.0.0.10:5432"), Connector: "berlin-1",
		Start: epoch, End: epoch.Add(90 * time.Second), ConnectTime: 2345678 * time.Nanosecond,
		Status: flow.StatusClosed, Why: "closed in order", BytesIn: 12, BytesOut: 3456,
	}
}

// lines parses what a log wrote; every line must be JSON.
func lines(t *testing.T, text []byte) []map[string]any {
	t.Helper()
	var list []map[string]any
	for _, l := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		if l == "" {
			continue
		}
		var m map[string]any
		if err := json.Unmarshal([]byte(l), &m); err != nil {
			t.Fatalf("line %q: %v", l, err)
		}
		list = append(list, m)
	}
	return list
}

func drops(l *FlowLog) map[string]uint64 {
	got := make(map[string]uint64)
	l.Drops(func(where, why string, n uint64) { got[where+" "+why] = n })
	return got
}

func wantDrops(t *testing.T, l *FlowLog, queueFull, writeFailed, closed uint64) {
	t.Helper()
	want := map[string]uint64{
		"flow_log queue_full": queueFull, "flow_log write_failed": writeFailed, "flow_log closed": closed}
	if diff := cmp.Diff(want, drops(l)); diff != "" {
		t.Errorf("drops differ (-want +got):\n%s", diff)
	}
}

func closeLog(t *testing.T, l *FlowLog) {
	t.Helper()
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestFlowLogLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flows.log")
	l, err := OpenFlowLog(LogSpec{Path: path}, quiet())
	if err != nil {
		t.Fatal(err)
	}
	l.Log(sample())
	l.Log(flow.Record{ID: 8, App: "db", Proto: "udp", Client: netip.MustParseAddrPort("[2001:db8::1]:53"),
		Start: epoch, End: epoch, Status: flow.StatusDenied, Why: "denied by \"10.0.0.0/8\"\nnext line"})
	closeLog(t, l)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := []map[string]any{{
		"level": "INFO", "msg": "flow", "id": 7.0, "app": "db", "event": "disconnect", "status": 200.0, "proto": "tcp",
		"start": "2026-03-01T12:00:00Z", "end": "2026-03-01T12:01:30Z",
		"client_ip": "198.51.100.7", "client_port": 40000.0, "listener": "203.0.113.10:5432",
		"network": "berlin", "pool": "berlin-db", "connector": "berlin-1", "endpoint": "10.0.0.10:5432",
		"bytes_in": 12.0, "bytes_out": 3456.0, "connect_ms": 2.346, "duration_ms": 90000.0, "why": "closed in order",
	}, {
		"level": "INFO", "msg": "flow", "id": 8.0, "app": "db", "event": "clientFiltered", "status": 403.0, "proto": "udp",
		"start": "2026-03-01T12:00:00Z", "end": "2026-03-01T12:00:00Z",
		"client_ip": "2001:db8::1", "client_port": 53.0, "listener": "",
		"network": "", "pool": "", "connector": "", "endpoint": "",
		"bytes_in": 0.0, "bytes_out": 0.0, "connect_ms": 0.0, "duration_ms": 0.0, "why": "denied by \"10.0.0.0/8\"\nnext line",
	}}
	if diff := cmp.Diff(want, lines(t, text)); diff != "" {
		t.Errorf("lines differ (-want +got):\n%s", diff)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm()&0o007 != 0 {
		t.Errorf("mode = %v, %v; want nothing for others", info.Mode(), err)
	}
}

func TestEvents(t *testing.T) {
	for status, want := range map[flow.Status]string{
		flow.StatusOpen: "connect", flow.StatusClosed: "disconnect", flow.StatusClientGone: "disconnect",
		flow.StatusOriginGone: "disconnect", flow.StatusDenied: "clientFiltered", flow.StatusRefused: "originError",
		flow.StatusUnreachable: "originError", flow.StatusTimeout: "originError", flow.StatusNoRoute: "originError",
		flow.StatusNoEndpoint: "resolveOrigin", 540: "tlsError", flow.StatusInternal: "disconnect",
	} {
		if got := event(status); got != want {
			t.Errorf("event of %d = %q, want %q", status, got, want)
		}
	}
}

func TestFlowLogReopen(t *testing.T) {
	dir := t.TempDir()
	path, rotated := filepath.Join(dir, "flows.log"), filepath.Join(dir, "flows.log.1")
	l, err := OpenFlowLog(LogSpec{Path: path}, quiet())
	if err != nil {
		t.Fatal(err)
	}
	r := sample()
	for i := range 1000 {
		if i == 400 {
			if err := os.Rename(path, rotated); err != nil {
				t.Fatal(err)
			}
			if err := l.Reopen(); err != nil {
				t.Fatal(err)
			}
		}
		r.ID = uint64(i)
		l.Log(r)
	}
	closeLog(t, l)
	before, err := os.ReadFile(rotated)
	if err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	old, fresh := lines(t, before), lines(t, after)
	if len(old) > 400 || len(old)+len(fresh) != 1000 {
		t.Errorf("%d lines before the rotation and %d after; want at most 400, and 1000 together", len(old), len(fresh))
	}
	for i, m := range append(old, fresh...) {
		if m["id"] != float64(i) {
			t.Fatalf("line %d is of flow %v", i, m["id"])
		}
	}
	wantDrops(t, l, 0, 0, 0)
}

func TestFlowLogReopenFailureKeepsTheOldFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "flows.log")
	l, err := OpenFlowLog(LogSpec{Path: path}, quiet())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir, dir+"-gone"); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err == nil || !strings.Contains(err.Error(), "opening the flow log") {
		t.Errorf("reopening in a directory that is gone: %v", err)
	}
	l.Log(sample())
	closeLog(t, l)
	text, err := os.ReadFile(filepath.Join(dir+"-gone", "flows.log"))
	if err != nil || len(lines(t, text)) != 1 {
		t.Errorf("the old file holds %q, %v; want one line", text, err)
	}
	if err := l.Reopen(); err == nil {
		t.Error("reopening after Close, in a directory that is gone, succeeded")
	}
}

// stuck is a disk that does not answer until it is let go.
type stuck struct {
	entered chan struct{} // receives once for each write
	release chan struct{} // closed to let all writes through
	mu      sync.Mutex
	buf     bytes.Buffer
}

func (s *stuck) Write(b []byte) (int, error) {
	select {
	case s.entered <- struct{}{}:
	default:
	}
	<-s.release
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(b)
}

func TestFlowLogNeverBlocks(t *testing.T) {
	disk := &stuck{entered: make(chan struct{}, 1), release: make(chan struct{})}
	l := newFlowLog(disk, "", quiet())
	l.Log(sample())
	<-disk.entered // the writer hangs in the first line
	for range logQueue + 100 {
		l.Log(sample())
	}
	wantDrops(t, l, 100, 0, 0)

	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("shutting down"))
	if err := l.Close(ctx); err == nil || !strings.Contains(err.Error(), "8192 lines are not written: shutting down") {
		t.Errorf("closing on a disk that hangs: %v", err)
	}
	l.Log(sample())
	wantDrops(t, l, 100, 0, 1)
	close(disk.release)
	closeLog(t, l) // now it can
	if got := len(lines(t, disk.buf.Bytes())); got != logQueue+1 {
		t.Errorf("%d lines, want %d", got, logQueue+1)
	}
}

func TestFlowLogDiskFull(t *testing.T) {
	const full = "/dev/full"
	if _, err := os.Stat(full); err != nil {
		t.Skipf("no %s: %v", full, err)
	}
	var daemon bytes.Buffer
	l, err := OpenFlowLog(LogSpec{Path: full}, slog.New(slog.NewTextHandler(&daemon, nil)))
	if err != nil {
		t.Fatal(err)
	}
	for range 500 {
		l.Log(sample())
	}
	closeLog(t, l)
	wantDrops(t, l, 0, 500, 0)
	if n := strings.Count(daemon.String(), "flow log cannot be written"); n != 1 {
		t.Errorf("the daemon's log says it %d times, want once:\n%s", n, daemon.String())
	}
}

// filling is a disk with room for some bytes, and more later.
type filling struct {
	room  int
	bytes bytes.Buffer
}

func (f *filling) Write(b []byte) (int, error) {
	n := min(len(b), f.room)
	f.room -= n
	f.bytes.Write(b[:n])
	if n < len(b) {
		return n, errors.New("no space left on device")
	}
	return n, nil
}

func TestFlowLogGoesOnAfterATornLine(t *testing.T) {
	disk := &filling{}
	l := &FlowLog{log: quiet(), queue: make(chan *flow.Record), file: disk}
	l.handler = slog.NewJSONHandler(&l.buf, nil)
	write := func(n int) {
		for range n {
			_ = l.handler.Handle(t.Context(), line(sample()))
		}
		l.flush(uint64(n))
	}
	write(0)
	disk.room = 1000 // two lines and a part of a third
	write(4)
	write(2)
	if !l.torn || l.writeFailed.Load() != 4 {
		t.Fatalf("torn %v, %d lost; want a torn line, 4 lost", l.torn, l.writeFailed.Load())
	}
	disk.room = 1 << 20
	write(3)
	var whole, broken int
	for _, text := range bytes.Split(bytes.TrimSuffix(disk.bytes.Bytes(), []byte("\n")), []byte("\n")) {
		if json.Valid(text) {
			whole++
		} else {
			broken++
		}
	}
	if whole != 5 || broken != 1 {
		t.Errorf("%d whole lines and %d broken, want 5 and 1:\n%s", whole, broken, disk.bytes.Bytes())
	}
}

// TestFlowLogSaysThatATornFileCannotBeWritten: a disk that was full before
// the start is told of too.
func TestFlowLogSaysThatATornFileCannotBeWritten(t *testing.T) {
	var daemon bytes.Buffer
	disk := &filling{}
	l := &FlowLog{log: slog.New(slog.NewTextHandler(&daemon, nil)), file: disk, torn: true}
	l.handler = slog.NewJSONHandler(&l.buf, nil)
	for range 2 {
		l.flush(1)
	}
	if n := strings.Count(daemon.String(), "flow log cannot be written"); n != 1 || l.writeFailed.Load() != 2 {
		t.Errorf("the daemon's log says it %d times, want once; %d lines lost, want 2:\n%s", n, l.writeFailed.Load(), daemon.String())
	}
	disk.room = 1 << 20
	l.flush(1)
	if !strings.Contains(daemon.String(), "being written again") || !strings.HasPrefix(disk.bytes.String(), "\n") {
		t.Errorf("it is not written again: %q, %q", daemon.String(), disk.bytes.String())
	}
}

func TestFlowLogGoesOnAfterACrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flows.log")
	if err := os.WriteFile(path, []byte(`{"id":1}`+"\n"+`{"id":2,"app`), 0o640); err != nil {
		t.Fatal(err)
	}
	l, err := OpenFlowLog(LogSpec{Path: path}, quiet())
	if err != nil {
		t.Fatal(err)
	}
	l.Log(sample())
	closeLog(t, l)
	text, _ := os.ReadFile(path)
	got := strings.Split(string(text), "\n")
	if len(got) != 4 || got[1] != `{"id":2,"app` || !json.Valid([]byte(got[2])) {
		t.Errorf("file = %q, want the broken line ended and a whole one after it", text)
	}
}

func TestOpenFlowLog(t *testing.T) {
	if l, err := OpenFlowLog(LogSpec{Path: LogOff}, quiet()); l != nil || err != nil {
		t.Errorf("off = %v, %v", l, err)
	}
	var off *FlowLog
	off.Log(sample())
	off.Drops(func(string, string, uint64) { t.Error("a log that is off reports drops") })
	if err := errors.Join(off.Reopen(), off.Close(t.Context())); err != nil {
		t.Error(err)
	}
	if _, err := OpenFlowLog(LogSpec{Path: filepath.Join(t.TempDir(), "no", "flows.log")}, quiet()); err == nil {
		t.Error("opened a log in a directory that is not there")
	}
	for _, path := range []string{"", "-"} {
		l, err := OpenFlowLog(LogSpec{Path: path}, quiet())
		if err != nil {
			t.Fatal(err)
		}
		closeLog(t, l)
		if _, err := os.Stdout.Stat(); err != nil {
			t.Fatalf("closing the log on %q closed standard output: %v", path, err)
		}
	}
}

func TestFlowLogUnderConcurrency(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flows.log")
	l, err := OpenFlowLog(LogSpec{Path: path}, quiet())
	if err != nil {
		t.Fatal(err)
	}
	const writers, each = 4, 500
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				l.Log(sample())
			}
		})
	}
	wg.Go(func() {
		for range 50 {
			if err := l.Reopen(); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	closeLog(t, l)
	text, _ := os.ReadFile(path)
	lost := drops(l)["flow_log queue_full"]
	if got := uint64(len(lines(t, text))); got+lost != writers*each {
		t.Errorf("%d lines and %d drops, want %d together", got, lost, writers*each)
	}
}

func BenchmarkFlowLog(b *testing.B) {
	l := newFlowLog(io.Discard, "", quiet())
	defer l.Close(context.Background())
	r := sample()
	b.ReportAllocs()
	for b.Loop() {
		l.Log(r)
	}
}
