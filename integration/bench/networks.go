package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/connector"
	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/integration/proc"
)

// crowd is many connectors in one process, each the real thing. It travels as
// JSON.
type crowd struct {
	EdgeKey wgtypes.Key
	Edge    netip.AddrPort
	Dir     string        // for their key files
	Keys    []wgtypes.Key // one a connector
}

// crowdPace is the pause between two connectors: all at once would be a flood
// of handshakes, which is another test.
const crowdPace = 5 * time.Millisecond

// runCrowd runs the connectors until ctx ends. ready is called once every one
// has joined the edge.
func runCrowd(ctx context.Context, c crowd, ready func()) error {
	var (
		wg   sync.WaitGroup
		up   atomic.Int64
		once sync.Once
	)
	ctx, cancel := context.WithCancelCause(ctx)
	defer wg.Wait()
	defer cancel(nil)
	url := connector.EdgeURL{Host: c.Edge.Addr().String(), Port: c.Edge.Port()}
	for i, key := range c.Keys {
		file := filepath.Join(c.Dir, fmt.Sprintf("%d.key", i))
		if err := os.WriteFile(file, []byte(key.String()+"\n"), 0o600); err != nil {
			return err
		}
		joined := sync.OnceFunc(func() {
			if up.Add(1) == int64(len(c.Keys)) {
				once.Do(ready)
			}
		})
		spec := connector.Spec{Name: fmt.Sprintf("c%d", i), PrivateKeyFile: file, Grace: -1,
			StateDir: filepath.Join(c.Dir, fmt.Sprint(i)),
			Edges:    []connector.EdgeSpec{{PublicKey: c.EdgeKey, URLs: []connector.EdgeURL{url}}}}
		deps := connector.Deps{Log: slog.New(slog.DiscardHandler), OnEdge: func(_ string, up bool) {
			if up {
				joined()
			}
		}}
		wg.Go(func() {
			if err := connector.Run(ctx, spec, deps); err != nil {
				cancel(fmt.Errorf("running connector %d: %w", i, err))
			}
		})
		select {
		case <-ctx.Done():
		case <-time.After(crowdPace):
		}
	}
	<-ctx.Done()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// crowdSize is how many connectors share a process.
const crowdSize = 250

// networksMemory weighs the networks of an edge: first one with its connector,
// then so many more, and divides the difference.
func networksMemory(m *measurement) error {
	program := daemon.Warren{Path: m.who.binary}
	edgeKey := program.GenKey(m.s)
	public, err := wgtypes.ParseKey(edgeKey.Public)
	if err != nil {
		return err
	}
	tables := fmt.Sprintf("[[address]]\nname = \"main\"\nadvertise = [%q]\n", edgePublic)
	keys := make([]wgtypes.Key, 1+m.o.networks)
	networks := make([]string, len(keys))
	for i := range keys {
		if keys[i], err = wgtypes.GeneratePrivateKey(); err != nil {
			return err
		}
		networks[i] = fmt.Sprintf("[[network]]\nname = \"n%d\"\n[[connector]]\nname = \"c%d\"\nnetwork = \"n%d\"\npublic_key = %q\nroutes = [\"10.0.0.0/8\"]\n",
			i, i, i, keys[i].PublicKey())
	}
	at := netip.AddrPortFrom(edgeWAN, 51820)
	edge := program.StartEdge(m.s, m.world.edge, daemon.EdgeConfig{Name: "edge", Key: edgeKey, Listen: ":51820",
		Calls: []string{at.String()}, Metrics: edgeDoor, Profiles: true, Tables: tables + networks[0]})
	m.served = &running{edge: []*proc.Process{edge.Process}, inspect: map[string]inspector{"edge": pprofDoor{m.world.edge, edgeDoor}}}
	if err := m.join(public, at, keys[:1]); err != nil {
		return err
	}
	m.rest()
	before, err := m.weigh()
	if err != nil {
		return err
	}
	edge.Write(tables + strings.Join(networks, ""))
	edge.Reload()
	if err := m.join(public, at, keys[1:]); err != nil {
		return err
	}
	m.rest()
	after, err := m.weigh()
	if err != nil {
		return err
	}
	each := func(after, before int64) float64 { return float64(after-before) / float64(m.o.networks) / 1024 }
	m.add("edge", "KB", less, each(after["edge"].inUse, before["edge"].inUse))
	m.add("edge RSS", "KB", less, each(after["edge"].rss, before["edge"].rss))
	return nil
}

// join starts connectors and waits until the edge has all of them.
func (m *measurement) join(edge wgtypes.Key, at netip.AddrPort, keys []wgtypes.Key) error {
	var started []*proc.Process
	for len(keys) > 0 {
		n := min(crowdSize, len(keys))
		c := crowd{EdgeKey: edge, Edge: at, Dir: netns.Directory(m.s, "crowd"), Keys: keys[:n]}
		started = append(started, proc.Start(m.s, m.world.dc, part(roleCrowd, c)))
		keys = keys[n:]
	}
	ctx, cancel := context.WithTimeout(m.s.ctx, 2*time.Minute)
	defer cancel()
	for _, p := range started {
		if err := p.WaitOutput(ctx, sayReady); err != nil {
			return err
		}
	}
	return nil
}
