package routing

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"unique"
)

// A Family is an address family in the numbers of socket(2).
type Family uint8

// The two families that have routing rules here. The values are AF_INET and
// AF_INET6 of linux/socket.h.
const (
	IPv4 Family = 2
	IPv6 Family = 10
)

// ByFamily holds one value for each family.
type ByFamily[T any] [2]T

// In returns the value of a family.
func (b *ByFamily[T]) In(f Family) T { return b[familyIndex(f)] }

// Set takes the value of a family.
func (b *ByFamily[T]) Set(f Family, v T) { b[familyIndex(f)] = v }

// Families lists both families in the order in which they are reported.
func Families() [2]Family { return [2]Family{IPv4, IPv6} }

// FamilyOf returns the family of a valid address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// Bits is the length of an address of the family: 32 or 128.
func (f Family) Bits() int {
	if f == IPv4 {
		return 32
	}
	return 128
}

// Any is the prefix of length zero: the destination of a default route.
func (f Family) Any() netip.Prefix {
	if f == IPv4 {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// Name is the name of the family in sentences.
func (f Family) Name() string {
	if f == IPv4 {
		return "IPv4"
	}
	return "IPv6"
}

// Flag is how ip(8) takes the family.
func (f Family) Flag() string {
	if f == IPv4 {
		return "-4"
	}
	return "-6"
}

func (f Family) String() string {
	switch f {
	case IPv4:
		return "ipv4"
	case IPv6:
		return "ipv6"
	default:
		return "family " + strconv.Itoa(int(f))
	}
}

// A TableID is the number of a kernel routing table (RTA_TABLE, FRA_TABLE).
type TableID uint32

// Tables the kernel gives a meaning of its own (linux/rtnetlink.h).
const (
	TableDefault TableID = 253
	TableMain    TableID = 254
	TableLocal   TableID = 255
)

func (t TableID) String() string {
	switch t {
	case TableDefault:
		return "default"
	case TableMain:
		return "main"
	case TableLocal:
		return "local"
	default:
		return strconv.FormatUint(uint64(t), 10)
	}
}

// A Protocol says who made a route or a rule (rtm_protocol, FRA_PROTOCOL).
type Protocol uint8

// Multihomed marks every route and every rule of ours. NetworkManager caches
// only the protocols it knows, so this number also hides our objects from it.
const Multihomed Protocol = 150

// Protocols of linux/rtnetlink.h that mean something here.
const (
	ProtocolKernel Protocol = 2
	ProtocolBoot   Protocol = 3
	ProtocolStatic Protocol = 4
	ProtocolRA     Protocol = 9
)

// A Priority orders rules: the kernel reads them from the lowest to the highest.
type Priority uint32

// HostAddresses stands for all addresses of an interface that have no network: a
// load balancer has a thousand of them, and one table serves them all.
func (f Family) HostAddresses() netip.Prefix {
	return netip.PrefixFrom(f.Any().Addr(), f.Bits())
}

// A Key names what a routing table is leased to: one on-link prefix of one
// interface, or all its host addresses of a family. Addresses that come and go
// inside the prefix keep its table.
type Key struct {
	Family    Family
	Interface string
	// Prefix is masked: 192.0.2.0/24, never 192.0.2.5/24. That of host addresses
	// is [Family.HostAddresses].
	Prefix netip.Prefix
}

func (k Key) String() string { return k.Interface + " " + k.Network() }

// Network names the network of the key for people.
func (k Key) Network() string {
	if k.OfHosts() {
		return "host addresses"
	}
	return k.Prefix.String()
}

// A TableRange is a range of table numbers, both ends included.
type TableRange struct{ First, Last TableID }

// Contains reports whether t lies in the range.
func (r TableRange) Contains(t TableID) bool { return r.First <= t && t <= r.Last }

// Size is how many tables the range holds.
func (r TableRange) Size() int { return int(r.Last) - int(r.First) + 1 }

// KeptForNew is how many of so many numbers stay free for interfaces that have none: so one
// interface with many networks or many clients, whoever makes them, keeps no other
// from working. A small range keeps a quarter.
func KeptForNew(numbers int) int { return min(16, numbers/4) } //nolint:mnd // as the comment says

func (r TableRange) String() string { return fmt.Sprintf("%d-%d", r.First, r.Last) }

// An Optional is an attribute that may be absent; rtnetlink has several whose
// zero means something (suppress_prefixlength 0 is not "no suppression").
type Optional struct {
	Set   bool
	Value uint32
}

// Some returns an attribute that is present.
func Some(v uint32) Optional { return Optional{Set: true, Value: v} }

// An Action is what a rule does with a packet it matches (FR_ACT_*).
type Action uint8

// Actions of linux/fib_rules.h. Rules of ours use lookup, goto and unreachable.
const (
	ActionLookup      Action = 1
	ActionGoto        Action = 2
	ActionNop         Action = 3
	ActionBlackhole   Action = 6
	ActionUnreachable Action = 7
	ActionProhibit    Action = 8
)

// A Mark selects packets by fwmark: those whose mark, as far as the mask goes,
// is the value (FRA_FWMARK, FRA_FWMASK). The zero Mark selects all.
type Mark struct{ Value, Mask uint32 }

// A UIDRange selects packets by the user of their socket, both ends included
// (FRA_UID_RANGE).
type UIDRange struct {
	Set         bool
	First, Last uint32
}

// A PortRange selects packets by port, both ends included (FRA_SPORT_RANGE,
// FRA_DPORT_RANGE). With a mask, which a kernel has since 6.15, First is a value
// that is compared as far as the mask goes. The zero PortRange selects all.
type PortRange struct{ First, Last, Mask uint16 }

// A Rule is one policy rule, as `ip rule` shows it. Rules are comparable: two
// rules are the same rule if and only if they are equal.
type Rule struct {
	Family   Family
	Priority Priority
	// Invert turns all selectors around: the rule is for the packets that they
	// do not match (FIB_RULE_INVERT).
	Invert bool
	// From and To are zero for "all".
	From, To netip.Prefix
	// TOS is compared with the old type-of-service bits, DSCP with the six bits
	// that took their place (FRA_DSCP, FRA_DSCP_MASK; 6.14 and later).
	TOS      uint8
	DSCP     Optional
	DSCPMask uint8
	// FlowLabel is that of IPv6 (FRA_FLOWLABEL; 6.14 and later).
	FlowLabel     Optional
	FlowLabelMask uint32
	Mark          Mark
	// IIF and OIF are interface names, empty for any. IIF "lo" means: sent by
	// this host, not forwarded.
	IIF, OIF string
	UIDs     UIDRange
	// IPProto is the transport protocol, zero for any (FRA_IP_PROTO).
	IPProto                       uint8
	SourcePorts, DestinationPorts PortRange
	// TunnelID is that of a packet that was received through a tunnel, in host
	// order (FRA_TUN_ID).
	TunnelID uint64
	// L3MDev says that the table is that of the VRF of the packet.
	L3MDev bool
	Action Action
	// Table is what ActionLookup reads; zero for other actions, and with L3MDev.
	Table TableID
	// Goto is where ActionGoto goes on: the first rule of that priority. While
	// there is none the rule does nothing.
	Goto Priority
	// Realms is for accounting (FRA_FLOW, IPv4), and selects nothing.
	Realms uint32
	// SuppressPrefixLength rejects a found route whose prefix is this long or
	// shorter; SuppressGroup one that leaves by an interface of this group.
	SuppressPrefixLength Optional
	SuppressGroup        Optional
	Protocol             Protocol
	// FindSource lets a rule of IPv6 with a source also look up packets that have none yet: its
	// answer counts if the address that they would get lies in the source (FIB_RULE_FIND_SADDR;
	// fib6_rule_match and fib6_rule_saddr in net/ipv6/fib6_rules.c).
	FindSource bool
	// Unknown says that the rule carries attributes that no kernel had when this
	// was written. What it selects is not known then.
	Unknown bool
}

// Loopback is the name of the loopback interface. A rule whose IIF it is selects what this
// host sends.
const Loopback = "lo"

// LoopbackAlias is another name of the loopback interface (IFLA_ALT_IFNAME), which it has
// while rules of ours need other words than "iif lo": see [Rule.MeantBy]. The kernel finds
// an interface by any of its names, and compares names when it deletes rules (fib_nl2rule
// and rule_find in net/core/fib_rules.c).
const LoopbackAlias = "multihomed-lo"

// A RouteType is the kind of a route (rtm_type, RTN_*).
type RouteType uint8

// Types of linux/rtnetlink.h.
const (
	// RouteUnicast is the only type that is copied: a way through a device.
	RouteUnicast   RouteType = 1
	RouteLocal     RouteType = 2
	RouteBroadcast RouteType = 3
	RouteAnycast   RouteType = 4
	RouteMulticast RouteType = 5
	// These three refuse, each with an error of its own.
	RouteBlackhole   RouteType = 6
	RouteUnreachable RouteType = 7
	RouteProhibit    RouteType = 8
	// RouteThrow ends the lookup in its table: the next rule is asked.
	RouteThrow RouteType = 9
)

// A Scope is how far away a destination is (rtm_scope, RT_SCOPE_*). IPv6 has
// only ScopeUniverse.
type Scope uint8

// Scopes of linux/rtnetlink.h.
const (
	ScopeUniverse Scope = 0
	ScopeLink     Scope = 253
	ScopeHost     Scope = 254
)

// A Preference is the router preference of RFC 4191 as rtnetlink encodes it
// (RTA_PREF, ICMPV6_ROUTER_PREF_*). Zero is medium.
type Preference uint8

// Preferences of linux/icmpv6.h.
const (
	PreferenceMedium Preference = 0
	PreferenceHigh   Preference = 1
	PreferenceLow    Preference = 3
)

// order puts the most preferred router first. The reserved value counts as
// medium (RFC 4191, section 2.2).
func (p Preference) order() int {
	switch p {
	case PreferenceHigh:
		return 0
	case PreferenceLow:
		return 2
	default:
		return 1
	}
}

// metricsCount is RTAX_MAX+1 of linux/rtnetlink.h (RTAX_FASTOPEN_NO_COOKIE).
const metricsCount = 18

// Metrics are the numeric attributes of RTA_METRICS, indexed by RTAX_*: MTU,
// window, initcwnd and so on. Index 1 (RTAX_LOCK) is the bit mask of locked
// ones. Zero means absent.
type Metrics [metricsCount]uint32

// A Route is one way to a destination through one device, as `ip route` shows
// it. A multipath route of the kernel is several of these. Routes are
// comparable. There may be very many, so what few of them have is in Attributes.
type Route struct {
	Family Family
	Type   RouteType
	Scope  Scope
	TOS    uint8
	// OnLink says that the gateway is reachable although no route covers it.
	OnLink     bool
	Preference Preference
	Protocol   Protocol
	Table      TableID
	// Metric is RTA_PRIORITY: the lower wins.
	Metric uint32
	// Weight is the share of a leg of a multipath route, from 1 (rtnh_hops + 1);
	// zero where the route has one way.
	Weight uint16
	// Destination is masked; a default route has length zero.
	Destination netip.Prefix
	// Source restricts the route to packets from a prefix (IPv6 only, RTA_SRC).
	Source netip.Prefix
	// Gateway is zero where the destination is on the link. It may be of the
	// other family (RTA_VIA, RFC 5549).
	Gateway netip.Addr
	// Device is the interface index.
	Device int
	// PreferredSource is the address that unbound traffic gets.
	PreferredSource netip.Addr
	// Attributes is the rest.
	Attributes Attributes
}

// RareAttributes are what few routes have. They are comparable; the zero value
// is a route without any.
type RareAttributes struct {
	Metrics Metrics
	// Congestion is the congestion control algorithm (RTAX_CC_ALGO).
	Congestion string
	// Realm is for accounting and for filters (RTA_FLOW, IPv4).
	Realm uint32
	// Legs are the other ways of an IPv4 multipath route of ours, whose first way
	// is the route itself. IPv6 has a route for each leg, and so have the routes
	// of main.
	Legs Legs
	// Encapsulation holds RTA_ENCAP verbatim, EncapsulationType its type.
	EncapsulationType uint16
	Encapsulation     string
}

// Attributes is a handle to RareAttributes that all routes with the same ones
// share. Handles are equal if and only if what they stand for is; the zero
// handle stands for none.
type Attributes struct{ shared unique.Handle[RareAttributes] }

// Share returns the handle of the attributes.
func (r RareAttributes) Share() Attributes {
	if r == (RareAttributes{}) {
		return Attributes{}
	}
	return Attributes{unique.Make(r)}
}

// Get returns what the handle stands for.
func (a Attributes) Get() RareAttributes {
	if a == (Attributes{}) {
		return RareAttributes{}
	}
	return a.shared.Value()
}

// With returns the handle of the attributes after a change.
func (a Attributes) With(change func(*RareAttributes)) Attributes {
	r := a.Get()
	change(&r)
	return r.Share()
}

// Compare orders attributes by what they stand for.
func (a Attributes) Compare(b Attributes) int {
	if a == b {
		return 0
	}
	x, y := a.Get(), b.Get()
	return cmp.Or(
		slices.Compare(x.Metrics[:], y.Metrics[:]),
		cmp.Compare(x.EncapsulationType, y.EncapsulationType),
		cmp.Compare(x.Encapsulation, y.Encapsulation),
		cmp.Compare(x.Congestion, y.Congestion),
		cmp.Compare(x.Realm, y.Realm),
		cmp.Compare(x.Legs.packed, y.Legs.packed),
	)
}

// A Leg is one way of a multipath route.
type Leg struct {
	Gateway netip.Addr
	Device  int
	OnLink  bool
	Realm   uint32
	Weight  uint16
}

// Legs are some legs in an order of their own. They can be compared; the zero
// Legs are none.
type Legs struct{ packed string }

// PackLegs makes Legs of a list.
func PackLegs(legs []Leg) Legs {
	var b []byte
	for _, l := range legs {
		onLink := byte(0)
		if l.OnLink {
			onLink = 1
		}
		gateway := l.Gateway.AsSlice()
		b = append(b, onLink, byte(len(gateway))) //nolint:gosec // 0, 4 or 16
		b = append(b, gateway...)
		b = binary.BigEndian.AppendUint32(b, uint32(l.Device)) //nolint:gosec // an interface index
		b = binary.BigEndian.AppendUint32(b, l.Realm)
		b = binary.BigEndian.AppendUint16(b, l.Weight)
	}
	return Legs{string(b)}
}

// All returns the legs.
func (l Legs) All() []Leg {
	var legs []Leg
	const rest = 4 + 4 + 2
	for b := []byte(l.packed); len(b) > 0; {
		n := int(b[1])
		leg := Leg{OnLink: b[0] == 1}
		leg.Gateway, _ = netip.AddrFromSlice(b[2 : 2+n]) // Zero if there is none.
		b = b[2+n:]
		leg.Device = int(binary.BigEndian.Uint32(b))
		leg.Realm, leg.Weight = binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint16(b[8:])
		legs = append(legs, leg)
		b = b[rest:]
	}
	return legs
}

// Ways returns a route for each way of one that has legs, as IPv6 holds them.
func (r Route) Ways() []Route {
	legs := r.Attributes.Get().Legs.All()
	r.Attributes = r.Attributes.With(func(rare *RareAttributes) { rare.Legs = Legs{} })
	out := append(make([]Route, 0, 1+len(legs)), r)
	for _, l := range legs {
		r.Gateway, r.Device, r.OnLink, r.Weight = l.Gateway, l.Device, l.OnLink, l.Weight
		out = append(out, r)
	}
	return out
}

// IsDefault reports whether the route is for every destination.
func (r Route) IsDefault() bool { return r.Destination.Bits() == 0 && !r.Source.IsValid() }

// A RouteKey is what the kernel compares to decide that two routes cannot
// stand side by side. IPv4 compares the destination, TOS and metric
// (net/ipv4/fib_trie.c, fib_table_insert); IPv6 the next hop too
// (net/ipv6/ip6_fib.c, fib6_add_rt2node).
type RouteKey struct {
	Family              Family
	Table               TableID
	Destination, Source netip.Prefix
	TOS                 uint8
	Metric              uint32
	Gateway             netip.Addr
	Device              int
}

// Key returns the kernel's identity of the route.
func (r Route) Key() RouteKey {
	k := RouteKey{Family: r.Family, Table: r.Table, Destination: r.Destination, Source: r.Source, TOS: r.TOS, Metric: r.Metric}
	if r.Family == IPv6 {
		k.Gateway, k.Device = r.Gateway, r.Device
	}
	return k
}

// An Address is one address of an interface.
type Address struct {
	// Prefix is the address with the length of its network, not masked.
	Prefix netip.Prefix
	// Peer is the other end of a point-to-point address, zero elsewhere.
	Peer netip.Addr
	// Scope tells host and link addresses from global ones.
	Scope Scope
	// Dynamic says that the address has a lifetime: DHCP or RA gave it.
	Dynamic bool
	// Failed says that duplicate address detection found another owner
	// (IFA_F_DADFAILED): the address is not in use.
	Failed bool
	// Tentative, Deprecated and Temporary are the IFA_F_ flags of IPv6; they
	// are shown, and decide nothing: an old address must go on answering.
	Tentative, Deprecated, Temporary bool
}

// An Intent is what the owner of the link (NetworkManager, a DHCP hook) knows
// about one family and the kernel does not.
type Intent struct {
	// LeaveAlone says why the family is not ours, empty if it is.
	LeaveAlone string
	// Gateway is a next hop known otherwise than by a route of main: from the
	// profile, or from the DHCP routers option.
	Gateway netip.Addr
	// NeverDefault says that the owner wants no default of the link in main, ever:
	// unbound traffic must not leave by it.
	NeverDefault bool
	// Automatic says that routes come from the network (DHCP, RA): one that is
	// missing may come yet.
	Automatic bool
	// NoDefault says that the owner wants no default of the link: the profile names none
	// and does not take one from the network. An owner that cannot know leaves it false.
	NoDefault bool
}

// A RoleChoice is what the configuration says of a link's role.
type RoleChoice uint8

// Choices. Without one the facts decide.
const (
	ByFacts RoleChoice = iota
	AlwaysUplink
	AlwaysLocal
)

// An Elsewhere is a source of a link that is no address of it: something that the
// host has of the link's network, or that others have of it through this host.
type Elsewhere struct {
	// Prefix is masked.
	Prefix netip.Prefix
	// Own says that the host itself sends from it: an address of the network on
	// another interface, or a local route of the device. What is not its own is
	// forwarded: routed guests, delegated prefixes.
	Own bool
	// Stranger says that it is no source of the link at all, although it lies in its
	// network: an address of a tunnel. The network does not tell whose address it is then.
	Stranger bool
	// Device is the index of the interface that it stands on or is behind.
	Device int
	// Why says in words what it is.
	Why string
}

// A Link is all that is known of one interface whose configuration somebody
// else made. It is a value: a change is a new Link.
type Link struct {
	Name  string
	Index int
	// Up is IFF_UP, administratively up. Without it the kernel refuses routes.
	Up bool
	// NotRunning says that the interface has no carrier, or is not operational (IFF_LOWER_UP
	// and IFF_RUNNING are not both set): nothing can leave by it.
	NotRunning bool
	// Group is the interface group (IFLA_GROUP).
	Group     uint32
	Addresses []Address
	// Routes are the unicast routes of main through this interface, one for
	// each leg of a multipath route.
	Routes []Route
	// Others are the unicast routes through this interface in tables of others that a rule
	// reads which selects nothing, and the throw routes of these tables; LongTables those of
	// these tables that are too long to be read.
	Others     []Route
	LongTables []TableID
	// Intents by family; a missing one is the zero Intent.
	Intents map[Family]Intent
	// Known are routes that the owner knows as it would put them into main, and
	// main need not have: what a DHCP server named where the default of another
	// interface was in the way. One with a preferred source is that address's,
	// and means nothing while the link does not have the address.
	Known []Route
	// DefaultMayBeMissing says that main may lack the link's default because nobody manages
	// main's metrics: without a table, the link gets one there.
	DefaultMayBeMissing bool
	// Pending says that the owner is still bringing the link up: whether it
	// will be an uplink is not known yet.
	Pending bool
	// Choice is the role that the configuration asks for; LastResort that
	// unbound traffic may leave by the link when main has no default.
	Choice     RoleChoice
	LastResort bool
	// KnownLocal says of a family that the link was known to be no uplink in it before it
	// was brought up once more: what is pending does not make it one.
	KnownLocal ByFamily[bool]
	// WasUplink says that the link was an uplink by a default of a family, and that
	// neither all of its addresses have changed since nor its profile, as far as it matters. DefaultUntil says
	// when main was first seen without the default, empty if that is not known.
	WasUplink    ByFamily[bool]
	DefaultUntil ByFamily[string]
	// Elsewhere are its sources besides its own addresses.
	Elsewhere []Elsewhere
	// Tables are the leases the link holds. A key without one has no table.
	Tables map[Key]TableID
}
