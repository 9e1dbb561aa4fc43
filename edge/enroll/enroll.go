// Package enroll knows who may be a connector of this edge, and tells each what
// it may do and what it is wanted to do: the tokens, the enrolment of connectors
// that come by one, the grants, the work besides flows, and the two servers
// inside the tunnel (enrolment for the guests that tokens make, control for
// connectors).
//
//	registry, err := enroll.New(spec, enroll.Deps{Store: store, Peers: tunnel, PublicKey: key})
//	go registry.Run(ctx)                             // sweeps
//	go registry.Serve(ctx, enrollPort, controlPort)  // listeners of the overlay stack
//	created, err := registry.CreateToken(enroll.TokenRequest{Network: "berlin", Routes: routes})
//
// A connector of a token goes through these states:
//
//	           the token's bootstrap peer         the key itself
//	           registers a key                    syncs
//	(unknown) ─────────────────────▶  pending  ──────────────▶  enrolled
//	    ▲                                │                          │ Revoke
//	    ├──── ConfirmWithin without ─────┘                          ▼
//	    └──── ephemeral, absent for 10 minutes ───────────────── denied, for ever
//
// Every change goes the same way: the store first, then the tunnel and memory.
// What is acknowledged outlives a crash; where the store fails, nothing has
// changed. What a crash may forget is a drain, and what connectors report.
//
// The package must never hold a private key or a token's secret beyond the call
// that makes it, nor put a preshared key into a log, an error or an answer.
package enroll

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

// maxConnectors is how many connectors may be enrolled: as many peers as a
// WireGuard device takes.
const maxConnectors = 1 << 16

// Registry is the tokens, the connectors and the denials. Make it with New; its
// methods may be called from any goroutine.
type Registry struct {
	store   Store
	peers   Peers
	now     func() time.Time
	log     *slog.Logger
	self    wgtypes.Key // this edge's public key
	started time.Time   // when New made it
	metrics metrics
	work    Work // nil: there is none
	stirred stirred

	// changing is held through each change: the store's fsync, what the tunnel
	// is told, and memory. It is taken before mu. Whoever holds it may read
	// all that mu guards, but for what a connector reports.
	changing     sync.Mutex
	reserved     reserved
	guestDenials []*denial
	sweepFailed  bool
	retried      time.Time // when a sweep last tried those that the tunnel refused

	// mu is held for moments only, and by changes as well as by syncs.
	mu         sync.Mutex
	spec       Spec
	networks   map[string]Network
	edges      []wire.Edge // this one, as grants name it
	tokens     map[string]*token
	bootstraps map[wgtypes.Key]*token
	connectors map[string]*connector
	byKey      map[wgtypes.Key]*connector // by both keys of those that have two
	denials    map[wgtypes.Key]*denial
}

// New loads the store, and adds to the tunnel the guests and the enrolled
// connectors of those networks that spec has. It fails where the store cannot
// be read, or where spec declares a name or a key that is enrolled.
//
// With an empty Spec everybody sleeps until Apply: so Denied can be asked
// before the tunnel gets its declared connectors.
func New(spec Spec, deps Deps) (*Registry, error) {
	deps, err := deps.withDefaults()
	if err != nil {
		return nil, err
	}
	r := &Registry{
		store: deps.Store, peers: deps.Peers, now: deps.Now, log: deps.Log, self: deps.PublicKey, started: deps.Now().UTC(),
		tokens:     make(map[string]*token),
		bootstraps: make(map[wgtypes.Key]*token),
		connectors: make(map[string]*connector),
		byKey:      make(map[wgtypes.Key]*connector),
		denials:    make(map[wgtypes.Key]*denial),
		work:       deps.Work,
		stirred:    stirred{news: make(chan struct{}, 1)},
	}
	r.metrics.init()
	if err := r.store.View(r.load); err != nil {
		return nil, fmt.Errorf("reading who is enrolled from the state: %w", err)
	}
	if err := r.checkLocked(spec); err != nil {
		return nil, err
	}
	r.changing.Lock()
	defer r.changing.Unlock()
	r.install()
	r.applyLocked(spec)
	return r, nil
}

// load reads everything that the store has.
func (r *Registry) load(tx Tx) error {
	now := r.now()
	err := tx.Each(kindToken, func(id string, decode func(any) error) error {
		t := &token{}
		if err := decode(&t.rec); err != nil {
			return unreadable(kindToken, id, err)
		}
		r.addToken(t)
		return nil
	})
	if err != nil {
		return err
	}
	err = tx.Each(kindDenial, func(id string, decode func(any) error) error {
		d := &denial{}
		if err := decode(&d.rec); err != nil {
			return unreadable(kindDenial, id, err)
		}
		r.denials[d.rec.Key.Key] = d
		return nil
	})
	if err != nil {
		return err
	}
	return tx.Each(kindConnector, func(name string, decode func(any) error) error {
		// Each waits for its network; a registration has its time anew, for
		// its connector could not reach this edge while it was down.
		c := &connector{asleep: true, registered: now}
		if err := decode(&c.rec); err != nil {
			return unreadable(kindConnector, name, err)
		}
		if c.missed = c.rec.AbsentSince; c.missed.After(now) { // the clock went back
			c.missed = now
		}
		r.addConnector(c)
		return nil
	})
}

// unreadable is what the operator is told of a record that makes no sense,
// which is no less than of a damaged file.
func unreadable(kind, id string, err error) error {
	return fmt.Errorf("reading %s %q: %w: restore a backup of the state, or move it away to begin with nothing: everything that has enrolled must enrol anew then", kind, id, err)
}

// install adds the guests of what was loaded to the tunnel.
func (r *Registry) install() {
	for _, t := range r.tokens {
		if err := r.addGuests(t); err != nil {
			r.log.Error("a token cannot be used: "+err.Error(), "token", t.rec.ID)
		}
	}
	r.trimTokenGuests(r.now())
	for _, d := range r.denials {
		r.guestDenials = append(r.guestDenials, d)
	}
	for _, d := range r.trimDenialGuests(r.now(), nil) {
		r.addDenialGuest(d)
	}
}

// write is one value for the store; a nil value deletes what is there.
type write struct {
	kind, id string
	value    any
}

// commit stores all writes or none. Its error is an *Error that says so.
func (r *Registry) commit(doing string, writes ...write) error {
	err := r.store.Update(func(tx Tx) error {
		for _, w := range writes {
			var err error
			if w.value == nil {
				err = tx.Delete(w.kind, w.id)
			} else {
				err = tx.Put(w.kind, w.id, w.value)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fail(Unavailable, "%s: storing it: %w; look at the state directory's disk and try again", doing, err)
	}
	return nil
}

// takeBack stores what was there before commit, where the tunnel would not have
// what was stored. Where that fails too, a restart finds what nobody was told
// of.
func (r *Registry) takeBack(doing string, before write) {
	if err := r.commit("taking back: "+doing, before); err != nil {
		r.log.Error(err.Error())
	}
}

// unavailable is what a connector is told where commit failed; the operator
// reads the reason in the log.
func (r *Registry) unavailable(err error) *wire.Refusal {
	r.log.Error(err.Error())
	return wire.Refuse(wire.CodeUnavailable, "the edge cannot store it just now: ask again")
}

// Kind says what an Error means to a program.
type Kind int

const (
	BadRequest  Kind = iota + 1 // it makes no sense
	NotFound                    // there is none of that name
	Refused                     // it cannot be, as things are
	Unavailable                 // the edge cannot store it just now
)

// Error is what the operator's methods fail with. Its text is one sentence
// with what to do.
type Error struct {
	Kind Kind
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns what it was made of.
func (e *Error) Unwrap() error { return e.Err }

func fail(kind Kind, format string, args ...any) *Error {
	return &Error{Kind: kind, Err: fmt.Errorf(format, args...)}
}
