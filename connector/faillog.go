package connector

import (
	"context"
	"log/slog"
	"sync"

	"golang.org/x/time/rate"
)

// A port scan through the edge must not fill the disk: of each reason, ten
// lines at once and then one a second. The counters count them all.
const (
	failBurst = 10
	failRate  = rate.Limit(1)
)

// failLog writes a line for each failed flow, limited by reason. The reasons
// are a fixed set, so it does not grow.
type failLog struct {
	log *slog.Logger

	mu      sync.Mutex
	reasons map[string]*failReason
}

type failReason struct {
	limit      *rate.Limiter
	suppressed int // lines not written since the last one
}

func newFailLog(log *slog.Logger) *failLog {
	return &failLog{log: log, reasons: make(map[string]*failReason)}
}

// write logs one failed flow.
func (l *failLog) write(reason string, err error, attrs ...slog.Attr) {
	suppressed, ok := l.allow(reason)
	if !ok {
		return
	}
	attrs = append(attrs, slog.String("reason", reason), slog.Any("err", err))
	if suppressed > 0 {
		attrs = append(attrs, slog.Int("suppressed", suppressed))
	}
	l.log.LogAttrs(context.Background(), slog.LevelWarn, "flow failed", attrs...)
}

// allow tells whether a line may be written, and how many were not before it.
func (l *failLog) allow(reason string) (suppressed int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.reasons[reason]
	if r == nil {
		r = &failReason{limit: rate.NewLimiter(failRate, failBurst)}
		l.reasons[reason] = r
	}
	if !r.limit.Allow() {
		r.suppressed++
		return 0, false
	}
	suppressed, r.suppressed = r.suppressed, 0
	return suppressed, true
}
