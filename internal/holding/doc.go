// Package holding is the daemon's side of `multihomectl run`: it tells multihomed-binder which mark the sockets of a link get
// and which DNS servers the link has, and keeps the servers current while bound programs run.
//
// The helper asks on a socket in the runtime directory. It is answered because of its user, which the kernel tells
// (SO_PEERCRED): root, and the user of multihomed-binder.service. That is a user of sysusers.d(5) and not one of DynamicUser=,
// for two reasons. Nothing on disk says who a dynamic user is: its name is known to systemd alone, and this program,
// which is linked statically, asks no NSS module. And systemd gives the number to another service once the helper has ended.
// The helper cannot pass on its caller's credentials (SCM_CREDENTIALS needs CAP_SETUID), and need not: it may bind every
// cgroup, so it is the one who decides for which caller it does. The daemon names the group whose members may ask, and
// the helper compares it with what the kernel says of its caller.
//
// A link's DNS map is a BPF map, and its descriptor stays here. The sandbox of the daemon forbids bpf(2), so that the helper
// writes changes into it (package internal/binder/client). systemd keeps the descriptors over a restart of the daemon
// (FileDescriptorStoreMax= in systemd.service(5)), so that programs that run already follow the link's servers then, too. After a
// stop, and where systemd does not run the daemon, they keep the servers that they had last: queries still leave by
// the link, because the mark decides that.
package holding
