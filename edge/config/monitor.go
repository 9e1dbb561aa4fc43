package config

import (
	"fmt"
	"time"

	"github.com/warrenmesh/warren/check"
	"github.com/warrenmesh/warren/configs/strict"
	"github.com/warrenmesh/warren/edge/monitor"
)

// monitorTable is a [[monitor]]: the active health check of endpoints, run
// through the tunnel.
type monitorTable struct {
	// Name is what pools refer to.
	Name string `toml:"name" required:"true" hint:"give the monitor a name for pools to refer to"`
	// Type is the kind of check: tcp opens a connection and aborts it.
	// Default: tcp.
	Type string `toml:"type" default:"tcp" oneof:"tcp" later:"http https udp icmp udp_icmp smtp"`
	// Interval is the time from the end of one check to the start of the next,
	// give or take a tenth. Default: 5s; 100ms to 24h.
	Interval time.Duration `toml:"interval" default:"5s" range:"100ms..24h"`
	// Timeout is how long one check may take, at most the interval. Default:
	// 2s, or the interval where that is shorter.
	Timeout time.Duration `toml:"timeout" range:"1ms..24h"`
	// Rise is how many checks in a row must pass before an endpoint is up.
	// Default: 2; 1 to 100.
	Rise int `toml:"rise" default:"2" range:"1..100"`
	// Fall is how many checks in a row must fail before an endpoint is down.
	// Default: 2; 1 to 100.
	Fall int `toml:"fall" default:"2" range:"1..100"`
}

// Validate implements strict.Validator.
func (m *monitorTable) Validate(doc *strict.Doc, path string) { checkName(doc, path+".name", m.Name) }

func (l *loader) buildMonitors() {
	for i, m := range l.file.Monitor {
		spec := monitor.Spec{
			Name: m.Name, Check: check.Spec{Type: m.Type}, Interval: m.Interval, Timeout: m.Timeout, Rise: m.Rise, Fall: m.Fall,
		}.WithDefaults()
		spec.Validate(l.report(fmt.Sprintf("monitor[%d]", i)))
		l.cfg.Monitors = append(l.cfg.Monitors, spec)
	}
}

// report returns the function that a room's Validate calls with what it finds
// in the table at path. What the file's own checks have found is left out.
func (l *loader) report(path string) func(key, value, hint string) {
	return func(key, _, hint string) {
		if at := path + "." + key; !l.doc.Bad(at) {
			l.doc.Add(at, hint, "")
		}
	}
}
