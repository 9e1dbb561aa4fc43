package edge

import (
	"cmp"
	"fmt"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/edge/enroll"
	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

// Connectors implements admin.Source: the registry knows who they are, the
// tunnel how they are.
func (e *Edge) Connectors() []client.Connector {
	var out []client.Connector
	for _, c := range e.registry.Connectors() {
		shown := showMember(c)
		if p := e.nets.peer(c.Name); p != nil {
			showPeer(&shown, p)
		} else if shown.State == client.ConnectorDown {
			shown.Why = "the tunnel did not take it at the last reload: the log says why"
		}
		out = append(out, shown)
	}
	return out
}

// showMember is what the registry knows of a connector.
func showMember(c enroll.Connector) client.Connector {
	shown := client.Connector{
		Name: c.Name, Network: c.Network, Origin: client.OriginToken, State: client.ConnectorDown, Why: c.Why,
		PublicKey: c.PublicKey.String(), Overlay: tunnel.OverlayAddr(c.PublicKey).String(), Routes: texts(c.Routes),
		Held: c.Draining, PendingUntil: c.PendingUntil, TokenID: c.Token, Ephemeral: c.Ephemeral,
		Enrolled: c.Enrolled, KeySince: c.KeySince, Rotation: c.Rotation,
		Revision: c.Revision, MaxTCPFlows: c.MaxTCPFlows, MaxUDPFlows: c.MaxUDPFlows,
	}
	if c.NextKey != (wgtypes.Key{}) {
		shown.NextKey = c.NextKey.String()
	}
	if c.Declared {
		shown.Origin = client.OriginDeclared
	}
	switch c.State {
	case enroll.ConnectorPending:
		shown.State = client.ConnectorPending
		shown.Why = cmp.Or(c.Why, "it has registered, and its own key has not called yet")
	case enroll.ConnectorRevoked:
		shown.State = client.ConnectorRevoked
	case enroll.ConnectorAsleep:
		shown.State = client.ConnectorAsleep
	}
	if !c.LastSync.IsZero() {
		shown.Report = showReport(c)
	}
	return shown
}

func showReport(c enroll.Connector) *client.Report {
	r := &client.Report{
		Received: c.LastSync, Version: c.Report.Version, Hostname: c.Report.Hostname, Started: c.Report.Started,
		ClockOffsetMillis: millis(c.ClockOffset), Load: showLoad(c.Report.Load), Errors: []client.OriginError{},
	}
	for _, e := range c.Report.Errors {
		r.Errors = append(r.Errors, client.OriginError(e))
	}
	return r
}

func showLoad(l wire.Load) client.Load {
	return client.Load{
		TCPFlows: l.TCPFlows, UDPFlows: l.UDPFlows, CPUs: l.CPUs, Load1: l.Load1, Memory: l.Memory,
		Dropped: l.Dropped, FailedDials: l.Failed,
	}
}

// showPeer adds what the tunnel knows of a connector.
func showPeer(c *client.Connector, p *tunnel.Peer) {
	s := p.State()
	c.Routes = texts(p.Routes())
	c.RTTMillis, c.PathMTU, c.Handshake = millis(s.RTT), s.PathMTU, s.LastHandshake
	c.RxBytes, c.TxBytes, c.Flows, c.Since = s.RxBytes, s.TxBytes, s.Flows, s.Since
	if s.Endpoint.IsValid() {
		c.Endpoint = s.Endpoint.String()
	}
	if !s.LastHandshake.IsZero() {
		c.HandshakeAge = millis(time.Since(s.LastHandshake))
	}
	if c.State != client.ConnectorDown { // pending: its state is the registry's
		return
	}
	c.State, c.Why = stateOf(s)
}

// stateOf says how a connector is, and why, where it is not up.
func stateOf(s tunnel.PeerState) (state, why string) {
	switch {
	case s.Alive && s.Held:
		return client.ConnectorDraining, "an operator drains it"
	case s.Alive && s.Draining:
		return client.ConnectorDraining, "it asked for no new flows"
	case s.Alive && s.KeyShared:
		return client.ConnectorUp, "two machines run with its key: give each its own"
	case s.Alive:
		return client.ConnectorUp, ""
	case s.Held:
		return client.ConnectorDown, "an operator drained it, and it has left: `warren connector drain --off` lets it serve again"
	case s.Heard.IsZero():
		return client.ConnectorDown, "it has not called yet: is it running, does it have this edge's public key, and does UDP reach this edge?"
	}
	return client.ConnectorDown, fmt.Sprintf("nothing heard since %s", s.Heard.Format(time.RFC3339))
}
