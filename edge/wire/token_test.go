package wire

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func newEdge(t testing.TB, urls ...string) Edge {
	t.Helper()
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return Edge{PublicKey: Key{key.PublicKey()}, URLs: urls}
}

func textOf(t testing.TB, token Token) string {
	t.Helper()
	text, err := token.Text()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// fixed is a token that is the same in every run.
func fixed(reusable bool) Token {
	t := Token{Reusable: reusable, Edges: []Edge{{URLs: []string{"fra1.example.net:51820"}}}, Secret: new([32]byte)}
	for i := range 32 {
		t.Secret[i] = byte(0xa0 + i)
		t.Edges[0].PublicKey.Key[i] = byte(i + 1)
	}
	for i := range t.ID {
		t.ID[i] = byte(i + 1)
	}
	return t
}

// The texts of fixed(false) and fixed(true), and the keys that they make: what
// one release writes, every other reads. A failure here is a new TokenPrefix.
const (
	fixedText = "wrn1_AGJiAQIDBAUGBwgAAQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gARZmcmExLmV4YW1wbGUubmV0" +
		"OjUxODIwoKGio6SlpqeoqaqrrK2ur7CxsrO0tba3uLm6u7y9vr-zi9rS"
	fixedReusableText = "wrn1_AGJiAQIDBAUGBwgBAQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gARZmcmExLmV4YW1wbGUubmV0" +
		"OjUxODIwoKGio6SlpqeoqaqrrK2ur7CxsrO0tba3uLm6u7y9vr9QjO2t"
	fixedPresharedKey = "IB72MhnA89AIW3XHSch1F5geQ1NvWvAhqCU9gNYTskQ="
)

var fixedBootstrap = []string{
	"yLExxTUlMAO6kJ38EZztLVlLwGuj1aNPnnftwOxTX04=",
	"MPiasX5/fiFehDnHg9rhHI6omsHQ/XgGF57YuOOyj3Q=",
	"eJ9snS4rKYHvVoMKYxm0o9YUbDbdnGl+zgGgvmkC2EY=",
	"kGntzNGuLsaa+bD4rzKh3T2mV9mKoM/OBJ+5N0jwgk4=",
	"cB34MODMZTnP70w9kR2+X0zcTvtM7Yek6rmZOId6cGo=",
	"aDvIPr2DtA2lKsLD6oDgIZGiPVBseugZGQp3OqoCq2k=",
	"EG4slaieBfFdSHzA6zpkhHdHQAELd4nRcax7QBipOFM=",
	"wJQOgXmTX6mRmRDwWhrJbKfNX/tJqAzSmfYXMqlkKG0=",
}

func TestTokenVectors(t *testing.T) {
	for _, tt := range []struct {
		token     Token
		text      string
		bootstrap []string
	}{
		{fixed(false), fixedText, fixedBootstrap[:1]},
		{fixed(true), fixedReusableText, fixedBootstrap},
	} {
		if text := textOf(t, tt.token); text != tt.text {
			t.Errorf("Text = %q, want %q", text, tt.text)
		}
		if got, err := ParseToken(tt.text); err != nil || !reflect.DeepEqual(got, tt.token) {
			t.Errorf("ParseToken(%q) = %v, %v", tt.text, got, err)
		}
		var keys []string
		for _, key := range tt.token.Bootstrap() {
			keys = append(keys, key.String())
		}
		if !reflect.DeepEqual(keys, tt.bootstrap) {
			t.Errorf("Bootstrap = %q, want %q", keys, tt.bootstrap)
		}
		if psk := tt.token.PresharedKey().String(); psk != fixedPresharedKey {
			t.Errorf("PresharedKey = %s, want %s", psk, fixedPresharedKey)
		}
	}
}

// No two keys of any two tokens are the same, and each is a WireGuard private
// key as it stands: the public half that the edge stores is that of what the
// joiner uses.
func TestBootstrapKeysDiffer(t *testing.T) {
	sameSecret := fixed(true)
	sameSecret.ID[0]++
	sameID := fixed(true) // a secret of its own
	sameID.Secret[31]++
	seen := map[wgtypes.Key]string{}
	for i, token := range []Token{fixed(true), sameSecret, sameID, NewToken(true, nil), NewToken(true, nil), NewToken(false, nil)} {
		keys := token.Bootstrap()
		if want := map[bool]int{true: ReusableKeys, false: 1}[token.Reusable]; len(keys) != want {
			t.Fatalf("token %d has %d bootstrap keys, want %d", i, len(keys), want)
		}
		for j, key := range keys {
			if key[0]&7 != 0 || key[31]&0xc0 != 0x40 { // RFC 7748 section 5
				t.Errorf("key %d of token %d is not clamped", j, i)
			}
			if key != token.Bootstrap()[j] {
				t.Errorf("key %d of token %d is another one the second time", j, i)
			}
		}
		for j, key := range append(keys, token.PresharedKey()) {
			name := fmt.Sprintf("key %d of token %d", j, i)
			if other, known := seen[key]; known {
				t.Errorf("%s is %s", name, other)
			}
			seen[key] = name
		}
	}
}

func TestTokenText(t *testing.T) {
	tests := []struct {
		name  string
		edges []Edge
	}{
		{"one edge", []Edge{newEdge(t, "fra1.example.net:51820")}},
		{"two edges of several addresses", []Edge{newEdge(t, "203.0.113.10:51820", "[2001:db8::1]:51820"), newEdge(t, "b.example.net:1")}},
		{"as many edges as may be", slicesOf(maxTokenEdges, func() Edge { return newEdge(t, "a.example.net:65535") })},
		{"as many addresses as may be", []Edge{newEdge(t, slicesOf(maxTokenURLs, func() string { return "a.example.net:51820" })...)}},
		{"an address as long as may be", []Edge{newEdge(t, strings.Repeat("a", 255-2)+":1")}},
	}
	for _, tt := range tests {
		for _, reusable := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, reusable %v", tt.name, reusable), func(t *testing.T) {
				token := NewToken(reusable, tt.edges)
				text := textOf(t, token)
				for _, around := range []string{text, " " + text + "\r\n", "\t" + text + "\n\n"} {
					if again, err := ParseToken(around); err != nil || !reflect.DeepEqual(again, token) {
						t.Errorf("ParseToken = %v, %v; want %v", again, err, token)
					}
				}
			})
		}
	}
}

func slicesOf[T any](n int, one func() T) []T {
	list := make([]T, n)
	for i := range list {
		list[i] = one()
	}
	return list
}

func TestTokenTextRefuses(t *testing.T) {
	edge := newEdge(t, "a.example.net:51820")
	if text, err := (Token{Edges: []Edge{edge}}).Text(); err == nil {
		t.Errorf("a token without a secret is %q", text)
	}
	tests := []struct {
		name  string
		edges []Edge
		err   string
	}{
		{"no edge", nil, "it names 0 edges, want 1 to 16"},
		{"too many edges", slicesOf(maxTokenEdges+1, func() Edge { return newEdge(t, "a.example.net:1") }), "it names 17 edges"},
		{"an edge without a key", []Edge{{URLs: edge.URLs}}, "a public key of its own"},
		{"an edge twice", []Edge{edge, edge}, "a public key of its own"},
		{"no address", []Edge{newEdge(t)}, "an edge has 0 addresses, want 1 to 8"},
		{"too many addresses", []Edge{newEdge(t, slicesOf(maxTokenURLs+1, func() string { return "a:1" })...)}, "an edge has 9 addresses"},
		{"no port", []Edge{newEdge(t, "a.example.net")}, `"a.example.net" is not a host and a port`},
		{"no host", []Edge{newEdge(t, ":51820")}, "is not a host and a port"},
		{"port 0", []Edge{newEdge(t, "a:0")}, "is not a host and a port"},
		{"a port of a name", []Edge{newEdge(t, "a:ssh")}, "is not a host and a port"},
		{"a port that is too large", []Edge{newEdge(t, "a:65536")}, "is not a host and a port"},
		{"a scheme", []Edge{newEdge(t, "udp://a:1")}, "is not a host and a port"},
		{"a space", []Edge{newEdge(t, "a b:1")}, "is not a host and a port"},
		{"a control character", []Edge{newEdge(t, "a\x1b[2J:1")}, "is not a host and a port"},
		{"no ASCII", []Edge{newEdge(t, "bücher.example:1")}, "is not a host and a port"},
		{"an address that is too long", []Edge{newEdge(t, strings.Repeat("a", 256-2)+":1")}, "is not a host and a port"},
		{
			"too long in all",
			slicesOf(maxTokenEdges, func() Edge { return newEdge(t, strings.Repeat("a", 250)+":1") }),
			"it would have 6172 characters, more than 4096: name fewer addresses",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			token := NewToken(false, tt.edges)
			text, err := token.Text()
			if err == nil || !strings.HasPrefix(err.Error(), "writing a token: ") || !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("Text = %q, %v; want %q", text, err, tt.err)
			}
			// Nor is it read, where somebody else has written it.
			if body, ok := bodyOf(token); ok {
				if got, err := ParseToken(TokenPrefix + encoding.EncodeToString(seal(body))); err == nil {
					t.Errorf("ParseToken reads %v", got)
				}
			}
		})
	}
}

// bodyOf writes a token that Text would not, as far as it can be written.
func bodyOf(token Token) ([]byte, bool) {
	body := append(token.ID[:], 0, byte(len(token.Edges)))
	for _, e := range token.Edges {
		body = append(append(body, e.PublicKey.Key[:]...), byte(len(e.URLs)))
		for _, u := range e.URLs {
			if len(u) > 255 {
				return nil, false
			}
			body = append(append(body, byte(len(u))), u...)
		}
	}
	return append(body, token.Secret[:]...), true
}

func TestParseTokenRefuses(t *testing.T) {
	text := textOf(t, fixed(false))
	body, _ := bodyOf(fixed(false))
	sealed := func(body []byte) string { return TokenPrefix + encoding.EncodeToString(seal(body)) }
	flags := bytes.Clone(body)
	flags[8] = 2
	tests := []struct {
		name, text string
		want       error
	}{
		{"nothing", "", errNoToken},
		{"space", " \n", errNoToken},
		{"a word", "hunter2", errNoToken},
		{"a key", fixedPresharedKey, errNoToken},
		{"upper case", strings.ToUpper(text), errNoToken},
		{"without its prefix", text[len(TokenPrefix):], errNoToken},
		{"quoted", `"` + text + `"`, errNoToken},
		{"version 0", "wrn0_" + text[5:], errNoToken},
		{"no version", "wrn_" + text[5:], errNoToken},
		{"a version that is no number", "wrnx_" + text[5:], errNoToken},
		{"the next version", "wrn2_" + text[5:], errTokenNewer},
		{"the next version, cut short", "wrn2_", errTokenNewer},
		{"a far version", "wrn17_anything!", errTokenNewer},
		{"the prefix alone", TokenPrefix, errTokenCutShort},
		{"a character of the length changed", TokenPrefix + "B" + text[6:], errTokenTypo},
		{"twice", text + text, errTokenTypo},
		{"a character too many", text + "A", errTokenTypo},
		{"a quote behind", text + `"`, errTokenTypo},
		{"a line break inside", text[:40] + "\n" + text[40:], errTokenTypo},
		{"standard base64", strings.Replace(text, "-", "+", 1), errTokenTypo},
		{"padding", text + "=", errTokenTypo},
		{"too long", TokenPrefix + strings.Repeat("A", maxTokenText), errTokenTypo},
		{"an empty body", sealed(nil), errTokenInvalid},
		{"a body cut short", sealed(body[:len(body)-1]), errTokenInvalid},
		{"a body too long", sealed(append(bytes.Clone(body), 0)), errTokenInvalid},
		{"an unknown flag", sealed(flags), errTokenInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseToken(tt.text)
			if !errors.Is(err, tt.want) || !strings.HasPrefix(err.Error(), "reading a token: ") {
				t.Fatalf("ParseToken = %v, %v; want %v", got, err, tt.want)
			}
			if !reflect.DeepEqual(got, Token{}) {
				t.Errorf("ParseToken fails and returns %#v", got.Edges)
			}
		})
	}
}

// Whoever copies a part of a token is told that, however small the part.
func TestTokenCutShort(t *testing.T) {
	for _, token := range []Token{fixed(false), NewToken(true, []Edge{newEdge(t, "a:1", "[2001:db8::1]:2"), newEdge(t, "b:3")})} {
		text := textOf(t, token)
		for n := 1; n < len(text); n++ {
			if _, err := ParseToken(text[:n]); !errors.Is(err, errTokenCutShort) {
				t.Errorf("the first %d of %d characters: %v", n, len(text), err)
			}
		}
	}
}

// No single wrong character is accepted, and none is taken for anything but a
// typo, wherever it is, the length and the CRC included.
func TestTokenTypo(t *testing.T) {
	const others = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" + "+/= .\n\x00\"!\xff"
	for _, token := range []Token{fixed(false), NewToken(true, []Edge{newEdge(t, "a:1")}), NewToken(true, []Edge{newEdge(t, "ab:1")}), NewToken(true, []Edge{newEdge(t, "abc:1")})} {
		text := textOf(t, token)
		for i := range len(text) {
			for _, c := range append([]rune(others), 'é', '\u2028') {
				wrong := text[:i] + string(c) + text[i+1:]
				if wrong == text {
					continue
				}
				_, err := ParseToken(wrong)
				switch {
				case errors.Is(err, errTokenTypo) && i >= len(TokenPrefix):
				case errors.Is(err, errTokenNewer) && i == 3 && c >= '2' && c <= '9':
				case errors.Is(err, errNoToken) && i < len(TokenPrefix):
				// Space at the end is not a part of the text.
				case errors.Is(err, errTokenCutShort) && i == len(text)-1 && strings.TrimSpace(string(c)) == "":
				default:
					t.Errorf("%q instead of %q at %d: %v", c, text[i], i, err)
				}
			}
		}
	}
}

// The errors are constants: nothing of the text is in them.
func TestParseTokenErrorsHoldNothing(t *testing.T) {
	text := textOf(t, fixed(false))
	allowed := map[string]bool{}
	for _, err := range []error{errNoToken, errTokenNewer, errTokenCutShort, errTokenTypo, errTokenInvalid} {
		allowed["reading a token: "+err.Error()] = true
	}
	for i := range text {
		for _, wrong := range []string{text[:i], text[i:], text[:i] + "!" + text[i+1:]} {
			if _, err := ParseToken(wrong); err != nil && !allowed[err.Error()] {
				t.Fatalf("ParseToken fails with %v", err)
			}
		}
	}
}

func TestTokenHidesItsSecret(t *testing.T) {
	token := fixed(true)
	shown := map[string]string{}
	for _, verb := range strings.Fields("%v %+v %#v %s %q %x %X %d %o %O %b %c %U %t %e %g %T %+d %#x % x %100v") {
		shown[verb] = fmt.Sprintf(verb, token)
		shown["pointer "+verb] = fmt.Sprintf(verb, &token)
		shown["in a struct "+verb] = fmt.Sprintf(verb, struct{ Token Token }{token})
		shown["in a slice "+verb] = fmt.Sprintf(verb, []any{token, []Token{token}, map[string]Token{"a": token}})
	}
	for _, verb := range strings.Fields("%v %+v %#v %x %d") {
		shown["in an unexported field "+verb] = fmt.Sprintf(verb, struct{ token Token }{token})
	}
	shown["print"] = fmt.Sprint(token, &token)
	shown["error"] = fmt.Errorf("enrolling with %v", token).Error()
	for _, handler := range []string{"text", "json"} {
		var b bytes.Buffer
		log := slog.New(slog.NewTextHandler(&b, nil))
		if handler == "json" {
			log = slog.New(slog.NewJSONHandler(&b, nil))
		}
		log.Info("enrolling", "token", token, "pointer", &token, "struct", struct{ Token Token }{token}, "unexported", struct{ token Token }{token}, "list", []Token{token})
		shown["slog "+handler] = b.String()
	}
	for name, value := range map[string]any{"value": token, "pointer": &token, "struct": struct{ Token Token }{token}} {
		b, err := json.Marshal(value)
		if err == nil || !strings.Contains(err.Error(), "encoding a token: it holds a secret") {
			t.Errorf("json of a %s: %s, %v", name, b, err)
		}
		shown["json "+name] = string(b) + fmt.Sprint(err)
	}
	for name, text := range shown {
		for what, secret := range secretsOf(t, token) {
			if strings.Contains(strings.ToLower(text), strings.ToLower(secret)) {
				t.Errorf("%s shows the token's %s: %s", name, what, text)
			}
		}
	}
	if s := token.String(); s != "token 0102030405060708" {
		t.Errorf("String = %q", s)
	}
}

// secretsOf spells what must not be seen, in the ways that fmt and encoders
// have. Six bytes of it are enough to be found.
func secretsOf(t *testing.T, token Token) map[string]string {
	part := token.Secret[3:9]
	secrets := map[string]string{
		"text":           textOf(t, token)[40:],
		"hex":            hex.EncodeToString(part),
		"spaced hex":     fmt.Sprintf("% x", part),
		"base64":         base64.StdEncoding.EncodeToString(part),
		"numbers":        strings.Trim(fmt.Sprint(part), "[]"),
		"Go numbers":     strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", part), "[]byte{"), "}"),
		"octal":          strings.Trim(fmt.Sprintf("%o", part), "[]"),
		"binary":         strings.Trim(fmt.Sprintf("%b", part), "[]"),
		"bytes":          string(part),
		"bootstrap key":  token.Bootstrap()[0].String(),
		"preshared key":  token.PresharedKey().String(),
		"JSON's numbers": strings.ReplaceAll(strings.Trim(fmt.Sprint(part), "[]"), " ", ","),
	}
	return secrets
}

// What is read is what was written, and writing it again gives the text.
func FuzzParseToken(f *testing.F) {
	for _, seed := range []string{"", "wrn", TokenPrefix, "wrn2_AAAA", fixedText, fixedReusableText, fixedText[:60], fixedText + "A", " " + fixedText + "\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err != nil {
			for _, want := range []error{errNoToken, errTokenNewer, errTokenCutShort, errTokenTypo, errTokenInvalid} {
				if errors.Is(err, want) {
					return
				}
			}
			t.Fatalf("ParseToken fails with %v", err)
		}
		if back := textOf(t, token); back != strings.TrimSpace(text) {
			t.Fatalf("%q was read, and written as %q", text, back)
		}
	})
}

// The checksum keeps a fuzzer out, so this one seals what it makes up.
func FuzzTokenBody(f *testing.F) {
	for _, token := range []Token{fixed(false), fixed(true)} {
		body, _ := bodyOf(token)
		f.Add(body)
		f.Add(body[:len(body)-1])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) > 1<<16-1 {
			return
		}
		text := TokenPrefix + encoding.EncodeToString(seal(body))
		token, err := ParseToken(text)
		if err != nil {
			if !errors.Is(err, errTokenInvalid) && len(text) <= maxTokenText {
				t.Fatalf("ParseToken fails with %v", err)
			}
			return
		}
		if back := textOf(t, token); back != text {
			t.Fatalf("%q was read, and written as %q", text, back)
		}
	})
}
