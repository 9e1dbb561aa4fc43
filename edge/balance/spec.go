package balance

import (
	"fmt"
	"slices"
)

// MaxEndpoints bounds one pool: a larger one is a mistake in a generated
// file, and each endpoint costs a health check.
const MaxEndpoints = 10_000

// Spec is one pool of the configuration.
type Spec struct {
	// Name is unique among the pools, and the label in logs and commands.
	Name string
	// Endpoints are the places the traffic goes to, at least one, each once.
	Endpoints []Endpoint
	// Steering chooses between the endpoints: "round_robin", which is the
	// default where it is empty.
	Steering string
	// Monitor names the health check of the endpoints. Empty: none, and
	// every endpoint counts as up.
	Monitor string
}

// Validate calls report for every problem of the pool. path is the key that
// is wrong, relative to the pool ("endpoints[2].address"); value is what it
// holds; hint says what to do.
func (s Spec) Validate(report func(path, value, hint string)) {
	if s.Name == "" {
		report("name", "", "give the pool a name")
	}
	if _, err := parsePolicy(s.Steering); err != nil {
		report("steering", s.Steering, err.Error())
	}
	if len(s.Endpoints) == 0 {
		report("endpoints", "", "give the pool at least one endpoint")
	}
	if n := len(s.Endpoints); n > MaxEndpoints {
		report("endpoints", fmt.Sprint(n), fmt.Sprintf("a pool holds at most %d endpoints", MaxEndpoints))
	}
	seen := make(map[Endpoint]int, len(s.Endpoints))
	for i, e := range s.Endpoints {
		at := fmt.Sprintf("endpoints[%d].", i)
		if e.Network == "" {
			report(at+"network", "", "name the virtual network that holds the endpoint")
		}
		switch {
		case !e.Addr.IsValid():
			report(at+"address", "", `write an IP address and a port, as in "10.0.0.10:5432"`)
		case e.Addr.Port() == 0:
			report(at+"address", e.Addr.String(), "port 0 cannot be dialled; write the port that the service listens on")
		case e.Addr.Addr().IsUnspecified(), e.Addr.Addr().IsMulticast():
			report(at+"address", e.Addr.String(), "write the address of one host")
		}
		if first, again := seen[e]; again && e.Addr.IsValid() {
			report(at+"address", e.Addr.String(), fmt.Sprintf("it is endpoints[%d] already; remove one", first))
			continue
		}
		seen[e] = i
	}
}

func (s Spec) equal(o Spec) bool {
	return s.Name == o.Name && s.Steering == o.Steering && s.Monitor == o.Monitor &&
		slices.Equal(s.Endpoints, o.Endpoints)
}
