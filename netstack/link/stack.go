package link

import (
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// The rest of stack.LinkEndpoint: what a link without header, address or
// goroutine has to say.

// MTU is the largest IP packet that the path to the peer takes now, bytes.
func (e *Endpoint) MTU() uint32 { return e.mtu.Load() }

// SetMTU changes it; live flows follow, since the stack asks for each packet.
func (e *Endpoint) SetMTU(mtu uint32) { e.mtu.Store(mtu) }

// Capabilities: checksums are computed by the stack, but for those of TCP
// packets with GSO options, which Read completes; and verified by the stack, but
// where Deliver says RXChecksumValidated.
func (e *Endpoint) Capabilities() stack.LinkEndpointCapabilities { return stack.CapabilityNone }

// gsoMaxSize bounds what TCP hands over as one packet; its payload is at most
// 161 bytes smaller (gVisor's allowance for headers), so that the packet stays
// below 65,536 bytes and in one chunk of gVisor's.
const gsoMaxSize = 65535

// SupportedGSO says that Read cuts TCP packets into segments, and completes
// their checksums.
func (e *Endpoint) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// GSOMaxSize is explained at gsoMaxSize.
func (e *Endpoint) GSOMaxSize() uint32 { return gsoMaxSize }

// SetOwn says whether the peer is one of ours where each flow ends, and has
// promised to look at no TCP checksum. The segments that Read cuts then carry
// zero instead of one, and fill the MTU: the MSS that gVisor keeps to leaves 28
// bytes to options that data does not have. The default is false, and right for
// a stock device or a kernel's router, whose packets travel on. It may be called
// while traffic flows. IPv4 headers and UDP keep their checksums.
func (e *Endpoint) SetOwn(own bool) { e.own.Store(own) }

// SetTrusted says whether the peer's word is taken for the checksums of its TCP
// packets, which are then not looked at: WireGuard's Poly1305 vouches that they
// are as the peer made them, and the peer is where the flow ends. The default
// is false. It may be called while traffic flows.
func (e *Endpoint) SetTrusted(trusted bool) { e.trusted.Store(trusted) }

// Trusted reports what SetTrusted was told last.
func (e *Endpoint) Trusted() bool { return e.trusted.Load() }

// Attach takes the stack's dispatcher; nil when the NIC is removed.
func (e *Endpoint) Attach(dispatcher stack.NetworkDispatcher) {
	e.dispatcherMu.Lock()
	defer e.dispatcherMu.Unlock()
	e.dispatcher = dispatcher
}

// IsAttached reports whether a stack is attached.
func (e *Endpoint) IsAttached() bool {
	e.dispatcherMu.RLock()
	defer e.dispatcherMu.RUnlock()
	return e.dispatcher != nil
}

// MaxHeaderLength is 0: there is no link header.
func (e *Endpoint) MaxHeaderLength() uint16 { return 0 }

// LinkAddress is empty: there is no link address.
func (e *Endpoint) LinkAddress() tcpip.LinkAddress { return "" }

// SetLinkAddress does nothing.
func (e *Endpoint) SetLinkAddress(tcpip.LinkAddress) {}

// ARPHardwareType is none.
func (e *Endpoint) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

// AddHeader does nothing: there is no link header.
func (e *Endpoint) AddHeader(*stack.PacketBuffer) {}

// ParseHeader accepts every packet: there is no link header.
func (e *Endpoint) ParseHeader(*stack.PacketBuffer) bool { return true }

// Wait returns at once: the endpoint has no goroutine.
func (e *Endpoint) Wait() {}

// SetOnCloseAction does nothing: there is no device to destroy.
func (e *Endpoint) SetOnCloseAction(func()) {}
