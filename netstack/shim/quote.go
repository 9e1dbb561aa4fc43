package shim

// icmpHeaderLen is the length of the header in front of the quote, in both
// ICMP versions and all of their errors (RFC 792, RFC 4443 section 3).
const icmpHeaderLen = 8

// IsICMPError reports whether in is an ICMP message about another packet. Of
// a fragmented one it recognises the first fragment, the only one that says.
func IsICMPError(in Inner) bool {
	if in.Fragment.Offset != 0 || len(in.Payload) == 0 {
		return false
	}
	kind := in.Payload[0]
	switch {
	case in.Proto == protoICMP4 && in.Src.Is4():
		switch kind {
		case 3, 4, 5, 11, 12: // unreachable, quench, redirect, exceeded, parameter
			return true
		}
	case in.Proto == protoICMP6 && in.Src.Is6():
		return kind < 128 // RFC 4443 section 2.1
	}
	return false
}

// Quoted returns the packet that an ICMP error quotes: one that this side is
// said to have sent. Such a quote is cut anywhere behind its header and 8
// bytes more, which is enough for Ports; Payload is what is there.
//
// An error comes from a router, so its own source says little: admit it when
// the quote's source is ours and the quote's destination was the sender's to
// serve. Nothing is said here about the quoted addresses but that they are not
// IPv4-mapped.
func Quoted(in Inner) (Inner, Why) {
	if !IsICMPError(in) {
		return Inner{}, QuoteNone
	}
	if in.Fragmented() {
		return Inner{}, QuoteFragmented
	}
	if len(in.Payload) <= icmpHeaderLen {
		return Inner{}, QuoteShort
	}
	quote, why := parse(in.Payload[icmpHeaderLen:], true)
	switch {
	case why == InnerShort:
		return Inner{}, QuoteShort
	case why != OK, quote.Src.Is4() != in.Src.Is4():
		return Inner{}, QuoteMalformed
	case quote.Fragment.Offset == 0 && len(quote.Payload) < minTransport:
		return Inner{}, QuoteShort
	}
	return quote, OK
}
