package balance

import (
	"sync"
	"time"
)

// table remembers which endpoint each client of one app has. It is bounded:
// the client that was seen longest ago makes room. Directors that follow each
// other share it, so what their configurations say comes with each call.
type table struct {
	mu      sync.Mutex
	places  map[[16]byte]int32
	entries []entry // entry 0 is the ends of the list: next the newest, prev the oldest
	free    int32   // first of the unused entries, linked by next; 0: none
}

// entry is one client.
type entry struct {
	key        [16]byte
	home       *endpoint
	standIn    *endpoint // has the client's flows while home is down
	seen       int64
	prev, next int32
}

func newTable() *table {
	return &table{places: make(map[[16]byte]int32), entries: make([]entry, 1)}
}

// get returns the client's endpoints and counts as a use.
func (t *table) get(key [16]byte, now int64, ttl time.Duration) (home, standIn *endpoint) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, ok := t.places[key]
	if !ok {
		return nil, nil
	}
	e := &t.entries[i]
	if now-e.seen >= int64(ttl) {
		t.removeLocked(i)
		return nil, nil
	}
	t.touchLocked(i, now)
	return e.home, e.standIn
}

// bind leads the client to ep: as its home, or as a stand-in for the home that
// it has.
func (t *table) bind(key [16]byte, now int64, ep *endpoint, standIn bool, most int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, ok := t.places[key]
	if !ok {
		for len(t.places) >= most {
			t.removeLocked(t.entries[0].prev)
		}
		i = t.takeLocked()
		t.places[key] = i
		t.entries[i].key = key
		t.linkLocked(i)
	}
	t.touchLocked(i, now)
	e := &t.entries[i]
	if standIn && e.home != nil {
		e.standIn = ep
		return
	}
	e.home, e.standIn = ep, nil
}

// settle forgets the stand-in of a client that is back home.
func (t *table) settle(key [16]byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i, ok := t.places[key]; ok {
		t.entries[i].standIn = nil
	}
}

// len is how many clients are remembered.
func (t *table) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.places)
}

// takeLocked returns an unused entry, not linked.
func (t *table) takeLocked() int32 {
	if i := t.free; i != 0 {
		t.free = t.entries[i].next
		return i
	}
	t.entries = append(t.entries, entry{})
	return int32(len(t.entries) - 1)
}

func (t *table) removeLocked(i int32) {
	e := &t.entries[i]
	delete(t.places, e.key)
	t.unlinkLocked(i)
	*e = entry{next: t.free}
	t.free = i
}

func (t *table) touchLocked(i int32, now int64) {
	t.entries[i].seen = now
	if t.entries[0].next == i {
		return
	}
	t.unlinkLocked(i)
	t.linkLocked(i)
}

func (t *table) unlinkLocked(i int32) {
	e := &t.entries[i]
	t.entries[e.prev].next, t.entries[e.next].prev = e.next, e.prev
}

// linkLocked puts i first.
func (t *table) linkLocked(i int32) {
	first := t.entries[0].next
	t.entries[i].prev, t.entries[i].next = 0, first
	t.entries[first].prev, t.entries[0].next = i, i
}
