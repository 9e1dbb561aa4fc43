package enroll

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

// clock is a time that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 11, 22, 5, 13, 2, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// fakeStore keeps JSON in memory. It outlives registries, as a disk does.
type fakeStore struct {
	mu      sync.Mutex
	values  map[string]map[string][]byte // by kind and id
	updates int
	broken  error // that every Update fails with
	after   int   // with broken: only once so many more Updates have worked
	ever    bytes.Buffer
}

func newFakeStore() *fakeStore { return &fakeStore{values: map[string]map[string][]byte{}} }

func (s *fakeStore) fail(err error, after int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken, s.after = err, after
}

func (s *fakeStore) View(f func(Tx) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return f(fakeTx{s, s.values})
}

func (s *fakeStore) Update(f func(Tx) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.updates++
	scratch := map[string]map[string][]byte{}
	for kind, ids := range s.values {
		scratch[kind] = map[string][]byte{}
		for id, value := range ids {
			scratch[kind][id] = value
		}
	}
	if err := f(fakeTx{s, scratch}); err != nil {
		return err
	}
	if s.broken != nil {
		if s.after == 0 {
			return s.broken
		}
		s.after--
	}
	s.values = scratch
	return nil
}

type fakeTx struct {
	store  *fakeStore
	values map[string]map[string][]byte
}

func (tx fakeTx) Put(kind, id string, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	if tx.values[kind] == nil {
		tx.values[kind] = map[string][]byte{}
	}
	tx.values[kind][id] = text
	tx.store.ever.Write(text)
	return nil
}

func (tx fakeTx) Delete(kind, id string) error {
	delete(tx.values[kind], id)
	return nil
}

func (tx fakeTx) Each(kind string, visit func(string, func(any) error) error) error {
	for id, value := range tx.values[kind] {
		if err := visit(id, func(into any) error { return json.Unmarshal(value, into) }); err != nil {
			return err
		}
	}
	return nil
}

// fakePeers is a tunnel that refuses what the real one does, and complains
// where the registry asks for what it never should.
type fakePeers struct {
	t testing.TB

	mu       sync.Mutex
	networks map[string]bool
	guests   map[wgtypes.Key]Guest
	members  map[string]*fakeMember
	renewed  map[wgtypes.Key]int
	broken   error // that every method fails with which can
	after    int   // with broken: only once so many more keys have been taken
	refused  wgtypes.Key
}

type fakeMember struct {
	Member    // with the key in use
	next, old wgtypes.Key
	held      bool
	dead      bool
	left      bool // dead because it said farewell
	declared  bool
}

func newFakePeers(t testing.TB) *fakePeers {
	return &fakePeers{
		t: t, networks: map[string]bool{}, guests: map[wgtypes.Key]Guest{}, members: map[string]*fakeMember{},
		renewed: map[wgtypes.Key]int{},
	}
}

// overlayOf is a key's overlay address.
func overlayOf(key wgtypes.Key) netip.Addr {
	a := [16]byte{0xfd, 0x77, 0x61, 0x72, 0x72, 0x65}
	copy(a[6:], key[:])
	return netip.AddrFrom16(a)
}

// ownerLocked says whose a key is.
func (p *fakePeers) ownerLocked(key wgtypes.Key) string {
	if g, ok := p.guests[key]; ok {
		return g.Name
	}
	for _, m := range p.members {
		if m.PublicKey == key || m.next == key || m.old == key {
			return m.Name
		}
	}
	return ""
}

func (p *fakePeers) takeLocked(key wgtypes.Key) error {
	if p.broken != nil {
		if p.after == 0 {
			return p.broken
		}
		p.after--
	}
	if owner := p.ownerLocked(key); owner != "" || key == (wgtypes.Key{}) {
		p.t.Errorf("the tunnel was asked to take key %v, which is that of %q", key, owner)
		return errors.New("known key")
	}
	if key == p.refused {
		return errors.New("not this one")
	}
	return nil
}

func (p *fakePeers) KeyAt(overlay netip.Addr) (wgtypes.Key, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key := range p.guests {
		if overlayOf(key) == overlay {
			return key, true
		}
	}
	for _, m := range p.members {
		if overlayOf(m.PublicKey) == overlay {
			return m.PublicKey, true
		}
		if m.next != (wgtypes.Key{}) && overlayOf(m.next) == overlay {
			return m.next, true
		}
	}
	return wgtypes.Key{}, false
}

func (p *fakePeers) AddGuest(g Guest) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if kept, ok := p.guests[g.PublicKey]; ok && kept.Port == wire.ControlPort && kept == g {
		return errors.New("known key") // that a demotion has kept
	}
	if err := p.takeLocked(g.PublicKey); err != nil {
		return err
	}
	p.guests[g.PublicKey] = g
	return nil
}

func (p *fakePeers) RemoveGuest(key wgtypes.Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.guests, key)
}

func (p *fakePeers) RenewGuest(key wgtypes.Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.renewed[key]++
}

func (p *fakePeers) AddConnector(m Member) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.networks[m.Network] {
		return fmt.Errorf("no network %q", m.Network)
	}
	if p.members[m.Name] != nil {
		p.t.Errorf("the tunnel was asked to take connector %q twice", m.Name)
		return errors.New("known name")
	}
	if err := p.takeLocked(m.PublicKey); err != nil {
		return err
	}
	p.members[m.Name] = &fakeMember{Member: m}
	return nil
}

func (p *fakePeers) RemoveConnector(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.members, name)
}

func (p *fakePeers) Demote(name string, port uint16) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.members[name]
	if m == nil {
		return errors.New("no such connector")
	}
	if p.broken != nil {
		return p.broken
	}
	delete(p.members, name)
	p.guests[m.PublicKey] = Guest{Name: "revoked " + name, PublicKey: m.PublicKey, Port: port}
	return nil
}

func (p *fakePeers) SetRoutes(name string, routes []netip.Prefix) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.members[name]
	if m == nil {
		return errors.New("no such connector")
	}
	if p.broken != nil {
		return p.broken
	}
	m.Routes = routes
	return nil
}

func (p *fakePeers) AddKey(name string, next wgtypes.Key) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.members[name]
	if m == nil {
		return errors.New("no such connector")
	}
	if err := p.takeLocked(next); err != nil {
		return err
	}
	m.next, m.old = next, wgtypes.Key{}
	return nil
}

// follow is what the tunnel does at the first packet of a next key.
func (p *fakePeers) follow(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.members[name]
	m.PublicKey, m.next, m.old = m.next, wgtypes.Key{}, m.PublicKey
}

func (p *fakePeers) DropKey(name string, key wgtypes.Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.members[name]
	switch {
	case m == nil:
	case m.next == key:
		m.next = wgtypes.Key{}
	case m.old == key:
		m.old = wgtypes.Key{}
	case m.PublicKey == key && m.next != (wgtypes.Key{}):
		m.PublicKey, m.next = m.next, wgtypes.Key{}
	default:
		p.t.Errorf("the tunnel was asked to drop key %v of connector %q, its only one or none of its own", key, name)
	}
}

func (p *fakePeers) SetHeld(name string, held bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m := p.members[name]; m != nil {
		m.held = held
	}
}

func (p *fakePeers) State(name string) (State, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.members[name]
	return State{Alive: m != nil && !m.dead, Left: m != nil && m.left}, m != nil
}

// member returns a copy of what the tunnel has of a connector.
func (p *fakePeers) member(name string) (fakeMember, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.members[name]
	if m == nil {
		return fakeMember{}, false
	}
	return *m, true
}
