// Package route finds the app that a flow is for. Today the listener alone
// says so; later the name that the client asks for (SNI, Host) will too.
//
//	table, err := route.New(listeners)
//	app, offset, ok := table.Match("tcp", listener, name)
//
// A Table is built whole from the configuration and does not change. It must
// never guess: a listener that it does not have matches nothing.
package route

import (
	"fmt"
	"net/netip"
)

// Listener is one public socket and the app behind it. A is what the caller
// keeps of an app.
type Listener[A any] struct {
	// Name is the app's name.
	Name    string
	Network string // "tcp" or "udp"
	// Addr is what the socket binds. Where its port is 0, the kernel picks
	// one, and several apps may have a listener at such an address.
	Addr netip.AddrPort
	// Offset is the place of the port in the range that the app listens on.
	Offset uint16
	App    A
}

// Table maps listeners to apps. The zero value matches nothing. Any goroutine
// may ask it.
type Table[A any] struct {
	listeners map[key]Listener[A]
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

// New builds the table. Two listeners at one address are an error.
func New[A any](listeners []Listener[A]) (*Table[A], error) {
	t := &Table[A]{listeners: make(map[key]Listener[A], len(listeners))}
	for _, l := range listeners {
		k := keyOf(l.Network, l.Addr, l.Name)
		if other, twice := t.listeners[k]; twice {
			return nil, fmt.Errorf("routing %s/%s: both app %q and app %q listen there", l.Network, l.Addr, other.Name, l.Name)
		}
		t.listeners[k] = l
	}
	return t, nil
}

// Match returns the app behind the listener that took a flow, and the
// listener's place in its range. addr and name are the listener's, as New got
// them; name counts only where the port is 0. ok is false where there is no
// such listener (any more).
func (t *Table[A]) Match(network string, addr netip.AddrPort, name string) (app A, offset uint16, ok bool) {
	l, ok := t.listeners[keyOf(network, addr, name)]
	return l.App, l.Offset, ok
}
