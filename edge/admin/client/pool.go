package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"
)

// State of a pool.
const (
	PoolHealthy     = "healthy"     // every endpoint is up
	PoolDegraded    = "degraded"    // some endpoints are not, and enough are
	PoolCritical    = "critical"    // fewer are up than minimum_healthy: passed over
	PoolDown        = "down"        // no endpoint is up
	PoolUnknown     = "unknown"     // no check has told anything yet: counts as down
	PoolUnmonitored = "unmonitored" // no monitor: every endpoint counts as up
	PoolDisabled    = "disabled"    // by the configuration
)

// Pool is one element of GET /v1/pools, sorted by name.
type Pool struct {
	Name     string   `json:"name"`
	Network  string   `json:"network"` // "@public": dialled by the edge itself
	Steering string   `json:"steering"`
	Monitor  string   `json:"monitor,omitempty"` // empty: not monitored
	State    string   `json:"state"`
	Why      string   `json:"why,omitempty"`  // why it is not healthy
	Apps     []string `json:"apps,omitempty"` // that use it

	MinimumHealthy int    `json:"minimum_healthy"`
	Connections    int    `json:"connections"` // flows that it carries
	Waiting        int    `json:"waiting"`     // flows in its queue
	Shed           uint64 `json:"shed"`        // flows that load shedding sent on

	Endpoints []Endpoint `json:"endpoints"` // in the order of the configuration
	Names     []Name     `json:"names,omitempty"`
}

// Name is a DNS name among the endpoints of a Pool, and what it stands for.
type Name struct {
	Host      string    `json:"host"` // "db.internal:5432"
	Addresses []string  `json:"addresses"`
	Resolved  time.Time `json:"resolved,omitzero"` // when the addresses were heard
	Expires   time.Time `json:"expires,omitzero"`  // when they are asked for again
	Error     string    `json:"error,omitempty"`   // of the last question
}

// State of an endpoint.
const (
	EndpointUp          = "up"
	EndpointDown        = "down"
	EndpointUnknown     = "unknown"     // not checked yet, or no connector to check through; counts as down
	EndpointUnmonitored = "unmonitored" // counts as up
	EndpointEjected     = "ejected"     // connects to it failed in a row; back after a while
	EndpointDraining    = "draining"    // by an operator: no new flows
	EndpointDisabled    = "disabled"    // by the configuration
)

// Endpoint is one endpoint of a Pool.
type Endpoint struct {
	Network   string    `json:"network"`
	Address   string    `json:"address"`
	Host      string    `json:"host,omitempty"` // the name that the address came from
	State     string    `json:"state"`
	Why       string    `json:"why,omitempty"`
	CheckedBy string    `json:"checked_by,omitempty"` // "edge", or a connector's name
	LastError string    `json:"last_error,omitempty"` // of the last check, or else connect, that failed
	Since     time.Time `json:"since,omitzero"`       // when the monitor's verdict was entered
	Checked   time.Time `json:"checked,omitzero"`     // when the last check ended
	RTTMillis float64   `json:"rtt_ms,omitempty"`     // of the last good check

	Weight          int       `json:"weight"`
	EffectiveWeight float64   `json:"effective_weight"`          // of the moment: 0 gets no new flows; less than Weight during a slow start
	MaxConnections  int       `json:"max_connections,omitempty"` // 0: no limit
	Flows           int       `json:"flows"`                     // that it carries
	Picks           uint64    `json:"picks"`                     // flows that were sent to it
	Failures        uint64    `json:"failures"`                  // of them, connects that failed
	ConnectMillis   float64   `json:"connect_ms,omitempty"`      // moving average of the connects
	EjectedUntil    time.Time `json:"ejected_until,omitzero"`
	DrainingUntil   time.Time `json:"draining_until,omitzero"` // until when clients with affinity stay
}

// Takes reports whether the endpoint takes new flows, as far as is known.
func (e Endpoint) Takes() bool { return e.State == EndpointUp || e.State == EndpointUnmonitored }

// EndpointDrainRequest is the body of POST /v1/pools/{name}/drain.
type EndpointDrainRequest struct {
	Endpoint string `json:"endpoint"` // "10.0.0.10:5432"
	// KeepSeconds is how long clients with affinity to it may come back;
	// 0: they go elsewhere at once.
	KeepSeconds float64 `json:"keep_seconds,omitempty"`
	Off         bool    `json:"off,omitempty"` // ends a drain
}

// MaxDrainKeep bounds EndpointDrainRequest.KeepSeconds.
const MaxDrainKeep = 7 * 24 * time.Hour

// Check returns the address and the time that the request names, or what is
// wrong with it.
func (r EndpointDrainRequest) Check() (addr netip.AddrPort, keep time.Duration, err error) {
	addr, err = netip.ParseAddrPort(r.Endpoint)
	switch {
	case err != nil || addr.Addr().Zone() != "":
		return addr, 0, fmt.Errorf(`reading endpoint %q: write an IP address and a port, as in "10.0.0.10:5432"`, r.Endpoint)
	case !(r.KeepSeconds >= 0 && r.KeepSeconds <= MaxDrainKeep.Seconds()):
		return addr, 0, fmt.Errorf("reading the time to keep clients, %v s: use 0 to %v", r.KeepSeconds, MaxDrainKeep.Seconds())
	case r.Off && r.KeepSeconds > 0:
		return addr, 0, errors.New("a drain that ends keeps no clients: leave one of the two out")
	}
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	return addr, time.Duration(r.KeepSeconds * float64(time.Second)), nil
}

// Event is one change of state.
type Event struct {
	ID        uint64    `json:"id"` // grows by one; begins anew with the edge
	Time      time.Time `json:"time"`
	Kind      string    `json:"kind"` // endpoint, pool or connector
	Pool      string    `json:"pool,omitempty"`
	Network   string    `json:"network,omitempty"`
	Endpoint  string    `json:"endpoint,omitempty"`
	Monitor   string    `json:"monitor,omitempty"`
	Connector string    `json:"connector,omitempty"`
	From      string    `json:"from"`
	To        string    `json:"to"`
	Why       string    `json:"why"`
}

// EventList is the answer of GET /v1/events: those after an id, oldest first.
type EventList struct {
	Events []Event `json:"events"`
	Missed uint64  `json:"missed"` // after the id, and forgotten already
	// Since is when the edge began to count: with another one, ids are others.
	Since time.Time `json:"since"`
}

// Bounds of one answer of GET /v1/events.
const (
	DefaultEvents = 100
	MaxEvents     = 4096
)

// Pools returns the pools, sorted by name.
func (c *Client) Pools(ctx context.Context) ([]Pool, error) {
	return call[[]Pool](ctx, c, http.MethodGet, "/v1/pools", nil)
}

// DrainEndpoint gives one endpoint of a pool no new flows, or gives it flows
// again, and returns the pool as it is then.
func (c *Client) DrainEndpoint(ctx context.Context, pool string, r EndpointDrainRequest) (Pool, error) {
	return call[Pool](ctx, c, http.MethodPost, "/v1/pools/"+url.PathEscape(pool)+"/drain", r)
}

// Events returns up to limit of the events after the one with the id; 0 limits
// to DefaultEvents. After 0 are the latest.
func (c *Client) Events(ctx context.Context, after uint64, limit int) (EventList, error) {
	values := make(url.Values)
	if after != 0 {
		values.Set("after", strconv.FormatUint(after, 10))
	}
	if limit != 0 {
		values.Set("limit", strconv.Itoa(limit))
	}
	path := "/v1/events"
	if len(values) > 0 {
		path += "?" + values.Encode()
	}
	return call[EventList](ctx, c, http.MethodGet, path, nil)
}
