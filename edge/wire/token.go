package wire

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"net"
	"strconv"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// TokenPrefix begins every token; the number is the version of what follows.
const TokenPrefix = "wrn1_"

// ReusableKeys is how many bootstrap keys a reusable token has. Joiners that
// share a key take its session from each other; a joiner picks one of them for
// each attempt.
const ReusableKeys = 8

// Bounds of a token.
const (
	maxTokenText  = 4096 // characters
	maxTokenEdges = 16
	maxTokenURLs  = 8 // of one edge
)

// TokenID names a token. It is no secret.
type TokenID [8]byte

// String is the id as people see it.
func (id TokenID) String() string { return hex.EncodeToString(id[:]) }

// Token is what a person carries from an edge to a new connector. Whoever has
// it can enrol; the edge keeps only the public halves of what Bootstrap makes.
//
// Its text is TokenPrefix and, in base64url without padding (RFC 4648
// section 5):
//
//	2 bytes   length of all that follows but the CRC, so that a token that was cut short is known for that
//	8 bytes   id
//	1 byte    flags: 1 = reusable
//	1 byte    number of edges, then for each its public key (32 bytes), the number
//	          of its URLs (1 byte) and each URL behind its length (1 byte)
//	32 bytes  secret
//	4 bytes   CRC-32 (IEEE) of all before
//
// Numbers are big-endian.
type Token struct {
	ID       TokenID
	Reusable bool
	Edges    []Edge // different ones, at least one, each with at least one URL
	Secret   [32]byte
}

// NewToken draws an id and a secret.
func NewToken(reusable bool, edges []Edge) Token {
	t := Token{Reusable: reusable, Edges: edges}
	rand.Read(t.ID[:])
	rand.Read(t.Secret[:])
	return t
}

// Errors of ParseToken.
var (
	ErrNoToken       = errors.New("this is not a token: one begins with " + TokenPrefix)
	ErrTokenNewer    = errors.New("the token was made by a later release: install that release here")
	ErrTokenCutShort = errors.New("the token was cut short: copy all of it")
	ErrTokenTypo     = errors.New("the token has a typo (its checksum does not match): copy it again")
	ErrTokenInvalid  = errors.New("the token's checksum matches but its content makes no sense: make a new one")
)

// String hides the secret.
func (t Token) String() string { return "token " + t.ID.String() }

// GoString hides the secret.
func (t Token) GoString() string { return t.String() }

// LogValue hides the secret.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.ID.String()) }

// MarshalText refuses: a token is written on purpose, with Text, or not at all.
func (t Token) MarshalText() ([]byte, error) {
	return nil, errors.New("encoding a token: it holds a secret")
}

// Text is the token itself, secret and all.
func (t Token) Text() (string, error) {
	if err := t.check(); err != nil {
		return "", fmt.Errorf("writing a token: %w", err)
	}
	var b cryptobyte.Builder
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddBytes(t.ID[:])
		flags := uint8(0)
		if t.Reusable {
			flags = flagReusable
		}
		b.AddUint8(flags)
		b.AddUint8(uint8(len(t.Edges)))
		for _, e := range t.Edges {
			b.AddBytes(e.PublicKey.Key[:])
			b.AddUint8(uint8(len(e.URLs)))
			for _, u := range e.URLs {
				b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(u)) })
			}
		}
		b.AddBytes(t.Secret[:])
	})
	body, err := b.Bytes()
	if err != nil {
		return "", fmt.Errorf("writing a token: %w", err)
	}
	b.AddUint32(crc32.ChecksumIEEE(body))
	text := TokenPrefix + base64.RawURLEncoding.EncodeToString(b.BytesOrPanic())
	if len(text) > maxTokenText {
		return "", fmt.Errorf("writing a token: it would have %d characters, more than %d: name fewer addresses", len(text), maxTokenText)
	}
	return text, nil
}

const flagReusable = 1 << 0

// check refuses what ParseToken would not take.
func (t Token) check() error {
	if len(t.Edges) == 0 || len(t.Edges) > maxTokenEdges {
		return fmt.Errorf("it names %d edges, want 1 to %d", len(t.Edges), maxTokenEdges)
	}
	seen := make(map[Key]bool, len(t.Edges))
	for _, e := range t.Edges {
		if e.PublicKey.Key == (wgtypes.Key{}) || seen[e.PublicKey] {
			return errors.New("each edge needs a public key of its own")
		}
		seen[e.PublicKey] = true
		if len(e.URLs) == 0 || len(e.URLs) > maxTokenURLs {
			return fmt.Errorf("an edge has %d addresses, want 1 to %d", len(e.URLs), maxTokenURLs)
		}
		for _, u := range e.URLs {
			if err := checkURL(u); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkURL refuses what is not "host:port".
func checkURL(u string) error {
	host, port, err := net.SplitHostPort(u)
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil || n == 0 || host == "" || len(u) > 255 || strings.ContainsFunc(u, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("%q is not a host and a port", u)
	}
	return nil
}

// ParseToken reads a token's text; space around it is ignored. Its error is,
// or wraps, one of the errors above and holds nothing of the text.
func ParseToken(text string) (Token, error) {
	body, err := openToken(strings.TrimSpace(text))
	if err != nil {
		return Token{}, fmt.Errorf("reading a token: %w", err)
	}
	t, ok := parseBody(body)
	if !ok || t.check() != nil {
		return Token{}, fmt.Errorf("reading a token: %w", ErrTokenInvalid)
	}
	return t, nil
}

// openToken takes off the prefix, the base64, the length and the CRC.
func openToken(text string) ([]byte, error) {
	encoded, ok := strings.CutPrefix(text, TokenPrefix)
	if !ok {
		if rest, ok := strings.CutPrefix(text, "wrn"); ok {
			version, _, found := strings.Cut(rest, "_")
			if n, err := strconv.ParseUint(version, 10, 16); err == nil && found && n > 1 {
				return nil, ErrTokenNewer
			}
		}
		return nil, ErrNoToken
	}
	if len(text) > maxTokenText {
		return nil, ErrTokenTypo
	}
	// A text that was cut may end inside a group of four characters, which
	// alone would be a wrong encoding.
	raw, err := base64.RawURLEncoding.DecodeString(encoded)
	whole := err == nil
	if !whole {
		raw, _ = base64.RawURLEncoding.DecodeString(encoded[:len(encoded)/4*4])
	}
	if len(raw) < 2 {
		return nil, ErrTokenCutShort
	}
	want := 2 + (int(raw[0])<<8 | int(raw[1])) + crc32.Size
	switch {
	case len(raw) < want && base64.RawURLEncoding.EncodedLen(want) > len(encoded):
		return nil, ErrTokenCutShort
	case !whole || len(raw) != want:
		return nil, ErrTokenTypo
	}
	sum := cryptobyte.String(raw[want-crc32.Size:])
	var crc uint32
	if !sum.ReadUint32(&crc) || crc != crc32.ChecksumIEEE(raw[:want-crc32.Size]) {
		return nil, ErrTokenTypo
	}
	return raw[2 : want-crc32.Size], nil
}

func parseBody(body []byte) (Token, bool) {
	var t Token
	var flags, edges uint8
	s := cryptobyte.String(body)
	if !s.CopyBytes(t.ID[:]) || !s.ReadUint8(&flags) || !s.ReadUint8(&edges) {
		return t, false
	}
	t.Reusable = flags&flagReusable != 0
	for range edges {
		var e Edge
		var urls uint8
		if !s.CopyBytes(e.PublicKey.Key[:]) || !s.ReadUint8(&urls) {
			return t, false
		}
		for range urls {
			var u cryptobyte.String
			if !s.ReadUint8LengthPrefixed(&u) {
				return t, false
			}
			e.URLs = append(e.URLs, string(u))
		}
		t.Edges = append(t.Edges, e)
	}
	return t, s.CopyBytes(t.Secret[:]) && s.Empty()
}

// Bootstrap returns the WireGuard private keys with which joiners call, one or
// ReusableKeys. The edge is given their public halves.
func (t Token) Bootstrap() []wgtypes.Key {
	n := 1
	if t.Reusable {
		n = ReusableKeys
	}
	keys := make([]wgtypes.Key, n)
	for i := range keys {
		keys[i] = t.derive(fmt.Sprintf("warren bootstrap key %d", i))
		// Clamping, as RFC 7748 section 5 has it.
		keys[i][0] &= 248
		keys[i][31] = keys[i][31]&127 | 64
	}
	return keys
}

// PresharedKey is the second factor of those handshakes.
func (t Token) PresharedKey() wgtypes.Key { return t.derive("warren bootstrap preshared key") }

// derive is HKDF with SHA-256 (RFC 5869) over the secret, with the id as salt.
func (t Token) derive(info string) wgtypes.Key {
	b, err := hkdf.Key(sha256.New, t.Secret[:], t.ID[:], info, wgtypes.KeyLen)
	if err != nil {
		panic(err) // of lengths alone, which are constant
	}
	return wgtypes.Key(b)
}
