package admin

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/warrenmesh/warren/edge/admin/client"
)

func TestDrainEndpoint(t *testing.T) {
	e := &edge{}
	_, c := serve(t, e)
	ctx := context.Background()
	pool, err := c.DrainEndpoint(ctx, "db pool", client.EndpointDrainRequest{Endpoint: "[::ffff:10.0.0.10]:5432", KeepSeconds: 90})
	if err != nil || pool.Name != "db pool" {
		t.Fatalf("draining: %+v, %v", pool, err)
	}
	if _, err := c.DrainEndpoint(ctx, "db pool", client.EndpointDrainRequest{Endpoint: "[fd00::1]:53", Off: true}); err != nil {
		t.Fatal(err)
	}
	want := []string{"drain 10.0.0.10:5432 of db pool, keep 1m30s, off false", "drain [fd00::1]:53 of db pool, keep 0s, off true"}
	if diff := cmp.Diff(want, e.asked); diff != "" {
		t.Errorf("the edge was asked (-want +got):\n%s", diff)
	}
	for _, test := range []struct {
		name, pool, code, says string
		request                client.EndpointDrainRequest
	}{
		{"a pool that is not there", "x", client.CodeNotFound, `no pool "x"`, client.EndpointDrainRequest{Endpoint: "10.0.0.1:1"}},
		{"no address", "db pool", client.CodeBadRequest, `write an IP address and a port`, client.EndpointDrainRequest{Endpoint: "db.internal:5432"}},
		{"a negative time", "db pool", client.CodeBadRequest, `use 0 to 604800`, client.EndpointDrainRequest{Endpoint: "10.0.0.1:1", KeepSeconds: -1}},
		{"an endless time", "db pool", client.CodeBadRequest, `use 0 to 604800`, client.EndpointDrainRequest{Endpoint: "10.0.0.1:1", KeepSeconds: 1e12}},
		{"off, and a time", "db pool", client.CodeBadRequest, `leave one of the two out`, client.EndpointDrainRequest{Endpoint: "10.0.0.1:1", KeepSeconds: 1, Off: true}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := c.DrainEndpoint(ctx, test.pool, test.request)
			var refused *client.Error
			if !errors.As(err, &refused) || refused.Code != test.code || !strings.Contains(refused.Message, test.says) {
				t.Errorf("error %v, want code %s and %q", err, test.code, test.says)
			}
		})
	}
}

func TestEvents(t *testing.T) {
	at := epoch.Add(time.Second)
	e := &edge{events: client.EventList{Missed: 3, Events: []client.Event{
		{ID: 9, Time: at, Kind: "endpoint", Pool: "db", Network: "berlin", Endpoint: "10.0.0.10:5432", From: "up", To: "down", Why: "refused"},
	}}}
	_, c := serve(t, e)
	got, err := c.Events(context.Background(), 5, 7)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(e.events, got); diff != "" {
		t.Errorf("events differ (-want +got):\n%s", diff)
	}
	if e.after != 5 || e.limit != 7 {
		t.Errorf("asked for %d after %d, want 7 after 5", e.limit, e.after)
	}
	if _, err := c.Events(context.Background(), 0, 0); err != nil || e.after != 0 || e.limit != client.DefaultEvents {
		t.Errorf("the default asked for %d after %d, %v", e.limit, e.after, err)
	}
	for _, query := range []string{"after=-1", "after=x", "limit=0", "limit=4097", "after=1&after=2", "since=1"} {
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := parseEventQuery(values); err == nil {
			t.Errorf("%q was accepted", query)
		}
	}
}
