//go:build !race

package config

// mutantStep is how many mutants lie between two that are tried.
const mutantStep = 1
