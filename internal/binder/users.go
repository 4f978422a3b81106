package binder

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"multihomed/internal/binder/wire"
	"multihomed/internal/cgroupbpf"
	"multihomed/internal/cgroups"
)

// bindUsers does for the daemon what its sandbox forbids: it binds the sockets of users, on the whole host. The programs end
// with the descriptors that the daemon gets, so that nothing is left when nobody wants it. The helper finds
// the root of the cgroups itself: a caller who passes a directory could name another one.
func (b *binder) bindUsers(c *net.UnixConn, datagram []byte, file *os.File, p Peer) (give []*os.File, err error) {
	if !b.isTrusted(p) {
		return nil, refusal{wire.Denied, errors.New("only multihomed and root may bind users; to fix: multihomectl bind add, as root")}
	}
	if network, err := networkOf(c); err != nil || network != b.network {
		return nil, badRequest("the caller is in another network namespace than multihomed-binder, which binds users of its own; to fix: run both in one")
	}
	u, err := wire.DecodeUsers(datagram)
	if err == nil && (file != nil) != (u.Names == wire.OldMap) {
		err = errors.New("the descriptor of a DNS map comes with a request that says so, and with no other")
	}
	if err != nil {
		return nil, refusal{wire.BadRequest, fmt.Errorf("reading a request for users: %w", err)}
	}
	dns, made, err := mapFor(u, file)
	if err != nil {
		return nil, err
	}
	links, err := b.attachUsers(u, dns)
	if err != nil {
		if made != nil {
			err = errors.Join(err, made.Close())
		}
		return nil, able(err)
	}
	if made != nil {
		return append(links.Files(), made.File()), nil
	}
	return links.Files(), nil
}

// mapFor is the map that came with the request, or a new one, which made is, too.
func mapFor(u wire.Users, file *os.File) (dns, made *cgroupbpf.DNSMap, err error) {
	switch u.Names {
	case wire.OldMap:
		if dns, err = cgroupbpf.OpenDNSMap(file); err != nil {
			return nil, nil, refusal{wire.BadRequest, err}
		}
	case wire.NewMap:
		if made, err = cgroupbpf.NewDNSMap(cgroupbpf.DNS(u.DNS)); err != nil {
			return nil, nil, able(err)
		}
		dns = made
	case wire.LeaveNames:
	}
	return dns, made, nil
}

func (b *binder) attachUsers(u wire.Users, dns *cgroupbpf.DNSMap) (links *cgroupbpf.Links, err error) {
	mount := b.o.Cgroups
	if mount == "" {
		mount = cgroups.Mount
	}
	path, err := cgroups.Root(mount)
	if err != nil {
		return nil, refusal{wire.Unable, err}
	}
	root, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening the root of all cgroups: %w", err)
	}
	defer func() { _ = root.Close() }() // It was only read.
	links, err = cgroupbpf.AttachUsers(root, cgroupbpf.Users{First: u.First, Last: u.Last}, b.network, cgroupbpf.Mark{Value: u.Value, Mask: u.Mask}, dns)
	if errors.Is(err, unix.E2BIG) {
		return nil, fmt.Errorf("the kernel takes at most 64 programs of a kind for all cgroups, and there are as many; to fix: bind fewer ranges of users: %w", err)
	}
	return links, err
}

// pass sends an answer with descriptors, and closes them: the client has its own.
func (b *binder) pass(ctx context.Context, c *net.UnixConn, a wire.Answer, give []*os.File) {
	fds := make([]int, 0, len(give))
	for _, f := range give {
		fds = append(fds, int(f.Fd()))
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	b.answer(ctx, c, a, rights)
	for _, f := range give {
		_ = f.Close() // Of a link and a map that others have, or nobody wants.
	}
}
