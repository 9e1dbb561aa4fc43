package check

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode"

	"github.com/miekg/dns"
)

// script is a conn on which an endpoint says something, in pieces, and ends.
// Each piece is a datagram. It knows how much was read.
type script struct {
	net.Conn
	say     []byte
	piece   int
	endless bool
	read    int
	aborted bool
}

func (s *script) Read(p []byte) (int, error) {
	if s.endless && s.read > 0 && len(s.say) > 0 {
		n := copy(p, s.say)
		s.read += n
		return n, nil
	}
	if s.read >= len(s.say) {
		return 0, io.EOF
	}
	n := copy(p, s.say[s.read:min(len(s.say), s.read+s.piece)])
	s.read += n
	return n, nil
}

func (s *script) Write(p []byte) (int, error)     { return len(p), nil }
func (s *script) SetDeadline(time.Time) error     { return nil }
func (s *script) SetReadDeadline(time.Time) error { return nil }
func (s *script) Close() error                    { return nil }
func (s *script) Abort()                          { s.aborted = true }

func (s *script) Dial(context.Context, string, netip.AddrPort) (net.Conn, error) { return s, nil }
func (s *script) Ping(context.Context, netip.Addr) error                         { return nil }

// Whatever an endpoint says, a check of any type ends, has read a bounded
// amount, and has an error that is short, plain and without secrets.
func FuzzAnswers(f *testing.F) {
	specs := []Spec{
		{Expect: "needle"}, {Type: TypePostgres}, {Type: TypeSMTP}, {Type: TypeRedis}, {Type: TypeTLS}, {Type: TypeUDP, Expect: "needle"}, {Type: TypeUDP},
		{Type: TypeDNS, Question: "www.example.com"},
		{Type: TypeHTTP, ExpectedBody: "needle", FollowRedirects: true, Headers: map[string]string{"Authorization": "geheim"}},
		{Type: TypeHTTP, Method: "HEAD", Path: "/a", Host: "www.example.com"},
	}
	for i, say := range []string{
		"needle", "S", "220 a\r\n250-b\r\n250 c\r\n221 d\r\n", "+PONG\r\n", "\x16\x03\x03\x00\x02\x00\x00", "needle", "",
		"\x00\x00\x81\x80\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x03com\x00\x00\x01\x00\x01",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nneedle\r\n0\r\n\r\n",
		"HTTP/1.1 302 Found\r\nLocation: //www.example.com/geheim\r\n\r\n",
	} {
		f.Add(uint8(i), uint16(3), false, []byte(say))
		f.Add(uint8(i), uint16(1000), true, []byte(say))
	}
	addr := netip.MustParseAddrPort("10.0.0.10:80")
	f.Fuzz(func(t *testing.T, which uint8, piece uint16, endless bool, say []byte) {
		spec := specs[int(which)%len(specs)]
		s := &script{say: say, piece: 1 + int(piece), endless: endless}
		r := Run(context.Background(), s, addr, &spec)
		if !s.aborted {
			t.Fatal("the conn was left open")
		}
		if most := (2 + MaxRedirects) * (4*MaxRead + len(say)); s.read > most {
			t.Fatalf("%d bytes were read", s.read)
		}
		if r.Err == nil {
			return
		}
		text := r.Err.Error()
		if len(text) > 1000 || strings.Contains(text, "geheim") && spec.Headers != nil && !bytes.Contains(say, []byte("geheim")) ||
			strings.ContainsFunc(text, func(c rune) bool { return !unicode.IsPrint(c) }) {
			t.Fatalf("error = %q", text)
		}
	})
}

func FuzzCodes(f *testing.F) {
	for _, s := range []string{"2xx", "301", "200-204", "5XX", "600", "204-200", "", "2x", "-", "200-", "1xx-2xx", "+20", "٢٠٠"} {
		f.Add(s)
	}
	class, code := regexp.MustCompile(`^[1-5][xX]{2}$`), regexp.MustCompile(`^([1-5]\d\d)(?:-([1-5]\d\d))?$`)
	f.Fuzz(func(t *testing.T, s string) {
		// The naive way: write every code down.
		passes := make(map[int]bool)
		if class.MatchString(s) {
			for i := range 100 {
				passes[int(s[0]-'0')*100+i] = true
			}
		} else if m := code.FindStringSubmatch(s); m != nil {
			last := m[2]
			if last == "" {
				last = m[1]
			}
			for i := range 1000 {
				if text := fmt.Sprintf("%03d", i); m[1] <= text && text <= last {
					passes[i] = true
				}
			}
		}
		got, err := parseCodes([]string{s})
		if (err == nil) != (len(passes) > 0) {
			t.Fatalf("%q: error %v, %d codes", s, err, len(passes))
		}
		for i := range 1000 {
			if got.has(i) != passes[i] {
				t.Fatalf("%q: code %d: %v", s, i, got.has(i))
			}
		}
	})
}

func FuzzHex(f *testing.F) {
	for _, s := range []string{"00ff", "0 0 f f", "0", "zz", " ", "00\n11\t22"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := payload("", s)
		bare := regexp.MustCompile(`\s|\x{0085}|\p{Z}|\v`).ReplaceAllString(s, "")
		if s == "" {
			return
		}
		if want := regexp.MustCompile(`^([0-9a-fA-F]{2})*$`).MatchString(bare); (err == nil) != want {
			t.Fatalf("%q: error %v, want it sound: %v", s, err, want)
		}
		if err == nil && hex.EncodeToString(got) != strings.ToLower(bare) {
			t.Fatalf("%q: %x", s, got)
		}
	})
}

// find is bytes.Contains over what can be read.
func FuzzFind(f *testing.F) {
	f.Add([]byte("a needle"), []byte("needle"), uint16(100), true)
	f.Add([]byte(strings.Repeat("ab", 5000)+"ac"), []byte("bac"), uint16(20000), false)
	f.Add([]byte("aab"), []byte("aab"), uint16(2), true)
	f.Fuzz(func(t *testing.T, text, want []byte, limit uint16, byBytes bool) {
		if len(want) == 0 || len(want) > MaxPayload || limit == 0 {
			return
		}
		var r io.Reader = bytes.NewReader(text)
		if byBytes {
			r = iotest.OneByteReader(r)
		}
		start, err := find(r, want, int(limit))
		seen := text[:min(len(text), int(limit))]
		if found := bytes.Contains(seen, want); (err == nil) != found {
			t.Fatalf("error %v, found %v", err, found)
		}
		if err != nil && !errors.Is(err, errAbsent) && len(seen) > 0 {
			t.Fatalf("error %v", err)
		}
		if !bytes.HasPrefix(seen, start) || len(start) > maxQuote+1 {
			t.Fatalf("start = %q", start)
		}
	})
}

// What a redirect leads to can stand in a request line.
func FuzzRedirect(f *testing.F) {
	for _, s := range []string{"/a", "b?c d", "//www.example.com/", "http:x", "http://[::1%25a]/", "http://www.example.com", "?x", "#y", "\r\n"} {
		f.Add(s)
	}
	c, err := New(Spec{Type: TypeHTTP, FollowRedirects: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, location string) {
		target, err := c.redirect(request{"GET", "www.example.com", "/old/path?x=y"}, location)
		if err != nil {
			if len(err.Error()) > 500 {
				t.Fatalf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		if !strings.HasPrefix(target, "/") || strings.ContainsAny(target, " \r\n\t\x00#") || len(target) > maxTarget {
			t.Fatalf("%q leads to %q", location, target)
		}
	})
}

func FuzzDNS(f *testing.F) {
	question := dns.Question{Name: "www.example.com.", Qtype: dns.TypeA, Qclass: dns.ClassINET}
	for code := range 3 {
		m := dns.Msg{MsgHdr: dns.MsgHdr{Id: 7, Response: true, Rcode: code}, Question: []dns.Question{question}}
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		mine, err := judgeDNS(answer, 7, question, dns.RcodeSuccess)
		if mine && err == nil && (answer[1] != 7 || answer[2]&0x80 == 0 || answer[3]&0xf != 0) {
			t.Fatalf("% x passes", answer)
		}
		if !mine && err != nil {
			t.Fatalf("not the answer, and yet wrong: %v", err)
		}
	})
}
