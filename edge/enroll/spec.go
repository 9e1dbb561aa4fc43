package enroll

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Spec is what edge.toml says of enrolment and control. A reload replaces it
// whole.
type Spec struct {
	// Advertise is where connectors call this edge, "host:port" each. It goes
	// into tokens and grants; without it no token can be made.
	Advertise []string
	Networks  []Network
	Declared  []Declared
	// KeyMaxAge is the age at which an enrolled connector is asked for a new
	// key; 0: never.
	KeyMaxAge time.Duration
	// CheckRoutes says why a connector cannot have these routes; nil: it
	// always can. It is called with valid prefixes without host bits.
	CheckRoutes func([]netip.Prefix) error
}

// Network is a virtual network.
type Network struct {
	Name   string
	Enroll bool // tokens may let connectors in
	// MaxTCPFlows and MaxUDPFlows are of each of its connectors; 0: the
	// connector's own limits alone.
	MaxTCPFlows, MaxUDPFlows int
}

// Declared is a connector that edge.toml names. Its owner adds it to the
// tunnel, unless its key is denied; the registry answers its syncs.
type Declared struct {
	Name      string
	Network   string // one of Spec.Networks
	PublicKey wgtypes.Key
	Routes    []netip.Prefix
}

// Deps is what a Registry works with. All but Now, Log and Work are required.
type Deps struct {
	Store     Store
	Peers     Peers
	Now       func() time.Time // the clock; nil: time.Now
	Log       *slog.Logger     // nil: silence
	PublicKey wgtypes.Key      // this edge's own
	Work      Work             // what connectors do besides flows; nil: nothing
}

// Store keeps the registry's state. View and Update run their function once,
// and fail with its error or with one of their own; then nothing of an Update
// was kept. Update returns nil only when what was written would survive a
// crash.
type Store interface {
	View(func(Tx) error) error
	Update(func(Tx) error) error
}

// Tx is a transaction of a Store: values by kind and id, as JSON. It must not
// be used after its function has returned. Put and Delete belong in an Update.
type Tx interface {
	Put(kind, id string, value any) error
	Delete(kind, id string) error // of what is not there: nil
	Each(kind string, visit func(id string, decode func(into any) error) error) error
}

// Peers is the tunnel as the registry needs it. The registry makes one change
// at a time, but calls KeyAt and RenewGuest from any goroutine; its queries
// (Denied, Connectors, Tokens, Counts) may be asked meanwhile. A method that
// takes the name of a connector, or the key of a guest, that is not in the
// tunnel does nothing, or returns an error where it can.
type Peers interface {
	// KeyAt says whose overlay address it is: a connector's, its next key's,
	// or a guest's.
	KeyAt(overlay netip.Addr) (key wgtypes.Key, ok bool)

	// AddGuest adds a peer that reaches one port of this edge's overlay
	// address and no network. It fails for a key that the tunnel knows.
	AddGuest(Guest) error
	RemoveGuest(key wgtypes.Key)
	// RenewGuest makes WireGuard forget when it last heard the guest, whose
	// connections end with that.
	RenewGuest(key wgtypes.Key)

	// AddConnector gives an enrolled connector its place in its network. It
	// fails for a key that the tunnel knows, and for a network that it does
	// not.
	AddConnector(Member) error
	// RemoveConnector ends a connector, its flows and its keys.
	RemoveConnector(name string)
	// Demote ends a connector and its flows, declared ones too, but keeps the
	// key that it uses as a guest's on that port.
	Demote(name string, port uint16) error
	// SetRoutes aborts the flows that the routes no longer cover.
	SetRoutes(name string, routes []netip.Prefix) error
	// AddKey takes packets from next too; it replaces an earlier next key. It
	// fails for a key that the tunnel knows.
	AddKey(name string, next wgtypes.Key) error
	// DropKey forgets one of a connector's two keys.
	DropKey(name string, key wgtypes.Key)
	// SetHeld keeps new flows off a connector, or no longer.
	SetHeld(name string, held bool)
	// State tells how a connector is; false: the tunnel has none of that name.
	State(name string) (State, bool)
}

// Guest is a peer that reaches one port and no network.
type Guest struct {
	Name         string // for logs
	PublicKey    wgtypes.Key
	PresharedKey wgtypes.Key // zero: none
	Port         uint16      // of this edge's overlay address, TCP
}

// Member is an enrolled connector for the tunnel.
type Member struct {
	Name      string
	Network   string
	PublicKey wgtypes.Key
	Routes    []netip.Prefix
}

// State is what the tunnel knows of a connector.
type State struct {
	Alive bool
	Left  bool // it is not Alive because it said farewell
}

// validate refuses a Spec that contradicts itself.
func (s Spec) validate() error {
	networks := make(map[string]bool, len(s.Networks))
	for _, n := range s.Networks {
		networks[n.Name] = true
	}
	names, keys := make(map[string]bool), make(map[wgtypes.Key]bool)
	for _, d := range s.Declared {
		if !networks[d.Network] {
			return fmt.Errorf("declaring connector %q: there is no network %q", d.Name, d.Network)
		}
		if names[d.Name] || keys[d.PublicKey] {
			return fmt.Errorf("declaring connector %q: its name or its key is there twice", d.Name)
		}
		names[d.Name], keys[d.PublicKey] = true, true
	}
	return nil
}

func (d Deps) withDefaults() (Deps, error) {
	if d.Store == nil || d.Peers == nil || d.PublicKey == (wgtypes.Key{}) {
		return d, errors.New("making a registry: it needs a store, the tunnel and this edge's public key")
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	return d, nil
}
