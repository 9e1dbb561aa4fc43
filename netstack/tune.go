package netstack

import (
	"errors"
	"fmt"
	oldrand "math/rand"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// Tuning. Buffer sizes are limits, not allocations: an idle conn holds none.
const (
	tcpReceiveMin, tcpReceiveDefault, tcpReceiveMax = 4 << 10, 512 << 10, 16 << 20 // half of it is advertised
	tcpSendMin, tcpSendDefault, tcpSendMax          = 4 << 10, 256 << 10, 8 << 20  // grows with the congestion window

	// A stack that is Small. A message of control has at most 256 KiB.
	smallDefault, smallMax = 64 << 10, 256 << 10

	// edgeTimeWait is short because the edge's ports are the scarce thing:
	// 60 s would allow 825 connects a second to one address. It cannot be
	// zero: late segments of the old flow must meet TIME_WAIT, not a new one.
	edgeTimeWait = time.Second

	// orphanTimeout is how long a conn that its owner closed waits for the
	// peer's FIN.
	orphanTimeout = 20 * time.Second

	// keepalive finds a peer that vanished while the tunnel stayed up (a
	// kernel router's origin); a connector or an edge that dies is found
	// within seconds by the tunnel itself.
	keepaliveIdle     = 5 * time.Minute
	keepaliveInterval = 30 * time.Second
	keepaliveCount    = 4

	// firstPort to lastPort are the local ports of dialled flows.
	firstPort, lastPort = 16384, 65535
)

// Loss recovery and congestion control. Measured with integration/bench and
// iperf3 over three namespaces on two processors that did little else. Rates in
// Gbit/s; s/GB is the processor time of the edge, which sends:
//
//	                                     SACK cubic   RACK cubic   RACK reno
//	20 ms and 0.1 % loss, 8 streams up   0.17         0.19         0.18
//	the same down                        0.16         0.14         0.15
//	no delay, 8 streams up               1.1 - 1.9    1.7 - 2.6    1.6 - 1.7
//	the same, s/GB                       3.8          2.2 - 2.6    2.5
//
// Eight streams without a delay lose, too: what they may have in flight is more
// than the far end's socket holds. SACK's way through it (RFC 6675) walks
// everything in flight for each acknowledgement. On a machine that others kept
// busy RACK began two to four recoveries for each loss, and one stream over the
// path of 20 ms had 0.6 - 2.4 MB/s with RACK and CUBIC, 1.6 - 2.7 with SACK.
//
// gVisor's CUBIC may close the window for ever, so it is Reno. After timeouts
// one upon the other its W_max is about 1, and until K has passed W_cubic(t) is
// less; getCwnd then takes the window from 2 to 1 and from 1 to 0 packets, where
// RFC 9438 section 4.4 never lets it shrink. With 0 nothing is sent, no timer
// runs, and the flow stands still: so did a few in a hundred after ten seconds of
// loss (integration.TestPathMTU).
const (
	lossRecovery      = tcpip.TCPRACKLossDetection // RFC 8985
	congestionControl = tcpip.CongestionControlOption("reno")
)

// tune sets the options of a fresh stack.
func tune(gv *stack.Stack, cfg Config) error {
	sack := tcpip.TCPSACKEnabled(true)
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	delay := tcpip.TCPDelayEnabled(false)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcpReceiveMin, Default: tcpReceiveDefault, Max: tcpReceiveMax}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcpSendMin, Default: tcpSendDefault, Max: tcpSendMax}
	linger := tcpip.TCPLingerTimeoutOption(orphanTimeout)
	timeWait := tcpip.TCPTimeWaitTimeoutOption(edgeTimeWait)
	reuse := tcpip.TCPTimeWaitReuseGlobal
	recovery, control := lossRecovery, congestionControl
	if cfg.Small {
		receive.Default, receive.Max = smallDefault, smallMax
		send.Default, send.Max = smallDefault, smallMax
	}
	if cfg.Promiscuous {
		// A SYN that meets TIME_WAIT goes only to a listener; a forwarder is
		// none, so the SYN would vanish and the dial stall for a second.
		timeWait = 0
	}
	options := []tcpip.SettableTransportProtocolOption{&sack, &moderate, &delay, &receive, &send, &linger, &timeWait, &reuse, &recovery, &control}
	for _, option := range options {
		if err := gv.SetTransportProtocolOption(tcp.ProtocolNumber, option); err != nil {
			return fmt.Errorf("setting %T: %s", option, err)
		}
	}
	if err := gv.SetPortRange(firstPort, lastPort); err != nil {
		return errors.New(err.String())
	}
	return nil
}

// tuneTCP sets what belongs to one endpoint. Without DF a segment that the
// path has become too small for is fragmented instead of lost (the packets
// then also carry an IP id, which reassembly needs).
func tuneTCP(ep tcpip.Endpoint) {
	tuneMTU(ep)
	idle := tcpip.KeepaliveIdleOption(keepaliveIdle)
	interval := tcpip.KeepaliveIntervalOption(keepaliveInterval)
	ep.SetSockOpt(&idle)
	ep.SetSockOpt(&interval)
	ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepaliveCount)
	ep.SocketOptions().SetKeepAlive(true)
}

// tuneMTU turns path MTU discovery off. With it gVisor sets DF and with DF an
// IP id of 0 in every fragment, so that fragments of two datagrams between
// the same hosts would be taken for one.
func tuneMTU(ep tcpip.Endpoint) {
	ep.SetSockOptInt(tcpip.MTUDiscoverOption, int(tcpip.PMTUDiscoveryDont))
}

// networkProtocol returns gVisor's number of the address's family.
func networkProtocol(is4 bool) tcpip.NetworkProtocolNumber {
	if is4 {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

// rand2 is a generator of the old package over the runtime's source.
func rand2() *oldrand.Rand { return oldrand.New(randSource{}) }
