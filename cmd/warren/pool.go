package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/warrenmesh/warren/edge/admin/client"
)

func newPool(p *program) *cobra.Command {
	n := noun[client.Pool]{
		word: "pool", fetch: (*client.Client).Pools, list: p.printPools, show: p.printPool,
		name: func(v client.Pool) string { return v.Name },
	}
	c := &cobra.Command{Use: "pool", Short: "List the pools of a running edge, and drain their endpoints"}
	c.AddCommand(n.newList(p), n.newShow(p), newPoolDrain(p))
	return c
}

// newPools is every pool, whole: what is up, what is not, and why.
func newPools(p *program) *cobra.Command {
	c := &cobra.Command{Use: "pools", Short: "Show every pool of a running edge with its endpoints", Args: cobra.NoArgs}
	asJSON := jsonFlag(c)
	return asking(p, c, func(ctx context.Context, e *client.Client, _ []string) error {
		all, err := e.Pools(ctx)
		if err != nil {
			return err
		}
		if *asJSON {
			return p.printJSON(all)
		}
		for i, pool := range all {
			if i > 0 {
				fmt.Fprintln(p.stdout)
			}
			if err := p.printPool(pool); err != nil {
				return err
			}
		}
		if len(all) == 0 {
			fmt.Fprintln(p.stderr, "the edge has no pools: add a [[pool]] to its config")
		}
		return nil
	})
}

func (p *program) printPools(all []client.Pool) error {
	t := newTable(p.stdout, "POOL", "NETWORK", "STATE", "ENDPOINTS UP", "STEERING", "MONITOR", "FLOWS", "APPS", "WHY")
	for _, pool := range all {
		up := 0
		for _, e := range pool.Endpoints {
			if e.Takes() {
				up++
			}
		}
		t.row(pool.Name, pool.Network, pool.State, of(up, len(pool.Endpoints)), pool.Steering, pool.Monitor,
			fmt.Sprint(pool.Connections), list(pool.Apps), pool.Why)
	}
	return t.flush()
}

func (p *program) printPool(pool client.Pool) error {
	f := newFacts(p.stdout)
	f.add("pool", pool.Name)
	f.add("network", pool.Network)
	f.add("state", pool.State)
	f.add("why", pool.Why)
	f.add("steering", pool.Steering)
	f.add("monitor", pool.Monitor)
	f.add("minimum healthy", fmt.Sprint(pool.MinimumHealthy))
	f.add("apps", list(pool.Apps))
	f.add("open flows", fmt.Sprint(pool.Connections))
	if pool.Waiting > 0 {
		f.add("waiting", plural(pool.Waiting, "flow", "flows"))
	}
	if pool.Shed > 0 {
		f.add("shed", plural(int(pool.Shed), "flow", "flows"))
	}
	for _, n := range pool.Names {
		f.add(n.Host, resolved(n))
	}
	if err := f.flush(); err != nil {
		return err
	}
	fmt.Fprintln(p.stdout)
	t := newTable(p.stdout, "ENDPOINT", "STATE", "SINCE", "CHECKED", "BY", "TOOK", "CONNECT", "WEIGHT", "FLOWS", "PICKS", "FAILED", "WHY")
	for _, e := range pool.Endpoints {
		t.row(e.Address, e.State, ago(e.Since), ago(e.Checked), e.CheckedBy, millis(e.RTTMillis), millis(e.ConnectMillis),
			weight(e), carried(e), fmt.Sprint(e.Picks), fmt.Sprint(e.Failures), whyNot(e))
	}
	return t.flush()
}

// resolved is what a name stands for.
func resolved(n client.Name) string {
	text := cmp.Or(strings.Join(n.Addresses, ", "), "no address")
	if n.Error != "" {
		return fmt.Sprintf("%s (%s)", text, n.Error)
	}
	return text
}

// weight is an endpoint's share, and of what while it is less.
func weight(e client.Endpoint) string {
	if e.EffectiveWeight == float64(e.Weight) || e.EffectiveWeight == 0 && !e.Takes() {
		return fmt.Sprint(e.Weight)
	}
	return fmt.Sprintf("%.2g of %d", e.EffectiveWeight, e.Weight)
}

// carried is what an endpoint carries, and of how much where that is bounded.
func carried(e client.Endpoint) string {
	if e.MaxConnections == 0 {
		return fmt.Sprint(e.Flows)
	}
	return of(e.Flows, e.MaxConnections)
}

// whyNot is what an operator should know of an endpoint that is not as it
// should be.
func whyNot(e client.Endpoint) string {
	switch now := time.Now(); {
	case e.State == client.EndpointUp:
		return ""
	case e.EjectedUntil.After(now):
		return fmt.Sprintf("%s; back in %s", cmp.Or(e.LastError, e.Why), span(e.EjectedUntil.Sub(now)))
	case e.DrainingUntil.After(now):
		return fmt.Sprintf("%s; its clients may come back for %s", e.Why, span(e.DrainingUntil.Sub(now)))
	case e.LastError != "" && !e.Takes():
		return e.LastError
	}
	return e.Why
}

func newPoolDrain(p *program) *cobra.Command {
	c := &cobra.Command{
		Use:   "drain POOL ENDPOINT",
		Short: "Give an endpoint of a pool no new flows",
		Long: `Give an endpoint of a pool no new flows; those that are open go on. Clients with
affinity to it may come back for as long as --keep says, and go elsewhere after.
A drain survives a reload of the edge, and ends with --off or with a restart of
the edge. To drain an endpoint for good, give it weight = 0 in the config.`,
		Example: "  warren pool drain berlin-db 10.0.0.10:5432 --keep 10m",
		Args:    cobra.ExactArgs(2),
	}
	keep := c.Flags().Duration("keep", 0, "how long clients with affinity may come back, as in `10m`")
	off := c.Flags().Bool("off", false, "give it new flows again")
	asJSON := jsonFlag(c)
	var request client.EndpointDrainRequest
	c.PreRunE = func(c *cobra.Command, args []string) error {
		request = client.EndpointDrainRequest{Endpoint: args[1], KeepSeconds: keep.Seconds(), Off: *off}
		if _, _, err := request.Check(); err != nil {
			return wrongUsage(c, "%w", err)
		}
		return nil
	}
	return asking(p, c, func(ctx context.Context, e *client.Client, args []string) error {
		pool, err := e.DrainEndpoint(ctx, args[0], request)
		if err != nil {
			return err
		}
		if *asJSON {
			return p.printJSON(pool)
		}
		for _, ep := range pool.Endpoints {
			if ep.Address != request.Endpoint {
				continue
			}
			what := "gets no new flows, until its drain is ended with --off or the edge restarts"
			if *off {
				what = "gets new flows again"
			}
			fmt.Fprintf(p.stdout, "endpoint %s of pool %s %s; it is %s; open flows: %d\n", ep.Address, pool.Name, what, ep.State, ep.Flows)
		}
		return nil
	})
}
