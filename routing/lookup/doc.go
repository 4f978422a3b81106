// Package lookup answers what the kernel would answer: which rule and which
// route a packet takes, and why. Facts go in as values, answers come out as
// values; the package reads nothing by itself.
//
// It follows fib_rules_lookup (net/core/fib_rules.c), fib_table_lookup
// (net/ipv4/fib_trie.c) and fib6_table_lookup (net/ipv6/route.c,
// net/ipv6/ip6_fib.c) of Linux 6.18. Package lookup/reality compares it with
// RTM_GETROUTE of the running kernel.
//
// It does not know the following, and gives no answer that depends on it:
//
//   - which leg of a multipath route a packet takes (a hash), and which of
//     several equal IPv4 default routes whose routers differ in reachability
//     (fib_select_default). [Verdict.Legs] holds all legs.
//   - neighbour and router reachability, path MTU, redirects, expired routes;
//   - which source address an unbound socket gets. Its second lookup, with that
//     address, is a second [Flow];
//   - reverse path filters, netfilter, XFRM, BPF;
//   - multicast and limited broadcast destinations of IPv4, which may need no
//     route at all;
//   - whether the address that a packet without a source gets lies in the source of a
//     rule that finds one (FIB_RULE_FIND_SADDR): it is taken to;
//   - a host that never had a rule of its own, whose kernel keeps local and main
//     of IPv4 in one trie: there a longer route of main wins over local.
package lookup
