package admin

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/warrenmesh/warren/edge/admin/client"
)

// note keeps what the edge is asked for; it refuses whatever is named "no".
func (e *edge) note(format string, args ...any) error {
	e.asked = append(e.asked, fmt.Sprintf(format, args...))
	if strings.Contains(e.asked[len(e.asked)-1], " no") {
		return &client.Error{Code: client.CodeRefused, Message: "it will not"}
	}
	return nil
}

var token = client.Token{ID: "0123456789abcdef", Name: "berlin-1", Network: "berlin", Routes: []string{"10.0.0.0/16"},
	State: client.TokenActive, Created: epoch, Expires: epoch.Add(time.Hour), Connectors: []string{"berlin-1"}}

const tokenText = "wrn1_secret"

func (e *edge) Tokens() []client.Token { return []client.Token{token} }
func (e *edge) CreateToken(r client.TokenRequest, routes []netip.Prefix) (client.CreatedToken, error) {
	e.token = r
	return client.CreatedToken{Token: token, Text: tokenText, Record: "record"}, e.note("create %s %v", r.Network, routes)
}
func (e *edge) ImportToken(record string) (client.Token, error) {
	return token, e.note("import %s", record)
}
func (e *edge) RevokeToken(id string) (client.Token, error) { return token, e.note("end %s", id) }
func (e *edge) result() client.ConnectorResult {
	return client.ConnectorResult{Connector: e.connectors[0], Aborted: 3, Note: "so"}
}
func (e *edge) RevokeConnector(name string) (client.ConnectorResult, error) {
	return e.result(), e.note("revoke %s", name)
}
func (e *edge) GrantConnector(name string, routes []netip.Prefix) (client.ConnectorResult, error) {
	return e.result(), e.note("grant %s %v", name, routes)
}
func (e *edge) RotateConnector(name string) (client.ConnectorResult, error) {
	return e.result(), e.note("rotate %s", name)
}
func (e *edge) DrainConnector(name string, off bool) (client.ConnectorResult, error) {
	return e.result(), e.note("drain %s %v", name, off)
}

func TestEnrollment(t *testing.T) {
	e := full()
	ctx := t.Context()
	_, c := serve(t, e)

	tokens, err := c.Tokens(ctx)
	if diff := cmp.Diff([]client.Token{token}, tokens); err != nil || diff != "" {
		t.Errorf("tokens: %v (-want +got):\n%s", err, diff)
	}
	made, err := c.CreateToken(ctx, client.TokenRequest{Network: "berlin", Routes: []string{"10.0.0.0/16"}, Ephemeral: true})
	if diff := cmp.Diff(client.CreatedToken{Token: token, Text: tokenText, Record: "record"}, made); err != nil || diff != "" {
		t.Errorf("created: %v (-want +got):\n%s", err, diff)
	}
	if e.token.TTLMillis != time.Hour.Milliseconds() || !e.token.Reusable {
		t.Errorf("the defaults of a request are not filled in: %+v", e.token)
	}
	if got, err := c.ImportToken(ctx, client.ImportRequest{Record: "rec"}); err != nil || got.ID != token.ID {
		t.Errorf("imported: %+v, %v", got, err)
	}
	if got, err := c.RevokeToken(ctx, "berlin-1"); err != nil || got.ID != token.ID {
		t.Errorf("revoked: %+v, %v", got, err)
	}
	act := func(result client.ConnectorResult, err error) {
		t.Helper()
		if diff := cmp.Diff(e.result(), result); err != nil || diff != "" {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
	}
	act(c.RevokeConnector(ctx, "berlin-1"))
	act(c.GrantConnector(ctx, "berlin-1", client.GrantRequest{Routes: []string{"10.0.0.0/24", "fd00::/8"}}))
	act(c.RotateConnector(ctx, "berlin-1"))
	act(c.DrainConnector(ctx, "berlin-1", client.DrainRequest{}))
	act(c.DrainConnector(ctx, "ber/lin 1", client.DrainRequest{Off: true}))
	want := []string{"create berlin [10.0.0.0/16]", "import rec", "end berlin-1", "revoke berlin-1", "grant berlin-1 [10.0.0.0/24 fd00::/8]",
		"rotate berlin-1", "drain berlin-1 false", "drain ber/lin 1 true"}
	if diff := cmp.Diff(want, e.asked); diff != "" {
		t.Errorf("asked differs (-want +got):\n%s", diff)
	}

	_, err = c.RevokeConnector(ctx, "no")
	wantError(t, err, client.CodeRefused, "it will not")
	_, err = c.RevokeToken(ctx, "no")
	wantError(t, err, client.CodeRefused, "it will not")
	for _, name := range []string{"", ".", ".."} {
		_, err := c.RotateConnector(ctx, name)
		wantError(t, err, client.CodeNotFound, "nothing has such a name")
		_, err = c.RevokeToken(ctx, name)
		wantError(t, err, client.CodeNotFound, "nothing has such a name")
	}
}

func TestEnrollmentRefusals(t *testing.T) {
	e := full()
	h := New(slog.New(slog.DiscardHandler), e, e).Handler()
	tests := []struct {
		name, method, path, body string
		code                     int
		want                     string
	}{
		{"another method for tokens", "DELETE", "/v1/tokens", "", 405, "use GET"},
		{"another method for a token", "GET", "/v1/tokens/0123456789abcdef", "", 405, "use DELETE"},
		{"another method for an import", "GET", "/v1/tokens/import", "", 405, "use "},
		{"another method for an action", "GET", "/v1/connectors/a/revoke", "", 405, "use POST"},
		{"another action", "POST", "/v1/connectors/a/resurrect", "", 404, "no such thing"},
		{"no network", "POST", "/v1/tokens", `{"routes":["10.0.0.0/16"]}`, 400, "naming a network is required"},
		{"no route", "POST", "/v1/tokens", `{"network":"a"}`, 400, "at least one route"},
		{"no prefix", "POST", "/v1/tokens", `{"network":"a","routes":["10.0.0.1"]}`, 400, `reading route \"10.0.0.1\"`},
		{"host bits", "POST", "/v1/tokens", `{"network":"a","routes":["10.0.0.1/16"]}`, 400, "write 10.0.0.0/16"},
		{"IPv4 as IPv6", "POST", "/v1/tokens", `{"network":"a","routes":["::ffff:10.0.0.0/104"]}`, 400, "as IPv4"},
		{"a route twice", "POST", "/v1/tokens", `{"network":"a","routes":["10.0.0.0/16","10.0.0.0/16"]}`, 400, "there twice"},
		{"too short a life", "POST", "/v1/tokens", `{"network":"a","routes":["10.0.0.0/16"],"ttl_ms":59999}`, 400, "use 1 minute to 366 days"},
		{"a negative life", "POST", "/v1/tokens", `{"network":"a","routes":["10.0.0.0/16"],"ttl_ms":-1}`, 400, "use 1 minute"},
		{"too long a life", "POST", "/v1/tokens", `{"network":"a","routes":["10.0.0.0/16"],"ttl_ms":9223372036854775807}`, 400, "366 days"},
		{"an edge without a key", "POST", "/v1/tokens", `{"network":"a","routes":["10.0.0.0/16"],"edges":[{"urls":["a:1"]}]}`, 400, "naming another edge"},
		{"an unknown field of a token", "POST", "/v1/tokens", `{"network":"a","ttl":"1h"}`, 400, `unknown field \"ttl\"`},
		{"an unknown field of an edge", "POST", "/v1/tokens", `{"network":"a","edges":[{"url":"a:1"}]}`, 400, `unknown field \"url\"`},
		{"an unknown field of an import", "POST", "/v1/tokens/import", `{"token":"x"}`, 400, `unknown field \"token\"`},
		{"a body for the end of a token", "DELETE", "/v1/tokens/a", `{"force":true}`, 400, `unknown field \"force\"`},
		{"a body for a revocation", "POST", "/v1/connectors/a/revoke", `{"force":true}`, 400, `unknown field \"force\"`},
		{"a body for a rotation", "POST", "/v1/connectors/a/rotate", `{"key":"x"}`, 400, `unknown field \"key\"`},
		{"a grant of nothing", "POST", "/v1/connectors/a/grant", ``, 400, "at least one route"},
		{"a grant of a host", "POST", "/v1/connectors/a/grant", `{"routes":["10.0.0.1"]}`, 400, "reading route"},
		{"a long drain", "POST", "/v1/connectors/a/drain", `{"off":` + strings.Repeat(" ", maxBody), 413, "too_large"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			code, body := request(h, test.method, test.path, test.body)
			if code != test.code || !strings.Contains(body, test.want) || !strings.Contains(body, `"error":"`) {
				t.Errorf("got %d %s, want %d and %s", code, body, test.code, test.want)
			}
		})
	}
	if e.asked != nil {
		t.Errorf("the edge was asked for %q", e.asked)
	}
}
