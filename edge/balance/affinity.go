package balance

import (
	"hash/maphash"
	"sync"
	"time"
)

// table remembers which endpoint each client of one app has. It is bounded:
// the client that was seen longest ago makes room. Directors that follow each
// other share it, so what their configurations say comes with each call.
//
// It is a chained hash table of its own, and no map: under a flood of sources
// that come and go a map goes on growing for long.
type table struct {
	seed maphash.Seed // secret: a client chooses its address

	mu      sync.Mutex
	chains  []int32 // first entry of each chain, 0: none; a power of two
	entries []entry // entry 0 is the ends of the list: next the newest, prev the oldest
	free    int32   // first of the unused entries, linked by next; 0: none
	used    int
}

// entry is one client.
type entry struct {
	key        [16]byte
	home       *endpoint
	standIn    *endpoint // has the client's flows while home is down
	seen       int64
	prev, next int32 // in the order of use
	below      int32 // in its chain
}

func newTable() *table {
	return &table{seed: maphash.MakeSeed(), chains: make([]int32, 64), entries: make([]entry, 1)}
}

// chainLocked returns where the chain of a key begins.
func (t *table) chainLocked(key *[16]byte) *int32 {
	return &t.chains[maphash.Bytes(t.seed, key[:])&uint64(len(t.chains)-1)]
}

// findLocked returns the entry of a key, 0 if there is none.
func (t *table) findLocked(key *[16]byte) int32 {
	i := *t.chainLocked(key)
	for i != 0 && t.entries[i].key != *key {
		i = t.entries[i].below
	}
	return i
}

// get returns the client's endpoints and counts as a use.
func (t *table) get(key [16]byte, now int64, ttl time.Duration) (home, standIn *endpoint) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := t.findLocked(&key)
	if i == 0 {
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
	i := t.findLocked(&key)
	if i == 0 {
		for t.used >= max(most, 1) {
			t.removeLocked(t.entries[0].prev)
		}
		i = t.addLocked(&key)
	}
	t.touchLocked(i, now)
	e := &t.entries[i]
	if standIn && e.home != nil {
		e.lead(e.home, ep)
		return
	}
	e.lead(ep, nil)
}

// lead changes where the client is led, and counts it there.
func (e *entry) lead(home, standIn *endpoint) {
	for _, to := range []*endpoint{home, standIn} {
		if to != nil {
			to.clients.Add(1)
		}
	}
	for _, from := range []*endpoint{e.home, e.standIn} {
		if from != nil {
			from.clients.Add(-1)
		}
	}
	e.home, e.standIn = home, standIn
}

// clear forgets all clients.
func (t *table) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.used > 0 {
		t.removeLocked(t.entries[0].prev)
	}
}

// settle forgets the stand-in of a client that is back home.
func (t *table) settle(key [16]byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := t.findLocked(&key); i != 0 {
		e := &t.entries[i]
		e.lead(e.home, nil)
	}
}

// len is how many clients are remembered.
func (t *table) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.used
}

// addLocked makes an entry for a key that has none.
func (t *table) addLocked(key *[16]byte) int32 {
	i := t.free
	if i != 0 {
		t.free = t.entries[i].next
	} else {
		i = int32(len(t.entries))
		t.entries = append(t.entries, entry{})
	}
	if t.used++; t.used > len(t.chains) {
		t.chains = make([]int32, 2*len(t.chains))
		for at := t.entries[0].next; at != 0; at = t.entries[at].next {
			t.hangLocked(at)
		}
	}
	t.entries[i].key = *key
	t.hangLocked(i)
	t.linkLocked(i)
	return i
}

// hangLocked puts i into its chain.
func (t *table) hangLocked(i int32) {
	first := t.chainLocked(&t.entries[i].key)
	t.entries[i].below, *first = *first, i
}

func (t *table) removeLocked(i int32) {
	e := &t.entries[i]
	at := t.chainLocked(&e.key)
	for *at != i {
		at = &t.entries[*at].below
	}
	*at = e.below
	t.unlinkLocked(i)
	e.lead(nil, nil)
	*e = entry{next: t.free}
	t.free = i
	t.used--
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
