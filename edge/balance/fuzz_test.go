package balance

import (
	"math/rand/v2"
	"testing"
	"time"
)

// naiveEndpoint is an endpoint as the rules of the configuration have it, with
// nothing remembered that can be worked out.
type naiveEndpoint struct {
	weight, most int
	disabled     bool
	down         bool
	draining     bool
	keepUntil    time.Time
	ejectedUntil time.Time
	failures     int
	ejections    int
	conns        int
	listed       bool // in the configuration in force
	since        int  // configurations that did not list it
}

// naiveDirector is one pool "db" with an app "a", written the obvious way.
type naiveDirector struct {
	w       *world
	spec    Spec
	app     App
	eps     map[Endpoint]*naiveEndpoint
	homes   map[int]Endpoint
	seen    map[int]time.Time
	standIn map[int]Endpoint
}

func (n *naiveDirector) configure(spec Spec, app App) {
	same := n.spec.equal(spec)
	n.spec, n.app = spec, app
	if same {
		return
	}
	for _, e := range n.eps {
		e.since++
		e.listed = false
	}
	for _, m := range spec.Endpoints {
		e := n.eps[m.Endpoint]
		if e == nil {
			e = &naiveEndpoint{down: n.w.down[m.Endpoint] != ""}
			n.eps[m.Endpoint] = e
		}
		e.weight, e.most, e.disabled, e.listed, e.since = m.Weight, m.MaxConnections, m.Disabled, true, 0
	}
	for at, e := range n.eps { // forgotten, and new if it comes back
		if e.since > 1 && e.conns == 0 && !e.draining && !n.w.now.Before(e.ejectedUntil) && !n.affine(at) {
			delete(n.eps, at)
		}
	}
}

// affine tells whether a client is led to the endpoint.
func (n *naiveDirector) affine(at Endpoint) bool {
	for client, home := range n.homes {
		if s, stands := n.standIn[client]; home == at || stands && s == at {
			return true
		}
	}
	return false
}

// listed is the endpoint if the configuration has it.
func (n *naiveDirector) listed(at Endpoint) *naiveEndpoint {
	if e := n.eps[at]; e != nil && e.listed {
		return e
	}
	return nil
}

// well is an endpoint whose health allows flows.
func (n *naiveDirector) well(e *naiveEndpoint) bool {
	return !e.disabled && !e.down && !n.w.now.Before(e.ejectedUntil)
}

// keeps is an endpoint that its own clients may have.
func (n *naiveDirector) keeps(e Endpoint) bool {
	ep := n.listed(e)
	return ep != nil && n.well(ep) && (!ep.draining || n.w.now.Before(ep.keepUntil))
}

func (n *naiveDirector) usable(e Endpoint) bool {
	ep := n.listed(e)
	return ep != nil && n.well(ep) && !ep.draining && ep.weight > 0
}

// room says which endpoints a flow of the client may get now. bind tells what
// becomes of its affinity when it connects: "home", "stand-in" or "".
func (n *naiveDirector) room(client int, tried Endpoint) (may map[Endpoint]bool, bind string) {
	free := func(e Endpoint) bool {
		ep := n.eps[e]
		return ep.most == 0 || ep.conns < ep.most
	}
	bind = "home"
	if home, ok := n.homes[client]; ok && n.w.now.Sub(n.seen[client]) < n.app.Affinity.TTL {
		n.seen[client] = n.w.now
		if s, stands := n.standIn[client]; stands && n.listed(home) == nil {
			delete(n.standIn, client)
			n.homes[client], home = s, s
		}
		switch {
		case n.listed(home) == nil:
		case n.keeps(home) && home != tried && free(home):
			delete(n.standIn, client)
			return map[Endpoint]bool{home: true}, ""
		case n.keeps(home) && home != tried:
			bind = ""
		default:
			if s, ok := n.standIn[client]; ok && n.keeps(s) && s != tried && free(s) {
				return map[Endpoint]bool{s: true}, ""
			}
			if n.app.Affinity.Failover != failoverSticky {
				bind = "stand-in"
			}
		}
	} else {
		delete(n.homes, client)
		delete(n.standIn, client)
	}
	may = map[Endpoint]bool{}
	count := 0
	for e := range n.eps {
		if n.usable(e) {
			if count++; e != tried && free(e) {
				may[e] = true
			}
		}
	}
	if count < max(n.spec.MinimumHealthy, 1) {
		return nil, bind
	}
	return may, bind
}

func (n *naiveDirector) failed(e Endpoint) {
	ep := n.eps[e]
	terms := n.spec.Ejection
	if ep == nil {
		return
	}
	ep.failures++
	if !ep.listed || terms.Failures == 0 || n.w.now.Before(ep.ejectedUntil) || ep.failures < terms.Failures || ep.disabled {
		return
	}
	out, enabled := 0, 0
	for _, o := range n.eps {
		if o.listed && !o.disabled {
			enabled++
			if n.w.now.Before(o.ejectedUntil) {
				out++
			}
		}
	}
	if (out+1)*100 > terms.MaxPercent*enabled {
		return
	}
	if ep.ejections > 0 {
		ep.ejections = max(0, ep.ejections-int(n.w.now.Sub(ep.ejectedUntil)/terms.Time))
	}
	ep.ejections++
	ep.failures = 0
	ep.ejectedUntil = n.w.now.Add(min(time.Duration(ep.ejections)*terms.Time, terms.MaxTime))
}

// TestScripts and FuzzScript run scripts of operations against the model.
func TestScripts(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 7))
		script := make([]byte, 1500)
		for i := range script {
			script[i] = byte(r.Uint32())
		}
		runScript(t, script)
	}
}

func FuzzScript(f *testing.F) {
	f.Add([]byte("\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c"))
	f.Fuzz(func(t *testing.T, script []byte) { runScript(t, script[:min(len(script), 4000)]) })
}

// script is read a byte at a time.
type script []byte

func (s *script) n(most int) int {
	if len(*s) == 0 {
		return 0
	}
	b := int((*s)[0])
	*s = (*s)[1:]
	return b % most
}

// configuration reads a pool and an app.
func (s *script) configuration() (Spec, App) {
	spec := Spec{Name: "db", Monitor: "pg", Steering: endpointPolicies()[s.n(6)], MinimumHealthy: s.n(3)}
	for _, e := range []string{b1, b2, b3, t1} {
		if k := s.n(16); k > 0 {
			spec.Endpoints = append(spec.Endpoints, Member{Endpoint: at(e), Weight: k % 4, Disabled: k == 9, MaxConnections: k / 4})
		}
	}
	if k := s.n(4); k > 0 {
		spec.Ejection = Ejection{Failures: k, Time: 3 * time.Second, MaxTime: 7 * time.Second, MaxPercent: 25 * k}
	}
	if s.n(2) == 1 {
		spec.SlowStart = 5 * time.Second
	}
	app := affined([]string{"", failoverSticky}[s.n(2)], "db")
	app.Affinity.TTL = 20 * time.Second
	app.Pools = append(app.Pools, Choice{"gone", 1}) // so that hash keeps a table
	return spec, app
}

func runScript(t *testing.T, bytes []byte) {
	s := script(bytes)
	spec, app := s.configuration()
	w := newWorld(t, []Spec{spec}, app)
	n := &naiveDirector{w: w, eps: map[Endpoint]*naiveEndpoint{}, homes: map[int]Endpoint{}, seen: map[int]time.Time{}, standIn: map[int]Endpoint{}}
	n.configure(spec, app)
	type flow struct {
		pick   Pick
		client int
		bind   string
		ep     *naiveEndpoint

		connected bool
	}
	var open []flow
	end := func(i int) flow {
		f := open[i]
		open = append(open[:i], open[i+1:]...)
		f.ep.conns--
		return f
	}
	for len(s) > 0 {
		e := at([]string{b1, b2, b3, t1}[s.n(4)])
		switch op := s.n(16); op {
		default: // a flow
			client := s.n(6)
			tried := Endpoint{}
			if op > 10 {
				tried = e
			}
			may, bind := n.room(client, tried)
			pick, why, ok := w.Pick(Request{App: "a", Client: clientAt(client), Tried: func(e Endpoint) bool { return e == tried }})
			if ok != (len(may) > 0) || ok && !may[pick.Endpoint] {
				t.Fatalf("client %d got %v, %v (%s), may have %v\npool %+v", client, ok, pick.Endpoint, why, may, w.Pools()[0])
			}
			if ok {
				ep := n.eps[pick.Endpoint]
				ep.conns++
				open = append(open, flow{pick: pick, client: client, bind: bind, ep: ep})
			}
		case 0, 1, 2: // a connect ends well, or not
			if len(open) == 0 {
				continue
			}
			i := s.n(len(open))
			f := open[i]
			if f.connected {
				continue
			}
			if op == 0 {
				end(i)
				f.pick.Failed(errRefused)
				n.failed(f.pick.Endpoint)
				continue
			}
			f.pick.Connected(time.Duration(s.n(6)) * time.Millisecond)
			if s.n(4) > 0 {
				f.pick.Answered()
				f.ep.failures = 0
			}
			_, has := n.homes[f.client]
			switch {
			case f.bind == "stand-in" && has:
				n.standIn[f.client] = f.pick.Endpoint
			case f.bind != "":
				n.homes[f.client] = f.pick.Endpoint
				delete(n.standIn, f.client)
			}
			if f.bind != "" {
				n.seen[f.client] = w.now
			}
			open[i].connected = true
		case 3, 4:
			if len(open) > 0 {
				end(s.n(len(open))).pick.Release()
			}
		case 5:
			why := []string{"", "refused"}[s.n(2)]
			w.set(e.String(), why)
			if ep := n.eps[e]; ep != nil {
				ep.down = why != ""
			}
		case 6:
			w.pass(time.Duration(s.n(8)) * time.Second)
		case 7:
			keep := time.Duration(s.n(4)) * 2 * time.Second
			if err := w.Drain("db", e, keep); (err == nil) != (n.listed(e) != nil) {
				t.Fatal(err)
			}
			if ep := n.listed(e); ep != nil {
				ep.draining, ep.keepUntil = true, w.now.Add(keep)
			}
		case 8:
			_ = w.Undrain("db", e)
			if ep := n.listed(e); ep != nil {
				ep.draining = false
			}
		case 9:
			if s.n(3) == 0 {
				spec, app := s.configuration()
				w.reload([]Spec{spec}, app)
				n.configure(spec, app)
			}
		}
		for _, st := range w.Pools()[0].Endpoints {
			if ep := n.eps[st.Endpoint]; st.Connections != ep.conns || st.MaxConnections > 0 && st.Connections > max(st.MaxConnections, ep.conns) {
				t.Fatalf("%v has %d connections, want %d", st.Endpoint, st.Connections, ep.conns)
			}
		}
	}
	for len(open) > 0 {
		end(0).pick.Release()
	}
	if c := w.Pools()[0].Connections; c != 0 {
		t.Fatalf("%d connections are left", c)
	}
}
