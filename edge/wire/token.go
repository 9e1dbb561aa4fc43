package wire

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
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
//	2 bytes   length of all that follows the next byte, but for the CRC: a token that was cut short is known for that
//	1 byte    XOR of those two, so that a typo in them is not taken for a cut
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

	// Secret is behind a pointer because %v follows none inside a value: not
	// even a struct with its token in an unexported field, where fmt calls no
	// method, shows it.
	Secret *[32]byte
}

// NewToken draws an id and a secret.
func NewToken(reusable bool, edges []Edge) Token {
	t := Token{Reusable: reusable, Edges: edges, Secret: new([32]byte)}
	rand.Read(t.ID[:])
	rand.Read(t.Secret[:])
	return t
}

// What ParseToken finds wrong, each with what to do about it.
var (
	errNoToken       = errors.New("this is not a token: one begins with " + TokenPrefix)
	errTokenNewer    = errors.New("the token was made by a later release: install that release here")
	errTokenCutShort = errors.New("the token was cut short: copy all of it")
	errTokenTypo     = errors.New("the token has a typo (its checksum does not match): copy it again")
	errTokenInvalid  = errors.New("the token's checksum matches but its content makes no sense: make a new one")
)

// String hides the secret.
func (t Token) String() string { return "token " + t.ID.String() }

// Format hides the secret from every verb of fmt: %d, for one, does not ask
// String.
func (t Token) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, t.String()) }

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
	var body cryptobyte.Builder
	body.AddBytes(t.ID[:])
	flags := uint8(0)
	if t.Reusable {
		flags = flagReusable
	}
	body.AddUint8(flags)
	body.AddUint8(uint8(len(t.Edges)))
	for _, e := range t.Edges {
		body.AddBytes(e.PublicKey.Key[:])
		body.AddUint8(uint8(len(e.URLs)))
		for _, u := range e.URLs {
			body.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(u)) })
		}
	}
	body.AddBytes(t.Secret[:])
	text := TokenPrefix + encoding.EncodeToString(seal(body.BytesOrPanic())) // of lengths alone, which check bounds
	if len(text) > maxTokenText {
		return "", fmt.Errorf("writing a token: it would have %d characters, more than %d: name fewer addresses", len(text), maxTokenText)
	}
	return text, nil
}

// encoding of a token. Strict, or the last character could be another one.
var encoding = base64.RawURLEncoding.Strict()

// headerLen is the length and its check: three bytes are four characters of
// their own.
const headerLen = 3

// seal puts the header before the body and the CRC behind.
func seal(body []byte) []byte {
	high, low := uint8(len(body)>>8), uint8(len(body))
	raw := append([]byte{high, low, high ^ low}, body...)
	return binary.BigEndian.AppendUint32(raw, crc32.ChecksumIEEE(raw))
}

const flagReusable = 1 << 0

// check refuses what ParseToken would not take.
func (t Token) check() error {
	if t.Secret == nil {
		return errors.New("it has no secret")
	}
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

// ParseToken reads a token's text; space around it is ignored. Its error wraps
// one that tells what is wrong and what to do, and holds nothing of the text.
func ParseToken(text string) (Token, error) {
	body, err := openToken(strings.TrimSpace(text))
	if err != nil {
		return Token{}, fmt.Errorf("reading a token: %w", err)
	}
	t, ok := parseBody(body)
	if !ok || t.check() != nil {
		return Token{}, fmt.Errorf("reading a token: %w", errTokenInvalid)
	}
	return t, nil
}

// openToken takes off the prefix, the base64, the header and the CRC.
func openToken(text string) ([]byte, error) {
	encoded, ok := strings.CutPrefix(text, TokenPrefix)
	switch {
	case !ok:
		return nil, otherText(text)
	case len(text) > maxTokenText || strings.ContainsFunc(encoded, notBase64):
		return nil, errTokenTypo
	case len(encoded) < encoding.EncodedLen(headerLen):
		return nil, errTokenCutShort
	}
	header, err := encoding.DecodeString(encoded[:encoding.EncodedLen(headerLen)])
	if err != nil || header[0]^header[1] != header[2] {
		return nil, errTokenTypo
	}
	end := headerLen + int(binary.BigEndian.Uint16(header))
	switch want := encoding.EncodedLen(end + crc32.Size); {
	case len(encoded) < want:
		return nil, errTokenCutShort
	case len(encoded) > want:
		return nil, errTokenTypo
	}
	raw, err := encoding.DecodeString(encoded)
	if err != nil || binary.BigEndian.Uint32(raw[end:]) != crc32.ChecksumIEEE(raw[:end]) {
		return nil, errTokenTypo
	}
	return raw[headerLen:end], nil
}

// otherText says what a text without our prefix is.
func otherText(text string) error {
	if text != "" && strings.HasPrefix(TokenPrefix, text) {
		return errTokenCutShort
	}
	rest, ok := strings.CutPrefix(text, "wrn")
	version, _, found := strings.Cut(rest, "_")
	if n, err := strconv.ParseUint(version, 10, 16); ok && found && err == nil && n > 1 {
		return errTokenNewer
	}
	return errNoToken
}

// notBase64 reports what cannot stand in a token. The decoder would skip line
// breaks.
func notBase64(r rune) bool {
	return (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_'
}

func parseBody(body []byte) (Token, bool) {
	t := Token{Secret: new([32]byte)}
	var flags, edges uint8
	s := cryptobyte.String(body)
	if !s.CopyBytes(t.ID[:]) || !s.ReadUint8(&flags) || !s.ReadUint8(&edges) || flags&^flagReusable != 0 {
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
