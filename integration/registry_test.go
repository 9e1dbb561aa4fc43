package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/enroll"
	"github.com/warrenmesh/warren/edge/store"
	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

// A registry child is this binary in a process that may be killed: the edge's
// own registry and store, both its servers included, with a tunnel that is
// nothing but names. It does what each line of its input says and answers with
// a line: so a thousand changes take seconds, not handshakes.

// change is one line of input.
type change struct {
	Do   string // token, enroll, sync, rotate, key, revoke, dump
	Name string
	Text string      // of a token
	Key  wgtypes.Key // who asks
	Next wgtypes.Key // the key that is registered
	Ask  []wire.Key  // of a dump: which keys are denied?
}

// changed is the answer, once the change is acknowledged.
type changed struct {
	Error string `json:",omitempty"`
	Text  string `json:",omitempty"` // of the token that was made
	Dump  *dump  `json:",omitempty"`
}

// dump is all that a registry remembers and a test can know, by name.
type dump struct {
	Connectors map[string]dumped
	Tokens     map[string]string // state by id
	Denied     map[string]bool   // by key
}

type dumped struct {
	Key, Next string
	State     string
	Rotation  string
}

// runRegistry is a registry child on a state directory.
func runRegistry(ctx context.Context, dir string, in io.Reader, out io.Writer) error {
	s, err := store.Open(filepath.Join(dir, "edge.db"))
	if err != nil {
		return err
	}
	defer s.Close()
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return err
	}
	peers := &namedPeers{keys: map[netip.Addr]wgtypes.Key{}}
	spec := enroll.Spec{Advertise: []string{"203.0.113.10:51820"}, Networks: []enroll.Network{{Name: "berlin", Enroll: true}}}
	registry, err := enroll.New(spec, enroll.Deps{Store: childStore{s}, Peers: peers, PublicKey: key.PublicKey()})
	if err != nil {
		return err
	}
	enrolPort, controlPort := newPipes(), newPipes()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { registry.Serve(ctx, enrolPort, controlPort) })
	defer func() { cancel(); wg.Wait() }()
	c := registryChild{registry: registry, peers: peers, enrol: enrolPort, control: controlPort}
	lines, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var asked change
		if err := lines.Decode(&asked); err != nil {
			return nil // the parent has gone
		}
		answer, err := c.do(ctx, asked)
		if err != nil {
			answer.Error = err.Error()
		}
		if err := answers.Encode(answer); err != nil {
			return err
		}
	}
}

type registryChild struct {
	registry       *enroll.Registry
	peers          *namedPeers
	enrol, control *pipes
}

func (c *registryChild) do(ctx context.Context, asked change) (answer changed, err error) {
	switch asked.Do {
	case "token":
		made, err := c.registry.CreateToken(enroll.TokenRequest{Network: "berlin", Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}})
		return changed{Text: made.Text}, err
	case "enroll":
		token, err := wire.ParseToken(asked.Text)
		if err != nil {
			return answer, err
		}
		return answer, c.post(ctx, c.enrol, token.Bootstrap()[0].PublicKey(), wire.PathEnroll, wire.EnrollRequest{PublicKey: wire.Key{Key: asked.Key}, Name: asked.Name})
	case "sync":
		return answer, c.post(ctx, c.control, asked.Key, wire.PathSync, wire.SyncRequest{})
	case "rotate":
		return answer, c.registry.Rotate(asked.Name)
	case "key":
		return answer, c.post(ctx, c.control, asked.Key, wire.PathKey, wire.KeyRequest{PublicKey: wire.Key{Key: asked.Next}})
	case "revoke":
		return answer, c.registry.Revoke(asked.Name)
	case "dump":
		return changed{Dump: c.dump(asked.Ask)}, nil
	}
	return answer, fmt.Errorf("no change %q", asked.Do)
}

func (c *registryChild) dump(ask []wire.Key) *dump {
	d := &dump{Connectors: map[string]dumped{}, Tokens: map[string]string{}, Denied: map[string]bool{}}
	for _, conn := range c.registry.Connectors() {
		now := dumped{Key: conn.PublicKey.String(), State: string(conn.State), Rotation: conn.Rotation}
		if conn.NextKey != (wgtypes.Key{}) {
			now.Next = conn.NextKey.String()
		}
		d.Connectors[conn.Name] = now
	}
	for _, t := range c.registry.Tokens() {
		d.Tokens[t.ID] = string(t.State)
	}
	for _, key := range ask {
		_, denied := c.registry.Denied(key.Key)
		d.Denied[key.String()] = denied
	}
	return d
}

// post sends a request as the peer with a key would through the tunnel.
func (c *registryChild) post(ctx context.Context, port *pipes, key wgtypes.Key, path string, message any) error {
	overlay := c.peers.learn(key)
	body, err := json.Marshal(message)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://edge"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return port.dial(ctx, overlay)
	}}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, text)
	}
	return err
}

// childStore is the store as the registry wants it.
type childStore struct{ *store.Store }

func (s childStore) View(f func(enroll.Tx) error) error {
	return s.Store.View(func(tx *store.Tx) error { return f(tx) })
}

func (s childStore) Update(f func(enroll.Tx) error) error {
	return s.Store.Update(func(tx *store.Tx) error { return f(tx) })
}

// namedPeers is a tunnel without one packet.
type namedPeers struct {
	mu   sync.Mutex
	keys map[netip.Addr]wgtypes.Key
}

func (p *namedPeers) learn(key wgtypes.Key) netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	overlay := tunnel.OverlayAddr(key)
	p.keys[overlay] = key
	return overlay
}

func (p *namedPeers) KeyAt(overlay netip.Addr) (wgtypes.Key, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	key, ok := p.keys[overlay]
	return key, ok
}

func (p *namedPeers) AddGuest(enroll.Guest) error            { return nil }
func (p *namedPeers) RemoveGuest(wgtypes.Key)                {}
func (p *namedPeers) RenewGuest(wgtypes.Key)                 {}
func (p *namedPeers) AddConnector(enroll.Member) error       { return nil }
func (p *namedPeers) RemoveConnector(string)                 {}
func (p *namedPeers) Demote(string, uint16) error            { return nil }
func (p *namedPeers) SetRoutes(string, []netip.Prefix) error { return nil }
func (p *namedPeers) AddKey(string, wgtypes.Key) error       { return nil }
func (p *namedPeers) DropKey(string, wgtypes.Key)            {}
func (p *namedPeers) SetHeld(string, bool)                   {}
func (p *namedPeers) State(string) (enroll.State, bool)      { return enroll.State{Alive: true}, true }

// pipes is a listener whose connections come from whom they say.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) dial(ctx context.Context, from netip.Addr) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case p.conns <- pipeConn{far, from}:
		return near, nil
	case <-p.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.done:
		return nil, errors.Join(net.ErrClosed)
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

type pipeConn struct {
	net.Conn
	from netip.Addr
}

func (c pipeConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: c.from.AsSlice(), Port: 1} }
