package shim

// Why says why a packet was refused, in the words that the drop metric carries
// as its label. OK, the empty string, says that it was not.
type Why string

// The reasons: a bounded set, see Whys.
const (
	OK Why = ""

	OuterShort     Why = "outer_short"     // fewer than 40 bytes
	OuterVersion   Why = "outer_version"   // not IPv6
	OuterEmpty     Why = "outer_empty"     // payload length 0: nothing inside, or a jumbogram
	OuterTruncated Why = "outer_truncated" // payload length beyond the packet
	OuterExtension Why = "outer_extension" // an extension header before the inner packet

	InnerShort         Why = "inner_short"          // ends inside its header
	InnerVersion       Why = "inner_version"        // neither 4 nor 6, or not what the outer header says
	InnerLength        Why = "inner_length"         // declares another length than it has
	InnerHeaderLength  Why = "inner_header_length"  // IHL below 5 or beyond the packet
	InnerOptions       Why = "inner_options"        // IPv4 options that do not add up
	InnerSourceRoute   Why = "inner_source_route"   // LSRR, SSRR or an IPv6 routing header
	InnerExtension     Why = "inner_extension"      // IPv6 extension headers out of order, repeated or too many
	InnerFragment      Why = "inner_fragment"       // a fragment that no packet can be made of
	InnerNested        Why = "inner_nested"         // an IP packet in the inner packet
	InnerMappedAddress Why = "inner_mapped_address" // an IPv4-mapped IPv6 address
	InnerSource        Why = "inner_source"         // source is multicast, broadcast, unspecified or loopback

	QuoteNone       Why = "quote_none"       // not an ICMP error at all
	QuoteFragmented Why = "quote_fragmented" // an ICMP error in fragments: what it quotes cannot be judged
	QuoteShort      Why = "quote_short"      // quotes less than a header and 8 bytes
	QuoteMalformed  Why = "quote_malformed"  // quotes something that is no packet of this IP version
)

// Whys returns every reason but OK, in a fixed order, for who keeps a counter
// for each.
func Whys() []Why {
	return []Why{
		OuterShort, OuterVersion, OuterEmpty, OuterTruncated, OuterExtension,
		InnerShort, InnerVersion, InnerLength, InnerHeaderLength, InnerOptions,
		InnerSourceRoute, InnerExtension, InnerFragment, InnerNested,
		InnerMappedAddress, InnerSource,
		QuoteNone, QuoteFragmented, QuoteShort, QuoteMalformed,
	}
}
