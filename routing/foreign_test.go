package routing_test

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"multihomed/routing"
	"multihomed/routing/kerneltest"
	"multihomed/routing/lookup"
)

// TestSelects holds who keeps his say before the ladder.
func TestSelects(t *testing.T) {
	t.Parallel()
	mark := func(value, mask uint32) routing.Rule {
		return routing.Rule{Mark: routing.Mark{Value: value, Mask: mask}}
	}
	not := func(r routing.Rule) routing.Rule { r.Invert = true; return r }
	const all = 1<<32 - 1
	uids := func(first, last uint32) routing.Rule {
		return routing.Rule{UIDs: routing.UIDRange{Set: true, First: first, Last: last}}
	}
	for name, tt := range map[string]struct {
		rule routing.Rule
		want bool
	}{
		"wg-quick: not from all fwmark 0xca6c lookup 51820":                   {not(mark(0xca6c, all)), false},
		"wg-quick: from all lookup main suppress_prefixlength 0":              {routing.Rule{Table: routing.TableMain, SuppressPrefixLength: routing.Some(0)}, false},
		"Tailscale: from all fwmark 0x80000/0xff0000 lookup main":             {mark(0x80000, 0xff0000), true},
		"Tailscale: from all lookup 52":                                       {routing.Rule{Table: 52}, false},
		"Mullvad: not from all fwmark 0x6d6f6c65 lookup 1836018789":           {not(mark(0x6d6f6c65, all)), false},
		"NordVPN: not from all fwmark 0xe1f1 lookup 205":                      {not(mark(0xe1f1, all)), false},
		"strongSwan: from all lookup 220":                                     {routing.Rule{Table: 220}, false},
		"VPC CNI: from all to 10.1.2.3 lookup main":                           {routing.Rule{To: prefix("10.1.2.3/32")}, true},
		"VPC CNI: from all fwmark 0x80/0x80 lookup main":                      {mark(0x80, 0x80), true},
		"VPC CNI: from 10.1.2.3 lookup 2":                                     {routing.Rule{From: prefix("10.1.2.3/32")}, true},
		"mwan3: from all iif wan0 lookup 1":                                   {routing.Rule{IIF: "wan0"}, true},
		"mwan3: from all fwmark 0x100/0x3f00 lookup 1":                        {mark(0x100, 0x3f00), true},
		"nmstate: from 192.0.2.0/24 lookup 200":                               {routing.Rule{From: prefix("192.0.2.0/24")}, true},
		"nmstate: from all lookup 200":                                        {routing.Rule{Table: 200}, false},
		"netplan: from 192.0.2.5 lookup 101":                                  {routing.Rule{From: prefix("192.0.2.5/32")}, true},
		"NetworkManager: from all to 198.51.100.0/24 lookup 77":               {routing.Rule{To: prefix("198.51.100.0/24")}, true},
		"NetworkManager's WireGuard: not from all fwmark 0xcb87 lookup 52103": {not(mark(0xcb87, all)), false},
		"routed-dns: from all fwmark 0x4e55 lookup 20053":                     {mark(0x4e55, all), true},
		"a user":                              {uids(1001, 1001), true},
		"users but root":                      {uids(1, all-1), true},
		"all users":                           {uids(0, all-1), false},
		"a protocol":                          {routing.Rule{IPProto: 6}, true},
		"a port":                              {routing.Rule{DestinationPorts: routing.PortRange{First: 443, Last: 443}}, true},
		"all ports":                           {routing.Rule{DestinationPorts: routing.PortRange{First: 1, Last: 65535}}, false},
		"a source port":                       {routing.Rule{SourcePorts: routing.PortRange{First: 1, Last: 1023}}, true},
		"a type of service":                   {routing.Rule{TOS: 0x10}, true},
		"a DSCP":                              {routing.Rule{DSCP: routing.Some(46)}, true},
		"a flow label":                        {routing.Rule{FlowLabel: routing.Some(1)}, true},
		"a tunnel":                            {routing.Rule{TunnelID: 7}, true},
		"an outgoing interface":               {routing.Rule{OIF: "wan0"}, true},
		"what a VRF has":                      {routing.Rule{L3MDev: true}, true},
		"this host":                           {routing.Rule{IIF: "lo"}, false},
		"this host, marked":                   {routing.Rule{IIF: "lo", Mark: routing.Mark{Value: 1, Mask: all}}, true},
		"not marked":                          {mark(0, 0xca6c), false},
		"a mark of which nothing is compared": {mark(1, 0), false},
		"half of everything":                  {routing.Rule{To: prefix("0.0.0.0/1")}, false},
		"a quarter":                           {routing.Rule{To: prefix("64.0.0.0/2")}, true},
		"all but a source":                    {not(routing.Rule{From: prefix("192.0.2.0/24")}), false},
	} {
		if got := tt.rule.Selects(); got != tt.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// worlds are the values that rules and flows of the property test draw from: few,
// so that they meet.
var (
	worldMarks  = []uint32{0, 1, 2, 0x80000000, 0x80000001, 0xca6c, 0x10}
	worldUsers  = []uint32{0, 1000, 1001, 1002}
	worldPorts  = []uint16{22, 23, 53, 80, 443}
	worldIn     = []string{"", "", "docker0", "lan1"}
	worldOut    = []string{"", "", "", "wan0", "tun0"}
	worldProtos = []uint8{0, 6, 17, 47}
)

// genForeign draws a rule of somebody else.
func genForeign(t *rapid.T, f routing.Family) routing.Rule {
	r := routing.Rule{Family: f, Protocol: routing.ProtocolBoot}
	chance := func(n int) bool { return rapid.IntRange(0, n).Draw(t, "chance") == 0 }
	somewhere := map[routing.Family][]string{
		routing.IPv4: {"192.0.2.10/32", "192.0.2.0/24", "172.17.0.0/16", "8.8.8.8/32", "8.0.0.0/8", "0.0.0.0/1", "10.0.0.0/16"},
		routing.IPv6: {"2001:db8:a::/64", "2001:db8:a::a/128", "2600::/16", "fd00::/64", "::/1", "2001:db8:f::/48"},
	}[f]
	if chance(3) {
		r.From = prefix(rapid.SampledFrom(somewhere).Draw(t, "from"))
	}
	if chance(3) {
		r.To = prefix(rapid.SampledFrom(somewhere).Draw(t, "to"))
	}
	if chance(3) {
		r.Mark = routing.Mark{Value: rapid.SampledFrom(worldMarks).Draw(t, "mark"), Mask: rapid.SampledFrom([]uint32{1<<32 - 1, 0xf0, 0xffff, 0x80000000}).Draw(t, "mask")}
	}
	if chance(4) {
		first := rapid.SampledFrom(worldUsers).Draw(t, "user")
		r.UIDs = routing.UIDRange{Set: true, First: first, Last: first + rapid.SampledFrom([]uint32{0, 0, 1}).Draw(t, "users")}
	}
	if chance(5) {
		r.IPProto = rapid.SampledFrom(worldProtos[1:3]).Draw(t, "protocol")
		if chance(1) {
			port := rapid.SampledFrom(worldPorts).Draw(t, "port")
			r.DestinationPorts = routing.PortRange{First: port, Last: port + rapid.SampledFrom([]uint16{0, 30}).Draw(t, "ports")}
		}
	}
	if chance(6) {
		r.IIF = rapid.SampledFrom([]string{"docker0", "lan1", "lo"}).Draw(t, "iif")
	}
	if chance(9) {
		r.OIF = rapid.SampledFrom([]string{"wan0", "tun0"}).Draw(t, "oif")
	}
	r.Invert = chance(7)
	switch rapid.IntRange(0, 9).Draw(t, "action") {
	case 0:
		r.Action = routing.ActionUnreachable
	case 1:
		r.Action = routing.ActionProhibit
	case 2:
		r.Action = routing.ActionNop
	default:
		r.Action, r.Table = routing.ActionLookup, rapid.SampledFrom([]routing.TableID{77, 78, 79, routing.TableMain}).Draw(t, "table")
		if chance(4) {
			r.SuppressPrefixLength = routing.Some(rapid.SampledFrom([]uint32{0, 1, 16}).Draw(t, "suppressed"))
		}
	}
	r.Priority = rapid.SampledFrom([]routing.Priority{
		100, 5270, 8400, 8501, 8600, 9000, 9020, 9100, 9450, 9999, 10000, 10001, 10200, 10500, 12000, 19500, 20000, 25000, 30000, 32000, 32764, 32765,
	}).Draw(t, "priority")
	return r
}

// strangers puts rules of others and their tables into the kernel.
func strangers(t *rapid.T, h *host) {
	t.Helper()
	for _, f := range routing.Families() {
		for range rapid.IntRange(0, 6).Draw(t, "rules") {
			// The kernel refuses what it takes for a rule that stands.
			_ = h.kernel.AddForeignRule(genForeign(t, f))
		}
	}
	for _, r := range []routing.Route{
		{Family: routing.IPv4, Table: 77, Destination: prefix(default4), Device: 92},
		{Family: routing.IPv4, Table: 78, Destination: prefix("8.8.8.0/24"), Device: 92},
		{Family: routing.IPv4, Table: 79, Destination: prefix("172.16.0.0/12"), Device: 90},
		{Family: routing.IPv6, Table: 77, Destination: prefix(default6), Device: 92},
		{Family: routing.IPv6, Table: 78, Destination: prefix("2600::/64"), Device: 92},
	} {
		r.Type, r.Protocol = routing.RouteUnicast, kerneltest.ProtocolStatic
		if err := h.kernel.AddForeignRoute(r); err != nil {
			t.Fatal(err)
		}
	}
}

// genFlow draws a packet.
func genFlow(t *rapid.T, h *host) lookup.Flow {
	f := lookup.Flow{
		To:   rapid.SampledFrom(far).Draw(t, "destination"),
		Mark: rapid.SampledFrom(worldMarks).Draw(t, "mark"), UID: rapid.SampledFrom(worldUsers).Draw(t, "user"),
		IPProto: rapid.SampledFrom(worldProtos).Draw(t, "protocol"), DestinationPort: rapid.SampledFrom(worldPorts).Draw(t, "port"),
		IIF: rapid.SampledFrom(worldIn).Draw(t, "in"),
	}
	if f.IPProto != 6 && f.IPProto != 17 {
		f.DestinationPort = 0
	}
	if f.IIF != "" {
		f.UID = 0
	} else if rapid.IntRange(0, 2).Draw(t, "bound to a device") == 0 {
		f.OIF = rapid.SampledFrom(worldOut).Draw(t, "out")
	}
	sources := []netip.Addr{{}, addr("172.17.0.9"), addr("10.0.0.77"), addr("2001:db8:a::d:9"), addr("fd00::77")}
	for from := range owned(h) {
		sources = append(sources, from)
	}
	slices.SortFunc(sources, netip.Addr.Compare)
	f.From = rapid.SampledFrom(sources).Draw(t, "source")
	if f.From.IsValid() && f.From.Is4() != f.To.Is4() || f.IIF != "" && !f.From.IsValid() {
		f.From, f.IIF = netip.Addr{}, ""
	}
	if _, own := owned(h)[f.From]; f.From.IsValid() && !own && f.IIF == "" {
		// A socket has an address of the host.
		f.IIF, f.OIF, f.UID = "docker0", "", 0
	}
	return f
}

// TestOthersKeepTheirSay is promise 2 among random rules of others: a packet whose
// source is none of ours, or that a rule of somebody else selects and answers, goes
// as it would without us. One with a source of ours leaves by its link, or as
// somebody sends it who stands in front or selects it, or not at all.
func TestOthersKeepTheirSay(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := newHost()
		foreigners(t, h)
		strangers(t, h)
		for range rapid.IntRange(1, 3).Draw(t, "links") {
			index, name := genIndex(t)
			if name == names[index-2] {
				l := genLink(t, index, name)
				h.install(l)
				h.lookAll()
			}
		}
		h.repeat(t)
		h.settled(t)
		for range 40 {
			h.keepsSay(t, genFlow(t, h))
		}
		// Somebody else comes and goes while the ladder stands.
		for range rapid.IntRange(0, 3).Draw(t, "changes") {
			if rules := h.kernel.Foreign(routing.IPv4); rapid.Bool().Draw(t, "goes") && len(rules) > 3 {
				if r := rapid.SampledFrom(rules).Draw(t, "gone"); !r.Kernels() {
					h.kernel.DropRule(r)
				}
			} else {
				_ = h.kernel.AddForeignRule(genForeign(t, routing.IPv4))
			}
			h.lookAround()
			h.apply(t, routing.Diff(h.planner, h.kernel, h.planner.Take(), always))
			h.repeat(t)
			h.settled(t)
			for range 20 {
				h.keepsSay(t, genFlow(t, h))
			}
		}
	})
}

// TestTunnelThatTheKernelNumbered: with a full tunnel that was started after us and has
// no priorities, rules with one keep their say before it, and bound traffic of all
// other users steps over it, and so does what is bound to a link, or answered by one.
func TestTunnelThatTheKernelNumbered(t *testing.T) {
	t.Parallel()
	h := hostOf(t, wan0(), wan1())
	h.planner.SetAnswers(bothAnswered())
	h.planner.SetBindings([]routing.Binding{
		{Index: 3, LinkName: "wan1", Name: "mark", Strict: true, Mark: routing.Mark{Value: 0x10, Mask: 1<<32 - 1}},
		{Index: 3, LinkName: "wan1", Name: "bridge", Strict: true, Input: "br-w1"},
	})
	h.converge(t)
	var second uint32
	for mark, index := range numbered(h, routing.IPv4) {
		if index == 3 {
			second = mark
		}
	}
	h.kernel.Install(link(92, "wg0", bare("10.200.0.2/32")))
	h.kernel.Install(link(93, "tun0", bare("10.8.0.2/32")))
	h.kernel.Install(link(94, "br-w1", bare("172.31.0.1/32")))
	for table, device := range map[routing.TableID]int{77: 92, 78: 93} {
		if err := h.kernel.AddForeignRoute(routing.Route{
			Family: routing.IPv4, Table: table, Destination: prefix(default4), Device: device,
			Type: routing.RouteUnicast, Protocol: kerneltest.ProtocolStatic,
		}); err != nil {
			t.Fatal(err)
		}
	}
	rule := func(p routing.Priority, table routing.TableID) routing.Rule {
		return routing.Rule{Family: routing.IPv4, Priority: p, Action: routing.ActionLookup, Table: table, Protocol: routing.ProtocolBoot}
	}
	tunnel, main, marked, user := rule(9019, 77), rule(9018, routing.TableMain), rule(30000, 78), rule(31000, 78)
	tunnel.Invert, tunnel.Mark = true, routing.Mark{Value: 0xca6c, Mask: 1<<32 - 1}
	main.SuppressPrefixLength = routing.Some(0)
	marked.Mark = routing.Mark{Value: 1, Mask: 1<<32 - 1}
	user.UIDs = routing.UIDRange{Set: true, First: 1001, Last: 1001}
	for _, rules := range [][]routing.Rule{{tunnel, main, user}, {marked}} {
		for _, r := range rules {
			if err := h.kernel.AddForeignRule(r); err != nil {
				t.Fatal(err)
			}
		}
		h.natural = 32765
		h.repeat(t)
		h.settled(t)
		bound, unbound := addr("198.51.100.20"), netip.Addr{}
		for what, tt := range map[string]struct {
			flow   lookup.Flow
			device int
		}{
			"bound":                    {lookup.Flow{From: bound, UID: 1000}, 3},
			"bound to the device":      {lookup.Flow{OIF: "wan1", UID: 1000}, 3},
			"unbound":                  {lookup.Flow{From: unbound, UID: 1000}, 92},
			"unbound, of the user":     {lookup.Flow{From: unbound, UID: 1001}, 93},
			"bound, of the user":       {lookup.Flow{From: bound, UID: 1001}, 93},
			"the tunnel's own packets": {lookup.Flow{From: bound, UID: 1000, Mark: 0xca6c}, 3},
			"forwarded":                {lookup.Flow{From: guest(routing.IPv4), IIF: "docker0"}, 92},
			"bound by its mark":        {lookup.Flow{UID: 1000, Mark: 0x10}, 3},
			"a bound container":        {lookup.Flow{From: guest(routing.IPv4), IIF: "br-w1"}, 3},
			"answered by a link":       {lookup.Flow{From: guest(routing.IPv4), IIF: "docker0", Mark: second}, 3},
		} {
			tt.flow.To = addr("8.8.8.8")
			if v := h.kernel.Lookup(tt.flow); !v.Through(tt.device) {
				t.Errorf("%s: %v %v by %s, want if%d\n%s%s", what, v.Outcome, v.Legs, v.Rule, tt.device, h.kernel.Text(), h.kernel.ForeignText())
			}
		}
	}
	if v := h.kernel.Lookup(lookup.Flow{To: addr("8.8.8.8"), Mark: 1, UID: 1000}); !v.Through(93) {
		t.Errorf("marked: %v %v by %s", v.Outcome, v.Legs, v.Rule)
	}
}

// TestSilentRuleAmongOurs: a rule of somebody else that selects, stands among ours and has no
// answer leaves bound traffic its link, and what main knows.
func TestSilentRuleAmongOurs(t *testing.T) {
	t.Parallel()
	for _, p := range []routing.Priority{8600, 9017, 9020, 9021, 9022, 9050, 9400, 9450, 9500, 9999, 10000, 10001, 10100, 10500, 10501, 20000} {
		for _, f := range routing.Families() {
			h := newHost()
			h.kernel.Install(link(90, "docker0", address("172.17.0.1/16", 0), address("2001:db8:d::1/64", 0)))
			h.install(wan0())
			h.install(wan1())
			h.install(link(4, "wan2", address("2001:db8:b::10/64", 50), route(default6, "2001:db8:b::2", 50)))
			h.install(link(5, "wan3", address("2001:db8:c::10/64", 60), route(default6, "2001:db8:c::2", 60)))
			h.converge(t)
			r := routing.Rule{
				Family: f, Priority: p, Action: routing.ActionLookup, Table: 77, Protocol: routing.ProtocolBoot,
				UIDs: routing.UIDRange{Set: true, First: 1001, Last: 1001},
			}
			plain := h.kernel.Text()
			if err := h.kernel.AddForeignRule(r); err != nil {
				t.Fatal(err)
			}
			h.lookAround()
			h.apply(t, routing.Diff(h.planner, h.kernel, h.planner.Take(), always))
			h.settled(t)
			flows := []lookup.Flow{
				{From: addr("198.51.100.20"), To: addr("8.8.8.8")}, {From: addr("198.51.100.20"), To: addr("172.17.0.2")}, {OIF: "wan1", To: addr("8.8.8.8")},
			}
			if f == routing.IPv6 {
				flows = []lookup.Flow{
					{From: addr("2001:db8:c::10"), To: addr("2600::1")}, {From: addr("2001:db8:c::10"), To: addr("2001:db8:d::2")}, {OIF: "wan3", To: addr("2600::1")},
				}
			}
			for _, flow := range flows {
				want := h.kernel.Lookup(flow)
				flow.UID = 1001
				if got := h.kernel.Lookup(flow); want.Outcome != lookup.Sent || !maps.Equal(ends(want), ends(got)) {
					t.Errorf("%d: %+v: %v %v by %s, want %v\n%s%s", p, flow, got.Outcome, got.Legs, got.Rule, want.Legs, h.kernel.Text(), h.kernel.ForeignText())
				}
			}
			h.kernel.DropRule(r)
			h.lookAround()
			h.apply(t, routing.Diff(h.planner, h.kernel, h.planner.Take(), always))
			h.settled(t)
			if text := h.kernel.Text(); text != plain {
				t.Errorf("%d: left behind:\n%s", p, text)
			}
		}
	}
}

// TestSilentRuleBeforeATunnel: a rule of somebody else that selects, stands behind the ladder
// and has no answer leaves bound traffic its link, also where a rule for everybody follows.
// Unbound traffic follows that, and whoever selects a packet behind it keeps his say.
func TestSilentRuleBeforeATunnel(t *testing.T) {
	t.Parallel()
	rule := func(p routing.Priority, table routing.TableID, change func(*routing.Rule)) routing.Rule {
		r := routing.Rule{Family: routing.IPv4, Priority: p, Action: routing.ActionLookup, Table: table, Protocol: routing.ProtocolBoot}
		if change != nil {
			change(&r)
		}
		return r
	}
	user := func(r *routing.Rule) { r.UIDs = routing.UIDRange{Set: true, First: 1001, Last: 1001} }
	mark := func(value uint32) func(*routing.Rule) {
		return func(r *routing.Rule) { r.Mark = routing.Mark{Value: value, Mask: 1<<32 - 1} }
	}
	but := func(r *routing.Rule) { mark(0xca6c)(r); r.Invert = true }
	pieces := func(r *routing.Rule) { r.SuppressPrefixLength = routing.Some(0) }
	refuses := func(r *routing.Rule) { r.Action, r.Table = routing.ActionProhibit, 0 }
	const first, second, tunnel, other = 2, 3, 92, 93
	bound, device := lookup.Flow{From: addr("198.51.100.20"), UID: 1001}, lookup.Flow{OIF: "wan1", UID: 1001}
	unbound, marked := lookup.Flow{UID: 1001}, lookup.Flow{From: addr("198.51.100.20"), UID: 1001, Mark: 7}
	for name, tt := range map[string]struct {
		silent          []routing.Priority
		rules           []routing.Rule
		unbound, marked int // 0: refused
	}{
		"wg-quick": {
			[]routing.Priority{10501, 12000, 18000, 19000, 20000, 32000, 32763},
			[]routing.Rule{rule(32764, routing.TableMain, pieces), rule(32765, 77, but)},
			tunnel, second,
		},
		"a plain default": {[]routing.Priority{10501, 18000, 20000, 31999}, []routing.Rule{rule(32000, 77, nil)}, tunnel, second},
		"a kill switch":   {[]routing.Priority{12000, 32764}, []routing.Rule{rule(32765, 0, refuses)}, 0, second},
		"main, moved":     {[]routing.Priority{12000, 30999}, []routing.Rule{rule(31000, routing.TableMain, nil)}, first, second},
		"two tunnels, and a mark between them": {
			[]routing.Priority{12000, 18000}, []routing.Rule{rule(18001, 77, but), rule(25000, 78, mark(7)), rule(32000, 77, nil)}, tunnel, tunnel,
		},
		"a mark before the tunnel": {[]routing.Priority{12000, 18000}, []routing.Rule{rule(25000, 78, mark(7)), rule(32000, 77, nil)}, tunnel, other},
		"the tunnel's own mark": {
			[]routing.Priority{12000, 18000}, []routing.Rule{rule(18001, 77, func(r *routing.Rule) { mark(7)(r); r.Invert = true }), rule(25000, 78, mark(7))}, tunnel, other,
		},
		"inside of the ladder": {[]routing.Priority{9600, 10100}, []routing.Rule{rule(10200, 77, nil), rule(25000, 78, mark(7))}, tunnel, tunnel},
	} {
		for _, p := range tt.silent {
			h := newHost()
			h.install(wan0())
			h.install(wan1())
			h.kernel.Install(link(tunnel, "wg0", bare("10.200.0.2/32")))
			h.kernel.Install(link(other, "wg1", bare("10.201.0.2/32")))
			for table, device := range map[routing.TableID]int{77: tunnel, 78: other} {
				if err := h.kernel.AddForeignRoute(routing.Route{
					Family: routing.IPv4, Table: table, Destination: prefix(default4), Device: device, Type: routing.RouteUnicast, Protocol: kerneltest.ProtocolStatic,
				}); err != nil {
					t.Fatal(err)
				}
			}
			h.converge(t)
			plain := h.kernel.Text()
			all := append([]routing.Rule{rule(p, 79, user)}, tt.rules...)
			for _, r := range all {
				if err := h.kernel.AddForeignRule(r); err != nil {
					t.Fatal(err)
				}
				h.lookAround()
				h.apply(t, routing.Diff(h.planner, h.kernel, h.planner.Take(), always))
				h.settled(t)
			}
			for what, way := range map[string]struct {
				flow   lookup.Flow
				device int
			}{
				"bound": {bound, second}, "bound to the device": {device, second}, "unbound": {unbound, tt.unbound}, "bound and marked": {marked, tt.marked},
			} {
				way.flow.To = addr("8.8.8.8")
				v := h.kernel.Lookup(way.flow)
				if way.device == 0 && v.Outcome != lookup.Rejected || way.device != 0 && !v.Through(way.device) {
					t.Errorf("%s, %d: %s: %v %v by %s, want if%d\n%s%s", name, p, what, v.Outcome, v.Legs, v.Rule, way.device, h.kernel.Text(), h.kernel.ForeignText())
				}
			}
			h.kernel.FlushTable(routing.IPv4, 10001)
			if v := h.kernel.Lookup(lookup.Flow{From: bound.From, UID: 1001, To: addr("8.8.8.8")}); v.Outcome != lookup.Rejected && p > routing.PriorityUnreachable {
				t.Errorf("%s, %d: bound, and its table is empty: %v %v by %s", name, p, v.Outcome, v.Legs, v.Rule)
			}
			h.kernel.Install(h.links[3])
			for _, r := range all {
				h.kernel.DropRule(r)
			}
			h.lookAll()
			h.converge(t)
			h.settled(t)
			if text := h.kernel.Text(); text != plain {
				t.Errorf("%s, %d: left behind:\n%s", name, p, text)
			}
		}
	}
}

// TestHalfOfEverything: what a rule for half of everything is not for, bound traffic does not
// find in its table.
func TestHalfOfEverything(t *testing.T) {
	t.Parallel()
	half := func(from, to string) routing.Rule {
		r := routing.Rule{Family: routing.IPv4, Priority: 32000, Action: routing.ActionLookup, Table: 77, Protocol: routing.ProtocolBoot}
		if from != "" {
			r.From = prefix(from)
		}
		if to != "" {
			r.To = prefix(to)
		}
		return r
	}
	suppressed := half("", "")
	suppressed.SuppressPrefixLength = routing.Some(15)
	upper := half("", "128.0.0.0/1")
	upper.Priority = 32001
	all := half("", "")
	all.Priority = 32002
	const second, tunnel = 3, 92
	for name, tt := range map[string]struct {
		rules        []routing.Rule
		lower, other int
	}{
		"all":                 {[]routing.Rule{half("", "")}, tunnel, tunnel},
		"to the lower half":   {[]routing.Rule{half("", "0.0.0.0/1")}, tunnel, second},
		"to both halves":      {[]routing.Rule{half("", "0.0.0.0/1"), upper}, tunnel, tunnel},
		"to a half, and all":  {[]routing.Rule{half("", "0.0.0.0/1"), all}, tunnel, tunnel},
		"from the lower half": {[]routing.Rule{half("0.0.0.0/1", "")}, second, second},
		"from the upper half": {[]routing.Rule{half("128.0.0.0/1", "")}, tunnel, tunnel},
		"nothing wide":        {[]routing.Rule{suppressed}, tunnel, second},
	} {
		h := hostOf(t, wan0(), wan1())
		h.kernel.Install(link(tunnel, "tun0", bare("10.8.0.2/32")))
		for _, to := range []string{"10.20.0.0/16", "198.18.0.0/15"} {
			if err := h.kernel.AddForeignRoute(routing.Route{
				Family: routing.IPv4, Table: 77, Destination: prefix(to), Device: tunnel, Type: routing.RouteUnicast, Protocol: kerneltest.ProtocolStatic,
			}); err != nil {
				t.Fatal(err)
			}
		}
		for _, r := range tt.rules {
			if err := h.kernel.AddForeignRule(r); err != nil {
				t.Fatal(err)
			}
			h.lookAround()
			h.apply(t, routing.Diff(h.planner, h.kernel, h.planner.Take(), always))
			h.settled(t)
		}
		for to, device := range map[string]int{"10.20.0.1": tt.lower, "198.18.0.1": tt.other} {
			if v := h.kernel.Lookup(lookup.Flow{From: addr("198.51.100.20"), To: addr(to)}); !v.Through(device) {
				t.Errorf("%s: to %s: %v %v by %s, want if%d\n%s", name, to, v.Outcome, v.Legs, v.Rule, device, h.kernel.Text())
			}
		}
		for r := range h.planner.Rules() {
			if names := r.Rule.To; names.IsValid() && slices.ContainsFunc(tt.rules, func(his routing.Rule) bool { return his.To == names }) {
				t.Errorf("%s: %s has his words", name, r.Rule)
			}
		}
		for _, r := range tt.rules {
			h.kernel.DropRule(r)
			h.lookAround()
			h.apply(t, routing.Diff(h.planner, h.kernel, h.planner.Take(), always))
			h.settled(t)
		}
	}
}

// TestGotoThatLeadsNowhere: a goto of somebody else to a priority at which nothing stands does
// nothing, and finds none of ours there.
func TestGotoThatLeadsNowhere(t *testing.T) {
	t.Parallel()
	h := hostOf(t, wan0(), wan1())
	marked := func(p routing.Priority, a routing.Action, to routing.Priority) routing.Rule {
		return routing.Rule{
			Family: routing.IPv4, Priority: p, Action: a, Goto: to, Mark: routing.Mark{Value: 1, Mask: 1<<32 - 1}, Protocol: routing.ProtocolBoot,
		}
	}
	user := marked(32000, routing.ActionLookup, 0)
	user.Mark, user.Table, user.UIDs = routing.Mark{}, 77, routing.UIDRange{Set: true, First: 1001, Last: 1001}
	first, second := marked(20, routing.ActionGoto, 32765), marked(21, routing.ActionGoto, 32764)
	between := marked(32765, routing.ActionLookup, 0)
	between.Table = 78
	step := func(what string) {
		h.lookAround()
		h.apply(t, routing.Diff(h.planner, h.kernel, h.planner.Take(), always))
		h.settled(t)
		for _, f := range []lookup.Flow{
			{To: addr("8.8.8.8"), Mark: 1}, {From: addr("198.51.100.20"), To: addr("8.8.8.8"), Mark: 1}, {To: addr("8.8.8.8"), UID: 1001}, {To: addr("8.8.8.8")},
		} {
			if with, without := h.kernel.Lookup(f), h.kernel.LookupWithoutUs(f); (without.Rule.Selects() || !f.From.IsValid()) && !maps.Equal(ends(without), ends(with)) {
				t.Errorf("%s: %+v: %v %v by %s, without us %v\n%s%s", what, f, with.Outcome, with.Legs, with.Rule, without.Outcome, h.kernel.Text(), h.kernel.ForeignText())
			}
		}
		bound := lookup.Flow{From: addr("198.51.100.20"), To: addr("8.8.8.8"), UID: 1001}
		if v := h.kernel.Lookup(bound); !v.Through(3) {
			t.Errorf("%s: bound: %v %v by %s", what, v.Outcome, v.Legs, v.Rule)
		}
	}
	add := func(r routing.Rule) {
		if err := h.kernel.AddForeignRule(r); err != nil {
			t.Fatal(err)
		}
		step("with " + r.String())
	}
	for _, r := range []routing.Rule{user, marked(31000, routing.ActionProhibit, 0), first, second, between} {
		add(r)
	}
	for _, r := range []routing.Rule{between, first, second} {
		h.kernel.DropRule(r)
		step("without " + r.String())
	}
}

// TestRuleAtOurPriority: a rule of somebody else that selects nothing stays where the kernel
// put it at a priority of ours. One that a goto must find first, or that selects, stands
// before us.
func TestRuleAtOurPriority(t *testing.T) {
	t.Parallel()
	at := func(p routing.Priority) routing.Rule {
		return routing.Rule{Family: routing.IPv4, Priority: p, Action: routing.ActionLookup, Table: 77, Protocol: routing.ProtocolBoot}
	}
	marked := at(31000)
	marked.Mark = routing.Mark{Value: 1, Mask: 1<<32 - 1}
	selecting := at(routing.PrioritySource)
	selecting.Mark = marked.Mark
	leading := at(5000)
	leading.Action, leading.Table, leading.Goto, leading.Mark = routing.ActionGoto, 0, routing.PrioritySource, marked.Mark
	const second, tunnel = 3, 92
	for name, tt := range map[string]struct {
		before, after []routing.Rule
		device        int
	}{
		"at the rung of sources":              {after: []routing.Rule{at(routing.PrioritySource)}, device: second},
		"behind it":                           {after: []routing.Rule{at(routing.PriorityUnreachable)}, device: second},
		"it stood before us":                  {before: []routing.Rule{at(routing.PrioritySource)}, device: tunnel},
		"a rule is lifted to it":              {after: []routing.Rule{at(routing.PrioritySource), marked}, device: tunnel},
		"a rule of somebody else leads to it": {after: []routing.Rule{leading, at(routing.PrioritySource)}, device: tunnel},
		"one that selects":                    {after: []routing.Rule{selecting}, device: second},
	} {
		h := newHost()
		h.kernel.Install(link(tunnel, "wg0", bare("10.200.0.2/32")))
		if err := h.kernel.AddForeignRoute(routing.Route{
			Family: routing.IPv4, Table: 77, Destination: prefix(default4), Device: tunnel, Type: routing.RouteUnicast, Protocol: kerneltest.ProtocolStatic,
		}); err != nil {
			t.Fatal(err)
		}
		add := func(rules []routing.Rule) {
			for _, r := range rules {
				if err := h.kernel.AddForeignRule(r); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
			h.lookAround()
			h.repeat(t)
			h.settled(t)
		}
		add(tt.before)
		h.install(wan0())
		h.install(wan1())
		add(nil)
		add(tt.after)
		for range 2 { // A second pass, as a restart makes it, changes nothing.
			if v := h.kernel.Lookup(lookup.Flow{From: addr("198.51.100.20"), To: addr("8.8.8.8")}); !v.Through(tt.device) {
				t.Errorf("%s: bound: %v %v by %s\n%s%s", name, v.Outcome, v.Legs, v.Rule, h.kernel.Text(), h.kernel.ForeignText())
			}
			marked := lookup.Flow{From: addr("198.51.100.20"), To: addr("8.8.8.8"), Mark: 1}
			if with, without := h.kernel.Lookup(marked), h.kernel.LookupWithoutUs(marked); without.Rule.Selects() && !maps.Equal(ends(without), ends(with)) {
				t.Errorf("%s: marked: %v %v by %s\n%s%s", name, with.Outcome, with.Legs, with.Rule, h.kernel.Text(), h.kernel.ForeignText())
			}
			h.apply(t, routing.Diff(h.planner, h.kernel, routing.Everything(h.planner, h.kernel), always))
		}
	}
}

// repeat makes passes until there is nothing to do, as the loop does. The kernel
// deletes the first rule that has what a request names: among gotos of others'
// selectors that may be another one than was meant, which the next pass finds. (The
// writer of routing/kernel sees to it that it is not.)
func (h *host) repeat(t tb) {
	t.Helper()
	for range 3 {
		h.converge(t)
	}
}

func (h *host) keepsSay(t *rapid.T, f lookup.Flow) {
	t.Helper()
	h.saysAs(t, f, h.kernel.LookupWithoutUs(f))
}

// saysAs is keepsSay for what the kernel would answer without us.
func (h *host) saysAs(t *rapid.T, f lookup.Flow, without lookup.Verdict) {
	t.Helper()
	with := h.kernel.Lookup(f)
	same := maps.Equal(ends(without), ends(with))
	fail := func(what string) {
		t.Helper()
		t.Fatalf("%s: %+v\nwithout us %v %v by %s\nwith us %v %v by %s\n%s%s",
			what, f, without.Outcome, without.Legs, without.Rule, with.Outcome, with.Legs, with.Rule, h.kernel.Text(), h.kernel.ForeignText())
	}
	ours := policy.OwnsRule(with.Rule)
	selected := without.Rule.Selects() && without.Outcome != lookup.NoRoute
	owners := owned(h)[f.From]
	switch {
	case same:
	case selected:
		fail("somebody selects it")
	case len(owners) == 0 && (f.OIF == "" || h.links[h.indexOf(f.OIF)].Index == 0):
		// As in unchanged: main has nothing, or has not the network of a link, which
		// then is there for all (19000, 20000).
		network := with.Rule.Priority == routing.PriorityNetworkMain || with.Rule.Priority == routing.PriorityNetwork
		if without.Outcome != lookup.NoRoute && !network {
			fail("it is not ours")
		}
	case !ours && with.Rule.Priority != 0 && (with.Rule.Selects() || with.Rule.Priority <= routing.PriorityUnreachable):
		// Somebody in front, or whom it was lifted to.
	case ours && with.Outcome == lookup.Sent && (with.Rule.Table == routing.TableMain || with.Rule.SuppressGroup.Set):
		// What is known behind anything but an uplink.
	case with.Outcome == lookup.Sent && len(owners) > 0 && !with.Through(append(owners, h.indexOf(f.OIF))...) && slices.Contains(uplinks(h, routing.FamilyOf(f.To)), with.Legs[0].Device):
		fail("it strays")
	}
	h.findsLink(t, f)
}

// findsLink fails where a packet with a source of ours does not find its link because rules of
// somebody else select it, inside of the ladder, and have no answer: it must go as if these
// were not there.
func (h *host) findsLink(t *rapid.T, f lookup.Flow) {
	t.Helper()
	if owners := owned(h)[f.From]; len(owners) == 0 {
		return
	}
	for _, r := range h.kernel.Foreign(routing.FamilyOf(f.To)) {
		if other := r.Mark.Value ^ f.Mark; r.Mark.Mask == 1<<32-1 && (other == 1<<31 || other == 1) {
			return // The other words of a mark may take it: the documented exception.
		}
	}
	inside := func(r routing.Rule) bool {
		return r.Priority > routing.PriorityOverlap && r.Priority <= routing.PriorityAgain
	}
	isSilent := func(s lookup.Step) bool {
		return s.Result == lookup.Empty || s.Result == lookup.TooShort || s.Result == lookup.InGroup || s.Result == lookup.Thrown
	}
	with, steps := h.kernel.Trace(f, func(routing.Rule) bool { return true })
	var silent []routing.Rule
	for _, s := range steps {
		switch r := s.Rule; {
		case policy.OwnsRule(r) || !inside(r) || s.Result == lookup.Unmatched:
		case isSilent(s) && r.Selects():
			silent = append(silent, r)
		case len(silent) > 0 && !r.Selects():
			// It must not have been reached, unless it would be without the silent ones, or no
			// rule fits in between.
			if slices.ContainsFunc(silent, func(o routing.Rule) bool { return o.Priority == r.Priority }) {
				return
			}
			// Who comes to one that the kernel numbered, behind another one, does not step over it.
			if slices.ContainsFunc(h.planner.Foreign(r.Family), func(o routing.ForeignRule) bool { return o.Rule == r && o.SteppedOver() }) {
				return
			}
		case !isSilent(s):
			return // It has an answer.
		}
	}
	if len(silent) == 0 {
		return
	}
	without := h.kernel.LookupIf(f, func(r routing.Rule) bool {
		planned, _ := h.planner.Rule(r)
		return !slices.Contains(silent, r) && (r.Action != routing.ActionGoto || planned.Reason.Decision != routing.LiftForeign)
	})
	if !maps.Equal(ends(without), ends(with)) && policy.OwnsRule(without.Rule) && without.Rule.Priority <= routing.PriorityUnreachable {
		t.Fatalf("%+v\nwithout %v: %v %v by %s\nwith: %v %v by %s\n%s%s",
			f, silent, without.Outcome, without.Legs, without.Rule, with.Outcome, with.Legs, with.Rule, h.kernel.Text(), h.kernel.ForeignText())
	}
}

func (h *host) indexOf(name string) int {
	for index, l := range h.links {
		if l.Name == name {
			return index
		}
	}
	return 0
}
