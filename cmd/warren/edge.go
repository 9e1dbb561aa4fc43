package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/warrenmesh/warren/edge"
	"github.com/warrenmesh/warren/edge/admin/client"
	edgeconfig "github.com/warrenmesh/warren/edge/config"
)

func newEdge(p *program) *cobra.Command {
	c := &cobra.Command{Use: "edge", Short: "Run the public side, and tell a running one what to do"}
	c.AddCommand(newEdgeInit(p), newEdgeRun(p), newEdgeCheck(p), newEdgeReload(p), newEdgeDrain(p))
	return c
}

func newEdgeRun(p *program) *cobra.Command {
	var flags daemonFlags
	c := &cobra.Command{
		Use:   "run",
		Short: "Run an edge until it is told to stop",
		Long: `Run an edge until it is told to stop.

SIGTERM or SIGINT drains it: it accepts no new flows and ends when the open
ones have, or after 30 s; a second signal ends it at once. SIGHUP reads the
config again; one with problems changes nothing.`,
		Example: "  warren edge run -c edge.toml",
		Args:    cobra.NoArgs,
	}
	flags.configFlag(c, "edge")
	flags.logFlag(c)
	runs(c, true, func(ctx context.Context, s *signals) error {
		paths, err := flags.paths(c, "edge")
		if err != nil {
			return err
		}
		cfg, err := edgeconfig.Load(p.env, paths...)
		if err != nil {
			return err
		}
		log, err := flags.newLog(c, p, cfg.Log.SlogLevel())
		if err != nil {
			return err
		}
		return p.runEdge(ctx, s, cfg, paths, log)
	})
	return c
}

// runEdge runs an edge with cfg, and with what paths say at each reload.
func (p *program) runEdge(ctx context.Context, s *signals, cfg *edgeconfig.Config, paths []string, log *slog.Logger) error {
	var reloads sync.WaitGroup
	defer reloads.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var loaded atomic.Bool
	return edge.Run(ctx, edge.Options{
		Load: func() (*edgeconfig.Config, error) {
			if !loaded.Swap(true) { // the start takes what has just been read
				return cfg, nil
			}
			return edgeconfig.Load(p.env, paths...)
		},
		Log: log, Version: thisBuild().Version, ConfigFiles: paths, Force: s.force,
		Ready: func(e *edge.Edge) {
			notifyReady()
			reloads.Go(func() { reloadOnSignal(ctx, s, e, log) })
		},
	})
}

// reloadOnSignal does what SIGHUP asks for until ctx ends.
func reloadOnSignal(ctx context.Context, s *signals, e *edge.Edge, log *slog.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.reload:
		}
		notifyReloading()
		if err := e.ReopenFlowLog(); err != nil {
			log.Error("the flow log goes on in its old file", "err", err)
		}
		_, _ = e.Reload(ctx) // logs its outcome itself
		notifyReady()
	}
}

func newEdgeCheck(p *program) *cobra.Command {
	var flags daemonFlags
	c := &cobra.Command{
		Use:   "check",
		Short: "Check a config and list all its problems",
		Long: `Check a config and list all its problems.

Without --host the check looks at nothing but the files, and says the same on
every machine. With --host it also looks at this machine: are its addresses and
ports to be had, are files there and closed to others.`,
		Example: "  warren edge check -c edge.toml\n  warren edge check --host -c edge.toml",
		Args:    cobra.NoArgs,
	}
	flags.configFlag(c, "edge")
	onHost := c.Flags().Bool("host", false, "check this machine's addresses, ports and files too")
	c.RunE = func(c *cobra.Command, _ []string) error {
		paths, err := flags.paths(c, "edge")
		if err != nil {
			return err
		}
		cfg, err := edgeconfig.Load(p.env, paths...)
		if err != nil {
			return err
		}
		if *onHost {
			if err := edgeconfig.CheckHost(cfg); err != nil {
				return err
			}
		}
		_, err = fmt.Fprintf(p.stdout, "%s: good: %s\n", list(paths), list([]string{
			plural(len(cfg.Networks), "network", "networks"), plural(len(cfg.Connectors), "connector", "connectors"), plural(len(cfg.Apps), "app", "apps"), plural(len(cfg.Pools), "pool", "pools"),
		}))
		return err
	}
	return c
}

func newEdgeReload(p *program) *cobra.Command {
	c := &cobra.Command{
		Use:   "reload",
		Short: "Make a running edge read its config again",
		Long: `Make a running edge read its config again. A config with problems changes
nothing: they are listed, and the exit code is 3. Open flows go on.`,
		Args: cobra.NoArgs,
	}
	asJSON := jsonFlag(c)
	return asking(p, c, func(ctx context.Context, e *client.Client, _ []string) error {
		r, err := e.Reload(ctx)
		if err != nil {
			return err
		}
		if *asJSON {
			return p.printJSON(r)
		}
		fmt.Fprintf(p.stdout, "reloaded: revision %d is in force\n", r.ConfigRevision)
		for _, change := range r.Changes {
			fmt.Fprintf(p.stdout, "  %s\n", change)
		}
		if len(r.Changes) == 0 {
			fmt.Fprintln(p.stdout, "  nothing changed")
		}
		for _, w := range r.Warnings {
			fmt.Fprintf(p.stderr, "warren: %s\n", w)
		}
		return nil
	})
}

func newEdgeDrain(p *program) *cobra.Command {
	c := &cobra.Command{
		Use:   "drain",
		Short: "Make a running edge accept no new flows, or accept them again",
		Long: `Make a running edge accept no new flows: its apps' sockets close, open flows go
on, /readyz says no. A drain survives a reload, and ends with --off or with a
restart.`,
		Args: cobra.NoArgs,
	}
	off := c.Flags().Bool("off", false, "accept new flows again")
	asJSON := jsonFlag(c)
	return asking(p, c, func(ctx context.Context, e *client.Client, _ []string) error {
		r, err := e.Drain(ctx, client.DrainRequest{Off: *off})
		if err != nil {
			return err
		}
		if *asJSON {
			return p.printJSON(r)
		}
		if !r.Draining {
			fmt.Fprintf(p.stdout, "the edge accepts new flows; open: %d\n", r.ActiveFlows)
			return nil
		}
		fmt.Fprintf(p.stdout, "the edge drains, which %s; open flows: %d\n", r.Note, r.ActiveFlows)
		return nil
	})
}
