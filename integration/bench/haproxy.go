package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/integration/proc"
	"github.com/warrenmesh/warren/integration/require"
)

// haproxy is a proxy at the edge without a tunnel behind it: it sees the
// origin by a plain route, and encrypts nothing.
func haproxy() contender {
	path, ok := require.Find("haproxy")
	c := contender{name: "haproxy", start: func(s *scope, w *world) *running {
		return startHAProxy(s, w, path)
	}}
	if !ok {
		c.missing = `no program "haproxy" (Debian package haproxy)`
	}
	return c
}

func startHAProxy(s *scope, w *world, path string) *running {
	var b strings.Builder
	b.WriteString("global\n  maxconn 8000\ndefaults\n  mode tcp\n  timeout connect 10s\n  timeout client 1h\n  timeout server 1h\n")
	for _, port := range tcpPorts {
		fmt.Fprintf(&b, "listen p%d\n  bind %s\n  server origin %s\n", port,
			netip.AddrPortFrom(edgePublic, port), netip.AddrPortFrom(originAddr, port))
	}
	config := filepath.Join(netns.Directory(s, "haproxy"), "haproxy.cfg")
	writeConfig(s, config, b.String())
	attr, _, _ := netns.Ordinary()
	p := proc.Start(s, w.edge, proc.Spec{Name: "haproxy", Path: path, Args: []string{"-db", "-f", config}, Attr: attr})
	waitPort(s, w.edge, p, netip.AddrPortFrom(edgePublic, tcpPorts[0]))
	return &running{target: edgePublic, edge: []*proc.Process{p}}
}

// writeConfig writes a file that an ordinary person may read.
func writeConfig(s *scope, path, text string) {
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.Fatalf("%v", err)
	}
	netns.Give(s, filepath.Dir(path))
}

// waitPort waits until something accepts on a TCP address, as seen from a
// host, and fails when the program ends or startLimit passes first.
func waitPort(s *scope, host *netns.Host, p *proc.Process, addr netip.AddrPort) {
	ctx, cancel := context.WithTimeout(s.ctx, startLimit)
	defer cancel()
	err := proc.Poll(ctx, func() error {
		if p != nil {
			select {
			case <-p.Done():
				return proc.Fatal(fmt.Errorf("it ended: %s", p.Output()))
			default:
			}
		}
		conn, err := host.Dial(ctx, "tcp", addr.String())
		if err == nil {
			conn.Close()
		}
		return err
	})
	if err != nil {
		s.Fatalf("waiting for %s: %v", addr, err)
	}
}
