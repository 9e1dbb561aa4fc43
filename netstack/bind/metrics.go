package bind

import (
	"sync/atomic"
)

// Reasons for which a datagram is dropped; labels of Drops.
const (
	whyClosed      = "closed"              // sent while the Bind is closed
	whyEndpoint    = "foreign_endpoint"    // an Endpoint of another Bind
	whyFamily      = "family"              // no socket of the address family
	whyTooLarge    = "too_large"           // EMSGSIZE
	whyUnreachable = "unreachable"         // no route, a prohibiting one, or the interface is down
	whyFirewall    = "firewall"            // EPERM
	whyNoBuffers   = "no_buffers"          // ENOBUFS, ENOMEM
	whyInvalid     = "invalid"             // EINVAL and addresses that cannot be sent to
	whyBufferFull  = "send_buffer_full"    // no room within Config.SendWait
	whyReopening   = "reopening"           // the socket died and is not back yet
	whySendOther   = "send_failed"         // an error that none of the others names
	whyTruncated   = "truncated"           // received larger than the buffer
	whyUnwanted    = "handshake_unwanted"  // received a handshake's first message where Config.Answer says no
	whyFlood       = "handshake_flood"     // received more handshake messages from a source than its share
	whyKernel      = "receive_buffer_full" // the kernel's own count
)

// whys is every reason that Bind counts itself.
var whys = [...]string{
	whyClosed, whyEndpoint, whyFamily, whyTooLarge, whyUnreachable, whyFirewall,
	whyNoBuffers, whyInvalid, whyBufferFull, whyReopening, whySendOther, whyUnwanted,
	whyFlood, whyTruncated,
}

// counts is what a Bind counts; one for the whole life of a Bind.
type counts struct {
	rxDatagrams, rxBytes, rxCalls atomic.Uint64
	txDatagrams, txBytes, txCalls atomic.Uint64
	rxMessages                    atomic.Uint64
	txMessages, refused           atomic.Uint64
	rxErrors, reopened            atomic.Uint64
	kernelDrops                   atomic.Uint64 // of sockets that are gone
	drops                         [len(whys)]atomic.Uint64
}

func (c *counts) drop(why string, n int) {
	for i, w := range whys {
		if w == why {
			c.drops[i].Add(uint64(n))
			return
		}
	}
}

// sent counts a call that the kernel took messages from.
func (c *counts) sent(messages, datagrams, bytes int) {
	c.txMessages.Add(uint64(messages))
	c.txDatagrams.Add(uint64(datagrams))
	c.txBytes.Add(uint64(bytes))
	c.txCalls.Add(1)
}

// Stats is what a Bind has done since New. Bytes are UDP payload.
type Stats struct {
	RxDatagrams, RxBytes, RxCalls uint64 // RxCalls: system calls that returned datagrams
	TxDatagrams, TxBytes, TxCalls uint64 // TxCalls: system calls that took datagrams
	RxMessages                    uint64 // what the kernel handed over, of one datagram or several
	TxMessages                    uint64 // what the kernel took, of one datagram or several
	TxRefused                     uint64 // messages that could not be segmented and went one by one
	RxErrors                      uint64 // receive errors that were survived
	Reopened                      uint64 // sockets that died and were replaced
}

// Stats returns the counters.
func (b *Bind) Stats() Stats {
	c := &b.counts
	return Stats{
		RxDatagrams: c.rxDatagrams.Load(), RxBytes: c.rxBytes.Load(), RxCalls: c.rxCalls.Load(),
		TxDatagrams: c.txDatagrams.Load(), TxBytes: c.txBytes.Load(), TxCalls: c.txCalls.Load(),
		RxMessages: c.rxMessages.Load(), TxMessages: c.txMessages.Load(), TxRefused: c.refused.Load(),
		RxErrors: c.rxErrors.Load(), Reopened: c.reopened.Load(),
	}
}

// Drops calls yield for every reason for which datagrams have been dropped
// since New, with how many. where is "bind".
func (b *Bind) Drops(yield func(where, why string, n uint64)) {
	for i, why := range whys {
		if n := b.counts.drops[i].Load(); n > 0 {
			yield("bind", why, n)
		}
	}
	// Under mu, or a socket closed in between would count twice or not at all.
	b.mu.Lock()
	kernel := b.counts.kernelDrops.Load()
	if g := b.current.Load(); g != nil {
		for _, s := range g.sockets() {
			kernel += s.kernel.Load().dropped()
		}
	}
	b.mu.Unlock()
	if kernel > 0 {
		yield("bind", whyKernel, kernel)
	}
}
