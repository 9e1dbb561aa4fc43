package tunnel

import (
	"encoding/hex"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// wgState is what the device itself knows of a peer.
type wgState struct {
	endpoint  netip.AddrPort
	handshake time.Time
	traffic
}

// stateAge is how long an answer of the device serves: the device can only
// tell of all its peers at once.
const stateAge = time.Second

// askLocked asks the device for the state of its peers. The caller holds
// deviceMu.
func (t *Tunnel) askLocked() map[wgtypes.Key]wgState {
	if now := time.Now(); t.answer == nil || now.Sub(t.answered) > stateAge {
		if text, err := t.device.IpcGet(); err == nil {
			t.answer, t.answered = parseDeviceState(text), now
		}
	}
	return t.answer
}

// forgetDeviceState makes the next one who asks get a fresh answer.
func (t *Tunnel) forgetDeviceState() {
	t.deviceMu.Lock()
	defer t.deviceMu.Unlock()
	t.answer = nil
}

// parseDeviceState reads the text of wireguard-go's own IpcGet (the
// cross-platform userspace protocol, "get=1").
func parseDeviceState(text string) map[wgtypes.Key]wgState {
	peers := make(map[wgtypes.Key]wgState)
	var (
		key    wgtypes.Key
		peer   wgState
		sec    int64
		inPeer bool
	)
	flush := func() {
		if inPeer {
			peers[key] = peer
		}
	}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		switch name {
		case "public_key":
			flush()
			inPeer, peer, sec = true, wgState{}, 0
			_, _ = hex.Decode(key[:], []byte(value))
		case "endpoint":
			peer.endpoint, _ = netip.ParseAddrPort(value)
		case "last_handshake_time_sec":
			sec, _ = strconv.ParseInt(value, 10, 64)
		case "last_handshake_time_nsec":
			if nsec, _ := strconv.ParseInt(value, 10, 64); sec != 0 || nsec != 0 {
				peer.handshake = time.Unix(sec, nsec)
			}
		case "rx_bytes":
			peer.rx, _ = strconv.ParseUint(value, 10, 64)
		case "tx_bytes":
			peer.tx, _ = strconv.ParseUint(value, 10, 64)
		}
	}
	flush()
	return peers
}
