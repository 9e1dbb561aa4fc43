package edge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/netstack/netx"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

// errKilled is the cause that ends a flow that an operator killed.
var errKilled = errors.New("ended by an operator")

// KillFlow implements admin.Control.
func (e *Edge) KillFlow(id uint64) bool { return e.observer.Table.Kill(id, errKilled) }

// Reload implements admin.Control.
func (e *Edge) Reload(context.Context) (client.ReloadResult, error) {
	done, err := e.reload()
	if err != nil {
		return client.ReloadResult{}, &client.Error{Code: client.CodeRefused, Message: err.Error()}
	}
	return client.ReloadResult{ConfigRevision: e.current.Load().revision, Changes: done.changes, Warnings: done.warnings}, nil
}

// ReopenFlowLog goes on with a new file of the flow log's name, as after a
// rotation. On failure the log stays with the old one.
func (e *Edge) ReopenFlowLog() error { return e.observer.Log.Reopen() }

// Drain implements admin.Control.
func (e *Edge) Drain(_ context.Context, r client.DrainRequest) (client.DrainResult, error) {
	if err := e.setDraining(!r.Off); err != nil {
		return client.DrainResult{}, err
	}
	result := client.DrainResult{Draining: !r.Off, ActiveFlows: e.observer.Table.Len()}
	if result.Draining {
		result.Note = "survives a reload, not a restart"
	}
	return result, nil
}

// probeTimeout bounds a probe; like a flow's connect it is longer than the
// connector's own dial.
const probeTimeout = connectTimeout

// Probe implements admin.Control: is it the tunnel or the origin?
func (e *Edge) Probe(ctx context.Context, r client.ProbeRequest) (client.ProbeResult, error) {
	proto, addr, err := r.Check()
	if err != nil {
		return client.ProbeResult{}, &client.Error{Code: client.CodeBadRequest, Message: err.Error()}
	}
	n := e.network(r.Network)
	if n == nil {
		return client.ProbeResult{}, &client.Error{Code: client.CodeNotFound,
			Message: fmt.Sprintf("probing %s: there is no network %q: see `warren network list`", addr, r.Network)}
	}
	result := client.ProbeResult{Network: r.Network, Address: addr.String(), Proto: proto}
	ctx, cancel := context.WithTimeoutCause(ctx, probeTimeout, netx.ErrTimedOut)
	defer cancel()
	began := time.Now()
	conn, p, err := n.Dial(ctx, proto, addr)
	if p == nil {
		result.Verdict = whyNoConnector(n, addr.Addr())
		return result, nil
	}
	if err == nil && proto == "udp" {
		err = askUDP(ctx, conn)
	}
	result.ConnectMillis = millis(time.Since(began))
	result.Connector, result.TunnelOK, result.TunnelRTTMillis = p.Name(), p.Alive(), millis(p.RTT())
	if conn != nil {
		netx.Abort(conn)
	}
	if err != nil {
		result.Error = err.Error()
	}
	result.OriginOK = err == nil
	result.Verdict = verdict(p.Name(), proto, addr, err)
	return result, nil
}

// udpPatience is how long a probe waits for an ICMP error: silence is what
// most UDP services answer to a datagram that they do not understand.
const udpPatience = time.Second

// askUDP sends an empty datagram and fails only where the private side says
// that nobody listens.
func askUDP(ctx context.Context, conn net.Conn) error {
	deadline := time.Now().Add(udpPatience)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	_ = conn.SetDeadline(deadline)
	if _, err := conn.Write(nil); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 1))
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() && !errors.Is(err, netx.ErrTimedOut) {
		return nil
	}
	return err
}

// verdict puts the outcome of a probe into one sentence.
func verdict(connector, proto string, addr netip.AddrPort, err error) string {
	switch netx.Classify(err) {
	case netx.ErrRefused:
		return fmt.Sprintf("the tunnel works; %s refused: nothing listens on %s/%d there", addr.Addr(), proto, addr.Port())
	case netx.ErrUnreachable:
		return fmt.Sprintf("the tunnel works; connector %q cannot reach %s: there is no route to it, or its [guard] denies it (its log says which)", connector, addr)
	case netx.ErrTimedOut:
		return fmt.Sprintf("the tunnel works as far as connector %q; %s did not answer it in time: is it up, and does a firewall drop packets there?", connector, addr)
	case netx.ErrNoRoute:
		return fmt.Sprintf("the tunnel to connector %q was lost during the probe", connector)
	}
	switch {
	case err != nil:
		return fmt.Sprintf("the probe failed: %v", err)
	case proto == "udp":
		return fmt.Sprintf("the tunnel works; nothing says that %s is closed (UDP gives no better answer)", addr)
	}
	return fmt.Sprintf("the tunnel works and %s accepts connections", addr)
}

// whyNoConnector says why no connector of n can carry a flow to dst.
func whyNoConnector(n *tunnel.Network, dst netip.Addr) string {
	peers := n.Peers()
	if len(peers) == 0 {
		return fmt.Sprintf("the tunnel: network %q has no connector: let one in with `warren token create --network %s`", n.Name(), n.Name())
	}
	for _, p := range peers {
		for _, r := range p.Routes() {
			if !r.Contains(dst) {
				continue
			}
			if p.Alive() && (p.Draining() || p.State().Held) {
				return fmt.Sprintf("the tunnel: connector %q serves %s, but drains", p.Name(), r)
			}
			return fmt.Sprintf("the tunnel: connector %q serves %s, but is down: is it running, and can it reach this edge over UDP?", p.Name(), r)
		}
	}
	return fmt.Sprintf("the tunnel: no connector of network %q serves %s: give one a route to it (`warren connector grant`, or its [[connector]])", n.Name(), dst)
}
