package routing

// An AnnouncementKind says what a [Announcement] is about.
type AnnouncementKind uint8

// Kinds of announcements.
const (
	AnnouncedInterface AnnouncementKind = iota + 1
	AnnouncedAddress
	AnnouncedRule
	AnnouncedRoute
)

// An Origin says who gave an address, as far as the kernel knows (IFA_PROTO; Linux 5.18 and later).
type Origin uint8

// Origins of linux/if_addr.h that mean something here.
const (
	// OriginAdvertisement: the kernel made it from a router advertisement (IFAPROT_KERNEL_RA).
	OriginAdvertisement Origin = 2
	// OriginLinkLocal: the kernel made it for the link (IFAPROT_KERNEL_LL).
	OriginLinkLocal Origin = 3
)

// An Announcement is one announcement of rtnetlink(7), with the socket that asked for the change. Its fields
// are those of its kind.
type Announcement struct {
	Kind AnnouncementKind
	// Gone says that the object was deleted, Replaced that it took the place of another (NLM_F_REPLACE).
	Gone, Replaced bool
	// Port is the netlink port of who asked for the change. It is 0 if the kernel acted by itself, and
	// where it does not say: for IPv6 addresses (inet6_ifa_notify in net/ipv6/addrconf.c) and for
	// interfaces that change (netdev_state_change, dev_change_flags in net/core/dev.c).
	Port uint32
	Rule Rule
	// Routes has a route for each next hop, and at least one.
	Routes []Route
	// Interface has neither addresses nor routes.
	Interface Interface
	// Device is the index of the interface of an address.
	Device  int
	Address Address
	Origin  Origin
}
