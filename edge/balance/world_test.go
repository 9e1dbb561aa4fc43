package balance

import (
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"
)

// world is a Director with a clock, a health and an operator of its own.
type world struct {
	t *testing.T
	*Director

	mu      sync.Mutex
	now     time.Time
	down    map[Endpoint]string
	unknown map[Endpoint]bool
	events  []Event
}

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func newWorld(t *testing.T, pools []Spec, apps ...App) *world {
	w := &world{t: t, now: epoch, down: map[Endpoint]string{}, unknown: map[Endpoint]bool{}}
	if len(apps) == 0 {
		apps = appsOf(pools...)
	}
	w.Director = New(pools, apps, Deps{Health: w, Now: w.clock, OnEvent: w.heard})
	return w
}

func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *world) heard(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
}

// Up implements Health.
func (w *world) Up(network string, addr netip.AddrPort, _ string) (bool, string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := Endpoint{network, addr}
	if w.unknown[e] {
		return false, "not checked yet"
	}
	return w.down[e] == "", w.down[e]
}

// Known implements Knower.
func (w *world) Known(network string, addr netip.AddrPort, _ string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.unknown[Endpoint{network, addr}]
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

// set changes the health of an endpoint, and tells; "" is up. What waits for
// the clock because of that happens at once.
func (w *world) set(e, why string) {
	w.tell(e, why)
	for _, p := range w.pools {
		for kind := range p.views {
			if v := p.views[kind].Load(); v != nil {
				v.until.Store(never)
			}
		}
	}
}

// tell is set that leaves to the clock what waits for it.
func (w *world) tell(e, why string) {
	w.mu.Lock()
	ep := at(e)
	w.down[ep] = why
	delete(w.unknown, ep)
	w.mu.Unlock()
	w.HealthChanged(ep.Network, ep.Addr, "pg")
}

// reload brings other pools and apps into force.
func (w *world) reload(pools []Spec, apps ...App) {
	if len(apps) == 0 {
		apps = appsOf(pools...)
	}
	w.Director = w.With(pools, apps)
	w.Activate()
}

// pick picks for a client, which must get something.
func (w *world) pick(app string, client int, tried ...string) Pick {
	w.t.Helper()
	pick, why, ok := w.Pick(Request{App: app, Client: clientAt(client), Tried: triedSet(tried...)})
	if !ok {
		w.t.Fatalf("client %d gets nothing of app %q: %s", client, app, why)
	}
	return pick
}

// visit is a whole flow of a client, and returns its endpoint.
func (w *world) visit(app string, client int, tried ...string) string {
	w.t.Helper()
	pick := w.pick(app, client, tried...)
	pick.Connected(time.Millisecond)
	pick.Answered()
	pick.Release()
	return pick.Endpoint.String()
}

// fail is a flow that fails to connect to e.
func (w *world) fail(app, e string) {
	w.t.Helper()
	pick, _, ok := w.Pick(Request{App: app, Tried: func(other Endpoint) bool { return other.String() != e }})
	if ok {
		pick.Failed(errRefused)
	}
}

// told returns the events since it was called last, in short.
func (w *world) told() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, e := range w.events {
		what := e.Pool
		if e.Kind == KindEndpoint {
			what += " " + e.Endpoint.String()
		}
		out = append(out, what+": "+string(e.From)+" → "+string(e.To)+" ("+e.Why+")")
	}
	w.events = nil
	return out
}

// state returns the state of an endpoint of the only pool of that name.
func (w *world) state(pool, e string) EndpointStatus {
	w.t.Helper()
	for _, s := range w.Pools() {
		if i := slices.IndexFunc(s.Endpoints, func(o EndpointStatus) bool { return o.Endpoint == at(e) }); s.Spec.Name == pool && i >= 0 {
			return s.Endpoints[i]
		}
	}
	w.t.Fatalf("pool %q has no endpoint %s", pool, e)
	return EndpointStatus{}
}

type refused string

func (r refused) Error() string { return string(r) }

const errRefused = refused("connection refused")
