package host

import (
	"context"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Tuning of Processors.
const (
	paceEvery = 100 * time.Millisecond

	// More are taken at once, where those in use are this busy; fewer after a
	// while in which all that was done would have kept the fewer this busy.
	paceBusy, paceIdle = 0.85, 0.5
	paceCalm           = 20 // looks in a row: two seconds
)

// Processors keeps the number of threads that run Go code at a time
// (GOMAXPROCS) as small as the load allows, until ctx ends; then it is what it
// was.
//
// A packet passes through some nine goroutines on its way. With a second
// processor at rest the runtime wakes it for each of them, which costs more than
// what the goroutine does. So a process that does little is quicker on one; one
// that is busy gets more, up to what it began with. It does nothing where the
// environment says GOMAXPROCS, or where there is one processor. A limit of the
// container's that changes later is not seen.
func Processors(ctx context.Context) {
	most := runtime.GOMAXPROCS(0)
	if most == 1 || os.Getenv("GOMAXPROCS") != "" || processorTime() == 0 {
		return
	}
	p := pace{most: most, now: 1}
	runtime.GOMAXPROCS(p.now)
	defer runtime.GOMAXPROCS(most)
	tick := time.NewTicker(paceEvery)
	defer tick.Stop()
	then, used := time.Now(), processorTime()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		at, sum := time.Now(), processorTime()
		if p.look((sum - used).Seconds() / at.Sub(then).Seconds()) {
			runtime.GOMAXPROCS(p.now)
		}
		then, used = at, sum
	}
}

// pace decides how many processors there are to be.
type pace struct {
	most int // 2 or more
	now  int
	calm int // looks in a row at which fewer would have done
}

// look takes how many processors were busy since the last look, and reports
// whether there are to be more or fewer from now on.
func (p *pace) look(busy float64) (changed bool) {
	switch {
	case busy > paceBusy*float64(p.now):
		p.calm = 0
		more := min(2*p.now, p.most)
		changed, p.now = more != p.now, more
	case p.now > 1 && busy < paceIdle*float64(p.now-1):
		if p.calm++; p.calm >= paceCalm {
			p.calm = 0
			p.now--
			changed = true
		}
	default:
		p.calm = 0
	}
	return changed
}

// processorTime is what the process has used of all processors, the kernel's
// work for it included; 0 where the machine does not tell.
func processorTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
