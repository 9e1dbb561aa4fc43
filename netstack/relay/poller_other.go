//go:build !linux

package relay

import "net"

// Poller waits for the input of kernel sockets whose streams are at rest.
// Here it cannot: their directions keep their goroutines.
type Poller struct{ crowds crowds }

// NewPoller makes a Poller.
func NewPoller() *Poller { return &Poller{} }

// Close ends the Poller.
func (*Poller) Close() {}

func (*Poller) add(*pipe, *net.TCPConn, int32) bool { return false }
func (*Poller) remove(*pipe)                        {}
