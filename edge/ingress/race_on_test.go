//go:build race

package ingress

// raceOn: the race detector makes sync.Pool forget at random, which spoils
// counts of allocations, and slows a flood down tenfold.
const raceOn = true
