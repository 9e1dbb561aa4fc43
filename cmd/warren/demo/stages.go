package demo

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/warrenmesh/warren/edge/admin/client"
)

// stage shows one thing, and fails unless it is as it should be.
type stage struct {
	name  string
	title string
	needs []string // stages that must have passed
	run   func(*world, context.Context) error
}

// stages in their order. The names are part of what --check prints.
var stages = []stage{
	{"edge", "start the edge", nil, (*world).stageEdge},
	{"tunnel", "the connectors dial out to it", []string{"edge"}, (*world).stageTunnel},
	{"dns", "the edge answers for " + zone, []string{"edge"}, (*world).stageDNS},
	{"tcp", "call a private web server by name", []string{"tunnel", "dns"}, (*world).stageTCP},
	{"overlap", "one private address, two networks, two servers", []string{"tcp"}, (*world).stageOverlap},
	{"udp", "ask a private UDP service", []string{"tunnel", "dns"}, (*world).stageUDP},
	{"pool", "two servers take turns", []string{"tunnel", "dns"}, (*world).stagePool},
	{"failover", "one of them stops", []string{"pool"}, (*world).stageFailover},
	{"recovery", "it starts again", []string{"failover"}, (*world).stageRecovery},
	{"bytes", "all of it went through WireGuard", []string{"overlap"}, (*world).stageBytes},
}

// walk goes through the stages. Its error is that ctx ended.
func (w *world) walk(ctx context.Context) (*failure, error) {
	f := &failure{}
	bad := map[string]bool{}
	for i, s := range stages {
		w.say.stage(i+1, len(stages), s.name, s.title)
		if j := slices.IndexFunc(s.needs, func(n string) bool { return bad[n] }); j >= 0 {
			bad[s.name] = true
			f.skipped = append(f.skipped, s.name)
			w.say.skipped(s.needs[j])
			continue
		}
		if w.opts.before != nil {
			w.opts.before(s.name, w)
		}
		began := time.Now()
		err := s.run(w, ctx)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("checking the demo: interrupted in stage %q: %w", s.name, context.Cause(ctx))
		}
		if err != nil {
			bad[s.name] = true
			f.stages, f.errs = append(f.stages, s.name), append(f.errs, err)
			w.say.failed(err)
			continue
		}
		w.say.passed(time.Since(began))
	}
	return f, nil
}

func (w *world) stageEdge(ctx context.Context) error {
	if err := w.startEdge(ctx); err != nil {
		return err
	}
	s, err := w.admin.Status(ctx)
	if err != nil {
		return err
	}
	if !s.Ready {
		return fmt.Errorf("the edge is not ready: %s", s.Why)
	}
	w.say.detail("as by: warren edge run -c %s", w.path("edge.toml"))
	w.say.detail("WireGuard   udp 127.0.0.1:%d   one port for both networks", w.plan.WireGuard)
	w.say.detail("DNS         udp, tcp 127.0.0.1:%d", w.plan.DNS)
	w.say.detail("app berlin  tcp 127.0.0.1:%d   to 10.0.0.10:80 in berlin", w.plan.Berlin)
	w.say.detail("app tokyo   tcp 127.0.0.1:%d   to 10.0.0.10:80 in tokyo", w.plan.Tokyo)
	w.say.detail("app echo    udp 127.0.0.1:%d   to 10.0.0.10:7 in tokyo", w.plan.Echo)
	w.say.detail("app shop    tcp 127.0.0.1:%d   to a pool of two in berlin", w.plan.Shop)
	if w.opts.ShowConfig {
		return w.showConfig()
	}
	return nil
}

func (w *world) showConfig() error {
	files, err := w.plan.files()
	for _, f := range files {
		w.say.config(f)
	}
	return err
}

func (w *world) stageTunnel(ctx context.Context) error {
	for _, s := range w.plan.Sites {
		if err := w.startConnector(s); err != nil {
			return err
		}
		w.say.detail("as by: warren connector run -c %s", w.path(s.Connector+".toml"))
	}
	var seen []client.Connector
	err := w.until(ctx, func(ctx context.Context) (err error) {
		if seen, err = w.admin.Connectors(ctx); err != nil {
			return err
		}
		for _, c := range seen {
			if c.State != client.ConnectorUp {
				return fmt.Errorf("connector %q is %s: %s", c.Name, c.State, c.Why)
			}
		}
		return nil
	})
	for _, c := range seen {
		if err == nil {
			w.say.detail("%-9s is up: it called from %s, serves %s of %q", c.Name, c.Endpoint, strings.Join(c.Routes, ", "), c.Network)
		}
	}
	return err
}

func (w *world) stageDNS(ctx context.Context) error {
	for _, app := range []string{"berlin", "tokyo", "echo", "shop"} {
		addr, err := w.visitor.resolve(ctx, hostname(app))
		if err != nil {
			return err
		}
		if addr != loopback {
			return fmt.Errorf("resolving %q: want %s, got %s", hostname(app), loopback, addr)
		}
		w.say.detail("$ dig +short @127.0.0.1 -p %-5d %-18s → %s", w.plan.DNS, hostname(app), addr)
	}
	return nil
}

func (w *world) stageTCP(ctx context.Context) error {
	for _, a := range []struct {
		name string
		port int
	}{{"berlin", w.plan.Berlin}, {"tokyo", w.plan.Tokyo}} {
		answer, err := w.visitor.get(ctx, a.name, a.port)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(answer, "hello from ") {
			return fmt.Errorf("calling app %q: it answers %q", a.name, answer)
		}
		w.say.detail("GET http://%-25s → %s", fmt.Sprintf("%s:%d/", hostname(a.name), a.port), answer)
	}
	return nil
}

// stageOverlap holds two apps against each other that differ in the network
// alone, as the edge itself says.
func (w *world) stageOverlap(ctx context.Context) error {
	apps, err := w.admin.Apps(ctx)
	if err != nil {
		return err
	}
	ports := map[string]int{"berlin": w.plan.Berlin, "tokyo": w.plan.Tokyo}
	seen := map[string]string{} // by answer
	for _, a := range apps {
		port, ok := ports[a.Name]
		if !ok {
			continue
		}
		if want := a.Name + "/10.0.0.10:80"; a.Origin != want {
			return fmt.Errorf("app %q leads to %q instead of %q", a.Name, a.Origin, want)
		}
		answer, err := w.visitor.get(ctx, a.Name, port)
		if err != nil {
			return err
		}
		if want := "hello from 10.0.0.10 in " + a.Name; answer != want {
			return fmt.Errorf("%s answers %q instead of %q: the networks are mixed up", a.Origin, answer, want)
		}
		seen[answer] = a.Origin
		w.say.detail("%-20s says: %s", a.Origin, answer)
	}
	if len(seen) != len(ports) {
		return fmt.Errorf("want an answer of each network, got %v", seen)
	}
	w.say.detail("The address is the same; the edge keeps a TCP/IP stack for each network.")
	return nil
}

func (w *world) stageUDP(ctx context.Context) error {
	const text = "is anybody there?"
	answer, err := w.visitor.ask(ctx, "echo", w.plan.Echo, text)
	if err != nil {
		return err
	}
	if want := w.echo.who + " heard: " + text; answer != want {
		return fmt.Errorf("app %q answers %q instead of %q", "echo", answer, want)
	}
	w.say.detail("$ echo '%s' | nc -u -w 1 127.0.0.1 %d", text, w.plan.Echo)
	w.say.detail("%s", answer)
	return nil
}

// shopCalls is how often the shop is called: each server has several turns.
const shopCalls = 6

// callShop returns which of the shop's servers answered, in order.
func (w *world) callShop(ctx context.Context) ([]*web, error) {
	var answered []*web
	for range shopCalls {
		answer, err := w.visitor.get(ctx, "shop", w.plan.Shop)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(w.shop[:], func(s *web) bool { return answer == "hello from "+s.who })
		if i < 0 {
			return nil, fmt.Errorf("app %q answers %q", "shop", answer)
		}
		answered = append(answered, w.shop[i])
	}
	return answered, nil
}

// order writes who answered: "10.0.0.20 10.0.0.21 …".
func order(answered []*web) string {
	var names []string
	for _, s := range answered {
		name, _, _ := strings.Cut(s.who, " ")
		names = append(names, name)
	}
	return strings.Join(names, "  ")
}

func (w *world) stagePool(ctx context.Context) error {
	for _, s := range w.shop {
		if _, err := w.awaitHealth(ctx, s, client.EndpointUp); err != nil {
			return err
		}
	}
	w.say.detail("Both are up, says the monitor, which connects to each twice a second.")
	return w.shareShop(ctx)
}

// shareShop calls the shop and wants both servers to answer.
func (w *world) shareShop(ctx context.Context) error {
	answered, err := w.callShop(ctx)
	if err != nil {
		return err
	}
	w.say.detail("%d calls were answered by: %s", len(answered), order(answered))
	for _, s := range w.shop {
		if !slices.Contains(answered, s) {
			return fmt.Errorf("%s answered none of %d calls: only %s", s.who, len(answered), order(answered))
		}
	}
	return nil
}

func (w *world) stageFailover(ctx context.Context) error {
	victim := w.shop[0]
	victim.stop()
	began := time.Now()
	w.say.detail("%s stopped.", victim.who)
	answered, err := w.callShop(ctx)
	if err != nil {
		return fmt.Errorf("%s stopped: %w", victim.who, err)
	}
	if slices.Contains(answered, victim) {
		return fmt.Errorf("%s stopped and still answers", victim.who)
	}
	w.say.detail("%d calls at once: none failed, answered by: %s", len(answered), order(answered))
	w.say.detail("Where the edge still tried the one that stopped, it was refused and took the other.")
	ep, err := w.awaitHealth(ctx, victim, client.EndpointDown)
	if err != nil {
		return err
	}
	w.say.detail("%.1f s later the monitor has taken it out: %s, %s.", time.Since(began).Seconds(), ep.State, ep.Why)
	return nil
}

func (w *world) stageRecovery(ctx context.Context) error {
	back := w.shop[0]
	if err := back.start(); err != nil {
		return err
	}
	began := time.Now()
	w.say.detail("%s started.", back.who)
	if _, err := w.awaitHealth(ctx, back, client.EndpointUp); err != nil {
		return err
	}
	w.say.detail("%.1f s later it has passed two checks in a row, and has its turns again.", time.Since(began).Seconds())
	return w.shareShop(ctx)
}

// awaitHealth waits until the monitor says that an endpoint of the shop is in
// the state.
func (w *world) awaitHealth(ctx context.Context, server *web, state string) (found client.Endpoint, err error) {
	err = w.until(ctx, func(ctx context.Context) error {
		pools, err := w.admin.Pools(ctx)
		if err != nil {
			return err
		}
		for _, p := range pools {
			for _, ep := range p.Endpoints {
				if p.Name != "shop" || ep.Address != server.inside {
					continue
				}
				if found = ep; ep.State == state {
					return nil
				}
				return fmt.Errorf("%s is %s instead of %s: %s", server.who, ep.State, state, ep.Why)
			}
		}
		return fmt.Errorf("pool %q has no endpoint %s", "shop", server.inside)
	})
	return found, err
}

// bulk is far more than what a tunnel carries of its own until then: some
// 10 KB of handshakes, echoes and probes of the MTU.
const bulk = 256 << 10

// stageBytes moves bulk both ways through each network, and holds what the
// origins served against what WireGuard counted at both ends of each tunnel.
// Encryption adds, so a lesser count means that bytes took another way.
func (w *world) stageBytes(ctx context.Context) error {
	body := make([]byte, bulk)
	_, _ = rand.NewChaCha8([32]byte{}).Read(body) // never fails
	for _, a := range []struct {
		name string
		port int
	}{{"berlin", w.plan.Berlin}, {"tokyo", w.plan.Tokyo}} {
		back, err := w.visitor.mirror(ctx, a.name, a.port, body)
		if err != nil {
			return err
		}
		if !bytes.Equal(back, body) {
			return fmt.Errorf("app %q: %d bytes went there, and %d came back that are not the same", a.name, len(body), len(back))
		}
	}
	w.say.detail("%d KiB went there and back through each network, and came back unchanged.", bulk>>10)
	for _, m := range w.connectors {
		var line string
		// The counts of the devices are up to a second old.
		err := w.until(ctx, func(ctx context.Context) (err error) {
			line, err = w.compare(ctx, m)
			return err
		})
		if err != nil {
			return err
		}
		w.say.detail("%s", line)
	}
	return nil
}

// compare holds a connector's origins against both ends of its tunnel.
func (w *world) compare(ctx context.Context, m *member) (string, error) {
	peers, err := w.admin.Connectors(ctx)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(peers, func(p client.Connector) bool { return p.Name == m.site.Connector })
	edges := m.Status().Edges
	if i < 0 || len(edges) != 1 {
		return "", fmt.Errorf("connector %q and the edge do not know each other", m.site.Connector)
	}
	in, out := w.served[m.site.Network].in.Load(), w.served[m.site.Network].out.Load()
	for _, c := range []struct {
		served, crossed uint64
		what, who       string
	}{
		{out, peers[i].RxBytes, "sent", "the edge received"},
		{out, edges[0].State.TxBytes, "sent", "the connector sent"},
		{in, peers[i].TxBytes, "received", "the edge sent"},
		{in, edges[0].State.RxBytes, "received", "the connector received"},
	} {
		if c.crossed < c.served {
			return "", fmt.Errorf("the origins in %s %s %d bytes, but %s only %d of WireGuard's with connector %q: some took another way",
				m.site.Network, c.what, c.served, c.who, c.crossed, m.site.Connector)
		}
	}
	return fmt.Sprintf("%-9s its origins read %d and wrote %d bytes; WireGuard carried %d to it and %d from it",
		m.site.Connector, in, out, peers[i].TxBytes, peers[i].RxBytes), nil
}
