// Package route finds the app that a flow is for. Today the listener alone
// says so; later the name that the client asks for (SNI, Host) will too.
//
//	table := route.NewTable[*app]()
//	err := table.Add("tcp", listener, "db", db, 0)
//	db, offset, ok := table.Match("tcp", listener, "db")
//
// A Table is built whole from the configuration. It must never guess: a
// listener that it does not have matches nothing.
package route

import (
	"fmt"
	"net/netip"
)

// Table maps listeners to apps; A is what the caller keeps of an app. The zero
// value matches nothing. Add everything first: from the first Match on, which
// any goroutine may call, it must not change.
type Table[A any] struct {
	listeners map[key]target[A]
}

// target is the app behind a listener.
type target[A any] struct {
	app    A
	name   string
	offset uint16
}

// key is what tells listeners apart: the address, and the app's name only
// where the address does not.
type key struct {
	network string
	addr    netip.AddrPort
	name    string
}

func keyOf(network string, addr netip.AddrPort, name string) key {
	k := key{network: network, addr: netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())}
	if addr.Port() == 0 {
		k.name = name
	}
	return k
}

// NewTable returns an empty table.
func NewTable[A any]() *Table[A] { return &Table[A]{listeners: map[key]target[A]{}} }

// Add puts the app called name behind a listener: network is "tcp" or "udp",
// addr what the socket binds, offset the place of its port in the range that
// the app listens on. A second app at one listener is an error. Where the port
// is 0 the kernel picks one, so that each app has a listener of its own there.
func (t *Table[A]) Add(network string, addr netip.AddrPort, name string, app A, offset uint16) error {
	k := keyOf(network, addr, name)
	if other, twice := t.listeners[k]; twice {
		return fmt.Errorf("routing %s/%s: both app %q and app %q listen there", network, addr, other.name, name)
	}
	t.listeners[k] = target[A]{app: app, name: name, offset: offset}
	return nil
}

// Match returns the app behind the listener that took a flow, and the
// listener's place in its range. addr and name are what Add got; name counts
// only where the port is 0. ok is false where there is no such listener (any
// more).
func (t *Table[A]) Match(network string, addr netip.AddrPort, name string) (app A, offset uint16, ok bool) {
	found, ok := t.listeners[keyOf(network, addr, name)]
	return found.app, found.offset, ok
}
