package strict

import (
	"encoding"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes, written "64MiB". Units are B, KiB, MiB, GiB, TiB
// (powers of 1024) and kB, MB, GB, TB (powers of 1000).
type Size int64

var sizeUnits = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1},
}

// String writes the size with the largest binary unit that keeps it whole.
func (s Size) String() string {
	for _, u := range sizeUnits[:4] {
		if s != 0 && int64(s)%u.bytes == 0 {
			return fmt.Sprintf("%d%s", int64(s)/u.bytes, u.name)
		}
	}
	return fmt.Sprintf("%dB", int64(s))
}

// ParseSize reads "64MiB".
func ParseSize(text string) (Size, error) {
	for _, u := range sizeUnits {
		num, ok := strings.CutSuffix(text, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(num, 10, 64)
		if err != nil || n < 0 {
			break
		}
		if n > math.MaxInt64/u.bytes {
			return 0, Reject("size out of range", "")
		}
		return Size(n * u.bytes), nil
	}
	return 0, Reject("not a size", `write a whole number and a unit: "512KiB", "64MiB", "1GiB"`)
}

// parseDuration reads "1m30s". Negative durations have no meaning anywhere in
// the configuration.
func parseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	switch {
	case err != nil && digits(text) == len(text):
		return 0, Reject("a duration needs a unit", fmt.Sprintf("did you mean %q?", text+"s"))
	case err != nil:
		return 0, Reject("not a duration", `write a number and a unit, ms, s, m or h: "500ms", "5s", "1h30m"`)
	case d < 0:
		return 0, Reject("negative duration", "")
	}
	return d, nil
}

// setText parses text into v, for which isText holds.
func setText(v reflect.Value, text string) error {
	var parsed any
	var err error
	switch v.Type() {
	case typeDuration:
		parsed, err = parseDuration(text)
	case typeSize:
		parsed, err = ParseSize(text)
	case typeAddr:
		parsed, err = ParseAddr(text)
	case typeAddrPort:
		parsed, err = ParseAddrPort(text)
	case typePrefix:
		parsed, err = ParsePrefix(text)
	default:
		return v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(text))
	}
	if err != nil {
		return err
	}
	v.Set(reflect.ValueOf(parsed))
	return nil
}

// plainAddr refuses the forms of an address that would compare unequal to the
// same address written plainly.
func plainAddr(a netip.Addr) error {
	switch {
	case a.Is4In6():
		return Reject("an IPv4 address in IPv6 clothes", fmt.Sprintf("write %q", a.Unmap()))
	case a.Zone() != "":
		return Reject("an address with a zone", fmt.Sprintf("write %q", a.WithZone("")))
	}
	return nil
}

// ParseAddr reads an address without a zone, IPv4 as such. Its error is a
// Fault, as are those of ParseAddrPort and ParsePrefix.
func ParseAddr(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if err != nil {
		hint := `write it like "192.0.2.1" or "2001:db8::1"`
		if p, err := netip.ParsePrefix(text); err == nil {
			hint = fmt.Sprintf("write one address without the prefix length: %q", p.Addr())
		} else if ap, err := netip.ParseAddrPort(text); err == nil {
			hint = fmt.Sprintf("write it without the port: %q", ap.Addr())
		}
		return a, Reject("not an IP address", hint)
	}
	return a, plainAddr(a)
}

// ParseAddrPort reads "192.0.2.1:443" or "[2001:db8::1]:443".
func ParseAddrPort(text string) (netip.AddrPort, error) {
	ap, err := netip.ParseAddrPort(text)
	if err == nil {
		return ap, plainAddr(ap.Addr())
	}
	const hint = `write it like "192.0.2.1:443" or "[2001:db8::1]:443"`
	if a, err := netip.ParseAddr(text); err == nil {
		return ap, Reject("the port is missing", fmt.Sprintf("write it like %q", netip.AddrPortFrom(a, 443)))
	}
	if i := strings.LastIndexByte(text, ':'); i > 0 {
		_, err := netip.ParseAddr(strings.Trim(text[:i], "[]"))
		if n, perr := strconv.ParseInt(text[i+1:], 10, 64); err == nil && (perr != nil || n < 0 || n > 65535) {
			return ap, Reject("port out of range", "use 1 to 65535")
		}
	}
	return ap, Reject("not an address and port", hint)
}

// ParsePrefix reads "10.0.0.0/16", without bits behind the prefix length.
func ParsePrefix(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		if a, aerr := netip.ParseAddr(text); aerr == nil {
			return p, Reject("the prefix length is missing", fmt.Sprintf("write %q for this one address", netip.PrefixFrom(a, a.BitLen())))
		}
		return p, Reject("not a prefix", `write it like "10.0.0.0/16" or "2001:db8::/32"`)
	}
	if err := plainAddr(p.Addr()); err != nil {
		return p, Reject("an IPv4 prefix in IPv6 clothes", `write it like "10.0.0.0/16"`)
	}
	if p != p.Masked() {
		return p, Reject("address bits behind the prefix length are set", fmt.Sprintf("write %q", p.Masked()))
	}
	return p, nil
}

// keyLen is the length of a WireGuard key in bytes.
const keyLen = 32

// ParseKey reads a WireGuard public key in base64, as `warren pubkey` prints
// it. Its error is a Fault that does not hold the key: it may be a private one.
func ParseKey(text string) (key [keyLen]byte, err error) {
	const hint = "write the 44 characters that `warren pubkey` prints"
	raw, err := base64.StdEncoding.Strict().DecodeString(text)
	switch {
	case err != nil || strings.ContainsAny(text, "\r\n"):
		return key, Reject("not a WireGuard key", hint)
	case len(raw) != keyLen:
		return key, Reject(fmt.Sprintf("a key of %d bytes, not %d", len(raw), keyLen), hint)
	}
	copy(key[:], raw)
	if key == [keyLen]byte{} {
		return key, Reject("the key is all zeroes", hint)
	}
	return key, nil
}

// fits tells whether a decoded value may go into a field of kind k.
func fits(value any, k reflect.Kind) bool {
	switch value.(type) {
	case string:
		return k == reflect.String
	case bool:
		return k == reflect.Bool
	case int64:
		return k >= reflect.Int && k <= reflect.Float64 && k != reflect.Uintptr
	case float64:
		return k == reflect.Float32 || k == reflect.Float64
	}
	return false
}

// setPlain sets a string, bool, integer or float; the value must fit the kind.
func setPlain(v reflect.Value, value any) error {
	switch value := value.(type) {
	case string:
		v.SetString(value)
	case bool:
		v.SetBool(value)
	case float64:
		v.SetFloat(value)
	case int64:
		return setInt(v, value)
	}
	return nil
}

func setInt(v reflect.Value, i int64) error {
	switch {
	case v.CanFloat():
		v.SetFloat(float64(i))
	case v.CanInt() && !v.OverflowInt(i):
		v.SetInt(i)
	case v.CanUint() && i >= 0 && !v.OverflowUint(uint64(i)):
		v.SetUint(uint64(i))
	case v.CanUint() && v.Type().Bits() < 64:
		return Reject("out of range", fmt.Sprintf("use 0 to %d", uint64(1)<<v.Type().Bits()-1))
	default:
		return Reject("out of range", "")
	}
	return nil
}

func parseInt(text string) (int64, error) {
	i, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, errors.New("not an integer")
	}
	return i, nil
}

// inRange checks v against the range tag of its field.
func inRange(v reflect.Value, f Field) error {
	if f.Low == "" && f.High == "" {
		return nil
	}
	got := number(v)
	bound := reflect.New(v.Type()).Elem()
	for _, b := range []struct {
		text string
		bad  func(limit float64) bool
	}{
		{f.Low, func(limit float64) bool { return got < limit }},
		{f.High, func(limit float64) bool { return got > limit }},
	} {
		if b.text == "" {
			continue
		}
		if err := setDefault(bound, b.text); err != nil {
			panic(fmt.Sprintf("strict: range of %s: %v", f.Key, err)) // found by any test that sets the key
		}
		if b.bad(number(bound)) {
			return Reject("out of range", f.Legal())
		}
	}
	return nil
}

// number returns the value of v for comparisons. Bounds are far below 2^53, so
// no precision that matters is lost.
func number(v reflect.Value) float64 {
	switch {
	case v.CanInt():
		return float64(v.Int())
	case v.CanUint():
		return float64(v.Uint())
	case v.CanFloat():
		return v.Float()
	}
	return 0
}
