package link

// datagramTaker is a dispatcher that takes UDP as bytes, without a packet of
// gVisor's around them: netstack's. It takes what it can and keeps nothing of
// b; what it does not take is delivered like every other packet. wake, where
// not nil, is called behind the last packet of the batch.
type datagramTaker interface {
	DeliverDatagram(b []byte) (taken bool, wake interface{ Wake() })
}

// maxWakers is how many readers wait for the end of a batch; beyond that they
// are woken at once.
const maxWakers = 32

// wakers are the readers to wake.
type wakers struct {
	n    int
	list [maxWakers]interface{ Wake() }
}

// datagram offers b to a dispatcher that takes datagrams, and reports whether
// it took it.
func (m *merger) datagram(b []byte) bool {
	to, ok := m.to.(datagramTaker)
	if !ok {
		return false
	}
	taken, wake := to.DeliverDatagram(b)
	if wake == nil {
		return taken
	}
	if m.wakers.n == maxWakers {
		wake.Wake()
		return taken
	}
	m.wakers.list[m.wakers.n] = wake
	m.wakers.n++
	return taken
}

// wakeAll wakes those for whom something came.
func (m *merger) wakeAll() {
	for i := range m.wakers.n {
		m.wakers.list[i].Wake()
	}
}
