package observe

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/warrenmesh/warren/edge/flow"
)

// LogSpec is the settings of the flow log.
type LogSpec struct {
	// Path of the file that lines are appended to, made with mode 0640 where
	// it is not there. Empty or "-": standard output. "off": no flow log.
	Path string
}

// LogOff is the Path that asks for no flow log.
const LogOff = "off"

const (
	// logQueue is how many flows may wait for the writer: at 2,000 flows a
	// second a disk may stall for four seconds. A full queue holds about 3 MB.
	logQueue = 8192
	// logBatch is the size from which a batch is written without waiting for
	// the queue to run empty.
	logBatch = 64 << 10
)

// FlowLog writes one JSON line for each flow that has ended. Log never blocks:
// one goroutine owns the file, and what it cannot keep up with is dropped and
// counted. A nil *FlowLog drops everything in silence.
type FlowLog struct {
	log  *slog.Logger // of the daemon: hears once that writing fails, and once that it works again
	path string       // empty where there is nothing to reopen
	done chan struct{}

	next chan *os.File // capacity 1: the file to go on with

	queueFull   atomic.Uint64
	writeFailed atomic.Uint64
	closedDrops atomic.Uint64

	mu     sync.RWMutex // held shared around a send, so that none follows the close
	closed bool
	queue  chan *flow.Record

	// Owned by the goroutine.
	file    io.Writer
	buf     bytes.Buffer
	handler slog.Handler // writes into buf, a line a record
	torn    bool         // the file ends within a line
	failing bool
}

// OpenFlowLog opens the log; log is the daemon's own. For "off" it returns nil.
func OpenFlowLog(spec LogSpec, log *slog.Logger) (*FlowLog, error) {
	switch spec.Path {
	case LogOff:
		return nil, nil
	case "", "-":
		return newFlowLog(os.Stdout, "", log), nil
	}
	file, err := openLogFile(spec.Path)
	if err != nil {
		return nil, err
	}
	return newFlowLog(file, spec.Path, log), nil
}

func openLogFile(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return nil, fmt.Errorf("opening the flow log: %w; name a file in a directory that exists and that the edge may write to", err)
	}
	return file, nil
}

func newFlowLog(file io.Writer, path string, log *slog.Logger) *FlowLog {
	l := &FlowLog{
		log:   log,
		path:  path,
		done:  make(chan struct{}),
		next:  make(chan *os.File, 1),
		queue: make(chan *flow.Record, logQueue),
		file:  file,
	}
	l.handler = slog.NewJSONHandler(&l.buf, nil)
	if f, ok := file.(*os.File); ok {
		l.torn = endsTorn(f)
	}
	go l.run()
	return l
}

// Log queues the flow's line. It never blocks.
func (l *FlowLog) Log(r flow.Record) {
	if l == nil {
		return
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.closed {
		l.closedDrops.Add(1)
		return
	}
	select {
	case l.queue <- &r:
	default:
		l.queueFull.Add(1)
	}
}

// Reopen goes on with a new file of the same name, as after a rotation. If
// that cannot be opened the log stays with the old one. Lines that are queued
// may go to either. On standard output it does nothing.
func (l *FlowLog) Reopen() error {
	if l == nil || l.path == "" {
		return nil
	}
	file, err := openLogFile(l.path)
	if err != nil {
		return err
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.closed {
		return file.Close()
	}
	for {
		select {
		case l.next <- file:
			return nil
		case earlier := <-l.next: // the writer is stuck: the newest wins
			_ = earlier.Close()
		}
	}
}

// Drops reports the lines that were lost.
func (l *FlowLog) Drops(yield func(where, why string, n uint64)) {
	if l == nil {
		return
	}
	yield("flow_log", "queue_full", l.queueFull.Load())
	yield("flow_log", "write_failed", l.writeFailed.Load())
	yield("flow_log", "closed", l.closedDrops.Load())
}

// Close writes what is queued, closes the file and returns. If the disk hangs
// it gives up when ctx ends, and leaves the goroutine with the hanging write.
func (l *FlowLog) Close(ctx context.Context) error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.queue)
	}
	l.mu.Unlock()
	select {
	case <-l.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("closing the flow log: %d lines are not written: %w", len(l.queue), context.Cause(ctx))
	}
}

// run owns the file until the queue is closed and empty.
func (l *FlowLog) run() {
	defer close(l.done)
	defer l.closeNext()
	defer l.closeFile()
	for {
		select {
		case file := <-l.next:
			l.swap(file)
		case r, ok := <-l.queue:
			if !ok {
				return
			}
			l.flush(l.batch(r))
		}
	}
}

// batch encodes r and what else is queued, and returns the number of lines.
func (l *FlowLog) batch(r *flow.Record) (lines uint64) {
	for r != nil {
		// The handler writes into memory: it cannot fail.
		_ = l.handler.Handle(context.Background(), line(*r))
		lines++
		if l.buf.Len() >= logBatch {
			return lines
		}
		select {
		case r = <-l.queue: // nil once closed and empty
		default:
			r = nil
		}
	}
	return lines
}

// flush writes the batch. What cannot be written is lost and counted: keeping
// it would only move the loss to the queue.
func (l *FlowLog) flush(lines uint64) {
	defer l.buf.Reset()
	select {
	case file := <-l.next: // no line that follows a Reopen goes to the old file
		l.swap(file)
	default:
	}
	if l.torn {
		// End the broken line, so that the next one can be read.
		if _, err := l.file.Write([]byte{'\n'}); err != nil {
			l.lose(lines, err)
			return
		}
		l.torn = false
	}
	n, err := l.file.Write(l.buf.Bytes())
	if err == nil {
		if l.failing {
			l.failing = false
			l.log.Info("flow log is being written again", "lost", l.writeFailed.Load())
		}
		return
	}
	written := l.buf.Bytes()[:n]
	l.torn = n > 0 && written[n-1] != '\n'
	l.lose(lines-uint64(bytes.Count(written, []byte{'\n'})), err)
}

// lose counts lines that could not be written, and says so once for each spell
// of trouble.
func (l *FlowLog) lose(lines uint64, err error) {
	l.writeFailed.Add(lines)
	if !l.failing {
		l.failing = true
		l.log.Error("flow log cannot be written; lines are lost until it can", "err", err)
	}
}

func (l *FlowLog) swap(file *os.File) {
	l.closeFile()
	l.file, l.torn = file, endsTorn(file)
}

// closeFile closes what Reopen could open again; standard output stays.
func (l *FlowLog) closeFile() {
	if closer, ok := l.file.(io.Closer); ok && l.path != "" {
		_ = closer.Close()
	}
}

// closeNext closes a file that came in while the queue was being closed.
func (l *FlowLog) closeNext() {
	select {
	case file := <-l.next:
		_ = file.Close()
	default:
	}
}

// endsTorn reports whether the file ends within a line, which a crash or a
// full disk leaves behind. What cannot be read counts as whole.
func endsTorn(file *os.File) bool {
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
		return false
	}
	reader, err := os.Open(file.Name()) // the log itself is open for writing only
	if err != nil {
		return false
	}
	defer reader.Close()
	var last [1]byte
	if _, err := reader.ReadAt(last[:], info.Size()-1); err != nil {
		return false
	}
	return last[0] != '\n'
}

// line is the flow's log line. Every field is in every line, so that a reader
// need not ask which are there.
func line(r flow.Record) slog.Record {
	// A zero time leaves slog's own "time" out: start and end say it better.
	out := slog.NewRecord(time.Time{}, slog.LevelInfo, "flow", 0)
	out.AddAttrs(
		slog.Uint64("id", r.ID),
		slog.Time("start", r.Start),
		slog.Time("end", r.End),
		slog.String("app", r.App),
		slog.String("event", event(r.Status)),
		slog.Int("status", int(r.Status)),
		slog.String("proto", r.Proto),
		slog.String("client_ip", ip(r.Client)),
		slog.Int("client_port", int(r.Client.Port())),
		slog.String("listener", addrPort(r.Listener)),
		slog.String("network", r.Network),
		slog.String("pool", r.Pool),
		slog.String("connector", r.Connector),
		slog.String("endpoint", addrPort(r.Endpoint)),
		slog.Uint64("bytes_in", r.BytesIn),
		slog.Uint64("bytes_out", r.BytesOut),
		slog.Float64("connect_ms", milliseconds(r.ConnectTime)),
		slog.Float64("duration_ms", milliseconds(r.End.Sub(r.Start))),
		slog.String("why", r.Why),
	)
	return out
}

// event names the kind of end, in the words of Spectrum's event log.
func event(status flow.Status) string {
	switch {
	case status == flow.StatusOpen:
		return "connect"
	case status == flow.StatusDenied:
		return "clientFiltered"
	case status >= 520 && status < 530:
		return "originError"
	case status >= 530 && status < 540:
		return "resolveOrigin"
	case status == 540:
		return "tlsError"
	}
	return "disconnect"
}

func ip(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.Addr().Unmap().String()
}

func addrPort(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).String()
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Round(time.Microsecond)) / float64(time.Millisecond)
}
