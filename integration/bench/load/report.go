package load

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

// Report is what a run measured. Counts are of the window after the warm-up,
// but for faults (Failures, Corrupt, Resets), which count always. Durations
// are in nanoseconds.
type Report struct {
	Kind string `json:"kind"`
	// Seconds is the length of the window.
	Seconds float64 `json:"seconds"`
	// Up and Down are payload bytes of bulk, each counted where they arrived,
	// and Bytes is their sum; of rr and udp Bytes is the payload of answers.
	Bytes uint64 `json:"bytes,omitempty"`
	Up    uint64 `json:"up,omitempty"`
	Down  uint64 `json:"down,omitempty"`
	// Slowest and Fastest are the bytes of the slowest and fastest stream.
	Slowest uint64 `json:"slowest,omitempty"`
	Fastest uint64 `json:"fastest,omitempty"`
	// Ops are operations that ended well: requests answered, connections
	// opened and closed, datagrams that came back, idle connections that
	// lived to the end, bulk streams that ran to the end.
	Ops uint64 `json:"ops"`
	// Unsent are operations of an open loop that were due and never begun,
	// because the workers were still waiting for earlier ones, or because the
	// generator itself came too late (udp).
	Unsent uint64 `json:"unsent,omitempty"`
	// Failures are operations that did not end well, by reason in Reasons.
	Failures uint64            `json:"failures"`
	Reasons  map[string]uint64 `json:"reasons,omitempty"`
	// Resets are connections that did what they should, but were closed by a
	// reset where an orderly end was due. They are among Ops.
	Resets uint64 `json:"resets,omitempty"`
	// Sent are the datagrams sent in the window; Lost those of them that
	// never came back, Late those that came back after Timeout, Duplicates
	// those that came back again.
	Sent       uint64 `json:"sent,omitempty"`
	Lost       uint64 `json:"lost,omitempty"`
	Late       uint64 `json:"late,omitempty"`
	Duplicates uint64 `json:"duplicates,omitempty"`
	// Corrupt are streams and answers whose content was not what was sent;
	// Example describes the first.
	Corrupt uint64 `json:"corrupt"`
	Example string `json:"example,omitempty"`
	// Latency of operations that began in the window: from the intended
	// start to the answer.
	Latency Latency `json:"latency"`
	// Stall is the longest time in the window without progress: of rr,
	// connect and udp without any operation ending, of bulk without a byte
	// on that stream where it was longest.
	Stall time.Duration `json:"stall"`
	// CPU is the processor time, in seconds, that this process spent in the
	// window: what the generator itself cost.
	CPU float64 `json:"cpu"`
}

// Latency is a distribution; quantiles are exact to 0.4 %.
type Latency struct {
	Mean time.Duration `json:"mean"`
	P50  time.Duration `json:"p50"`
	P99  time.Duration `json:"p99"`
	P999 time.Duration `json:"p999"`
	Max  time.Duration `json:"max"`
}

// OpsPerSecond is the rate of operations that ended well.
func (r Report) OpsPerSecond() float64 { return float64(r.Ops) / r.Seconds }

// BitsPerSecond is the rate of payload.
func (r Report) BitsPerSecond() float64 { return float64(r.Bytes) * 8 / r.Seconds }

// LossRatio is the part of the datagrams sent that never came back.
func (r Report) LossRatio() float64 {
	if r.Sent == 0 {
		return 0
	}
	return float64(r.Lost) / float64(r.Sent)
}

// tally is what one worker counts. It belongs to that worker until it ends.
type tally struct {
	Report
	latencies histogram
}

// fail counts an operation that did not end well. A difference in content
// counts as corrupt too.
func (t *tally) fail(doing string, err error) {
	t.Failures++
	if t.Reasons == nil {
		t.Reasons = map[string]uint64{}
	}
	t.Reasons[doing+": "+reason(err)]++
	if d := (*Difference)(nil); errors.As(err, &d) {
		t.Corrupt++
		if t.Example == "" {
			t.Example = doing + ": " + err.Error()
		}
	}
}

// add merges what another worker counted into t.
func (t *tally) add(o *tally) {
	t.Bytes += o.Bytes
	t.Up += o.Up
	t.Down += o.Down
	t.Ops += o.Ops
	t.Unsent += o.Unsent
	t.Failures += o.Failures
	t.Resets += o.Resets
	t.Sent += o.Sent
	t.Lost += o.Lost
	t.Late += o.Late
	t.Duplicates += o.Duplicates
	t.Corrupt += o.Corrupt
	if t.Example == "" {
		t.Example = o.Example
	}
	t.Stall = max(t.Stall, o.Stall)
	for why, n := range o.Reasons {
		if t.Reasons == nil {
			t.Reasons = map[string]uint64{}
		}
		t.Reasons[why] += n
	}
	t.latencies.merge(&o.latencies)
}

// report is the whole of what was counted.
func (t *tally) report() Report {
	r := t.Report
	h := &t.latencies
	if h.n > 0 {
		r.Latency = Latency{Mean: h.sum / time.Duration(h.n), P50: h.quantile(0.5),
			P99: h.quantile(0.99), P999: h.quantile(0.999), Max: h.max}
	}
	return r
}

// Difference says where content was not what was sent.
type Difference struct {
	Offset uint64 `json:"offset"` // in the stream, or in the datagram
	Want   byte   `json:"want"`
	Got    byte   `json:"got"`
}

func (d *Difference) Error() string {
	return fmt.Sprintf("byte %d is %#02x and not %#02x", d.Offset, d.Got, d.Want)
}

// reason names the class of an error, so that Reasons stays small.
func reason(err error) string {
	var d *Difference
	var remote remoteError
	var errno syscall.Errno
	switch {
	case errors.As(err, &d):
		return "corrupt"
	case errors.As(err, &remote):
		return string(remote)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return "timed out"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed early"
	case errors.As(err, &errno):
		return errno.Error()
	}
	return "another error"
}
