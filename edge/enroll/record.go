package enroll

import (
	"encoding/base64"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

// Kinds of what is stored, each a record below in JSON.
const (
	kindToken     = "token"     // by its id
	kindConnector = "connector" // enrolled ones, by name
	kindDenial    = "denial"    // by the key, in base64url
)

// terms is what each of a token's edges has of it, and what crosses from one
// to another: with public keys and the preshared key nobody can enrol.
type terms struct {
	ID        string         `json:"id"`
	Name      string         `json:"name,omitempty"`
	Network   string         `json:"network"`
	Routes    []netip.Prefix `json:"routes"`
	Created   time.Time      `json:"created"`
	Expires   time.Time      `json:"expires"`
	Reusable  bool           `json:"reusable,omitempty"`
	Ephemeral bool           `json:"ephemeral,omitempty"`
	Edges     []wire.Key     `json:"edges"`
	Bootstrap []wire.Key     `json:"bootstrap"` // public keys
	Preshared wire.Key       `json:"preshared"`
}

// tokenRecord is a token as it is stored: its terms, and what became of it at
// this edge. It is never changed, but replaced.
type tokenRecord struct {
	terms
	Imported bool `json:"imported,omitempty"`

	Used     int       `json:"used,omitempty"` // connectors that were confirmed
	LastUsed time.Time `json:"last_used,omitzero"`
	Revoked  time.Time `json:"revoked,omitzero"`
	Spent    time.Time `json:"spent,omitzero"`
	SpentBy  spender   `json:"spent_by,omitzero"`
}

// spender is who spent a single-use token.
type spender struct {
	Name     string   `json:"name"`
	Hostname string   `json:"hostname,omitempty"`
	Key      wire.Key `json:"key"`
}

// connectorRecord is a connector that came by a token, or a declared one,
// which is not stored. It is never changed, but replaced.
type connectorRecord struct {
	Name      string         `json:"name"`
	Network   string         `json:"network"`
	Routes    []netip.Prefix `json:"routes"`
	Key       wire.Key       `json:"key"`
	KeySince  time.Time      `json:"key_since"`
	Next      wire.Key       `json:"next,omitzero"` // that it will change to
	Rotate    bool           `json:"rotate,omitempty"`
	Token     string         `json:"token"` // id
	Ephemeral bool           `json:"ephemeral,omitempty"`
	Hostname  string         `json:"hostname,omitempty"`
	Pending   bool           `json:"pending,omitempty"`
	Enrolled  time.Time      `json:"enrolled,omitzero"`
	// AbsentSince is of an ephemeral one that has been silent for longer than
	// brief.
	AbsentSince time.Time `json:"absent_since,omitzero"`
}

// denialRecord is a key that is refused for ever.
type denialRecord struct {
	Key     wire.Key  `json:"key"`
	Name    string    `json:"name"`
	Network string    `json:"network"`
	When    time.Time `json:"when"`
}

func (t tokenRecord) write() write     { return write{kindToken, t.ID, t} }
func (c connectorRecord) write() write { return write{kindConnector, c.Name, c} }
func (d denialRecord) write() write    { return write{kindDenial, denialID(d.Key.Key), d} }

func denialID(key wgtypes.Key) string { return base64.RawURLEncoding.EncodeToString(key[:]) }

func (c connectorRecord) keys() []wgtypes.Key {
	if c.Next.Key == (wgtypes.Key{}) {
		return []wgtypes.Key{c.Key.Key}
	}
	return []wgtypes.Key{c.Key.Key, c.Next.Key}
}

func (c connectorRecord) member() Member {
	return Member{Name: c.Name, Network: c.Network, PublicKey: c.Key.Key, Routes: slices.Clone(c.Routes)}
}

// abbreviate writes a key as logs do.
func abbreviate(key wgtypes.Key) string {
	s := base64.StdEncoding.EncodeToString(key[:])
	return s[:4] + "…" + s[39:43]
}

// date is how people are told of a time.
func date(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// clean makes text of a connector fit to be shown: at most limit bytes of it,
// with a mark in place of what is not printable.
func clean(text string, limit int) string {
	if len(text) > limit {
		text = text[:limit]
		for range utf8.UTFMax - 1 { // of a rune that was cut
			if last, size := utf8.DecodeLastRuneInString(text); last != utf8.RuneError || size != 1 {
				break
			}
			text = text[:len(text)-1]
		}
		text = strings.Clone(text) // or it would keep all of what it was cut from
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}
