package balance

import (
	"fmt"
	"strings"
)

// policy is a way to choose between the endpoints of one pool.
//
// Each policy is a pure function over candidates, which sees the facts and
// returns an index, and a case in choose, which keeps what the policy
// remembers between two picks. A new policy adds its name to policies, its
// function, and its case.
type policy string

const roundRobin policy = "round_robin"

// policies are the names that a configuration may use, the default first.
func policies() []policy { return []policy{roundRobin} }

// parsePolicy reads a pool's steering; empty is the default.
func parsePolicy(name string) (policy, error) {
	known := policies()
	if name == "" {
		return known[0], nil
	}
	names := make([]string, len(known))
	for i, p := range known {
		if string(p) == name {
			return p, nil
		}
		names[i] = string(p)
	}
	return known[0], fmt.Errorf("use one of: %s", strings.Join(names, ", "))
}

// candidates is what a policy sees of a pool.
type candidates struct {
	pool   *pool
	health Health
}

// exclusion reports the endpoints that a flow must not get again; nil: none.
// It travels beside the candidates and not in them, so that the caller's
// closure stays on its stack: a struct that holds an interface escapes whole.
type exclusion func(Endpoint) bool

func (c candidates) len() int { return len(c.pool.spec.Endpoints) }

// up reports the health of endpoint i; no monitor means up.
func (c candidates) up(i int) (bool, string) {
	if c.pool.spec.Monitor == "" {
		return true, ""
	}
	e := &c.pool.spec.Endpoints[i]
	return c.health.Up(e.Network, e.Addr, c.pool.spec.Monitor)
}

// usable reports whether endpoint i may be picked for this flow.
func (c candidates) usable(i int, tried exclusion) bool {
	if tried != nil && tried(c.pool.spec.Endpoints[i]) {
		return false
	}
	up, _ := c.up(i)
	return up
}

// nextInTurn is round robin: the first usable endpoint from index from on,
// around the pool once; -1 if there is none.
func nextInTurn(c candidates, tried exclusion, from int) int {
	n := c.len()
	for step := range n {
		i := from + step
		if i >= n {
			i -= n
		}
		if c.usable(i, tried) {
			return i
		}
	}
	return -1
}

// choose applies the pool's policy and keeps its memory; -1 if nothing is
// usable.
//
// The position moves to just after the endpoint that was taken, not on by
// one: otherwise the neighbour of an endpoint that is down would get the
// turns of both.
func (p *pool) choose(c candidates, tried exclusion) int {
	if c.len() == 0 {
		return -1
	}
	switch p.policy {
	case roundRobin:
		for {
			from := p.next.Load()
			i := nextInTurn(c, tried, int(from))
			if i < 0 {
				return -1
			}
			if p.next.CompareAndSwap(from, uint32((i+1)%c.len())) {
				return i
			}
		}
	}
	return -1
}

// explain says why the pool has nothing usable, with the reason that the
// first endpoint in the list gives for being down.
func (c candidates) explain(tried exclusion) string {
	var down, used int
	var first string
	for i, e := range c.pool.spec.Endpoints {
		if up, why := c.up(i); !up {
			if down == 0 && why != "" {
				first = fmt.Sprintf(" (%s: %s)", e.Addr, why)
			}
			down++
			continue
		}
		if tried != nil && tried(e) {
			used++
		}
	}
	name := c.pool.spec.Name
	switch {
	case c.len() == 0:
		return fmt.Sprintf("pool %q has no endpoint", name)
	case used == 0:
		return fmt.Sprintf("pool %q has no healthy endpoint: %d down%s", name, down, first)
	case down == 0:
		return fmt.Sprintf("pool %q has no endpoint left: %d tried", name, used)
	}
	return fmt.Sprintf("pool %q has no endpoint left: %d tried, %d down%s", name, used, down, first)
}
