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
