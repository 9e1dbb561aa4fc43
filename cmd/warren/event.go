package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"
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
first. The edge remembers the last few thousand since its start. To hear of all,
use a [[webhook]]: each event is tried for an hour (max_age).

With --follow, what was missed is told on stderr: events that the edge no longer
remembers, and restarts of the edge, after which its events begin anew.`,
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
		f := follower{ask: e.Events, show: show, say: p.stderr, since: found.Since}
		f.note(found.Events)
		tick := time.NewTicker(eventPause)
		defer tick.Stop()
		return f.run(ctx, tick.C)
	})
}

// follower shows events as they come.
type follower struct {
	ask   func(ctx context.Context, after uint64, limit int) (client.EventList, error)
	show  func(events []client.Event, first bool) error
	say   io.Writer // what else there is to know
	since time.Time // of the edge that last is an id of
	last  uint64    // that was shown
	away  bool      // the edge did not answer
}

func (f *follower) note(shown []client.Event) {
	if n := len(shown); n > 0 {
		f.last = shown[n-1].ID
	}
}

// run shows with each tick what comes after the events that were shown, until
// ctx ends. It waits for an edge that is away.
func (f *follower) run(ctx context.Context, tick <-chan time.Time) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
		}
		err := f.more(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if isAway(err) {
			if !f.away {
				fmt.Fprintf(f.say, "warren: %v; waiting for it\n", err)
			}
			f.away = true
			continue
		}
		if err != nil {
			return err
		}
		f.away = false
	}
}

// more asks for what is new, and shows it.
func (f *follower) more(ctx context.Context) error {
	list, err := f.ask(ctx, f.last, client.MaxEvents)
	if err != nil {
		return err
	}
	if !list.Since.Equal(f.since) {
		if list, err = f.ask(ctx, 0, client.MaxEvents); err != nil {
			return err
		}
		fmt.Fprintln(f.say, "warren: the edge has restarted: these are its events since")
		f.since, f.last = list.Since, 0
	}
	if list.Missed > 0 {
		fmt.Fprintf(f.say, "warren: %d events missed: the edge has forgotten them\n", list.Missed)
	}
	f.note(list.Events)
	return f.show(list.Events, false)
}

// isAway reports whether err says that no edge is there to be asked.
func isAway(err error) bool {
	for _, is := range []error{fs.ErrNotExist, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE, io.EOF, io.ErrUnexpectedEOF} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
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
