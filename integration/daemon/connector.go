package daemon

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/integration/proc"
	"github.com/warrenmesh/warren/integration/require"
)

// ConnectorConfig is a connector.toml of a declared connector.
type ConnectorConfig struct {
	Name   string
	Key    Key
	Edges  []EdgeAt
	Tables string   // [[alias]], [guard] …
	Env    []string // of the process
	Plain  bool     // runs as the test itself does, not as an ordinary person
}

// EdgeAt is where a connector finds an edge.
type EdgeAt struct {
	PublicKey string
	URL       string // "203.0.113.10:51820"
}

// Connector is a connector that was started at least once.
type Connector struct {
	*proc.Process // the latest
	Dir           string
	Config        string // path of connector.toml

	warren Warren
	tb     require.TB
	host   Host
	cfg    ConnectorConfig
}

// StartConnector writes a config into a directory of its own, starts the
// connector on host, and returns once it says that it is ready.
func (w Warren) StartConnector(tb require.TB, host Host, cfg ConnectorConfig) *Connector {
	tb.Helper()
	c := w.NewConnector(tb, host, cfg)
	c.Start()
	c.WaitReady()
	return c
}

// NewConnector writes a config and starts nothing.
func (w Warren) NewConnector(tb require.TB, host Host, cfg ConnectorConfig) *Connector {
	tb.Helper()
	dir := netns.Directory(tb, "connector")
	c := &Connector{Dir: dir, Config: filepath.Join(dir, "connector.toml"), warren: w, tb: tb, host: host, cfg: cfg}
	keyFile := filepath.Join(dir, "connector.key")
	writeFile(tb, keyFile, cfg.Key.Private+"\n")
	var b strings.Builder
	fmt.Fprintf(&b, "version = 1\n\n[connector]\nname = %s\nstate_dir = %s\nprivate_key_file = %s\n",
		quote(cfg.Name), quote(filepath.Join(dir, "state")), quote(keyFile))
	for _, edge := range cfg.Edges {
		fmt.Fprintf(&b, "\n[[edge]]\npublic_key = %s\nurl = %s\n", quote(edge.PublicKey), quote(edge.URL))
	}
	fmt.Fprintf(&b, "\n%s\n", cfg.Tables)
	writeFile(tb, c.Config, b.String())
	netns.Give(tb, dir)
	return c
}

// Start starts the connector, or starts it again after it ended. It does not
// wait. The test's end is the process's at once; a drain is a test of its own.
func (c *Connector) Start() {
	c.tb.Helper()
	c.Process = proc.Start(c.tb, c.host, proc.Spec{Name: "connector " + c.cfg.Name, Path: c.warren.Path,
		Args: []string{"connector", "run", "-c", c.Config}, Dir: c.Dir, Env: c.cfg.Env, Attr: attr(c.cfg.Plain), StopSignal: syscall.SIGKILL})
}

// WaitReady waits until the connector says that it is ready, and fails the
// test when it ends or readyLimit passes first.
func (c *Connector) WaitReady() {
	c.tb.Helper()
	ctx, cancel := context.WithTimeout(c.tb.Context(), readyLimit)
	defer cancel()
	if err := c.WaitOutput(ctx, "ready"); err != nil {
		c.tb.Fatalf("waiting for connector %q: %v", c.cfg.Name, err)
	}
}
