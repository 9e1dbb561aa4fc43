package main

import (
	"fmt"

	"github.com/warrenmesh/warren/edge/admin/client"
)

func (p *program) printNetworks(all []client.Network) error {
	t := newTable(p.stdout, "NETWORK", "CONNECTORS UP", "FLOWS", "ROUTES")
	for _, n := range all {
		t.row(n.Name, of(n.ConnectorsUp, len(n.Connectors)), fmt.Sprint(n.Flows), list(n.Routes))
	}
	return t.flush()
}

func (p *program) printNetwork(n client.Network) error {
	f := newFacts(p.stdout)
	f.add("network", n.Name)
	f.add("connectors", list(n.Connectors))
	f.add("up", of(n.ConnectorsUp, len(n.Connectors)))
	f.add("routes", list(n.Routes))
	f.add("open flows", fmt.Sprint(n.Flows))
	return f.flush()
}

func (p *program) printApps(all []client.App) error {
	t := newTable(p.stdout, "APP", "HOSTNAMES", "LISTEN", "TO", "ENDPOINTS UP", "FLOWS", "WHY")
	for _, a := range all {
		t.row(a.Name, list(a.Hostnames), shorten(a.Listen), target(a), of(a.EndpointsUp, a.Endpoints), fmt.Sprint(a.ActiveFlows), a.Why)
	}
	return t.flush()
}

// target is where an app's traffic goes.
func target(a client.App) string {
	if a.Origin != "" {
		return a.Origin
	}
	return list(a.Pools)
}

// shorten joins the first few of a list that may be thousands long: a range of
// ports is a listener each.
func shorten(all []string) string {
	const most = 3
	if len(all) <= most {
		return list(all)
	}
	return fmt.Sprintf("%s and %d more", list(all[:most]), len(all)-most)
}

func (p *program) printApp(a client.App) error {
	f := newFacts(p.stdout)
	f.add("app", a.Name)
	f.add("hostnames", list(a.Hostnames))
	for _, l := range a.Listen {
		f.add("listen", l)
	}
	f.add("origin", a.Origin)
	f.add("pools", list(a.Pools))
	f.add("allow", list(a.Allow))
	f.add("deny", list(a.Deny))
	f.add("endpoints up", of(a.EndpointsUp, a.Endpoints))
	f.add("why", a.Why)
	f.add("open flows", fmt.Sprint(a.ActiveFlows))
	return f.flush()
}

func (p *program) printPools(all []client.Pool) error {
	t := newTable(p.stdout, "POOL", "NETWORK", "STATE", "ENDPOINTS UP", "STEERING", "MONITOR", "APPS")
	for _, pool := range all {
		up := 0
		for _, e := range pool.Endpoints {
			if e.State == client.EndpointUp || e.State == client.EndpointUnmonitored {
				up++
			}
		}
		t.row(pool.Name, pool.Network, pool.State, of(up, len(pool.Endpoints)), pool.Steering, pool.Monitor, list(pool.Apps))
	}
	return t.flush()
}

func (p *program) printPool(pool client.Pool) error {
	f := newFacts(p.stdout)
	f.add("pool", pool.Name)
	f.add("network", pool.Network)
	f.add("state", pool.State)
	f.add("steering", pool.Steering)
	f.add("monitor", pool.Monitor)
	f.add("apps", list(pool.Apps))
	if err := f.flush(); err != nil {
		return err
	}
	fmt.Fprintln(p.stdout)
	t := newTable(p.stdout, "ENDPOINT", "STATE", "SINCE", "CHECKED", "TOOK", "FLOWS", "WHY")
	for _, e := range pool.Endpoints {
		why := e.Why
		if e.LastError != "" && e.State != client.EndpointUp {
			why = e.LastError
		}
		t.row(e.Address, e.State, ago(e.Since), ago(e.Checked), millis(e.RTTMillis), fmt.Sprint(e.Flows), why)
	}
	return t.flush()
}
