package daemon

import (
	"context"
	"fmt"
	"strings"

	"github.com/warrenmesh/warren/integration/proc"
	"github.com/warrenmesh/warren/integration/require"
)

// Race reports whether the daemons run under the race detector: ten times
// slower, so that a test moves less.
const Race = raceEnabled

// Key is a WireGuard key pair in its textual form.
type Key struct{ Private, Public string }

// GenKey makes a key pair with `warren genkey` and `warren pubkey`.
func (w Warren) GenKey(tb require.TB) Key {
	tb.Helper()
	private := strings.TrimSpace(proc.Must(tb, proc.Here{}, proc.Spec{Name: "warren genkey", Path: w.Path, Args: []string{"genkey"}}))
	public := proc.Must(tb, proc.Here{}, proc.Spec{Name: "warren pubkey", Path: w.Path, Args: []string{"pubkey"}, Stdin: private + "\n"})
	return Key{Private: private, Public: strings.TrimSpace(public)}
}

// Command runs a command of the program to its end, and returns what it
// printed and the error that tells a failed exit code.
func (w Warren) Command(ctx context.Context, place proc.Place, args ...string) (string, error) {
	return proc.Run(ctx, place, proc.Spec{Name: "warren " + strings.Join(args, " "), Path: w.Path, Args: args})
}

// Must is Command that fails the test instead of returning an error.
func (w Warren) Must(tb require.TB, place proc.Place, args ...string) string {
	tb.Helper()
	out, err := w.Command(tb.Context(), place, args...)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	return out
}

// quote writes a TOML basic string.
func quote(s string) string { return fmt.Sprintf("%q", s) }
