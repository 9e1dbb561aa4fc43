package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/warrenmesh/warren/edge/admin/client"
)

// noun is a kind of thing that a running edge lists.
type noun[T any] struct {
	word  string // "pool"
	fetch func(*client.Client, context.Context) ([]T, error)
	name  func(T) string
	list  func([]T) error
	show  func(T) error
	none  string // what to do about an empty list; default: to add it to the config
}

func (n noun[T]) newList(p *program) *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List the " + n.word + "s of a running edge", Args: cobra.NoArgs}
	asJSON := jsonFlag(c)
	return asking(p, c, func(ctx context.Context, e *client.Client, _ []string) error {
		all, err := n.fetch(e, ctx)
		if err != nil {
			return err
		}
		if *asJSON {
			if all == nil {
				all = []T{} // a list, however short
			}
			return p.printJSON(all)
		}
		if len(all) == 0 {
			what := cmp.Or(n.none, fmt.Sprintf("add a [[%s]] to its config", n.word))
			fmt.Fprintf(p.stderr, "the edge has no %ss: %s\n", n.word, what)
			return nil
		}
		return n.list(all)
	})
}

func (n noun[T]) newShow(p *program) *cobra.Command {
	c := &cobra.Command{Use: "show NAME", Short: "Show one " + n.word + " of a running edge", Args: cobra.ExactArgs(1)}
	asJSON := jsonFlag(c)
	return asking(p, c, func(ctx context.Context, e *client.Client, args []string) error {
		all, err := n.fetch(e, ctx)
		if err != nil {
			return err
		}
		var names []string
		for _, v := range all {
			if n.name(v) != args[0] {
				names = append(names, n.name(v))
				continue
			}
			if *asJSON {
				return p.printJSON(v)
			}
			return n.show(v)
		}
		has := "it has none"
		if len(names) > 0 {
			has = "it has " + strings.Join(names[:min(len(names), 10)], ", ")
		}
		return &client.Error{Code: client.CodeNotFound, Message: fmt.Sprintf("looking for %s %q: the edge has no such %s: %s", n.word, args[0], n.word, has)}
	})
}

func newNetwork(p *program) *cobra.Command {
	n := noun[client.Network]{
		word: "network", fetch: (*client.Client).Networks, list: p.printNetworks, show: p.printNetwork,
		name: func(n client.Network) string { return n.Name },
	}
	c := &cobra.Command{Use: "network", Short: "List the virtual networks of a running edge"}
	c.AddCommand(n.newList(p), n.newShow(p))
	return c
}

func newApp(p *program) *cobra.Command {
	n := noun[client.App]{
		word: "app", fetch: (*client.Client).Apps, list: p.printApps, show: p.printApp,
		name: func(a client.App) string { return a.Name },
	}
	c := &cobra.Command{Use: "app", Short: "List the apps of a running edge"}
	c.AddCommand(n.newList(p), n.newShow(p))
	return c
}
