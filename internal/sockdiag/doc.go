// Package sockdiag reads and closes TCP sockets of this network namespace by NETLINK_SOCK_DIAG
// (sock_diag(7)).
//
// A [Conn] dumps the sockets of both families in one walk of the kernel's table, and hands them out
// one by one: memory does not depend on how many there are. The kernel filters by source address
// and state, because the tcp_info of a socket costs more than everything else: it locks the socket.
//
//	conn, err := sockdiag.Open()
//	…
//	err = conn.Dump(ctx, sockdiag.Query{Sources: addresses, States: sockdiag.Connected}, func(s *sockdiag.Socket) bool {
//		proof := s.LastAckRecv // the peer was heard so long ago
//		return true
//	})
//
// A dump needs no capability, [Conn.Destroy] needs CAP_NET_ADMIN.
//
// vishvananda/netlink has sock_diag, too. It has no filter, collects all sockets before it returns
// the first, and closes a socket of IPv4 only, by its four numbers alone: another socket may have
// them by then. The prober dumps several times a second.
package sockdiag
