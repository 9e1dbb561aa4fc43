package edge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/admin"
	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/edge/config"
	"github.com/warrenmesh/warren/edge/enroll"
	"github.com/warrenmesh/warren/edge/store"
	"github.com/warrenmesh/warren/edge/wire"
)

// storeName is the file of the edge's state, in its state directory.
const storeName = "edge.db"

// registryStore is edge/store as edge/enroll declares it.
type registryStore struct{ *store.Store }

func (s registryStore) View(f func(enroll.Tx) error) error {
	return s.Store.View(func(tx *store.Tx) error { return f(tx) })
}

func (s registryStore) Update(f func(enroll.Tx) error) error {
	return s.Store.Update(func(tx *store.Tx) error { return f(tx) })
}

// openRegistry reads who may be a connector. Nobody is in the tunnel before
// enforce has made the networks.
func (e *Edge) openRegistry() (err error) {
	e.nets.init(e.tunnel, e.isDenied, e.onMoved)
	e.registry, err = enroll.New(enroll.Spec{}, enroll.Deps{
		Store: registryStore{e.store}, Peers: &e.nets, Log: e.log, PublicKey: e.tunnel.PublicKey(),
		Work: e.work,
	})
	return err
}

func (e *Edge) isDenied(key wgtypes.Key) bool {
	_, denied := e.registry.Denied(key)
	return denied
}

// enrollSpec is what cfg says of enrolment and control.
func enrollSpec(cfg *config.Config) enroll.Spec {
	s := enroll.Spec{KeyMaxAge: cfg.Enrollment.KeyMaxAge, CheckRoutes: cfg.CheckRoutes}
	for _, d := range cfg.WireGuard.Advertise {
		s.Advertise = append(s.Advertise, string(d))
	}
	for _, n := range cfg.Networks {
		s.Networks = append(s.Networks, enroll.Network{Name: n.Name, Enroll: n.Enroll, MaxTCPFlows: n.MaxTCPFlows, MaxUDPFlows: n.MaxUDPFlows})
	}
	for _, c := range cfg.Connectors {
		s.Declared = append(s.Declared, enroll.Declared{Name: c.Name, Network: c.Network, PublicKey: c.PublicKey.Key, Routes: c.Routes})
	}
	return s
}

// serveRegistry answers connectors inside the tunnel until stopRegistry is
// called.
func (e *Edge) serveRegistry() error {
	ctx, cancel := context.WithCancel(context.Background())
	var ports [2]net.Listener
	for i, port := range []uint16{wire.EnrollPort, wire.ControlPort} {
		ln, err := e.tunnel.ListenOverlay(ctx, port)
		if err != nil {
			cancel() // which ends the listener before this one
			return fmt.Errorf("listening for connectors inside the tunnel: %w", err)
		}
		ports[i] = ln
	}
	var servers sync.WaitGroup
	servers.Go(func() {
		if err := e.registry.Serve(ctx, ports[0], ports[1]); err != nil {
			e.log.Error("enrolment and control are gone: restart the edge", "err", err)
		}
	})
	servers.Go(func() { e.registry.Run(ctx) })
	e.stopRegistry = func() {
		cancel()
		servers.Wait()
	}
	return nil
}

var _ admin.Enrollment = (*Edge)(nil)

// Tokens implements admin.Enrollment.
func (e *Edge) Tokens() []client.Token {
	var out []client.Token
	for _, t := range e.registry.Tokens() {
		out = append(out, showToken(t))
	}
	return out
}

func showToken(t enroll.TokenInfo) client.Token {
	return client.Token{
		ID: t.ID, Name: t.Name, Network: t.Network, Routes: texts(t.Routes),
		State: string(t.State), Reusable: t.Reusable, Ephemeral: t.Ephemeral, Imported: t.Imported,
		Created: t.Created, Expires: t.Expires, Ended: t.Ended, Forgotten: t.Forgotten,
		Uses: t.Used, Pending: t.Pending, LastUsed: t.LastUsed, Connectors: t.Connectors, SpentBy: t.SpentBy,
		Edges: keyTexts(t.Edges),
	}
}

func keyTexts(keys []wgtypes.Key) []string {
	out := []string{}
	for _, k := range keys {
		out = append(out, k.String())
	}
	return out
}

// CreateToken implements admin.Enrollment.
func (e *Edge) CreateToken(r client.TokenRequest, routes []netip.Prefix) (client.CreatedToken, error) {
	request := enroll.TokenRequest{
		Network: r.Network, Routes: routes, Name: r.Name, TTL: time.Duration(r.TTLMillis) * time.Millisecond,
		Reusable: r.Reusable, Ephemeral: r.Ephemeral,
	}
	for _, other := range r.Edges {
		var key wire.Key
		if err := key.UnmarshalText([]byte(other.PublicKey)); err != nil {
			return client.CreatedToken{}, &client.Error{Code: client.CodeBadRequest, Message: fmt.Sprintf("naming another edge: %v", err)}
		}
		request.Edges = append(request.Edges, wire.Edge{PublicKey: key, URLs: other.URLs})
	}
	made, err := e.registry.CreateToken(request)
	if err != nil {
		return client.CreatedToken{}, refusal(err)
	}
	return client.CreatedToken{Token: showToken(made.Token), Text: made.Text, Record: made.Record}, nil
}

// ImportToken implements admin.Enrollment.
func (e *Edge) ImportToken(record string) (client.Token, error) {
	t, err := e.registry.ImportToken(record)
	return showToken(t), refusal(err)
}

// RevokeToken implements admin.Enrollment.
func (e *Edge) RevokeToken(idOrName string) (client.Token, error) {
	t, err := e.registry.RevokeToken(idOrName)
	return showToken(t), refusal(err)
}

// RevokeConnector implements admin.Enrollment.
func (e *Edge) RevokeConnector(name string) (client.ConnectorResult, error) {
	was, _ := e.connectorNamed(name)
	if err := e.registry.Revoke(name); err != nil {
		return client.ConnectorResult{}, refusal(err)
	}
	result := client.ConnectorResult{Connector: was, Aborted: was.Flows}
	result.Connector.State, result.Connector.Flows = client.ConnectorRevoked, 0
	if was.Origin == client.OriginDeclared {
		result.Note = "its key is refused for good, but the config still declares it: remove it there"
	}
	return result, nil
}

// GrantConnector implements admin.Enrollment.
func (e *Edge) GrantConnector(name string, routes []netip.Prefix) (client.ConnectorResult, error) {
	was, _ := e.connectorNamed(name)
	if err := e.registry.Grant(name, routes); err != nil {
		return client.ConnectorResult{}, refusal(err)
	}
	is, _ := e.connectorNamed(name)
	return client.ConnectorResult{Connector: is, Aborted: max(0, was.Flows-is.Flows)}, nil
}

// RotateConnector implements admin.Enrollment.
func (e *Edge) RotateConnector(name string) (client.ConnectorResult, error) {
	if err := e.registry.Rotate(name); err != nil {
		return client.ConnectorResult{}, refusal(err)
	}
	is, _ := e.connectorNamed(name)
	result := client.ConnectorResult{Connector: is}
	if is.State != client.ConnectorUp {
		result.Note = "it is not up: it is asked for a new key when it comes back"
	}
	return result, nil
}

// DrainConnector implements admin.Enrollment.
func (e *Edge) DrainConnector(name string, off bool) (client.ConnectorResult, error) {
	if err := e.registry.Drain(name, off); err != nil {
		return client.ConnectorResult{}, refusal(err)
	}
	is, _ := e.connectorNamed(name)
	result := client.ConnectorResult{Connector: is}
	switch {
	case !off:
		result.Note = "survives a reload, not a restart"
	case is.State == client.ConnectorDown:
		result.Note = "it has left: it serves again once it is started again, or within some minutes where it still runs for another edge"
	}
	return result, nil
}

// connectorNamed is one connector as `connector show` has it.
func (e *Edge) connectorNamed(name string) (client.Connector, bool) {
	for _, c := range e.Connectors() {
		if c.Name == name {
			return c, true
		}
	}
	return client.Connector{}, false
}

// refusal gives an error of the registry the admin API's code.
func refusal(err error) error {
	var known *enroll.Error
	if !errors.As(err, &known) {
		return err
	}
	code := client.CodeInternal
	switch known.Kind {
	case enroll.BadRequest:
		code = client.CodeBadRequest
	case enroll.NotFound:
		code = client.CodeNotFound
	case enroll.Refused:
		code = client.CodeRefused
	}
	return &client.Error{Code: code, Message: err.Error()}
}
