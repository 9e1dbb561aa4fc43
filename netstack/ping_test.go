package netstack

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warrenmesh/warren/netstack/netx"
)

var (
	host4 = service4.Addr()
	host6 = service6.Addr()
)

// answerPings has the connector answer what answer returns nil for.
func (l *lab) answerPings(t testing.TB, cfg ForwardPingConfig) {
	t.Helper()
	if err := l.connector.ForwardPing(cfg); err != nil {
		t.Fatal(err)
	}
}

func allAnswer(context.Context, netip.Addr, netip.Addr, int) error { return nil }

func TestPing(t *testing.T) {
	l := newLab(t)
	type asked struct {
		src, dst netip.Addr
		size     int
	}
	seen := make(chan asked, 1)
	l.answerPings(t, ForwardPingConfig{Handler: func(_ context.Context, src, dst netip.Addr, size int) error {
		seen <- asked{src, dst, size}
		return nil
	}})
	for _, tc := range []asked{{source4, host4, pingDataLen}, {source6, host6, pingDataLen}} {
		rtt, err := l.nic.Ping(l.ctx, tc.dst)
		if err != nil || rtt <= 0 {
			t.Fatalf("pinging %s: %v, %v", tc.dst, rtt, err)
		}
		if got := <-seen; got != tc {
			t.Errorf("the connector was asked %v, want %v", got, tc)
		}
	}
	if n := l.nic.Flows(); n != 0 {
		t.Errorf("pings count as %d flows", n)
	}
	if l.nic.pings.waiting != nil {
		t.Errorf("%d pings are left", len(l.nic.pings.waiting))
	}
}

func TestPingLearnsTheTruth(t *testing.T) {
	l := newLab(t)
	for _, dst := range []netip.Addr{host4, host6} {
		if _, err := l.nic.Ping(l.ctx, dst); !errors.Is(err, netx.ErrUnreachable) {
			t.Errorf("without a handler: %v", err)
		}
	}
	for _, tc := range []struct{ cause, want error }{
		{netx.ErrUnreachable, netx.ErrUnreachable},
		{netx.ErrTimedOut, netx.ErrTimedOut},
		{context.DeadlineExceeded, netx.ErrTimedOut},
		{netx.ErrRefused, netx.ErrUnreachable},
		{errors.New("no such device"), netx.ErrUnreachable},
	} {
		l.answerPings(t, ForwardPingConfig{Handler: func(context.Context, netip.Addr, netip.Addr, int) error { return tc.cause }})
		for _, dst := range []netip.Addr{host4, host6} {
			if _, err := l.nic.Ping(l.ctx, dst); !errors.Is(err, tc.want) || netx.Classify(err) != tc.want {
				t.Errorf("%v at the connector is %v here, want %v", tc.cause, err, tc.want)
			}
		}
	}
}

func TestPingRefusesAddresses(t *testing.T) {
	l := newLab(t)
	for _, dst := range []string{"0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1", "fe80::1%eth0"} {
		if _, err := l.nic.Ping(l.ctx, netip.MustParseAddr(dst)); err == nil || netx.Classify(err) != nil {
			t.Errorf("pinging %s: %v", dst, err)
		}
	}
	if _, err := l.nic.Ping(l.ctx, netip.Addr{}); err == nil {
		t.Error("pinging no address worked")
	}
	l.answerPings(t, ForwardPingConfig{Handler: allAnswer})
	if _, err := l.nic.Ping(l.ctx, netip.MustParseAddr("::ffff:10.0.0.10")); err != nil {
		t.Errorf("pinging an IPv4-mapped address: %v", err)
	}
	if l.edge.ForwardPing(ForwardPingConfig{Handler: allAnswer}) == nil || l.connector.ForwardPing(ForwardPingConfig{}) == nil {
		t.Error("a forwarder of pings without a promiscuous stack, or a handler, was taken")
	}
}

// A ping ends with its context, its NIC, and its route.
func TestPingEnds(t *testing.T) {
	lost := errors.New("lost")
	for _, tc := range []struct {
		name string
		end  func(l *lab, cancel context.CancelCauseFunc)
		want error
	}{
		{"canceled", func(_ *lab, cancel context.CancelCauseFunc) { cancel(lost) }, lost},
		{"removed", func(l *lab, _ context.CancelCauseFunc) { l.nic.Remove() }, netx.ErrNoRoute},
		{"closed", func(l *lab, _ context.CancelCauseFunc) { l.edge.Close() }, netx.ErrNoRoute},
		{"withdrawn", func(l *lab, _ context.CancelCauseFunc) {
			if n := l.nic.AbortFlows(func(_, remote netip.AddrPort) bool { return remote.Addr() == host4 }); n != 0 {
				t.Errorf("%d flows were aborted", n)
			}
		}, netx.ErrNoRoute},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t)
			asked, ended := make(chan struct{}), make(chan struct{})
			l.answerPings(t, ForwardPingConfig{Handler: func(ctx context.Context, _, _ netip.Addr, _ int) error {
				close(asked)
				<-ctx.Done()
				close(ended)
				return nil
			}})
			ctx, cancel := context.WithCancelCause(l.ctx)
			defer cancel(nil)
			result := make(chan error, 1)
			go func() { _, err := l.nic.Ping(ctx, host4); result <- err }()
			<-asked
			tc.end(l, cancel)
			if err := <-result; !errors.Is(err, tc.want) {
				t.Errorf("the ping ended with %v, want %v", err, tc.want)
			}
			l.connector.Close() // ends the handler, and waits for it
			<-ended
		})
	}
}

// Nobody but the host that was asked, through the connector that was asked,
// with the data that was sent, can answer.
func TestForgedEchoReplies(t *testing.T) {
	for _, dst := range []netip.Addr{host4, host6} {
		r := newReplicas(t)
		sent := make(chan echo, 1)
		r.edgeEnd.setFilter(func(b []byte) int {
			e, why := parseEcho(b)
			if why != "" || e.reply {
				t.Errorf("the edge sent what is no echo request: %s", why)
			}
			sent <- e
			return 0
		})
		result := make(chan error, 1)
		go func() { _, err := r.nic.Ping(r.ctx, dst); result <- err }()
		request := <-sent
		genuine := *request.answer()
		other := netip.MustParseAddr("10.0.0.11")
		if dst.Is6() {
			other = netip.MustParseAddr("fd00:10::11")
		}
		forgeries := 0
		forge := func(end *wireEnd, change func(e *echo)) {
			e := genuine
			e.data = append([]byte(nil), e.data...)
			change(&e)
			forgeries++
			end.deliver(e.packet())
		}
		forge(r.rivalEnd, func(*echo) {}) // the very reply, from another replica
		forge(r.edgeEnd, func(e *echo) { e.id++ })
		forge(r.edgeEnd, func(e *echo) { e.seq++ })
		forge(r.edgeEnd, func(e *echo) { e.src = other })
		forge(r.edgeEnd, func(e *echo) { e.dst = other })
		forge(r.edgeEnd, func(e *echo) { e.data[0]++ })
		forge(r.edgeEnd, func(e *echo) { e.data = nil })
		forge(r.edgeEnd, func(e *echo) { e.data = append(e.data, 0) })
		if n := r.edge.drops.Count(whyEchoUnknown); n != uint64(forgeries) {
			t.Errorf("%d of %d forged replies were counted", n, forgeries)
		}
		// An error about it from another replica, and about another ping.
		b := request.packet()
		r.rivalEnd.deliver(unreachablePacket(quoteEcho(b), netx.ErrUnreachable))
		wrong := request
		wrong.seq++
		r.edgeEnd.deliver(unreachablePacket(quoteEcho(wrong.packet()), netx.ErrUnreachable))
		if n := r.edge.drops.Count(whyICMPUnknown); n != 2 {
			t.Errorf("%d of 2 forged errors were counted", n)
		}
		select {
		case err := <-result:
			t.Fatalf("the ping ended with %v before it was answered", err)
		default:
		}
		r.edgeEnd.deliver(genuine.packet())
		if err := <-result; err != nil {
			t.Errorf("the ping failed: %v", err)
		}
		r.edgeEnd.deliver(genuine.packet()) // late
		if n := r.edge.drops.Count(whyEchoUnknown); n != uint64(forgeries)+1 {
			t.Errorf("the late reply was not counted: %d", n)
		}
		// The edge answers no pings itself.
		r.edgeEnd.deliver((&echo{src: dst, dst: request.src, id: 1, seq: 1}).packet())
		if n := r.edge.drops.Count(whyProtocol); n != 1 {
			t.Errorf("an echo request to the edge was not counted: %d", n)
		}
	}
}

func TestPingTableIsBounded(t *testing.T) {
	l := newLab(t)
	ctx, cancel := context.WithCancel(l.ctx)
	l.edgeEnd.setFilter(func([]byte) int { return 0 })
	var pinging sync.WaitGroup
	for range maxPings {
		pinging.Go(func() { _, _ = l.nic.Ping(ctx, host4) })
	}
	for {
		l.nic.pings.mu.Lock()
		n := len(l.nic.pings.waiting)
		l.nic.pings.mu.Unlock()
		if n == maxPings {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if _, err := l.nic.Ping(l.ctx, host4); !errors.Is(err, errTooManyPings) {
		t.Errorf("one ping too many: %v", err)
	}
	cancel()
	pinging.Wait()
	if l.nic.pings.waiting != nil {
		t.Errorf("%d pings are left", len(l.nic.pings.waiting))
	}
}

func TestForwardedPingsAreBounded(t *testing.T) {
	l := newLab(t)
	release := make(chan struct{})
	var asked atomic.Int32
	l.answerPings(t, ForwardPingConfig{Pending: 2, PendingTotal: 3, Rate: 10, Handler: func(ctx context.Context, _, _ netip.Addr, _ int) error {
		asked.Add(1)
		<-release
		return nil
	}})
	at := func(last byte, seq uint16) []byte {
		return (&echo{src: source4, dst: netip.AddrFrom4([4]byte{10, 0, 0, last}), id: 1, seq: seq, data: []byte("x")}).packet()
	}
	replies := &capture{}
	l.connectorEnd.setFilter(replies.filter)
	for seq := range uint16(4) {
		l.connectorEnd.deliver(at(1, seq)) // two wait, two are too many
	}
	l.connectorEnd.deliver(at(2, 0)) // the third
	l.connectorEnd.deliver(at(3, 0)) // too many in all
	for range 100 {
		l.connectorEnd.deliver(at(4, 0)) // four of them are within the pace, or some more
	}
	drops := func(why string) uint64 { return l.connector.drops.Count(why) }
	if drops(whyPending) != 2 || drops(whyPendingAll) < 5 || drops(whyEchoRate) < 80 {
		t.Errorf("dropped %d for the destination, %d in all, %d for the pace", drops(whyPending), drops(whyPendingAll), drops(whyEchoRate))
	}
	if total := drops(whyPending) + drops(whyPendingAll) + drops(whyEchoRate); total != 103 {
		t.Errorf("%d of 103 were counted", total)
	}
	close(release)
	l.connector.Close()
	if n := asked.Load(); n != 3 {
		t.Errorf("the handler was asked %d times, want 3", n)
	}
	replies.mu.Lock()
	defer replies.mu.Unlock()
	if n := uint64(len(replies.pkts)); n < drops(whyPending)+drops(whyPendingAll) {
		t.Errorf("%d packets were answered", n)
	}
	if f := &l.connector.ping; f.pending != 0 || len(f.perDest) != 0 {
		t.Errorf("%d places are taken, %d destinations known", f.pending, len(f.perDest))
	}
}

func TestPingAllocations(t *testing.T) {
	var table pingTable
	s := newStack(t, Config{})
	table.init(&s.drops)
	p, err := table.begin(source4, host4)
	if err != nil {
		t.Fatal(err)
	}
	b := (&echo{src: host4, dst: source4, reply: true, id: p.key.local.Port(), seq: p.key.remote.Port(), data: p.data[:]}).packet()
	late := (&echo{src: host4, dst: source4, reply: true, id: 1, seq: p.key.remote.Port() + 1}).packet()
	for name, b := range map[string][]byte{"a reply": b, "a reply to nobody": late} {
		if n := testing.AllocsPerRun(100, func() {
			e, why := parseEcho(b)
			if why != "" {
				t.Fatal(why)
			}
			table.answered(&e)
			select {
			case <-p.result:
			default:
			}
		}); n > 0 {
			t.Errorf("taking %s allocates %v times", name, n)
		}
	}
}

func BenchmarkPing(b *testing.B) {
	l := newLab(b)
	l.answerPings(b, ForwardPingConfig{Handler: allAnswer, Rate: 1 << 30})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := l.nic.Ping(context.Background(), host4); err != nil {
			b.Fatal(err)
		}
	}
}
