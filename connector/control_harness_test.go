package connector

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/connector/state"
	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/memnet"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

// fakeControl is the control port of an edge, as edge/enroll has it: a sync is
// answered at once where the grant is another, else when it changes, or after
// wire.HoldSync.
type fakeControl struct {
	mu      sync.Mutex
	answer  wire.SyncAnswer
	changed chan struct{} // closed with each change
	refusal *wire.Refusal // of every sync; nil: none
	refuse  func(wire.KeyRequest) *wire.Refusal
	ahead   time.Duration // how far this edge's clock is ahead
	dialErr error
	slow    time.Duration // before an answer
	silent  bool          // dials get no answer
	raw     string        // what every request is answered with, where it is not empty
	stall   bool          // and then nothing, not even an end

	current wgtypes.Key // of who syncs; only through a real tunnel

	work wire.WorkAnswer // revision 0: there is none

	syncs []wire.SyncRequest
	asked []wire.WorkRequest
	keys  []wgtypes.Key // those that were registered
	dials int
	open  map[net.Conn]bool
}

func newFakeControl() *fakeControl {
	return &fakeControl{
		changed: make(chan struct{}),
		open:    make(map[net.Conn]bool),
		answer:  wire.SyncAnswer{Revision: 1, Grant: wire.Grant{Name: "berlin-1", Network: "berlin", Routes: prefixes("10.0.0.0/8")}},
	}
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// change changes the grant.
func (c *fakeControl) change(f func(g *wire.Grant)) {
	c.set(func() {
		f(&c.answer.Grant)
		c.answer.Revision++
	})
	synctest.Wait()
}

// set changes anything, and wakes who waits.
func (c *fakeControl) set(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *fakeControl) dial(ctx context.Context) (net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dials++
	if c.silent {
		c.mu.Unlock()
		<-ctx.Done()
		c.mu.Lock()
		return nil, ctx.Err()
	}
	if c.dialErr != nil {
		return nil, c.dialErr
	}
	near, far := memnet.Pipe()
	c.open[far] = true
	go c.serve(far)
	return near, nil
}

// promote ends a change of key, where key is the next one: the one before is
// dropped.
func (c *fakeControl) promote(key wgtypes.Key, drop func(old wgtypes.Key)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == key {
		return
	}
	if c.current != (wgtypes.Key{}) {
		drop(c.current)
		c.answer.Grant.Rotate = false
		c.answer.Revision++
	}
	c.current = key
}

// hangUp ends all connections.
func (c *fakeControl) hangUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		_ = conn.Close()
	}
}

// serve answers on one connection until it ends.
func (c *fakeControl) serve(conn net.Conn) {
	gone := make(chan struct{})
	requests, more := make(chan *http.Request, 8), make(chan struct{}, 1)
	go func() {
		defer close(gone)
		in := bufio.NewReader(conn)
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			requests <- r
			select {
			case more <- struct{}{}:
			default:
			}
		}
	}()
	defer func() {
		_ = conn.Close()
		<-gone
		c.mu.Lock()
		delete(c.open, conn)
		c.mu.Unlock()
	}()
	for {
		select {
		case <-gone:
			return
		case r := <-requests:
			next := nextRequest{more, func() bool { return len(requests) > 0 }}
			if !c.reply(conn, r, gone, next) {
				go func() { // the reader may have another
					for {
						select {
						case <-requests:
						case <-gone:
							return
						}
					}
				}()
				return
			}
		}
	}
}

// nextRequest tells whether the connector has sent another request already.
type nextRequest struct {
	came  <-chan struct{} // perhaps
	there func() bool
}

func (c *fakeControl) reply(conn net.Conn, r *http.Request, gone <-chan struct{}, next nextRequest) bool {
	c.mu.Lock()
	raw := c.raw
	c.mu.Unlock()
	if raw != "" {
		_, _ = io.WriteString(conn, raw)
		if c.stall {
			<-gone
		}
		return false
	}
	var answer any
	var refusal *wire.Refusal
	switch r.URL.Path {
	case wire.PathSync:
		answer, refusal = c.sync(r, gone)
	case wire.PathKey:
		answer, refusal = c.key(r)
	case wire.PathWork:
		answer, refusal = c.works(r, gone, next)
	default:
		refusal = wire.Refuse(wire.CodeUnknown, "no %s here", r.URL.Path)
	}
	status := http.StatusOK
	if refusal != nil {
		answer, status = refusal, http.StatusForbidden
	}
	body, _ := json.Marshal(answer)
	response := &http.Response{StatusCode: status, ProtoMajor: 1, ProtoMinor: 1, ContentLength: int64(len(body)), Body: io.NopCloser(bytes.NewReader(body))}
	return response.Write(conn) == nil
}

func (c *fakeControl) sync(r *http.Request, gone <-chan struct{}) (any, *wire.Refusal) {
	var request wire.SyncRequest
	if err := wire.Decode(r.Body, &request); err != nil {
		return nil, wire.Refuse(wire.CodeBadRequest, "%v", err)
	}
	c.mu.Lock()
	slow := c.slow
	c.mu.Unlock()
	select {
	case <-time.After(slow):
	case <-gone:
	}
	timer := time.NewTimer(wire.HoldSync)
	defer timer.Stop()
	c.mu.Lock()
	c.syncs = append(c.syncs, request)
	for due := false; ; {
		answer, refusal, changed := c.answer, c.refusal, c.changed
		answer.Time = time.Now().Add(c.ahead)
		c.mu.Unlock()
		if due || refusal != nil || request.Revision != answer.Revision {
			return answer, refusal
		}
		select {
		case <-changed:
		case <-timer.C:
			due = true
		case <-gone:
			due = true
		}
		c.mu.Lock()
	}
}

// works answers at once where the work is another, else when it changes, when
// the next request comes, or after wire.HoldWork.
func (c *fakeControl) works(r *http.Request, gone <-chan struct{}, next nextRequest) (any, *wire.Refusal) {
	var request wire.WorkRequest
	if err := wire.DecodeWork(r.Body, &request); err != nil {
		return nil, wire.Refuse(wire.CodeBadRequest, "%v", err)
	}
	timer := time.NewTimer(wire.HoldWork)
	defer timer.Stop()
	c.mu.Lock()
	c.asked = append(c.asked, request)
	for due := next.there(); ; {
		answer, refusal, changed := c.work, c.refusal, c.changed
		c.mu.Unlock()
		switch {
		case refusal != nil:
			return nil, refusal
		case answer.Revision == 0:
			return nil, wire.Refuse(wire.CodeNotAllowed, "there is no work")
		case answer.Revision != request.Revision:
			return answer, nil
		case due:
			return wire.WorkAnswer{Revision: answer.Revision}, nil
		}
		select {
		case <-changed:
		case <-next.came:
			due = next.there()
		case <-timer.C:
			due = true
		case <-gone:
			due = true
		}
		c.mu.Lock()
	}
}

func (c *fakeControl) key(r *http.Request) (any, *wire.Refusal) {
	var request wire.KeyRequest
	if err := wire.Decode(r.Body, &request); err != nil {
		return nil, wire.Refuse(wire.CodeBadRequest, "%v", err)
	}
	c.mu.Lock()
	refuse := c.refuse
	c.mu.Unlock()
	if refuse != nil { // it may sleep, and a bubble's clock stands still for who waits for a lock
		if refusal := refuse(request); refusal != nil {
			return nil, refusal
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keys = append(c.keys, request.PublicKey.Key)
	return struct{}{}, nil
}

// seen returns the syncs that came.
func (c *fakeControl) seen() []wire.SyncRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]wire.SyncRequest(nil), c.syncs...)
}

// last returns the last report.
func (c *fakeControl) last(t *testing.T) wire.Report {
	t.Helper()
	all := c.seen()
	if len(all) == 0 {
		t.Fatal("no sync came")
	}
	return all[len(all)-1].Report
}

func (c *fakeControl) registered() []wgtypes.Key {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]wgtypes.Key(nil), c.keys...)
}

// control gives the edge with that key a control port.
func (b *bench) control(edge wgtypes.Key) *fakeControl {
	c := newFakeControl()
	if b.tunnel.controls == nil {
		b.tunnel.controls = make(map[netip.Addr]*fakeControl)
	}
	b.tunnel.controls[tunnel.OverlayAddr(edge)] = c
	return c
}

// declare adds an edge to the spec, and gives it a control port.
func (b *bench) declare(url, addr string) *fakeControl {
	b.t.Helper()
	u, err := ParseEdgeURL(url)
	if err != nil {
		b.t.Fatal(err)
	}
	key := newKey(b.t).PublicKey()
	b.resolver.set(u.Host, addr)
	b.spec.Edges = append(b.spec.Edges, EdgeSpec{PublicKey: key, URLs: []EdgeURL{u}})
	return b.control(key)
}

// enrolledEdge puts an edge into the state directory, in place of a declared
// one, and gives it a control port.
func (b *bench) enrolledEdge(url string, confirmed bool) (wgtypes.Key, *fakeControl) {
	b.t.Helper()
	key := newKey(b.t).PublicKey()
	dir, err := state.Open(b.spec.StateDir)
	if err != nil {
		b.t.Fatal(err)
	}
	defer dir.Close()
	if len(dir.Edges()) == 0 {
		b.spec.Edges = nil
		if _, _, err := dir.Key(); err != nil {
			b.t.Fatal(err)
		}
	}
	err = dir.SaveEdge(state.Edge{
		PublicKey: wire.Key{Key: key}, URLs: []string{url}, Name: "berlin-1", Network: "berlin", TokenID: "0102030405060708", Confirmed: confirmed,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return key, b.control(key)
}

// remembered returns what the state directory holds of the edge.
func (b *bench) remembered(edge wgtypes.Key) (found state.Edge) {
	b.t.Helper()
	edges, err := state.Look(b.spec.StateDir)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, e := range edges {
		if e.PublicKey.Key == edge {
			return e
		}
	}
	b.t.Fatal("the edge is not remembered")
	return found
}
