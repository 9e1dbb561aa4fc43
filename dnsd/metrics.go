package dnsd

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// drop is the reason why a message or a connection got no answer.
type drop string

const (
	dropShort          drop = "short"                 // fewer bytes than a header
	dropResponse       drop = "response"              // not a query
	dropTooLong        drop = "too_long"              // a TCP query over maxQuery
	dropConns          drop = "connections"           // over MaxConns
	dropConnsPerSource drop = "connections_of_source" // over MaxConnsPerSource
	dropDraining       drop = "draining"
)

// dropCounts counts what got no answer.
type dropCounts struct {
	short, response, tooLong, conns, connsPerSource, draining atomic.Uint64
	udpRead, udpWrite, tcpAccept                              atomic.Uint64
	kernel                                                    atomic.Uint64 // of sockets that are closed
}

func (d *dropCounts) of(why drop) *atomic.Uint64 {
	switch why {
	case dropShort:
		return &d.short
	case dropResponse:
		return &d.response
	case dropTooLong:
		return &d.tooLong
	case dropConns:
		return &d.conns
	case dropConnsPerSource:
		return &d.connsPerSource
	}
	return &d.draining
}

func (d *dropCounts) count(why drop) { d.of(why).Add(1) }

// Drops reports what got no answer and why: the room, a reason out of a fixed
// set, and how often since the start.
func (s *Server) Drops(yield func(where, why string, n uint64)) {
	for _, why := range []drop{dropShort, dropResponse, dropTooLong, dropConns, dropConnsPerSource, dropDraining} {
		yield("dns", string(why), s.drops.of(why).Load())
	}
	yield("dns", "udp_read", s.drops.udpRead.Load())
	yield("dns", "udp_write", s.drops.udpWrite.Load())
	yield("dns", "tcp_accept", s.drops.tcpAccept.Load())
	kernel := s.drops.kernel.Load()
	s.mu.Lock()
	for _, e := range s.endpoints {
		kernel += kernelDrops(e.udp)
	}
	s.mu.Unlock()
	yield("dns", "socket_queue", kernel)
}

// queryTypes and queryRcodes are the values of the labels; what is not among
// them is "other", so that no client can make a label.
var (
	queryTypes = [...]struct {
		number uint16
		label  string
	}{
		{dns.TypeA, "A"}, {dns.TypeAAAA, "AAAA"}, {dns.TypeHTTPS, "HTTPS"}, {dns.TypeSOA, "SOA"}, {dns.TypeNS, "NS"},
		{dns.TypeTXT, "TXT"}, {dns.TypeCAA, "CAA"}, {dns.TypeMX, "MX"}, {dns.TypeCNAME, "CNAME"}, {dns.TypeSRV, "SRV"},
		{dns.TypeSVCB, "SVCB"}, {dns.TypeDS, "DS"}, {dns.TypeDNSKEY, "DNSKEY"}, {dns.TypePTR, "PTR"}, {dns.TypeANY, "ANY"},
		{dns.TypeAXFR, "AXFR"}, {dns.TypeIXFR, "IXFR"}, {dns.TypeNone, "other"},
	}
	// The dns package's own names have BADSIG for 16, which is BADVERS here.
	queryRcodes = [...]struct {
		number int
		label  string
	}{
		{dns.RcodeSuccess, "NOERROR"}, {dns.RcodeNameError, "NXDOMAIN"}, {dns.RcodeRefused, "REFUSED"}, {dns.RcodeFormatError, "FORMERR"},
		{dns.RcodeNotImplemented, "NOTIMP"}, {dns.RcodeBadVers, "BADVERS"}, {dns.RcodeServerFailure, "SERVFAIL"},
	}
	transportLabels = [...]string{overUDP: "udp", overTCP: "tcp"}
)

// zoneCounts are the counters of one zone, by type, rcode and transport.
type zoneCounts [len(queryTypes)][len(queryRcodes)][len(transportLabels)]atomic.Uint64

// queryCounts counts queries by zone. Zones are only ever those of a snapshot,
// and "" for what no zone answered.
type queryCounts struct {
	zones atomic.Pointer[map[string]*zoneCounts] // replaced whole

	mu sync.Mutex // guards replacing zones
}

// add counts one query; question has one element or none.
func (c *queryCounts) add(zone string, question []dns.Question, rcode int, over transport) {
	t := len(queryTypes) - 1
	if len(question) == 1 {
		for i := range queryTypes[:t] {
			if queryTypes[i].number == question[0].Qtype {
				t = i
				break
			}
		}
	}
	for i := range queryRcodes {
		if queryRcodes[i].number == rcode {
			c.zone(zone)[t][i][over].Add(1)
			return
		}
	}
}

// zone returns a zone's counters and makes them if they are new.
func (c *queryCounts) zone(name string) *zoneCounts {
	if m := c.zones.Load(); m != nil {
		if z := (*m)[name]; z != nil {
			return z
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	next := make(map[string]*zoneCounts)
	if m := c.zones.Load(); m != nil {
		if z := (*m)[name]; z != nil {
			return z
		}
		maps.Copy(next, *m)
	}
	z := new(zoneCounts)
	next[name] = z
	c.zones.Store(&next)
	return z
}

// keep forgets the counters of zones that keep does not name, so that zones
// that come and go do not pile up.
func (c *queryCounts) keep(names []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.zones.Load()
	if m == nil {
		return
	}
	next := make(map[string]*zoneCounts)
	for _, name := range append(names, "") {
		if z := (*m)[name]; z != nil {
			next[name] = z
		}
	}
	c.zones.Store(&next)
}

// queriesDesc is the metric of queries. Label zone is "" for what no zone of
// ours answered.
var queriesDesc = prometheus.NewDesc("warren_dns_queries_total", "DNS queries that were answered, by zone, type, response code and transport.",
	[]string{"zone", "type", "rcode", "proto"}, nil)

// Describe implements prometheus.Collector.
func (s *Server) Describe(descs chan<- *prometheus.Desc) { descs <- queriesDesc }

// Collect implements prometheus.Collector. Counters that are zero are left
// out.
func (s *Server) Collect(metrics chan<- prometheus.Metric) {
	counts := &s.answers.counts
	if snapshot := s.answers.feed.Zones(); snapshot != nil {
		counts.keep(snapshot.Zones())
	}
	m := counts.zones.Load()
	if m == nil {
		return
	}
	for name, z := range *m {
		for t := range z {
			for r := range z[t] {
				for over := range z[t][r] {
					if n := z[t][r][over].Load(); n > 0 {
						metrics <- prometheus.MustNewConstMetric(queriesDesc, prometheus.CounterValue, float64(n),
							name, queryTypes[t].label, queryRcodes[r].label, transportLabels[over])
					}
				}
			}
		}
	}
}
