package connector

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/memnet"
)

// FuzzSyncAnswer: whatever JSON an edge answers with, the connector keeps what
// it had, or holds a grant within its bounds.
func FuzzSyncAnswer(f *testing.F) {
	edge := wgtypes.Key{1, 2, 3}
	good, err := json.Marshal(wire.SyncAnswer{Revision: 7, Time: time.Unix(1, 0), Grant: wire.Grant{
		Name: "berlin-1", Network: "berlin", Routes: prefixes("10.0.0.0/8", "fd00::/16"), MaxTCPFlows: 3,
		Edges: []wire.Edge{{PublicKey: wire.Key{Key: edge}, URLs: []string{testEdge}}},
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(good))
	f.Add(`{"revision":1,"grant":{"routes":["10.0.0.1/8","::ffff:10.0.0.0/104",""]}}`)
	f.Add(`{"revision":1,"grant":{"routes":null,"max_tcp_flows":-1,"drain":true,"rotate":true}}`)
	f.Add(`{"revision":18446744073709551615,"time":"9999-12-31T23:59:59Z"}`)
	f.Fuzz(func(t *testing.T, text string) {
		c, err := New(Spec{StateDir: "/none", Edges: []EdgeSpec{{PublicKey: edge, URLs: []EdgeURL{{Host: "edge.example", Port: 51820}}}}}, Deps{Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		defer c.flows.cut(errCut)
		e := c.edges[0]
		var answer wire.SyncAnswer
		if wire.Decode(strings.NewReader(text), &answer) != nil {
			return
		}
		g, err := readGrant(answer, edge)
		if err != nil {
			if plain(err.Error(), 1000) != err.Error() || len(err.Error()) > 200 {
				t.Errorf("the error is not fit for a log: %q", err)
			}
			return
		}
		e.compareClocks(answer.Time)
		e.apply(g)
		for _, dst := range []string{"10.0.0.1", "192.0.2.1", "fd00::1", "::1"} {
			want := false
			for _, r := range answer.Grant.Routes {
				want = want || r.Contains(netip.MustParseAddr(dst))
			}
			p, err := e.flows.admit("tcp", netip.MustParseAddr(dst), func(error) {})
			if (err == nil) != (want && !g.drain) {
				t.Errorf("a flow to %s: %v, in %v, draining %v", dst, err, answer.Grant.Routes, g.drain)
			}
			if err == nil {
				e.flows.done(p)
			}
		}
		if n := len(e.urls()); n > maxURLs+1 {
			t.Errorf("%d urls", n)
		}
		if len(e.granted().name) > wire.MaxName {
			t.Errorf("the name is %q", e.granted().name)
		}
	})
}

// FuzzPost: whatever bytes answer a request, the poster comes to an end, with
// a refusal, another error, or a whole answer.
func FuzzPost(f *testing.F) {
	f.Add("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
	f.Add("HTTP/1.1 403 Forbidden\r\nContent-Length: 36\r\n\r\n{\"code\":\"revoked\",\"message\":\"it was\"}")
	f.Add("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
	f.Add("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n{}")
	f.Add("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n")
	f.Fuzz(func(t *testing.T, bytes string) {
		near, far := memnet.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.WriteString(far, bytes)
			_ = far.CloseWrite()
			_, _ = io.Copy(io.Discard, far)
			_ = far.Close()
		}()
		line := newPoster(near)
		var answer wire.SyncAnswer
		err := line.post(context.Background(), wire.PathSync, time.Minute, wire.SyncRequest{}, &answer)
		if err != nil && (len(err.Error()) > 2*wire.MaxText || plain(err.Error(), 2*wire.MaxText) != err.Error()) {
			t.Errorf("the error is not fit for a log: %q", err)
		}
		line.close()
		<-done
	})
}
