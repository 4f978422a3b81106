package lookup

import (
	"net/netip"
	"slices"

	"multihomed/routing"
)

// An Interface is one device of a host.
type Interface struct {
	Index int
	Name  string
	// AltNames are its other names (IFLA_ALT_IFNAME): sockets and rules may know it by any of them.
	AltNames []string
	// Detached are those of AltNames that a rule says which was made before the interface had the name. The
	// rule matches nothing: the kernel looks for the interface once, and afterwards waits for one with that
	// Name (fib_nl2rule and attach_rules in net/core/fib_rules.c).
	Detached []string
	Group    uint32
	// Up is IFF_UP.
	Up bool
	// Master is the index of the VRF, bond or bridge that the interface is a port of, zero if
	// none.
	Master int
	// Lower is the index of the interface that a VLAN or MACVLAN stands on, zero for all others.
	Lower int
	// Table is what a VRF looks up (IFLA_VRF_TABLE); zero for all others.
	Table routing.TableID

	// NoCarrier says that the interface is up and has no carrier: IFF_LOWER_UP is missing.
	NoCarrier bool
	// Config says how the interface takes packets in. A Host that is asked about packets of its own
	// alone needs none.
	Config Config
}

// A Config is what the sysctls net.ipv4.conf and net.ipv6.conf say of an interface, as they take
// effect: with the value of "all", where the kernel asks both.
type Config struct {
	// Forwards says by family that packets for others are taken. With IPv6 it is
	// net.ipv6.conf.all.forwarding that decides, or force_forwarding of the interface (ip6_forward).
	Forwards routing.ByFamily[bool]
	// ReversePath is rp_filter of IPv4: 0 does not check the source, 1 is strict, 2 loose (RFC 3704).
	ReversePath uint8
	// MarkReverse is src_valid_mark of IPv4: the check of the source uses the packet's mark.
	MarkReverse bool
	// RouteLocalnet is route_localnet of IPv4: addresses of 127.0.0.0/8 may come in and leave by the
	// interface.
	RouteLocalnet bool
	// AcceptLocal is accept_local of IPv4: the source may be an address of this host.
	AcceptLocal bool
	// Addressed says that the interface has an IPv4 address.
	Addressed bool
	// IgnoreLinkDown says by family that routes are dead without carrier
	// (ignore_routes_with_linkdown).
	IgnoreLinkDown routing.ByFamily[bool]
}

// A Host is all that a lookup depends on. It may be written by hand, and must
// not change while it is asked.
type Host struct {
	// Interfaces need not list the loopback interface: every host has one.
	Interfaces []Interface
	// Rules are those of both families, each family in the kernel's order.
	Rules []routing.Rule
	// Tables hold the routes that are alive: what leads through a device that
	// is down, and a leg whose link has no carrier where the host ignores such
	// (ignore_routes_with_linkdown), is left out by whoever makes the Host. Equal
	// routes come in the kernel's order. A multipath route is a Route for each
	// leg, in the order of the legs and all with a Weight, or one with
	// [routing.Legs]. Local addresses are routes of type local.
	Tables map[routing.Family]map[routing.TableID][]routing.Route
	// Partial are tables of which only a part is known, or nothing. What comes of
	// them is an answer that lacks something ([Verdict.Lacking]).
	Partial map[routing.Family]map[routing.TableID]bool

	// Merged says that nobody has added or deleted a rule of IPv4 yet. The kernel then keeps
	// local and main in one trie, where a longer route of main wins over local
	// (fib_trie_unmerge in net/ipv4/fib_trie.c). The rules must be those that it begins with.
	Merged bool

	// Before615 says that the kernel is older than Linux 6.15, or does as one: a rule that names a VRF is not for
	// what its ports take in and send (fib_rule_iif_match in net/core/fib_rules.c), and "dscp 0" of IPv6 selects
	// nothing (fib6_rule_match in net/ipv6/fib6_rules.c).
	Before615 bool

	// Before72 says that the kernel is older than Linux 7.2, or does as one: it takes an IPv6 route that a rule has
	// suppressed all the same, if no later rule looks up a table (fib6_rule_suppress in net/ipv6/fib6_rules.c).
	Before72 bool

	// Checks says that Tables have the local addresses and Interfaces their configuration, so
	// that lookups of IPv4 include what the kernel checks besides rules: that the source of a packet of
	// this host is its own, that interfaces forward, and the reverse path of what they take in.
	Checks bool

	// objects are the numbers of the nexthop objects that routes lead to, by their place in Tables.
	objects map[*routing.Route]uint32
	// fibs are set by Index.
	fibs map[routing.Family]map[routing.TableID]*fib
}

// loopback is the index of the loopback interface in every network namespace
// (LOOPBACK_IFINDEX).
const loopback = 1

const loopbackName = "lo"

// absent is the index of an interface that does not exist: it equals no other.
const absent = -1

func (h *Host) named(name string) (Interface, bool) {
	if i := slices.IndexFunc(h.Interfaces, func(i Interface) bool { return i.Is(name) }); i >= 0 {
		return h.Interfaces[i], true
	}
	return Interface{Index: loopback, Name: loopbackName, Up: true}, name == loopbackName
}

// Is reports whether a name is one of the interface's.
func (i Interface) Is(name string) bool { return i.Name == name || slices.Contains(i.AltNames, name) }

// isMeant reports whether a rule means the interface by a name.
func (i *Interface) isMeant(name string) bool {
	return name == i.Name || slices.Contains(i.AltNames, name) && !slices.Contains(i.Detached, name)
}

func (h *Host) numbered(index int) (Interface, bool) {
	if i := slices.IndexFunc(h.Interfaces, func(i Interface) bool { return i.Index == index }); i >= 0 {
		return h.Interfaces[i], true
	}
	return Interface{Index: loopback, Name: loopbackName, Up: true}, index == loopback
}

// master returns the VRF that an interface is or belongs to.
func (h *Host) master(i Interface) (Interface, bool) {
	if i.Table != 0 {
		return i, true
	}
	if i.Master == 0 {
		return Interface{}, false
	}
	m, ok := h.numbered(i.Master)
	return m, ok && m.Table != 0
}

// A Flow is what the kernel looks up a route for. Flows can be compared.
type Flow struct {
	// From is zero for a socket that is bound to no address.
	From netip.Addr
	// To also says the family. It must be valid.
	To netip.Addr
	// IIF is the name of the interface that a forwarded packet came in by, empty
	// for packets of this host.
	IIF string
	// OIF is the name of the device that a socket is bound to. A forwarded
	// packet has none.
	OIF string
	// LooseOIF says that no socket is bound to OIF: IPV6_PKTINFO named it, or
	// RTM_GETROUTE. With a source, IPv6 takes such a device for a preference
	// (ip6_route_output_flags in net/ipv6/route.c). IPv4 makes no difference.
	LooseOIF bool
	Mark     uint32
	// UID is the user of the socket. Forwarded packets count as root's.
	UID                         uint32
	IPProto                     uint8
	SourcePort, DestinationPort uint16
	// TOS is that byte of IPv4 and the traffic class of IPv6. The DSCP is its
	// upper six bits; the lower two (ECN) select nothing.
	TOS       uint8
	FlowLabel uint32
	// TunnelID is that of a packet that was received through a tunnel, in host
	// order.
	TunnelID uint64
}

// An Outcome is what becomes of a packet.
type Outcome uint8

// Outcomes. NoRoute means that no rule had an answer; Rejected that one said no.
const (
	NoRoute Outcome = iota
	Rejected
	Local
	Sent
)

func (o Outcome) String() string {
	return [...]string{"no route", "rejected", "local", "sent"}[o]
}

// A Refusal is the error that a socket gets.
type Refusal uint8

// Refusals. Of a rule "unreachable" is NetUnreachable, of a route it is
// HostUnreachable (fib4_rule_action, fib_props); both prohibit with
// AccessDenied, and a blackhole is Invalid to who sends.
const (
	None Refusal = iota
	// NetUnreachable is ENETUNREACH.
	NetUnreachable
	// HostUnreachable is EHOSTUNREACH.
	HostUnreachable
	// AccessDenied is EACCES.
	AccessDenied
	// Invalid is EINVAL.
	Invalid
	// CrossDevice is EXDEV: what the reverse path filter of older kernels says, such as 6.12; 6.18
	// says EINVAL.
	CrossDevice
	// NoDevice is ENODEV.
	NoDevice
	// Other is any other error of the kernel ([Answer.Errno]).
	Other
)

func (r Refusal) String() string {
	return [...]string{
		"none", "network unreachable", "host unreachable", "access denied", "invalid argument",
		"cross-device link", "no such device", "another error",
	}[r]
}

// A Verdict is the answer to a lookup.
type Verdict struct {
	Outcome Outcome
	// Refusal is the error where the outcome is NoRoute or Rejected.
	Refusal Refusal
	// Rule is the rule that had the answer.
	Rule routing.Rule
	// Route is the route that had the answer, of a multipath route the first
	// leg; zero where a rule answered by itself.
	Route routing.Route
	// Legs are the routes that the packet may take if it is sent: one, or those
	// legs of a multipath route that the hash may choose.
	Legs []routing.Route
	// Otherwise is what becomes of the packets that the hash gives to a leg of
	// the route that the rule suppresses by its group. Only IPv6 looks at the
	// chosen leg (fib6_rule_suppress); IPv4 looks at the first.
	Otherwise *Verdict
	// Assumed says that the kernel sends although it found no route: an IPv4
	// socket that is bound to a device outside of every VRF takes the destination
	// for a neighbour (ip_route_output_key_hash_rcu in net/ipv4/route.c).
	Assumed bool
	// Alternatives are equal routes, or legs of such, from which and Route the kernel takes one by
	// what it knows about the reachability of the routers: default routes of IPv4
	// (fib_select_default), and IPv6 routes with the same metric (find_rr_leaf).
	Alternatives []routing.Route
	// Fallbacks are IPv6 routes of the table, or legs of such, that the kernel takes while the router of Route is known
	// not to answer: of a higher metric, a lower preference or a shorter prefix (find_rr_leaf and fib6_table_lookup in
	// net/ipv6/route.c). A host that forwards IPv6 has none.
	Fallbacks []routing.Route
	// Nexthop is the number of the nexthop object that Route leads to, 0 if there is none or the Host
	// does not know. IPv6 routes that share an object share its copies of routes, so that the kernel may
	// name another one of them in its answer, and suppress it by the other's prefix length
	// (rt6_get_pcpu_route in net/ipv6/route.c).
	Nexthop uint32
	// Direct says that no rule was asked: IPv4 sends multicast and limited broadcast by the device
	// that the socket is bound to, or that has its address (ip_route_output_key_hash_rcu).
	Direct bool
	// Objection says why the kernel refuses or drops the packet without asking a rule, or whatever the
	// rules say.
	Objection Objection
	// Reverse is how the source of an IPv4 packet that came in was checked, nil if it was not.
	Reverse *Reverse
	// Suppressed says that Rule has suppressed Route, and the kernel takes it all the same ([Host.Before72]).
	Suppressed bool
	// Lacking says that a table was asked of which only a part is known.
	Lacking bool
	// Uncertain says that a rule with attributes that are unknown here came
	// before the answer. It was skipped.
	Uncertain bool
}

// Through reports whether every leg leaves by one of the devices.
func (v Verdict) Through(devices ...int) bool {
	return v.Outcome == Sent &&
		!slices.ContainsFunc(v.Legs, func(r routing.Route) bool { return !slices.Contains(devices, r.Device) }) &&
		(v.Otherwise == nil || v.Otherwise.Through(devices...))
}

// A Result is what came of asking one rule.
type Result uint8

// Results of rules.
const (
	// Unmatched: the packet is not what the rule is for. Step.Selector says why.
	Unmatched Result = iota
	// NotUnderstood: the rule has attributes that are unknown here.
	NotUnderstood
	// Jumped: the lookup goes on at the rule that goto names.
	Jumped
	// Outranked: main has a longer route, and the kernel still has both tables in one trie ([Host.Merged]).
	Outranked
	// Unresolved: goto names no rule.
	Unresolved
	// Nothing: the rule says that nothing happens (nop).
	Nothing
	// Empty: the table has no route.
	Empty
	// Thrown: the table has a throw route.
	Thrown
	// TooShort: suppress_prefixlength rejects the route.
	TooShort
	// InGroup: suppress_ifgroup rejects the route.
	InGroup
	// Decided: this is the answer, or with IPv6 that of some of the packets
	// ([Verdict.Otherwise]).
	Decided
)

func (r Result) String() string {
	return [...]string{
		"not matched", "not understood", "jumped", "outranked by main", "no such target", "nothing", "no route", "thrown",
		"suppressed by prefix length", "suppressed by group", "decided",
	}[r]
}

// A Selector names a part of a rule in the words of ip-rule(8).
type Selector string

// Selectors of rules.
const (
	NoSelector        Selector = ""
	ByIIF             Selector = "iif"
	ByOIF             Selector = "oif"
	ByMark            Selector = "fwmark"
	ByTunnel          Selector = "tun_id"
	ByVRF             Selector = "l3mdev"
	ByUID             Selector = "uidrange"
	ByDestination     Selector = "to"
	BySource          Selector = "from"
	ByTOS             Selector = "tos"
	ByDSCP            Selector = "dscp"
	ByFlowLabel       Selector = "flowlabel"
	ByProtocol        Selector = "ipproto"
	BySourcePort      Selector = "sport"
	ByDestinationPort Selector = "dport"
)

// A Step is one rule that was asked.
type Step struct {
	Rule   routing.Rule
	Result Result
	// Selector is the first one that the packet does not match, in the order of
	// the kernel. An unmatched rule without one is inverted.
	Selector Selector
	// Table is what the rule looked up, that of the VRF with l3mdev.
	Table routing.TableID
	// Route is what the table has, of a multipath route the first leg; zero
	// where nothing was found.
	Route routing.Route
}

// Lookup walks the rules.
func (h *Host) Lookup(f Flow) Verdict { return h.walk(f, func(Step) {}) }

// Trace is Lookup with all that was asked on the way.
func (h *Host) Trace(f Flow) (Verdict, []Step) {
	var steps []Step
	v := h.walk(f, func(s Step) { steps = append(steps, s) })
	return v, steps
}
