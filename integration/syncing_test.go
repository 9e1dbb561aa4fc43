package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

// syncing is a member of a crowd that holds a sync at its edge, as each
// connector does.
type syncing struct {
	*tunnel.Tunnel
	edge    *tunnel.Peer
	asker   http.Client
	stop    context.CancelFunc
	stopped sync.WaitGroup
}

func newSyncing(ctx context.Context, edgeKey wgtypes.Key, at netip.AddrPort, key wgtypes.Key) (*syncing, error) {
	t, err := tunnel.New(tunnel.Config{PrivateKey: key})
	if err != nil {
		return nil, err
	}
	s := &syncing{Tunnel: t}
	if s.edge, err = t.AddEdge(tunnel.EdgeConfig{Name: "edge", PublicKey: edgeKey, Endpoint: at}); err != nil {
		t.Close()
		return nil, err
	}
	ctx, s.stop = context.WithCancel(ctx)
	s.asker.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return t.DialOverlay(ctx, netip.AddrPortFrom(s.edge.Overlay(), wire.ControlPort))
	}}
	s.stopped.Go(func() { s.run(ctx) })
	return s, nil
}

// Close ends the member.
func (s *syncing) Close() {
	s.stop()
	s.stopped.Wait()
	s.Tunnel.Close()
}

// run syncs one time after the other.
func (s *syncing) run(ctx context.Context) {
	revision := uint64(0)
	for ctx.Err() == nil {
		held, err := s.sync(ctx, revision)
		if err == nil {
			revision = held
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond): // the edge is not up yet
		}
	}
}

func (s *syncing) sync(ctx context.Context, revision uint64) (uint64, error) {
	body, err := json.Marshal(wire.SyncRequest{Revision: revision, Report: wire.Report{Version: "crowd", Hostname: "crowd", Time: time.Now()}})
	if err != nil {
		return 0, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://edge"+wire.PathSync, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	response, err := s.asker.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	defer io.Copy(io.Discard, response.Body) // so that the connection is kept
	if response.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("the edge answers with status %d", response.StatusCode)
	}
	var answer wire.SyncAnswer
	err = wire.Decode(response.Body, &answer)
	return answer.Revision, err
}
