//go:build race

package relay

// raceOn: the race detector makes sync.Pool forget at random, which spoils
// counts of allocations.
const raceOn = true
