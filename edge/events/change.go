package events

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// minKey is the least length of a signature's key, bytes.
const minKey = 16

// Pending is a change of the webhooks that was prepared. It ends with Commit
// or Rollback.
type Pending struct {
	log   *Log
	hooks []*hook
	once  sync.Once
}

// Prepare makes ready what Apply does, and reads the files. It fails, with all
// that is wrong, where a Spec is not valid or a file cannot be read; where
// another Pending is open; and after Stop. Nothing changes until Commit.
func (l *Log) Prepare(specs []Spec) (*Pending, error) {
	var problems []error
	Validate(specs, func(path, value, hint string) {
		problems = append(problems, fmt.Errorf("%s = %q: %s", path, value, hint))
	})
	p := &Pending{log: l}
	for i, s := range specs {
		h, err := l.newHook(s)
		if err != nil {
			problems = append(problems, fmt.Errorf("webhook[%d].%w", i, err))
			continue
		}
		p.hooks = append(p.hooks, h)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.stopped:
		problems = []error{errors.New("changing the webhooks: the event log has ended")}
	case l.pending:
		problems = []error{errors.New("changing the webhooks: another change is under way")}
	}
	if len(problems) > 0 {
		p.drop()
		return nil, errors.Join(problems...)
	}
	l.pending = true
	return p, nil
}

func (l *Log) newHook(s Spec) (*hook, error) {
	s = s.withDefaults()
	s.Kinds = slices.Clone(s.Kinds)
	h := &hook{
		spec: s, boot: l.boot, node: l.deps.Node, client: l.client, log: l.deps.Log,
		stopping: make(chan struct{}), done: make(chan struct{}), wake: make(chan struct{}, 1),
		queue:  ring{max: s.Queue},
		status: HookStatus{Name: s.Name, URL: redact(s.URL)},
	}
	if s.SecretFile != "" {
		key, err := l.secret(s.SecretFile)
		if err == nil && len(key) < minKey {
			err = fmt.Errorf("%q: the key has %d bytes, and less than %d can be guessed: make one with \"openssl rand -hex 32\"", s.SecretFile, len(key), minKey)
		}
		if err != nil {
			return nil, fmt.Errorf("secret_file: %w", err)
		}
		h.key = key
	}
	if s.TokenFile != "" {
		token, err := l.secret(s.TokenFile)
		if err == nil && (len(token) == 0 || bytes.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' })) {
			err = fmt.Errorf("%q: want one line of printable characters without a blank", s.TokenFile)
		}
		if err != nil {
			return nil, fmt.Errorf("token_file: %w", err)
		}
		h.token = string(token)
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h, nil
}

// secret reads a file, without the end of its line.
func (l *Log) secret(path string) ([]byte, error) {
	if l.deps.Secret == nil {
		return nil, fmt.Errorf("%q: no reader of secrets was given", path)
	}
	text, err := l.deps.Secret(path)
	return bytes.TrimRight(text, "\r\n"), err
}

// Commit puts the change in force. A webhook whose Spec and secrets are the
// same goes on; one that changed keeps, under its name, what it had not told.
// One that is gone is cut.
func (p *Pending) Commit() { p.once.Do(p.commit) }

func (p *Pending) commit() {
	l := p.log
	l.turn.Lock() // Stop sees every hook started, or none
	defer l.turn.Unlock()
	l.mu.Lock()
	l.pending = false
	if l.stopped {
		l.mu.Unlock()
		p.drop()
		return
	}
	old := l.hooks
	after := make([]*hook, len(p.hooks))
	for i, h := range p.hooks {
		after[i] = h
		if was := named(old, h.spec.Name); was != nil && was.same(h) {
			after[i] = was
			h.cancel()
		}
	}
	l.hooks = after
	l.mu.Unlock() // Add does not wait for what comes

	// New hooks queue events already. They begin to send once those before
	// them have let go of theirs.
	gone := difference(old, after)
	for _, h := range gone {
		h.cancel()
	}
	for _, h := range gone {
		<-h.done
	}
	for _, h := range difference(after, old) {
		if was := named(gone, h.spec.Name); was != nil {
			h.adopt(was)
		}
		h.start()
	}
}

// Rollback drops the change. After Commit it does nothing, so that it may be
// deferred.
func (p *Pending) Rollback() {
	p.once.Do(func() {
		p.log.mu.Lock()
		p.log.pending = false
		p.log.mu.Unlock()
		p.drop()
	})
}

func (p *Pending) drop() {
	for _, h := range p.hooks {
		h.cancel()
	}
}

// Apply makes specs all the webhooks there are: Prepare and Commit in one.
func (l *Log) Apply(specs []Spec) error {
	p, err := l.Prepare(specs)
	if err != nil {
		return err
	}
	p.Commit()
	return nil
}

func named(hooks []*hook, name string) *hook {
	for _, h := range hooks {
		if h.spec.Name == name {
			return h
		}
	}
	return nil
}

// difference returns what of a is not in b.
func difference(a, b []*hook) (out []*hook) {
	for _, h := range a {
		if !slices.Contains(b, h) {
			out = append(out, h)
		}
	}
	return out
}

// Stop ends the webhooks, once they have told what is waiting or the grace is
// over, and waits for them. Add, Since and Hooks go on working; nothing is
// told any more.
func (l *Log) Stop() {
	l.turn.Lock()
	defer l.turn.Unlock()
	l.mu.Lock()
	if l.stopped {
		l.mu.Unlock()
		return
	}
	l.stopped = true
	hooks := l.hooks
	l.mu.Unlock()
	close(l.ended)
	for _, h := range hooks {
		close(h.stopping)
	}
	grace := time.NewTimer(l.deps.Grace)
	defer grace.Stop()
	for _, h := range hooks {
		select {
		case <-h.done:
			continue
		case <-grace.C:
		}
		break
	}
	for _, h := range hooks {
		h.cut()
	}
	l.client.CloseIdleConnections()
}

// HookStatus is a webhook's state and counters, for an operator.
type HookStatus struct {
	Name string
	// URL is what of it can be shown: webhooks keep secrets in paths.
	URL string
	// Waiting is how many events are still to be told.
	Waiting int
	// Delivered counts events that the webhook has taken.
	Delivered uint64
	// Dropped counts events that had to go because Spec.Queue were waiting,
	// Expired those that grew older than Spec.MaxAge, Rejected those that the
	// webhook would not have.
	Dropped, Expired, Rejected uint64
	// Attempts counts calls, Failures those that failed.
	Attempts, Failures uint64
	// Failing tells that the last call failed; LastError is why the last
	// failure was one, at Failed. Told is when the last call succeeded.
	Failing      bool
	LastError    string
	Failed, Told time.Time
}

// Hooks returns the state of every webhook, in the order of the config.
func (l *Log) Hooks() []HookStatus {
	l.mu.Lock()
	hooks := l.hooks
	l.mu.Unlock()
	list := make([]HookStatus, 0, len(hooks))
	for _, h := range hooks {
		h.mu.Lock()
		s := h.status
		s.Waiting = h.queue.n + len(h.unsent)
		h.mu.Unlock()
		list = append(list, s)
	}
	return list
}
