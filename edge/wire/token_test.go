package wire

import (
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func newEdge(t *testing.T, urls ...string) Edge {
	t.Helper()
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return Edge{PublicKey: Key{key.PublicKey()}, URLs: urls}
}

func TestTokenRoundTrip(t *testing.T) {
	token := NewToken(true, []Edge{newEdge(t, "fra1.example.net:51820"), newEdge(t, "203.0.113.10:51820", "[2001:db8::1]:51820")})
	text, err := token.Text()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseToken(" " + text + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if back, err := again.Text(); err != nil || back != text {
		t.Errorf("read back: %q, %v; want %q", back, err, text)
	}
	if len(again.Bootstrap()) != ReusableKeys || again.Bootstrap()[3] != token.Bootstrap()[3] || again.PresharedKey() != token.PresharedKey() {
		t.Error("the keys differ")
	}
}
