package balance

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// problems collects what a Validate reports.
func problems(validate func(func(path, value, hint string))) (got []string) {
	validate(func(path, value, hint string) { got = append(got, path+" "+value+" "+hint) })
	return got
}

func wantProblems(t *testing.T, got, want []string) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("problems = %q, want %q", got, want)
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("problem %d = %q, want it to start with %q", i, got[i], want[i])
		}
	}
}

// named is an endpoint whose name is not resolved yet.
func named(host string, port uint16) Member {
	return Member{Endpoint: Endpoint{Network: "berlin", Addr: netip.AddrPortFrom(netip.Addr{}, port)}, Host: host, Weight: 1}
}

func TestValidate(t *testing.T) {
	good := func(change func(*Spec)) Spec {
		s := pooled("db", "pg", b1, b2)
		change(&s)
		return s
	}
	tests := []struct {
		name string
		spec Spec
		want []string // "path value hint", matched as prefix
	}{
		{"good", good(func(s *Spec) {}), nil},
		{"all of it", good(func(s *Spec) {
			s.Steering, s.MinimumHealthy, s.SlowStart, s.Disabled = "hash", 2, time.Minute, true
			s.Shedding, s.Queue = Shedding{100, "hash"}, Queue{10, time.Second}
			s.Ejection = Ejection{3, time.Second, time.Minute, 100}
			s.Endpoints[0].Weight, s.Endpoints[1].Weight = 0, MaxWeight
		}), nil},
		{"the default steering", good(func(s *Spec) { s.Steering = "" }), nil},
		{"the same address in two networks", pooled("db", "", b1, t1), nil},
		{"names that are not resolved yet", good(func(s *Spec) {
			s.MinimumHealthy = 5
			s.Endpoints = append(s.Endpoints, named("db.internal", 5432), named("db.internal", 5433), named("db2.internal", 5432))
		}), nil},
		{"the same name twice", good(func(s *Spec) {
			s.Endpoints = append(s.Endpoints, named("db.internal", 5432), named("db.internal", 5432))
		}), []string{"endpoints[3].address db.internal:5432 it is endpoints[2] already"}},
		{"a name without a port", good(func(s *Spec) { s.Endpoints = append(s.Endpoints, named("db.internal", 0)) }),
			[]string{"endpoints[2].address "}},
		{"unknown steering", good(func(s *Spec) { s.Steering = "least_outstanding" }),
			[]string{"steering least_outstanding use one of: round_robin, failover, random, hash, least_connections, latency"}},
		{"wrong case", good(func(s *Spec) { s.Steering = "Round_Robin" }), []string{"steering Round_Robin use one of"}},
		{"no name", good(func(s *Spec) { s.Name = "" }), []string{"name  give"}},
		{"no endpoints", pooled("db", ""), []string{"endpoints  give the pool at least one"}},
		{"twice the same", pooled("db", "", b1, b2, b1), []string{"endpoints[2].address 10.0.0.10:5432 it is endpoints[0] already"}},
		{"several at once", pooled("", "", "/10.0.0.1:80", "x/10.0.0.1:0", "x/0.0.0.0:80", "x/239.0.0.1:80"),
			[]string{"name", "endpoints[0].network", "endpoints[1].address 10.0.0.1:0 port 0", "endpoints[2].address 0.0.0.0:80 ", "endpoints[3].address 239.0.0.1:80 "}},
		{"no address", Spec{Name: "db", Endpoints: []Member{{Endpoint: Endpoint{Network: "a"}}, {Endpoint: Endpoint{Network: "a"}}}},
			[]string{"endpoints[0].address  write an IP", "endpoints[1].address  write an IP"}},
		{"too many", large(MaxEndpoints+1, "", nil), []string{"endpoints 10001 a pool holds at most 10000"}},
		{"numbers", good(func(s *Spec) {
			s.Endpoints[0].Weight, s.Endpoints[1].Weight = -1, 1001
			s.Endpoints[0].MaxConnections, s.MinimumHealthy, s.Shedding.Percent = -5, 3, 101
		}), []string{"minimum_healthy 3 use 0 to 2", "shedding.percent 101 use 0 to 100",
			"endpoints[0].weight -1 use 0 to 1000", "endpoints[0].max_connections -5 use 0 to 1000000", "endpoints[1].weight 1001 use 0"}},
		{"durations", good(func(s *Spec) {
			s.SlowStart, s.Queue = -time.Second, Queue{Length: 1}
			s.Ejection = Ejection{Failures: 1, Time: time.Minute, MaxTime: time.Second}
		}), []string{"slow_start -1s use 0s to 24h0m0s", "queue.timeout 0s use 1ms",
			"ejection.max_time 1s use at least ejection.time, 1m0s", "ejection.max_percent 0 use 1 to 100"}},
		{"shedding and queue", good(func(s *Spec) { s.Shedding.By, s.Queue.Length = "client", -1 }),
			[]string{"shedding.by client use one of: random, hash", "queue.length -1 use 0 to"}},
		{"ejection", good(func(s *Spec) { s.Ejection.Failures = -1 }), []string{"ejection.failures -1 use 0 to 1000"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { wantProblems(t, problems(test.spec.Validate), test.want) })
	}
}

func TestValidateApp(t *testing.T) {
	good := func(change func(*App)) App {
		a := affined("sticky", "db", "web")
		change(&a)
		return a
	}
	many := make([]string, MaxPools+1)
	for i := range many {
		many[i] = strings.Repeat("x", i+1)
	}
	tests := []struct {
		name string
		app  App
		want []string
	}{
		{"good", good(func(a *App) { a.Steering, a.Fallback = "latency", "other" }), nil},
		{"no affinity", appOf("db"), nil},
		{"nothing", App{}, []string{"name  give", "pools  name a pool"}},
		{"unknown names", good(func(a *App) { a.Steering, a.Affinity.By, a.Affinity.Failover = "round_robin", "cookie", "none" }),
			[]string{"steering round_robin use one of: failover, random, latency, least_connections, hash",
				"affinity.by cookie use one of: client_ip, client_net", "affinity.failover none use one of: temporary, sticky"}},
		{"twice the same", appOf("db", "web", "db"), []string{"pools[2] db it is pools[0] already"}},
		{"a fallback that is a pool", good(func(a *App) { a.Fallback = "web" }), []string{"fallback web it is pools[1] already"}},
		{"numbers", good(func(a *App) { a.Pools[0].Weight, a.Affinity.Max, a.Affinity.TTL = -1, -1, 0 }),
			[]string{"pools[0].weight -1 use 0 to 1000", "affinity.max -1 use 0 to", "affinity.ttl 0s use 1s to 720h0m0s"}},
		{"too many", appOf(many...), []string{"pools 65 an app has at most 64"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { wantProblems(t, problems(test.app.Validate), test.want) })
	}
}
