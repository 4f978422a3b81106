package reality_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
	"multihomed/internal/nlsocket"
	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/lookup"
	"multihomed/test/lab"
)

// A stage is a host on which one trap is set.
type stage struct {
	reader *kernel.Reader
	index  map[string]int
	known  features
}

func (s *stage) rule(t *testing.T, r routing.Rule) {
	t.Helper()
	if r.Action == 0 {
		r.Action = routing.ActionLookup
	}
	must(t, addRule(r))
}

// route adds a route through a device, or one of another type where there is no device.
func (s *stage) route(t *testing.T, table routing.TableID, to, from, device string, kind routing.RouteType) {
	t.Helper()
	r := routing.Route{Table: table, Destination: netip.MustParsePrefix(to), Type: kind, Device: s.index[device]}
	r.Family = routing.FamilyOf(r.Destination.Addr())
	if from != "" {
		r.Source = netip.MustParsePrefix(from)
	}
	if r.Family == routing.IPv4 && device != "" {
		r.Scope = routing.ScopeLink
	}
	must(t, addRoute(r))
}

// agree asks both, and returns what was asked if they agree.
func (s *stage) agree(t *testing.T, f lookup.Flow) *lookup.Host {
	t.Helper()
	c, err := s.reader.Consult(t.Context(), f)
	must(t, err)
	if c.Difference != "" {
		t.Errorf("%+v: %s\n%s", f, c.Difference, explain(c.Facts, c.Steps, f.Question()))
	}
	return c.Facts.Host()
}

// wrong checks that the kernel does not agree with what somebody would say who does not know the trap.
func (s *stage) wrong(t *testing.T, host *lookup.Host, asked lookup.Flow, naive lookup.Verdict) {
	t.Helper()
	facts, err := s.reader.Facts(t.Context(), routing.FamilyOf(asked.To), asked.To)
	must(t, err)
	answer, err := s.reader.Ask(t.Context(), facts.Interfaces, asked)
	must(t, err)
	if host.Disagree(naive, asked.Question(), answer) == "" {
		t.Errorf("%+v: the naive answer is right: %s by %s", asked, naive.Outcome, naive.Route)
	}
}

// without is a host without the rule of a trap.
func without(h *lookup.Host) *lookup.Host {
	out := *h
	out.Rules = slices.DeleteFunc(slices.Clone(h.Rules), func(r routing.Rule) bool { return r.Priority == trapPriority })
	return &out
}

var (
	internet4 = netip.MustParseAddr("198.51.100.1")
	internet6 = netip.MustParseAddr("2600::1")
)

const (
	trapTable    routing.TableID  = 100
	trapPriority routing.Priority = 100
)

func newStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{index: newHost(t)}
	s.known = probe(t, s.index) // It deletes all rules.
	base(t)
	s.reader = openReader(t)
	return s
}

// TestTraps: what a first simulator gets wrong. Each stage shows that the kernel and the simulation
// agree, and that the obvious answer would be wrong.
func TestTraps(t *testing.T) {
	t.Run("1 a question without a protocol is UDP", trapUDP)
	t.Run("2 a device and no route", trapOnLink)
	t.Run("3 the group of the first leg", trapFirstLeg)
	t.Run("4 a source-specific route hides the plain one", trapHidden)
	t.Run("5 no source yet", trapNoSource)
	t.Run("6 a device and no source", trapStrict)
	t.Run("7 not l3mdev", trapNotVRF)
	t.Run("8 forwarded packets are root's", trapForwardedUser)
	t.Run("9 tos and dscp", trapTOS)
	t.Run("10 an absent interface", trapAbsent)
	t.Run("11 a strict socket", trapStrictSocket)
	t.Run("12 the leaf of a nexthop object", trapLeaf)
	t.Run("13 a nexthop object and a device", trapObjectDevice)
	t.Run("14 one nexthop object, two routes", trapSharedObject)
	t.Run("15 local and main in one trie", trapMerged)
	t.Run("16 the reverse path", trapReverse)
	t.Run("17 multicast from an address", trapMulticast)
	t.Run("18 addresses of no host", trapOddAddresses)
	t.Run("19 a blackhole object and a device", trapBlackholeObject)
	t.Run("20 IPv6 that is not forwarded", trapNotForwarded)
	t.Run("21 another name of an interface", trapOtherName)
	t.Run("22 rules before 6.15", trapBefore615)
	t.Run("23 a router of IPv6 that does not answer", trapDeadRouter)
	t.Run("24 a route that the last rule suppresses", trapSuppressed)
}

func trapUDP(t *testing.T) {
	s := newStage(t)
	s.route(t, trapTable, "0.0.0.0/0", "", "d1", routing.RouteUnicast)
	s.rule(t, routing.Rule{Family: routing.IPv4, Priority: trapPriority, IPProto: unix.IPPROTO_UDP, Table: trapTable})
	f := lookup.Flow{To: internet4}
	host := s.agree(t, f)
	s.wrong(t, host, f, host.Lookup(f)) // no protocol
}

func trapOnLink(t *testing.T) {
	s := newStage(t)
	s.rule(t, routing.Rule{Family: routing.IPv4, Priority: trapPriority, Action: routing.ActionUnreachable})
	f := lookup.Flow{To: internet4, OIF: "d1"}
	host := s.agree(t, f)
	v := host.Lookup(f.Question())
	if !v.Assumed {
		t.Errorf("%+v", v)
	}
	v.Assumed = false
	s.wrong(t, host, f, v)
}

func trapFirstLeg(t *testing.T) {
	s := newStage(t)
	legs := make([]routing.Route, 2)
	for i := range legs {
		device := []int{1, 2}[i] // groups 5 and 28008
		legs[i] = routing.Route{
			Family: routing.IPv4, Table: trapTable, Destination: routing.IPv4.Any(), Type: routing.RouteUnicast,
			Device: s.index[fmt.Sprintf("d%d", device)], Gateway: gatewayOf(routing.IPv4, device),
		}
	}
	must(t, addRoute(legs...))
	s.rule(t, routing.Rule{Family: routing.IPv4, Priority: trapPriority, Table: trapTable, SuppressGroup: routing.Some(5)})
	f := lookup.Flow{To: internet4, OIF: "d2"} // which can use the second leg alone
	host := s.agree(t, f)
	facts, err := s.reader.Facts(t.Context(), routing.IPv4, internet4)
	must(t, err)
	slices.Reverse(facts.Tables[trapTable])
	s.wrong(t, host, f, facts.Host().Lookup(f.Question()))
}

func trapHidden(t *testing.T) {
	s := newStage(t)
	other := lookup.Flow{To: internet6, From: netip.MustParseAddr("2001:db8:2::1")}
	s.rule(t, routing.Rule{Family: routing.IPv6, Priority: trapPriority, Table: trapTable})
	s.route(t, trapTable, "2600::/16", "", "d2", routing.RouteUnicast)
	s.route(t, trapTable, "2600::/16", "2001:db8:1::/48", "d1", routing.RouteUnicast)
	host := s.agree(t, other)
	facts, err := s.reader.Facts(t.Context(), routing.IPv6, internet6)
	must(t, err)
	facts.Tables[trapTable] = slices.DeleteFunc(facts.Tables[trapTable], func(c lookup.Candidate) bool { return c.Route.Source.IsValid() })
	s.wrong(t, host, other, facts.Host().Lookup(other.Question()))
	// Not at the root of the tree.
	flushTable(t, routing.IPv6, trapTable)
	s.route(t, trapTable, "::/0", "", "d2", routing.RouteUnicast)
	s.route(t, trapTable, "::/0", "2001:db8:1::/48", "d1", routing.RouteUnicast)
	if v := s.agree(t, other).Lookup(other); !v.Through(s.index["d2"]) {
		t.Errorf("the plain default is hidden too: %+v", v)
	}
}

func trapNoSource(t *testing.T) {
	s := newStage(t)
	s.rule(t, routing.Rule{Family: routing.IPv6, Priority: trapPriority, From: netip.MustParsePrefix("::/1"), Table: trapTable})
	s.route(t, trapTable, "::/0", "", "d1", routing.RouteUnicast)
	f := lookup.Flow{To: internet6}
	host := s.agree(t, f)
	everybody := *host
	everybody.Rules = slices.Clone(host.Rules)
	for i := range everybody.Rules {
		everybody.Rules[i].From = netip.Prefix{}
	}
	s.wrong(t, host, f, everybody.Lookup(f.Question()))
	// A source-specific route is for ::.
	s.route(t, routing.TableMain, "2600::/16", "::/1", "d2", routing.RouteUnicast)
	host = s.agree(t, f)
	facts, err := s.reader.Facts(t.Context(), routing.IPv6, internet6)
	must(t, err)
	delete(facts.Tables, routing.TableMain)
	s.wrong(t, host, f, facts.Host().Lookup(f.Question()))
}

func trapStrict(t *testing.T) {
	s := newStage(t)
	s.route(t, routing.TableMain, "2600::/16", "", "", 7) // RTN_UNREACHABLE
	s.route(t, routing.TableMain, "2000::/3", "", "d1", routing.RouteUnicast)
	f := lookup.Flow{To: internet6, OIF: "d1"}
	host := s.agree(t, f)
	if v := host.Lookup(f.Question()); !v.Through(s.index["d1"]) {
		t.Errorf("%+v", v)
	}
	s.wrong(t, host, f, host.Lookup(lookup.Flow{To: internet6}))
}

func trapNotVRF(t *testing.T) {
	s := newStage(t)
	for _, family := range routing.Families() {
		s.rule(t, routing.Rule{Family: family, Priority: trapPriority, Invert: true, L3MDev: true})
		s.rule(t, routing.Rule{Family: family, Priority: trapPriority + 1, Action: routing.ActionProhibit})
	}
	s.route(t, routing.TableMain, "0.0.0.0/0", "", "d1", routing.RouteUnicast)
	s.route(t, routing.TableMain, "2000::/3", "", "d1", routing.RouteUnicast)
	for _, to := range []netip.Addr{internet4, internet6} {
		f := lookup.Flow{To: to}
		host := s.agree(t, f)
		s.wrong(t, host, f, without(host).Lookup(f.Question()))
	}
}

func trapForwardedUser(t *testing.T) {
	s := newStage(t)
	s.rule(t, routing.Rule{Family: routing.IPv4, Priority: trapPriority, UIDs: routing.UIDRange{Set: true}, Table: trapTable})
	s.route(t, trapTable, "0.0.0.0/0", "", "d1", routing.RouteUnicast)
	f := lookup.Flow{To: internet4, From: netip.MustParseAddr("10.0.0.77"), IIF: "d0", UID: 1000}
	host := s.agree(t, f)
	s.wrong(t, host, f, without(host).Lookup(f.Question()))
}

func trapTOS(t *testing.T) {
	s := newStage(t)
	s.route(t, trapTable, "0.0.0.0/0", "", "d1", routing.RouteUnicast)
	s.rule(t, routing.Rule{Family: routing.IPv4, Priority: trapPriority, TOS: 0x10, Table: trapTable})
	f := lookup.Flow{To: internet4, TOS: 0xf0} // CS6 and more, and 0x10 of what RFC 1349 knew
	host := s.agree(t, f)
	s.wrong(t, host, f, without(host).Lookup(f.Question()))
	if !s.known.dscp {
		return // 6.1 and 6.12 compare tos alone.
	}
	s.rule(t, routing.Rule{Family: routing.IPv4, Priority: trapPriority - 1, DSCP: routing.Some(0x10 >> 2), Action: routing.ActionProhibit})
	host = s.agree(t, f)
	masked := f
	masked.TOS &= 0x1c
	s.wrong(t, host, f, host.Lookup(masked.Question()))
}

func trapAbsent(t *testing.T) {
	s := newStage(t)
	for _, family := range routing.Families() {
		s.rule(t, routing.Rule{Family: family, Priority: trapPriority - 1, IIF: "nowhere0", Action: routing.ActionProhibit})
		s.rule(t, routing.Rule{Family: family, Priority: trapPriority, OIF: "nowhere0", Invert: true, Table: trapTable})
	}
	s.route(t, trapTable, "0.0.0.0/0", "", "d1", routing.RouteUnicast)
	s.route(t, trapTable, "2000::/3", "", "d1", routing.RouteUnicast)
	for _, to := range []netip.Addr{internet4, internet6} {
		f := lookup.Flow{To: to}
		host := s.agree(t, f)
		s.wrong(t, host, f, without(host).Lookup(f.Question()))
		all := *host
		all.Rules = slices.Clone(host.Rules)
		for i := range all.Rules {
			all.Rules[i].IIF = ""
		}
		s.wrong(t, host, f, all.Lookup(f.Question()))
	}
}

func trapStrictSocket(t *testing.T) {
	s := newStage(t)
	s.rule(t, routing.Rule{Family: routing.IPv6, Priority: trapPriority, Table: trapTable})
	s.route(t, trapTable, "::/0", "", "d1", routing.RouteUnicast)
	f := lookup.Flow{To: internet6}
	s.agree(t, f)
	facts, err := s.reader.Facts(t.Context(), routing.IPv6, internet6)
	must(t, err)
	answer, err := s.reader.Ask(t.Context(), facts.Interfaces, f)
	must(t, err)
	if len(answer.Matched) != 1 || answer.Matched[0].Table != trapTable || answer.Sent.Table != trapTable {
		t.Errorf("the answer names no table: %+v", answer)
	}
	// What IPv4 needs, IPv6 refuses.
	socket, err := nlsocket.Open(nlsocket.Options{Protocol: unix.NETLINK_ROUTE, What: "a strict socket", Settings: []int{unix.NETLINK_GET_STRICT_CHK}})
	must(t, err)
	defer func() { must(t, socket.Close()) }()
	var b nlmsg.Builder
	b.Begin(unix.RTM_GETROUTE, unix.NLM_F_REQUEST, 1)
	b.Bytes(unix.AF_INET6, 128, 0, 0, 0, 0, 0, 0)
	b.Word(unix.RTM_F_LOOKUP_TABLE)
	b.Attribute(unix.RTA_DST, internet6.AsSlice())
	b.End()
	must(t, socket.Send(b.B))
	buffer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(socket.FD, buffer, 0) // The kernel answers inside sendto(2).
	must(t, err)
	h, payload, _, err := nlmsg.Next(buffer[:n])
	must(t, err)
	if h.Kind != unix.NLMSG_ERROR || !errors.Is(nlmsg.ErrorOf(h, payload), unix.EINVAL) {
		t.Errorf("message %d: %v", h.Kind, nlmsg.ErrorOf(h, payload))
	}
}

func (s *stage) object(t *testing.T, family routing.Family, devices ...int) uint32 {
	t.Helper()
	id, err := makeNexthop(family, s.index, devices...)
	must(t, err)
	return id
}

// objectRoute adds a route by a nexthop object.
func (s *stage) objectRoute(t *testing.T, to string, nexthop uint32) {
	t.Helper()
	r := routing.Route{Table: trapTable, Destination: netip.MustParsePrefix(to), Type: routing.RouteUnicast}
	r.Family = routing.FamilyOf(r.Destination.Addr())
	must(t, addRouteBy(nexthop, 0, r))
}

func trapLeaf(t *testing.T) {
	s := newStage(t)
	s.rule(t, routing.Rule{Family: routing.IPv4, Priority: trapPriority, Table: trapTable})
	s.objectRoute(t, "192.0.0.0/4", s.object(t, routing.IPv4, 1))
	s.route(t, trapTable, "192.0.0.0/3", "", "d2", routing.RouteUnicast) // the same leaf: it begins at the same address
	s.route(t, trapTable, "128.0.0.0/1", "", "d3", routing.RouteUnicast)
	for _, device := range []string{"d2", "d3"} {
		f := lookup.Flow{To: internet4, OIF: device}
		host := s.agree(t, f)
		facts, err := s.reader.Facts(t.Context(), routing.IPv4, internet4)
		must(t, err)
		for i := range facts.Tables[trapTable] {
			facts.Tables[trapTable][i].Nexthop = 0
		}
		if naive := facts.Host().Lookup(f.Question()); device == "d2" {
			s.wrong(t, host, f, naive)
		}
	}
}

func trapObjectDevice(t *testing.T) {
	s := newStage(t)
	s.rule(t, routing.Rule{Family: routing.IPv6, Priority: trapPriority, Table: trapTable})
	s.objectRoute(t, "2600::/16", s.object(t, routing.IPv6, 1, 2, 3))
	strays := false
	for n := range 64 { // The hash takes each of three legs for a third of them.
		f := lookup.Flow{To: internet6, OIF: "d1"}
		b := f.To.As16()
		b[15] = byte(n)
		f.To = netip.AddrFrom16(b)
		s.agree(t, f)
		facts, err := s.reader.Facts(t.Context(), routing.IPv6, f.To)
		must(t, err)
		answer, err := s.reader.Ask(t.Context(), facts.Interfaces, f)
		must(t, err)
		strays = strays || answer.Sent.Device != s.index["d1"]
	}
	if !strays && os.Getenv(lab.SlowEnv) == "" { // Debian's 6.12 keeps to the device, and its 6.1 does not.
		t.Error("the kernel keeps to the device")
	}
}

func trapSharedObject(t *testing.T) {
	s := newStage(t)
	object := s.object(t, routing.IPv6, 1)
	s.rule(t, routing.Rule{Family: routing.IPv6, Priority: trapPriority, Table: trapTable})
	s.objectRoute(t, "2600::/16", object)
	s.objectRoute(t, "2700::/16", object)
	for _, to := range []string{"2600::1", "2700::1", "2600::2"} {
		s.agree(t, lookup.Flow{To: netip.MustParseAddr(to)})
	}
}

func trapOtherName(t *testing.T) {
	s := newStage(t)
	s.route(t, routing.TableMain, "0.0.0.0/0", "", "d0", routing.RouteUnicast)
	s.route(t, trapTable, "0.0.0.0/0", "", "d2", routing.RouteUnicast)
	link := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: s.index["d2"]}}
	s.rule(t, routing.Rule{Family: routing.IPv4, Priority: trapPriority, IIF: "later", Table: trapTable})
	for _, name := range []string{"enp2s0", "later"} {
		must(t, netlink.LinkAddAltName(link, name))
	}
	from := netip.MustParseAddr("203.0.113.9")
	s.agree(t, lookup.Flow{To: internet4, From: from, IIF: "d2"}) // The rule is older than the name.
	s.rule(t, routing.Rule{Family: routing.IPv4, Priority: trapPriority, IIF: "enp2s0", Table: trapTable})
	s.rule(t, routing.Rule{Family: routing.IPv4, Priority: trapPriority, OIF: "enp2s0", Table: trapTable})
	for _, f := range []lookup.Flow{{To: internet4, From: from, IIF: "d2"}, {To: internet4, From: from, IIF: "enp2s0"}, {To: internet4, OIF: "d2"}, {To: internet4, OIF: "later"}} {
		host := s.agree(t, f)
		for i := range host.Interfaces {
			host.Interfaces[i].AltNames = nil
		}
		s.wrong(t, host, f, host.Lookup(f.Question()))
	}
}

// trapBefore615: where the kernel has no VRFs, the first rule is for an interface that does not exist.
func trapBefore615(t *testing.T) {
	s := newStage(t)
	for _, f := range routing.Families() {
		everything := f.Any().String()
		s.route(t, routing.TableMain, everything, "", "d0", routing.RouteUnicast)
		s.route(t, trapTable, everything, "", "d1", routing.RouteUnicast)
		s.rule(t, routing.Rule{Family: f, Priority: trapPriority, IIF: "vrf0", Table: trapTable})
		s.rule(t, routing.Rule{Family: f, Priority: trapPriority, OIF: "vrf0", Table: trapTable})
		if s.known.dscp {
			s.rule(t, routing.Rule{Family: f, Priority: trapPriority + 1, DSCP: routing.Some(0), Table: trapTable})
		}
	}
	linkLocal := netip.MustParseAddr("fe80::1")
	for _, to := range []netip.Addr{internet4, internet6} {
		from := netip.MustParseAddr("203.0.113.9")
		if to.Is6() {
			from = netip.MustParseAddr("2800::9")
		}
		for _, f := range []lookup.Flow{{From: from, IIF: "d4"}, {From: from, IIF: "vrf0"}, {OIF: "d4"}, {OIF: "vrf0"}, {To: linkLocal, OIF: "vrf0"}, {To: linkLocal, OIF: "d4"}, {To: netip.MustParseAddr("ff02::1"), OIF: "d4"}, {TOS: 0x20}, {From: from, IIF: "d2", TOS: 0x20}} {
			switch {
			case !f.To.IsValid():
				f.To = to
			case to.Is4():
				continue
			}
			facts, err := s.reader.Facts(t.Context(), routing.FamilyOf(to), f.To, from)
			must(t, err)
			answer, err := s.reader.Ask(t.Context(), facts.Interfaces, f)
			must(t, err)
			host := facts.Host() // Without the second try of Consult.
			if why := host.Disagree(host.Lookup(f.Question()), f.Question(), answer); why != "" {
				t.Errorf("%+v: %s", f, why)
			}
		}
	}
}

// trapSuppressed asks about packets of this host alone: about others, kernels that take such a route drop their
// references to it twice.
func trapSuppressed(t *testing.T) {
	s := newStage(t)
	f := lookup.Flow{To: internet6}
	for after, r := range map[string]routing.Rule{
		"nothing":                        {},
		"a rule that does not match":     {From: netip.MustParsePrefix("2001:db8:77::/64"), Action: routing.ActionLookup, Table: trapTable},
		"a rule that does nothing":       {Action: routing.ActionNop},
		"a rule that has an empty table": {Action: routing.ActionLookup, Table: trapTable + 1},
	} {
		flush(t)
		s.rule(t, routing.Rule{Family: routing.IPv6, Table: routing.TableLocal})
		s.route(t, trapTable, "::/0", "", "d1", routing.RouteUnicast)
		s.rule(t, routing.Rule{Family: routing.IPv6, Priority: trapPriority, Table: trapTable, SuppressPrefixLength: routing.Some(0)})
		if r.Action != 0 {
			r.Family, r.Priority = routing.IPv6, trapPriority+1
			s.rule(t, r)
		}
		s.agree(t, f) // whatever the release of the kernel says
		facts, err := s.reader.Facts(t.Context(), routing.IPv6, f.To)
		must(t, err)
		facts.Before72 = s.known.suppressedStays
		answer, err := s.reader.Ask(t.Context(), facts.Interfaces, f)
		must(t, err)
		host := facts.Host()
		v := host.Lookup(f.Question())
		if why := host.Disagree(v, f.Question(), answer); why != "" {
			t.Errorf("%s after it: %s", after, why)
		}
		if want := s.known.suppressedStays && r.Table <= trapTable; v.Suppressed != want {
			t.Errorf("%s after it: taken all the same is %v, want %v", after, v.Suppressed, want)
		}
	}
}

func trapDeadRouter(t *testing.T) {
	s := newStage(t)
	sysctl(t, "ipv6/conf/all/forwarding", 0)
	dead := gatewayOf(routing.IPv6, 1)
	route := func(to string, device int, metric uint32) {
		must(t, addRoute(routing.Route{
			Family: routing.IPv6, Table: routing.TableMain, Destination: netip.MustParsePrefix(to), Type: routing.RouteUnicast, Metric: metric,
			Device: s.index[fmt.Sprintf("d%d", device)], Gateway: gatewayOf(routing.IPv6, device), OnLink: true,
		}))
	}
	route("2600::/16", 1, 10)
	route("::/0", 1, 10)
	route("::/0", 2, 20)
	must(t, netlink.NeighSet(&netlink.Neigh{LinkIndex: s.index["d1"], IP: dead.AsSlice(), State: netlink.NUD_FAILED}))
	for _, to := range []string{"2600::1", "2700::1"} {
		f := lookup.Flow{To: netip.MustParseAddr(to)}
		host := s.agree(t, f)
		v := host.Lookup(f.Question())
		v.Fallbacks = nil
		s.wrong(t, host, f, v)
	}
}

func trapMerged(t *testing.T) {
	s := &stage{index: newHost(t)}
	s.reader = openReader(t)
	// Nobody has changed a rule here. A part of a local network is somewhere else.
	must(t, addRoute(routing.Route{
		Family: routing.IPv4, Table: routing.TableLocal, Destination: netip.MustParsePrefix("198.51.0.0/16"), Type: 2, Device: s.index["lo"], Scope: 254,
	}))
	s.route(t, routing.TableMain, "198.51.100.0/24", "", "d1", routing.RouteUnicast)
	f := lookup.Flow{To: internet4}
	host := s.agree(t, f)
	if s.index["vrf0"] != 0 {
		return // Making a VRF adds a rule.
	}
	if !host.Merged {
		t.Error("it looks as if rules were asked")
	}
	apart := *host
	apart.Merged = false
	s.wrong(t, host, f, apart.Lookup(f.Question()))
	base4 := routing.Rule{Family: routing.IPv4, Priority: 40000, Table: trapTable}
	s.rule(t, base4) // From now on they are asked.
	if host := s.agree(t, f); host.Merged {
		t.Error("it looks as if rules were not asked")
	}
}

func trapReverse(t *testing.T) {
	s := newStage(t)
	s.route(t, routing.TableMain, "0.0.0.0/0", "", "d1", routing.RouteUnicast)
	s.route(t, routing.TableMain, "203.0.113.0/24", "", "d2", routing.RouteUnicast)
	f := lookup.Flow{To: internet4, From: netip.MustParseAddr("203.0.113.9"), IIF: "d0"}
	for mode, passes := range map[int]bool{0: true, 1: false, 2: true} {
		sysctl(t, "ipv4/conf/d0/rp_filter", mode)
		host := s.agree(t, f)
		v := host.Lookup(f.Question())
		if v.Reverse == nil || v.Reverse.Passed != passes || v.Reverse.Reason != lookup.ByOtherInterface {
			t.Errorf("rp_filter=%d: %+v", mode, v.Reverse)
		}
		if !passes {
			unchecked := *host
			unchecked.Checks = false
			s.wrong(t, host, f, unchecked.Lookup(f.Question()))
		}
	}
}

func trapMulticast(t *testing.T) {
	s := newStage(t)
	s.rule(t, routing.Rule{Family: routing.IPv4, Priority: trapPriority, Action: routing.ActionProhibit})
	for _, f := range []lookup.Flow{
		{To: netip.MustParseAddr("239.1.2.3"), From: netip.MustParseAddr("10.2.0.1")},
		{To: netip.MustParseAddr("255.255.255.255"), From: netip.MustParseAddr("10.2.0.1")},
		{To: netip.MustParseAddr("224.0.0.9"), OIF: "d2"},
		{To: netip.MustParseAddr("255.255.255.255"), OIF: "d2"},
	} {
		host := s.agree(t, f)
		s.wrong(t, host, f, lookup.Verdict{Outcome: lookup.Rejected, Refusal: lookup.AccessDenied})
	}
}

// trapOddAddresses asks about addresses that the kernel treats in a way of its own, with and without forwarding,
// reverse path check and route_localnet.
func trapOddAddresses(t *testing.T) {
	s := newStage(t)
	s.route(t, routing.TableMain, "0.0.0.0/0", "", "d1", routing.RouteUnicast)
	addresses := []string{
		"0.0.0.0", "0.1.2.3", "127.0.0.1", "127.1.2.3", "255.255.255.255", "240.0.0.1", "10.0.0.255", "10.0.0.1", "10.0.0.9", "10.1.0.1",
		"224.0.0.1", "224.0.0.251", "239.1.1.1", "198.51.100.1",
	}
	for _, set := range []string{"", "d0/route_localnet", "d1/route_localnet", "d0/rp_filter", "d0/forwarding"} {
		if set != "" {
			sysctl(t, "ipv4/conf/"+set, 1)
		}
		for _, to := range addresses {
			for _, from := range append(addresses, "") {
				for _, f := range []lookup.Flow{{}, {OIF: "d0"}, {OIF: "lo"}, {IIF: "d0"}} {
					if f.To = netip.MustParseAddr(to); from != "" {
						f.From = netip.MustParseAddr(from)
					}
					if f.IIF == "" || f.From.IsValid() {
						s.agree(t, f)
					}
				}
			}
		}
	}
	// Without route_localnet, a loopback source leaves by no other interface.
	sysctl(t, "ipv4/conf/d1/route_localnet", 0)
	f := lookup.Flow{To: internet4, From: netip.MustParseAddr("127.0.0.1")}
	host := s.agree(t, f)
	if v := host.Lookup(f.Question()); v.Objection != lookup.LoopbackSource {
		t.Errorf("%+v", v)
	}
	unchecked := *host
	unchecked.Checks = false
	s.wrong(t, host, f, unchecked.Lookup(f.Question()))
}

func trapBlackholeObject(t *testing.T) {
	s := newStage(t)
	lastNexthop++
	must(t, addNexthop(lastNexthop, routing.IPv6, 0, netip.Addr{}))
	s.rule(t, routing.Rule{Family: routing.IPv6, Priority: trapPriority, Table: trapTable})
	s.objectRoute(t, "2600::/16", lastNexthop)
	s.route(t, trapTable, "::/0", "", "d1", routing.RouteUnicast)
	f := lookup.Flow{To: internet6, OIF: "d1"}
	host := s.agree(t, f)
	s.wrong(t, host, f, without(host).Lookup(f.Question()))
}

// trapNotForwarded: RTM_GETROUTE has a route for IPv6 packets that the host drops.
func trapNotForwarded(t *testing.T) {
	s := newStage(t)
	s.route(t, routing.TableMain, "::/0", "", "d1", routing.RouteUnicast)
	f := lookup.Flow{To: internet6, From: netip.MustParseAddr("2600::2"), IIF: "d0"}
	local := lookup.Flow{To: internet6, From: netip.MustParseAddr("fe80::2"), IIF: "d0"}
	for _, c := range []struct {
		all, one int
		flow     lookup.Flow
		want     lookup.Objection
	}{
		{1, 1, f, lookup.NoObjection},
		{1, 0, f, lookup.NoObjection},
		{1, 1, local, lookup.SourceOfLink},
		{0, 1, f, lookup.NotForwarding},
	} {
		sysctl(t, "ipv6/conf/all/forwarding", c.all)
		sysctl(t, "ipv6/conf/d0/forwarding", c.one) // It does not count.
		host := s.agree(t, c.flow)
		if got := host.Forward(c.flow, host.Lookup(c.flow.Question())); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}
