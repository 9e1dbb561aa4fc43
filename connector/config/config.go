// Package config turns connector.toml into what a connector takes: its Spec.
//
//	cfg, err := config.Load(os.Getenv, "connector.toml") // or Default, without a file
//	err = cfg.ReadToken()                                // or UseToken
//	err = connector.Run(ctx, cfg.Spec, …)
//
// The error of Load lists every problem with its file, line, key path, value
// and hint. Load must never touch the machine beyond reading the files that it
// is given and asking for the host's name, so that it says the same in anyone's
// CI; secrets are read by ReadToken and Run, and looked at by Check. A key that
// this version does not serve is always an error, never ignored.
package config

import (
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/configs/strict"
	"github.com/warrenmesh/warren/connector"
	"github.com/warrenmesh/warren/connector/guard"
	"github.com/warrenmesh/warren/connector/origin"
)

// Version is the format of connector.toml that this package reads.
const Version = 1

// Env looks up an environment variable, as os.Getenv does.
type Env func(key string) string

// Config is a whole connector, checked and with its defaults.
type Config struct {
	Spec connector.Spec
	// TokenFile is where ReadToken reads the token; "": there is none.
	TokenFile string
	// LogLevel is the least severe line that the connector writes.
	LogLevel slog.Level

	doc   *strict.Doc
	notes []string // see Notes
}

// file is connector.toml.
type file struct {
	// Version is the format of the file. Default and only value: 1.
	Version int `toml:"version" default:"1"`

	Connector connectorTable `toml:"connector"`
	Edge      []edgeTable    `toml:"edge"`
	Alias     []aliasTable   `toml:"alias"`
	Guard     guardTable     `toml:"guard"`
	Limits    limitsTable    `toml:"limits"`
	Metrics   metricsTable   `toml:"metrics"`
	Log       logTable       `toml:"log"`
}

// connectorTable is [connector].
type connectorTable struct {
	// Name is what log lines call this connector, and what it would be called
	// where it enrols; the token and the edge have the last word there.
	// Default: the host's name.
	Name string `toml:"name"`
	// StateDir holds the private key where private_key_file names no other
	// place, and the edges at which the connector has enrolled, mode 0700. A
	// relative path starts at the directory of the file that names it. Default:
	// $STATE_DIRECTORY, else $XDG_STATE_HOME/warren-connector, else
	// $HOME/.local/state/warren-connector.
	StateDir string `toml:"state_dir"`
	// PrivateKeyFile holds the WireGuard private key in base64, mode 0600. It
	// must exist. A relative path is looked up in $CREDENTIALS_DIRECTORY where
	// that is set, else beside the file that names it. Default:
	// state_dir/connector.key, made on the first run.
	PrivateKeyFile string `toml:"private_key_file"`
	// TokenFile holds a token, mode 0600, with which the connector enrols at
	// the token's edges on its first run. It is read at the start; once the
	// connector has enrolled it may be gone. A relative path is looked up as
	// that of private_key_file. Default: none.
	TokenFile string `toml:"token_file"`
	// Token is refused: a config is no place for a secret.
	Token inlineToken `toml:"token" hidden:"true"`
	// Drain is how long live flows may go on after the first SIGTERM. "0s"
	// waits for none. Default: 30s; up to 24h.
	Drain time.Duration `toml:"drain" default:"30s" range:"0s..24h"`
}

// edgeTable is an [[edge]] that knows the connector by its key: a
// [[connector]] there declares it. Those of a token need no table.
type edgeTable struct {
	// PublicKey is the edge's WireGuard public key in base64.
	PublicKey key `toml:"public_key" required:"true" hidden:"true" hint:"write what the edge prints at its start"`
	// URL is where the edge's WireGuard listens: "host:port", with or without
	// "udp://".
	URL edgeURL `toml:"url" required:"true" hint:"write where the edge's WireGuard listens, as in \"fra1.example.net:51820\""`
}

// aliasTable is an [[alias]]: a private address that is served from elsewhere.
type aliasTable struct {
	// From is what the edge asks for, as in "tcp/10.0.0.10:5432".
	From service `toml:"from" required:"true" hint:"write what the edge asks for, as in \"tcp/10.0.0.10:5432\""`
	// To is what is dialled instead: a name or an address, and a port.
	To target `toml:"to" required:"true" hint:"write what is dialled instead, as in \"db.internal:5432\""`
}

// guardTable is [guard]: the private side's own say, whatever the edge asks.
type guardTable struct {
	// Allow, where it is not empty, is the whole of what may be dialled, as in
	// "tcp/10.0.0.0/16:80-443". Default: the granted routes.
	Allow []rule `toml:"allow"`
	// Deny is never dialled; it wins over allow and over aliases. Default:
	// nothing. Loopback, link-local and metadata addresses are always denied.
	Deny []rule `toml:"deny"`
}

// limitsTable is [limits]: what a connector holds at most.
type limitsTable struct {
	// MaxTCPFlows is the most TCP flows at a time, over all edges; beyond it
	// the edge hears "host unreachable". Default: 65536; 1 to 1048576.
	MaxTCPFlows int `toml:"max_tcp_flows" default:"65536" range:"1..1048576"`
	// MaxUDPFlows is the same for UDP. Default: 16384; 1 to 1048576.
	MaxUDPFlows int `toml:"max_udp_flows" default:"16384" range:"1..1048576"`
	// UDPIdle ends a UDP flow without a datagram either way for so long.
	// Default: 210s; 1s to 24h.
	UDPIdle time.Duration `toml:"udp_idle" default:"210s" range:"1s..24h"`
}

// metricsTable is [metrics].
type metricsTable struct {
	// Listen is the TCP address of /metrics, /healthz and /readyz. Default: "",
	// off.
	Listen string `toml:"listen"`
	// Pprof serves /debug/pprof there as well, to find out where time and
	// memory go; listen has to be a loopback address then. Default: false.
	Pprof bool `toml:"pprof"`
}

// logTable is [log].
type logTable struct {
	// Level is the least severe line that is written to standard error.
	// Default: info.
	Level string `toml:"level" default:"info" oneof:"debug info warn error"`
}

// Load reads the files at paths (a directory stands for its *.toml files) and
// builds a Config. The error is a strict.Problems, or what kept a file from
// being read.
func Load(env Env, paths ...string) (*Config, error) {
	sources, err := strict.Read(paths...)
	if err != nil {
		return nil, err
	}
	return Parse(env, sources...)
}

// Default is the Config of a connector without a file: its edges come from a
// token, or from its state directory, which is "" where the environment names
// none.
func Default(env Env) *Config {
	doc := strict.Parse()
	var f file
	doc.Fill(&f)
	return &Config{doc: doc, LogLevel: f.Log.level(), Spec: f.spec(doc, env)}
}

// Parse builds a Config from texts. The error is a strict.Problems.
func Parse(env Env, sources ...strict.Source) (*Config, error) {
	doc := strict.Parse(sources...)
	var f file
	doc.Fill(&f)
	f.checkVersion(doc)
	cfg := &Config{
		doc:       doc,
		LogLevel:  f.Log.level(),
		Spec:      f.spec(doc, env),
		TokenFile: resolveSecret(doc, env, "connector.token_file", f.Connector.TokenFile),
	}
	if !doc.Broken() {
		cfg.Spec.Validate(reporter(doc))
		f.checkGuard(doc)
	}
	if err := doc.Err(); err != nil {
		return nil, err
	}
	return cfg, nil
}

// Locate gives what connector.Check found its places in the files. The result
// is nil, or a strict.Problems.
func (c *Config) Locate(found []connector.Problem) error {
	doc := c.doc.Fork()
	for _, p := range found {
		doc.Add(p.Path, trim(p.Hint), "")
	}
	return doc.Err()
}

// reporter returns the function that Validate calls. What the file's own
// checks have found is left out.
func reporter(doc *strict.Doc) func(path, value, hint string) {
	return func(path, _, hint string) {
		if !doc.Bad(path) {
			doc.Add(path, trim(hint), "")
		}
	}
}

func (f *file) checkVersion(doc *strict.Doc) {
	switch {
	case doc.Bad("version"):
	case f.Version > Version:
		doc.Add("version", fmt.Sprintf("this release reads version %d", Version), "install a later release of warren")
	case f.Version < Version:
		doc.Add("version", "no such version", fmt.Sprintf("write %d", Version))
	}
}

// checkGuard refuses an allow-list that is there and empty: by its looks it
// allows nothing, by its meaning everything.
func (f *file) checkGuard(doc *strict.Doc) {
	if doc.Has("guard.allow") && len(f.Guard.Allow) == 0 && !doc.Bad("guard.allow") {
		doc.Add("guard.allow", "empty list", "remove it to allow the granted routes, or list what may be dialled")
	}
}

// spec builds the Spec. Values that could not be read are zero there.
func (f *file) spec(doc *strict.Doc, env Env) connector.Spec {
	c := f.Connector
	s := connector.Spec{
		Name:           c.Name,
		StateDir:       resolve(doc, "connector.state_dir", c.StateDir),
		PrivateKeyFile: resolveSecret(doc, env, "connector.private_key_file", c.PrivateKeyFile),
		MaxTCPFlows:    f.Limits.MaxTCPFlows,
		MaxUDPFlows:    f.Limits.MaxUDPFlows,
		UDPIdle:        f.Limits.UDPIdle,
		Grace:          c.Drain,
		MetricsListen:  f.Metrics.Listen,
		Profiles:       f.Metrics.Pprof,
	}
	if s.Name == "" {
		s.Name = hostName()
	}
	if s.StateDir == "" {
		s.StateDir = StateDir(env)
	}
	if s.Grace == 0 { // the Spec's zero is its default
		s.Grace = -1
	}
	for _, e := range f.Edge {
		s.Edges = append(s.Edges, connector.EdgeSpec{PublicKey: wgtypes.Key(e.PublicKey), URLs: []connector.EdgeURL{e.URL.EdgeURL}})
	}
	for _, a := range f.Alias {
		s.Origin.Aliases = append(s.Origin.Aliases, origin.Alias{From: a.From.Service, To: a.To.Target})
	}
	s.Guard = guard.Spec{Allow: rules(f.Guard.Allow), Deny: rules(f.Guard.Deny)}
	return s
}

// StateDir is the default of [connector] state_dir: "" where the environment
// says nothing.
func StateDir(env Env) string {
	dir, _, _ := strings.Cut(env("STATE_DIRECTORY"), ":") // systemd parts several by colons
	if dir != "" {
		return dir
	}
	if dir := env("XDG_STATE_HOME"); filepath.IsAbs(dir) { // XDG: relative ones are to be ignored
		return filepath.Join(dir, "warren-connector")
	}
	if dir := env("HOME"); dir != "" {
		return filepath.Join(dir, ".local", "state", "warren-connector")
	}
	return ""
}

func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		name = ""
	}
	name, _, _ = strings.Cut(name, ".")
	return cmp.Or(name, "connector")
}

// resolve makes a relative path start at the directory of the file.
func resolve(doc *strict.Doc, key, path string) string {
	if i := strings.IndexFunc(path, unicode.IsControl); i >= 0 {
		doc.Add(key, fmt.Sprintf("a path with the control character %q", path[i]), "write a plain path")
	}
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(doc.File(key)), path)
}

// resolveSecret is resolve for secrets: a relative path is a credential where
// systemd provides them.
func resolveSecret(doc *strict.Doc, env Env, key, path string) string {
	resolved := resolve(doc, key, path)
	if dir := env("CREDENTIALS_DIRECTORY"); dir != "" && path != "" && !filepath.IsAbs(path) {
		return filepath.Join(dir, path)
	}
	return resolved
}

func (l logTable) level() slog.Level {
	switch l.Level {
	case "debug":
		return slog.LevelDebug
	case "warn":
		return slog.LevelWarn
	case "error":
		return slog.LevelError
	}
	return slog.LevelInfo
}
