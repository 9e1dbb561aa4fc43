package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/warrenmesh/warren/edge/admin/client"
)

func newProbe(p *program) *cobra.Command {
	c := &cobra.Command{
		Use:   "probe NETWORK IP:PORT",
		Short: "Tell whether the tunnel or the origin is at fault",
		Long: `Make a running edge dial a private address as a flow would, and tell whether the
tunnel or the origin is at fault. The exit code is 0 where both are well.`,
		Example: "  warren probe berlin 10.0.0.10:5432\n  warren probe berlin 10.0.0.53:53 --udp",
		Args:    cobra.ExactArgs(2),
	}
	udp := c.Flags().Bool("udp", false, "send a datagram instead of connecting with TCP")
	asJSON := jsonFlag(c)
	var q client.ProbeRequest
	c.PreRunE = func(c *cobra.Command, args []string) error {
		q = client.ProbeRequest{Network: args[0], Address: args[1]}
		if *udp {
			q.Proto = "udp"
		}
		if _, _, err := q.Check(); err != nil {
			return wrongUsage(c, "%w", err)
		}
		return nil
	}
	return asking(p, c, func(ctx context.Context, e *client.Client, _ []string) error {
		r, err := e.Probe(ctx, q)
		if err != nil {
			return err
		}
		if *asJSON {
			err = p.printJSON(r)
		} else {
			err = p.printProbe(r)
		}
		if err == nil && !(r.TunnelOK && r.OriginOK) {
			return &toldError{why: r.Verdict}
		}
		return err
	})
}

func (p *program) printProbe(r client.ProbeResult) error {
	f := newFacts(p.stdout)
	f.add("probe", fmt.Sprintf("%s/%s in network %s", r.Proto, r.Address, r.Network))
	tunnel := outcome(r.TunnelOK, r.TunnelRTTMillis)
	if r.Connector != "" {
		tunnel += ", connector " + r.Connector
	}
	f.add("tunnel", tunnel)
	if r.TunnelOK {
		f.add("origin", outcome(r.OriginOK, r.ConnectMillis))
	}
	f.add("verdict", r.Verdict)
	return f.flush()
}

// outcome writes "ok, 1.20 ms" or "failed".
func outcome(ok bool, ms float64) string {
	if !ok {
		return "failed"
	}
	if took := millis(ms); took != "" {
		return "ok, " + took
	}
	return "ok"
}
