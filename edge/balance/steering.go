package balance

// The policies, by the names that a configuration uses.
const (
	byRoundRobin = "round_robin"
	byFailover   = "failover"
	byRandom     = "random"
	byHash       = "hash"
	byLeast      = "least_connections"
	byLatency    = "latency"

	shedRandom = "random"
	shedHash   = "hash"

	affinityIP        = "client_ip"
	affinityNet       = "client_net"
	failoverTemporary = "temporary"
	failoverSticky    = "sticky"
)

// endpointPolicies steer between the endpoints of a pool; the first is the
// default.
func endpointPolicies() []string {
	return []string{byRoundRobin, byFailover, byRandom, byHash, byLeast, byLatency}
}

// poolPolicies steer between the pools of an app; the first is the default.
func poolPolicies() []string {
	return []string{byFailover, byRandom, byLatency, byLeast, byHash}
}

// either returns value, or the default where it is empty.
func either(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

// Tuning of the policies.
const (
	// attempts is how often a policy chooses again when its choice is full
	// or was tried. Then every slot is asked in turn.
	attempts = 8
	// scanned is up to how many slots least_connections looks at them all.
	scanned = 32
	// draws is how many slots least_connections compares where there are more.
	// Of 1,000 the one that is picked is then at most 1.4 above the ideal; by
	// two choices it was 4.3, by four 2.4. A draw costs about 10 ns.
	draws = 8
	// An endpoint takes at most 5/4 of the average load for its weight when
	// the pool steers by hash (Mirrokni, Thorup and Zadimoghaddam, 2016), but
	// boundSlack more than the average in any case: at light load the bound
	// would send a client elsewhere with its second flow, and the few flows
	// that a browser opens at once are no overload.
	boundNumerator, boundDenominator = 5, 4
	boundSlack                       = 8
	// walked is how many points of the ring are asked before every slot is.
	walked = 512
	// ringAfter is how many picks tables last before they get a ring of
	// their own.
	ringAfter = 1024
)

// choose reserves a slot by the pool's policy and returns its index; -1 where
// none is to be had.
//
// tried travels by itself, and not in a struct, so that the caller's closure
// stays on its stack.
func (v *view) choose(p *pool, hash uint64, now int64, tried func(Endpoint) bool) int {
	if len(v.slots) == 0 {
		return -1
	}
	if len(v.slots) == 1 {
		return v.sweep(0, tried)
	}
	switch p.policy {
	case byFailover:
		return v.sweep(0, tried)
	case byRandom:
		return v.random(tried)
	case byHash:
		return v.consistent(p, hash, tried)
	case byLeast:
		if len(v.slots) <= scanned {
			return v.least(int(p.cursor.Add(1)), tried)
		}
		return v.lesser(tried)
	case byLatency:
		return v.quicker(now, tried)
	}
	return v.inTurn(p, tried)
}

// take reserves slot i, unless the flow has tried it or it is full.
func (v *view) take(i int, tried func(Endpoint) bool) bool {
	s := &v.slots[i]
	return (tried == nil || !tried(s.ep.id)) && s.ep.reserve(s.max)
}

// sweep takes the first slot that is to be had, from index from on.
func (v *view) sweep(from int, tried func(Endpoint) bool) int {
	n := len(v.slots)
	for step := range n {
		i := from + step
		if i >= n {
			i -= n
		}
		if v.take(i, tried) {
			return i
		}
	}
	return -1
}

func (v *view) inTurn(p *pool, tried func(Endpoint) bool) int {
	i := 0
	for range attempts {
		if i = v.turns.at(p.cursor.Add(1) - 1); v.take(i, tried) {
			return i
		}
	}
	return v.sweep(i, tried)
}

func (v *view) random(tried func(Endpoint) bool) int {
	i := 0
	for range attempts {
		if i = v.odds.draw(); v.take(i, tried) {
			return i
		}
	}
	return v.sweep(i, tried)
}

// least takes the slot with the fewest connections for its weight; of several
// the first from index from on.
func (v *view) least(from int, tried func(Endpoint) bool) int {
	n := len(v.slots)
	var refused uint64 // slots that were not to be had
	for range n {
		best := -1
		var load, weight uint64
		for step := range n {
			i := (from + step) % n
			if refused&(1<<i) != 0 {
				continue
			}
			s := &v.slots[i]
			l := uint64(max(s.ep.conns.Load(), 0)) + 1
			if best < 0 || l*weight < load*s.weight {
				best, load, weight = i, l, s.weight
			}
		}
		if v.take(best, tried) {
			return best
		}
		refused |= 1 << best
	}
	return -1
}

// two draws two different slots.
func (v *view) two() (int, int) {
	i, j := v.odds.draw(), v.odds.draw()
	for range 3 {
		if i != j {
			return i, j
		}
		j = v.odds.draw()
	}
	if i == j {
		j = (i + 1) % len(v.slots)
	}
	return i, j
}

// lesser takes the one of a few slots that has the fewest connections for its
// weight.
func (v *view) lesser(tried func(Endpoint) bool) int {
	best := 0
	for range attempts / 2 {
		var load, weight uint64
		for draw := range draws {
			i := v.odds.draw()
			s := &v.slots[i]
			l := uint64(max(s.ep.conns.Load(), 0)) + 1
			if draw == 0 || l*weight < load*s.weight {
				best, load, weight = i, l, s.weight
			}
		}
		if v.take(best, tried) {
			return best
		}
	}
	return v.sweep(best, tried)
}

// quicker takes the one of two slots that connects sooner. One that was not
// measured of late is tried, by one flow at a time.
func (v *view) quicker(now int64, tried func(Endpoint) bool) int {
	i, j := 0, 0
	for range attempts / 2 {
		i, j = v.two()
		a, b := v.expected(i, now), v.expected(j, now)
		if b < a {
			i, j = j, i
		}
		if v.take(i, tried) {
			if min(a, b) == 0 {
				v.slots[i].ep.rtt.try(now)
			}
			return i
		}
		if v.take(j, tried) {
			return j
		}
	}
	return v.sweep(i, tried)
}

// expected is the score of slot i. What failed last is worse than all that did
// not, and tried again now and then.
func (v *view) expected(i int, now int64) int64 {
	e := v.slots[i].ep
	if e.failures.Load() == 0 {
		return e.rtt.score(now)
	}
	if e.rtt.due(now) {
		return 0
	}
	return 1<<63 - 1
}

// consistent takes the first slot that is under the bound on load, from the
// client's place on the ring on.
func (v *view) consistent(p *pool, hash uint64, tried func(Endpoint) bool) int {
	all := uint64(max(p.shared.conns.Load(), 0)) + 1
	if r := v.ringOf(p, false); r != nil {
		if i := v.walk(r, false, hash, all, tried); i >= 0 {
			return i
		}
	} else if i := v.walk(p.whole, true, hash, all, tried); i >= 0 {
		return i
	} else if i := v.walk(v.ringOf(p, true), false, hash, all, tried); i >= 0 {
		return i
	}
	for i := range v.slots {
		if v.takeBounded(i, all, tried) {
			return i
		}
	}
	return v.sweep(int(hash%uint64(len(v.slots))), tried)
}

// walk asks the slots whose points follow the client's place. whole tells that
// the ring has points which do not count; those are passed over.
func (v *view) walk(r *ring, whole bool, hash, all uint64, tried func(Endpoint) bool) int {
	at, last := r.from(hash), -1
	for range min(walked, len(r.points)) {
		point := r.points[at]
		if at++; at == len(r.points) {
			at = 0
		}
		member := memberOf(point)
		i := int(v.places[member])
		if i == last || whole && rank(point) >= v.limits[member] {
			continue
		}
		last = i
		if v.takeBounded(i, all, tried) {
			return i
		}
	}
	return -1
}

// takeBounded takes slot i if that leaves it within its bound of all
// connections.
func (v *view) takeBounded(i int, all uint64, tried func(Endpoint) bool) bool {
	s := &v.slots[i]
	if tried != nil && tried(s.ep.id) {
		return false
	}
	share := boundDenominator * v.total
	limit := int64(max((boundNumerator*all*s.weight+share-1)/share, all*s.weight/v.total+boundSlack))
	if s.max > 0 {
		limit = min(limit, s.max)
	}
	return s.ep.reserve(limit)
}
