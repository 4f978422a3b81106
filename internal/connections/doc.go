// Package connections ends what cannot go on when a link dies, and lets go on what can.
//
// Three parts, which do not know each other:
//
//   - [Sockets] closes TCP connections of this host that hang on a dead link, so that applications are
//     told and connect anew. Call [Sockets.Close] once for each death, when the link has been dead for
//     `close_connections` and another link lives.
//   - [Flows] deletes the conntrack entries that translate others' connections to an address of a
//     dead link. Call [Flows.Delete] at once after the switch: before it, the next packet would make
//     the entry anew with the same address. Never call it at failback.
//   - [Endpoints] lets Multipath TCP use the links that NetworkManager does not serve. Call
//     [Endpoints.Follow] with [WantedEndpoints] when a link's addresses change, after its ladder
//     stands and before it goes.
//
// What to choose is decided by pure functions (judge.go, flow.go, plan.go); the rest speaks netlink.
// Writing needs CAP_NET_ADMIN. Nothing here makes the kernel track connections that it did not track.
package connections
