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

	// More are taken where those in use are this busy for a while; fewer after
	// one in which all that was done would have kept the fewer this busy.
	paceBusy, paceIdle = 0.85, 0.5
	paceHot            = 2  // looks in a row
	paceCalm           = 10 // the same: a second

	// One is left only when it is full, and returned to where all that was done
	// would have fitted it: alone it hands nothing over, so that the same work
	// takes less. Where edge and connector share two processors with a client and
	// an origin, eight streams down cost the edge 2.2 s/GB on two and 1.8 on one,
	// with 10 to 15 % more through.
	paceFull = 0.95
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
	hot  int // looks in a row at which those in use were busy
}

// look takes how many processors were busy since the last look, and reports
// whether there are to be more or fewer from now on.
func (p *pace) look(busy float64) (changed bool) {
	high, low := paceBusy*float64(p.now), paceIdle*float64(p.now-1)
	switch p.now {
	case 1:
		high = paceFull
	case 2:
		low = paceFull
	}
	before := p.now
	switch {
	case busy > high:
		p.calm = 0
		if p.hot++; p.hot == paceHot {
			p.hot = 0
			p.now = min(2*p.now, p.most)
		}
	case busy < low:
		p.hot = 0
		if p.calm++; p.calm == paceCalm {
			p.calm = 0
			p.now--
		}
	default:
		p.calm, p.hot = 0, 0
	}
	return p.now != before
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
