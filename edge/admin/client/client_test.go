package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve answers every request on a new socket with handler.
func serve(t *testing.T, handler http.HandlerFunc) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "edge.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(ln)
	}()
	c := New(path)
	t.Cleanup(func() {
		c.Close()
		server.Close()
		<-done
	})
	return c
}

func TestSocketsThatDoNotAnswer(t *testing.T) {
	tests := []struct {
		name string
		make func(t *testing.T, path string)
		is   error
		want string // %s is the path
	}{
		{"no such file", func(*testing.T, string) {}, fs.ErrNotExist,
			`connecting to the edge's admin socket "%s": no such file; is the edge running? use --socket or WARREN_SOCKET to name another`},
		{"left behind by a killed edge", func(t *testing.T, path string) {
			ln, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			ln.(*net.UnixListener).SetUnlinkOnClose(false)
			ln.Close()
		}, syscall.ECONNREFUSED,
			`connecting to the edge's admin socket "%s": nobody listens; the edge that made it is gone, start the edge`},
		{"a file", func(t *testing.T, path string) {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, syscall.ECONNREFUSED, `connecting to the edge's admin socket "%s": nobody listens`},
		{"a socket of another kind", func(t *testing.T, path string) {
			conn, err := net.ListenPacket("unixgram", path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
		}, syscall.EPROTOTYPE, `use --socket to name the edge's`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "edge.sock")
			test.make(t, path)
			_, err := New(path).Status(t.Context())
			if !errors.Is(err, test.is) {
				t.Errorf("error %v is not %v", err, test.is)
			}
			want := strings.ReplaceAll(test.want, "%s", path)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error\n got %v\nwant %s", err, want)
			}
		})
	}
}

// Root may open every socket, so the refusal is made by hand.
func TestNoPermission(t *testing.T) {
	refused := &url.Error{Op: "Get", URL: "http://edge/v1/status", Err: &net.OpError{Op: "dial", Net: "unix",
		Err: os.NewSyscallError("connect", syscall.EACCES)}}
	err := New("/run/warren/edge.sock").explain(t.Context(), refused)
	const want = `connecting to the edge's admin socket "/run/warren/edge.sock": permission denied; run this as the edge's user or in its group`
	if err.Error() != want || !errors.Is(err, fs.ErrPermission) {
		t.Errorf("error\n got %v\nwant %s", err, want)
	}
}

func TestAnswersThatAreNotTheAPIs(t *testing.T) {
	tests := []struct {
		name   string
		status int
		body   string
		code   string // of an *Error, "" for another error
		want   string
	}{
		{"an edge's refusal", 409, `{"error":"edge.toml:3: no","code":"refused"}`, CodeRefused, "edge.toml:3: no"},
		{"a code of a later release", 418, `{"error":"odd","code":"teapot","more":1}`, "teapot", "odd"},
		{"another server", 404, "<html>", CodeUnknown, "it answered 404 Not Found, which is not an edge's answer"},
		{"JSON of another server", 500, `{"detail":"x"}`, CodeUnknown, "500 Internal Server Error"},
		{"a redirect", 304, ``, CodeUnknown, "304 Not Modified"},
		{"not JSON", 200, "<html>", "", "decoding the answer from admin socket"},
		{"another type", 200, `{"pid":"many"}`, "", "is it an edge of this release?"},
		{"too long", 200, strings.Repeat(" ", maxAnswer+1), "", "longer than 64 MiB"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(test.status)
				fmt.Fprint(w, test.body)
			})
			_, err := c.Status(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error = %v, want %q", err, test.want)
			}
			var e *Error
			if errors.As(err, &e) != (test.code != "") || e != nil && e.Code != test.code {
				t.Errorf("error = %#v, want code %q", err, test.code)
			}
		})
	}
}

func TestUnknownFieldsOfALaterEdgeAreIgnored(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"name":"fra1","later":{"a":[1]}}`) })
	if s, err := c.Status(t.Context()); err != nil || s.Name != "fra1" {
		t.Errorf("status = %+v, %v", s, err)
	}
}

func TestTheConnectionBreaks(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		fmt.Fprint(w, `{"name":`)
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	_, err := c.Status(t.Context())
	if err == nil || !strings.Contains(err.Error(), "reading the answer from admin socket") {
		t.Errorf("error = %v", err)
	}
}

func TestContextEndsACall(t *testing.T) {
	began := make(chan struct{})
	c := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-began
		cancel(errors.New("interrupted by the user"))
	}()
	_, err := c.Reload(ctx)
	if err == nil || !strings.HasSuffix(err.Error(), "interrupted by the user") || !strings.HasPrefix(err.Error(), "waiting for the edge's answer") {
		t.Errorf("error = %v", err)
	}
}
