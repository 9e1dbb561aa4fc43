package integration

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/netstack/tunnel"
)

// A crowd is many connectors in one process, each as little as the edge's side
// needs to call it up: a WireGuard device with a key and a socket of its own,
// that pings the edge until it answers, and answers its echoes, as any router
// may. A thousand real connectors would need more memory than what is measured.
// A member that syncs is one more than that, and needs a stack of TCP.

// runCrowd reads lines "edge-public-key edge-address private-key", with or
// without a fourth field "syncs", makes a member of each, and says "crowd
// ready" at the end of the input. It runs until ctx ends.
func runCrowd(ctx context.Context, lines io.Reader) error {
	var members []interface{ Close() }
	defer func() {
		var wg sync.WaitGroup
		for _, m := range members {
			wg.Go(m.Close)
		}
		wg.Wait()
	}()
	scanner := bufio.NewScanner(lines)
	for scanner.Scan() {
		fields := strings.Fields(scanner.Text())
		if len(fields) < 3 {
			return fmt.Errorf("reading the line %q: want three fields", scanner.Text())
		}
		edge, err := net.ResolveUDPAddr("udp", fields[1])
		if err != nil {
			return err
		}
		edgeKey, err := wgtypes.ParseKey(fields[0])
		if err != nil {
			return err
		}
		key, err := wgtypes.ParseKey(fields[2])
		if err != nil {
			return err
		}
		var member interface{ Close() }
		if len(fields) > 3 {
			member, err = newSyncing(ctx, edgeKey, edge.AddrPort(), key)
		} else {
			member, err = newMember(edgeKey, edge, key)
		}
		if err != nil {
			return err
		}
		members = append(members, member)
		// All at once would be a flood of handshakes, which is another test.
		time.Sleep(2 * time.Millisecond)
	}
	fmt.Println("crowd ready")
	<-ctx.Done()
	return scanner.Err()
}

func newMember(edgeKey wgtypes.Key, edge *net.UDPAddr, key wgtypes.Key) (*device.Device, error) {
	ping := echoRequest(tunnel.OverlayAddr(key.PublicKey()), tunnel.OverlayAddr(edgeKey))
	dev := device.NewDevice(newReflector(ping), &singleBind{edge: edge}, device.NewLogger(device.LogLevelSilent, ""))
	uapi := fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=%s\nallowed_ip=::/0\npersistent_keepalive_interval=5\n",
		hex.EncodeToString(key[:]), hex.EncodeToString(edgeKey[:]), edge)
	if err := dev.IpcSet(uapi); err != nil {
		dev.Close()
		return nil, err
	}
	if err := dev.Up(); err != nil {
		dev.Close()
		return nil, err
	}
	return dev, nil
}

// echoRequest is an ICMPv6 echo request without data (RFC 4443 section 4.1).
func echoRequest(from, to netip.Addr) []byte {
	const header, message = 40, 8
	p := make([]byte, header+message)
	p[0], p[5], p[6], p[7] = 0x60, message, 58, 64
	copy(p[8:], from.AsSlice())
	copy(p[24:], to.AsSlice())
	p[header] = 128
	sum := uint32(message + 58) // of the pseudo-header (RFC 8200 section 8.1)
	for i := 8; i < len(p); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(p[header+2:], ^uint16(sum))
	return p
}

// reflector is a tun.Device that sends a ping each second until it hears
// something, answers every ICMPv6 echo request (RFC 4443 section 4.2), and
// drops everything else. It moves one packet a call, so that a device holds
// few buffers.
type reflector struct {
	ping    []byte
	heard   atomic.Bool
	replies chan []byte
	closed  chan struct{}
	events  chan tun.Event
	once    sync.Once
}

func newReflector(ping []byte) *reflector {
	return &reflector{ping: ping, replies: make(chan []byte, 16), closed: make(chan struct{}), events: make(chan tun.Event)}
}

func (r *reflector) File() *os.File           { return nil }
func (r *reflector) MTU() (int, error)        { return 1420, nil }
func (r *reflector) Name() (string, error)    { return "crowd", nil }
func (r *reflector) Events() <-chan tun.Event { return r.events }
func (r *reflector) BatchSize() int           { return 1 }

func (r *reflector) Close() error {
	r.once.Do(func() { close(r.closed); close(r.events) })
	return nil
}

func (r *reflector) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for {
		var again <-chan time.Time
		if !r.heard.Load() {
			again = time.After(time.Second)
		}
		select {
		case reply := <-r.replies:
			sizes[0] = copy(bufs[0][offset:], reply)
			return 1, nil
		case <-again:
			if !r.heard.Load() {
				sizes[0] = copy(bufs[0][offset:], r.ping)
				return 1, nil
			}
		case <-r.closed:
			return 0, os.ErrClosed
		}
	}
}

func (r *reflector) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		r.heard.Store(true)
		p := b[offset:]
		const header = 40
		if len(p) < header+8 || p[0]>>4 != 6 || p[6] != 58 || p[header] != 128 {
			continue
		}
		reply := append([]byte(nil), p...)
		copy(reply[8:24], p[24:40]) // addresses change places, which no checksum sees
		copy(reply[24:40], p[8:24])
		reply[header] = 129
		// RFC 1624: the sum of the message grew by 0x0100.
		sum := uint32(^binary.BigEndian.Uint16(p[header+2:])) + 0x0100
		binary.BigEndian.PutUint16(reply[header+2:], ^uint16(sum&0xffff+sum>>16))
		select {
		case r.replies <- reply:
		default:
		}
	}
	return len(bufs), nil
}

// singleBind is a conn.Bind with one socket to one edge and one datagram a call.
type singleBind struct {
	edge *net.UDPAddr

	mu     sync.Mutex
	socket *net.UDPConn
}

func (b *singleBind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	socket, err := net.DialUDP("udp", nil, b.edge)
	if err != nil {
		return nil, 0, err
	}
	b.socket = socket
	receive := func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		for {
			n, err := socket.Read(bufs[0])
			if err != nil {
				if isClosed(err) {
					return 0, net.ErrClosed
				}
				continue // the edge is not there yet: its host says so by ICMP
			}
			sizes[0], eps[0] = n, crowdEndpoint{b.edge.AddrPort()}
			return 1, nil
		}
	}
	return []conn.ReceiveFunc{receive}, uint16(socket.LocalAddr().(*net.UDPAddr).Port), nil
}

func isClosed(err error) bool {
	return strings.Contains(err.Error(), net.ErrClosed.Error())
}

func (b *singleBind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.socket == nil {
		return nil
	}
	err := b.socket.Close()
	b.socket = nil
	return err
}

func (b *singleBind) Send(bufs [][]byte, _ conn.Endpoint) error {
	b.mu.Lock()
	socket := b.socket
	b.mu.Unlock()
	if socket == nil {
		return net.ErrClosed
	}
	for _, buf := range bufs {
		if _, err := socket.Write(buf); err != nil {
			return err
		}
	}
	return nil
}

func (b *singleBind) SetMark(uint32) error { return nil }
func (b *singleBind) BatchSize() int       { return 1 }

func (b *singleBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	addr, err := netip.ParseAddrPort(s)
	return crowdEndpoint{addr}, err
}

// crowdEndpoint is the edge.
type crowdEndpoint struct{ addr netip.AddrPort }

func (e crowdEndpoint) ClearSrc()           {}
func (e crowdEndpoint) SrcToString() string { return "" }
func (e crowdEndpoint) DstToString() string { return e.addr.String() }
func (e crowdEndpoint) DstToBytes() []byte  { b, _ := e.addr.MarshalBinary(); return b }
func (e crowdEndpoint) DstIP() netip.Addr   { return e.addr.Addr() }
func (e crowdEndpoint) SrcIP() netip.Addr   { return netip.Addr{} }
