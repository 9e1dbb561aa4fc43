package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/configs"
	"github.com/warrenmesh/warren/configs/strict"
	"github.com/warrenmesh/warren/connector"
)

// firstConnector is what `connector init` was told.
type firstConnector struct {
	name, edge, edgeKey string
	network             string
	routes              []string
}

func newConnectorInit(p *program) *cobra.Command {
	var flags initFlags
	var first firstConnector
	c := &cobra.Command{
		Use:   "init [DIR]",
		Short: "Write a first connector.toml and its key for an edge that declares its connectors",
		Long: `Write a first connector.toml, with every key explained, and connector.key, a new
private key, beside it. Then print the [[connector]] table that makes the edge
know it. A file that is there already is left alone.

A connector that comes with a token needs none of this: see warren token create.`,
		Example: "  warren connector init --edge fra1.example.net:51820 --edge-key PUBLIC_KEY --network berlin --route 10.0.0.0/16",
		Args:    cobra.MaximumNArgs(1),
	}
	flags.add(c, "connector")
	c.Flags().StringVar(&first.edge, "edge", "", "`host:port` of the edge's WireGuard (default: the sample's, to be edited)")
	c.Flags().StringVar(&first.edgeKey, "edge-key", "", "`public key` of the edge, as it logs it (default: the sample's, to be edited)")
	c.Flags().StringVar(&first.name, "name", "", "`name` of the connector (default: the host's)")
	c.Flags().StringVar(&first.network, "network", "", "`network` that it stands in, for the table that is printed")
	c.Flags().StringArrayVar(&first.routes, "route", nil, "`prefix` behind it, for the table that is printed; may be repeated")
	c.RunE = func(c *cobra.Command, args []string) error {
		path, err := flags.path(c, "connector", args)
		if err != nil {
			return err
		}
		if err := first.check(c); err != nil {
			return err
		}
		return p.initConnector(path, first)
	}
	return c
}

// check refuses what the config or the edge would refuse later.
func (f *firstConnector) check(c *cobra.Command) error {
	if err := checkName(c, f.name); err != nil {
		return err
	}
	if f.edge != "" {
		if _, err := connector.ParseEdgeURL(f.edge); err != nil {
			return wrongUsage(c, "reading --edge: %w", err)
		}
	}
	if f.edgeKey != "" {
		if _, err := strict.ParseKey(f.edgeKey); err != nil {
			return wrongUsage(c, "reading --edge-key: %w", err)
		}
	}
	for _, r := range f.routes {
		if _, err := strict.ParsePrefix(r); err != nil {
			return wrongUsage(c, "reading --route %q: %w", r, err)
		}
	}
	if f.name == "" {
		host, _ := os.Hostname()
		f.name, _, _ = strings.Cut(host, ".")
		f.name = cmp.Or(f.name, "connector")
	}
	return nil
}

// initConnector writes the config at path and the key beside it.
func (p *program) initConnector(path string, first firstConnector) error {
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return fmt.Errorf("making a private key: %w", err)
	}
	const keyFile = "connector.key"
	text := configs.Connector
	for _, s := range []struct{ key, value string }{
		{"name", first.name}, {"private_key_file", keyFile}, {"public_key", first.edgeKey}, {"url", first.edge},
	} {
		if s.value != "" {
			text = setKey(text, s.key, s.value)
		}
	}
	keyPath := filepath.Join(filepath.Dir(path), keyFile)
	if err := writeNew(keyPath, key.String()+"\n", 0o600); err != nil {
		return err
	}
	if err := writeNew(path, text, 0o644); err != nil {
		_ = os.Remove(keyPath)
		return err
	}
	return p.sayConnector(path, keyPath, key.PublicKey(), first)
}

// setKey gives the first line of a sample that sets key, or that shows how in
// a comment, another value.
func setKey(text, key, value string) string {
	lines := strings.SplitAfter(text, "\n")
	for i, line := range lines {
		bare := strings.TrimPrefix(line, "# ")
		if !strings.HasPrefix(bare, key+" = ") {
			continue
		}
		set, comment := fmt.Sprintf("%s = %q", key, value), ""
		if at := strings.Index(line, " #"); at > 0 {
			set, comment = fmt.Sprintf("%-*s", at, set), line[at:]
		}
		lines[i] = set + strings.TrimRight(comment, "\n") + "\n"
		break
	}
	return strings.Join(lines, "")
}

// sayConnector prints what the edge must know, and what to do next.
func (p *program) sayConnector(path, keyPath string, public wgtypes.Key, first firstConnector) error {
	network := fmt.Sprintf("%q", first.network)
	if first.network == "" {
		network = `"…"              # the [[network]] that it stands in`
	}
	routes := `["…"]             # what is behind it, as in ["10.0.0.0/16"]`
	if len(first.routes) > 0 {
		routes = fmt.Sprintf("[%q]", strings.Join(first.routes, `", "`))
		routes = strings.ReplaceAll(routes, `\"`, `"`)
	}
	_, err := fmt.Fprintf(p.stdout, `wrote %s and %s
Put this into the edge's config, and run `+"`warren edge reload`"+` there:

  [[connector]]
  name = %q
  network = %s
  public_key = %q
  routes = %s

`, path, keyPath, first.name, network, public, routes)
	if err != nil {
		return err
	}
	if first.edge == "" || first.edgeKey == "" {
		if _, err := fmt.Fprintf(p.stdout, "Write the edge's public key and address into %s. ", path); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(p.stdout, "Then here:\n\n  warren connector run -c %s\n", path)
	return err
}
