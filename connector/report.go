package connector

import (
	"os"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/warrenmesh/warren/edge/wire"
)

// loadFile tells the machine's load (proc_loadavg(5)).
const loadFile = "/proc/loadavg"

// report is what this connector says of itself to the edge. It names the
// destinations of that edge's flows alone: another edge may be a stranger.
func (e *edge) report() wire.Report {
	c := e.c
	r := wire.Report{
		Version:  plain(c.deps.Version, wire.MaxText),
		Hostname: plain(hostname(), wire.MaxName),
		Time:     c.deps.Wall(),
		Started:  c.started,
		Load: wire.Load{
			TCPFlows: c.flows.count("tcp"),
			UDPFlows: c.flows.count("udp"),
			CPUs:     runtime.NumCPU(),
			Load1:    load(loadFile),
			Memory:   memory(),
			Failed:   c.count.failedDials(),
		},
		Errors: e.failures.list(),
	}
	c.eachDrop(func(_, _ string, n uint64) { r.Load.Dropped += n })
	if why := c.rotation.trouble(); why != "" {
		r.Errors = append(r.Errors[:min(len(r.Errors), wire.MaxOriginErrors-1)],
			wire.OriginError{Destination: "key rotation", Result: "impossible", Error: plain(why, wire.MaxText), Count: 1, Last: r.Time})
	}
	return r
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return name
}

// load reads the load average of a minute; 0: unknown.
func load(file string) float64 {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), " ")
	n, err := strconv.ParseFloat(first, 64)
	if err != nil || !(n >= 0 && n < 1e9) {
		return 0
	}
	return n
}

// memory is what this process has from the system, in bytes.
func memory() uint64 {
	samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(samples)
	for _, s := range samples {
		if s.Value.Kind() != metrics.KindUint64 {
			return 0
		}
	}
	total, released := samples[0].Value.Uint64(), samples[1].Value.Uint64()
	return total - min(total, released)
}

// failures remembers the latest ways in which flows of one edge failed, by
// destination and result. The zero value is ready.
type failures struct {
	mu     sync.Mutex
	latest []wire.OriginError // latest first, at most wire.MaxOriginErrors
}

// note adds a failure and tells whether it is of a new kind. Where there are
// too many kinds, the one that was not seen for longest is forgotten.
func (f *failures) note(destination, result string, err error, now time.Time) (fresh bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	entry := wire.OriginError{Destination: destination, Result: result}
	at := len(f.latest)
	for i, known := range f.latest {
		if known.Destination == destination && known.Result == result {
			entry, at = known, i
			break
		}
	}
	fresh = at == len(f.latest)
	if fresh {
		if at == wire.MaxOriginErrors {
			at--
		} else {
			f.latest = append(f.latest, entry)
		}
	}
	entry.Error, entry.Last = plain(err.Error(), wire.MaxText), now
	entry.Count++
	copy(f.latest[1:at+1], f.latest[:at])
	f.latest[0] = entry
	return fresh
}

// list returns the failures, latest first.
func (f *failures) list() []wire.OriginError {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]wire.OriginError(nil), f.latest...)
}

// tellsOfOrigin tells whether a flow's result is its destination's doing, or
// the word of whoever allows it.
func tellsOfOrigin(result string) bool {
	switch result {
	case resultDenied, resultRefused, resultUnreachable, resultTimeout, resultResolve:
		return true
	}
	return false
}
