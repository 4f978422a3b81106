// Package client leases routing tables from multihomed, or from the table
// allocator of kristrev/multihomed-routing, over a datagram socket in the
// abstract namespace. (An abstract name belongs to a network namespace: a
// container with a network of its own does not reach the host's.)
//
// There are two kinds of leases. A plain one is a table number that nobody else
// gets, for an address or, with family Unspecified, for whatever an identifier
// names; what to do with the table is the program's business. It lives for a
// while and must be renewed: Hold does. A routed one asks multihomed to set up
// everything that a link of the host has (the table's routes, the rules that
// lead to it) for an address that stands on an interface. It lives as long as
// the address does; with Request.Hold it must be renewed as well.
//
// A key (family, interface, address) always gets the same number as far as
// possible, so a lease is asked for again without harm. A lease belongs to the
// user who made it; only that user and root may renew and release it.
package client
