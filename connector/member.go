package connector

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/connector/state"
	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

const (
	// forgetAfter is how long an ephemeral connector may be away before its
	// edge forgets it.
	forgetAfter = 10 * time.Minute
	// enrolAgain is how long the edge of an ephemeral connector may be silent
	// before that uses its token again, and about how often it does so: an edge
	// that was restored, or that another connector of the same name came to,
	// has forgotten it. An edge that is away is disturbed by nothing of it, and
	// to one that knows the key an enrolment is a repetition.
	enrolAgain = time.Minute
	// saveEvery is the least time between two attempts to save an enrolment.
	saveEvery = time.Minute
)

// Hints of an edge that does not answer, though it was enrolled at.
const (
	hintPending   = "its enrolment was not completed: run again with the token"
	hintForgotten = "it may have forgotten this connector (ephemeral, or revoked more than 7 days ago), " +
		"or it, or this connector's state directory, was restored from a backup that is older than the enrolment or the last change of the key"
)

// gather makes an edge of each that is declared, enrolled, or to be enrolled,
// in that order. One that is several of these is one edge, by its key.
func (c *Connector) gather(saved []state.Edge) (edges []*edge) {
	find := func(key wgtypes.Key) *edge {
		i := slices.IndexFunc(edges, func(e *edge) bool { return e.spec.PublicKey == key })
		if i < 0 {
			edges = append(edges, newEdge(c, EdgeSpec{PublicKey: key}))
			i = len(edges) - 1
		}
		return edges[i]
	}
	for _, spec := range c.spec.Edges {
		e := find(spec.PublicKey)
		e.spec.URLs, e.declared = spec.URLs, true
	}
	for _, member := range saved {
		e := find(member.PublicKey.Key)
		e.member = &member
		e.addURLs(member.URLs)
	}
	for _, edge := range c.spec.Token.Edges {
		e := find(edge.PublicKey.Key)
		e.invited = true
		e.addURLs(edge.URLs)
	}
	names := make(map[string]bool)
	for _, e := range edges {
		name := e.spec.String()
		if name == "" || names[name] { // an edge with a new key, where the old one was
			name += " " + tunnel.Abbreviate(e.spec.PublicKey)
		}
		names[name] = true
		e.setName(name)
	}
	return edges
}

// addURLs adds where the edge is said to listen; what this release cannot read
// is left out.
func (e *edge) addURLs(texts []string) {
	for _, text := range texts {
		if u, err := ParseEdgeURL(text); err == nil && !slices.Contains(e.spec.URLs, u) {
			e.spec.URLs = append(e.spec.URLs, u)
		}
	}
}

// membership returns what the connector remembers of its enrolment at the
// edge, nil where there was none, and why the edge is served no more, nil where
// it is.
func (e *edge) membership() (member *state.Edge, gone error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.member, e.gone
}

// remember changes what is remembered of the enrolment, where there is one,
// and saves it. What cannot be saved holds in this run, and saveAgain tries.
func (e *edge) remember(change func(*state.Edge)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.member == nil {
		return
	}
	member := *e.member
	change(&member)
	e.member = &member
	e.saveLocked()
}

// saveLocked saves what is remembered of the enrolment. The caller holds mu.
func (e *edge) saveLocked() {
	err := e.c.state.SaveEdge(*e.member)
	if err != nil && !e.unsaved {
		e.log.Warn("remembering failed", "err", err, "hint", fmt.Sprintf(
			"make room in %s, and let this connector write there: it tries again every now and then, and needs the token at its next start otherwise", e.c.spec.StateDir))
	}
	e.unsaved, e.saveNext = err != nil, time.Now().Add(saveEvery)
}

// saveAgain saves what could not be saved, and tells whether that was done now.
func (e *edge) saveAgain() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.unsaved || time.Now().Before(e.saveNext) {
		return false
	}
	e.saveLocked()
	return !e.unsaved
}

// confirm is called with each answer to this connector's own key. The first
// completes the enrolment.
func (e *edge) confirm() {
	member, _ := e.membership()
	switch {
	case member == nil:
	case !member.Confirmed:
		e.remember(func(m *state.Edge) { m.Confirmed = true })
		e.log.Info("enrolment is complete", "hint", e.c.tokenHint())
		e.c.rotation.poke()
	case e.saveAgain():
		e.log.Info("remembered after all", "hint", e.c.tokenHint())
	}
}

// mustEnrol tells whether the edge can only be joined with the token.
func (e *edge) mustEnrol() bool {
	member, _ := e.membership()
	return e.invited && member == nil
}

// mayEnrol tells whether the token may help where the edge does not answer:
// its registration may have lapsed, it may have forgotten an ephemeral
// connector, or the token is another than the one that was used.
func (e *edge) mayEnrol() bool {
	member, _ := e.membership()
	if !e.invited || member == nil {
		return false
	}
	switch {
	case !member.Confirmed:
		return true
	case time.Now().Before(e.enrolNext):
		return false
	case member.Ephemeral:
		return e.awayFor(enrolAgain)
	}
	return e.ofAnotherToken(member) && e.awayFor(forgetAfter)
}

// enrol registers this connector's key at the edge with the token. It tries
// until that is done, the edge answers the key itself, or ctx ends, but once
// where the edge has known the key: it is called with that as well, then. Its
// error is a refusal for good.
func (e *edge) enrol(ctx context.Context) error {
	var retry backoff
	member, _ := e.membership()
	again := member != nil && member.Confirmed
	e.enrolNext = time.Now().Add(jittered(enrolAgain))
	for ctx.Err() == nil && !e.state().Alive {
		answer, err := e.tryRegister(ctx)
		var refusal *wire.Refusal
		switch {
		case err == nil:
			e.log.Info("enrolled", "name", answer.Name, "network", answer.Network, "ephemeral", answer.Ephemeral)
			if !answer.Ephemeral {
				e.c.warnVolatile()
			}
			e.aim(true) // the tunnel's pauses have grown, and the edge waits for wire.ConfirmWithin
			return nil
		case ctx.Err() != nil, e.state().Alive:
		case errors.As(err, &refusal) && refusal.Final() && e.belongs(refusal.Code):
			e.log.Info("not enrolled", "reason", "the edge should know this connector's key without the token", "err", err)
			e.mu.Lock()
			e.invited = false
			e.mu.Unlock()
			return nil
		case errors.As(err, &refusal) && refusal.Final():
			// An edge that has just come back may know the key, whatever has
			// become of the token.
			e.aim(true)
			if again && e.wait(ctx, answerWithin) {
				return nil
			}
			return fmt.Errorf("%w: %w", ErrRefused, err)
		case again:
			e.log.Warn("enrolling again failed", "err", err)
			return nil
		default:
			delay := retry.next()
			e.log.Warn("enrolling failed", "err", err, "again_in", delay.Round(time.Millisecond))
			e.wait(ctx, delay)
		}
	}
	return nil
}

// belongs tells whether the edge should know this connector's key without the
// token, which it refused with code. An edge that comes back after long hears
// of the token first, and what it says of one that has ended says nothing of
// an enrolment with another.
func (e *edge) belongs(code wire.Code) bool {
	member, _ := e.membership()
	switch {
	case e.declared || member == nil:
		return e.declared
	case code == wire.CodeKnownKey:
		return true
	}
	return member.Confirmed && e.ofAnotherToken(member)
}

// ofAnotherToken tells whether member came with another token than this run's.
func (e *edge) ofAnotherToken(member *state.Edge) bool {
	return member.TokenID != e.c.spec.Token.ID.String()
}

// tryRegister is register until the edge answers the connector's own key, as
// one does that was away.
func (e *edge) tryRegister(ctx context.Context) (wire.EnrollAnswer, error) {
	ctx, cancel := context.WithCancel(ctx)
	var waiting sync.WaitGroup
	waiting.Go(func() {
		for ctx.Err() == nil && !e.wait(ctx, answerWithin) {
		}
		cancel()
	})
	defer waiting.Wait()
	defer cancel()
	return e.register(ctx)
}

// register enrols once, and remembers it.
func (e *edge) register(ctx context.Context) (wire.EnrollAnswer, error) {
	c := e.c
	key, done := c.rotation.lend()
	defer done()
	answer, err := c.enrol(ctx, EdgeSpec{PublicKey: e.spec.PublicKey, URLs: e.urls()}, key.PublicKey())
	if err != nil {
		return wire.EnrollAnswer{}, err
	}
	member := state.Edge{
		PublicKey: wire.Key{Key: e.spec.PublicKey},
		URLs:      texts(toldURLs(answer.Edges, e.spec.PublicKey)),
		Name:      plain(answer.Name, wire.MaxName),
		Network:   plain(answer.Network, wire.MaxName),
		TokenID:   c.spec.Token.ID.String(),
		Ephemeral: answer.Ephemeral,
		Since:     c.deps.Wall(),
	}
	e.mu.Lock()
	e.member = &member
	e.mu.Unlock()
	e.remember(func(*state.Edge) {})
	return answer, nil
}
