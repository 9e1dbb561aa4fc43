package main

import (
	"context"
	"fmt"
	"net"

	"github.com/spf13/cobra"

	"github.com/warrenmesh/warren/connector"
	connectorconfig "github.com/warrenmesh/warren/connector/config"
)

func newConnector(p *program) *cobra.Command {
	c := &cobra.Command{Use: "connector", Short: "Run the private side, and see to the connectors of a running edge"}
	c.AddCommand(newConnectorInit(p), newConnectorRun(p), newConnectorCheck(p), newConnectorList(p), newConnectorShow(p),
		newConnectorGrant(p), newConnectorDrain(p), newConnectorRotate(p), newConnectorRevoke(p))
	return c
}

func newConnectorRun(p *program) *cobra.Command {
	var flags daemonFlags
	c := &cobra.Command{
		Use:   "run",
		Short: "Run a connector until it is told to stop",
		Long: `Run a connector until it is told to stop. It needs no root and no open port.

SIGTERM or SIGINT drains it: it refuses new flows and ends when the open ones
have, or after the config's drain time; a second signal ends it at once.`,
		Example: "  warren connector run -c connector.toml",
		Args:    cobra.NoArgs,
	}
	flags.configFlag(c, "connector")
	flags.logFlag(c)
	runs(c, false, func(ctx context.Context, s *signals) error {
		paths, err := flags.paths(c, "connector")
		if err != nil {
			return err
		}
		cfg, err := connectorconfig.Load(connectorconfig.Env(p.env), paths...)
		if err != nil {
			return err
		}
		log, err := flags.newLog(c, p, cfg.LogLevel)
		if err != nil {
			return err
		}
		notifyReady() // it serves whenever an edge answers; its start is over
		return connector.Run(ctx, cfg.Spec, connector.Deps{Log: log, Force: s.force, Version: thisBuild().Version})
	})
	return c
}

func newConnectorCheck(p *program) *cobra.Command {
	var flags daemonFlags
	c := &cobra.Command{
		Use:   "check",
		Short: "Check a config and this machine, and list all problems",
		Long: `Check a config and list all its problems; then see on this machine whether the
private key can be read and whether the names of edges and aliases resolve.`,
		Example: "  warren connector check -c connector.toml",
		Args:    cobra.NoArgs,
	}
	flags.configFlag(c, "connector")
	c.RunE = func(c *cobra.Command, _ []string) error {
		paths, err := flags.paths(c, "connector")
		if err != nil {
			return err
		}
		cfg, err := connectorconfig.Load(connectorconfig.Env(p.env), paths...)
		if err != nil {
			return err
		}
		if err := cfg.Locate(connector.Check(c.Context(), cfg.Spec, net.DefaultResolver)); err != nil {
			return err
		}
		_, err = fmt.Fprintf(p.stdout, "%s: good: %s, %s\n", list(paths), plural(len(cfg.Spec.Edges), "edge", "edges"), plural(len(cfg.Spec.Origin.Aliases), "alias", "aliases"))
		return err
	}
	return c
}
