package balance

import "fmt"

// failed counts a connect to e that failed, and ejects e where it has failed
// too often and enough others are left.
func (p *pool) failed(e *endpoint, err error) {
	s := p.shared
	if active := s.active.Load(); active != nil {
		p = active // its terms are in force, whoever picked
	}
	now := s.root.now()
	e.lost.Add(1)
	s.mu.Lock()
	e.lastErr, e.lastErrAt = "", now
	if err != nil {
		e.lastErr = err.Error()
	}
	eject := p.countFailureLocked(e, now)
	s.mu.Unlock()
	if eject {
		p.refresh(nil)
	}
}

func (p *pool) countFailureLocked(e *endpoint, now int64) bool {
	terms := p.spec.Ejection
	if terms.Failures <= 0 || e.ejectedUntil > now {
		e.failures.Add(1) // of a flow that began before
		return false
	}
	n := int(e.failures.Add(1))
	i, ours := p.index[e]
	if n < terms.Failures || !ours || p.spec.Endpoints[i].Disabled {
		return false
	}
	out := 0
	for at, m := range p.members {
		if m.ejectedUntil > now && !p.spec.Endpoints[at].Disabled {
			out++
		}
	}
	if (out+1)*100 > terms.MaxPercent*p.enabled {
		return false
	}
	// Each Time that it was well since makes up for one ejection.
	if e.ejections > 0 && terms.Time > 0 {
		e.ejections = max(e.ejections-int((now-e.ejectedUntil)/int64(terms.Time)), 0)
	}
	e.ejections++
	lasts := terms.Time
	for range e.ejections - 1 {
		if lasts += terms.Time; terms.MaxTime > 0 && lasts >= terms.MaxTime {
			lasts = terms.MaxTime
			break
		}
	}
	e.ejectedUntil = now + int64(lasts)
	e.failures.Store(0)
	e.ejectedWhy = fmt.Sprintf("%d connects in a row failed", n)
	if e.lastErr != "" {
		e.ejectedWhy += ", the last: " + e.lastErr
	}
	return true
}
