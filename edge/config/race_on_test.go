//go:build race

package config

// mutantStep is how many mutants lie between two that are tried. The race
// detector makes each twenty times as slow, and one goroutine has no races.
const mutantStep = 25
