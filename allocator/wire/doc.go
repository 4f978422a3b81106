// Package wire is the codec of the protocol between clients that need a routing
// table and the server that leases them: one JSON object per datagram, over an
// AF_UNIX datagram socket.
//
// # Version 1
//
// This is what the protocol's first server and client speak, byte for byte:
//
//	{"address":"192.0.2.1","ifname":"eth0","addr_family":2,"cmd":0,"version":1}
//	{"version":1,"cmd":2,"table":10000,"lease_expires":4095}
//
// A "tag" may follow "ifname". The command is 0 (lease or renew) or 1 (release;
// the reply then has table 0 and expiry 0). The expiry is in seconds of
// CLOCK_MONOTONIC_RAW. The first server sent no errors: a refused client got no
// answer. Refusals as they are now follow below.
//
// # Version 2
//
// A request may also have these members; a reply always has the first, and the
// others only where they apply:
//
//	"transaction"  a number that the reply repeats
//	"routing"      request: set up rules and routes; reply: they are set up
//	"hold"         with routing: end it when the lease is not renewed
//	"table"        the number that the client has had (request)
//	"lifetime"     how long the lease lasts, in seconds (reply)
//
// An expiry of 0 in a reply with a table means that the lease does not expire.
// A server of version 1 ignores what it does not know, and answers in version 1.
//
// # Refusals
//
// Both versions carry them, as command 3 with the members "code" and "error".
// Clients of version 1 ignore that command and go on trying, which is what they
// did when they heard nothing. They exit without a message when a reply has another
// version, and read 253 bytes at most; so a reply of version 1 is never longer.
package wire
