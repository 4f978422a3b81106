package watch_test

import (
	stdcmp "cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"multihomed/internal/status"
	"multihomed/internal/watch"
	"multihomed/routing"
)

var (
	byKernel = watch.Author{Party: watch.Kernel}
	byIP     = watch.Author{Party: watch.Other, Process: "ip", PID: 7}
	byUs     = watch.Author{Party: watch.Multihomed, Process: "multihomed", PID: 812}
	byNM     = watch.Author{Party: watch.NetworkManager, Process: "NetworkManager", PID: 5}
)

// started is a recorder that knows the host.
func started(limits watch.Limits) *watch.Recorder {
	r := watch.NewRecorder(limits)
	r.Interfaces([]routing.Interface{{Index: 2, Name: "wan0", Up: true, Carrier: true, Running: true, Addresses: []routing.Address{{Prefix: netip.MustParsePrefix("198.51.100.7/24")}, {Prefix: netip.MustParsePrefix("198.51.100.99/24")}}}, {Index: 3, Name: "wan1", Up: true, Carrier: true}, {Index: 4, Name: "a\x1b\xff"}})
	r.Document(noon, document())
	return r
}

func sentences(events []watch.Event) (out []string) {
	for _, e := range events {
		out = append(out, string(e.Kind)+" "+e.Sentence())
	}
	return out
}

func rule(p routing.Priority, from string, table routing.TableID, protocol routing.Protocol) routing.Rule {
	r := routing.Rule{Family: routing.IPv4, Priority: p, Action: routing.ActionLookup, Table: table, Protocol: protocol}
	if from != "" {
		r.From = netip.MustParsePrefix(from)
	}
	return r
}

func aboutRule(gone bool, r routing.Rule, who watch.Author) watch.Announced {
	return watch.Announced{Announcement: routing.Announcement{Kind: routing.AnnouncedRule, Gone: gone, Rule: r, Port: uint32(who.PID)}, Author: who}
}

func aboutRoute(gone bool, to string, r routing.Route, who watch.Author) watch.Announced {
	r.Destination = netip.MustParsePrefix(to)
	r.Family, r.Type = routing.FamilyOf(r.Destination.Addr()), stdcmp.Or(r.Type, routing.RouteUnicast)
	return watch.Announced{Announcement: routing.Announcement{Kind: routing.AnnouncedRoute, Gone: gone, Routes: []routing.Route{r}, Port: uint32(who.PID)}, Author: who}
}

func aboutInterface(i routing.Interface, who watch.Author) watch.Announced {
	return watch.Announced{Announcement: routing.Announcement{Kind: routing.AnnouncedInterface, Interface: i, Port: uint32(who.PID)}, Author: who}
}

func aboutAddress(gone bool, a routing.Address, who watch.Author) watch.Announced {
	return watch.Announced{Announcement: routing.Announcement{Kind: routing.AnnouncedAddress, Gone: gone, Device: 2, Address: a, Port: uint32(who.PID)}, Author: who}
}

// TestAnnouncements: each change has its words, who and why.
func TestAnnouncements(t *testing.T) {
	t.Parallel()
	ours := rule(10000, "198.51.100.7/32", 10000, routing.Multihomed)
	dynamic := routing.Address{Prefix: netip.MustParsePrefix("2001:db8::5/64"), Dynamic: true}
	static := routing.Address{Prefix: netip.MustParsePrefix("2001:db8::6/64")}
	own := routing.Address{Prefix: netip.MustParsePrefix("198.51.100.7/24")}
	other := routing.Address{Prefix: netip.MustParsePrefix("198.51.100.99/24")}
	passing := rule(20000, "", 10002, routing.Multihomed)
	failed := static
	failed.Failed = true
	wan0 := routing.Interface{Index: 2, Name: "wan0", Up: true, Carrier: true, Running: true}
	noCarrier, down, grouped := wan0, wan0, wan0
	noCarrier.Carrier, down.Up, grouped.Group = false, false, 28008
	for _, c := range []struct {
		name string
		all  []watch.Announced
		want []string
	}{
		{"rule of another", []watch.Announced{aboutRule(false, rule(100, "", 10, 0), byIP)}, []string{"rule-added IPv4 rule added: 100: from all lookup 10 [ip (process 7)]"}},
		{"rule of ours", []watch.Announced{aboutRule(false, ours, byUs)}, []string{"rule-added wan0: IPv4 rule added: 10000: from 198.51.100.7 lookup 10000 [multihomed: packets from the address leave by the link]"}},
		{"rule that the document does not know", []watch.Announced{aboutRule(false, rule(10000, "198.51.100.8/32", 10000, routing.Multihomed), byUs)}, []string{"rule-added wan0: IPv4 rule added: 10000: from 198.51.100.8 lookup 10000 [multihomed: packets from the address leave by the link]"}},
		{"repair", []watch.Announced{aboutRule(true, ours, byIP), aboutRule(false, ours, byUs)}, []string{
			"rule-removed wan0: IPv4 rule of multihomed deleted: 10000: from 198.51.100.7 lookup 10000 [ip (process 7)]",
			"rule-added wan0: IPv4 rule added: 10000: from 198.51.100.7 lookup 10000 [multihomed: restored after ip (process 7) deleted it]",
		}},
		{"the kernel flushed", []watch.Announced{
			aboutRoute(true, "10.0.0.0/8", routing.Route{Device: 2, Table: 10000, Protocol: routing.Multihomed}, byKernel),
			aboutRoute(false, "10.0.0.0/8", routing.Route{Device: 2, Table: 10000, Protocol: routing.Multihomed}, byUs),
		}, []string{
			"route-removed wan0: IPv4 route of multihomed deleted: 10.0.0.0/8 dev wan0 table 10000 [kernel]",
			"route-added wan0: IPv4 route added: 10.0.0.0/8 dev wan0 table 10000 [multihomed]",
		}},
		{"a move", []watch.Announced{aboutRule(false, ours, byUs), aboutRule(true, ours, byUs)}, []string{
			"rule-added wan0: IPv4 rule added: 10000: from 198.51.100.7 lookup 10000 [multihomed: packets from the address leave by the link]",
			"rule-removed wan0: IPv4 rule deleted: 10000: from 198.51.100.7 lookup 10000 [multihomed: it moves to its place in the order]",
		}},
		{"down and up", []watch.Announced{aboutAddress(true, own, byNM), aboutRule(true, ours, byUs), aboutAddress(false, own, byNM), aboutRule(false, ours, byUs)}, []string{
			"address-removed wan0: address 198.51.100.7/24 deleted [NetworkManager]",
			"rule-removed wan0: IPv4 rule deleted: 10000: from 198.51.100.7 lookup 10000 [multihomed: an address is gone]",
			"address-added wan0: address 198.51.100.7/24 added [NetworkManager]",
			"rule-added wan0: IPv4 rule added: 10000: from 198.51.100.7 lookup 10000 [multihomed: packets from the address leave by the link]",
		}},
		{"another address went", []watch.Announced{aboutAddress(true, other, byNM), aboutRule(true, ours, byUs)}, []string{
			"address-removed wan0: address 198.51.100.99/24 deleted [NetworkManager]",
			"rule-removed wan0: IPv4 rule deleted: 10000: from 198.51.100.7 lookup 10000 [multihomed]",
		}},
		{"came and went", []watch.Announced{aboutRule(false, passing, byUs), aboutRule(true, passing, byUs)}, []string{
			"rule-added wan1: IPv4 rule added: 20000: from all lookup 10002 [multihomed: main does not know the network of the link]",
			"rule-removed wan1: IPv4 rule deleted: 20000: from all lookup 10002 [multihomed: nothing needs it any more]",
		}},
		{"deleted and back, no reason seen", []watch.Announced{aboutRule(true, ours, byUs), aboutRule(false, ours, byUs)}, []string{
			"rule-removed wan0: IPv4 rule deleted: 10000: from 198.51.100.7 lookup 10000 [multihomed]",
			"rule-added wan0: IPv4 rule added: 10000: from 198.51.100.7 lookup 10000 [multihomed: packets from the address leave by the link]",
		}},
		{"the kernel deletes with the address", []watch.Announced{
			aboutRoute(true, "0.0.0.0/0", routing.Route{Device: 2, Table: 254, Protocol: 16}, byKernel), aboutAddress(true, own, byNM),
		}, []string{
			"route-removed wan0: IPv4 route deleted: default dev wan0 table main [kernel: an address is gone]",
			"address-removed wan0: address 198.51.100.7/24 deleted [NetworkManager]",
		}},
		{"DHCP", []watch.Announced{aboutRoute(false, "0.0.0.0/0", routing.Route{Device: 3, Table: 254, Protocol: 16, Gateway: netip.MustParseAddr("203.0.113.1")}, byNM)}, []string{"route-added wan1: IPv4 route added: default via 203.0.113.1 dev wan1 table main [NetworkManager: DHCP]"}},
		{"a reject", []watch.Announced{aboutRoute(false, "192.0.2.0/24", routing.Route{Table: 254, Type: 7}, byIP)}, []string{"route-added IPv4 route added: unreachable 192.0.2.0/24 table main [ip (process 7)]"}},
		{"a name", []watch.Announced{aboutRoute(false, "192.0.2.0/24", routing.Route{Table: 254, Device: 4}, byIP)}, []string{`route-added a\x1b\xff: IPv4 route added: 192.0.2.0/24 dev a\x1b\xff table main [ip (process 7)]`}},
		{"no carrier", []watch.Announced{aboutInterface(noCarrier, byKernel)}, []string{"interface-changed wan0: carrier lost [kernel: the driver reports it]"}},
		{"down", []watch.Announced{aboutInterface(down, byKernel)}, []string{"interface-changed wan0: interface down [not known]"}},
		{"nothing", []watch.Announced{aboutInterface(wan0, byKernel)}, nil},
		{"group", []watch.Announced{aboutInterface(grouped, byKernel)}, []string{"interface-changed wan0: moved from group 0 to group 28008 [probably multihomed: the group tells uplinks from other links]"}},
		{"new", []watch.Announced{aboutInterface(routing.Interface{Index: 9, Name: "veth9", Kind: "veth"}, byIP)}, []string{"interface-added veth9: interface added (veth) [ip (process 7)]"}},
		{"dynamic address", []watch.Announced{aboutAddress(false, dynamic, byKernel), aboutAddress(false, dynamic, byKernel)}, []string{"address-added wan0: address 2001:db8::5/64 added [probably NetworkManager: DHCP or a router advertisement]"}},
		{"static address", []watch.Announced{aboutAddress(false, static, byKernel)}, []string{"address-added wan0: address 2001:db8::6/64 added [not known]"}},
		{"duplicate", []watch.Announced{aboutAddress(false, static, byKernel), aboutAddress(false, failed, byKernel)}, []string{
			"address-added wan0: address 2001:db8::6/64 added [not known]",
			"address-changed wan0: address 2001:db8::6/64 is in use on another host [kernel: duplicate address detection failed]",
		}},
		{"an address that was not there", []watch.Announced{aboutAddress(true, static, byKernel)}, nil},
	} {
		r := started(watch.Limits{Own: 9, Others: 9})
		r.Take(noon, c.all)
		if diff := cmp.Diff(c.want, sentences(r.Flush())); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// TestStorm: a million changes cost no memory, are counted, and none is forgotten.
func TestStorm(t *testing.T) {
	t.Parallel()
	r := started(watch.Limits{Own: 0, Others: 5})
	const n = 10_000
	for i := range n {
		r.Take(noon, []watch.Announced{
			aboutRoute(i%2 == 1, fmt.Sprintf("10.%d.%d.0/24", i/250%250, i%250), routing.Route{Device: 2, Table: 254, Protocol: 12}, watch.Author{Party: watch.Other, Process: "bird", PID: 44}),
			// One process for each.
			aboutRule(false, rule(routing.Priority(i), "", 10, 0), watch.Author{Party: watch.Other, Process: "sh", PID: i + 1}),
			aboutRule(false, rule(10000, "198.51.100.7/32", 10000, routing.Multihomed), byUs),
		})
	}
	events := r.Flush()
	if len(events) > 2000 {
		t.Errorf("%d events", len(events))
	}
	total, text := map[watch.Kind]int{}, strings.Join(sentences(events), "\n")
	for _, e := range events {
		total[e.Kind] += e.Count
	}
	if want := map[watch.Kind]int{watch.RouteAdded: n / 2, watch.RouteRemoved: n / 2, watch.RuleAdded: 2 * n}; !cmp.Equal(want, total) {
		t.Errorf("%v, want %v", total, want)
	}
	for _, want := range []string{"4995 more IPv4 routes added in table main [bird (process 44)]", fmt.Sprintf("rule-added %d IPv4 rules added [multihomed]", n)} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q", want)
		}
	}
	if r.Waiting() || len(r.Flush()) > 0 {
		t.Error("something is told twice")
	}

	// The screen adds counts up.
	m := &watch.Model{}
	for range 3 {
		m.Add(slices.DeleteFunc(slices.Clone(events), func(e watch.Event) bool { return e.Count == 1 }))
	}
	if !slices.ContainsFunc(m.Events, func(e watch.Event) bool {
		return e.Count == 3*4995 && strings.HasPrefix(e.Text, "14985 more IPv4 routes")
	}) {
		t.Errorf("%q", sentences(m.Events))
	}
	m.Add(events)
	if len(m.Events) > 500 {
		t.Errorf("%d events on the screen", len(m.Events))
	}
}

// TestLost says that changes were lost, once.
func TestLost(t *testing.T) {
	t.Parallel()
	r := started(watch.Limits{Others: 1})
	r.Lost(noon)
	r.Lost(noon)
	events := r.Flush()
	if len(events) != 2 || events[0].Kind != watch.Lost || events[1].Count != 1 || !strings.Contains(events[0].Line(), "changes were lost") {
		t.Errorf("%+v", events)
	}
}

// TestDocuments: what two documents differ in is told, with who and why.
func TestDocuments(t *testing.T) {
	t.Parallel()
	hop := netip.MustParseAddr("203.0.113.2")
	for _, c := range []struct {
		name string
		// all was announced between the two.
		all    []watch.Announced
		change func(*status.Status)
		want   []string
	}{
		{"nothing", nil, func(*status.Status) {}, nil},
		{"a link goes", nil, func(s *status.Status) {
			s.Links = s.Links[:2]
			s.Others = []status.Other{{Interface: "lan0", Why: "disconnected"}}
		}, []string{"link-removed lan0: no longer a link [NetworkManager: disconnected]"}},
		{"a link comes", nil, func(s *status.Status) {
			s.Links = append(s.Links, status.Link{Interface: "ppp0", Role: "uplink", Why: "a hook reported it", Networks: []status.Network{network("ipv4", "10.0.0.2/24", 10009, "10.0.0.1")}})
		}, []string{"link-added ppp0: new link: uplink, table 10009 [not known: a hook reported it]", "gateway-added ppp0: IPv4 gateway 10.0.0.1 added [not known]"}},
		{"role", nil, func(s *status.Status) { s.Links[2].Role, s.Links[2].RoleWhy = "uplink", "main has a default route" }, []string{"role-changed lan0: role uplink, it was local [multihomed: main has a default route]"}},
		{"coming up", nil, func(s *status.Status) { s.Links[1].Pending, s.Links[1].Why = true, "connecting" }, []string{"link-changed wan1: coming up [NetworkManager: connecting]"}},
		{"gateway", []watch.Announced{aboutRoute(false, "0.0.0.0/0", routing.Route{Device: 3, Table: 254, Protocol: 16, Gateway: hop}, byNM)}, func(s *status.Status) {
			s.Links[1].Networks[0].Gateways = []status.Gateway{{Via: &hop}}
		}, []string{
			"route-added wan1: IPv4 route added: default via 203.0.113.2 dev wan1 table main [NetworkManager: DHCP]",
			"gateway-added wan1: IPv4 gateway 203.0.113.2 added [NetworkManager: DHCP]", "gateway-removed wan1: IPv4 gateway 203.0.113.1 removed [NetworkManager: DHCP]",
		}},
		{"health", nil, func(s *status.Status) {
			s.Failover.Uplinks[0].State, s.Failover.Uplinks[0].Why = status.HealthDown, "no answer for 1.2 s"
		}, []string{"health-changed wan0: IPv4 down, it was up [multihomed: no answer for 1.2 s]"}},
		{"moved", nil, func(s *status.Status) {
			s.Unbound["ipv4"] = status.Unbound{Interface: "wan1", Main: "wan0", Why: "wan0 does not work"}
		}, []string{"default-route-moved wan1: IPv4 traffic that is bound to no link leaves by wan1, it left by wan0 [multihomed: wan0 does not work]"}},
		{"moved by another", []watch.Announced{aboutRoute(true, "0.0.0.0/0", routing.Route{Device: 2, Table: 254}, byIP)}, func(s *status.Status) {
			s.Unbound["ipv4"] = status.Unbound{Interface: "wan1", Table: 254}
		}, []string{
			"route-removed wan0: IPv4 route deleted: default dev wan0 table main [ip (process 7)]",
			"default-route-moved wan1: IPv4 traffic that is bound to no link leaves by wan1, it left by wan0 [ip (process 7)]",
		}},
		{"no way", nil, func(s *status.Status) { delete(s.Unbound, "ipv6") }, []string{"default-route-moved wan0: IPv6 traffic that is bound to no link has no way, it left by wan0 [not known]"}},
		{"problem", nil, func(s *status.Status) {
			s.Problems = []status.Problem{{Problem: routing.Problem{Code: "arp", Severity: routing.Warning, Link: "lan0", Text: "two links answer", Fix: "sysctl x"}}}
		}, []string{"problem lan0: warning: two links answer [multihomed]"}},
		{"binding", nil, func(s *status.Status) {
			s.Bindings = []status.Binding{{Selector: "user", Value: "alice", Link: "wan1", State: status.BindingActive, By: "configuration"}}
		}, []string{"binding-changed wan1: bound: user alice, active [multihomed: configuration]"}},
		{"answers", nil, func(s *status.Status) {
			s.Answers.Families[0].Answers, s.Answers.Families[0].Why = true, "docker0 is translated"
		}, []string{"answers-changed IPv4 answers leave by the link that was asked [multihomed: docker0 is translated]"}},
		{"off", nil, func(s *status.Status) { s.Off = &status.Off{By: "root"} }, []string{"switched multihomed switched off [multihomed: root asked for it]"}},
		{"off, one link", nil, func(s *status.Status) {
			s.OffLinks = []status.OffLink{{Interface: "wan1", Off: status.Off{By: "bob"}}}
		}, []string{"switched wan1: link switched off [multihomed: bob asked for it]"}},
		{"off, and so no link", nil, func(s *status.Status) {
			s.OffLinks = []status.OffLink{{Interface: "lan0", Off: status.Off{By: "bob"}}}
			s.Links, s.Others = s.Links[:2], []status.Other{{Interface: "lan0", Why: "switched off"}}
		}, []string{"switched lan0: link switched off [multihomed: bob asked for it]", "link-removed lan0: no longer a link [multihomed: it is switched off]"}},
		{"hangs", nil, func(s *status.Status) { s.By = status.ByHost }, []string{"service-changed multihomed not answering, it was running [multihomed]"}},
		{"services", nil, func(s *status.Status) { s.Daemon, s.NetworkManager.Running = status.Daemon{}, false }, []string{
			"service-changed multihomed not running, it was running [not known]", "service-changed NetworkManager not running, it was running [not known]",
		}},
	} {
		r := started(watch.Limits{Own: 9, Others: 9})
		r.Take(noon, c.all)
		now := document()
		c.change(now)
		events := r.Document(noon.Add(time.Second), now)
		if diff := cmp.Diff(c.want, sentences(events)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
		if c.name == "problem" {
			back := sentences(r.Document(noon.Add(2*time.Second), document()))
			if want := []string{"problem-fixed lan0: no longer a problem: two links answer [multihomed]"}; !cmp.Equal(want, back) || events[0].Fix != "sysctl x" {
				t.Errorf("%q, fix %q", back, events[0].Fix)
			}
		}
	}
}

// TestSummary: a person gets one line for what multihomed does to a link, and a program all.
func TestSummary(t *testing.T) {
	t.Parallel()
	source, device := rule(10000, "203.0.113.9/32", 10002, routing.Multihomed), rule(9500, "", 10002, routing.Multihomed)
	device.OIF = "wan1"
	shared := rule(32765, "", 10999, routing.Multihomed)
	gone := routing.Address{Prefix: netip.MustParsePrefix("fe80::1/64")}
	network := routing.Route{Device: 2, Table: 254, Protocol: routing.ProtocolKernel}
	own := routing.Address{Prefix: netip.MustParsePrefix("198.51.100.7/24")}
	all := []watch.Announced{
		aboutRoute(true, "203.0.113.0/24", routing.Route{Device: 3, Table: 10002, Protocol: routing.Multihomed}, byKernel),
		aboutRoute(true, "0.0.0.0/0", routing.Route{Device: 3, Table: 10002, Protocol: routing.Multihomed}, byKernel),
		aboutRule(true, source, byUs), aboutRule(true, device, byUs), aboutRule(true, shared, byUs), aboutRule(true, rule(32765, "", 254, routing.Multihomed), byUs),
		aboutAddress(true, own, byNM), aboutRoute(true, "198.51.100.0/24", network, byKernel),
		aboutAddress(false, gone, byKernel),
		aboutRule(true, rule(10000, "198.51.100.7/32", 10000, routing.Multihomed), byIP), aboutRule(false, rule(10000, "198.51.100.7/32", 10000, routing.Multihomed), byUs),
	}
	after := document()
	after.Links = slices.Delete(after.Links, 1, 2)
	after.Others = []status.Other{{Interface: "wan1", Why: "disconnected"}}
	after.Failover.Uplinks = after.Failover.Uplinks[:1]

	r := started(watch.Limits{Own: 99, Others: 99, Summary: true})
	r.Take(noon, all)
	want := []string{
		"route-removed wan1: 2 routes of multihomed deleted [kernel]",
		"rule-removed wan1: 2 rules deleted [multihomed: it is no longer a link]",
		"rule-removed 2 rules deleted [multihomed: nothing needs them any more]",
		"address-removed wan0: address 198.51.100.7/24 deleted [NetworkManager]",
		"rule-removed wan0: IPv4 rule of multihomed deleted: 10000: from 198.51.100.7 lookup 10000 [ip (process 7)]",
		"rule-added wan0: IPv4 rule added: 10000: from 198.51.100.7 lookup 10000 [multihomed: restored after ip (process 7) deleted it]",
		"link-removed wan1: no longer a link [NetworkManager: disconnected]",
	}
	if diff := cmp.Diff(want, sentences(r.Document(noon.Add(time.Second), after))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	r = started(watch.Limits{Own: 99, Others: 99})
	r.Take(noon, all)
	if got := r.Document(noon.Add(time.Second), after); len(got) != len(all)+1 {
		t.Errorf("%q", sentences(got))
	}

	// A move is one change, and many links are one line.
	r = started(watch.Limits{Own: 99, Others: 99, Summary: true})
	moving := rule(10000, "198.51.100.7/32", 10000, routing.Multihomed)
	r.Take(noon, []watch.Announced{aboutRule(false, moving, byUs), aboutRule(true, moving, byUs)})
	for i := range 9 {
		for _, p := range []routing.Priority{9500, 91000} {
			r.Take(noon, []watch.Announced{aboutRule(false, rule(p, "", routing.TableID(20000+i), routing.Multihomed), byUs)})
		}
	}
	many := document()
	for i := range 9 {
		many.Links = append(many.Links, status.Link{Interface: fmt.Sprintf("x%d", i), Role: "uplink", Networks: []status.Network{network4(20000 + i)}})
	}
	got := sentences(r.Document(noon.Add(time.Second), many))
	if len(got) < 2 || got[0] != "rule-removed wan0: IPv4 rule deleted: 10000: from 198.51.100.7 lookup 10000 [multihomed: it moves to its place in the order]" || got[1] != "rule-added 18 rules added on 9 links [multihomed]" {
		t.Errorf("%q", got)
	}
}

// TestJoined: what happens to an interface at once is one line for a person.
func TestJoined(t *testing.T) {
	t.Parallel()
	r := started(watch.Limits{Own: 9, Others: 9, Summary: true})
	veth := routing.Interface{Index: 9, Name: "veth9", Kind: "veth"}
	up, port := veth, veth
	up.Up, port.Up, port.Master = true, true, 2
	gone := aboutInterface(port, byKernel)
	gone.Gone = true
	r.Take(noon, []watch.Announced{
		aboutInterface(veth, byKernel), aboutInterface(up, byKernel), aboutRule(false, rule(100, "", 10, 0), byIP), aboutInterface(port, byKernel),
		aboutRoute(false, "192.0.2.0/24", routing.Route{Device: 9, Table: 254}, byIP), gone,
	})
	want := []string{
		"interface-changed veth9: interface added (veth), up, part of wan0 [not known]", "rule-added IPv4 rule added: 100: from all lookup 10 [ip (process 7)]",
		"route-added veth9: IPv4 route added: 192.0.2.0/24 dev veth9 table main [ip (process 7)]", "interface-removed veth9: interface removed [not known]",
	}
	if diff := cmp.Diff(want, sentences(r.Flush())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestNobodyLooked: without the daemon nobody knows where unbound traffic leaves.
func TestNobodyLooked(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		by   string
		want string
	}{{status.ByDaemon, "default route: none"}, {status.ByHost, "default route: not known"}} {
		d := document()
		d.By, d.Unbound = c.by, nil
		if got := watch.Frame(&watch.Model{Now: noon, Document: d}, 80, 24); !strings.HasPrefix(got[1], c.want) {
			t.Errorf("%s: %q", c.by, got[:2])
		}
	}
}

// TestManyLinks: a person gets the first of many links and the number of the others, and a program all.
func TestManyLinks(t *testing.T) {
	t.Parallel()
	now := document()
	for i := range 1000 {
		now.Links = append(now.Links, status.Link{Interface: fmt.Sprintf("x%d", i), Role: "uplink", Networks: []status.Network{network("ipv4", "10.0.0.2/24", 10009, "10.0.0.1")}})
		now.Failover.Uplinks = append(now.Failover.Uplinks, status.Health{Interface: fmt.Sprintf("x%d", i), Family: "ipv4", State: status.HealthDown})
	}
	r := started(watch.Limits{Own: 9, Others: 2, Summary: true})
	got := sentences(r.Document(noon, now))
	want := []string{"gateway-added 998 more gateways added [not known]", "health-changed 998 more states of health changed [not known]", "link-added 998 more links added [not known]"}
	if len(got) != 9 || !cmp.Equal(want, got[6:]) {
		t.Errorf("%q", got)
	}
	r = started(watch.Limits{Own: 9, Others: 2})
	if got := r.Document(noon, now); len(got) != 3000 {
		t.Errorf("%d events", len(got))
	}
}

func network4(table int) status.Network {
	return status.Network{Family: "ipv4", Table: uint32(table)}
}

// TestRestart: while the daemon is away, nobody looked which way traffic leaves and whether uplinks work, and
// NetworkManager that starts says nothing of links.
func TestRestart(t *testing.T) {
	t.Parallel()
	r := started(watch.Limits{Own: 9, Others: 9})
	away := document()
	away.By, away.Daemon, away.Unbound, away.Failover = status.ByHost, status.Daemon{}, nil, nil
	starting := document()
	for i := range starting.Failover.Uplinks {
		starting.Failover.Uplinks[i].State = status.HealthUnknown
	}
	starting.NetworkManager.Complete, starting.Links[0].Draining = false, true
	back := document()
	back.Failover.Uplinks[1].State, back.Failover.Uplinks[1].Why = status.HealthDown, "no answer"
	back.Unbound["ipv6"] = status.Unbound{Interface: "wan1", Main: "wan0", Why: "wan0 does not work"}
	for _, c := range []struct {
		s    *status.Status
		want []string
	}{
		{away, []string{"service-changed multihomed not running, it was running [not known]"}},
		{starting, []string{"service-changed multihomed running, it was not running [not known]", "service-changed NetworkManager starting, it was running [not known]"}},
		{back, []string{
			"service-changed NetworkManager running, it was starting [not known]", "health-changed wan1: IPv4 down, it was up [multihomed: no answer]",
			"default-route-moved wan1: IPv6 traffic that is bound to no link leaves by wan1, it left by wan0 [multihomed: wan0 does not work]",
		}},
	} {
		if diff := cmp.Diff(c.want, sentences(r.Document(noon, c.s))); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

// TestEventJSON is the form for programs.
func TestEventJSON(t *testing.T) {
	t.Parallel()
	r := started(watch.Limits{Own: 9, Others: 9})
	r.Take(noon, []watch.Announced{aboutRule(true, rule(10000, "198.51.100.7/32", 10000, routing.Multihomed), byIP)})
	got, err := json.Marshal(r.Flush())
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"schema":1,"time":"2026-11-29T12:00:00Z","event":"rule-removed","link":"wan0","family":"ipv4","object":"10000: from 198.51.100.7 lookup 10000",` +
		`"text":"IPv4 rule of multihomed deleted: 10000: from 198.51.100.7 lookup 10000","reason":"source","who":"other","process":"ip","pid":7,"count":1}]`
	if string(got) != want {
		t.Errorf("%s", got)
	}
}

// TestManualOfEvents wants every kind in the manual.
func TestManualOfEvents(t *testing.T) {
	t.Parallel()
	_, text, _ := strings.Cut(manual(t), ".Ss Of watch\n")
	text, _, _ = strings.Cut(text, "\n.Sh ")
	var named []watch.Kind
	for line := range strings.Lines(text) {
		if words, is := strings.CutPrefix(strings.TrimSpace(line), ".It Cm "); is {
			for word := range strings.FieldsSeq(strings.ReplaceAll(words, ",", "")) {
				named = append(named, watch.Kind(word))
			}
		}
	}
	if diff := cmp.Diff(watch.Kinds(), named); diff != "" {
		t.Errorf("(-program +manual):\n%s", diff)
	}
}
