// Package cgroupbpf binds the sockets of a cgroup to a link, by BPF programs that it attaches to the cgroup
// (cgroup v2, Documentation/bpf/prog_cgroup_sockopt.rst and its neighbours in the kernel's tree).
//
// Two things are attached:
//
//   - sock_create: each new IPv4 or IPv6 socket gets the link's bits in its mark. The rules of the link select by
//     them. A socket whose bits are set already keeps them: so the innermost of nested cgroups decides.
//   - connect, sendmsg, recvmsg and getpeername, for each family: DNS queries (port 53, UDP and TCP) to the loopback or
//     to a resolver of the host go to the link's server, and the answers seem to come from who was asked. Other
//     destinations are left alone, so that a program may ask a server of its choice. Where the link has no server
//     the query fails with EPERM: a local resolver would answer it by any link. They act on sockets with the
//     link's mark only.
//
// There is no program at cgroup_skb/egress, as a second wall behind the rules. It would need the list of the other
// uplinks' indexes, which somebody would have to keep current for as long as the cgroup lives; the fence in
// nftables does the same by mark and interface group, counts, and needs no such list. It would cost each packet
// something, and the only sockets that it stops and the fence does not are those whose mark a process with CAP_NET_ADMIN or
// CAP_NET_RAW has taken off, on purpose.
//
// The programs live as long as the cgroup: nothing is pinned, and no process need stay. The link's servers are in
// a [DNSMap], which can be changed while programs use it. Programs that bind users ([AttachUsers]) are attached to the root, and end with
// the descriptors of their [Links] instead.
//
// There is no library behind it: the programs are a table of instructions (the format is
// Documentation/bpf/standardization/instruction-set.rst), and bpf(2) needs six commands.
package cgroupbpf
