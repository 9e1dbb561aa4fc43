package check

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// page answers any request with text.
func page(text string) func(net.Conn) { return closes(text) }

func TestHTTP(t *testing.T) {
	ok := func(body string) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
	with := func(change func(*Spec)) Spec {
		s := Spec{Type: TypeHTTP}
		change(&s)
		return s
	}
	plainSpec := Spec{Type: TypeHTTP}
	body := with(func(s *Spec) { s.ExpectedBody = "needle" })
	secret := with(func(s *Spec) { s.Headers = map[string]string{"Authorization": "Bearer geheim"} })
	chunk := "1\r\nx\r\n"
	for _, tt := range []trial{
		{"200", plainSpec, page(ok("")), 0, ""},
		{"204", plainSpec, page("HTTP/1.1 204 No Content\r\n\r\n"), 0, ""},
		{"HTTP/1.0", plainSpec, page("HTTP/1.0 200 OK\r\n\r\nhello"), 0, ""},
		{"after 1xx", plainSpec, page("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok("")), 0, ""},
		{"301 is expected", with(func(s *Spec) { s.ExpectedCodes = []string{"301"} }), page("HTTP/1.1 301 Moved\r\nLocation: https://b/\r\n\r\n"), 0, ""},
		{"HEAD", with(func(s *Spec) { s.Method = "HEAD" }), page("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"), 0, ""},
		{"body", body, page(ok("hay needle hay")), 0, ""},
		{"body in chunks", body, page("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nxnee\r\n5\r\ndlexx\r\n0\r\n\r\n"), 0, ""},
		{"body until the end", body, page("HTTP/1.1 200 OK\r\n\r\nneedle"), 0, ""},
		{"body early, then silence", body, says(true, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nneedle"), 0, ""},

		{"500", plainSpec, page("HTTP/1.1 500 Oops\r\n\r\n"), 0, "answered 500, want 2xx"},
		{"redirect not followed", plainSpec, page("HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n"), 0, "answered 302, want 2xx"},
		{"another code", with(func(s *Spec) { s.ExpectedCodes = []string{"204", "301-302"} }), page(ok("")), 0, "answered 200, want 204 or 301-302"},
		{"101", plainSpec, page("HTTP/1.1 101 Switching Protocols\r\n\r\n"), 0, "answered 101"},
		{"wrong body", body, page(ok("nothing of that kind")), 0, `answered 200, but the body's first 64 KiB lack "needle"`},
		{"no body", body, page(ok("")), 0, `lack "needle"`},
		{"body cut short", body, page("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nneed"), 0, "reading the body: the endpoint ended the connection"},
		{"chunks that are none", body, page("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n"), 0, "answered 200, with a malformed body"},
		{"huge body", body, endless("HTTP/1.1 200 OK\r\n\r\n", strings.Repeat("hay ", 1000)), 0, `lack "needle"`},
		{"huge body in tiny chunks", body, endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", strings.Repeat(chunk, 500)), 0, `lack "needle"`},
		{"slow body", body, says(true, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"), short, "reading the body: nothing came in time"},
		{"endless headers", plainSpec, endless("HTTP/1.1 200 OK\r\n", "X-A: bcd\r\n"), 0, "its headers are longer than 64 KiB"},
		{"endless first line", plainSpec, endless("", "HTTP/1.1 200"), 0, "its headers are longer than 64 KiB"},
		{"one header without end", plainSpec, endless("HTTP/1.1 200 OK\r\nX: ", "aaaaaaaaaaaa"), 0, "its headers are longer than 64 KiB"},
		{"endless 1xx", plainSpec, endless("", "HTTP/1.1 100 Continue\r\n\r\n"), 0, "more than 5 answers of kind 1xx"},
		{"garbage", plainSpec, page("SSH-2.0-OpenSSH\r\n\x1b[31m\r\n\r\n"), 0, `not an HTTP answer: it begins "SSH-2.0-OpenSSH\r\n\x1b[31m`},
		{"garbage with secrets", secret, says(true, "SSH-2.0-OpenSSH\r\n\r\n"), 0, "not an HTTP answer"},
		{"half a head", plainSpec, says(true, "HTTP/1.1 200 OK\r\nContent-"), short, "awaiting the answer: nothing came in time"},
		{"no answer", plainSpec, silence, short, "awaiting the answer: nothing came in time"},
		{"hangs up", plainSpec, page(""), 0, "awaiting the answer: the endpoint ended the connection"},
		{"hangs up within the head", plainSpec, page("HTTP/1.1 200 OK\r\nA: b"), 0, "awaiting the answer: the endpoint ended the connection"},
	} {
		tt.run(t)
	}
}

// An endpoint that repeats what it hears brings no header into an error.
func TestSecretsStayOut(t *testing.T) {
	spec := Spec{Type: TypeHTTP, Headers: map[string]string{"Authorization": "Bearer geheim"}, ExpectedBody: "needle"}
	for name, before := range map[string]string{
		"as it is": "", "as a head": "HTTP/1.1 200 OK\r\nX: ", "as a body": "HTTP/1.1 200 OK\r\n\r\n",
		"as a status": "HTTP/1.1 ", "as chunks": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
		"as a length": "HTTP/1.1 200 OK\r\nContent-Length: ", "as a coding": "HTTP/1.1 200 OK\r\nTransfer-Encoding: ",
		"as a redirect": "HTTP/1.1 302 Found\r\nLocation: http://",
	} {
		for _, header := range []bool{false, true} { // all of the request, or the header alone
			addr := serve(t, func(conn net.Conn) {
				buf := make([]byte, 4096)
				n, _ := conn.Read(buf)
				said := string(buf[:n])
				if _, after, ok := strings.Cut(said, "Authorization: "); header && ok {
					said = after
				}
				_, _ = io.WriteString(conn, before+said)
			})
			spec.FollowRedirects = true
			r := tries(t, new(kernel), spec, addr, long)
			if r.Err == nil || strings.Contains(r.Err.Error(), "geheim") {
				t.Errorf("%s: error = %v", name, r.Err)
			}
		}
	}
}

func TestTheRequest(t *testing.T) {
	got := make(chan *http.Request, 1)
	addr := serve(t, func(conn net.Conn) {
		r, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			t.Error(err)
		}
		got <- r
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
	})
	tries(t, new(kernel), Spec{Type: TypeHTTP}, addr, long)
	r := <-got
	if r.Method != "GET" || r.RequestURI != "/" || r.Host != addr.String() || r.UserAgent() != userAgent || !r.Close || r.Header.Get("Accept") != "*/*" {
		t.Errorf("the request is %+v", r)
	}
	tries(t, new(kernel), Spec{Type: TypeHTTP, Method: "OPTIONS", Path: "/a%20b?c=d", Host: "www.example.com:8080",
		Headers: map[string]string{"user-agent": "me", "X-Key": "k y", "Accept": "text/plain"}}, addr, long)
	r = <-got
	if r.Method != "OPTIONS" || r.RequestURI != "/a%20b?c=d" || r.Host != "www.example.com:8080" || r.UserAgent() != "me" ||
		r.Header.Get("X-Key") != "k y" || len(r.Header["Accept"]) != 1 || r.Header.Get("Accept") != "text/plain" {
		t.Errorf("the request is %+v", r)
	}
}

func TestRedirects(t *testing.T) {
	// The path says where to be redirected; "%" is the endpoint itself.
	for _, tt := range []struct {
		name, host, location string
		hops                 int
		want                 string
	}{
		{"to a path", "", "/end", 2, ""},
		{"to a relative path", "", "end?a=b c", 2, ""},
		{"to the endpoint's URL", "", "http://%/end", 2, ""},
		{"to the Host", "www.example.com", "http://WWW.example.com:80/end", 2, ""},
		{"without a scheme", "www.example.com", "//www.example.com/end", 2, ""},
		{"to another host", "www.example.com", "http://internal.example/", 1, `redirected to "http://internal.example"`},
		{"to another port", "", "http://127.0.0.1:1/", 1, "which is not this endpoint"},
		{"to another scheme", "www.example.com", "https://www.example.com/end", 1, "which is not this endpoint"},
		{"to a file", "", "file:///etc/passwd", 1, "which is not this endpoint"},
		{"to no URL", "", "http://[", 1, "something that is no URL"},
		{"to a huge path", "", "/" + strings.Repeat("x", maxTarget), 1, "cannot be asked for"},
		{"in a ring", "", "/start", 1 + MaxRedirects, "redirected more than 5 times"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			addr := serve(t, func(conn net.Conn) {
				r, err := http.ReadRequest(bufio.NewReader(conn))
				switch {
				case err != nil:
					t.Error(err)
				case strings.HasSuffix(r.URL.Path, "/end"):
					_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
				default:
					location := strings.Replace(tt.location, "%", conn.LocalAddr().String(), 1)
					_, _ = io.WriteString(conn, "HTTP/1.1 302 Found\r\nLocation: "+location+"\r\n\r\n")
				}
			})
			k := new(kernel)
			r := tries(t, k, Spec{Type: TypeHTTP, Path: "/start", Host: tt.host, FollowRedirects: true}, addr, long)
			wantError(t, r.Err, tt.want)
			if k.dials != tt.hops {
				t.Errorf("%d dials, want %d", k.dials, tt.hops)
			}
		})
	}
}

// The time that a slow endpoint takes is the check's, whatever it drips.
func TestDripping(t *testing.T) {
	addr := serve(t, func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 4096))
		for err := error(nil); err == nil; time.Sleep(5 * time.Millisecond) {
			_, err = io.WriteString(conn, "H")
		}
	})
	r := tries(t, new(kernel), Spec{Type: TypeHTTP}, addr, short)
	wantError(t, r.Err, "awaiting the answer: nothing came in time")
}
