package tunnel

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/curve25519"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// initiation makes the first message of a handshake (Noise IKpsk2, as the
// WireGuard paper has it in section 5.4.2), dated as the caller likes:
// wireguard-go's own clock cannot be turned.
func initiation(t testing.TB, from wgtypes.Key, to wgtypes.Key, dated time.Time) []byte {
	t.Helper()
	ephemeral := newKey(t)
	public, static := ephemeral.PublicKey(), from.PublicKey()
	hash, chain := device.InitialHash, device.InitialChainKey
	mixHash := func(data []byte) { hash = blake2s.Sum256(append(hash[:], data...)) }
	dh := func(key wgtypes.Key) []byte {
		secret, err := curve25519.X25519(key[:], to[:])
		if err != nil {
			t.Fatal(err)
		}
		return secret
	}
	seal := func(secret, plain []byte) []byte {
		var key [chacha20poly1305.KeySize]byte
		device.KDF2(&chain, &key, chain[:], secret)
		aead, err := chacha20poly1305.New(key[:])
		if err != nil {
			t.Fatal(err)
		}
		sealed := aead.Seal(nil, make([]byte, chacha20poly1305.NonceSize), plain, hash[:])
		mixHash(sealed)
		return sealed
	}
	mixHash(to[:])
	device.KDF1(&chain, chain[:], public[:])
	mixHash(public[:])
	stamp := binary.BigEndian.AppendUint64(nil, 0x400000000000000a+uint64(dated.Unix())) // TAI64N
	stamp = binary.BigEndian.AppendUint32(stamp, uint32(dated.Nanosecond()))

	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, []uint32{device.MessageInitiationType, 42})
	b.Write(public[:])
	b.Write(seal(dh(ephemeral), static[:]))
	b.Write(seal(dh(from), stamp))
	packet := append(b.Bytes(), make([]byte, 32)...)
	var macs device.CookieGenerator
	macs.Init(device.NoisePublicKey(to))
	macs.AddMacs(packet)
	return packet
}

// send sends a datagram from a socket of its own, and returns the socket.
func send(t testing.TB, to netip.AddrPort, datagram []byte) *net.UDPConn {
	t.Helper()
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := conn.Write(datagram); err != nil {
		t.Fatal(err)
	}
	return conn
}

// answered reports whether a handshake's response comes within a while.
func answered(t testing.TB, conn *net.UDPConn, within time.Duration) bool {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(within))
	b := make([]byte, 1500)
	n, err := conn.Read(b)
	return err == nil && n == device.MessageResponseSize && b[0] == device.MessageResponseType
}

// shake makes the edge take a handshake of from, dated so or a little later:
// WireGuard takes none for 20 ms after another.
func shake(t testing.TB, e *testEdge, from wgtypes.Key, dated time.Time) {
	t.Helper()
	for i := range 30 {
		if answered(t, send(t, e.addr(), initiation(t, from, e.PublicKey(), dated.Add(time.Duration(i)*time.Second))), time.Second) {
			return
		}
	}
	t.Fatal("no handshake was answered")
}
