package config

import (
	"log/slog"
	"net/netip"

	"github.com/warrenmesh/warren/edge/observe"
	"github.com/warrenmesh/warren/host"
)

// metricsTable is [metrics].
type metricsTable struct {
	// Listen is the TCP address of /metrics, /healthz and /readyz; "" turns it
	// off. Port 0 is any free port. Default: 127.0.0.1:9191.
	Listen Socket `toml:"listen" default:"127.0.0.1:9191"`
	// Pprof serves /debug/pprof there as well, to find out where time and
	// memory go; listen has to be a loopback address then. Default: false.
	Pprof bool `toml:"pprof"`
}

// Metrics says where /metrics, /healthz and /readyz are served.
type Metrics struct {
	// Listen is invalid where they are off. Without a host it is every
	// address: see On and Address.
	Listen netip.AddrPort
	// On tells whether there is such a listener at all.
	On bool
	// Profiles tells whether /debug/pprof is served there as well.
	Profiles bool
}

// Log is the [log] table.
type Log struct {
	// Level is the least severe line that the edge writes to standard error.
	// Default: info.
	Level string `toml:"level" default:"info" oneof:"debug info warn error"`
	// Flows is the file that gets one JSON line for each flow that ended; "-"
	// is standard output, "off" none. A relative path starts at the directory
	// of the file that names it. Default: "-".
	Flows string `toml:"flows" default:"-"`
}

// SlogLevel is Level for log/slog.
func (l Log) SlogLevel() slog.Level {
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

// Spec is the flow log's.
func (l Log) Spec() observe.LogSpec { return observe.LogSpec{Path: l.Flows} }

func (l *loader) buildObserve() {
	listen := l.file.Metrics.Listen
	l.cfg.Metrics = Metrics{Listen: listen.AddrPort, On: listen != Socket{}, Profiles: l.file.Metrics.Pprof}
	if l.file.Metrics.Pprof {
		if err := host.CheckProfiles(listen.String()); err != nil {
			l.doc.Add("metrics.pprof", err.Error(), "")
		}
	}
	l.cfg.Log = l.file.Log
	switch f := l.cfg.Log.Flows; f {
	case "":
		l.cfg.Log.Flows = "-"
	case "-", observe.LogOff:
	default:
		l.cfg.Log.Flows = l.resolve("log.flows", f)
	}
}
