package events

import (
	"context"
	"crypto/hmac"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	// maxBatch is how many events one call tells at most.
	maxBatch = 100
	// firstPause and maxPause bound the time between two attempts.
	firstPause = time.Second
	maxPause   = time.Minute
	// maxRejections is how often a batch is offered to a webhook that says
	// that it will not have it: over two minutes, in which whoever runs it may
	// have mended it.
	maxRejections = 8
	// maxRetryAfter bounds what a webhook's own Retry-After can ask for.
	maxRetryAfter = 5 * time.Minute
)

// hook tells one webhook. Its goroutine alone sends; what it shares is guarded
// by mu.
type hook struct {
	spec   Spec
	key    []byte // of the signature; nil without
	token  string
	boot   string
	node   string
	client *http.Client
	log    *slog.Logger

	ctx      context.Context // cuts the hook
	cancel   context.CancelFunc
	stopping chan struct{} // closed where the hook is to end once its queue is empty
	done     chan struct{} // closed when the goroutine has ended
	wake     chan struct{} // holds one token while something is waiting

	mu     sync.Mutex
	queue  ring
	unsent []Event // of the batch that is being sent
	missed uint64  // events dropped since the last that was told
	status HookStatus
}

// same reports whether two hooks would do the same thing.
func (h *hook) same(o *hook) bool {
	a, b := h.spec, o.spec
	kinds := slices.Equal(a.Kinds, b.Kinds)
	a.Kinds, b.Kinds = nil, nil
	return kinds && a.Name == b.Name && a.URL == b.URL && a.SecretFile == b.SecretFile && a.TokenFile == b.TokenFile &&
		a.Timeout == b.Timeout && a.MaxAge == b.MaxAge && a.Queue == b.Queue &&
		hmac.Equal(h.key, o.key) && h.token == o.token
}

// offer queues e if the hook wants its kind. It does not wait for the hook.
func (h *hook) offer(e Event) {
	if len(h.spec.Kinds) > 0 && !slices.Contains(h.spec.Kinds, e.Kind) {
		return
	}
	h.mu.Lock()
	if h.queue.push(e) {
		h.status.Dropped++
		h.missed++
	}
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// adopt takes over what the hook of the same name that was before it had not
// told, and its counters. h must not run yet.
func (h *hook) adopt(old *hook) {
	old.mu.Lock()
	waiting := append(old.unsent, old.queue.take(old.queue.n)...)
	missed, status := old.missed, old.status
	old.mu.Unlock()

	h.mu.Lock()
	defer h.mu.Unlock()
	waiting = append(waiting, h.queue.take(h.queue.n)...)
	url := h.status.URL
	dropped := h.status.Dropped
	h.status, h.missed = status, h.missed+missed
	h.status.URL = url
	h.status.Dropped += dropped
	for _, e := range waiting {
		if h.queue.push(e) {
			h.status.Dropped++
			h.missed++
		}
	}
	if h.queue.n > 0 {
		select {
		case h.wake <- struct{}{}:
		default:
		}
	}
}

// start runs the hook.
func (h *hook) start() {
	go func() {
		defer close(h.done)
		for h.wait() {
			h.tell()
		}
	}()
}

// cut ends the hook at once and waits for it.
func (h *hook) cut() {
	h.cancel()
	<-h.done
}

// wait returns true once something is in the queue, false when the hook ends.
func (h *hook) wait() bool {
	for {
		h.mu.Lock()
		n := h.queue.n
		h.mu.Unlock()
		if h.ctx.Err() != nil {
			return false
		}
		if n > 0 {
			return true
		}
		select {
		case <-h.wake:
		case <-h.ctx.Done():
			return false
		case <-h.stopping:
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.queue.n > 0
		}
	}
}

// tell sends what is oldest in the queue, and tries until it is told, too old
// or refused for good, or the hook is cut: then it is left in unsent.
func (h *hook) tell() {
	h.mu.Lock()
	h.unsent = h.queue.take(min(h.queue.n, maxBatch))
	h.mu.Unlock()
	var body []byte
	var id string
	var missed uint64
	rejections := 0
	for attempt := 0; ; attempt++ {
		if h.expire() || body == nil {
			if len(h.unsent) == 0 {
				return
			}
			body, id, missed = h.render()
		}
		err := h.post(body, id)
		if err == nil {
			h.told(missed)
			return
		}
		if h.ctx.Err() != nil {
			return
		}
		var no *refusal
		if errors.As(err, &no) && no.final {
			rejections++
		}
		h.failed(err, rejections >= maxRejections)
		if rejections >= maxRejections || !h.pause(attempt, no) {
			return
		}
	}
}

// expire gives up what is too old, and reports whether there was any.
func (h *hook) expire() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := 0
	for old < len(h.unsent) && time.Since(h.unsent[old].Time) > h.spec.MaxAge {
		old++
	}
	h.unsent = h.unsent[old:]
	h.status.Expired += uint64(old)
	h.missed += uint64(old)
	return old > 0
}

// payload is the body of a call.
type payload struct {
	ID     string  `json:"id"` // the same in every attempt
	Node   string  `json:"node,omitempty"`
	Missed uint64  `json:"missed,omitempty"` // events that the webhook will not be told
	Events []Event `json:"events"`
}

// render makes the body of the batch.
func (h *hook) render() (body []byte, id string, missed uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	first, last := h.unsent[0].ID, h.unsent[len(h.unsent)-1].ID
	id = fmt.Sprintf("%s-%d-%d", h.boot, first, last)
	// Texts, numbers and times that Add has checked: it cannot fail.
	body, _ = json.Marshal(payload{ID: id, Node: h.node, Missed: h.missed, Events: h.unsent})
	return body, id, h.missed
}

func (h *hook) told(missed uint64) {
	h.mu.Lock()
	h.status.Attempts++
	h.status.Delivered += uint64(len(h.unsent))
	h.missed -= missed
	h.unsent = nil
	h.status.Told = time.Now()
	recovered := h.status.Failing
	h.status.Failing = false
	h.mu.Unlock()
	if recovered {
		h.log.Info("webhook recovered", "webhook", h.spec.Name)
	}
}

// failed notes an attempt that failed, the last one of its batch if final.
func (h *hook) failed(err error, final bool) {
	h.mu.Lock()
	h.status.Attempts++
	h.status.Failures++
	h.status.LastError, h.status.Failed = err.Error(), time.Now()
	news := !h.status.Failing
	h.status.Failing = true
	if final {
		h.status.Rejected += uint64(len(h.unsent))
		h.missed += uint64(len(h.unsent))
		h.unsent = nil
	}
	h.mu.Unlock()
	if news { // a log that is slow must not hold the lock, which Add wants
		h.log.Warn("webhook fails", "webhook", h.spec.Name, "err", err)
	}
}

// pause waits before the next attempt, and reports false if the hook is cut
// meanwhile. Where Stop is called there is one more attempt at once, and one a
// second for as long as its grace lasts.
func (h *hook) pause(attempt int, no *refusal) bool {
	d := maxPause
	if attempt < 6 {
		d = firstPause << attempt
	}
	d = d - d/4 + rand.N(d/2+1)
	if no != nil {
		d = max(d, min(no.after, maxRetryAfter))
	}
	stopping := h.stopping
	select {
	case <-stopping:
		stopping, d = nil, min(d, firstPause)
	default:
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-stopping:
		return true
	case <-h.ctx.Done():
		return false
	}
}
