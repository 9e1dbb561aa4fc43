package dnsd

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/miekg/dns"
)

// freePorts finds n addresses that nobody has, below the ports that the
// machine gives to outgoing connections, so that they are still free when they
// are used.
func freePorts(t *testing.T, n int) []netip.AddrPort {
	t.Helper()
	var list []netip.AddrPort
	for range 100 * n {
		at := netip.AddrPortFrom(loopback.Addr(), uint16(20000+rand.IntN(12000)))
		e, err := open(at)
		if err != nil {
			continue
		}
		defer e.abandon() // only now, so that no port comes twice
		if list = append(list, at); len(list) == n {
			return list
		}
	}
	t.Fatalf("only %d of %d ports are free on loopback", len(list), n)
	return nil
}

func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	return freePorts(t, 1)[0]
}

func reload(t *testing.T, s *Server, spec Spec) {
	t.Helper()
	change, err := s.Prepare(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := change.Commit(); err != nil {
		t.Fatal(err)
	}
}

// TestReloadKeepsUnchangedAddresses: their sockets and TCP connections
// survive; new ones serve; removed ones are free again.
func TestReloadKeepsUnchangedAddresses(t *testing.T) {
	ports := freePorts(t, 3)
	kept, removed, added := ports[0], ports[1], ports[2]
	s := start(t, Spec{Listen: []netip.AddrPort{kept, removed}})
	before := s.endpoints[kept]
	q := query("db.apps.example.com.", dns.TypeA)
	conns := []net.Conn{dialTCP(t, kept), dialTCP(t, removed)}
	for _, conn := range conns {
		conn.Write(framed(mustPack(t, q)))
		if _, err := readFramed(conn); err != nil {
			t.Fatal(err)
		}
	}

	reload(t, s, Spec{Listen: []netip.AddrPort{added, kept}})
	if s.endpoints[kept] != before {
		t.Error("the unchanged address has new sockets")
	}
	for _, at := range []netip.AddrPort{kept, added} {
		for _, network := range transportLabels {
			ask(t, network, at, q)
		}
	}
	for i, conn := range conns {
		conn.Write(framed(mustPack(t, q)))
		if _, err := readFramed(conn); err != nil {
			t.Errorf("connection %d did not survive: %v", i, err)
		}
	}
	e, err := open(removed)
	if err != nil {
		t.Fatalf("the removed address is not free: %v", err)
	}
	e.abandon()
}

// TestReloadRollback: a change that is not committed leaves everything as it
// was and frees what it opened.
func TestReloadRollback(t *testing.T) {
	s := start(t, Spec{})
	before := s.Addrs()
	added := freePort(t)
	change, err := s.Prepare(Spec{Listen: []netip.AddrPort{added}, MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	change.Rollback()
	change.Rollback()
	if err := change.Commit(); err != nil {
		t.Errorf("Commit after Rollback = %v", err)
	}
	if !slices.Equal(s.Addrs(), before) || s.limits.Load().MaxConns != DefaultMaxConns {
		t.Errorf("serving %v with %d connections", s.Addrs(), s.limits.Load().MaxConns)
	}
	ask(t, "udp", before[0], query("db.apps.example.com.", dns.TypeA))
	e, err := open(added)
	if err != nil {
		t.Fatalf("the rolled back address is not free: %v", err)
	}
	e.abandon()
}

// TestReloadFails as a whole: one address that cannot be had keeps the other
// from being opened, and the old one serving.
func TestReloadFails(t *testing.T) {
	s := start(t, Spec{})
	before, added := s.Addrs(), freePort(t)
	for _, bad := range []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53"), {}} {
		if change, err := s.Prepare(Spec{Listen: []netip.AddrPort{added, bad}}); err == nil {
			change.Rollback()
			t.Fatalf("Prepare succeeded with %v", bad)
		}
	}
	ask(t, "tcp", before[0], query("db.apps.example.com.", dns.TypeA))
	e, err := open(added)
	if err != nil {
		t.Fatalf("the address of the failed change is not free: %v", err)
	}
	e.abandon()
}

// TestReloadAfterStop: a change that was prepared before the end opens
// nothing after it.
func TestReloadAfterStop(t *testing.T) {
	s := start(t, Spec{})
	added := freePort(t)
	change, err := s.Prepare(Spec{Listen: []netip.AddrPort{added}})
	if err != nil {
		t.Fatal(err)
	}
	s.Close(context.Background())
	if err := change.Commit(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Commit = %v, want net.ErrClosed", err)
	}
	e, err := open(added)
	if err != nil {
		t.Fatalf("the address is not free: %v", err)
	}
	e.abandon()
}

// TestReloadLimits: an address that stays takes the new limits.
func TestReloadLimits(t *testing.T) {
	s := start(t, Spec{})
	reload(t, s, Spec{Listen: []netip.AddrPort{loopback}, MaxConns: 1})
	first := dialTCP(t, s.Addrs()[0])
	first.Write(framed(mustPack(t, query("db.apps.example.com.", dns.TypeA))))
	if _, err := readFramed(first); err != nil {
		t.Fatal(err)
	}
	if !closedByServer(dialTCP(t, s.Addrs()[0])) {
		t.Error("the second connection is open")
	}
}

// TestReloadNothing: a Spec without addresses ends all of them, and the server
// can come back.
func TestReloadNothing(t *testing.T) {
	s := start(t, Spec{})
	reload(t, s, Spec{})
	if len(s.Addrs()) != 0 {
		t.Errorf("serving %v", s.Addrs())
	}
	reload(t, s, Spec{Listen: []netip.AddrPort{loopback}})
	ask(t, "udp", s.Addrs()[0], query("db.apps.example.com.", dns.TypeA))
}
