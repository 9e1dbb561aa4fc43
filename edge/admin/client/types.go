package client

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// These types are the admin API's JSON. Times are RFC 3339, durations are
// milliseconds, addresses are strings as a person writes them. Lists are
// sorted as documented. A field may be added; none changes its meaning within
// a version of the path.

// Status is the answer of GET /v1/status: the edge as a whole.
type Status struct {
	Name     string    `json:"name"`    // of the edge, as configured
	Version  string    `json:"version"` // of the program
	PID      int       `json:"pid"`
	Since    time.Time `json:"since"` // when it started
	Ready    bool      `json:"ready"` // new flows are accepted
	Why      string    `json:"why,omitempty"`
	Draining bool      `json:"draining"`

	PublicKey string   `json:"public_key"`          // of WireGuard
	Overlay   string   `json:"overlay"`             // the edge's address in the tunnel
	Listen    string   `json:"listen"`              // the UDP address WireGuard is on
	Advertise []string `json:"advertise,omitempty"` // what connectors dial

	ConfigFiles     []string  `json:"config_files,omitempty"`
	ConfigRevision  uint64    `json:"config_revision"` // counts the configs that came into force, from 1
	ConfigSince     time.Time `json:"config_since,omitzero"`
	LastReloadError string    `json:"last_reload_error,omitempty"` // empty once a reload succeeds

	Networks       int    `json:"networks"`
	Connectors     int    `json:"connectors"`
	ConnectorsUp   int    `json:"connectors_up"`
	Apps           int    `json:"apps"`
	Pools          int    `json:"pools"`
	Endpoints      int    `json:"endpoints"`
	EndpointsUp    int    `json:"endpoints_up"`
	ActiveFlows    int    `json:"active_flows"`
	FlowLogDropped uint64 `json:"flow_log_dropped"` // lines lost so far
}

// App is one element of GET /v1/apps, sorted by name.
type App struct {
	Name      string   `json:"name"`
	Hostnames []string `json:"hostnames,omitempty"` // fully qualified
	Listen    []string `json:"listen"`              // "tcp/203.0.113.10:5432", what the world dials
	Pools     []string `json:"pools,omitempty"`
	Origin    string   `json:"origin,omitempty"` // "tokyo/10.0.0.10:80", the short form instead of pools
	Allow     []string `json:"allow,omitempty"`
	Deny      []string `json:"deny,omitempty"`

	EndpointsUp int    `json:"endpoints_up"`
	Endpoints   int    `json:"endpoints"`
	ActiveFlows int    `json:"active_flows"`
	Why         string `json:"why,omitempty"` // why nothing can be picked, empty while something can
}

// Network is one element of GET /v1/networks, sorted by name.
type Network struct {
	Name         string   `json:"name"`
	Connectors   []string `json:"connectors"`
	ConnectorsUp int      `json:"connectors_up"`
	Routes       []string `json:"routes"` // of all its connectors, each once
	Flows        int      `json:"flows"`
}

// Flow is one open flow.
type Flow struct {
	ID            uint64    `json:"id"`
	App           string    `json:"app"`
	Proto         string    `json:"proto"` // tcp or udp
	Client        string    `json:"client"`
	Listener      string    `json:"listener"`
	Network       string    `json:"network,omitempty"`
	Pool          string    `json:"pool,omitempty"`
	Connector     string    `json:"connector,omitempty"`
	Endpoint      string    `json:"endpoint,omitempty"`
	Start         time.Time `json:"start"`
	ConnectMillis float64   `json:"connect_ms,omitempty"`
	BytesIn       uint64    `json:"bytes_in"`  // client to origin
	BytesOut      uint64    `json:"bytes_out"` // origin to client
	Why           string    `json:"why,omitempty"`
}

// FlowQuery selects flows. Empty fields select all.
type FlowQuery struct {
	App       string
	Network   string
	Connector string
	Limit     int // at most this many, 1 to MaxFlows; 0 is DefaultFlows
}

// Bounds of one answer of GET /v1/flows.
const (
	DefaultFlows = 1000
	MaxFlows     = 10000
)

// FlowList is the answer of GET /v1/flows, oldest flow first.
type FlowList struct {
	Flows []Flow `json:"flows"`
	Total int    `json:"total"` // that match; more than are listed where the limit cut
}

// ProbeRequest is the body of POST /v1/probe.
type ProbeRequest struct {
	Network string `json:"network"`
	Address string `json:"address"`         // "10.0.0.10:5432"
	Proto   string `json:"proto,omitempty"` // "tcp" (default) or "udp"
}

// Check returns the address that the request asks for and its protocol, or
// what is wrong with it.
func (r ProbeRequest) Check() (proto string, addr netip.AddrPort, err error) {
	if r.Network == "" {
		return "", addr, errors.New("naming a network is required")
	}
	addr, err = netip.ParseAddrPort(r.Address)
	switch {
	case err != nil || addr.Addr().Zone() != "":
		return "", addr, fmt.Errorf(`reading address %q: write an IP address and a port, as in "10.0.0.10:5432"`, r.Address)
	case addr.Port() == 0:
		return "", addr, fmt.Errorf("reading address %q: port 0 cannot be dialled", r.Address)
	}
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	switch r.Proto {
	case "", "tcp":
		return "tcp", addr, nil
	case "udp":
		return "udp", addr, nil
	}
	return "", addr, fmt.Errorf(`reading protocol %q: use "tcp" or "udp"`, r.Proto)
}

// ProbeResult is the answer of POST /v1/probe: is it the tunnel or the origin?
type ProbeResult struct {
	Network   string `json:"network"`
	Address   string `json:"address"`
	Proto     string `json:"proto"`
	Connector string `json:"connector,omitempty"` // that carried it, or would have

	TunnelOK        bool    `json:"tunnel_ok"`
	TunnelRTTMillis float64 `json:"tunnel_rtt_ms,omitempty"`
	OriginOK        bool    `json:"origin_ok"`
	ConnectMillis   float64 `json:"connect_ms,omitempty"`
	Error           string  `json:"error,omitempty"` // of the dial

	Verdict string `json:"verdict"` // one sentence: the tunnel, or the origin
}

// ReloadResult is the answer of POST /v1/reload. A refused config is an Error
// with CodeRefused instead, and the old one goes on serving.
type ReloadResult struct {
	ConfigRevision uint64   `json:"config_revision"`
	Changes        []string `json:"changes,omitempty"`  // one line each, in words
	Warnings       []string `json:"warnings,omitempty"` // what is in force, and not as well as it should be
}

// DrainRequest is the body of POST /v1/drain, and of the drain of one
// connector.
type DrainRequest struct {
	// Off ends a drain that is under way: new flows are accepted again.
	Off bool `json:"off,omitempty"`
}

// DrainResult is the answer of POST /v1/drain, which returns at once: the
// flows that are open go on. GET /v1/status tells when they have ended.
type DrainResult struct {
	Draining    bool   `json:"draining"`
	ActiveFlows int    `json:"active_flows"`
	Note        string `json:"note,omitempty"` // "survives a reload, not a restart"
}

// Codes of an Error.
const (
	CodeBadRequest = "bad_request"
	CodeNotFound   = "not_found"
	CodeMethod     = "method_not_allowed"
	CodeTooLarge   = "too_large"
	CodeRefused    = "refused"   // the edge understood and will not; asking again is of no use
	CodeTimedOut   = "timed_out" // the edge did not finish in time
	CodeInternal   = "internal"  // a failure in the edge
	CodeUnknown    = "unknown"   // the answer was not the API's
)

// Error is the JSON body of every answer that is not a success, and the error
// that the client returns for it.
type Error struct {
	Message string `json:"error"`
	Code    string `json:"code"`
}

func (e *Error) Error() string { return e.Message }
