package edge

import (
	"testing"

	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/edge/enroll"
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
