package edge

import (
	"context"
	"net"
	"net/netip"
	"slices"

	"github.com/warrenmesh/warren/edge/balance"
	"github.com/warrenmesh/warren/edge/config"
	"github.com/warrenmesh/warren/edge/monitor"
	"github.com/warrenmesh/warren/edge/public"
	"github.com/warrenmesh/warren/edge/resolve"
	"github.com/warrenmesh/warren/netstack/netx"
)

// addressesOf is what a name among the endpoints stands for now.
func (e *Edge) addressesOf(network, host string, _ uint16) []netip.Addr {
	return e.names.Addrs(resolve.Name{Network: network, Host: host}).Addrs
}

// wantNames makes names those that are resolved from now on: public ones by
// this machine, private ones by a connector of their network.
func (e *Edge) wantNames(names []resolve.Name) {
	e.names.Apply(names)
	e.work.want(names)
}

// onNames hears that the addresses of a name have changed.
func (e *Edge) onNames() {
	select {
	case e.renamed <- struct{}{}:
	default:
	}
}

// follow brings the addresses that names have now into the pools. The config
// in force stays what it is, and so does everything else.
func (e *Edge) follow() {
	e.reloading.Lock()
	defer e.reloading.Unlock()
	now := e.current.Load()
	if now == nil || e.stopping.Load() {
		return
	}
	pools := now.cfg.PoolsWith(e.addressesOf)
	checks, err := e.monitor.Prepare(now.cfg.Monitors, config.Targets(pools))
	if err != nil {
		e.log.Error("the new addresses of a name are not used", "err", err)
		return
	}
	settleChecks(checks)
	next := *now
	next.pools = pools
	next.director = now.director.With(pools, now.cfg.BalanceApps())
	e.current.Store(&next)
	checks.Commit()
	next.refresh()
	e.log.Info("the addresses of a name have changed", "endpoints", countEndpoints(pools))
}

func countEndpoints(pools []balance.Spec) (n int) {
	for _, p := range pools {
		n += len(p.Endpoints)
	}
	return n
}

// settleChecks waits a while for the first answers of new checks, so that a new
// endpoint that is well does not begin as down; it returns how many have none.
func settleChecks(checks *monitor.Pending) int {
	ctx, cancel := context.WithTimeout(context.Background(), settleTime)
	defer cancel()
	return checks.Settle(ctx)
}

// refresh tells a Director that has come into force what its monitors have
// found since it was built.
func (s *snapshot) refresh() {
	for _, pool := range s.pools {
		if pool.Monitor == "" {
			continue
		}
		for _, m := range pool.Endpoints {
			s.director.HealthChanged(m.Network, m.Addr, pool.Monitor)
		}
	}
}

// publicSpec says what the edge may dial itself; not what is its own, or a
// flow would come back in through the front door.
func publicSpec(cfg *config.Config) public.Spec {
	spec := cfg.Public
	for _, a := range cfg.Addresses {
		spec.Own = slices.Concat(spec.Own, a.Advertise, a.Bind)
	}
	own, _ := net.InterfaceAddrs() // where it fails, those of the config are left
	for _, a := range own {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			spec.Own = append(spec.Own, p.Addr().Unmap())
		}
	}
	return spec
}

// dialCheck is how monitors reach endpoints: as flows do.
func (e *Edge) dialCheck(ctx context.Context, network, proto string, addr netip.AddrPort) (net.Conn, error) {
	conn, _, err := e.dial(ctx, network, proto, addr)
	return conn, err
}

// pingCheck is how monitors ping.
func (e *Edge) pingCheck(ctx context.Context, network string, addr netip.Addr) error {
	if network == config.Public {
		return e.public.Load().Ping(ctx, addr)
	}
	n := e.network(network)
	if n == nil {
		return netx.ErrNoRoute
	}
	_, _, err := n.Ping(ctx, addr)
	return err
}
