// Package client leases routing tables from multihomed, or from the table
// allocator of kristrev/multihomed-routing, over a datagram socket in the
// abstract namespace. (An abstract name belongs to a network namespace: a
// container with a network of its own does not reach the host's.)
//
// There are two kinds of leases:
//
//   - A plain lease is a table number that nobody else gets, for an address or for
//     whatever [Request.ID] names. The program decides what stands in the table. The
//     lease expires unless it is renewed, which [Client.Hold] does.
//   - A routed lease asks multihomed for everything that a link of the host has (the
//     routes of the table, the rules that lead to it), for an address that stands on an
//     interface. It lives as long as the address does. With [Request.Hold] it must be
//     renewed as well.
//
// The same key (family, interface, address) gets the same number wherever that is
// possible, so asking again does no harm. A lease belongs to the user who made it. Only
// that user and root may renew and release it. Root and the group multihomed may make
// one; see [allocator] in multihomed.toml(5).
//
// # Importing
//
// The module's path is multihomed. It has no host name, so `go get` cannot fetch it. Put
// both lines into the go.mod of your module, and run `go mod tidy`:
//
//	require multihomed v0.0.0
//	replace multihomed => PATH
//
// PATH is a copy of this source tree. The package needs golang.org/x/sys and nothing
// else that is not in the standard library.
package client
