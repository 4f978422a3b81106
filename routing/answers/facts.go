package answers

import (
	"net/netip"

	"multihomed/routing"
)

// Facts are what [Plan] decides by. Their order does not matter.
type Facts struct {
	// Mask are the bits of the packet mark that are ours; 0 is [routing.DefaultMarkMask].
	Mask routing.MarkMask
	// Group is the interface group of uplinks.
	Group uint32
	// Answers and Fence say in which families each is wanted.
	Answers, Fence routing.ByFamily[bool]
	// Links are the uplinks in the group, each device once.
	Links []Link
	// Open are the interfaces in the group that are uplinks of the other family alone, by family:
	// packets with any address may leave by them.
	Open routing.ByFamily[[]string]
	// Bindings are the wanted ones. Only strict ones have a line in the fence.
	Bindings []Binding
	// Foreign are the rules of routing that other programs made. Those that select packets matter.
	Foreign []routing.Rule
}

// A Link is an uplink.
type Link struct {
	// Name is the name of its interface.
	Name string
	// Check is how the kernel checks the sources of IPv4 packets that come in.
	Check SourceCheck
	// Sources are its single addresses of both families: not networks, and no address whose duplicate
	// address detection failed.
	Sources []Source
}

// A SourceCheck is the reverse path filter of an interface, in effect: the greater of the values for
// the interface and for all (net.ipv4.conf.*.rp_filter and src_valid_mark).
type SourceCheck uint8

// The checks.
const (
	// CheckLoose is rp_filter 0 or 2: whether the packet comes in by the best link does not matter.
	CheckLoose SourceCheck = iota
	// CheckStrict is rp_filter 1 with src_valid_mark 0: the mark has no effect on the check.
	CheckStrict
	// CheckByMark is rp_filter 1 with src_valid_mark 1.
	CheckByMark
)

// A Source is an address of a link.
type Source struct {
	Address netip.Addr
	// Number is that of the routing table that serves the address, as rule 9100 has it in its mark:
	// 1 to [routing.MarkMask.Last] in its family. 0 says that there is none: the address is not answered.
	Number uint8
}
