package integration

import (
	"os"
	"testing"

	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/netns"
)

// TestMain builds cmd/warren once, then runs the tests in namespaces of their
// own where the machine allows it.
func TestMain(m *testing.M) {
	os.Exit(daemon.Build("..", func() int { return netns.Main(m.Run) }))
}
