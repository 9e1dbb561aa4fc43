package integration

import (
	"context"
	"testing"
	"time"

	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/proc"
)

// demoLimit is what the demo may take on a busy machine. Its pass line, under
// five seconds once compiled, is logged.
const demoLimit = 30 * time.Second

// TestDemo runs the product in one command.
func TestDemo(t *testing.T) {
	w := daemon.Find(t)
	ctx, cancel := context.WithTimeout(t.Context(), demoLimit)
	defer cancel()
	started := time.Now()
	out, err := w.Command(ctx, proc.Here{}, "demo", "--check")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("up and checked in %v\n%s", time.Since(started).Round(time.Millisecond), out)
}
