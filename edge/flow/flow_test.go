package flow_test

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/warrenmesh/warren/edge/flow"
)

// A reader must never see half of an update: Network and Connector are always
// written together here, so they must always be read together.
func TestSnapshotIsOfOneMoment(t *testing.T) {
	f := flow.New(flow.Record{ID: 7, App: "db", Network: "0", Connector: "0"})
	var owner sync.WaitGroup
	owner.Go(func() {
		for i := range 2000 {
			name := fmt.Sprint(i)
			f.Update(func(r *flow.Record) { r.Network, r.Connector = name, name })
			f.BytesIn.Add(1)
		}
	})
	var before uint64
	for range 2000 {
		r := f.Snapshot()
		if r.Network != r.Connector {
			t.Fatalf("snapshot mixes two updates: network %q, connector %q", r.Network, r.Connector)
		}
		if r.BytesIn < before {
			t.Fatalf("bytes in went back from %d to %d", before, r.BytesIn)
		}
		before = r.BytesIn
	}
	owner.Wait()
	if r := f.Snapshot(); r.BytesIn != 2000 || r.ID != 7 || r.App != "db" {
		t.Errorf("at the end: %+v", r)
	}
}

func TestSnapshotIsACopy(t *testing.T) {
	f := flow.New(flow.Record{Why: "first", BytesIn: 3, BytesOut: 4})
	old := f.Snapshot()
	f.Update(func(r *flow.Record) {
		r.Why = "second"
		r.Endpoint = netip.MustParseAddrPort("10.0.0.10:5432")
		r.BytesIn = 99 // ignored: the counter holds it
	})
	f.BytesOut.Add(6)
	if old.Why != "first" || old.Endpoint.IsValid() || old.BytesIn != 3 || old.BytesOut != 4 {
		t.Errorf("the old snapshot changed: %+v", old)
	}
	if now := f.Snapshot(); now.Why != "second" || now.BytesIn != 3 || now.BytesOut != 10 {
		t.Errorf("the new snapshot: %+v", now)
	}
}

func TestDoneCountsOnce(t *testing.T) {
	f := flow.New(flow.Record{})
	first := time.Unix(1000, 0)
	f.Done(first, flow.StatusClientGone, "client aborted")
	f.Done(first.Add(time.Second), flow.StatusClosed, "closed")
	r := f.Snapshot()
	if r.Status != flow.StatusClientGone || r.Why != "client aborted" || !r.End.Equal(first) {
		t.Errorf("got %v %q at %v, want the first Done", r.Status, r.Why, r.End)
	}
}

func TestStatusInWords(t *testing.T) {
	seen := map[string]flow.Status{}
	for _, s := range []flow.Status{
		flow.StatusOpen, flow.StatusClosed, flow.StatusDenied, flow.StatusOriginGone, flow.StatusClientGone,
		flow.StatusRefused, flow.StatusUnreachable, flow.StatusTimeout, flow.StatusNoRoute, flow.StatusNoEndpoint,
		flow.StatusInternal,
	} {
		words := s.String()
		if other, twice := seen[words]; twice {
			t.Errorf("%d and %d are both %q", s, other, words)
		}
		if words == fmt.Sprint(int(s)) {
			t.Errorf("status %d has no words", s)
		}
		seen[words] = s
	}
	if got := flow.Status(777).String(); got != "777" {
		t.Errorf("an unknown status reads %q", got)
	}
}
