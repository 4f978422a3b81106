// Package answers decides what the nftables table of multihomed must hold, so that packets which rules of
// routing cannot tell by their source leave by the right link: answers of containers and of LANs behind
// network address translation. The same table has the fence, which drops what would leave by a wrong
// uplink all the same.
//
// The package is pure: facts go in as values ([Plan]), and the difference to what the kernel holds comes
// out as values ([Diff]). Package internal/answers reads and writes the kernel.
//
// # Answers
//
// Conntrack knows the link of a connection: the address that a peer asked (`ct original daddr`), or the
// address that the connection got (`ct reply daddr`), is the link's. A map leads from the address to a
// chain, which puts the number of the link's routing table into the mark of the packet; rules of routing
// 9099-9101 do the rest. The bits of the mark that are not ours stay.
//
//   - Packets on the loopback interface are not marked: the kernel does not route them again, and
//     programs with TPROXY compare the whole mark.
//   - A packet whose mark a rule of another program selects is not marked if the rule looks at our bits
//     ([routing.MarkMask]): the rule would not find its packet any more. A number that would make such a rule find a
//     packet of ours is not used ([routing.Rule.MeansNumber]). Both are problems, and name the rule.
//   - Packets that come in by an uplink are looked at too: the server of a port forward, or the client of
//     a masquerade, may be behind another uplink. But if the kernel checks sources by mark on an uplink,
//     these are left out: it would look for the sender behind the wrong link.
//   - An address on two links is answered by main, because the address does not say which link was asked.
//
// # Strict reverse path filtering
//
// With rp_filter=1 the kernel drops what comes in by an uplink that is not main's choice for the sender,
// unless it looks for the sender with the mark of the packet (src_valid_mark=1; ip-sysctl.rst of the
// kernel, fib_validate_source in net/ipv4/fib_frontend.c). Where both are set, packets to an address of
// the uplink get the mark before they are routed. Without src_valid_mark a mark has no effect on the
// check, so there is none, and a problem names the sysctl.
//
// # The fence
//
// The fence drops a packet that leaves by an uplink with the address of another one. It stands behind
// source NAT. It accepts
//
//   - whatever leaves by another interface than an uplink;
//   - whatever a rule of another program selects that stands before main: such a rule wins
//     (promise 3). For bindings it does not: a strict binding drops before it;
//   - multicast, limited broadcast and link-local destinations: they go no further than the link, and
//     discovery protocols send them by every interface with the same source.
//
// Link-local, multicast and loopback addresses are never sources here. The pairs of address and
// interface have the name of the interface and not its index: the table must be right for a modem that
// is plugged in again while the daemon is stopped.
//
// A NAT rule of the administrator that gives packets of one uplink the address of another one breaks
// promise 3 by itself: the fence drops these packets, and its counter shows them.
package answers
