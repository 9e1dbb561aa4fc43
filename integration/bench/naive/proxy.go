package naive

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"golang.zx2c4.com/wireguard/tun/netstack"
)

// side is where a proxy listens or dials: the kernel, or the tunnel's netstack.
type side interface {
	listen(addr netip.AddrPort) (net.Listener, error)
	listenPacket(addr netip.AddrPort) (net.PacketConn, error)
	dial(ctx context.Context, network string, addr netip.AddrPort) (net.Conn, error)
}

type kernel struct{}

func (kernel) listen(a netip.AddrPort) (net.Listener, error) { return net.Listen("tcp", a.String()) }
func (kernel) listenPacket(a netip.AddrPort) (net.PacketConn, error) {
	return net.ListenPacket("udp", a.String())
}
func (kernel) dial(ctx context.Context, network string, a netip.AddrPort) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, a.String())
}

type tunnel struct{ stack *netstack.Net }

func (t tunnel) listen(a netip.AddrPort) (net.Listener, error) {
	return t.stack.ListenTCPAddrPort(a)
}
func (t tunnel) listenPacket(a netip.AddrPort) (net.PacketConn, error) {
	return t.stack.ListenUDPAddrPort(a)
}
func (t tunnel) dial(ctx context.Context, network string, a netip.AddrPort) (net.Conn, error) {
	return t.stack.DialContext(ctx, network, a.String())
}

// proxy is the listeners of one end and what runs behind them.
type proxy struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func newProxy(ctx context.Context) *proxy {
	p := &proxy{}
	p.ctx, p.cancel = context.WithCancel(ctx)
	return p
}

// close cuts everything and waits for it.
func (p *proxy) close() {
	p.cancel()
	p.wg.Wait()
}

// closing closes c when the proxy ends, or when the returned function says so.
func (p *proxy) closing(c io.Closer) (stop func()) {
	release := context.AfterFunc(p.ctx, func() { c.Close() })
	return func() {
		release()
		c.Close()
	}
}

// tcp carries connections.
func (p *proxy) tcp(from side, at netip.AddrPort, to side, target netip.AddrPort) error {
	ln, err := from.listen(at)
	if err != nil {
		return fmt.Errorf("listening on tcp/%s: %w", at, err)
	}
	stop := p.closing(ln)
	p.wg.Go(func() {
		defer stop()
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.carry(conn, to, target) })
		}
	})
	return nil
}

// carry moves the bytes of one connection with io.Copy.
func (p *proxy) carry(client net.Conn, to side, target netip.AddrPort) {
	defer p.closing(client)()
	origin, err := to.dial(p.ctx, "tcp", target)
	if err != nil {
		return
	}
	defer p.closing(origin)()
	var wg sync.WaitGroup
	wg.Go(func() { copyHalf(origin, client) })
	copyHalf(client, origin)
	wg.Wait()
}

// copyHalf copies one direction and passes its end on. Anything but an
// orderly end cuts both.
func copyHalf(dst, src net.Conn) {
	_, err := io.Copy(dst, src)
	half, ok := dst.(interface{ CloseWrite() error })
	if err != nil || !ok || half.CloseWrite() != nil {
		dst.Close()
		src.Close()
	}
}

// maxDatagram is more than any datagram of the benchmark.
const maxDatagram = 64 << 10

// udp carries datagrams: a session for each client's address, for ever.
func (p *proxy) udp(from side, at netip.AddrPort, to side, target netip.AddrPort) error {
	pc, err := from.listenPacket(at)
	if err != nil {
		return fmt.Errorf("listening on udp/%s: %w", at, err)
	}
	stop := p.closing(pc)
	p.wg.Go(func() {
		defer stop()
		sessions := map[string]net.Conn{}
		buf := make([]byte, maxDatagram)
		for {
			n, client, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			session := sessions[client.String()]
			if session == nil {
				if session, err = to.dial(p.ctx, "udp", target); err != nil {
					continue
				}
				sessions[client.String()] = session
				p.wg.Go(func() { p.answers(pc, client, session) })
			}
			session.Write(buf[:n]) // what is refused is lost, as datagrams are
		}
	})
	return nil
}

// answers carries a session's datagrams back.
func (p *proxy) answers(pc net.PacketConn, client net.Addr, session net.Conn) {
	defer p.closing(session)()
	buf := make([]byte, maxDatagram)
	for {
		n, err := session.Read(buf)
		if err != nil {
			return
		}
		if _, err := pc.WriteTo(buf[:n], client); err != nil {
			return
		}
	}
}
