package observe

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/warrenmesh/warren/edge/flow"
)

func newObserver(t *testing.T) *Observer {
	t.Helper()
	return &Observer{Table: new(Table), Metrics: NewMetrics(Build{Version: "v1", GoVersion: "go1"})}
}

func newFlow(id uint64, app string) *flow.Flow {
	return flow.New(flow.Record{ID: id, App: app, Proto: "tcp", Start: epoch,
		Client: netip.MustParseAddrPort("198.51.100.7:40000")})
}

func ids(records []flow.Record) []uint64 {
	var list []uint64
	for _, r := range records {
		list = append(list, r.ID)
	}
	return list
}

func TestEntryLivesFromBeginToEnd(t *testing.T) {
	o := newObserver(t)
	disk := &stuck{entered: make(chan struct{}, 1), release: make(chan struct{})}
	close(disk.release)
	o.Log = newFlowLog(disk, "", quiet())

	f := newFlow(1, "db")
	entry := o.Begin(f, nil)
	entry.Connected(3 * time.Millisecond)
	f.BytesIn.Add(100)
	f.BytesOut.Add(2022)
	series(t, o.Metrics) // what one scrape has counted, the next must not count again
	f.BytesIn.Add(11)
	if got := series(t, o.Metrics); got[`warren_flow_bytes_total{app="db",direction="in"}`] != 111 ||
		got[`warren_flow_bytes_total{app="db",direction="out"}`] != 2022 || got[`warren_active_flows{app="db"}`] != 1 {
		t.Errorf("the open flow is not counted live: %v", got)
	}
	if r, total := o.Table.List(nil, 10); total != 1 || r[0].BytesIn != 111 || r[0].BytesOut != 2022 {
		t.Errorf("the open flow is listed as %+v", r)
	}
	f.Done(epoch.Add(time.Second), flow.StatusClientGone, "client aborted")
	entry.End()
	entry.End()
	closeLog(t, o.Log)
	if o.Table.Len() != 0 {
		t.Error("the ended flow is still listed")
	}
	got := series(t, o.Metrics)
	if got[`warren_active_flows{app="db"}`] != 0 || got[`warren_flows_total{app="db",status="499"}`] != 1 ||
		got[`warren_connect_seconds_count{app="db"}`] != 1 || got[`warren_connect_seconds_bucket{app="db",le="0.0025"}`] != 0 ||
		got[`warren_connect_seconds_bucket{app="db",le="0.005"}`] != 1 {
		t.Errorf("the ended flow is counted as %v", got)
	}
	logged := lines(t, disk.buf.Bytes())
	if len(logged) != 1 || logged[0]["status"] != 499.0 || logged[0]["bytes_in"] != 111.0 || logged[0]["bytes_out"] != 2022.0 {
		t.Errorf("the ended flow is logged as %v", logged)
	}
}

func TestEndWithoutAVerdictIsAnInternalFailure(t *testing.T) {
	o := newObserver(t)
	o.Begin(newFlow(1, "db"), nil).End()
	if got := series(t, o.Metrics)[`warren_flows_total{app="db",status="999"}`]; got != 1 {
		t.Errorf("counted %v times as 999, want once", got)
	}
}

func TestTableList(t *testing.T) {
	o := newObserver(t)
	for _, id := range []uint64{5, 3, 9, 1, 7} {
		app := "web"
		if id > 4 {
			app = "db"
		}
		o.Begin(newFlow(id, app), nil)
	}
	tests := []struct {
		name  string
		match func(flow.Record) bool
		limit int
		want  []uint64
		total int
	}{
		{"all, oldest first", nil, 10, []uint64{1, 3, 5, 7, 9}, 5},
		{"the output is bounded, the total is not", nil, 2, []uint64{1, 3}, 5},
		{"filtered before it is bounded", func(r flow.Record) bool { return r.App == "db" }, 2, []uint64{5, 7}, 3},
		{"nothing wanted", nil, 0, nil, 5},
		{"nothing matches", func(flow.Record) bool { return false }, 10, nil, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			records, total := o.Table.List(test.match, test.limit)
			if diff := cmp.Diff(test.want, ids(records)); diff != "" || total != test.total {
				t.Errorf("total %d, want %d; ids differ (-want +got):\n%s", total, test.total, diff)
			}
		})
	}
}

func TestTableKill(t *testing.T) {
	o := newObserver(t)
	why := errors.New("killed by an operator")
	ctxs := make(map[uint64]context.Context)
	for id := range uint64(4) {
		ctx, cancel := context.WithCancelCause(t.Context())
		ctxs[id] = ctx
		o.Begin(newFlow(id, []string{"even", "odd"}[id%2]), cancel)
	}
	o.Begin(newFlow(10, "even"), nil) // cannot be killed
	if o.Table.Kill(99, why) || o.Table.Kill(10, why) {
		t.Error("killed what is not there, or cannot be killed")
	}
	if !o.Table.Kill(1, why) || !errors.Is(context.Cause(ctxs[1]), why) {
		t.Errorf("flow 1 ended with %v, want %v", context.Cause(ctxs[1]), why)
	}
	for id, want := range []error{nil, why, nil, nil} {
		if got := context.Cause(ctxs[uint64(id)]); got != want {
			t.Errorf("flow %d ended with %v, want %v", id, got, want)
		}
	}
}

// Snapshots are taken while the owners write: the race detector is the judge.
func TestTableUnderConcurrency(t *testing.T) {
	o := newObserver(t)
	var owners, readers sync.WaitGroup
	stop := make(chan struct{})
	for w := range uint64(4) {
		owners.Go(func() {
			for i := range uint64(300) {
				f := newFlow(w*1000+i, "db")
				entry := o.Begin(f, func(error) {})
				f.Update(func(r *flow.Record) { r.Network, r.Why = "berlin", "picked" })
				f.BytesIn.Add(1)
				f.BytesOut.Add(2)
				f.Done(epoch, flow.StatusClosed, "closed")
				entry.End()
			}
		})
	}
	readers.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				o.Table.List(nil, 10)
				o.Table.Kill(1001, errors.New("killed"))
			}
		}
	})
	owners.Wait()
	close(stop)
	readers.Wait()
	got := series(t, o.Metrics)
	if o.Table.Len() != 0 || got[`warren_flows_total{app="db",status="200"}`] != 1200 ||
		got[`warren_flow_bytes_total{app="db",direction="out"}`] != 2400 {
		t.Errorf("%d flows left; %v", o.Table.Len(), got)
	}
}
