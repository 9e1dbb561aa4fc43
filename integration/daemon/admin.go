package daemon

import (
	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/integration/require"
)

// Admin is the edge's admin socket, as the commands use it. The client is good
// for every run of the edge.
func (e *Edge) Admin() *client.Client { return client.New(e.Socket) }

// Token makes a token at the edge and returns its text.
func (e *Edge) Token(tb require.TB, request client.TokenRequest) client.CreatedToken {
	tb.Helper()
	made, err := e.Admin().CreateToken(tb.Context(), request)
	if err != nil {
		tb.Fatalf("making a token at edge %q: %v", e.cfg.Name, err)
	}
	return made
}

// Connector is what the edge says of one connector, by its name; false where
// it knows none of that name.
func (e *Edge) Connector(tb require.TB, name string) (client.Connector, bool) {
	tb.Helper()
	all, err := e.Admin().Connectors(tb.Context())
	if err != nil {
		tb.Fatalf("asking edge %q for its connectors: %v", e.cfg.Name, err)
	}
	for _, c := range all {
		if c.Name == name {
			return c, true
		}
	}
	return client.Connector{}, false
}
