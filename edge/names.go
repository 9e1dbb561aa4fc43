package edge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/warrenmesh/warren/check"
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

// awaitNames asks for the names that cfg brings, besides those of before, and
// waits a while for what they stand for: a pool of names should not begin
// empty. At the start no connector is there that could be asked.
func (e *Edge) awaitNames(previous *snapshot, cfg *config.Config) {
	fresh := cfg.Names()
	if previous == nil {
		fresh = slices.DeleteFunc(fresh, func(n resolve.Name) bool { return n.Network != config.Public })
		e.wantNames(cfg.Names())
	} else {
		was := previous.cfg.Names()
		fresh = slices.DeleteFunc(fresh, func(n resolve.Name) bool { return slices.Contains(was, n) })
		e.wantNames(append(was, fresh...))
	}
	ctx, cancel := context.WithTimeout(context.Background(), settleTime)
	defer cancel()
	for _, n := range fresh {
		for ctx.Err() == nil && errors.Is(e.names.Addrs(n).Err, resolve.ErrUnknown) {
			sleep(ctx, lookEvery)
		}
	}
}

// forgetNames goes back to the names of before.
func (e *Edge) forgetNames(previous *snapshot) {
	if previous != nil {
		e.wantNames(previous.cfg.Names())
	}
}

// sleep waits for d, or until ctx is done.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
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
	checks, err := e.monitor.Prepare(now.monitors, config.Targets(pools))
	if err != nil {
		e.log.Error("the new addresses of a name are not used", "err", err)
		return
	}
	settleChecks(checks, followTime)
	next := *now
	next.pools = pools
	next.director = now.director.With(pools, now.cfg.BalanceApps())
	e.current.Store(&next)
	checks.Commit()
	next.director.Activate()
	e.log.Info("the addresses of a name have changed", "endpoints", countEndpoints(pools))
}

// followTime is how long new addresses are waited for, and followEvery how
// often a change of theirs is followed: a name that changes with each answer
// must not hold up reloads.
const (
	followTime  = time.Second
	followEvery = 3 * time.Second
)

// countEndpoints counts those that have an address.
func countEndpoints(pools []balance.Spec) (n int) {
	for _, p := range pools {
		for _, m := range p.Endpoints {
			if m.Addr.IsValid() {
				n++
			}
		}
	}
	return n
}

// settleChecks waits a while for the first answers of new checks, so that a new
// endpoint that is well does not begin as down; it returns how many have none.
func settleChecks(checks *monitor.Pending, limit time.Duration) int {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return checks.Settle(ctx)
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
	return conn, notChecked(err)
}

// notChecked marks an error that says nothing of the endpoint.
func notChecked(err error) error {
	if ownTrouble(err) {
		return fmt.Errorf("%w: %w", check.ErrUnable, err)
	}
	return err
}

// pingCheck is how monitors ping.
func (e *Edge) pingCheck(ctx context.Context, network string, addr netip.Addr) error {
	if network == config.Public {
		return notChecked(e.public.Load().Ping(ctx, addr))
	}
	n := e.network(network)
	if n == nil {
		return netx.ErrNoRoute
	}
	_, _, err := n.Ping(ctx, addr)
	return err
}
