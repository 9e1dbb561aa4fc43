package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/warrenmesh/warren/edge/admin/client"
)

func newStatus(p *program) *cobra.Command {
	c := &cobra.Command{
		Use:   "status",
		Short: "Show a running edge: its key, its config, its connectors",
		Args:  cobra.NoArgs,
	}
	asJSON := jsonFlag(c)
	return asking(p, c, func(ctx context.Context, e *client.Client, _ []string) error {
		s, err := e.Status(ctx)
		if err != nil {
			return err
		}
		if *asJSON {
			return p.printJSON(s)
		}
		if err := p.printStatus(s); err != nil {
			return err
		}
		connectors, err := e.Connectors(ctx)
		if err != nil || len(connectors) == 0 {
			return err
		}
		fmt.Fprintln(p.stdout)
		return p.printConnectors(connectors)
	})
}

func (p *program) printStatus(s client.Status) error {
	f := newFacts(p.stdout)
	f.add("edge", fmt.Sprintf("%s, version %s, pid %d, up %s", s.Name, s.Version, s.PID, span(time.Since(s.Since))))
	state := "ready"
	if !s.Ready {
		state = "not ready: " + s.Why
	}
	f.add("state", state)
	f.add("public key", s.PublicKey)
	listen := "UDP " + s.Listen
	if len(s.Advertise) > 0 {
		listen += ", advertised as " + list(s.Advertise)
	}
	f.add("wireguard", listen)
	f.add("overlay", s.Overlay)
	f.add("config", fmt.Sprintf("%s, revision %d, in force for %s", list(s.ConfigFiles), s.ConfigRevision, span(time.Since(s.ConfigSince))))
	f.add("last reload", s.LastReloadError)
	f.add("networks", fmt.Sprint(s.Networks))
	f.add("connectors", of(s.ConnectorsUp, s.Connectors)+" up")
	f.add("apps", fmt.Sprint(s.Apps))
	f.add("endpoints", of(s.EndpointsUp, s.Endpoints)+" up")
	f.add("open flows", fmt.Sprint(s.ActiveFlows))
	if s.FlowLogDropped > 0 {
		f.add("flow log", fmt.Sprintf("%d lines lost: is its disk slow or full?", s.FlowLogDropped))
	}
	return f.flush()
}
