package edge

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/netstack"
)

// get asks the operator's HTTP port.
func (w *world) get(path string) (status int, body string) {
	w.t.Helper()
	request, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, "http://"+w.metricsAt.String()+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	request.Close = true // no connection is left for later
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		w.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

// served is a world with one app and its connector.
func served(t *testing.T, grace time.Duration) *world {
	t.Helper()
	key := newKey(t)
	w := newWorld(t, network("berlin")+connector("berlin-1", "berlin", key, "10.0.0.0/24")+appTo("web", "berlin/10.0.0.10:7"))
	w.run(grace)
	w.startSite("berlin-1", key, map[string]func(*netstack.TCPRequest){"10.0.0.10:7": echo("berlin")})
	return w
}

// TestDrain: an operator's drain closes the door, survives a reload, leaves
// open flows alone, and can be taken back.
func TestDrain(t *testing.T) {
	w := served(t, time.Second)
	// A fixed port: the same one has to be had again.
	_, port, _ := net.SplitHostPort(w.port("web", "tcp"))
	fixed := strings.Replace(w.tables, "tcp/0", "tcp/"+port, 1)
	w.write(strings.Replace(fixed, `"web"`, `"other"`, 1))
	live := w.greeted("web")
	if ok, _ := w.get("/readyz"); ok != http.StatusOK {
		t.Errorf("/readyz before: %d", ok)
	}
	drained, err := w.admin.Drain(t.Context(), client.DrainRequest{})
	if err != nil || !drained.Draining || drained.ActiveFlows != 1 || drained.Note == "" {
		t.Fatalf("draining: %+v, %v", drained, err)
	}
	closed := func(when string) {
		t.Helper()
		if conn, err := net.Dial("tcp", "127.0.0.1:"+port); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s the app accepts: %v, %v", when, conn, err)
		}
		if status, body := w.get("/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(body, "draining") {
			t.Errorf("%s /readyz says %d %q", when, status, body)
		}
		if status, _ := w.get("/healthz"); status != http.StatusOK {
			t.Errorf("%s /healthz says %d", when, status)
		}
		if s := w.Status(); s.Ready || !s.Draining || s.Why != "draining" {
			t.Errorf("%s status: %+v", when, s)
		}
		if err := talk(live); err != nil {
			t.Errorf("%s the open flow: %v", when, err)
		}
	}
	closed("while it drains")
	if _, err := w.admin.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	closed("after a reload")

	taken, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.admin.Drain(t.Context(), client.DrainRequest{Off: true}); err == nil || !strings.Contains(err.Error(), "in use by") {
		t.Errorf("a drain ended over a port that another has: %v", err)
	}
	if !w.Status().Draining {
		t.Error("a drain that could not be taken back is over")
	}
	_ = taken.Close()
	if r, err := w.admin.Drain(t.Context(), client.DrainRequest{Off: true}); err != nil || r.Draining {
		t.Fatalf("ending the drain: %+v, %v", r, err)
	}
	if got, err := w.converse("other", "x"); got != "berlin\nx" || err != nil {
		t.Errorf("after the drain: %q, %v", got, err)
	}
}

// TestStop is the end in two beats.
func TestStop(t *testing.T) {
	t.Run("it ends with its last flow", func(t *testing.T) {
		w := served(t, time.Hour)
		live := w.greeted("web")
		w.stop()
		await(t, "the door to close", func() bool { return len(w.ingress.Listening()) == 0 })
		if err := talk(live); err != nil {
			t.Errorf("the open flow during a stop: %v", err)
		}
		if s, err := w.admin.Status(t.Context()); err != nil || s.Ready || s.Why != "stopping" || s.ActiveFlows != 1 {
			t.Errorf("status during a stop: %+v, %v", s, err)
		}
		if _, err := w.admin.Reload(t.Context()); !refused(err, "stopping") {
			t.Errorf("a reload during a stop: %v", err)
		}
		if _, err := w.admin.Drain(t.Context(), client.DrainRequest{Off: true}); !refused(err, "stopping") {
			t.Errorf("a drain's end during a stop: %v", err)
		}
		_ = live.(*net.TCPConn).CloseWrite()
		<-w.ended
		if w.err != nil {
			t.Errorf("it ended with %v", w.err)
		}
		if l := w.flows("web", 1)[0]; l.Status != 200 || l.Why != "closed in order" {
			t.Errorf("the last flow: %+v", l)
		}
	})
	t.Run("the grace period ends", func(t *testing.T) {
		w := served(t, time.Millisecond)
		live := w.greeted("web")
		w.stop()
		<-w.ended
		if w.err != nil || !w.log.has("grace period is over") {
			t.Errorf("it ended with %v", w.err)
		}
		if _, err := live.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the flow that was cut read %v, want a reset", err)
		}
		if l := w.flows("web", 1)[0]; l.Status != 498 || l.Why != errGraceOver.Error() {
			t.Errorf("the flow that was cut: %+v", l)
		}
	})
	t.Run("it is forced", func(t *testing.T) {
		w := served(t, time.Hour)
		w.greeted("web")
		w.stop()
		await(t, "the door to close", func() bool { return len(w.ingress.Listening()) == 0 })
		close(w.force)
		<-w.ended
		if !errors.Is(w.err, ErrForced) {
			t.Errorf("it ended with %v, want ErrForced", w.err)
		}
		if l := w.flows("web", 1)[0]; l.Why != ErrForced.Error() {
			t.Errorf("the flow that was cut: %+v", l)
		}
	})
	t.Run("nothing to force", func(t *testing.T) {
		w := served(t, time.Hour)
		close(w.force)
		w.stop()
		<-w.ended
		if w.err != nil {
			t.Errorf("it ended with %v", w.err)
		}
	})
}
