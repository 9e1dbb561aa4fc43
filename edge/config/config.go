// Package config turns edge.toml into what every room of the edge takes: its
// Spec. One file here speaks of one room; refs.go and claims.go check what
// crosses them (dangling names, addresses claimed twice, routes over reserved
// blocks); host.go checks the machine, and only when asked.
//
//	cfg, err := config.Load(os.Getenv, "edge.toml", "edge.d")
//
// The error of Load lists every problem with its file, line, key path, value
// and hint. A *Config is immutable and complete: defaults are filled in, paths
// are resolved, port ranges are spelled out.
//
// Load must never touch the machine beyond reading the files that it is given,
// so that `warren edge check` says the same in anyone's CI; and a key that
// this version does not serve is always an error, never ignored.
package config

import (
	"fmt"

	"github.com/warrenmesh/warren/configs/strict"
	"github.com/warrenmesh/warren/edge/balance"
	"github.com/warrenmesh/warren/edge/events"
	"github.com/warrenmesh/warren/edge/monitor"
	"github.com/warrenmesh/warren/edge/public"
)

// Version is the format of edge.toml that this package reads.
const Version = 1

// Env looks up an environment variable, as os.Getenv does.
type Env func(key string) string

// Config is a whole edge, checked and with its defaults.
type Config struct {
	Edge       Edge
	WireGuard  WireGuard
	Addresses  []Address
	DNS        DNS
	Admin      Admin
	Metrics    Metrics
	Log        Log
	Enrollment Enrollment
	// Public says how "@public" is dialled. Its Own are the addresses of each
	// [[address]]; the machine may have more.
	Public     public.Spec
	Events     Events
	Webhooks   []events.Spec
	Networks   []Network
	Connectors []Connector
	// Monitors name files that are not read yet: see ReadMonitors.
	Monitors []monitor.Spec
	// Pools are the declared ones; an endpoint with a Host has no more than the
	// port in Addr. PoolsWith fills in addresses, and adds the pools of apps
	// with an origin.
	Pools []balance.Spec
	Apps  []App

	doc *strict.Doc // to name lines in CheckHost
}

// file is edge.toml. Tables of one machine come first, then those that several
// edges can share.
type file struct {
	// Version is the format of the file. Default and only value: 1.
	Version int `toml:"version" default:"1"`

	Edge      Edge         `toml:"edge"`
	WireGuard WireGuard    `toml:"wireguard"`
	Address   []Address    `toml:"address"`
	DNS       dnsTable     `toml:"dns"`
	Admin     Admin        `toml:"admin"`
	Metrics   metricsTable `toml:"metrics"`
	Log       Log          `toml:"log"`

	Enrollment Enrollment     `toml:"enrollment"`
	Public     publicTable    `toml:"public"`
	Events     Events         `toml:"events"`
	Webhook    []webhookTable `toml:"webhook"`

	Network   []Network      `toml:"network"`
	Connector []Connector    `toml:"connector"`
	Monitor   []monitorTable `toml:"monitor"`
	Pool      []poolTable    `toml:"pool"`
	App       []appTable     `toml:"app"`
	Zone      []zoneTable    `toml:"zone"`

	Policy      strict.Unsupported `toml:"policy" hint:"use allow and deny of an [[app]]"`
	Device      strict.Unsupported `toml:"device" hint:"only connectors join a network"`
	Certificate strict.Unsupported `toml:"certificate" hint:"TLS passes through to the origin"`
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

// Parse builds a Config from texts. The error is a strict.Problems.
func Parse(env Env, sources ...strict.Source) (*Config, error) {
	doc := strict.Parse(sources...)
	var f file
	doc.Fill(&f)
	f.checkVersion(doc)
	l := &loader{doc: doc, env: env, file: &f, cfg: &Config{doc: doc}}
	l.build()
	if !doc.Broken() {
		l.refs()
	}
	if err := doc.Err(); err != nil {
		return nil, err
	}
	return l.cfg, nil
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

// loader builds cfg out of file, and leaves problems in doc.
type loader struct {
	doc  *strict.Doc
	env  Env
	file *file
	cfg  *Config

	hosts  []hostname         // of apps, in the order of cfg.DNS.Hosts
	served map[string]*served // by network
	public *public.Dialer     // judges addresses, and dials nothing
}

// build fills cfg table by table. Each step may rely on those before it.
func (l *loader) build() {
	l.buildEdge()
	l.buildWireGuard()
	l.buildAddresses()
	l.buildAdmin()
	l.buildObserve()
	l.buildNetworks()
	l.cfg.Enrollment = l.file.Enrollment
	l.buildPublic()
	l.buildEvents()
	l.buildMonitors()
	l.buildPools()
	l.buildApps()
	l.buildDNS()
}
