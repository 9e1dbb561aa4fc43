package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/warrenmesh/warren/integration/netns"
)

// TestWorld proves the ground that the end-to-end tests stand on, without
// Warren: who reaches whom, and that each site has its own servers.
func TestWorld(t *testing.T) {
	w := newWorld(t)
	for _, site := range []struct {
		host *netns.Host
		name string
	}{{w.berlin, "berlin"}, {w.tokyo, "tokyo"}} {
		listen(t, site.host, "10.0.0.10:7", greeter(site.name))
	}
	listen(t, w.edge, "[::]:7", greeter("edge"))
	greeting := func(host *netns.Host, address string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		conn, err := host.Dial(ctx, "tcp", address)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		conn.(*net.TCPConn).CloseWrite()
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		text, err := io.ReadAll(conn)
		return string(text), err
	}
	for _, test := range []struct {
		from *netns.Host
		to   string
		want string // "" is nobody
	}{
		{w.berlin1, "10.0.0.10:7", "berlin"},
		{w.berlin2, "10.0.0.10:7", "berlin"},
		{w.tokyo1, "10.0.0.10:7", "tokyo"},
		{w.client, "203.0.113.10:7", "edge"},
		{w.client, "[2001:db8:e::10]:7", "edge"},
		{w.tokyo1, "203.0.113.10:7", "edge"},
		{w.client, "10.0.0.10:7", ""},
		{w.edge, "10.0.0.10:7", ""},
	} {
		got, err := greeting(test.from, test.to)
		want := test.want + "\n" + test.want + "\n"
		if test.want == "" {
			want = ""
		}
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s asking %s heard %q, %v; want %q", test.from.Name(), test.to, got, err, want)
		}
	}
}

// TestStreamsNoticeDamage proves the streams' check: whole streams pass, and a
// path that changes, loses or doubles one byte, or ends early, is noticed.
func TestStreamsNoticeDamage(t *testing.T) {
	w := newWorld(t)
	var o streamOrigin
	listen(t, w.edge, "203.0.113.10:1", o.serve)
	moveStreams(t, time.Minute, &o, w.client, "203.0.113.10:1", []plan{
		{Seed: 1, Up: 1 << 20, Down: 1 << 20, MaxWrite: 1000}, {Seed: 2, Up: 0, Down: 5, MaxWrite: 1},
	})
	for _, test := range []struct {
		name   string
		damage func([]byte) []byte
	}{
		{"a changed byte", func(b []byte) []byte { b[len(b)/2] ^= 1; return b }},
		{"a lost byte", func(b []byte) []byte { return b[1:] }},
		{"a doubled byte", func(b []byte) []byte { return append(b[:1:1], b...) }},
		{"an early end", func([]byte) []byte { return nil }},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := plan{Seed: 3, Down: 1 << 20, MaxWrite: 4096}
			client, server := net.Pipe()
			defer client.Close()
			go func() {
				defer server.Close()
				chunk := make([]byte, 4096)
				source := p.bytesOf(1)
				for block := range p.Down / int64(len(chunk)) {
					io.ReadFull(source, chunk)
					sent := chunk
					if block == 100 {
						if sent = test.damage(chunk); sent == nil {
							return
						}
					}
					if _, err := server.Write(sent); err != nil {
						return
					}
				}
			}()
			if right, err := receive(client, p.bytesOf(1), p.Down); !errors.Is(err, errCorrupt) {
				t.Errorf("received %d right bytes and %v, want errCorrupt", right, err)
			}
		})
	}
}

// TestSessionsAndLoadWithoutWarren proves the long sessions and the load
// against an origin that they reach straight, and that they notice its end.
func TestSessionsAndLoadWithoutWarren(t *testing.T) {
	w := newWorld(t)
	echo := new(checkedEcho)
	listen(t, w.edge, "203.0.113.10:1", echo.serve)
	address := netip.AddrPortFrom(edgeAddr, 1).String()
	sessions := openSessions(t, w.client, address, 20)
	stop := load(t, w.client, address, 100)
	waitFor(t, 300*time.Millisecond)
	outcomes := stop()
	if len(outcomes) == 0 {
		t.Error("the load sent nothing")
	}
	for _, o := range outcomes {
		if o.err != nil {
			t.Error(o.err)
		}
	}
	if err := pollFor(t, 5*time.Second, func() error {
		if live, _ := echo.seen(); live != len(sessions) {
			return fmt.Errorf("%d sessions are live, want %d", live, len(sessions))
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if _, corrupt := echo.seen(); len(corrupt) != 0 {
		t.Error(corrupt)
	}
	sessions[0].conn.Close()
	<-sessions[0].ended
	if _, _, err := sessions[0].state(); err == nil || errors.Is(err, errCorrupt) {
		t.Errorf("a closed session ended with %v", err)
	}
	if _, err := openSession(t.Context(), w.client, "203.0.113.10:2", 1); err == nil {
		t.Error("a session opened where nobody listens")
	}
}
