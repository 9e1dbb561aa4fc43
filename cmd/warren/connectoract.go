package main

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/warrenmesh/warren/edge/admin/client"
)

// acting makes c a command that does one thing to the connector that its
// argument names, and says what that means.
func acting(p *program, c *cobra.Command, do func(context.Context, *client.Client, string) (client.ConnectorResult, error), say func(client.ConnectorResult)) *cobra.Command {
	c.Args = cobra.ExactArgs(1)
	asJSON := jsonFlag(c)
	return asking(p, c, func(ctx context.Context, e *client.Client, args []string) error {
		r, err := do(ctx, e, args[0])
		if err != nil {
			return err
		}
		if *asJSON {
			return p.printJSON(r)
		}
		say(r)
		return nil
	})
}

func newConnectorRevoke(p *program) *cobra.Command {
	c := &cobra.Command{
		Use:   "revoke NAME",
		Short: "Cut a connector off, for good",
		Long: `Cut a connector off, for good: its open flows are aborted, its key is refused
from now on, after a restart of the edge too, and it is told so. To end it
gently, use warren connector drain first.`,
	}
	return acting(p, c, func(ctx context.Context, e *client.Client, name string) (client.ConnectorResult, error) {
		return e.RevokeConnector(ctx, name)
	}, func(r client.ConnectorResult) {
		v := r.Connector
		fmt.Fprintf(p.stdout, "connector %s is revoked: %s cut, and its key is refused from now on\n", v.Name, plural(r.Aborted, "flow was", "flows were"))
		if r.Note != "" {
			fmt.Fprintln(p.stdout, r.Note)
		}
		if v.Origin == client.OriginDeclared {
			fmt.Fprintln(p.stdout, "to let its machine in again, make another key there, and write its public key into the edge's config")
			return
		}
		fmt.Fprintf(p.stdout, "to let its machine in again, remove its state directory there, and run it with a new token:\n\n"+
			"  warren token create --network %s --routes %s\n", v.Network, joined(v.Routes))
	})
}

func newConnectorDrain(p *program) *cobra.Command {
	c := &cobra.Command{
		Use:   "drain NAME",
		Short: "Give a connector no new flows, and let it go",
		Long: `Give a connector no new flows: others with the same routes get them. It leaves
this edge once its open flows have ended, and where it has no other edge its
process ends, with exit code 0. A drain survives a reload of the edge, and ends
with --off or with a restart of the edge.`,
	}
	off := c.Flags().Bool("off", false, "give it new flows again")
	return acting(p, c, func(ctx context.Context, e *client.Client, name string) (client.ConnectorResult, error) {
		return e.DrainConnector(ctx, name, client.DrainRequest{Off: *off})
	}, func(r client.ConnectorResult) {
		v := r.Connector
		if *off {
			fmt.Fprintf(p.stdout, "connector %s gets new flows again; open: %d\n", v.Name, v.Flows)
			if r.Note != "" { // as of one that has left
				fmt.Fprintln(p.stdout, r.Note)
			}
			return
		}
		fmt.Fprintf(p.stdout, "connector %s drains, which %s; open flows: %d\n", v.Name, r.Note, v.Flows)
	})
}

// keyPause is the least time between two changes of a connector's key, as
// connectors have it.
const keyPause = time.Minute

// whenRotated writes when a connector that was asked for a new key makes it.
func whenRotated(r client.ConnectorResult) string {
	when := cmp.Or(r.Note, "it makes one as soon as all its edges can learn it")
	if age := time.Since(r.Connector.KeySince); age < keyPause {
		when += fmt.Sprintf("; its present key is %s old, and a connector changes its key once a minute at most", span(age))
	}
	return when
}

func newConnectorRotate(p *program) *cobra.Command {
	c := &cobra.Command{
		Use:   "rotate NAME",
		Short: "Make a connector change its key",
		Long: `Make a connector that enrolled with a token change its key, without losing a
flow. It does so as soon as all its edges can learn the new key: until then
warren connector show tells how far it is. The key of a declared connector
changes in the edge's config.`,
	}
	return acting(p, c, func(ctx context.Context, e *client.Client, name string) (client.ConnectorResult, error) {
		return e.RotateConnector(ctx, name)
	}, func(r client.ConnectorResult) {
		fmt.Fprintf(p.stdout, "connector %s is asked for a new key: %s\n", r.Connector.Name, whenRotated(r))
	})
}

func newConnectorGrant(p *program) *cobra.Command {
	c := &cobra.Command{
		Use:   "grant NAME",
		Short: "Give a connector other routes",
		Long: `Give a connector that enrolled with a token other routes, all of them instead of
those that it has. Flows that they cover go on, the others are aborted. The
routes of a declared connector change in the edge's config.`,
		Example: "  warren connector grant berlin-1 --routes 10.0.0.0/16,10.1.0.0/16",
	}
	var request client.GrantRequest
	routes := c.Flags().StringSlice("routes", nil, "all the `prefixes` that it has from now on, as in 10.0.0.0/16,10.1.0.0/16; may be repeated")
	c.PreRunE = func(c *cobra.Command, _ []string) error {
		request.Routes = trimmed(*routes)
		if len(request.Routes) == 0 {
			return wrongUsage(c, "reading the flags of %q: --routes is required, as in --routes 10.0.0.0/16", c.CommandPath())
		}
		if _, err := request.Check(); err != nil {
			return wrongUsage(c, "%w", err)
		}
		return nil
	}
	return acting(p, c, func(ctx context.Context, e *client.Client, name string) (client.ConnectorResult, error) {
		return e.GrantConnector(ctx, name, request)
	}, func(r client.ConnectorResult) {
		v := r.Connector
		fmt.Fprintf(p.stdout, "connector %s has routes %s\n", v.Name, list(v.Routes))
		if r.Aborted > 0 {
			fmt.Fprintf(p.stdout, "%s cut, which they do not cover\n", plural(r.Aborted, "flow was", "flows were"))
		}
		if r.Note != "" {
			fmt.Fprintln(p.stdout, r.Note)
		}
	})
}
