// Command warren is the whole of Warren for its operator: it runs the edge and
// the connector, checks their config files, and asks a running edge what it
// does.
//
//	warren edge run -c edge.toml
//	warren token create --network berlin --routes 10.0.0.0/16
//	warren connector run --token-file token
//	warren status
//
// A command turns flags and the environment into one call of a daemon or of
// the edge's admin socket, and the outcome into an exit code: 0 done, 1
// failed, 2 wrong usage, 3 refused by the edge (asking again is of no use).
// Tables are for people; --json prints what the API answered.
//
// The package must never decide what a daemon or a config file should, and
// must never print a secret or a stack trace.
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(run(context.Background(), program{
		args: os.Args[1:], env: os.Getenv, unsetenv: unsetenv,
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
	}))
}

// unsetenv takes a variable from the environment of this process and of its
// children. It fails for no name that a program writes.
func unsetenv(key string) { _ = os.Unsetenv(key) }
