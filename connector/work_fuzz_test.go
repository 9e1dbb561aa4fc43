package connector

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/memnet"
)

// fuzzWorker is a worker of a connector that does not run.
func fuzzWorker(t *testing.T) *worker {
	c, err := New(Spec{StateDir: "/none", Edges: []EdgeSpec{{PublicKey: [32]byte{1}, URLs: []EdgeURL{{Host: "edge.example", Port: 51820}}}}}, Deps{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.flows.cut(errCut) })
	return newWorker(c.edges[0])
}

// FuzzWorkLine: whatever bytes answer a request for work, the session comes to
// an end that can be logged, within its bounds.
func FuzzWorkLine(f *testing.F) {
	answer := func(status, body string) string {
		return fmt.Sprintf("HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body)
	}
	good := answer("200 OK", `{"revision":1,"specs":[{"check":{}}],"checks":[{"id":1,"addr":"10.0.0.1:80"}],"names":[{"host":"a"}]}`)
	f.Add(good)
	f.Add(good + good + good) // more than was asked for
	f.Add(good + answer("200 OK", `{"revision":0}`))
	f.Add(answer("403 Forbidden", `{"code":"not_allowed","message":"none\u001b[2J"}`))
	f.Add(answer("200 OK", `{"revision":1,"checks":[{}`))
	f.Add("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		w := fuzzWorker(t)
		near, far := memnet.Pipe()
		go func() {
			_, _ = io.WriteString(far, text)
			_ = far.CloseWrite()
		}()
		var retry backoff
		err := w.talk(t.Context(), newPoster(near), &retry)
		if err == nil || len(err.Error()) > 1000 || plain(err.Error(), 1000) != err.Error() {
			t.Errorf("ended with %q", err)
		}
		if checks, names := w.counts(); checks > wire.MaxChecks || names > wire.MaxNames {
			t.Errorf("%d checks and %d names", checks, names)
		}
		_ = far.Close()
	})
}

// FuzzWork: whatever work an edge gives, one after the other, the worker does
// the last alone.
func FuzzWork(f *testing.F) {
	f.Add(`{"specs":[{"check":{"type":"tcp"},"interval":1000000000}],"checks":[{"id":1,"addr":"10.0.0.1:80"},{"id":2,"addr":"10.0.0.2:80"}],"names":[{"host":"a"}]}`,
		`{"specs":[{"check":{"type":"dns"}},{"check":{"type":"tcp"},"interval":1000000000}],"checks":[{"id":1,"spec":1,"addr":"10.0.0.1:80"},{"id":2,"addr":"10.0.0.2:80"}],"names":[{"host":"b"}]}`)
	f.Add(`{}`, `{"specs":[null],"checks":[null],"names":[null,{"host":"a"}]}`)
	f.Fuzz(func(t *testing.T, first, second string) {
		w := fuzzWorker(t)
		kept := map[uint64]*task{}
		for _, text := range []string{first, second, second} {
			var a wire.WorkAnswer
			if wire.DecodeWork(strings.NewReader(text), &a) != nil {
				return
			}
			a.Clean()
			w.apply(a.Work)
			if len(w.tasks) != len(a.Checks) || len(w.hosts) != len(a.Names) || len(w.checks.jobs) != len(a.Checks) || len(w.names.jobs) != len(a.Names) {
				t.Fatalf("%d checks, of which %d wait, and %d names, of which %d do: want %d and %d",
					len(w.tasks), len(w.checks.jobs), len(w.hosts), len(w.names.jobs), len(a.Checks), len(a.Names))
			}
			for _, check := range a.Checks {
				task := w.tasks[check.ID]
				if task.addr != check.Addr || !task.probe.same(a.Specs[check.Spec]) || (task.probe.check == nil) != (task.probe.err != nil) {
					t.Fatalf("%+v is done as %+v", check, task)
				}
				if old := kept[check.ID]; old != nil && old.addr == task.addr && old.probe.same(task.probe.spec) && old != task {
					t.Fatalf("%+v was begun anew", check)
				}
			}
			kept = w.tasks
		}
	})
}
