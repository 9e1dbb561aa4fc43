package monitor

import (
	"context"
	"net"
	"net/netip"
	"sync"

	"github.com/warrenmesh/warren/check"
	"github.com/warrenmesh/warren/netstack/netx"
)

// shareLocked is the places of a network.
func (m *Monitor) shareLocked(network string) chan struct{} {
	share := m.shares[network]
	if share == nil {
		share = make(chan struct{}, m.deps.Concurrency)
		m.shares[network] = share
	}
	return share
}

// forgetSharesLocked forgets networks that nothing is watched in.
func (m *Monitor) forgetSharesLocked() {
	watched := make(map[string]bool, len(m.shares))
	for id := range m.checks {
		watched[id.network] = true
	}
	for network := range m.shares {
		if !watched[network] {
			delete(m.shares, network)
		}
	}
}

// heldPlace is a place among the checks that dial: of its network, and of all.
type heldPlace struct {
	share, all chan struct{}
	once       sync.Once
}

// takePlace waits for a place; nil: ctx has ended. The network's comes first,
// so that one whose endpoints are dead holds no more of all.
func takePlace(ctx context.Context, share, all chan struct{}) *heldPlace {
	for _, c := range []chan struct{}{share, all} {
		select {
		case <-ctx.Done():
			if c == all {
				<-share
			}
			return nil
		case c <- struct{}{}:
		}
	}
	return &heldPlace{share: share, all: all}
}

// give gives the place back; again is harmless.
func (p *heldPlace) give() {
	p.once.Do(func() {
		<-p.all
		<-p.share
	})
}

// attempt is the check.Dialer of one check, in its endpoint's network.
type attempt struct {
	*watch
	place *heldPlace
}

// Dial implements check.Dialer.
func (a attempt) Dial(ctx context.Context, proto string, addr netip.AddrPort) (net.Conn, error) {
	conn, err := a.deps.Dial(ctx, a.id.network, proto, addr)
	if err == nil && proto == "udp" {
		conn = datagrams{conn, a.place}
	}
	return conn, err
}

// Ping implements check.Dialer.
func (a attempt) Ping(ctx context.Context, addr netip.Addr) error {
	if a.deps.Ping == nil {
		return errNoPing
	}
	return a.deps.Ping(ctx, a.id.network, addr)
}

var _ check.Dialer = attempt{}

// datagrams is a udp conn whose check is past its dial once it waits for an
// answer. For many that is silence, and theirs for as long as it lasts.
type datagrams struct {
	net.Conn
	place *heldPlace
}

func (d datagrams) Read(b []byte) (int, error) {
	d.place.give()
	return d.Conn.Read(b)
}

// Abort implements netx.Aborter.
func (d datagrams) Abort() { netx.Abort(d.Conn) }
