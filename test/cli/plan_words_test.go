package cli_test

import (
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"multihomed/internal/preview"
	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// A wordy host runs plans of its own making.
type wordy struct {
	*host
	names map[int]string
	first int
	other int
}

// TestPlanWords has sh run plans of routes and rules with every attribute that the kernel and ip(8) of
// Debian 12 know, and reads back what was meant. Further plans replace, move and delete them.
func TestPlanWords(t *testing.T) {
	h := &wordy{host: &host{Host: labtest.NewHost(t, lab.HostConfig{NoNM: true, NoBus: true}), t: t}, names: map[int]string{}}
	for i, name := range []string{hostile, unwritable} {
		_, err := h.NewLink(lab.LinkConfig{Name: name, Peer: fmt.Sprint("end", i), Up: true})
		h.must(err)
		h.must(h.AddAddr(name, fmt.Sprintf("192.0.%d.10/24", 2+i)))
		h.ip("-6", "addr", "add", fmt.Sprintf("2001:db8:%d::10/64", i), "dev", name, "nodad")
		l, err := netlink.LinkByName(name)
		h.must(err)
		h.first, h.other = h.other, l.Attrs().Index
		h.names[h.other] = name
	}
	routes, rules := h.routes(), h.rules()
	var ops []routing.Op
	for _, r := range routes {
		ops = append(ops, routing.Op{Verb: routing.AddRoute, Route: r})
	}
	for _, r := range rules {
		ops = append(ops, routing.Op{Verb: routing.AddRule, Rule: r})
	}
	h.do(preview.Facts{Ops: ops})
	h.holds("added", routes, rules)

	// The first of both families changes its place or its contents.
	ops, former := nil, map[routing.RouteKey]preview.Former{}
	for i := range routes[:4] {
		old := routes[i]
		routes[i].Attributes = routing.RareAttributes{Metrics: routing.Metrics{2: 1333}}.Share()
		former[old.Key()] = preview.Former{Route: old, Stands: true, Replace: i%2 == 1}
		ops = append(ops, routing.Op{Verb: routing.ReplaceRoute, Route: routes[i]})
	}
	for _, r := range rules[:4] {
		ops = append(ops, routing.Op{Verb: routing.MoveRule, Rule: r})
	}
	h.do(preview.Facts{Ops: ops, Former: former})
	h.holds("replaced and moved", routes, rules)
	for i, f := range routing.Families() {
		h.view(func(k *kernel.State) {
			if got, want := k.RuleOrder(f, routing.PriorityDevice), []routing.Rule{rules[4+i], rules[i], rules[2+i]}; !slices.Equal(got, want) {
				t.Errorf("after the move the order is %v, want %v", got, want)
			}
		})
	}

	ops = nil
	for _, r := range rules {
		ops = append(ops, routing.Op{Verb: routing.DeleteRule, Rule: r})
	}
	for _, r := range slices.Backward(routes) {
		ops = append(ops, routing.Op{Verb: routing.DeleteRoute, Route: r})
	}
	h.do(preview.Facts{Ops: ops, Alias: true})
	h.holds("deleted", nil, nil)
}

func (h *wordy) do(f preview.Facts) {
	h.t.Helper()
	f.Names = h.names
	p := preview.Of(f)
	for _, s := range p.Steps {
		if s.Note != "" {
			h.t.Errorf("%s %s: %s", s.Action, s.Object, s.Note)
		}
	}
	cmd := exec.CommandContext(h.t.Context(), "sh")
	cmd.Stdin = strings.NewReader(p.Script())
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		h.t.Fatalf("%v: %s\n%s", err, out, p.Script())
	}
}

func (h *wordy) view(look func(*kernel.State)) {
	h.t.Helper()
	mirror, err := kernel.Open(kernel.Config{Tables: routing.DefaultPolicy().Tables, Interest: func(string) bool { return false }})
	h.must(err)
	defer mirror.Close()
	h.must(mirror.Sync(h.t.Context()))
	mirror.View(look)
}

// holds wants these objects of ours in the kernel, and no others.
func (h *wordy) holds(when string, routes []routing.Route, rules []routing.Rule) {
	h.t.Helper()
	want, got := map[string]int{}, map[string]int{}
	for _, r := range routes {
		for _, way := range ways(r) {
			want[fmt.Sprintf("%+v %+v", way, way.Attributes.Get())]++
		}
	}
	for _, r := range rules {
		want[fmt.Sprintf("%+v", r)]++
	}
	h.view(func(k *kernel.State) {
		for r := range k.Routes() {
			got[fmt.Sprintf("%+v %+v", r, r.Attributes.Get())]++
		}
		for r := range k.Rules() {
			got[fmt.Sprintf("%+v", r)]++
		}
	})
	if diff := gocmp.Diff(slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got))); diff != "" {
		h.t.Errorf("%s (-want +got):\n%s", when, diff)
	}
	for text, n := range got {
		if n != want[text] {
			h.t.Errorf("%s: %d times, want %d: %s", when, n, want[text], text)
		}
	}
}

// ways are those of a route of IPv6, which the kernel holds one by one.
func ways(r routing.Route) []routing.Route {
	if r.Family == routing.IPv6 {
		return r.Ways()
	}
	return []routing.Route{r}
}

func (h *wordy) route(destination, gateway string, change ...func(*routing.Route, *routing.RareAttributes)) routing.Route {
	p := netip.MustParsePrefix(destination)
	r := routing.Route{Family: routing.FamilyOf(p.Addr()), Type: routing.RouteUnicast, Protocol: routing.Multihomed, Table: 10001, Metric: routing.FirstMetric, Destination: p, Device: h.first}
	if gateway != "" {
		r.Gateway = netip.MustParseAddr(gateway)
	} else if r.Family == routing.IPv4 {
		r.Scope = routing.ScopeLink
	}
	rare := routing.RareAttributes{}
	for _, c := range change {
		c(&r, &rare)
	}
	r.Attributes = rare.Share()
	return r
}

type (
	pointer = *routing.Route
	rare    = *routing.RareAttributes
)

func (h *wordy) routes() []routing.Route {
	throw := func(r pointer, _ rare) { r.Type, r.Device, r.Scope = routing.RouteThrow, 0, routing.ScopeUniverse }
	metrics := func(_ pointer, a rare) {
		// Numbers of RTAX_*; mtu (2) and advmss (8) are locked.
		a.Metrics = routing.Metrics{1: 1<<2 | 1<<8, 2: 1400, 3: 60000, 4: 80, 5: 40, 6: 10, 7: 12, 8: 1300, 9: 4, 10: 63, 11: 20, 12: 1, 14: 30, 15: 1, 17: 1}
		a.Congestion = "cubic"
	}
	return []routing.Route{
		h.route("10.1.0.0/16", "192.0.2.1"), h.route("2001:db8:a::/48", "2001:db8:0::1"),
		h.route("0.0.0.0/0", "192.0.2.1"), h.route("::/0", "fe80::1"),
		h.route("192.0.2.0/24", "", func(r pointer, _ rare) { r.PreferredSource = netip.MustParseAddr("192.0.2.10") }),
		h.route("10.2.0.0/16", "203.0.113.1", func(r pointer, _ rare) { r.OnLink = true }),
		h.route("10.3.0.0/16", "fe80::1"),
		h.route("10.4.0.0/16", "192.0.2.1", func(r pointer, _ rare) { r.TOS = 0x10 }),
		h.route("10.5.0.0/16", "192.0.2.1", metrics),
		h.route("10.6.0.0/16", "192.0.2.1", func(_ pointer, a rare) { a.Metrics = routing.Metrics{1: 1 << 13, 13: 300} }),
		h.route("10.7.0.0/16", "192.0.2.1", func(_ pointer, a rare) { a.Realm = 3<<16 | 5 }),
		h.route("10.8.0.7/32", "192.0.2.1", func(r pointer, _ rare) { r.Metric = 7 }),
		h.route("10.9.0.0/16", "", throw),
		h.route("10.10.0.0/16", "192.0.2.1", func(r pointer, a rare) {
			r.Weight = 3
			a.Legs = routing.PackLegs([]routing.Leg{{Gateway: netip.MustParseAddr("203.0.113.1"), Device: h.other, OnLink: true, Weight: 200}})
		}),
		h.route("2001:db8:b::/48", "2001:db8:0::1", metrics, func(r pointer, _ rare) {
			r.PreferredSource, r.Preference = netip.MustParseAddr("2001:db8:0::10"), routing.PreferenceHigh
		}),
		h.route("2001:db8:c::/48", "2001:db8:ffff::1", func(r pointer, _ rare) { r.OnLink, r.Preference = true, routing.PreferenceLow }),
		h.route("2001:db8:d::/48", "", throw),
		h.route("2001:db8:e::7/128", ""),
		h.route("2001:db8:f::/48", "fe80::1", func(r pointer, a rare) {
			r.Weight = 3
			a.Legs = routing.PackLegs([]routing.Leg{{Gateway: netip.MustParseAddr("fe80::2"), Device: h.other, Weight: 7}})
		}),
		h.route("2001:db8:0::/64", ""), h.route("2001:db8:10::/48", "fe80::1"), h.route("2001:db8:10::/48", "fe80::2"),
	}
}

// rules are two for each thing that one may select or do, for both families. The first six share a priority.
func (h *wordy) rules() (all []routing.Rule) {
	for _, change := range []func(*routing.Rule){
		func(r *routing.Rule) { r.Priority, r.OIF = routing.PriorityDevice, hostile },
		func(r *routing.Rule) { r.Priority, r.OIF = routing.PriorityDevice, unwritable },
		func(r *routing.Rule) {
			r.Priority = routing.PriorityDevice
			r.UIDs = routing.UIDRange{Set: true, First: 7, Last: 9}
		},
		func(r *routing.Rule) { r.IIF = routing.LoopbackAlias },
		func(r *routing.Rule) { r.IIF, r.Invert = hostile, true },
		func(r *routing.Rule) { r.TOS = 0x10 },
		func(r *routing.Rule) { r.Mark = routing.Mark{Value: 0x1000000, Mask: 0xff000000} },
		func(r *routing.Rule) { r.Mark = routing.Mark{Value: 7, Mask: 0} },
		func(r *routing.Rule) {
			r.IPProto, r.SourcePorts, r.DestinationPorts = 17, routing.PortRange{First: 53, Last: 53}, routing.PortRange{First: 1, Last: 99}
		},
		func(r *routing.Rule) { r.IPProto = 253 },
		func(r *routing.Rule) { r.TunnelID = 1 << 33 },
		func(r *routing.Rule) { r.SuppressPrefixLength, r.SuppressGroup = routing.Some(0), routing.Some(28008) },
		func(r *routing.Rule) { r.SuppressPrefixLength = routing.Some(7) },
		func(r *routing.Rule) {
			r.Priority, r.Action, r.Table = routing.PriorityUnreachable, routing.ActionUnreachable, 0
		},
		func(r *routing.Rule) { r.Priority, r.Action, r.Table, r.Goto = 9010, routing.ActionGoto, 0, 10500 },
	} {
		for _, f := range routing.Families() {
			r := routing.Rule{Family: f, Priority: routing.PrioritySource, Action: routing.ActionLookup, Table: 10001, Protocol: routing.Multihomed}
			change(&r)
			switch {
			case r.Priority == routing.PriorityDevice:
			case f == routing.IPv4:
				r.From, r.To = netip.MustParsePrefix("192.0.2.10/32"), netip.MustParsePrefix("10.0.0.0/8")
			default:
				r.From, r.To = netip.MustParsePrefix("2001:db8::/64"), netip.MustParsePrefix("2001:db8:9::9/128")
			}
			all = append(all, r)
		}
	}
	return all
}
