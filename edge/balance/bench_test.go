package balance

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// benched are the ways to pick from 1,000 endpoints.
func benched() map[string]*Director {
	out := map[string]*Director{}
	for _, by := range endpointPolicies() {
		for name, weight := range map[string]func(int) int{"": nil, " weighted": func(i int) int { return 1 + i%7 }} {
			spec := large(1000, by, weight)
			out[by+name] = New([]Spec{spec}, appsOf(spec), Deps{Health: constant(true)})
		}
	}
	spec := large(1000, byRoundRobin, nil)
	for _, by := range poolPolicies() {
		other := spec
		other.Name = "other"
		a := App{Name: "large", Steering: by, Pools: []Choice{{"large", 1}, {"other", 2}}}
		out["pools by "+by] = New([]Spec{spec, other}, []App{a}, Deps{Health: constant(true)})
	}
	a := appsOf(spec)[0]
	a.Affinity = Affinity{By: affinityIP, TTL: time.Hour}
	d := New([]Spec{spec}, []App{a}, Deps{Health: constant(true)})
	for i := range 10_000 {
		pick, _, _ := d.Pick(Request{App: "large", Client: clientAt(i)})
		pick.Connected(time.Millisecond)
		pick.Release()
	}
	out["affinity"] = d
	return out
}

// warm gives every endpoint a connect time.
func warm(d *Director) {
	now := d.root.now()
	for _, p := range d.pools {
		for i, e := range p.members {
			e.rtt.add(time.Duration(1+i%10)*time.Millisecond, now)
		}
	}
	pick, _, _ := d.Pick(Request{App: "large"})
	pick.Release()
}

func TestPickAllocatesNothing(t *testing.T) {
	for name, d := range benched() {
		warm(d)
		t.Run(name, func(t *testing.T) {
			for _, retry := range []bool{false, true} {
				var tried [3]Endpoint
				n, i := 0, 0
				allocs := testing.AllocsPerRun(2000, func() {
					i++
					pick, _, ok := d.Pick(Request{App: "large", Client: clientAt(i % 10_000), Tried: func(e Endpoint) bool {
						for _, seen := range tried[:n] {
							if e == seen {
								return true
							}
						}
						return false
					}})
					if !ok {
						t.Fatal("nothing picked")
					}
					if retry {
						n, tried[0] = 1, pick.Endpoint
					}
					pick.Connected(time.Millisecond)
					pick.Release()
				})
				if allocs != 0 {
					t.Errorf("a pick makes %v allocations, want 0 (retry: %v)", allocs, retry)
				}
			}
		})
	}
}

// cpu is the processor time of the process.
func cpu() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkPick(b *testing.B) {
	for name, d := range benched() {
		warm(d)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			began := cpu()
			defer func() { b.ReportMetric(float64(cpu()-began)/float64(b.N), "cpu-ns/op") }()
			var seed atomic.Int64
			b.RunParallel(func(pb *testing.PB) {
				i := int(seed.Add(1) * 1000)
				for pb.Next() {
					i++
					pick, _, _ := d.Pick(Request{App: "large", Client: clientAt(i % 10_000)})
					pick.Release()
				}
			})
		})
	}
}

// BenchmarkNews is an endpoint of a large pool that changes its state, and the
// pick after it.
func BenchmarkNews(b *testing.B) {
	for _, by := range []string{byRoundRobin, byRandom, byHash} {
		for _, n := range []int{1000, 5000} {
			b.Run(fmt.Sprint(by, " ", n), func(b *testing.B) {
				w := &world{now: epoch, down: map[Endpoint]string{}}
				spec := large(n, by, nil)
				w.Director = New([]Spec{spec}, appsOf(spec), Deps{Health: w})
				pick, _, _ := w.Pick(Request{App: "large"})
				pick.Release()
				began := cpu()
				for i := range b.N {
					w.set(spec.Endpoints[i%n].Endpoint.String(), []string{"refused", ""}[i/n%2])
					if pick, _, ok := w.Pick(Request{App: "large"}); ok {
						pick.Release()
					}
				}
				b.ReportMetric(float64(cpu()-began)/float64(b.N), "cpu-ns/op")
			})
		}
	}
}

// BenchmarkReload is a reload that changes one pool among 10,000 small ones.
func BenchmarkReload(b *testing.B) {
	var specs []Spec
	for i := range 10_000 {
		s := pooled(fmt.Sprint("app/origin:", i), "", b1)
		s.Endpoints[0].Addr = netip.AddrPortFrom(s.Endpoints[0].Addr.Addr(), uint16(i+1))
		specs = append(specs, s)
	}
	apps := appsOf(specs...)
	d := New(specs, apps, Deps{})
	b.ReportAllocs()
	began := cpu()
	for i := range b.N {
		specs[0].MinimumHealthy = i % 2
		d = d.With(specs, apps)
		d.Activate()
	}
	b.ReportMetric(float64(cpu()-began)/float64(b.N), "cpu-ns/op")
}
