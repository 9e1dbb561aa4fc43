package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/warrenmesh/warren/edge/admin/client"
)

func (p *program) connectors() noun[client.Connector] {
	return noun[client.Connector]{
		word: "connector", fetch: (*client.Client).Connectors, list: p.printConnectors, show: p.printConnector,
		name: func(c client.Connector) string { return c.Name },
		none: "make a token with `warren token create`, or add a [[connector]] to its config",
	}
}

func newConnectorList(p *program) *cobra.Command { return p.connectors().newList(p) }
func newConnectorShow(p *program) *cobra.Command { return p.connectors().newShow(p) }

func (p *program) printConnectors(all []client.Connector) error {
	t := newTable(p.stdout, "CONNECTOR", "NETWORK", "STATE", "SINCE", "VERSION", "RTT", "HANDSHAKE", "MTU", "RECEIVED", "SENT", "FLOWS", "FROM", "ROUTES")
	for _, c := range all {
		mtu, version := "", ""
		if c.PathMTU > 0 {
			mtu = fmt.Sprint(c.PathMTU)
		}
		if c.Report != nil {
			version = c.Report.Version
		}
		t.row(c.Name, c.Network, c.State, ago(stateSince(c)), version, millis(c.RTTMillis), ago(c.Handshake), mtu,
			byteCount(c.RxBytes), byteCount(c.TxBytes), fmt.Sprint(c.Flows), c.Endpoint, shorten(c.Routes))
	}
	return t.flush()
}

func (p *program) printConnector(c client.Connector) error {
	f := newFacts(p.stdout)
	f.add("connector", c.Name)
	f.add("network", c.Network)
	f.add("state", connectorState(c))
	f.add("why", c.Why)
	f.add("known by", knownBy(c))
	f.add("public key", c.PublicKey)
	f.add("key age", keyAge(c))
	f.add("overlay", c.Overlay)
	f.add("routes", list(c.Routes))
	f.add("limits", grantLimits(c))
	f.add("from", c.Endpoint)
	f.add("round trip", millis(c.RTTMillis))
	f.add("last handshake", ago(c.Handshake))
	if c.PathMTU > 0 {
		f.add("path MTU", fmt.Sprintf("%d bytes inside the tunnel", c.PathMTU))
	}
	f.add("received", byteCount(c.RxBytes))
	f.add("sent", byteCount(c.TxBytes))
	f.add("open flows", fmt.Sprint(c.Flows))
	if c.Report != nil {
		addReport(f, *c.Report)
	}
	if err := f.flush(); err != nil || c.Report == nil || len(c.Report.Errors) == 0 {
		return err
	}
	fmt.Fprintln(p.stdout)
	t := newTable(p.stdout, "ORIGIN", "RESULT", "TIMES", "LAST", "ERROR")
	for _, e := range c.Report.Errors {
		t.row(e.Destination, e.Result, fmt.Sprint(e.Count), ago(e.Last), e.Error)
	}
	return t.flush()
}

// connectorState writes what a connector does, since when, and what comes next.
func connectorState(c client.Connector) string {
	state := c.State
	if since := stateSince(c); !since.IsZero() {
		state += " since " + ago(since)
	}
	if c.Held && c.State == client.ConnectorDraining {
		state += fmt.Sprintf(", by an operator: `warren connector drain %s --off` ends it", c.Name)
	}
	if !c.PendingUntil.IsZero() {
		state += fmt.Sprintf(", given up in %s unless its key calls", span(time.Until(c.PendingUntil)))
	}
	return state
}

// stateSince is when a connector's state began; the zero time where the edge
// does not say: of one that drains it tells since when that is connected.
func stateSince(c client.Connector) time.Time {
	if c.State == client.ConnectorDraining {
		return time.Time{}
	}
	return c.Since
}

// knownBy writes how the edge came to know a connector.
func knownBy(c client.Connector) string {
	switch c.Origin {
	case client.OriginDeclared:
		return "the edge's config"
	case client.OriginToken:
		s := "token " + c.TokenID
		if !c.Enrolled.IsZero() {
			s += ", enrolled " + ago(c.Enrolled)
		}
		if c.Ephemeral {
			s += ", ephemeral: forgotten after 10 minutes of absence"
		}
		return s
	}
	return c.Origin
}

// keyAge writes how old a key is, and whether another one is to take its
// place.
func keyAge(c client.Connector) string {
	var parts []string
	if !c.KeySince.IsZero() {
		parts = append(parts, span(time.Since(c.KeySince)))
	}
	switch c.Rotation {
	case client.RotationAsked:
		parts = append(parts, "a new key is asked for")
	case client.RotationRegistered:
		parts = append(parts, "a new key is registered, and has not called yet")
	}
	return list(parts)
}

// grantLimits writes what an edge allows a connector at most.
func grantLimits(c client.Connector) string {
	var parts []string
	if c.MaxTCPFlows > 0 {
		parts = append(parts, fmt.Sprintf("%d TCP flows", c.MaxTCPFlows))
	}
	if c.MaxUDPFlows > 0 {
		parts = append(parts, fmt.Sprintf("%d UDP flows", c.MaxUDPFlows))
	}
	return list(parts)
}

// clockTolerance is how far a connector's clock may be off without a word:
// farther off, the times in its log mislead, and certificates and tokens are
// judged wrongly.
const clockTolerance = 30 * time.Second

func addReport(f *facts, r client.Report) {
	f.add("reported", ago(r.Received))
	f.add("version", r.Version)
	f.add("host", r.Hostname)
	f.add("running for", strings.TrimSuffix(ago(r.Started), " ago"))
	f.add("clock", clock(r.ClockOffsetMillis))
	load := fmt.Sprintf("%d TCP flows, %d UDP flows", r.Load.TCPFlows, r.Load.UDPFlows)
	if r.Load.Load1 > 0 {
		load += fmt.Sprintf(", load average %.2f", r.Load.Load1)
	}
	if r.Load.CPUs > 0 {
		load += " on " + plural(r.Load.CPUs, "CPU", "CPUs")
	}
	if r.Load.Memory > 0 {
		load += ", " + byteCount(r.Load.Memory) + " of memory"
	}
	f.add("its load", load)
	f.add("failed dials", fmt.Sprint(r.Load.FailedDials))
	f.add("dropped", fmt.Sprintf("%d packets", r.Load.Dropped))
}

// clock writes how far a connector's clock is from the edge's.
func clock(offsetMillis float64) string {
	off := time.Duration(offsetMillis * float64(time.Millisecond))
	way := "ahead of"
	if off < 0 {
		off, way = -off, "behind"
	}
	switch {
	case off < time.Second:
		return "as the edge's"
	case off <= clockTolerance:
		return fmt.Sprintf("%s %s the edge's", span(off), way)
	}
	return fmt.Sprintf("warning: %s %s the edge's: set it, as with NTP", span(off), way)
}
