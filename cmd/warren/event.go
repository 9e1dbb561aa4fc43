package main

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/warrenmesh/warren/edge/admin/client"
)

func newEvent(p *program) *cobra.Command {
	c := &cobra.Command{Use: "event", Short: "List what changed its state on a running edge"}
	c.AddCommand(newEventList(p))
	return c
}

// eventPause is how often --follow asks for more.
const eventPause = time.Second

func newEventList(p *program) *cobra.Command {
	c := &cobra.Command{
		Use: "list", Short: "List the latest changes of state, the oldest first", Args: cobra.NoArgs,
		Long: `List the latest changes of state of endpoints, pools and connectors, the oldest
first. The edge remembers the last few thousand since its start; a [[webhook]]
gets all of them.`,
		Example: "  warren event list --follow",
	}
	limit := c.Flags().Int("limit", client.DefaultEvents, fmt.Sprintf("at most so `many`, up to %d", client.MaxEvents))
	follow := c.Flags().Bool("follow", false, "go on with those to come, until interrupted")
	asJSON := c.Flags().Bool("json", false, "print JSON, an event after the other")
	c.PreRunE = func(c *cobra.Command, _ []string) error {
		if *limit < 1 || *limit > client.MaxEvents {
			return wrongUsage(c, "reading --limit %d: use 1 to %d", *limit, client.MaxEvents)
		}
		return nil
	}
	return asking(p, c, func(ctx context.Context, e *client.Client, _ []string) error {
		found, err := e.Events(ctx, 0, *limit)
		if err != nil {
			return err
		}
		show := p.printEvents
		if *asJSON {
			show = p.printEventLines
		}
		if err := show(found.Events, true); err != nil || !*follow {
			return err
		}
		return followEvents(ctx, e, found.Events, show)
	})
}

// followEvents shows what comes after the events that were shown, until ctx
// ends.
func followEvents(ctx context.Context, e *client.Client, shown []client.Event, show func([]client.Event, bool) error) error {
	var last uint64
	if len(shown) > 0 {
		last = shown[len(shown)-1].ID
	}
	tick := time.NewTicker(eventPause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		more, err := e.Events(ctx, last, client.MaxEvents)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if n := len(more.Events); n > 0 {
			last = more.Events[n-1].ID
		}
		if err := show(more.Events, false); err != nil {
			return err
		}
	}
}

func (p *program) printEventLines(events []client.Event, _ bool) error {
	for _, e := range events {
		if err := p.printJSON(e); err != nil {
			return err
		}
	}
	return nil
}

// printEvents prints a table, whose columns have fixed widths, so that what
// comes later stands below.
func (p *program) printEvents(events []client.Event, first bool) error {
	const row = "%-19s  %-9s  %-40s  %-22s  %s\n"
	if first {
		if _, err := fmt.Fprintf(p.stdout, row, "TIME", "KIND", "WHAT", "STATE", "WHY"); err != nil {
			return err
		}
	}
	for _, e := range events {
		_, err := fmt.Fprintf(p.stdout, row, e.Time.Local().Format(time.DateTime), e.Kind, subject(e), e.From+" → "+e.To, e.Why)
		if err != nil {
			return err
		}
	}
	return nil
}

// subject is what an event is about.
func subject(e client.Event) string {
	switch {
	case e.Endpoint != "" && e.Pool != "":
		return fmt.Sprintf("%s %s/%s", e.Pool, e.Network, e.Endpoint)
	case e.Endpoint != "":
		return fmt.Sprintf("%s/%s", e.Network, e.Endpoint)
	}
	return cmp.Or(e.Pool, e.Connector, e.Network)
}
