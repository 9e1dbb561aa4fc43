package balance

import "strings"

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

func list(names []string) string { return strings.Join(names, ", ") }
