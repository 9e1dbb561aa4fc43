package observe

import (
	"cmp"
	"slices"
	"sync"

	"github.com/warrenmesh/warren/edge/flow"
)

// Table holds the open flows. The zero value is ready to use.
type Table struct {
	mu    sync.Mutex
	flows map[uint64]*Entry
}

func (t *Table) add(id uint64, e *Entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.flows == nil {
		t.flows = make(map[uint64]*Entry)
	}
	t.flows[id] = e
}

func (t *Table) remove(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.flows, id)
}

// Len returns how many flows are open.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.flows)
}

// Each calls yield with a copy of each open flow's record, oldest first, until
// yield returns false. Flows may begin and end meanwhile: nothing is locked
// while yield runs.
func (t *Table) Each(yield func(flow.Record) bool) {
	for _, e := range t.entries() {
		if !yield(e.flow.Snapshot()) {
			return
		}
	}
}

// List returns at most limit records of those that match, oldest first, and
// how many match in all. A nil match takes every flow.
func (t *Table) List(match func(flow.Record) bool, limit int) (records []flow.Record, total int) {
	for r := range t.Each {
		if match != nil && !match(r) {
			continue
		}
		if total++; total <= limit {
			records = append(records, r)
		}
	}
	return records, total
}

// Kill ends one flow for the given cause. It returns false if no such flow is
// open.
func (t *Table) Kill(id uint64, cause error) bool {
	t.mu.Lock()
	e := t.flows[id]
	t.mu.Unlock()
	if e == nil || e.cancel == nil {
		return false
	}
	e.cancel(cause)
	return true
}

// entries returns the open flows by rising id.
func (t *Table) entries() []*Entry {
	type numbered struct {
		id    uint64
		entry *Entry
	}
	t.mu.Lock()
	list := make([]numbered, 0, len(t.flows))
	for id, e := range t.flows {
		list = append(list, numbered{id, e})
	}
	t.mu.Unlock()
	slices.SortFunc(list, func(a, b numbered) int { return cmp.Compare(a.id, b.id) })
	entries := make([]*Entry, len(list))
	for i, n := range list {
		entries[i] = n.entry
	}
	return entries
}
