package public

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warrenmesh/warren/netstack/netx"
)

func TestPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(Spec{Timeout: 3 * time.Second})
		var asked netip.Addr
		var fails error
		silent := false
		d.ping = func(ctx context.Context, addr netip.Addr) (time.Duration, error) {
			if asked = addr; silent {
				<-ctx.Done()
				return 0, ctx.Err()
			}
			return time.Millisecond, fails
		}
		for text, want := range map[string]string{"8.8.8.8": "8.8.8.8", "::ffff:8.8.8.8": "8.8.8.8", "2606:4700::1": "2606:4700::1"} {
			if err := d.Ping(t.Context(), netip.MustParseAddr(text)); err != nil || asked.String() != want {
				t.Errorf("pinged %s for %s: %v", asked, text, err)
			}
		}
		asked = netip.Addr{}
		if err := d.Ping(t.Context(), netip.MustParseAddr("192.168.0.1")); !errors.Is(err, ErrNotPublic) || asked.IsValid() {
			t.Errorf("pinged %s: %v", asked, err)
		}
		for _, c := range []struct{ fails, class error }{
			{os.NewSyscallError("read", syscall.EHOSTUNREACH), netx.ErrUnreachable},
			{os.NewSyscallError("read", syscall.ECONNREFUSED), netx.ErrUnreachable},
			{os.NewSyscallError("socket", syscall.EMFILE), netx.ErrUnreachable},
			{ErrPingUnsupported, netx.ErrUnreachable},
			{context.DeadlineExceeded, netx.ErrTimedOut},
		} {
			fails = c.fails
			err := d.Ping(t.Context(), netip.MustParseAddr("8.8.8.8"))
			if !errors.Is(err, c.fails) || !errors.Is(err, c.class) || !strings.HasPrefix(err.Error(), `pinging "8.8.8.8": `) {
				t.Errorf("%v became %v", c.fails, err)
			}
			if errors.Is(err, ErrDescriptors) != errors.Is(c.fails, syscall.EMFILE) {
				t.Errorf("%v became %v", c.fails, err)
			}
		}
		silent = true
		began := time.Now()
		if err := d.Ping(t.Context(), netip.MustParseAddr("8.8.8.8")); !errors.Is(err, netx.ErrTimedOut) || time.Since(began) != 3*time.Second {
			t.Errorf("silence: %v after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := d.Ping(ctx, netip.MustParseAddr("8.8.8.8")); !errors.Is(err, context.Canceled) || netx.Classify(err) != nil {
			t.Errorf("given up: %v", err)
		}
	})
}
