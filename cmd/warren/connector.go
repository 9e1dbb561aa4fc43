package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

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

// connectorFlags are those of `connector run`.
type connectorFlags struct {
	daemonFlags
	token          givenToken
	stateDir, name string
}

func newConnectorRun(p *program) *cobra.Command {
	var flags connectorFlags
	c := &cobra.Command{
		Use:   "run",
		Short: "Run a connector until it is told to stop",
		Long: `Run a connector until it is told to stop. It needs no root and no open port.

With a token it enrols at the edge that made the token, and remembers that in
its state directory: from then on it needs no token, and no config either. The
other way is a connector that the edge's config declares: see warren connector
init.

SIGTERM or SIGINT drains it: it refuses new flows and ends when the open ones
have, or after the config's drain time; a second signal ends it at once. It
ends with exit code 3 where another try is of no use: the token is wrong, spent,
expired or revoked, or the connector is revoked.`,
		Example: `  warren connector run --token-file token
  warren connector run -c connector.toml`,
		Args: cobra.NoArgs,
	}
	flags.configFlag(c, "connector")
	flags.token.add(c)
	c.Flags().StringVar(&flags.stateDir, "state-dir", "", "`directory` for what it remembers: its key and its edges (default: $WARREN_STATE_DIR, else the config's, else $STATE_DIRECTORY or ~/.local/state/warren-connector)")
	c.Flags().StringVar(&flags.name, "name", "", "`name` that it asks for (default: the config's, else the host's)")
	flags.logFlag(c)
	runs(c, false, func(ctx context.Context, s *signals) error {
		cfg, err := flags.load(ctx, c, p)
		if err != nil {
			return err
		}
		log, err := flags.newLog(c, p, cfg.LogLevel)
		if err != nil {
			return err
		}
		if c.Flags().Changed("token") {
			log.Warn("the token was given with --token: others on this machine may see it in the list of processes, and the shell keeps it: --token-file or " + tokenVariable + " are safer")
		}
		for _, note := range cfg.Notes() {
			log.Warn(note)
		}
		notifyReady() // it serves whenever an edge answers; its start is over
		return connector.Run(ctx, cfg.Spec, connector.Deps{Log: log, Force: s.force, Version: thisBuild().Version})
	})
	return c
}

// load returns the config that the flags, the environment and the files make.
// No file is needed where there is a token, or where it has enrolled before.
func (f *connectorFlags) load(ctx context.Context, c *cobra.Command, p *program) (*connectorconfig.Config, error) {
	if err := checkName(c, f.name); err != nil {
		return nil, err
	}
	cfg, paths := connectorconfig.Default(p.env), f.given("connector")
	if paths != nil {
		var err error
		if cfg, err = connectorconfig.Load(p.env, paths...); err != nil {
			return nil, err
		}
	}
	cfg.Spec.StateDir = cmp.Or(f.stateDir, p.env("WARREN_STATE_DIR"), cfg.Spec.StateDir)
	cfg.Spec.Name = cmp.Or(f.name, cfg.Spec.Name)
	if err := f.token.read(ctx, c, p, cfg); err != nil {
		return nil, err
	}
	if _, err := os.Stat(cfg.Spec.StateDir); paths == nil && len(cfg.Spec.Token.Edges) == 0 && errors.Is(err, fs.ErrNotExist) {
		return nil, wrongUsage(c, "looking for an edge to join: there is no token, no config, and no state directory %q: "+
			"give a token that `warren token create` prints at the edge, with --token-file, %s or --token; or write a config with `warren connector init`, and name it with -c",
			cfg.Spec.StateDir, tokenVariable)
	}
	return cfg, nil
}

func newConnectorCheck(p *program) *cobra.Command {
	var flags daemonFlags
	c := &cobra.Command{
		Use:   "check",
		Short: "Check a config and this machine, and list all problems",
		Long: `Check a config and list all its problems; then see on this machine whether the
private key and the token can be read and whether the names of edges and aliases
resolve.`,
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
		if err := cfg.Check(c.Context(), net.DefaultResolver); err != nil {
			return err
		}
		_, err = fmt.Fprintf(p.stdout, "%s: good: %s, %s\n", list(paths), plural(len(cfg.Spec.Edges)+len(cfg.Spec.Token.Edges), "edge", "edges"), plural(len(cfg.Spec.Origin.Aliases), "alias", "aliases"))
		return err
	}
	return c
}
