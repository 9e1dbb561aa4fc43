package ingress

import "sync/atomic"

// Why something that came in was not served, as it appears in
// warren_drops_total{where="ingress",why=…}.
const (
	DropNoDescriptor  = "accept_no_descriptor" // a connection had to wait: the process is out of file descriptors
	DropNoMemory      = "accept_no_memory"     // a connection had to wait: the kernel is out of memory
	DropAcceptFailed  = "accept_failed"        // a connection was lost for another reason
	DropTableFull     = "table_full"           // the listener has MaxFlows already
	DropSourceFull    = "source_full"          // the client's source has MaxFlowsPerSource already
	DropDenied        = "denied"               // a datagram of a client that may not begin a session
	DropSessionFull   = "session_full"         // the session holds enough unread datagrams
	DropQueueFull     = "queue_full"           // all sessions together hold enough unread datagrams
	DropRetired       = "retired"              // a datagram of no session at a listener that takes no new ones
	DropBadSource     = "bad_source"           // a source that cannot be answered
	DropReceiveFailed = "receive_failed"       // the socket's read failed
)

var dropReasons = [...]string{
	DropNoDescriptor, DropNoMemory, DropAcceptFailed, DropTableFull, DropSourceFull,
	DropDenied, DropSessionFull, DropQueueFull, DropRetired, DropBadSource, DropReceiveFailed,
}

// counters has one number for each reason.
type counters [len(dropReasons)]atomic.Uint64

func (c *counters) drop(why string) {
	for i, reason := range dropReasons {
		if reason == why {
			c[i].Add(1)
			return
		}
	}
}

// Drops yields what was dropped since the start, by reason.
func (s *Server) Drops(yield func(where, why string, n uint64)) {
	for i, why := range dropReasons {
		yield("ingress", why, s.counts[i].Load())
	}
}
