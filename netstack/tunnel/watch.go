package tunnel

import (
	"context"
	"time"
)

// watchEvery is the resolution of liveness. A tick looks at each peer once,
// which costs a few nanoseconds unless something is due.
const watchEvery = 50 * time.Millisecond

// greetEvery is how often the edge looks for handshakes of peers that have
// sent nothing since. Our connectors echo at once; a WireGuard router of
// another make may only send keepalives, which carry no packet, and wait.
const greetEvery = 2 * time.Second

// watch runs the peers' lives until ctx ends. Everything about peers that
// takes locks of stacks or of the device happens here and never in the
// device's Read or Write.
func (t *Tunnel) watch(ctx context.Context) {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	renew := time.NewTicker(renewEvery)
	defer renew.Stop()
	greet := time.NewTicker(greetEvery)
	defer greet.Stop()
	rest := time.NewTicker(restEvery)
	defer rest.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-rest.C:
			t.restNetworks(now)
			continue
		case <-greet.C:
			t.greetSilent()
			continue
		case now := <-renew.C:
			t.renewSilent(now)
			continue
		case <-ticker.C:
		case <-t.wake:
		}
		pass := pass{t: t, now: time.Now()}
		for _, p := range t.allPeers() {
			p.tick(&pass)
		}
	}
}

// greetSilent sends an echo to each peer that has shaken hands since we last
// looked and is not alive.
func (t *Tunnel) greetSilent() {
	for _, p := range t.allPeers() {
		if p.initiate || p.open.Load() {
			continue
		}
		for _, s := range p.sessions() {
			if shaken := s.state().handshake; !shaken.IsZero() && !shaken.Equal(s.greeted) {
				s.greeted = shaken
				p.sendEchoTo(s, echoIDLiveness, 0)
			}
		}
	}
}

// pass is one look at all peers.
type pass struct {
	t     *Tunnel
	now   time.Time
	asked bool
}

// ceiling is the largest inner packet that the local route to p takes. The
// device knows the endpoint of a peer that has just come up; it is asked
// afresh, but once for all peers that come up together.
func (s *pass) ceiling(p *Peer) int {
	if !s.asked {
		s.t.forgetDeviceState()
		s.asked = true
	}
	return p.ceiling()
}

// nudge makes watch look at the peers now.
func (t *Tunnel) nudge() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// tick does what is due for p. Only watch calls it.
func (p *Peer) tick(s *pass) {
	now := s.now
	if p.rebooted.Swap(false) {
		p.abortFlows(allFlows)
	}
	p.tickKeys(now)
	open := p.open.Load() // before heard: a packet that opens the link is noted first
	heard := p.heardAnew()
	p.mu.Lock()
	left := p.left.Load()
	d := p.life.step(now, heard, left, p.initiate)
	alive := p.life.alive
	if d.up {
		p.here.Store(newPresence()) // before anybody is told that it is alive: who is then dials
	}
	p.suspect.Store(p.life.misses > 0)
	p.mu.Unlock()

	if d.down || open && !alive { // the latter: opened by a packet that brings nobody back
		p.open.Store(false)
		p.link.SetOpen(false)
		p.acquainted(false) // until who comes back has said what it is
	} else if p.trustStale(now) {
		p.acquainted(false)
	}
	probe, mtu := p.stepMTU(s, d.up || p.moved.Swap(false) && alive, alive)
	if mtu > 0 && int(p.link.MTU()) != mtu {
		p.link.SetMTU(uint32(mtu))
		if nic := p.nic.Load(); nic != nil {
			nic.MTUChanged()
		}
	}
	p.apply(d)
	p.callAgain(now, alive)
	if probe > 0 {
		p.sendEcho(echoIDPathMTU, probe+shimLen)
	}
	if news := p.news.Swap(false); (d.up || d.down || news) && p.tunnel.cfg.OnPeer != nil {
		p.tunnel.cfg.OnPeer(p, p.State())
	}
}

// tickKeys does what a change of key leaves to do, the peer's or ours.
func (p *Peer) tickKeys(now time.Time) {
	if p.changed.Swap(false) {
		if old := p.otherKeys().old; old != nil {
			p.tunnel.self.Load().stack.abort(old.overlay, 0) // the other end has ended them
		}
	}
	if shaken := p.rekeyed.Swap(nil); shaken != nil && p.initiate {
		p.forgot, p.shaken = true, *shaken
		p.recall, p.recalls = now.Add(attemptGap(0)), 1
	}
}

// callAgain begins another handshake with a peer that is alive and has not
// answered the one that a change of our key began. liveness does it for the
// dead.
func (p *Peer) callAgain(now time.Time, alive bool) {
	if !p.forgot || !alive || now.Before(p.recall) {
		return
	}
	p.recall = now.Add(attemptGap(p.recalls))
	p.recalls++
	p.renewHandshake()
	p.sendEcho(echoIDLiveness, 0)
}

// stepMTU advances p's path MTU, or begins anew below what the local route
// takes. It returns the size to probe, or 0, and the MTU in force. It asks the
// device with p.mu free: the device may be waiting for a Write that needs p.mu.
func (p *Peer) stepMTU(s *pass, restart, alive bool) (probe, mtu int) {
	ceiling := 0
	if restart {
		ceiling = s.ceiling(p)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if restart {
		p.mtu.restart(s.now, ceiling)
	}
	if alive {
		probe = p.mtu.step(s.now)
	}
	return probe, p.mtu.working
}

// apply carries out a step's deed.
func (p *Peer) apply(d deed) {
	if d.down {
		if here := p.here.Load(); here != nil {
			here.end(errLost)
		}
		for _, s := range p.sessions() {
			p.tunnel.self.Load().stack.abort(s.overlay, 0)
		}
	}
	if d.up {
		p.forgot = false
		p.open.Store(true)
		p.link.SetOpen(true)
	}
	if d.down && p.network != nil {
		p.abortReplaceable()
	}
	// An edge that died before it told its boot id may be another one when it
	// is back, and there would be no telling.
	unknown := p.initiate && p.boot.Load() == 0
	if d.abandon || d.down && (unknown || p.left.Load()) {
		p.abortFlows(allFlows)
	}
	if d.handshake {
		p.renewHandshake()
	}
	if d.echo {
		p.sendEcho(echoIDLiveness, 0)
	}
}
