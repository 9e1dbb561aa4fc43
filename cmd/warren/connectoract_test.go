package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/warrenmesh/warren/edge/admin/client"
)

func aConnector() client.Connector {
	// Hours, which are shown with their minutes: a slow machine changes nothing.
	ago := func(d time.Duration) time.Time { return time.Now().Add(-d - time.Second) }
	return client.Connector{
		Name: "berlin-1", Network: "berlin", Origin: client.OriginToken, State: client.ConnectorUp, Since: ago(time.Hour),
		PublicKey: edgeKey, Overlay: "fd77:6172:7265::1", Endpoint: "192.0.2.1:4000", Routes: []string{"10.0.0.0/16"},
		RTTMillis: 12.5, PathMTU: 1400, Handshake: ago(3 * time.Hour), RxBytes: 2048, TxBytes: 1024, Flows: 3,
		TokenID: "0123456789abcdef", Enrolled: ago(48 * time.Hour), KeySince: ago(24 * time.Hour), Revision: 4, MaxTCPFlows: 100,
		Report: &client.Report{
			Received: ago(2 * time.Hour), Version: "v0.3.0", Hostname: "gw.berlin", Started: ago(90 * time.Minute), ClockOffsetMillis: -3_600_000,
			Load: client.Load{TCPFlows: 2, UDPFlows: 1, CPUs: 4, Load1: 0.5, Memory: 64 << 20, FailedDials: 7, Dropped: 1},
			Errors: []client.OriginError{
				{Destination: "tcp/10.0.0.10:5432", Result: "refused", Error: "connection refused", Count: 7, Last: ago(4 * time.Hour)},
			},
		},
	}
}

func TestConnectorShow(t *testing.T) {
	up, pending, bare := aConnector(), aConnector(), aConnector()
	pending.Name, pending.State, pending.PendingUntil = "berlin-2", client.ConnectorPending, time.Now().Add(time.Hour+30*time.Second)
	pending.Since, pending.Enrolled, pending.Ephemeral, pending.Rotation = time.Time{}, time.Time{}, true, client.RotationAsked
	bare.Name, bare.Origin, bare.Report, bare.Held, bare.State = "tokyo-1", client.OriginDeclared, nil, true, client.ConnectorDraining
	bare.TokenID, bare.KeySince, bare.Revision, bare.MaxTCPFlows = "", time.Time{}, 0, 0
	left := bare
	left.Name, left.State, left.Why = "oslo-1", client.ConnectorDown, "an operator drained it, and it has left"
	socket := fakeEdge(t, map[string]any{"GET /v1/connectors": []client.Connector{up, pending, bare, left}})
	for name, want := range map[string]string{
		"berlin-1": "connector berlin-1\nnetwork berlin\nstate up since 1h0m ago\n" +
			"known by token 0123456789abcdef, enrolled 2d0h ago\npublic key " + edgeKey + "\nkey age 1d0h\noverlay fd77:6172:7265::1\n" +
			"routes 10.0.0.0/16\nlimits 100 TCP flows\nfrom 192.0.2.1:4000\nround trip 12 ms\nlast handshake 3h0m ago\n" +
			"path MTU 1400 bytes inside the tunnel\nreceived 2.0 KiB\nsent 1.0 KiB\nopen flows 3\n" +
			"reported 2h0m ago\nversion v0.3.0\nhost gw.berlin\nrunning for 1h30m\nclock warning: 1h0m behind the edge's: set it, as with NTP\n" +
			"its load 2 TCP flows, 1 UDP flows, load average 0.50 on 4 CPUs, 64.0 MiB of memory\nfailed dials 7\ndropped 1 packets\n\n" +
			"ORIGIN RESULT TIMES LAST ERROR\ntcp/10.0.0.10:5432 refused 7 4h0m ago connection refused",
		"berlin-2": "state pending, given up in 1h0m unless its key calls\n" +
			"known by token 0123456789abcdef, ephemeral: forgotten after 10 minutes of absence\npublic key " + edgeKey + "\nkey age 1d0h, a new key is asked for\n",
		"tokyo-1": "state draining, by an operator: `warren connector drain tokyo-1 --off` ends it\n" +
			"known by the edge's config\npublic key " + edgeKey + "\noverlay",
		"oslo-1": "state down since 1h0m ago\nwhy an operator drained it, and it has left\n",
	} {
		code, stdout, stderr := command(t, nil, "connector", "show", name, "--socket", socket)
		if code != 0 || !strings.Contains(squeeze(stdout), want) {
			t.Errorf("%s: %d, %s\n%s\nwant\n%s", name, code, stderr, stdout, want)
		}
	}
	_, stdout, _ := command(t, nil, "connector", "list", "--socket", socket)
	wantLines(t, squeeze(stdout),
		"CONNECTOR NETWORK STATE SINCE VERSION RTT HANDSHAKE MTU RECEIVED SENT FLOWS FROM ROUTES\n",
		"berlin-1 berlin up 1h0m ago v0.3.0 12 ms 3h0m ago 1400 2.0 KiB 1.0 KiB 3 192.0.2.1:4000 10.0.0.0/16\n",
		"tokyo-1 berlin draining - - 12 ms")
	none := fakeEdge(t, map[string]any{"GET /v1/connectors": nil})
	if _, _, stderr := command(t, nil, "connector", "list", "--socket", none); stderr != "the edge has no connectors: make a token with `warren token create`, or add a [[connector]] to its config\n" {
		t.Errorf("none: %q", stderr)
	}
}

func TestClock(t *testing.T) {
	for ms, want := range map[float64]string{
		0: "as the edge's", -999: "as the edge's", 1500: "2s ahead of the edge's", -30_000: "30s behind the edge's",
		30_001: "warning: 30s ahead of the edge's: set it, as with NTP",
	} {
		if got := clock(ms); got != want {
			t.Errorf("clock(%v) = %q, want %q", ms, got, want)
		}
	}
}

func TestConnectorActions(t *testing.T) {
	revoked, declared, granted := aConnector(), aConnector(), aConnector()
	declared.Origin = client.OriginDeclared
	left := aConnector()
	left.State, left.Flows, left.KeySince = client.ConnectorDown, 0, time.Now().Add(30*time.Second) // however slow the test is
	granted.Routes = []string{"10.0.0.0/24", "10.1.0.0/24"}
	asked := ""
	answer := func(r client.ConnectorResult) any {
		return func(body string) any { asked = strings.TrimSpace(body); return r }
	}
	socket := fakeEdge(t, map[string]any{
		"POST /v1/connectors/berlin-1/revoke": answer(client.ConnectorResult{Connector: revoked, Aborted: 3}),
		"POST /v1/connectors/tokyo-1/revoke":  answer(client.ConnectorResult{Connector: declared, Aborted: 1, Note: "remove it"}),
		"POST /v1/connectors/berlin-1/drain": func(body string) any {
			asked = strings.TrimSpace(body)
			r := client.ConnectorResult{Connector: aConnector()}
			if asked == "{}" {
				r.Note = "survives a reload, not a restart"
			}
			return r
		},
		"POST /v1/connectors/berlin-1/rotate": answer(client.ConnectorResult{Connector: aConnector()}),
		"POST /v1/connectors/tokyo-1/rotate":  answer(client.ConnectorResult{Connector: declared, Note: "it is not up"}),
		"POST /v1/connectors/berlin-1/grant":  answer(client.ConnectorResult{Connector: granted, Aborted: 1}),
		"POST /v1/connectors/oslo-1/rotate":   answer(client.ConnectorResult{Connector: left}),
		"POST /v1/connectors/tokyo-1/drain":   answer(client.ConnectorResult{Connector: left, Note: "as the edge says"}),
		"POST /v1/connectors/tokyo-1/grant":   client.Error{Code: client.CodeRefused, Message: "granting: it is declared"},
	})
	for _, tc := range []struct{ args, body, want string }{
		{"revoke berlin-1", "", "connector berlin-1 is revoked: 3 flows were cut, and its key is refused from now on\n" +
			"to let its machine in again, remove its state directory there, and run it with a new token:\n\n" +
			"  warren token create --network berlin --routes 10.0.0.0/16\n"},
		{"revoke tokyo-1", "", "connector berlin-1 is revoked: 1 flow was cut, and its key is refused from now on\nremove it\n" +
			"to let its machine in again, make another key there, and write its public key into the edge's config\n"},
		{"drain berlin-1", `{}`, "connector berlin-1 drains, which survives a reload, not a restart; open flows: 3\n"},
		{"drain berlin-1 --off", `{"off":true}`, "connector berlin-1 gets new flows again; open: 3\n"},
		{"drain tokyo-1 --off", `{"off":true}`, "connector berlin-1 gets new flows again; open: 0\nas the edge says\n"},
		{"rotate oslo-1", "", "connector berlin-1 is asked for a new key: it makes one as soon as all its edges can learn it" +
			"; its present key is 0s old, and a connector changes its key once a minute at most\n"},
		{"rotate berlin-1", "", "connector berlin-1 is asked for a new key: it makes one as soon as all its edges can learn it\n"},
		{"rotate tokyo-1", "", "connector berlin-1 is asked for a new key: it is not up\n"},
		{"grant berlin-1 --routes 10.0.0.0/24 --routes 10.1.0.0/24", `{"routes":["10.0.0.0/24","10.1.0.0/24"]}`,
			"connector berlin-1 has routes 10.0.0.0/24, 10.1.0.0/24\n1 flow was cut, which they do not cover\n"},
	} {
		code, stdout, stderr := command(t, nil, append(strings.Fields("connector "+tc.args), "--socket", socket)...)
		if code != 0 || stdout != tc.want || stderr != "" || asked != tc.body {
			t.Errorf("%s: %d, %s\n%s\nwant\n%s\nasked %q", tc.args, code, stderr, stdout, tc.want, asked)
		}
	}
	code, _, stderr := command(t, nil, "connector", "grant", "tokyo-1", "--routes", "10.0.0.0/8", "--socket", socket)
	if code != exitRefused || stderr != "warren: granting: it is declared\n" {
		t.Errorf("refused: %d, %q", code, stderr)
	}
	_, stdout, _ := command(t, nil, "connector", "revoke", "berlin-1", "--json", "--socket", socket)
	var got client.ConnectorResult
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || got.Aborted != 3 {
		t.Errorf("as JSON: %v, %s", err, stdout)
	}
}
