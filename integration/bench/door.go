package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"strings"
	"time"

	"github.com/warrenmesh/warren/integration/netns"
)

// pprofDoor is a program that serves /debug/pprof on its host's loopback.
type pprofDoor struct {
	host *netns.Host
	addr netip.AddrPort
}

func (d pprofDoor) get(ctx context.Context, path string) ([]byte, error) {
	transport := &http.Transport{
		DisableKeepAlives: true, // no connection of ours is in what it reports next
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return d.host.Dial(ctx, network, addr)
		},
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.addr.String()+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("getting %s: %s: %s", path, response.Status, strings.TrimSpace(string(body)))
	}
	return body, err
}

// memory is the least of several samples: packets that are under way at the
// moment of one are nobody's.
func (d pprofDoor) memory(ctx context.Context) (least int64, err error) {
	const samples = 4
	for i := range samples {
		if i > 0 {
			time.Sleep(200 * time.Millisecond)
		}
		// Twice: what a pool holds outlives one collection.
		if _, err := d.get(ctx, "/debug/pprof/heap?gc=1"); err != nil {
			return 0, err
		}
		body, err := d.get(ctx, "/debug/pprof/heap?gc=1&debug=1")
		if err != nil {
			return 0, err
		}
		now, err := inUse(string(body))
		if err != nil {
			return 0, err
		}
		if least == 0 || now < least {
			least = now
		}
	}
	return least, nil
}

// inUse reads HeapInuse + StackInuse from the end of a heap profile in text,
// where runtime/pprof prints runtime.MemStats.
func inUse(profile string) (int64, error) {
	var heap, stack int64
	_, after, ok := strings.Cut(profile, "# HeapInuse = ")
	if ok {
		_, err := fmt.Sscan(after, &heap)
		ok = err == nil
	}
	if _, after, found := strings.Cut(profile, "# Stack = "); ok && found {
		_, err := fmt.Sscan(after, &stack)
		ok = err == nil
	}
	if !ok || heap == 0 || stack == 0 {
		return 0, fmt.Errorf("reading a heap profile: HeapInuse and Stack are not in it")
	}
	return heap + stack, nil
}

func (d pprofDoor) profile(ctx context.Context, seconds int) ([]byte, error) {
	return d.get(ctx, fmt.Sprintf("/debug/pprof/profile?seconds=%d", seconds))
}

// serveDoor opens the door of a part of ours.
func serveDoor(addr netip.AddrPort) (stop func(), err error) {
	ln, err := net.Listen("tcp", addr.String())
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	server := &http.Server{Handler: mux}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(ln)
	}()
	return func() { server.Close(); <-done }, nil
}
