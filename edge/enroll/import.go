package enroll

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

// recordPrefix begins the record of a token; the number is the version of what
// follows: base64url without padding of the terms in JSON and, in four bytes,
// its CRC-32 (IEEE).
const recordPrefix = "wrntr1_"

// maxRecord is the most characters of a record: one with wire.MaxRoutes IPv6
// routes has 80,000.
const maxRecord = 128 << 10

// writeRecord writes a token for the other edges that it is good for.
func writeRecord(t terms) string {
	body, err := json.Marshal(t)
	if err != nil {
		panic(fmt.Sprintf("encoding a token's record: %v", err)) // of plain types alone
	}
	return sealRecord(body)
}

func sealRecord(body []byte) string {
	return recordPrefix + base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint32(body, crc32.ChecksumIEEE(body)))
}

// readRecord reads what writeRecord wrote; space around it is ignored. Its
// error holds nothing of the text.
func readRecord(text string) (terms, error) {
	encoded, ok := strings.CutPrefix(strings.TrimSpace(text), recordPrefix)
	switch {
	case strings.HasPrefix(encoded, wire.TokenPrefix):
		return terms{}, fail(BadRequest, "importing a token: this is the token itself: import the record that `warren token create` printed with it, which begins with %s", recordPrefix)
	case !ok:
		return terms{}, fail(BadRequest, "importing a token: this is not a token's record: one begins with %s", recordPrefix)
	}
	raw, err := base64.RawURLEncoding.DecodeString(encoded)
	body := raw[:max(0, len(raw)-crc32.Size)]
	if err != nil || len(encoded) > maxRecord || len(raw) < crc32.Size || binary.BigEndian.Uint32(raw[len(body):]) != crc32.ChecksumIEEE(body) {
		return terms{}, fail(BadRequest, "importing a token: the record was cut short or has a typo (its checksum does not match): copy all of it again")
	}
	var t terms
	if err := json.Unmarshal(body, &t); err != nil || !t.sound() {
		return terms{}, fail(BadRequest, "importing a token: the record's checksum matches but its content makes no sense: make a new token")
	}
	t.Created, t.Expires = t.Created.UTC(), t.Expires.UTC()
	return t, nil
}

// sound reports whether CreateToken could have made the record.
func (t terms) sound() bool {
	id, err := hex.DecodeString(t.ID)
	keys := 1
	if t.Reusable {
		keys = wire.ReusableKeys
	}
	distinct := make(map[wire.Key]bool)
	for _, key := range t.Bootstrap {
		distinct[key] = true
	}
	if cleanTime(t.Created).IsZero() || cleanTime(t.Expires).IsZero() {
		return false
	}
	return err == nil && len(id) == len(wire.TokenID{}) && t.ID == strings.ToLower(t.ID) &&
		len(t.Edges) > 0 && len(t.Bootstrap) == keys && len(distinct) == keys && !distinct[wire.Key{}] &&
		t.Preshared.Key != (wgtypes.Key{}) && (t.Reusable || !t.Ephemeral)
}

// ImportToken makes a token known that another edge created.
func (r *Registry) ImportToken(text string) (TokenInfo, error) {
	rec, err := readRecord(text)
	if err != nil {
		return TokenInfo{}, err
	}
	r.changing.Lock()
	defer r.changing.Unlock()
	now := r.now().UTC()
	doing := "importing token " + rec.ID
	switch {
	case !slices.Contains(rec.Edges, wire.Key{Key: r.self}):
		return TokenInfo{}, fail(Refused, "%s: it is not for this edge, whose public key is %s: name that one with --edge where the token is created", doing, r.self)
	case r.tokens[rec.ID] != nil:
		return TokenInfo{}, fail(Refused, "%s: this edge has it already", doing)
	case !now.Before(rec.Expires):
		return TokenInfo{}, fail(Refused, "%s: it expired on %s: make a new one", doing, date(rec.Expires))
	case rec.Expires.Sub(now) > MaxTTL:
		return TokenInfo{}, fail(Refused, "%s: it expires on %s, later than any token does: does this machine's clock stand right?", doing, date(rec.Expires))
	}
	for _, key := range rec.Bootstrap {
		if why := r.knownAs(key.Key); why != "" {
			return TokenInfo{}, fail(Refused, "%s: its key %s is known already: it is %s", doing, abbreviate(key.Key), why)
		}
	}
	if err := r.checkTerms(doing, rec, now); err != nil {
		return TokenInfo{}, err
	}
	t := &token{rec: tokenRecord{terms: rec, Imported: true}}
	if err := r.admit(t, doing); err != nil {
		return TokenInfo{}, err
	}
	return r.tokenInfo(t, now), nil
}
