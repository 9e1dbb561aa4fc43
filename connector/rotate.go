package connector

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

// rotateEvery is the least time between two changes of the key, whatever edges
// ask for.
const rotateEvery = time.Minute

// rotation changes the connector's key when an edge asks for it:
//
//	save the next key → tell it to every edge → make it the saved key → use it
//
// A crash between any two steps loses nothing. Until the third the connector
// starts with the old key, which the edges know, and tells the same next key
// when it is asked again; after it, with the new one, which all of them know.
// So nothing may come between an edge that was not told and the third step.
type rotation struct {
	c     *Connector
	asked chan struct{} // capacity 1
	news  chan struct{} // capacity 1: an edge came, is confirmed, or was left

	mu        sync.Mutex // held while the saved key changes
	changes   uint64     // of the key, in this run
	enrolling int        // edges that are being told the key of now
	why       string     // why it cannot be changed; empty: it can, as far as is known
}

func newRotation(c *Connector) *rotation {
	return &rotation{c: c, asked: make(chan struct{}, 1), news: make(chan struct{}, 1)}
}

// generation counts the changes of the key.
func (r *rotation) generation() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changes
}

// trouble says why the key cannot be changed, for the report.
func (r *rotation) trouble() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.why
}

// ask is called with each grant that asks for a change of the key of that
// generation.
func (r *rotation) ask(generation uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if generation != r.changes {
		return // the grant is from before the change
	}
	select {
	case r.asked <- struct{}{}:
	default:
	}
}

// lend gives the key to an enrolment. Until that gives it back, having
// remembered its edge, the key does not change.
func (r *rotation) lend() (key wgtypes.Key, done func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.enrolling++
	return r.c.ownKey(), func() {
		r.mu.Lock()
		r.enrolling--
		r.mu.Unlock()
		r.poke()
	}
}

// poke makes a change that waits for edges look at them again.
func (r *rotation) poke() {
	select {
	case r.news <- struct{}{}:
	default:
	}
}

// run changes the key as often as it is asked to, until ctx ends.
func (r *rotation) run(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-r.asked:
		}
		why := r.impossible()
		if why == "" {
			why = r.change(ctx)
		}
		r.say(why)
		sleep(ctx, rotateEvery)
	}
}

// say notes why the key cannot be changed, and logs it once.
func (r *rotation) say(why string) {
	r.mu.Lock()
	said := r.why == why
	r.why = why
	r.mu.Unlock()
	if why == "" || said {
		return
	}
	r.c.log.Warn("the key cannot be changed", "reason", why)
	for _, e := range r.c.list() {
		e.ctl.tell()
	}
}

// impossible says why no change of the key can come to an end.
func (r *rotation) impossible() string {
	if r.c.spec.PrivateKeyFile != "" {
		return "it is in a file of its operator's, who has to change it there and at the edges: private_key_file"
	}
	for _, e := range r.c.list() {
		switch member, gone := e.membership(); {
		case member == nil && e.declared && mayCome(gone):
			return fmt.Sprintf("edge %s has it from its own configuration: its operator has to change it there", e.name())
		case member != nil && errors.Is(gone, errDrained):
			return fmt.Sprintf("edge %s knows it too, and this connector has left that one: end the drain there", e.name())
		}
	}
	return ""
}

// mayCome tells whether an edge that is gone for that reason, nil where it is
// not, may be served with this run's key.
func mayCome(gone error) bool { return gone == nil || errors.Is(gone, errDrained) }

// change makes a new key, tells it to the edges, and takes it once all of them
// know it. It returns why it gave up; empty: the key was changed, or ctx ended.
func (r *rotation) change(ctx context.Context) (why string) {
	next, err := r.c.state.NextKey()
	if err != nil {
		return fmt.Sprintf("the next one cannot be saved: %v", err)
	}
	if r.trouble() == "" { // else it was said when it began, and an edge asks on each minute
		r.c.log.Info("changing the key", "next_public_key", tunnel.Abbreviate(next.PublicKey()))
	}
	told := make(map[*edge]bool)
	var retry backoff
	waits := "" // for whom the log says that it waits
	for ctx.Err() == nil {
		if why := r.impossible(); why != "" {
			return why // an edge has been left meanwhile
		}
		missing, err := r.tellAll(ctx, next.PublicKey(), told)
		if err != nil {
			return err.Error()
		}
		if len(missing) == 0 {
			err := r.take(next, told)
			switch {
			case err == nil:
				r.use(ctx, next)
				return ""
			case !errors.Is(err, errNotTold):
				return err.Error()
			}
		} else if now := strings.Join(missing, ", "); now != waits {
			waits = now
			r.c.log.Info("the new key waits", "for", waits)
		}
		timer := time.NewTimer(retry.next())
		select {
		case <-ctx.Done():
		case <-r.news:
		case <-timer.C:
		}
		timer.Stop()
	}
	return ""
}

// tellAll tells the next key to the edges that are there and do not know it
// yet. It returns those that still do not, and an error where one of them
// never will.
func (r *rotation) tellAll(ctx context.Context, next wgtypes.Key, told map[*edge]bool) (missing []string, err error) {
	for _, e := range r.c.list() {
		member, gone := e.membership()
		if member == nil || gone != nil || told[e] {
			continue
		}
		err := errors.New("it is not there")
		if member.Confirmed && e.state().Alive {
			err = e.tellKey(ctx, next)
		}
		var refusal *wire.Refusal
		switch {
		case err == nil:
			told[e] = true
		case errors.As(err, &refusal) && refusal.Code == wire.CodeRevoked:
			missing = append(missing, e.name()) // until its sync hears so and leaves it
		case errors.Is(err, errNoControl), errors.As(err, &refusal) && refusal.Final():
			return nil, fmt.Errorf("edge %s does not take a new one: %w", e.name(), err)
		default:
			e.log.Debug("telling the new key failed", "err", err)
			missing = append(missing, e.name())
		}
	}
	return missing, nil
}

// tellKey registers the next key at the edge, which has stored it when this
// returns without an error.
func (e *edge) tellKey(ctx context.Context, next wgtypes.Key) error {
	line, err := e.dialPort(ctx, wire.ControlPort)
	if err != nil {
		return err
	}
	defer line.close()
	var answer struct{}
	return line.post(ctx, wire.PathKey, postWithin, wire.KeyRequest{PublicKey: wire.Key{Key: next}}, &answer)
}

// errNotTold: an edge has enrolled the old key meanwhile, or is about to.
var errNotTold = errors.New("an edge has yet to learn the new key")

// errNobody: the edges have all given this connector up. With a key that none
// of them knows, it would not even be told so at its next start.
var errNobody = errors.New("no edge is left that knows this connector")

// take makes the next key the one that is saved, where all edges that know the
// old one were told.
func (r *rotation) take(next wgtypes.Key, told map[*edge]bool) error {
	c := r.c
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.enrolling > 0 {
		return errNotTold
	}
	known := false // to an edge that goes on with this connector
	for _, e := range c.list() {
		member, gone := e.membership()
		if member != nil && mayCome(gone) && !told[e] {
			return errNotTold
		}
		known = known || member != nil && gone == nil
	}
	if !known {
		return errNobody
	}
	if _, err := c.state.TakeNext(); err != nil {
		return err
	}
	c.setKey(next)
	r.changes++ // before the sessions of the old key end
	select {
	case <-r.asked: // by the old key's grants
	default:
	}
	return nil
}

// use makes the tunnel use the key that was taken. Until that works the edges
// take the old one.
func (r *rotation) use(ctx context.Context, key wgtypes.Key) {
	var retry backoff
	for ctx.Err() == nil {
		err := r.c.device().SetPrivateKey(key)
		if err == nil {
			r.c.log.Info("the key was changed", "public_key", key.PublicKey().String())
			return
		}
		r.c.log.Warn("changing the tunnel's key failed", "err", err)
		sleep(ctx, retry.next())
	}
}
