package edge

import (
	"testing"

	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/edge/enroll"
	"github.com/warrenmesh/warren/edge/wire"
)

// What keeps a connector out of the tunnel is told in the registry's words:
// there is more than one thing that may.
func TestConnectorsThatAreNotInTheTunnel(t *testing.T) {
	for _, c := range []struct {
		state enroll.ConnectorState
		why   string
		want  string
	}{
		{enroll.ConnectorAsleep, "the tunnel takes no more", client.ConnectorAsleep},
		{enroll.ConnectorRevoked, "its key was revoked", client.ConnectorRevoked},
		{enroll.ConnectorPending, "the tunnel takes no more", client.ConnectorPending},
	} {
		t.Run(c.want, func(t *testing.T) {
			if got := showMember(enroll.Connector{State: c.state, Why: c.why}); got.State != c.want || got.Why != c.why {
				t.Errorf("shown as %q, because %q", got.State, got.Why)
			}
		})
	}
}

// The command line tells people the bounds of a token before the registry does,
// and neither imports the other.
func TestTheBoundsOfTokensAreTheRegistrys(t *testing.T) {
	if client.MinTokenTTL != enroll.MinTTL || client.MaxTokenTTL != enroll.MaxTTL || client.DefaultTokenTTL != enroll.DefaultTTL {
		t.Error("a token may last for another time in edge/admin/client than in edge/enroll")
	}
	if client.MaxTokenRoutes != wire.MaxRoutes {
		t.Error("a connector may have another number of routes in edge/admin/client than in edge/wire")
	}
}
