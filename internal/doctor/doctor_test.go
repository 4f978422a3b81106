package doctor_test

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"multihomed/internal/doctor"
	"multihomed/internal/status"
	"multihomed/routing"
	"multihomed/routing/lookup"
)

var (
	a0 = netip.MustParseAddr("198.51.100.7")
	a1 = netip.MustParseAddr("203.0.113.7")
	b1 = netip.MustParseAddr("2001:db8:1::7")
)

// link is an uplink with a table and a router.
func link(name string, index int, prefix, via string) status.Link {
	p, gateway := netip.MustParsePrefix(prefix), netip.MustParseAddr(via)
	return status.Link{Interface: name, Index: index, Role: "uplink", Up: true, Carrier: true, Networks: []status.Network{{
		Family: routing.FamilyOf(p.Addr()).String(), Prefix: p.Masked(), Table: 10000 + uint32(index),
		Addresses: []status.Address{{Address: p.Addr(), Length: p.Bits()}}, Gateways: []status.Gateway{{Via: &gateway}},
	}}}
}

// sound is a host with two uplinks on which nothing is wrong.
func sound() (status.Status, doctor.Host) {
	s := status.Status{
		Daemon: status.Daemon{Running: true}, Tables: status.Range{First: 10000, Last: 10999},
		Links:   []status.Link{link("wan0", 2, "198.51.100.7/24", "198.51.100.1"), link("wan1", 3, "203.0.113.7/24", "203.0.113.1")},
		Answers: &status.Answers{Families: []status.AnsweredFamily{{Family: "ipv4", Answers: true}}},
	}
	s.Links[1].Networks = append(s.Links[1].Networks, link("", 3, "2001:db8:1::7/64", "fe80::1").Networks...)
	s.Links[0].Networks = append(s.Links[0].Networks, link("", 2, "2001:db8::7/64", "fe80::1").Networks...)
	h := doctor.Host{Rules: map[routing.Family][]routing.Rule{}, Tables: map[routing.Family]map[routing.TableID][]routing.Route{}, Parameters: map[string]int{"net/ipv4/nexthop_compat_mode": 1}}
	h.Interfaces = []routing.Interface{
		{Index: 2, Name: "wan0", Up: true, Hardware: "\x02\x00\x00\x00\x00\x02", Addresses: []routing.Address{{Prefix: netip.MustParsePrefix("2001:db8::7/64")}}},
		{Index: 3, Name: "wan1", Up: true, Hardware: "\x02\x00\x00\x00\x00\x03", Addresses: []routing.Address{{Prefix: netip.MustParsePrefix("2001:db8:1::7/64")}}},
	}
	for _, f := range routing.Families() {
		for _, t := range []struct {
			p routing.Priority
			t routing.TableID
		}{{0, routing.TableLocal}, {32766, routing.TableMain}} {
			h.Rules[f] = append(h.Rules[f], routing.Rule{Family: f, Priority: t.p, Action: routing.ActionLookup, Table: t.t})
		}
	}
	h.Rules[routing.IPv6] = slices.Insert(h.Rules[routing.IPv6], 1, bySource("2001:db8::/64", 10002), bySource("2001:db8:1::/64", 10003))
	return s, h
}

func bySource(prefix string, table routing.TableID) routing.Rule {
	return routing.Rule{Family: routing.IPv6, Priority: 10000, From: netip.MustParsePrefix(prefix), Action: routing.ActionLookup, Table: table, Protocol: routing.Multihomed}
}

func nat(d doctor.Deed, hook string, to netip.Addr, out ...doctor.Match) doctor.FilterRule {
	return doctor.FilterRule{Table: "ip nat", Base: "post", Chain: "post", Handle: 4, IPv4: true, Hook: hook, Deed: d, To: to, Out: out}
}

// TestPatterns: each is found with its severity and its command, and a sound host has none.
func TestPatterns(t *testing.T) {
	t.Parallel()
	s, h := sound()
	if r := doctor.Diagnose(s, h); !r.OK || !r.Complete || len(r.Findings) > 0 {
		t.Fatalf("a sound host: %+v", r)
	}
	type change func(*status.Status, *doctor.Host)
	parameter := func(name string, value int) change {
		return func(_ *status.Status, h *doctor.Host) { h.Parameters[name] = value }
	}
	filter := func(rules ...doctor.FilterRule) change {
		return func(_ *status.Status, h *doctor.Host) { h.Filter = append(h.Filter, rules...) }
	}
	all := func(changes ...change) change {
		return func(s *status.Status, h *doctor.Host) {
			for _, c := range changes {
				c(s, h)
			}
		}
	}
	unanswered := func(reason string) change {
		return func(s *status.Status, _ *doctor.Host) {
			s.Answers.Families[0] = status.AnsweredFamily{Family: "ipv4", Reason: reason, Why: "the configuration says so"}
		}
	}
	forwards := parameter("net/ipv4/ip_forward", 1)
	inet := func(r doctor.FilterRule) doctor.FilterRule { r.Table = "inet nat"; return r }
	both := func(r doctor.FilterRule) doctor.FilterRule { r.IPv6 = true; return inet(r) }
	// guests are led to wan0 by a rule that calls their bridge by another name; main leads to wan1.
	guests := func(_ *status.Status, h *doctor.Host) {
		net := netip.MustParsePrefix("192.168.9.1/24")
		h.Interfaces = append(h.Interfaces, routing.Interface{Index: 4, Name: "br0", Up: true, Addresses: []routing.Address{{Prefix: net}}})
		h.LookupInterfaces = []lookup.Interface{{Index: 4, Name: "br0", AltNames: []string{"guests0"}}}
		h.Rules[routing.IPv4] = slices.Insert(h.Rules[routing.IPv4], 1, routing.Rule{Family: routing.IPv4, Priority: 300, IIF: "guests0", Action: routing.ActionLookup, Table: 77})
		way := func(t routing.TableID, device int) map[routing.TableID][]routing.Route {
			return map[routing.TableID][]routing.Route{t: {{Family: routing.IPv4, Table: t, Type: routing.RouteUnicast, Destination: routing.IPv4.Any(), Device: device}}}
		}
		h.Tables[routing.IPv4] = way(77, 2)
		maps.Copy(h.Tables[routing.IPv4], way(routing.TableMain, 3))
		rule := nat(doctor.SNAT, "postrouting", a0)
		rule.Source = net.Masked()
		h.Filter = append(h.Filter, rule)
	}
	for _, c := range []struct {
		name     string
		code     routing.Code
		severity routing.Severity
		change   change
		// command is a part of it, empty for none; link is that of the finding.
		command, link string
		// none says that there is no finding.
		none bool
	}{
		{name: "lost messages", code: doctor.SocketOverrun, severity: routing.Notice, change: func(_ *status.Status, h *doctor.Host) { h.Dropped = 3 }, command: "systemctl restart multihomed"},
		{name: "no rules of IPv4", code: doctor.KernelOption, severity: routing.Error, change: func(_ *status.Status, h *doctor.Host) { h.Missing = []string{"CONFIG_IP_MULTIPLE_TABLES"} }},
		{name: "no source-specific routes", code: doctor.KernelOption, severity: routing.Notice, change: func(_ *status.Status, h *doctor.Host) { h.Missing = []string{"CONFIG_IPV6_SUBTREES"} }},
		{name: "neighbors", code: doctor.NeighborTable, severity: routing.Warning, change: all(parameter("net/ipv4/neigh/default/gc_thresh3", 1024), func(_ *status.Status, h *doctor.Host) { h.Neighbors = map[routing.Family]int{routing.IPv4: 1000} }), command: "sysctl -w net.ipv4.neigh.default.gc_thresh3=4096"},
		{name: "few neighbors", code: doctor.NeighborTable, none: true, change: all(parameter("net/ipv4/neigh/default/gc_thresh3", 1024), func(_ *status.Status, h *doctor.Host) { h.Neighbors = map[routing.Family]int{routing.IPv4: 900} })},
		{name: "IPv6 destinations", code: doctor.RouteLimit6, severity: routing.Warning, change: all(parameter("net/ipv6/route/max_size", 4096), func(_ *status.Status, h *doctor.Host) { h.Entries6 = 4000 }), command: "sysctl -w net.ipv6.route.max_size=1048576"},
		{name: "tables", code: doctor.TablesNearlyFull, severity: routing.Warning, change: func(s *status.Status, _ *doctor.Host) { s.Tables = status.Range{First: 10000, Last: 10002} }, link: ""},
		{name: "cloud agent", code: doctor.CloudAgent, severity: routing.Notice, change: func(_ *status.Status, h *doctor.Host) {
			h.Agents = []doctor.Agent{{Name: "nm-cloud-setup", File: "nm-cloud-setup.timer is enabled", Stop: "systemctl disable --now nm-cloud-setup.timer"}}
		}, command: "systemctl disable"},
		{name: "published port", code: doctor.PublishedPort, severity: routing.Warning, change: all(unanswered("configured"), filter(nat(doctor.DNAT, "prerouting", netip.MustParseAddr("172.17.0.2"))))},
		{name: "published port, answered", code: doctor.PublishedPort, none: true, change: filter(nat(doctor.DNAT, "prerouting", netip.MustParseAddr("172.17.0.2")))},
		{name: "Kubernetes", code: doctor.PublishedPort, none: true, change: all(unanswered("kubernetes"), filter(nat(doctor.DNAT, "prerouting", netip.MustParseAddr("172.17.0.2"))))},
		{name: "published port without multihomed", code: doctor.PublishedPort, severity: routing.Warning, change: all(func(s *status.Status, _ *doctor.Host) { s.Answers, s.Daemon.Running = nil, false }, filter(nat(doctor.DNAT, "prerouting", netip.MustParseAddr("172.17.0.2"))))},
		{name: "marks of connections", code: doctor.PublishedPort, none: true, change: all(unanswered("configured"), filter(nat(doctor.DNAT, "prerouting", netip.MustParseAddr("172.17.0.2")), nat(doctor.RestoreMark, "prerouting", netip.Addr{})))},
		{name: "SNAT everywhere", code: doctor.SNATAddress, severity: routing.Error, link: "wan1", change: filter(nat(doctor.SNAT, "postrouting", a0, doctor.Match{Name: "lo", Not: true})), command: `nft insert rule ip nat post oifname '"wan1"' masquerade`},
		{name: "SNAT by prefix of the name", code: doctor.SNATAddress, severity: routing.Error, link: "wan1", change: filter(nat(doctor.SNAT, "postrouting", a0, doctor.Match{Name: "wan*"})), command: "nft insert rule"},
		{name: "SNAT of what cannot be known", code: doctor.SNATAddress, none: true, change: filter(doctor.FilterRule{Table: "ip nat", Base: "post", Chain: "post", IPv4: true, Hook: "postrouting", Deed: doctor.SNAT, To: a0, Narrow: true})},
		{name: "SNAT of one protocol", code: doctor.SNATAddress, severity: routing.Error, link: "wan1", change: filter(doctor.FilterRule{Table: "ip nat", Base: "post", Chain: "post", IPv4: true, Hook: "postrouting", Deed: doctor.SNAT, To: a0, Except: true})},
		{name: "SNAT to what no link has", code: doctor.SNATAddress, none: true, change: filter(nat(doctor.SNAT, "postrouting", netip.MustParseAddr("192.0.2.200")))},
		{name: "SNAT everywhere, in a table of both families", code: doctor.SNATAddress, severity: routing.Error, link: "wan1", change: filter(inet(nat(doctor.SNAT, "postrouting", a0))), command: `nft insert rule inet nat post meta nfproto ipv4 oifname '"wan1"' masquerade`},
		{name: "masquerade of both families on one", code: doctor.MasqueradeMissing, severity: routing.Warning, link: "wan1", change: all(forwards, filter(both(nat(doctor.Masquerade, "postrouting", netip.Addr{}, doctor.Match{Name: "wan0"})))), command: `nft insert rule inet nat post oifname '"wan1"' masquerade`},
		{name: "SNAT of guests whom a rule leads by another name", code: doctor.SNATAddress, none: true, change: guests},
		{name: "SNAT of guests whom the rule does not know", code: doctor.SNATAddress, severity: routing.Error, link: "wan1", change: all(guests, func(_ *status.Status, h *doctor.Host) {
			h.LookupInterfaces[0].Detached.Set(routing.IPv4, h.LookupInterfaces[0].AltNames)
		}), command: "nft insert rule"},
		{name: "SNAT after masquerade", code: doctor.SNATAddress, none: true, change: filter(nat(doctor.Masquerade, "postrouting", netip.Addr{}, doctor.Match{Name: "wan1"}), nat(doctor.SNAT, "postrouting", a0))},
		{name: "SNAT on each", code: doctor.SNATAddress, none: true, change: filter(nat(doctor.SNAT, "postrouting", a0, doctor.Match{Name: "wan0"}), nat(doctor.SNAT, "postrouting", a1, doctor.Match{Name: "wan1"}))},
		{name: "masquerade on one", code: doctor.MasqueradeMissing, severity: routing.Warning, link: "wan1", change: all(forwards, filter(nat(doctor.Masquerade, "postrouting", netip.Addr{}, doctor.Match{Name: "wan0"}))), command: "masquerade"},
		{name: "masquerade on one, no router", code: doctor.MasqueradeMissing, none: true, change: filter(nat(doctor.Masquerade, "postrouting", netip.Addr{}, doctor.Match{Name: "wan0"}))},
		{name: "a firewall with IPv6_rpfilter", code: doctor.RPFilter6, none: true, change: filter(doctor.FilterRule{Table: "inet firewalld", IPv6: true, Deed: doctor.DropStray, Hook: "prerouting"})},
		{name: "a firewall with IPv6_rpfilter and no rules", code: doctor.RPFilter6, severity: routing.Notice, change: all(filter(doctor.FilterRule{Table: "inet firewalld", IPv6: true, Deed: doctor.DropStray, Hook: "prerouting"}), func(_ *status.Status, h *doctor.Host) {
			h.Rules[routing.IPv6] = slices.DeleteFunc(slices.Clone(h.Rules[routing.IPv6]), func(r routing.Rule) bool { return r.From.IsValid() && r.From.Contains(b1) })
		})},
		{name: "one MAC", code: doctor.SameMAC, severity: routing.Notice, link: "wan1", change: func(_ *status.Status, h *doctor.Host) { h.Interfaces[1].Hardware = h.Interfaces[0].Hardware }, command: "ip link set dev wan1 address 02:00:00:00:00:03"},
		{name: "one MAC of VLANs", code: doctor.SameMAC, none: true, change: func(_ *status.Status, h *doctor.Host) {
			h.Interfaces[1].Hardware, h.Interfaces[1].Kind = h.Interfaces[0].Hardware, "vlan"
		}},
		{name: "one MAC in one network", code: doctor.SameMAC, severity: routing.Warning, link: "wan1", change: func(s *status.Status, h *doctor.Host) {
			h.Interfaces[1].Hardware = h.Interfaces[0].Hardware
			s.Links[1].Networks[0].Prefix = s.Links[0].Networks[0].Prefix
		}, command: "ip link set"},
		{name: "endpoints", code: doctor.MPTCPLimits, none: true, change: func(_ *status.Status, h *doctor.Host) { h.Endpoints, h.Subflows = []netip.Addr{a0, b1}, 0 }},
		{name: "endpoints, too many", code: doctor.MPTCPLimits, severity: routing.Notice, change: func(_ *status.Status, h *doctor.Host) { h.Endpoints, h.Subflows = []netip.Addr{a0, a1, a0, a1}, 2 }, command: "ip mptcp limits set subflows 3"},
		{name: "dead provider", code: doctor.UpstreamDead, severity: routing.Error, link: "wan1", change: func(_ *status.Status, h *doctor.Host) {
			h.Probes = []doctor.Probe{{Link: "wan0", Family: routing.IPv4, OutsideAsked: true, OutsideAnswers: true}, {Link: "wan1", Family: routing.IPv4, OutsideAsked: true}}
		}},
		{name: "a host that answers others alone", code: doctor.UpstreamDead, severity: routing.Warning, link: "wan1", change: func(s *status.Status, h *doctor.Host) {
			s.Failover = &status.Failover{Enabled: true, Uplinks: []status.Health{{Interface: "wan1", Family: "ipv4", State: status.HealthUp, Targets: []status.HealthTarget{{Target: "dns:203.0.113.53:53", Answered: true}}}}}
			h.Probes = []doctor.Probe{{Link: "wan0", Family: routing.IPv4, OutsideAsked: true, OutsideAnswers: true}, {Link: "wan1", Family: routing.IPv4, OutsideAsked: true}}
		}},
		{name: "dead behind the router", code: doctor.UpstreamDead, severity: routing.Error, link: "wan1", change: func(s *status.Status, h *doctor.Host) {
			s.Failover = &status.Failover{Enabled: true, Uplinks: []status.Health{{Interface: "wan1", Family: "ipv4", State: status.HealthUp, RouterOnly: true, Targets: []status.HealthTarget{{Target: "dns:192.0.2.1:53", OnLink: true, Answered: true}}}}}
			h.Probes = []doctor.Probe{{Link: "wan0", Family: routing.IPv4, OutsideAsked: true, OutsideAnswers: true}, {Link: "wan1", Family: routing.IPv4, OutsideAsked: true}}
		}},
		{name: "all dead", code: doctor.UpstreamDead, none: true, change: func(_ *status.Status, h *doctor.Host) {
			h.Probes = []doctor.Probe{{Link: "wan0", Family: routing.IPv4, OutsideAsked: true}, {Link: "wan1", Family: routing.IPv4, OutsideAsked: true}}
		}},
		{name: "a dead provider that status knows", code: doctor.UpstreamDead, none: true, change: func(s *status.Status, h *doctor.Host) {
			s.Problems = []status.Problem{{Problem: routing.Problem{Code: "uplink-dead", Severity: routing.Warning, Link: "wan1"}}}
			h.Probes = []doctor.Probe{{Link: "wan0", Family: routing.IPv4, OutsideAsked: true, OutsideAnswers: true}, {Link: "wan1", Family: routing.IPv4, OutsideAsked: true}}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s, h := sound()
			c.change(&s, &h)
			r := doctor.Diagnose(s, h)
			found := r.Of(c.code)
			if c.none {
				if len(found) > 0 {
					t.Errorf("found %+v", found)
				}
				return
			}
			if len(found) != 1 {
				t.Fatalf("found %+v", r.Findings)
			}
			f := found[0]
			if f.Severity != c.severity || f.Link != c.link || len(f.Evidence) == 0 || f.Fix == "" || r.OK != (c.severity == routing.Notice) {
				t.Errorf("ok %v, found %+v", r.OK, f)
			}
			if (f.Commands != "") != (c.command != "") || !strings.Contains(string(f.Commands), c.command) {
				t.Errorf("commands are %q, want %q", f.Commands, c.command)
			}
		})
	}
}

// TestNamesOfAnyBytes: names are escaped for people and programs, and quoted for sh.
func TestNamesOfAnyBytes(t *testing.T) {
	t.Parallel()
	s, h := sound()
	s.Links[1].Interface, h.Interfaces[1].Name = `w\xff\\n`, "w\xff\\n"
	h.Parameters["net/ipv6/conf/w\xff\\n/forwarding"], h.Parameters["net/ipv6/conf/w\xff\\n/accept_ra"] = 1, 1
	h.Interfaces[1].Addresses = []routing.Address{{Prefix: netip.MustParsePrefix("2001:db8:1::7/64"), Dynamic: true}}
	h.Tables[routing.IPv6] = map[routing.TableID][]routing.Route{routing.TableMain: {{
		Family: routing.IPv6, Destination: netip.MustParsePrefix("2001:db8:1::/64"), Device: 3, Protocol: routing.ProtocolKernel, Type: routing.RouteUnicast,
	}}}
	found := doctor.Diagnose(s, h).Of(doctor.AcceptRA)
	if len(found) != 1 || found[0].Link != `w\xff\\n` || found[0].Commands != `sysctl -w "net.ipv6.conf.w$(printf '\377')\\n.accept_ra=2"` {
		t.Errorf("found %+v", found)
	}
}

// TestJSON: lists are never null, and commands are a list.
func TestJSON(t *testing.T) {
	t.Parallel()
	s, h := sound()
	h.Unlooked = []doctor.Unlooked{{Why: "it cannot be read"}}
	s.Problems = []status.Problem{{Problem: routing.Problem{Code: "daemon", Text: "it", Commands: "one\ntwo"}}}
	r := doctor.Diagnose(s, h)
	if r.Complete {
		t.Error("it is said to be complete")
	}
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "null") || !strings.Contains(string(text), `"commands":["one","two"]`) {
		t.Errorf("%s", text)
	}
	var back doctor.Report
	if err := json.Unmarshal(text, &back); err != nil || back.Findings[0].Commands != "one\ntwo" {
		t.Errorf("%v, %+v", err, back)
	}
}

// TestEvidenceOfProblems: a problem of the status keeps its words, and says what was seen.
func TestEvidenceOfProblems(t *testing.T) {
	t.Parallel()
	s, h := sound()
	h.Parameters["net/ipv4/conf/wan1/rp_filter"] = 1
	h.Agents = []doctor.Agent{{Name: "ec2-net-utils", File: "/a"}}
	s.Problems = []status.Problem{
		{Problem: routing.Problem{Code: "rp-filter", Severity: routing.Warning, Link: "wan1", Text: "one"}},
		{Problem: routing.Problem{Code: "rule-of-source", Severity: routing.Error, Object: "9999: from 203.0.113.7 lookup 7", Text: "two"}},
	}
	r := doctor.Diagnose(s, h)
	if r.OK || len(r.Findings) != 3 || r.Findings[0].Text != "two" || !slices.Equal(r.Findings[0].Evidence, []string{"9999: from 203.0.113.7 lookup 7", "ec2-net-utils: /a"}) {
		t.Fatalf("found %+v", r.Findings)
	}
	if f := r.Findings[1]; f.Text != "one" || !slices.Equal(f.Evidence, []string{"net.ipv4.conf.wan1.rp_filter = 1"}) {
		t.Errorf("found %+v", f)
	}
}
