package demo

import (
	_ "embed"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

const (
	zone   = "warren.test" // reserved for tests: RFC 6761 section 6.2
	prefix = "10.0.0.0/24" // of both networks
)

// plan is all that the config files say.
type plan struct {
	Zone, Prefix string
	// Ports of 127.0.0.1. DNS is one for both UDP and TCP.
	WireGuard, DNS, Metrics   int
	Berlin, Tokyo, Echo, Shop int
	// Pool are the endpoints of the pool.
	Pool  []string
	Sites []*site

	edgeKey wgtypes.Key // private
}

// site is a network with its connector.
type site struct {
	Network, Connector string
	PublicKey, EdgeKey string // of the connector and of the edge
	EdgePort           int
	Aliases            []alias

	key wgtypes.Key // private
}

// alias leads from an address of the network to a socket of this machine.
type alias struct{ From, To string }

// newPlan makes the keys. Ports and aliases are still missing.
func newPlan() (*plan, error) {
	p := &plan{Zone: zone, Prefix: prefix}
	var err error
	if p.edgeKey, err = wgtypes.GeneratePrivateKey(); err != nil {
		return nil, fmt.Errorf("making the edge's key: %w", err)
	}
	for _, network := range []string{"berlin", "tokyo"} {
		s := &site{Network: network, Connector: network + "-1", EdgeKey: p.edgeKey.PublicKey().String()}
		if s.key, err = wgtypes.GeneratePrivateKey(); err != nil {
			return nil, fmt.Errorf("making the key of connector %q: %w", s.Connector, err)
		}
		s.PublicKey = s.key.PublicKey().String()
		p.Sites = append(p.Sites, s)
	}
	return p, nil
}

// site returns the site of a network of the plan.
func (p *plan) site(network string) *site {
	for _, s := range p.Sites {
		if s.Network == network {
			return s
		}
	}
	return nil
}

// hostname is an app's, in full.
func hostname(app string) string { return app + "." + zone }

// choosePorts takes ports that are free at this moment. Another process may
// still be quicker: whoever starts the edge tries again with other ports.
func (p *plan) choosePorts() error {
	var held held
	defer held.release() // only when all are chosen, so that each is another
	for _, want := range []struct {
		port     *int
		networks []string
	}{
		{&p.WireGuard, []string{"udp"}},
		{&p.DNS, []string{"tcp", "udp"}},
		{&p.Metrics, []string{"tcp"}},
		{&p.Berlin, []string{"tcp"}},
		{&p.Tokyo, []string{"tcp"}},
		{&p.Echo, []string{"udp"}},
		{&p.Shop, []string{"tcp"}},
	} {
		port, err := held.choose(want.networks)
		if err != nil {
			return fmt.Errorf("choosing a free port of 127.0.0.1: %w", err)
		}
		*want.port = port
	}
	for _, s := range p.Sites {
		s.EdgePort = p.WireGuard
	}
	return nil
}

// held are sockets that keep chosen ports from being chosen again.
type held []func() error

func (h *held) release() {
	for _, close := range *h {
		_ = close()
	}
}

// choose opens a port that is free in each of the networks.
func (h *held) choose(networks []string) (port int, err error) {
	const tries = 20 // what is free for TCP is nearly always free for UDP
	for range tries {
		port = 0
		for _, network := range networks {
			if port, err = h.open(network, port); err != nil {
				break
			}
		}
		if err == nil {
			return port, nil
		}
	}
	return 0, err
}

// open holds a port, any if port is 0.
func (h *held) open(network string, port int) (int, error) {
	at := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	if network == "udp" {
		conn, err := net.ListenPacket("udp", at)
		if err != nil {
			return 0, err
		}
		*h = append(*h, conn.Close)
		return conn.LocalAddr().(*net.UDPAddr).Port, nil
	}
	ln, err := net.Listen("tcp", at)
	if err != nil {
		return 0, err
	}
	*h = append(*h, ln.Close)
	return ln.Addr().(*net.TCPAddr).Port, nil
}

var (
	//go:embed edge.toml.tmpl
	edgeText string
	//go:embed connector.toml.tmpl
	connectorText string
)

// configFile is one file of the demo's directory.
type configFile struct{ name, text string }

// files are the config of the edge, then those of the connectors.
func (p *plan) files() ([]configFile, error) {
	edge, err := render("edge.toml", edgeText, p)
	if err != nil {
		return nil, err
	}
	all := []configFile{edge}
	for _, s := range p.Sites {
		f, err := render(s.Connector+".toml", connectorText, s)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return all, nil
}

func render(name, text string, data any) (configFile, error) {
	t, err := template.New(name).Parse(text)
	if err != nil {
		return configFile{}, fmt.Errorf("reading the template of %q: %w", name, err)
	}
	var b strings.Builder
	if err := t.Execute(&b, data); err != nil {
		return configFile{}, fmt.Errorf("writing %q: %w", name, err)
	}
	return configFile{name, b.String()}, nil
}

// write puts the config files and the keys into dir.
func (p *plan) write(dir string) error {
	files, err := p.files()
	if err != nil {
		return err
	}
	files = append(files, configFile{"edge/edge.key", p.edgeKey.String() + "\n"})
	for _, s := range p.Sites {
		files = append(files, configFile{s.Connector + "/connector.key", s.key.String() + "\n"})
	}
	for _, f := range files {
		path := filepath.Join(dir, f.name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return fmt.Errorf("writing the config: %w", err)
		}
		if err := os.WriteFile(path, []byte(f.text), 0o600); err != nil {
			return fmt.Errorf("writing the config: %w", err)
		}
	}
	return nil
}
