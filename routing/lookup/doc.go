// Package lookup answers what the kernel would answer: which rule and which
// route a packet takes, and why. Facts go in as values, answers come out as
// values; the package reads nothing by itself.
//
// It follows fib_rules_lookup (net/core/fib_rules.c), fib_table_lookup
// (net/ipv4/fib_trie.c) and fib6_table_lookup (net/ipv6/route.c,
// net/ipv6/ip6_fib.c) of Linux 6.18. Package lookup/reality compares it with
// RTM_GETROUTE of the running kernel.
//
// The source of a packet, reverse path filters and forwarding are those of IPv4
// (net/ipv4/route.c, net/ipv4/fib_frontend.c), where a Host has what they need ([Host.Checks]).
//
// It does not know the following. [Host.Doubts] says where that may matter:
//
//   - which leg of a multipath route a packet takes (a hash), and which of
//     several equal routes whose routers differ in reachability
//     (fib_select_default, find_rr_leaf). A [Verdict] has all of them;
//   - which source address an unbound socket gets. Its second lookup, with that
//     address, is a second [Flow] ([Flow.Again]);
//   - which of the IPv6 routes by one nexthop object the kernel takes for the others
//     ([Verdict.Nexthop]);
//   - the members of multicast groups;
//   - whether the address that a packet without a source gets lies in the source of a
//     rule that finds one (FIB_RULE_FIND_SADDR): it is taken to.
//
// Nor does it know neighbours, path MTU, redirects, expired routes, netfilter, XFRM and BPF,
// which concern every packet.
package lookup
