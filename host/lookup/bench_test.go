package lookup

import (
	"context"
	"fmt"
	"net"
	"testing"

	"github.com/miekg/dns"
)

// BenchmarkLookup is the cost of one lookup, both families, without a network:
// of two addresses, and of the most that a reply may hold.
func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{2, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var records []string
			for i := range n {
				records = append(records, fmt.Sprintf("x.example. 60 IN A 10.0.%d.%d", i>>8, i&255))
			}
			reply := pack(zone(&testing.T{}, "", records...)(new(dns.Msg).SetQuestion("x.example.", dns.TypeA)))[2:]
			none := pack(zone(&testing.T{}, "", records...)(new(dns.Msg).SetQuestion("x.example.", dns.TypeAAAA)))[2:]
			r := New(Deps{Dial: func(context.Context, string, string) (net.Conn, error) {
				return struct{ net.Conn }{&canned{rest: reply, other: none, stream: true}}, nil
			}})
			b.ReportAllocs()
			for b.Loop() {
				if addrs, _, err := r.Lookup(b.Context(), "x.example."); err != nil || len(addrs) != min(n, MaxAddrs) {
					b.Fatal(addrs, err)
				}
			}
		})
	}
}
