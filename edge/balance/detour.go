package balance

import (
	"fmt"
	"strings"
)

// detour is why a choice was made that was not the first, for as long as the
// pools before it are as they were.
type detour struct {
	done, shed, over uint64  // of the outcome
	views            []*view // by choice; nil: the words do not depend on one
	why              string
}

// detour says why the pools before the choice had nothing, besides what o.why
// says. While a pool is down every flow that another serves asks, so the words
// are made once.
func (a *app) detour(o *outcome, now int64, tried func(Endpoint) bool, over func(string) bool) string {
	known := a.detours[o.at].Load()
	if known != nil && a.lasts(known, o, now) {
		return known.why
	}
	d := &detour{done: o.done, shed: o.shed, over: o.over, views: make([]*view, len(a.choices))}
	lasting := true
	for i := range a.choices {
		if p := a.choices[i].pool; p != nil && (o.done&^o.shed&^o.over)&(1<<i) != 0 {
			d.views[i] = p.view(ordinary, now)
			lasting = lasting && !d.views[i].serving // else it depends on the flow
		}
	}
	d.why = o.why + "; " + a.explain(o, now, tried, over)
	if lasting {
		a.detours[o.at].Store(d)
	}
	return d.why
}

// lasts reports whether the words are still true.
func (a *app) lasts(d *detour, o *outcome, now int64) bool {
	if d.done != o.done || d.shed != o.shed || d.over != o.over {
		return false
	}
	for i, v := range d.views {
		if v != nil && v != a.choices[i].pool.view(ordinary, now) {
			return false
		}
	}
	return true
}

// explain says why the pools that were asked had nothing.
func (a *app) explain(o *outcome, now int64, tried func(Endpoint) bool, over func(string) bool) string {
	reasons := make([]string, 0, len(a.choices)+1)
	for i := range a.choices {
		ch := &a.choices[i]
		switch {
		case o.done&(1<<i) == 0:
		case ch.pool == nil:
			reasons = append(reasons, fmt.Sprintf("pool %q is not defined", ch.name))
		case o.over&(1<<i) != 0:
			reasons = append(reasons, fmt.Sprintf("pool %q was tried enough", ch.name))
		default:
			reasons = append(reasons, ch.pool.explain(now, tried, o.shed&(1<<i) != 0))
		}
	}
	if a.last != nil && !o.ok {
		switch {
		case a.last.pool == nil:
			reasons = append(reasons, fmt.Sprintf("pool %q is not defined", a.last.name))
		case over != nil && over(a.last.name):
			reasons = append(reasons, fmt.Sprintf("the fallback pool %q was tried enough", a.last.name))
		case !o.busy:
			reasons = append(reasons, fmt.Sprintf("the fallback pool %q has no endpoint either", a.last.name))
		}
	}
	return strings.Join(reasons, "; ")
}
