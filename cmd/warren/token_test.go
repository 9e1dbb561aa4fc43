package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/warrenmesh/warren/edge/admin/client"
)

const (
	tokenText = "wrn1_AAAA"
	edgeKey   = "UGlWXqUmB8lUQuEBSxbZlTDROZ3PAfLBaWDjiWOQHCo="
)

func aToken() client.Token {
	return client.Token{
		ID: "0123456789abcdef", Name: "berlin-1", Network: "berlin", Routes: []string{"10.0.0.0/16", "10.1.0.0/16"},
		State: client.TokenActive, Expires: time.Now().Add(time.Hour + 30*time.Second), Connectors: []string{},
	}
}

func TestTokenCreate(t *testing.T) {
	var asked client.TokenRequest
	made := client.CreatedToken{Token: aToken(), Text: tokenText}
	socket := fakeEdge(t, map[string]any{"POST /v1/tokens": func(body string) any {
		asked = client.TokenRequest{}
		if err := json.Unmarshal([]byte(body), &asked); err != nil {
			t.Error(err)
		}
		return made
	}})
	create := func(args ...string) (stdout, stderr string) {
		t.Helper()
		code, stdout, stderr := command(t, nil, append([]string{"token", "create", "--socket", socket, "--network", "berlin"}, args...)...)
		if code != 0 {
			t.Fatalf("%q: exit code %d: %s", args, code, stderr)
		}
		return stdout, stderr
	}

	stdout, stderr := create("--routes", "10.0.0.0/16, 10.1.0.0/16", "--name", "berlin-1")
	wantLines(t, stdout,
		"token    0123456789abcdef", "enrols   one connector, once", "as       berlin-1", "network  berlin", "routes   10.0.0.0/16, 10.1.0.0/16",
		made.Token.Expires.UTC().Format("2006-01-02 15:04:05")+" UTC", ", in 1h0m",
		"\n  warren connector run --token "+tokenText+"\n", "shown this once", "--token-file FILE", "--token-file -", "WARREN_TOKEN")
	if stderr != "" || strings.Contains(stdout, "import") {
		t.Errorf("said %q and %q", stdout, stderr)
	}
	if asked.TTLMillis != time.Hour.Milliseconds() || asked.Reusable || len(asked.Routes) != 2 || asked.Routes[1] != "10.1.0.0/16" {
		t.Errorf("asked for %+v", asked)
	}

	if stdout, stderr := create("--routes", "10.0.0.0/16", "-q"); stdout != tokenText+"\n" || stderr != "" {
		t.Errorf("--quiet: %q, %q", stdout, stderr)
	}

	made.Token.Reusable, made.Token.Ephemeral, made.Record = true, true, "record1"
	stdout, _ = create("--routes", "10.0.0.0/16", "--routes", "fd00::/64", "--ephemeral", "--ttl", "90m",
		"--edge", edgeKey+"@fra2.example.net:51820,[2001:db8::1]:51820")
	wantLines(t, stdout, "any number of connectors; each is forgotten after 10 minutes", "joins fra2.example.net:51820", "\n  warren token import record1\n")
	if !asked.Ephemeral || asked.TTLMillis != 90*time.Minute.Milliseconds() || len(asked.Routes) != 2 || len(asked.Edges) != 1 ||
		asked.Edges[0].PublicKey != edgeKey || len(asked.Edges[0].URLs) != 2 || asked.Edges[0].URLs[1] != "[2001:db8::1]:51820" {
		t.Errorf("asked for %+v", asked)
	}
	if stdout, stderr = create("--routes", "10.0.0.0/16", "--quiet"); stdout != tokenText+"\n" || !strings.Contains(stderr, "warren token import record1") {
		t.Errorf("--quiet with a record: %q, %q", stdout, stderr)
	}
	stdout, _ = create("--routes", "10.0.0.0/16", "--json")
	var got client.CreatedToken
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || got.Text != tokenText || got.Record != "record1" || got.Token.ID != made.Token.ID {
		t.Errorf("--json: %v, %s", err, stdout)
	}
}

func TestMoment(t *testing.T) {
	at := time.Date(2026, 3, 1, 23, 30, 0, 0, time.UTC)
	if got, want := moment(at, time.FixedZone("CET", 3600)), "2026-03-02 00:30:00 CET (2026-03-01 23:30:00 UTC)"; got != want {
		t.Errorf("elsewhere: %q, want %q", got, want)
	}
	if got, want := moment(at, time.UTC), "2026-03-01 23:30:00 UTC"; got != want {
		t.Errorf("in UTC: %q, want %q", got, want)
	}
}

// wantLines checks that text holds each of these.
func wantLines(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("no %q in:\n%s", w, text)
		}
	}
}

// Wrong usage is told before anybody is asked.
func TestTokenUsage(t *testing.T) {
	for _, tc := range []struct{ args, want string }{
		{"token create --routes 10.0.0.0/16", "--network is required"},
		{"token create --network a", "--routes is required"},
		{"token create --network a --routes ,", "--routes is required"},
		{"token create --network a --routes 10.0.0.1", `reading route "10.0.0.1": write an address and a length`},
		{"token create --network a --routes 10.0.0.1/16", "write 10.0.0.0/16"},
		{"token create --network a --routes 10.0.0.0/16,10.0.0.0/16", "there twice"},
		{"token create --network a --routes 10.0.0.0/16 --ttl 59s", "reading --ttl 59s: use 1m to 8784h"},
		{"token create --network a --routes 10.0.0.0/16 --ttl 1d", `invalid argument "1d"`},
		{"token create --network a --routes 10.0.0.0/16 --ttl 9000h", "use 1m to 8784h"},
		{"token create --network a --routes 10.0.0.0/16 -q --json", "exclude each other"},
		{"token create --network a --routes 10.0.0.0/16 --edge fra2:51820", "is not PUBLIC_KEY@HOST:PORT"},
		{"token create --network a --routes 10.0.0.0/16 --edge short@fra2:51820", "44 characters"},
		{"token create --network a --routes 10.0.0.0/16 --edge " + edgeKey + "@fra2", "want a host and a port"},
		{"token create --network a --routes 10.0.0.0/16 --name -a", `reading --name "-a": use letters`},
		{"token create --network a --routes 10.0.0.0/16 --name " + strings.Repeat("a", 64), "64 bytes is too long: use 63"},
		{"connector run --name a/b --token x", `reading --name "a/b": use letters`},
		{"connector init --name bücher", "reading --name"},
		{"token revoke " + tokenText, "write the token's ID or name, not the token itself"},
		{"token revoke '" + tokenText + "'", "write the token's ID or name, not the token itself"},
		{"token import wrn2_AAAA", "write the record that `warren token create` printed with the token, not the token itself"},
		{"token " + tokenText, "not the token itself"},
		{"token create extra", "reading the arguments"},
		{"token revoke", "token revoke ID|NAME"},
		{"token import", "token import RECORD|-"},
		{"token", "write one of create, list, revoke, import"},
		{"connector grant a", "--routes is required"},
		{"connector grant a --routes 10.0.0.0", `reading route "10.0.0.0"`},
		{"connector revoke", "connector revoke NAME"},
		{"connector drain a b", "connector drain NAME"},
	} {
		code, stdout, stderr := command(t, map[string]string{"WARREN_SOCKET": "/nowhere"}, strings.Fields(tc.args)...)
		if code != exitUsage || stdout != "" || !strings.Contains(stderr, tc.want) || strings.Contains(stderr, "AAAA") {
			t.Errorf("%s: exit code %d, %q, %q, want %q", tc.args, code, stdout, stderr, tc.want)
		}
	}
}

func TestTokenList(t *testing.T) {
	active, spent, old := aToken(), aToken(), aToken()
	active.Reusable, active.Uses, active.Pending, active.Connectors = true, 12, 1, []string{"a", "b", "c", "d", "e"}
	spent.ID, spent.State, spent.Ended, spent.Uses, spent.SpentBy = "1123456789abcdef", client.TokenSpent, time.Now().Add(-time.Hour), 1, "berlin-2"
	old.ID, old.Name, old.State, old.Ended = "2123456789abcdef", "", client.TokenRevoked, time.Now().Add(-25*time.Hour)
	socket := fakeEdge(t, map[string]any{"GET /v1/tokens": []client.Token{active, spent, old}})
	const head = "ID                NAME      NETWORK  STATE            USES                    EXPIRES  USED BY             ROUTES\n" +
		"0123456789abcdef  berlin-1  berlin   active           12, reusable, 1 pending  in 1h0m  a, b, c and 2 more  10.0.0.0/16, 10.1.0.0/16\n" +
		"1123456789abcdef  berlin-1  berlin   spent 1h0m ago   1 of 1                   -        berlin-2            10.0.0.0/16, 10.1.0.0/16\n"
	_, stdout, _ := command(t, nil, "token", "list", "--socket", socket)
	if squeeze(stdout) != squeeze(head) {
		t.Errorf("list:\n%swant:\n%s", stdout, head)
	}
	_, stdout, _ = command(t, nil, "token", "list", "--all", "--socket", socket)
	if want := head + "2123456789abcdef - berlin revoked 1d1h ago 0 of 1 - - 10.0.0.0/16, 10.1.0.0/16\n"; squeeze(stdout) != squeeze(want) {
		t.Errorf("list --all:\n%swant:\n%s", stdout, want)
	}
	_, stdout, _ = command(t, nil, "token", "list", "--json", "--socket", socket)
	var got []client.Token
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || len(got) != 2 {
		t.Errorf("list --json: %v, %s", err, stdout)
	}
	none := fakeEdge(t, map[string]any{"GET /v1/tokens": []client.Token{old}})
	code, stdout, stderr := command(t, nil, "token", "list", "--socket", none)
	if code != 0 || stdout != "" || !strings.Contains(stderr, "warren token create") {
		t.Errorf("an empty list: %d, %q, %q", code, stdout, stderr)
	}
}

// squeeze makes columns one space apart.
func squeeze(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(lines, "\n")
}

func TestTokenRevokeAndImport(t *testing.T) {
	ended := aToken()
	ended.Connectors = []string{"berlin-1"}
	socket := fakeEdge(t, map[string]any{
		"DELETE /v1/tokens/berlin-1": ended, "DELETE /v1/tokens/gone": client.Error{Code: client.CodeNotFound, Message: "revoking token \"gone\": none"},
		"POST /v1/tokens/import": func(body string) any {
			if body != `{"record":"rec"}` {
				t.Errorf("asked %s", body)
			}
			return aToken()
		},
	})
	code, stdout, _ := command(t, nil, "token", "revoke", "berlin-1", "--socket", socket)
	if code != 0 || !strings.Contains(stdout, "token 0123456789abcdef is revoked") || !strings.Contains(stdout, "stays: berlin-1;") {
		t.Errorf("revoke: %d, %q", code, stdout)
	}
	if code, _, stderr := command(t, nil, "token", "revoke", "gone", "--socket", socket); code != exitRefused || stderr != "warren: revoking token \"gone\": none\n" {
		t.Errorf("revoke of none: %d, %q", code, stderr)
	}
	code, stdout, _ = command(t, nil, "token", "import", "rec", "--socket", socket)
	if code != 0 || !strings.HasPrefix(stdout, "token berlin-1 is known here: network berlin, routes 10.0.0.0/16, 10.1.0.0/16, until ") {
		t.Errorf("import: %d, %q", code, stdout)
	}
	code, _, stderr := commandFed(t, "\n"+tokenText, nil, "token", "import", "-", "--socket", socket)
	if code != exitUsage || !strings.Contains(stderr, "not the token itself") || strings.Contains(stderr, tokenText) {
		t.Errorf("import of a token: %d, %q", code, stderr)
	}
	code, stdout, _ = commandFed(t, " rec\n", nil, "token", "import", "-", "--json", "--socket", socket)
	if code != 0 || !strings.Contains(stdout, `"id": "0123456789abcdef"`) {
		t.Errorf("import of standard input: %d, %q", code, stdout)
	}
}
