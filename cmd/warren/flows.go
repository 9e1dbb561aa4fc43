package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/warrenmesh/warren/edge/admin/client"
)

func newFlow(p *program) *cobra.Command {
	c := &cobra.Command{Use: "flow", Short: "List and end the open flows of a running edge"}
	c.AddCommand(newFlowList(p), newFlowKill(p))
	return c
}

func newFlowList(p *program) *cobra.Command {
	c := &cobra.Command{
		Use: "list", Short: "List the open flows, the oldest first", Args: cobra.NoArgs,
		Example: "  warren flow list --app db",
	}
	var q client.FlowQuery
	c.Flags().StringVar(&q.App, "app", "", "only those of this `app`")
	c.Flags().StringVar(&q.Network, "network", "", "only those into this `network`")
	c.Flags().StringVar(&q.Connector, "connector", "", "only those through this `connector`")
	c.Flags().IntVar(&q.Limit, "limit", client.DefaultFlows, fmt.Sprintf("at most so `many`, up to %d", client.MaxFlows))
	asJSON := jsonFlag(c)
	c.PreRunE = func(c *cobra.Command, _ []string) error {
		if q.Limit < 1 || q.Limit > client.MaxFlows {
			return wrongUsage(c, "reading --limit %d: use 1 to %d", q.Limit, client.MaxFlows)
		}
		return nil
	}
	return asking(p, c, func(ctx context.Context, e *client.Client, _ []string) error {
		flows, err := e.Flows(ctx, q)
		if err != nil {
			return err
		}
		if *asJSON {
			return p.printJSON(flows)
		}
		return p.printFlows(flows)
	})
}

func (p *program) printFlows(flows client.FlowList) error {
	t := newTable(p.stdout, "ID", "APP", "PROTO", "CLIENT", "NETWORK", "CONNECTOR", "ENDPOINT", "AGE", "IN", "OUT")
	for _, f := range flows.Flows {
		t.row(strconv.FormatUint(f.ID, 10), f.App, f.Proto, f.Client, f.Network, f.Connector, f.Endpoint,
			span(time.Since(f.Start)), byteCount(f.BytesIn), byteCount(f.BytesOut))
	}
	if err := t.flush(); err != nil {
		return err
	}
	if more := flows.Total - len(flows.Flows); more > 0 {
		fmt.Fprintf(p.stderr, "%d more are open: choose with --app, --network or --connector, or raise --limit\n", more)
	}
	return nil
}

func newFlowKill(p *program) *cobra.Command {
	c := &cobra.Command{
		Use: "kill ID...", Short: "End open flows by their id", Args: cobra.MinimumNArgs(1),
		Long: "End open flows by their id, as flow list has it. Both sides see the connection reset.",
	}
	var ids []uint64
	c.PreRunE = func(c *cobra.Command, args []string) error {
		for _, arg := range args {
			id, err := strconv.ParseUint(arg, 10, 64)
			if err != nil {
				return wrongUsage(c, "reading flow id %q: write a number from `warren flow list`", arg)
			}
			ids = append(ids, id)
		}
		return nil
	}
	return asking(p, c, func(ctx context.Context, e *client.Client, _ []string) error {
		for _, id := range ids {
			if err := e.KillFlow(ctx, id); err != nil {
				return err
			}
			fmt.Fprintf(p.stdout, "flow %d ended\n", id)
		}
		return nil
	})
}
