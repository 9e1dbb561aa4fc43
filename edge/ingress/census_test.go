package ingress_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warrenmesh/warren/edge/ingress"
)

// visitor is a TCP connection from wherever the test says.
type visitor struct {
	net.Conn
	from    netip.AddrPort
	far     net.Conn // the client's end
	aborted atomic.Bool
}

func newVisitor(from string) *visitor {
	near, far := net.Pipe()
	return &visitor{Conn: near, from: netip.MustParseAddrPort(from), far: far}
}

func (v *visitor) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(v.from) }
func (v *visitor) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(loopback) }
func (v *visitor) Abort()               { v.aborted.Store(true); _ = v.Close() }

// crowd is a TCP listener to which the test sends visitors. It works within
// synctest.
type crowd struct {
	t    *testing.T
	m    *moody
	s    *ingress.Server
	open []*visitor
}

func newCrowd(t *testing.T) *crowd {
	c := &crowd{t: t, m: &moody{answers: make(chan any), closed: make(chan struct{})}, s: newServer(t, echo)}
	c.s.Sockets = sockets{listen: func(string, string) (net.Listener, error) { return c.m, nil }}
	return c
}

func (c *crowd) serve(most, perSource int) {
	listen(c.t, c.s, ingress.Spec{App: "db", Network: "tcp", Addr: loopback, MaxFlows: most, MaxFlowsPerSource: perSource})
}

// comes sends a visitor and reports whether it was taken in. One that is not
// must have been aborted.
func (c *crowd) comes(from string) bool {
	v := newVisitor(from)
	c.m.answers <- v
	synctest.Wait()
	if v.aborted.Load() {
		return false
	}
	ask(c.t, v.far, "hello")
	c.open = append(c.open, v)
	return true
}

// goes ends the n oldest visitors' connections.
func (c *crowd) goes(n int) {
	n = min(n, len(c.open))
	for _, v := range c.open[:n] {
		v.far.Close()
	}
	c.open = c.open[n:]
	synctest.Wait()
}

// The connections of a listener are bounded, all together and for each source.
// Whoever leaves makes room for exactly one.
func TestTCPFlowsAreBounded(t *testing.T) {
	cases := []struct {
		name            string
		most, perSource int
		from            func(i int) string
		room            int
		why             string
	}{
		{"listener", 5, 2, func(i int) string { return fmt.Sprintf("198.51.100.%d:1000", i%250) }, 5, "ingress/table_full"},
		{"source", 50, 3, func(i int) string { return fmt.Sprintf("198.51.100.1:%d", 1000+i) }, 3, "ingress/source_full"},
		{"source of IPv6", 50, 3, func(i int) string { return fmt.Sprintf("[2001:db8::%x]:1000", i+1) }, 3, "ingress/source_full"},
		{"a quarter by default", 16, 0, func(i int) string { return fmt.Sprintf("198.51.100.1:%d", 1000+i) }, 4, "ingress/source_full"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCrowd(t)
				c.serve(tc.most, tc.perSource)
				came, refused := 0, uint64(0)
				come := func(n int) (in int) {
					for range n {
						if c.comes(tc.from(came)) {
							in++
						} else {
							refused++
						}
						came++
					}
					return in
				}
				if in := come(tc.room + 3); in != tc.room {
					t.Errorf("%d came in, want %d", in, tc.room)
				}
				for leave := 1; leave <= tc.room; leave++ {
					c.goes(leave)
					if in := come(leave + 1); in != leave {
						t.Errorf("%d came in after %d had left", in, leave)
					}
				}
				for _, v := range c.open {
					ask(t, v.far, "still here")
				}
				if got := drops(c.s); got[tc.why] != refused || len(got) != 1 {
					t.Errorf("drops %v, want %d of %s", got, refused, tc.why)
				}
				c.goes(len(c.open))
			})
		})
	}
}

// One source that has all it may have keeps nobody else out.
func TestTCPSourceAtItsBoundLeavesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t)
		c.serve(8, 2)
		for port := range 10 {
			c.comes(fmt.Sprintf("198.51.100.1:%d", 1000+port))
		}
		for i := range 6 {
			if !c.comes(fmt.Sprintf("203.0.113.%d:1000", i+1)) {
				t.Errorf("stranger %d was kept out", i)
			}
		}
		c.goes(len(c.open))
	})
}

// A reload moves the bound of a listener that stays, and forgets no flow.
func TestReloadKeepsTheCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t)
		c.serve(4, 4)
		for i := range 4 {
			c.comes(fmt.Sprintf("198.51.100.1:%d", 1000+i))
		}
		c.serve(2, 2)
		c.goes(2)
		if c.comes("198.51.100.1:2000") {
			t.Error("two flows were there, two are allowed, a third came in")
		}
		if c.goes(1); !c.comes("198.51.100.1:2001") {
			t.Error("no room after one of two had left")
		}
		c.serve(3, 3)
		if !c.comes("198.51.100.1:2002") || c.comes("198.51.100.1:2003") {
			t.Error("a third flow belongs in, a fourth does not")
		}
		c.goes(len(c.open))
	})
}

// What the kernel's client sees beyond the bound is a RST.
func TestTCPBeyondTheBoundIsReset(t *testing.T) {
	s := newServer(t, echo)
	at := listen(t, s, ingress.Spec{App: "db", Network: "tcp", Addr: loopback, MaxFlows: 1})["db"]
	first := dial(t, "tcp", at)
	ask(t, first, "one")
	second, err := net.Dial("tcp", at.String())
	if err == nil { // the RST may come before Dial returns
		defer second.Close()
		_ = second.SetDeadline(time.Now().Add(20 * time.Second)) // a hung test, not a measure
		_, err = second.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the second connection ended with %v, want a reset", err)
	}
	ask(t, first, "two")
	if got := drops(s); got["ingress/table_full"] != 1 {
		t.Errorf("drops %v", got)
	}
	first.Close()
	if err := s.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}
