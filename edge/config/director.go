package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/warrenmesh/warren/check"
	"github.com/warrenmesh/warren/edge/monitor"
)

// transport is what the checks of a type are sent over; "" fits every app.
func transport(kind string) string {
	switch kind {
	case check.TypeICMP:
		return ""
	case check.TypeUDP, check.TypeDNS:
		return "udp"
	}
	return "tcp"
}

// checkTransports wants the checks of a pool to speak what each app that uses
// the pool listens on: an endpoint that serves datagrams alone refuses every
// connection. An app over TCP may go by a check over UDP where another app of
// the pool listens there, as those of DNS servers do. A fallback pool's health
// does not count.
func (l *loader) checkTransports() {
	heard := l.transports()
	for i, a := range l.file.App {
		for j, name := range a.Pools {
			at := fmt.Sprintf("app[%d].pools[%d]", i, j)
			m := l.monitorOf(name)
			if m == nil || l.doc.Bad(fmt.Sprintf("app[%d].listen", i)) || l.doc.Bad(at) {
				continue
			}
			over := transport(m.Check.Type)
			mine := networksOf(a)
			if len(mine) == 0 || over == "" || mine[over] || over == "udp" && heard[name][over] {
				continue
			}
			other := map[string]string{"tcp": "udp", "udp": "tcp"}[over]
			l.doc.Add(at, fmt.Sprintf("its monitor %q makes %s checks, over %s, but the app listens on %s alone", m.Name, m.Check.Type, over, other),
				"give the pool a monitor of type "+typesOver(other))
		}
	}
}

// transports is what the apps listen on, by the pools that they use.
func (l *loader) transports() map[string]map[string]bool {
	heard := make(map[string]map[string]bool)
	for _, a := range l.file.App {
		for _, name := range a.Pools {
			if heard[name] == nil {
				heard[name] = make(map[string]bool)
			}
			maps.Copy(heard[name], networksOf(a))
		}
	}
	return heard
}

// networksOf is what an app listens on.
func networksOf(a appTable) map[string]bool {
	networks := make(map[string]bool)
	for _, p := range a.Listen {
		if p.Network != "" {
			networks[p.Network] = true
		}
	}
	return networks
}

// typesOver lists the types of check that fit an app which listens on network
// alone.
func typesOver(network string) string {
	var fit []string
	for _, kind := range check.Types() {
		if over := transport(kind); over == network || over == "" {
			fit = append(fit, kind)
		}
	}
	return strings.Join(fit[:len(fit)-1], ", ") + " or " + fit[len(fit)-1]
}

// monitorOf is the monitor of the pool with that name; nil where there is none,
// or where it could not be read.
func (l *loader) monitorOf(pool string) *monitor.Spec {
	i := slices.IndexFunc(l.file.Pool, func(p poolTable) bool { return p.Name == pool })
	if i < 0 || pool == "" || l.file.Pool[i].Monitor == "" || l.doc.Bad(fmt.Sprintf("pool[%d].monitor", i)) {
		return nil
	}
	j := slices.IndexFunc(l.cfg.Monitors, func(m monitor.Spec) bool { return m.Name == l.file.Pool[i].Monitor })
	if j < 0 || l.doc.Bad(fmt.Sprintf("monitor[%d].type", j)) {
		return nil
	}
	return &l.cfg.Monitors[j]
}

// checkRunner wants somebody to be there who runs a pool's checks.
func (l *loader) checkRunner(path string, p poolTable) {
	if m := l.monitorOf(p.Name); p.Network == Public && m != nil && m.RunBy == monitor.RunByConnector {
		l.doc.Add(path+".monitor", fmt.Sprintf("connectors run its checks, and %s has none", Public), `name a monitor with run_by = "edge"`)
	}
}

// checkAffinity refuses a table of clients where hashing does the same without
// one.
func (l *loader) checkAffinity(path string, a appTable) {
	f := a.Affinity
	if f == nil || len(a.Pools) != 1 || a.Fallback != "" || f.By != "client_ip" || f.Failover != "temporary" || l.doc.Bad(path+".affinity") {
		return
	}
	i := slices.IndexFunc(l.file.Pool, func(p poolTable) bool { return p.Name == a.Pools[0] })
	if i >= 0 && l.file.Pool[i].Steering == "hash" && !l.doc.Bad(fmt.Sprintf("pool[%d].steering", i)) {
		l.doc.Add(path+".affinity", fmt.Sprintf("pool %q steers by hash, which leads a client to the same endpoint already", a.Pools[0]),
			"remove the table, or choose another steering for the pool")
	}
}
