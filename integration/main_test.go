package integration

import (
	"os"
	"testing"

	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/netns"
)

// TestMain builds cmd/warren once, then runs the tests in namespaces of their
// own where the machine allows it. A process that a test measures is a re-run
// of this binary too: see measured_test.go.
func TestMain(m *testing.M) {
	if role := os.Getenv(envRole); role != "" {
		os.Exit(playRole(role))
	}
	os.Exit(daemon.Build("..", func() int { return netns.Main(m.Run) }))
}

// envFull asks for the sizes that the pass lines speak of where they take
// minutes; the tests are the same without it, with less of everything.
const envFull = "WARREN_TEST_FULL"

func full() bool { return os.Getenv(envFull) == "1" }
