package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/warrenmesh/warren/integration/bench/load"
	"github.com/warrenmesh/warren/integration/bench/naive"
	"github.com/warrenmesh/warren/integration/proc"
)

// The benchmark's own parts run in processes of their own, each on its host:
// this program again, told by the environment what it is.
const envRole = "WARREN_BENCH_ROLE"

const (
	roleOrigin         = "origin"          // with an address
	roleLoad           = "load"            // with a load.Spec
	roleNaiveEdge      = "naive-edge"      // with a naive.Spec
	roleNaiveConnector = "naive-connector" // with a naive.Spec
	roleCrowd          = "crowd"           // with a crowd
	roleMain           = "main"            // this program itself, where it is a test's binary
)

// What a part prints.
const (
	sayReady  = "bench: ready"
	sayBegan  = "bench: began"
	sayEnded  = "bench: ended"
	sayReport = "bench: report "
)

// play is main of a part.
func play(role string, args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if len(args) != 1 {
		fmt.Fprintf(os.Stderr, "playing %q: want one argument\n", role)
		return 2
	}
	if err := playPart(ctx, role, []byte(args[0])); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintf(os.Stderr, "playing %q: %v\n", role, err)
		return 1
	}
	return 0
}

func playPart(ctx context.Context, role string, arg []byte) error {
	ready := func() { fmt.Println(sayReady) }
	switch role {
	case roleOrigin:
		var host netip.Addr
		if err := json.Unmarshal(arg, &host); err != nil {
			return err
		}
		return load.Serve(ctx, host)
	case roleLoad:
		var spec load.Spec
		if err := json.Unmarshal(arg, &spec); err != nil {
			return err
		}
		spec.Began = func() { fmt.Println(sayBegan) }
		spec.Ended = func() { fmt.Println(sayEnded) }
		report, err := load.Run(ctx, spec)
		if err != nil {
			return err
		}
		text, err := json.Marshal(report)
		fmt.Printf("%s%s\n", sayReport, text)
		return err
	case roleNaiveEdge, roleNaiveConnector:
		var spec naive.Spec
		if err := json.Unmarshal(arg, &spec); err != nil {
			return err
		}
		return playNaive(ctx, role, spec, ready)
	case roleCrowd:
		var c crowd
		if err := json.Unmarshal(arg, &c); err != nil {
			return err
		}
		return runCrowd(ctx, c, ready)
	}
	return fmt.Errorf("there is no such part")
}

func playNaive(ctx context.Context, role string, spec naive.Spec, ready func()) error {
	stop, err := serveDoor(naiveDoor)
	if err != nil {
		return err
	}
	defer stop()
	if role == roleNaiveEdge {
		return naive.Edge(ctx, spec, ready)
	}
	return naive.Connector(ctx, spec, ready)
}

// part is this program in a role.
func part(role string, arg any) proc.Spec {
	text, err := json.Marshal(arg)
	if err != nil {
		panic(err) // ours, and plain data
	}
	return proc.Spec{Name: role, Path: "/proc/self/exe", Args: []string{string(text)}, Env: []string{envRole + "=" + role}}
}

// startLimit is how long a program may take until it serves.
const startLimit = 30 * time.Second

// startPart starts a part that says when it is ready, and waits until it does.
func startPart(s *scope, place proc.Place, spec proc.Spec) *proc.Process {
	p := proc.Start(s, place, spec)
	waitFor(s, p, sayReady)
	return p
}

// waitFor waits until a program has printed text.
func waitFor(s *scope, p *proc.Process, text string) {
	ctx, cancel := context.WithTimeout(s.ctx, startLimit)
	defer cancel()
	if err := p.WaitOutput(ctx, text); err != nil {
		s.Fatalf("waiting for %s: %v", p.Name(), err)
	}
}
