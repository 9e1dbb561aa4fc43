package netstack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/warrenmesh/warren/netstack/drops"
	"github.com/warrenmesh/warren/netstack/netx"
)

// maxPings bounds the pings of one NIC that wait for a reply, and the requests
// that wait for room in the link: as many as the
// monitors of 5,000 endpoints have where none of them answers for 4 s of 5.
const maxPings = 4096

// pingDataLen is how much data an echo request of ours carries: random bytes,
// which nobody knows who has not had the request.
const pingDataLen = 16

// whyEchoUnknown: an echo reply that no ping of this NIC waits for. It came too
// late, or from where the ping did not go.
const whyEchoUnknown = "echo_unknown"

// errTooManyPings is what a ping ends with that finds maxPings waiting.
var errTooManyPings = fmt.Errorf("%d pings wait for a reply already", maxPings)

// errPingWithdrawn is what a ping ends with whose route was taken away.
var errPingWithdrawn = fmt.Errorf("the path to it was withdrawn: %w", netx.ErrNoRoute)

// Ping sends one ICMP echo request through this NIC, from one of its sources,
// and waits for the reply: whoever has the address in the private network, or
// a connector on its word, answers. It returns how long that took.
//
// An error wraps netx.ErrTimedOut where ctx's deadline passed, or the other end
// says that it waited in vain, ErrUnreachable where an ICMP error says
// otherwise, and ErrNoRoute where the NIC was removed or the route withdrawn.
// An end of ctx before its deadline is its cause.
func (n *NIC) Ping(ctx context.Context, dst netip.Addr) (time.Duration, error) {
	dst = dst.Unmap()
	rtt, err := n.ping(ctx, dst)
	if err != nil {
		return 0, fmt.Errorf("pinging %q: %w", dst, err)
	}
	return rtt, nil
}

func (n *NIC) ping(ctx context.Context, dst netip.Addr) (time.Duration, error) {
	if !dst.IsValid() || !isHost(dst) || dst.Zone() != "" {
		return 0, errors.New("the address of one host is required")
	}
	if ctx.Err() != nil {
		return 0, contextError(ctx)
	}
	sources := n.index.sources[family(dst)]
	if len(sources) == 0 {
		return 0, errors.New("the NIC has no source address of that family")
	}
	p, err := n.pings.begin(sources[0], dst)
	if err != nil {
		return 0, err
	}
	defer n.pings.end(p)
	go n.request(p)
	select {
	case r := <-p.result:
		return r.rtt, r.err
	case <-ctx.Done():
		return 0, contextError(ctx)
	case <-n.ctx.Done():
		return 0, fmt.Errorf("the NIC was removed: %w", netx.ErrNoRoute)
	}
}

// request sends p's echo request. It may wait for room in the link longer than
// p itself does.
func (n *NIC) request(p *ping) {
	defer n.pings.wrote(p)
	if !n.stack.enter() {
		return
	}
	defer n.stack.wg.Done()
	n.writeEcho(&echo{src: p.key.local.Addr(), dst: p.key.remote.Addr(), id: p.key.local.Port(), seq: p.key.remote.Port(), data: p.data[:]})
}

// ping is one echo request that waits for its reply. Its key has the
// identifier for the local port and the sequence number for the remote one, so
// that an ICMP error names it as it names a flow.
type ping struct {
	key    flowKey
	data   [pingDataLen]byte
	sent   time.Time
	result chan pingResult // capacity 1; the first result counts

	written, ended bool // guarded by the table's mu
}

type pingResult struct {
	rtt time.Duration
	err error
}

func (p *ping) tell(r pingResult) {
	select {
	case p.result <- r:
	default:
	}
}

// pingTable holds the pings of one NIC that wait, and tells them what came. No
// other NIC's packets reach it: so no other connector can answer.
type pingTable struct {
	drops *drops.Counter

	mu      sync.Mutex
	next    uint32 // identifier and sequence number of the next; begins anywhere
	waiting map[flowKey]*ping
	stuck   int // requests of pings that have ended, which wait for room in the link
}

func (t *pingTable) init(counter *drops.Counter) {
	t.drops = counter
	t.next = rand.Uint32()
}

// begin enters a ping that is to be sent now. Each pair of identifier and
// sequence number returns after 2^32 others.
func (t *pingTable) begin(src, dst netip.Addr) (*ping, error) {
	p := &ping{result: make(chan pingResult, 1)}
	binary.NativeEndian.PutUint64(p.data[:], rand.Uint64())
	binary.NativeEndian.PutUint64(p.data[8:], rand.Uint64())
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting)+t.stuck >= maxPings {
		return nil, errTooManyPings
	}
	t.next++
	p.key = pingKey(src, dst, uint16(t.next>>16), uint16(t.next))
	if t.waiting == nil {
		t.waiting = make(map[flowKey]*ping)
	}
	t.waiting[p.key] = p
	p.sent = time.Now()
	return p, nil
}

// pingKey names a ping from src to dst.
func pingKey(src, dst netip.Addr, id, seq uint16) flowKey {
	proto := uint8(protoICMPv6)
	if src.Is4() {
		proto = protoICMPv4
	}
	return flowKey{proto: proto, local: netip.AddrPortFrom(src, id), remote: netip.AddrPortFrom(dst, seq)}
}

// end takes p out. Its request has its place until the link has taken it.
func (t *pingTable) end(p *ping) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.waiting, p.key)
	if p.ended = true; !p.written {
		t.stuck++
	}
	if len(t.waiting) == 0 {
		t.waiting = nil // a map keeps the memory of its largest size
	}
}

// wrote notes that p's request was written, or never will be.
func (t *pingTable) wrote(p *ping) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.written = true; p.ended {
		t.stuck--
	}
}

func (t *pingTable) find(key flowKey) *ping {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.waiting[key]
}

// answered takes a reply, and returns why it is nobody's.
func (t *pingTable) answered(e *echo) (why string) {
	p := t.find(pingKey(e.dst, e.src, e.id, e.seq))
	if p == nil || string(e.data) != string(p.data[:]) {
		return whyEchoUnknown
	}
	p.tell(pingResult{rtt: time.Since(p.sent)})
	return ""
}

// told takes an ICMP error about a ping, and returns why it is about none.
func (t *pingTable) told(e icmpError) (why string) {
	p := t.find(e.flow)
	if p == nil || e.mtu != 0 { // nothing is too narrow for what we send
		return whyICMPUnknown
	}
	err := e.err
	if errors.Is(err, netx.ErrRefused) {
		err = netx.ErrUnreachable // a ping has no port that could be refused
	}
	p.tell(pingResult{err: err})
	return ""
}

// abort ends the pings that match says yes to.
func (t *pingTable) abort(match func(local, remote netip.AddrPort) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, p := range t.waiting {
		if match == nil || match(key.local, key.remote) {
			p.tell(pingResult{err: errPingWithdrawn})
		}
	}
}
