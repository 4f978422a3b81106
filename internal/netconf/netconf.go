// Package netconf reads and watches what the kernel tells about the IP configuration of
// interfaces: whether they forward, and how they check the source of what comes in
// (RTM_GETNETCONF, include/uapi/linux/netconf.h; net/ipv4/devinet.c, net/ipv6/addrconf.c). It
// needs no privileges. The sysctls net.ipv4.conf and net.ipv6.conf say the same, but tell nobody
// when they change.
package netconf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
	"multihomed/internal/nlsocket"
	"multihomed/routing"
)

// Attributes and messages of linux/netconf.h and linux/rtnetlink.h.
const (
	attributeIndex      = 1 // NETCONFA_IFINDEX
	attributeForwarding = 2 // NETCONFA_FORWARDING
	attributeRPFilter   = 3 // NETCONFA_RP_FILTER
	messageSize         = 1 // struct netconfmsg
)

// Indexes that are no interface (NETCONFA_IFINDEX_ALL and _DEFAULT).
const (
	indexAll     = -1
	indexDefault = -2
)

// loopback is the index of lo. It "forwards" where all do, and not where one interface does.
const loopback = 1

// A Conf is the configuration of all interfaces.
type Conf struct {
	// Forwards says by family that an interface takes packets for others.
	Forwards routing.ByFamily[bool]
	// Strict says which interfaces accept an IPv4 packet only if its answer would leave by the
	// same interface (rp_filter = 1). The kernel takes the higher one of the interface's value
	// and that of all (IN_DEV_RPFILTER in include/linux/inetdevice.h).
	Strict map[int]bool
}

// Read asks the kernel.
func Read(ctx context.Context) (Conf, error) {
	c := Conf{Strict: map[int]bool{}}
	filters := map[int]int32{}
	for _, f := range routing.Families() {
		if err := ctx.Err(); err != nil {
			return c, context.Cause(ctx)
		}
		request := nl.NewNetlinkRequest(unix.RTM_GETNETCONF, unix.NLM_F_DUMP)
		request.AddRawData([]byte{byte(f), 0, 0, 0})
		messages, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNETCONF)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
			continue // A kernel without IPv6.
		}
		if err != nil {
			return c, fmt.Errorf("reading which interfaces forward %s: %w", f.Name(), err)
		}
		for _, m := range messages {
			one, is := parse(m)
			if !is || one.family != f {
				continue
			}
			if one.index > loopback && one.forwards {
				c.Forwards.Set(f, true)
			}
			if f == routing.IPv4 {
				filters[one.index] = one.filter
			}
		}
	}
	for index, filter := range filters {
		if index > 0 && max(filter, filters[indexAll]) == 1 {
			c.Strict[index] = true
		}
	}
	return c, nil
}

// entry is one message.
type entry struct {
	family   routing.Family
	index    int
	forwards bool
	filter   int32
}

func parse(m []byte) (e entry, is bool) {
	if len(m) < nlmsg.Align(messageSize) {
		return e, false
	}
	e.family, e.index = routing.Family(m[0]), indexDefault
	for a := (nlmsg.Attributes{Rest: m[nlmsg.Align(messageSize):]}); a.Next(); {
		if len(a.Value) != 4 {
			continue
		}
		value := int32(binary.NativeEndian.Uint32(a.Value)) //nolint:gosec // the kernel writes an int
		switch a.Kind {
		case attributeIndex:
			e.index = int(value)
		case attributeForwarding:
			e.forwards = value > 0
		case attributeRPFilter:
			e.filter = value
		}
	}
	return e, e.index != indexDefault
}

// Watch calls changed after every change, until ctx is done. What changed is for [Read] to say:
// a sysctl for all interfaces tells of each.
func Watch(ctx context.Context, changed func()) error {
	socket, err := nlsocket.Open(nlsocket.Options{
		Protocol: unix.NETLINK_ROUTE, What: "a routing socket", Groups: []int{unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF},
	})
	if err != nil {
		return err
	}
	defer func() { _ = socket.Close() }()
	defer socket.Interruptible(ctx)()
	changed() // What changed before is not told.
	buf := make([]byte, os.Getpagesize())
	for {
		// Whatever comes says that something changed; so does an overflow.
		_, err := socket.File.Read(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("hearing which interfaces forward: %w", err)
		}
		changed()
	}
}
