package explain_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"multihomed/internal/escape"
	"multihomed/internal/explain"
	"multihomed/internal/status"
	"multihomed/routing"
	"multihomed/routing/lookup"
	"multihomed/test/golden"
)

const (
	wan0, wan1, tunnel, bridge = 2, 3, 4, 5
	unreachable                = routing.RouteType(7)
	local                      = routing.RouteType(2)
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func prefix(s string) netip.Prefix {
	if s == "" {
		return netip.Prefix{}
	}
	return netip.MustParsePrefix(s)
}

// base is a rule of multihomed that looks up a table.
func base(p routing.Priority, from string, t routing.TableID) routing.Rule {
	return routing.Rule{Family: routing.IPv4, Priority: p, From: prefix(from), Action: routing.ActionLookup, Table: t, Protocol: routing.Multihomed}
}

func with(r routing.Rule, change func(*routing.Rule)) routing.Rule {
	change(&r)
	return r
}

func way(t routing.TableID, to, via string, device int, metric uint32) lookup.Candidate {
	r := routing.Route{Family: routing.IPv4, Type: routing.RouteUnicast, Table: t, Destination: prefix(to), Device: device, Metric: metric, Protocol: routing.ProtocolStatic}
	if via != "" {
		r.Gateway = addr(via)
	}
	return lookup.Candidate{Route: r}
}

// home has two providers, a full tunnel of wg-quick and a binding: what a person meets.
func home() *explain.Facts {
	kernels := func(p routing.Priority, t routing.TableID) routing.Rule {
		return with(base(p, "", t), func(r *routing.Rule) { r.Protocol = routing.ProtocolKernel })
	}
	known := func(from string) routing.Rule {
		return with(base(9020, from, routing.TableMain), func(r *routing.Rule) {
			r.SuppressPrefixLength, r.SuppressGroup = routing.Some(7), routing.Some(28008)
		})
	}
	never := func(p routing.Priority, from string) routing.Rule {
		return with(base(p, from, 0), func(r *routing.Rule) { r.Action = routing.ActionUnreachable })
	}
	f := &explain.Facts{}
	f.Family = routing.IPv4
	config := lookup.Config{Addressed: true}
	config.Forwards.Set(routing.IPv4, true)
	strict := config
	strict.ReversePath = 1
	f.Interfaces = []lookup.Interface{
		{Index: 1, Name: "lo", Up: true, Config: config},
		{Index: wan0, Name: "wan0", Up: true, Group: 28008, Config: config},
		{Index: wan1, Name: "wan1", Up: true, Group: 28008, Config: strict},
		{Index: tunnel, Name: "wg0", Up: true, Config: config},
		{Index: bridge, Name: "br0", Up: true, Config: config},
	}
	tunnelMark := routing.Mark{Value: 51820, Mask: 0xffffffff}
	f.Rules = []routing.Rule{
		kernels(0, routing.TableLocal),
		with(base(8500, "", 0), func(r *routing.Rule) {
			r.Action, r.Goto, r.Mark = routing.ActionGoto, 30000, routing.Mark{Value: 0x80000007, Mask: 0x7fffffff}
		}),
		known("10.90.0.120/32"), known("10.91.0.120/32"),
		with(base(9050, "10.91.0.120/32", 10001), func(r *routing.Rule) { r.UIDs = routing.UIDRange{Set: true, First: 1001, Last: 1001} }),
		with(never(9051, ""), func(r *routing.Rule) { r.UIDs = routing.UIDRange{Set: true, First: 1001, Last: 1001} }),
		with(base(9500, "", 10000), func(r *routing.Rule) { r.OIF = "wan0" }), with(base(9500, "", 10001), func(r *routing.Rule) { r.OIF = "wan1" }),
		base(10000, "10.90.0.120/32", 10000), base(10000, "10.91.0.120/32", 10001), base(10000, "10.91.0.121/32", 10001), base(10000, "10.91.0.122/32", 10001),
		never(10500, "10.90.0.120/32"), never(10500, "10.91.0.120/32"),
		with(kernels(30000, 77), func(r *routing.Rule) {
			r.Protocol, r.Mark = routing.ProtocolBoot, routing.Mark{Value: 7, Mask: 0xffffffff}
		}),
		with(kernels(32764, routing.TableMain), func(r *routing.Rule) { r.Protocol, r.SuppressPrefixLength = routing.ProtocolBoot, routing.Some(0) }),
		with(kernels(32765, 51820), func(r *routing.Rule) { r.Protocol, r.Invert, r.Mark = routing.ProtocolBoot, true, tunnelMark }),
		kernels(32766, routing.TableMain), kernels(32767, routing.TableDefault),
	}
	f.Tables = map[routing.TableID][]lookup.Candidate{
		routing.TableMain: {
			way(routing.TableMain, "0.0.0.0/0", "10.90.0.1", wan0, 100), way(routing.TableMain, "0.0.0.0/0", "10.91.0.1", wan1, 101),
			way(routing.TableMain, "10.90.0.0/24", "", wan0, 100), way(routing.TableMain, "10.91.0.0/24", "", wan1, 101), way(routing.TableMain, "172.31.0.0/24", "", bridge, 0),
		},
		10000: {way(10000, "0.0.0.0/0", "10.90.0.1", wan0, 1<<30)},
		10001: {way(10001, "0.0.0.0/0", "10.91.0.1", wan1, 1<<30), way(10001, "10.91.0.0/24", "", wan1, 1<<30)},
		51820: {way(51820, "0.0.0.0/0", "", tunnel, 0)},
		77:    {{Route: routing.Route{Family: routing.IPv4, Type: unreachable, Table: 77, Destination: prefix("198.51.100.0/24")}}},
	}
	f.Addresses = map[int][]netip.Prefix{wan0: {prefix("10.90.0.120/24")}, wan1: {prefix("10.91.0.120/24")}, tunnel: {prefix("10.99.0.2/32")}, bridge: {prefix("172.31.0.1/24")}}
	for _, index := range []int{wan0, wan1, tunnel, bridge} {
		for _, p := range f.Addresses[index] {
			f.Tables[routing.TableLocal] = append(f.Tables[routing.TableLocal], lookup.Candidate{Route: routing.Route{
				Family: routing.IPv4, Type: local, Table: routing.TableLocal, Destination: netip.PrefixFrom(p.Addr(), 32), Device: index, PreferredSource: p.Addr(), Scope: routing.ScopeHost,
			}})
		}
	}
	f.Users = map[uint32]string{0: "root", 1001: "backup"}
	s := status.Status{By: status.ByDaemon, Tables: status.Range{First: 10000, Last: 10999}}
	for _, l := range []struct {
		name, profile string
		table         uint32
	}{{"wan0", "Kabel", 10000}, {"wan1", "LTE", 10001}} {
		link := status.Link{Interface: l.name, Profile: l.profile, Role: "uplink", Networks: []status.Network{{Table: l.table}}}
		for _, r := range f.Rules {
			if r.Protocol == routing.Multihomed && (uint32(r.Table) == l.table || r.OIF == l.name || r.From.IsValid() && f.Addresses[map[string]int{"wan0": wan0, "wan1": wan1}[l.name]][0].Contains(r.From.Addr())) {
				reason := map[routing.Priority]routing.Decision{9020: routing.KeepKnown, 9050: routing.Bind, 9500: routing.FollowDevice, 10000: routing.FollowSource, 10500: routing.NeverStray}[r.Priority]
				link.Objects = append(link.Objects, status.Object{Kind: "rule", Family: "ipv4", Text: escape.Text(r.String()), Reason: string(reason)})
			}
		}
		s.Links = append(s.Links, link)
	}
	s.Shared = []status.Object{
		{Kind: "rule", Family: "ipv4", Text: f.Rules[1].String(), Reason: string(routing.LiftForeign), Lifts: f.Rules[14].String()},
		{Kind: "rule", Family: "ipv4", Text: f.Rules[5].String(), Reason: string(routing.BindNever)},
	}
	s.Bindings = []status.Binding{{Selector: "user", Value: "backup", Link: "LTE", Interface: "wan1", Strict: true, By: "configuration", State: status.BindingActive}}
	f.Notes = explain.NotesOf(&s)
	return f
}

var questions = map[string]lookup.Flow{
	"bound":     {To: addr("203.0.113.1"), From: addr("10.91.0.120"), IPProto: 6},
	"unbound":   {To: addr("203.0.113.1")},
	"device":    {To: addr("203.0.113.1"), OIF: "wan1"},
	"user":      {To: addr("203.0.113.1"), UID: 1001},
	"mark":      {To: addr("198.51.100.9"), From: addr("10.91.0.120"), Mark: 7},
	"forwarded": {To: addr("172.31.0.9"), IIF: "wan1", From: addr("203.0.113.1")},
	"tunnel":    {To: addr("203.0.113.1"), Mark: 51820},
	"nearby":    {To: addr("172.31.0.9"), From: addr("10.91.0.120")},
}

// rule finds a rule of a lookup.
func rule(t *testing.T, l explain.Lookup, priority uint32, result string) explain.Rule {
	t.Helper()
	for _, r := range l.Rules {
		if r.Priority == priority && r.Result == result {
			return r
		}
	}
	t.Fatalf("no rule at %d with the result %q in %+v", priority, result, l.Rules)
	return explain.Rule{}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]struct {
		summary, outcome string
		priority         uint32
		result, why      string
		sentence, link   string
	}{
		"bound":     {"203.0.113.1 from 10.91.0.120 leaves by wan1 via 10.91.0.1 (rule 10000, table 10001)", explain.Sent, 10000, explain.Answers, "the source is 10.91.0.120", "packets from the address leave by the link", "wan1"},
		"unbound":   {"203.0.113.1 leaves by wg0 with the address 10.99.0.2 (rule 32765, table 51820)", explain.Sent, 32765, explain.Answers, "the packet has no mark", "", ""},
		"device":    {"203.0.113.1 leaves by wan1 via 10.91.0.1 with the address 10.91.0.120 (rule 9500, table 10001)", explain.Sent, 9500, explain.Answers, "the socket is bound to wan1", "sockets bound to the device use its table", "wan1"},
		"user":      {"203.0.113.1 is refused: network unreachable (ENETUNREACH) (rule 9051)", explain.Refused, 9051, explain.Answers, "the sender is user backup", "without a way by the link, what is bound to it goes nowhere", ""},
		"mark":      {"198.51.100.9 from 10.91.0.120 is refused: host unreachable (EHOSTUNREACH) (rule 30000, table 77)", explain.Refused, 9020, explain.SteppedOver, "the goto leads to 30000", "bound traffic reaches containers, VPN networks and LANs", "wan0"},
		"forwarded": {"172.31.0.9 from 203.0.113.1 is dropped when it comes in by wan1: the way back leads by wg0 (rp_filter 1)", explain.Refused, 9500, explain.No, "the packet is forwarded", "sockets bound to the device use its table", "wan0"},
		"tunnel":    {"203.0.113.1 gets the address 10.90.0.120 and leaves by wan0 via 10.90.0.1 (rule 10000, table 10000)", explain.Sent, 32765, explain.No, "it is for all other packets: the mark is 0xca6c", "", ""},
		"nearby":    {"172.31.0.9 from 10.91.0.120 leaves by br0 (rule 9020, table main)", explain.Sent, 9020, explain.Answers, "the source is 10.91.0.120", "bound traffic reaches containers, VPN networks and LANs", "wan1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := home().Explain(questions[name])
			if d.Summary != want.summary || d.Outcome != want.outcome {
				t.Errorf("%q, %q", d.Outcome, d.Summary)
			}
			r := rule(t, d.Lookups[0], want.priority, want.result)
			if r.Why != want.why || r.Sentence != want.sentence || r.Link != want.link {
				t.Errorf("%+v", r)
			}
			if n := len(d.Lookups[0].Rules); n != len(home().Rules) {
				t.Errorf("%d of %d rules are accounted for", n, len(home().Rules))
			}
			if !d.Complete || !d.Agrees || d.Asked {
				t.Errorf("%+v", d)
			}
		})
	}
}

// TestRuleDetails wants what a person needs to know of single rules.
func TestRuleDetails(t *testing.T) {
	t.Parallel()
	d := home().Explain(questions["mark"])
	if r := rule(t, d.Lookups[0], 8500, explain.Jumps); r.Lifts != "30000: from all fwmark 0x7 lookup 77 proto boot" || r.Why != "the mark is 0x7" {
		t.Errorf("%+v", r)
	}
	d = home().Explain(questions["bound"])
	if r := rule(t, d.Lookups[0], 9020, explain.Suppressed); r.Route != "default via 10.90.0.1 dev wan0 metric 100" || r.Rejected != "suppress_prefixlength 7" {
		t.Errorf("%+v", r)
	}
	if r := rule(t, d.Lookups[0], 32765, explain.NotAsked); r.Maker != "wg-quick" || r.By != explain.ByOthers {
		t.Errorf("%+v", r)
	}
	d = home().Explain(questions["user"])
	if r := rule(t, d.Lookups[0], 9051, explain.Answers); r.Binding != "user backup is bound to LTE by configuration" {
		t.Errorf("%+v", r)
	}
	for _, code := range []string{explain.CaveatMark, explain.CaveatUser, explain.CaveatBeyond} {
		if !strings.Contains(caveats(d), code) {
			t.Errorf("%q is not said in %s", code, caveats(d))
		}
	}
}

func caveats(d explain.Document) string {
	var out []string
	for _, c := range d.MayDiffer {
		out = append(out, c.Code)
	}
	return strings.Join(out, " ")
}

// TestKernelSaysSomethingElse: an answer that the simulation does not give is shown and said.
func TestKernelSaysSomethingElse(t *testing.T) {
	t.Parallel()
	f, flow := home(), questions["bound"]
	right := way(10001, "0.0.0.0/0", "10.91.0.1", wan1, 1<<30).Route
	f.Answers = []explain.Asked{{Flow: flow, Answer: lookup.Answer{Matched: []routing.Route{right}, Sent: right}}}
	if d := f.Explain(flow); !d.Asked || !d.Agrees || d.Lookups[0].Kernel.Difference != "" {
		t.Errorf("%+v", d.Lookups[0].Kernel)
	}
	wrong := way(10000, "0.0.0.0/0", "10.90.0.1", wan0, 1<<30).Route
	f.Answers[0].Answer = lookup.Answer{Matched: []routing.Route{wrong}, Sent: wrong}
	if d := f.Explain(flow); d.Agrees || d.Lookups[0].Kernel.Difference == "" {
		t.Errorf("%+v", d.Lookups[0].Kernel)
	}
}

// TestKernelPrefersDevice: IPv6 can only be asked for a packet that prefers a device. Where that leaves by
// another one, the summary says where a socket's packets leave.
func TestKernelPrefersDevice(t *testing.T) {
	t.Parallel()
	six := func(p routing.Priority, table routing.TableID, change func(*routing.Rule)) routing.Rule {
		r := routing.Rule{Family: routing.IPv6, Priority: p, Action: routing.ActionLookup, Table: table}
		change(&r)
		return r
	}
	f := &explain.Facts{}
	f.Family = routing.IPv6
	f.Interfaces = []lookup.Interface{{Index: 1, Name: routing.Loopback, Up: true}, {Index: wan0, Name: "wan0", Up: true}, {Index: wan1, Name: "wan1", Up: true}}
	own := routing.Route{Family: routing.IPv6, Type: local, Table: routing.TableLocal, Destination: prefix("2001:db8:2::1/128"), Device: 1, Protocol: routing.ProtocolKernel}
	out := routing.Route{Family: routing.IPv6, Type: routing.RouteUnicast, Table: 10001, Destination: prefix("::/0"), Gateway: addr("fe80::1"), Device: wan0, Protocol: routing.Multihomed}
	f.Rules = []routing.Rule{six(0, routing.TableLocal, func(*routing.Rule) {}), six(9500, 10001, func(r *routing.Rule) { r.OIF = "wan0" })}
	f.Tables = map[routing.TableID][]lookup.Candidate{routing.TableLocal: {{Route: own}}, 10001: {{Route: out}}}
	flow := lookup.Flow{To: addr("2001:db8:2::1"), From: addr("2001:db8:1::1"), OIF: "wan0"}
	f.Answers = []explain.Asked{{Flow: flow, Answer: lookup.Answer{Matched: []routing.Route{own}, Sent: own}}}
	d := f.Explain(flow)
	if want := "2001:db8:2::1 from 2001:db8:1::1 leaves by wan0 via fe80::1 (rule 9500, table 10001)"; d.Summary != want || d.Interface != "wan0" {
		t.Errorf("%q by %q, want %q", d.Summary, d.Interface, want)
	}
	if k := d.Lookups[0].Kernel; !d.Agrees || !k.PrefersDevice || k.Difference != "" || !strings.Contains(caveats(d), explain.CaveatSocket) {
		t.Errorf("%+v, %s", k, caveats(d))
	}
}

func TestWhatIf(t *testing.T) {
	t.Parallel()
	dead := home()
	for t, candidates := range dead.Tables {
		for n := range candidates {
			if candidates[n].Route.Device == wan1 && t != routing.TableLocal {
				candidates[n].Dead = true
			}
		}
	}
	gone := home()
	gone.Interfaces[2].Up = false
	for t, candidates := range gone.Tables {
		var rest []lookup.Candidate
		for _, c := range candidates {
			if c.Route.Device != wan1 {
				rest = append(rest, c)
			}
		}
		gone.Tables[t] = rest
	}
	down := func(name string) explain.Change { return explain.Change{Link: name} }
	up := func(name string) explain.Change { return explain.Change{Up: true, Link: name} }
	for _, c := range []struct {
		name     string
		facts    *explain.Facts
		changes  []explain.Change
		question string
		summary  string
		complete bool
	}{
		{"the other link", home(), []explain.Change{down("wan0")}, "bound", "203.0.113.1 from 10.91.0.120 leaves by wan1 via 10.91.0.1 (rule 10000, table 10001)", true},
		{"the tunnel", home(), []explain.Change{down("wg0")}, "unbound", "203.0.113.1 gets the address 10.90.0.120 and leaves by wan0 via 10.90.0.1 (rule 10000, table 10000)", true},
		{"tunnel and first provider", home(), []explain.Change{down("wg0"), down("wan0")}, "unbound", "203.0.113.1 gets the address 10.91.0.120 and leaves by wan1 via 10.91.0.1 (rule 10000, table 10001)", true},
		{"all", home(), []explain.Change{down("wg0"), down("wan0"), down("wan1")}, "unbound", "203.0.113.1 cannot be reached: no rule has a route", true},
		{"dead and alive again", dead, []explain.Change{up("wan1")}, "device", "203.0.113.1 leaves by wan1 via 10.91.0.1 with the address 10.91.0.120 (rule 9500, table 10001)", true},
		{"gone", gone, []explain.Change{up("wan1")}, "device", "203.0.113.1 leaves by wan1: no rule has a route, and the kernel takes the destination for a neighbour there; this is not certain, because facts are missing", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f, err := c.facts.WhatIf(c.changes)
			if err != nil {
				t.Fatal(err)
			}
			d := f.Explain(questions[c.question])
			if d.Summary != c.summary || d.Complete != c.complete || len(d.Assumptions) < len(c.changes) || len(d.WhatIf) != len(c.changes) {
				t.Errorf("%q, complete %v, assumed %q", d.Summary, d.Complete, d.Assumptions)
			}
		})
	}
	if _, err := home().WhatIf([]explain.Change{down("wan9")}); err == nil || !strings.Contains(err.Error(), "there are lo, wan0, wan1, wg0 and br0") {
		t.Error(err)
	}
	before, _ := json.Marshal(home().Explain(questions["bound"]))
	f := home()
	if _, err := f.WhatIf([]explain.Change{down("wan1")}); err != nil {
		t.Fatal(err)
	}
	if after, _ := json.Marshal(f.Explain(questions["bound"])); !bytes.Equal(before, after) {
		t.Error("the facts themselves were changed")
	}
}

// TestOtherName: sysctl(8) knows an interface by one name.
func TestOtherName(t *testing.T) {
	t.Parallel()
	f := home()
	f.Interfaces[1].AltNames, f.Interfaces[1].Config = []string{"enp1s0"}, lookup.Config{}
	d := f.Explain(lookup.Flow{To: addr("203.0.113.1"), From: addr("203.0.113.9"), IIF: "enp1s0"})
	if want := "203.0.113.1 from 203.0.113.9 is dropped: wan0 does not forward (net.ipv4.conf.wan0.forwarding)"; d.Summary != want {
		t.Errorf("%q, want %q", d.Summary, want)
	}
}

// TestStackedInWhatIf: what stands on an interface that is down, or has no other port, is down with it.
func TestStackedInWhatIf(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(f *explain.Facts)
		down   string
	}{
		"VLAN": {func(f *explain.Facts) { f.Interfaces[2].Lower = wan0 }, "wan0"},
		"VLAN, by another name": {func(f *explain.Facts) {
			f.Interfaces[2].Lower, f.Interfaces[1].AltNames = wan0, []string{"enp1s0"}
		}, "enp1s0"},
		"last port":        {func(f *explain.Facts) { f.Interfaces[1].Master = wan1 }, "wan0"},
		"loop":             {func(f *explain.Facts) { f.Interfaces[1].Lower, f.Interfaces[2].Lower = wan1, wan0 }, "wan0"},
		"other port works": {func(f *explain.Facts) { f.Interfaces[1].Master, f.Interfaces[3].Master = wan1, wan1 }, ""},
		"port of a VRF":    {func(f *explain.Facts) { f.Interfaces[1].Master, f.Interfaces[2].Table = wan1, 9 }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := home()
			c.change(f)
			after, err := f.WhatIf([]explain.Change{{Link: cmp.Or(c.down, "wan0")}})
			if err != nil {
				t.Fatal(err)
			}
			if isUp := after.Interfaces[2].Up; isUp != (c.down == "") {
				t.Errorf("wan1 is up: %v; %q", isUp, after.Explain(questions["bound"]).Assumptions)
			}
		})
	}
}

// TestFailoverInWhatIf: table F is empty while main's best default works.
func TestFailoverInWhatIf(t *testing.T) {
	t.Parallel()
	f := home()
	f.Rules = append(f.Rules[:len(f.Rules)-4:len(f.Rules)-4], base(32765, "", 10999), f.Rules[len(f.Rules)-2], f.Rules[len(f.Rules)-1])
	f.Tables[10999] = []lookup.Candidate{way(10999, "0.0.0.0/0", "10.91.0.1", wan1, 1<<30)}
	f.Notes.Links["wan0"].Dead["ipv4"] = true
	flow := lookup.Flow{To: addr("203.0.113.1"), From: addr("172.31.0.1")}
	if d := f.Explain(flow); d.Interface != "wan1" {
		t.Fatalf("%q", d.Summary)
	}
	better, err := f.WhatIf([]explain.Change{{Up: true, Link: "wan0"}})
	if err != nil {
		t.Fatal(err)
	}
	if d := better.Explain(flow); d.Interface != "wan0" || !d.Complete {
		t.Errorf("%q, %q", d.Summary, d.Assumptions)
	}
	delete(f.Notes.Links["wan0"].Dead, "ipv4")
	shares, err := f.WhatIf([]explain.Change{{Link: "wg0"}})
	if err != nil {
		t.Fatal(err)
	}
	if d := shares.Explain(flow); d.Interface != "wan1" {
		t.Errorf("uplinks that share traffic go on sharing: %q", d.Summary)
	}
}

// TestSuppressed: a kill switch of IPv6 does not hold where the kernel takes what the last rule suppresses.
func TestSuppressed(t *testing.T) {
	t.Parallel()
	f := &explain.Facts{}
	f.Family, f.Before72 = routing.IPv6, true
	f.Interfaces = []lookup.Interface{{Index: 1, Name: "lo", Up: true}, {Index: wan0, Name: "wan0", Up: true}}
	f.Rules = []routing.Rule{{Family: routing.IPv6, Priority: 32764, Action: routing.ActionLookup, Table: routing.TableMain, SuppressPrefixLength: routing.Some(0)}}
	f.Tables = map[routing.TableID][]lookup.Candidate{routing.TableMain: {{Route: routing.Route{
		Family: routing.IPv6, Type: routing.RouteUnicast, Table: routing.TableMain, Destination: prefix("::/0"), Gateway: addr("fe80::1"), Device: wan0,
	}}}}
	flow := lookup.Flow{To: addr("2600::1"), From: addr("2001:db8::7")}
	forwarded := flow
	forwarded.IIF = "wan0"
	if d := f.Explain(forwarded); !slices.ContainsFunc(d.MayDiffer, func(c explain.Caveat) bool { return c.Code == explain.CaveatUnasked }) {
		t.Errorf("a packet that comes in: %+v", d.MayDiffer)
	}
	for older, want := range map[bool]string{
		true: "2600::1 from 2001:db8::7 leaves by wan0 via fe80::1 (rule 32764, table main): the rule suppresses this route, " +
			"but no later rule looks up a table, and kernels before Linux 7.2 take the route all the same",
		false: "2600::1 from 2001:db8::7 cannot be reached: no rule has a route",
	} {
		f.Before72 = older
		if d := f.Explain(flow); d.Summary != want || d.Lookups[0].Rules[0].Result != explain.Suppressed {
			t.Errorf("older %v: %s\nwant %s\n%+v", older, d.Summary, want, d.Lookups[0].Rules)
		}
	}
}

// TestSnapshot wants the same explanation from a file.
func TestSnapshot(t *testing.T) {
	t.Parallel()
	s := explain.Snapshot{Version: "1.2.3", Taken: "2026-11-29T12:00:00Z", Question: questions["bound"], Facts: *home(), Partial: map[routing.TableID]bool{254: true}}
	right := way(10001, "0.0.0.0/0", "10.91.0.1", wan1, 1<<30).Route
	s.Facts.Interfaces[2].AltNames, s.Facts.Interfaces[2].Detached, s.Facts.Interfaces[3].Lower = []string{"enp2s0", "usb\x1b"}, []string{"usb\x1b"}, bridge
	s.Facts.Tables[10001][0].Nexthop, s.Facts.Before615, s.Facts.Before72 = 7, true, true
	s.Facts.Answers = []explain.Asked{{Flow: s.Question, Answer: lookup.Answer{Matched: []routing.Route{right}, Sent: right}}, {Flow: questions["unbound"], Answer: lookup.Answer{Missed: lookup.NetUnreachable, Unsent: lookup.NetUnreachable}}}
	data, err := explain.Save(s)
	if err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "snapshot.json", data)
	read, err := explain.Load(data)
	if err != nil {
		t.Fatal(err)
	}
	for name, q := range questions {
		want, _ := json.Marshal(s.Facts.Explain(q))
		if got, _ := json.Marshal(read.Facts.Explain(q)); !bytes.Equal(got, want) {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	again, err := explain.Save(*read)
	if err != nil || !bytes.Equal(again, data) {
		t.Errorf("%v: written again it is\n%s", err, again)
	}
	if err := read.Other(lookup.Flow{To: addr("2001:db8::1")}); err == nil {
		t.Error("a snapshot of IPv4 answers for IPv6")
	}
	if err := read.Other(questions["tunnel"]); err != nil {
		t.Error(err)
	}
	if d := read.Facts.Explain(questions["tunnel"]); d.Complete {
		t.Errorf("main is not whole, and nothing says so: %q", d.Summary)
	}
}

func TestSnapshotsThatAreNone(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/snapshot.json")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][3]string{
		"another schema":        {`"schema": 1`, `"schema": 2`, "has schema 2, this program reads 1"},
		"another kind":          {`"kind": "multihomed explain snapshot"`, `"kind": "x"`, "no snapshot"},
		"a rule of IPv6":        {`"family": 2`, `"family": 10`, "rule 1 of the snapshot"},
		"no family":             {`"family": 2`, `"family": 3`, "3 is no family"},
		"an unmasked network":   {`"dst": "10.90.0.0/24"`, `"dst": "10.90.0.1/24"`, "is no network"},
		"a name with a slash":   {`"name": "wan0"`, `"name": "wa/n0"`, "is no name"},
		"no destination":        {`"to": "203.0.113.1"`, `"to": ""`, "no destination"},
		"an error that is none": {`"missed": "network unreachable"`, `"missed": "x"`, "is no error"},
		"an index below zero":   {`"index": 2`, `"index": -2`, "-2 is no index"},
	} {
		if !bytes.Contains(data, []byte(c[0])) {
			t.Fatalf("%s: the snapshot has no %s", name, c[0])
		}
		if _, err := explain.Load(bytes.Replace(data, []byte(c[0]), []byte(c[1]), 1)); err == nil || !strings.Contains(err.Error(), c[2]) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := explain.Load(make([]byte, explain.Largest+1)); err == nil {
		t.Error("a file without end is read")
	}
}

// FuzzLoad: whatever a file holds, it is refused or explained, and written as it was read.
func FuzzLoad(f *testing.F) {
	data, err := os.ReadFile("testdata/snapshot.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"kind":"multihomed explain snapshot","schema":1,"question":{"to":"::1","oif":"a\\xff"},"rules":[{"family":10,"action":2,"goto":0,"not":true}]}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := explain.Load(data)
		if err != nil {
			return
		}
		d := s.Facts.Explain(s.Question)
		text, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		if d.Summary == "" || escape.Text(d.Summary) != d.Summary {
			t.Errorf("%q", d.Summary)
		}
		for _, i := range s.Facts.Interfaces[:min(3, len(s.Facts.Interfaces))] {
			for _, up := range []bool{true, false} {
				after, err := s.Facts.WhatIf([]explain.Change{{Up: up, Link: i.Name}})
				if err != nil {
					t.Fatal(err)
				}
				after.Explain(s.Question)
			}
		}
		saved, err := explain.Save(*s)
		if err != nil {
			t.Fatal(err)
		}
		again, err := explain.Load(saved)
		if err != nil {
			t.Fatalf("%v in what was written", err)
		}
		if other, err := json.Marshal(again.Facts.Explain(again.Question)); err != nil || !bytes.Equal(other, text) {
			t.Errorf("%v: %s, before %s", err, other, text)
		}
	})
}

// TestReplacement: what takes the place of a dead uplink is what the planner takes (Planner.decide).
func TestReplacement(t *testing.T) {
	t.Parallel()
	const wan2, wan3 = 8, 9
	house := func() *explain.Facts {
		f := home()
		f.Rules = append(f.Rules[:len(f.Rules)-4:len(f.Rules)-4], base(32765, "", 10999), f.Rules[len(f.Rules)-2], f.Rules[len(f.Rules)-1])
		f.Tables[10999] = []lookup.Candidate{way(10999, "0.0.0.0/0", "10.91.0.1", wan1, 1<<30)}
		wan0 := f.Notes.Links["wan0"]
		wan0.Dead["ipv4"] = true
		for n, device := range []int{wan2, wan3} {
			name, gateway, table := []string{"wan2", "wan3"}[n], []string{"10.92.0.1", "10.93.0.1"}[n], routing.TableID(10002+n)
			f.Interfaces = append(f.Interfaces, lookup.Interface{Index: device, Name: name, Up: true, Group: 28008})
			f.Addresses[device] = []netip.Prefix{prefix([]string{"10.92.0.120/24", "10.93.0.120/24"}[n])}
			f.Tables[table] = []lookup.Candidate{way(table, "0.0.0.0/0", gateway, device, 1<<30)}
			f.Tables[254] = append(f.Tables[254], way(254, "0.0.0.0/0", gateway, device, uint32(102+n)))
			f.Notes.Tables[table] = name
			f.Notes.Links[name] = explain.LinkNote{Role: "uplink", Dead: map[string]bool{}}
		}
		return f
	}
	note := func(f *explain.Facts, name string, change func(*explain.LinkNote)) {
		l := f.Notes.Links[name]
		change(&l)
		f.Notes.Links[name] = l
	}
	flow := lookup.Flow{To: addr("203.0.113.1"), From: addr("172.31.0.1")}
	down := func(names ...string) (out []explain.Change) {
		for _, name := range names {
			out = append(out, explain.Change{Link: name})
		}
		return out
	}
	for name, c := range map[string]struct {
		set  func(*explain.Facts)
		down []string
		want string
	}{
		"main's order":    {func(*explain.Facts) {}, []string{"wan1"}, "wan2"},
		"the best goes":   {func(*explain.Facts) {}, []string{"wan0"}, "wan1"},
		"preferred":       {func(f *explain.Facts) { note(f, "wan3", func(l *explain.LinkNote) { l.Preferred = 1 }) }, []string{"wan1"}, "wan3"},
		"metered is last": {func(f *explain.Facts) { note(f, "wan2", func(l *explain.LinkNote) { l.Metered = true }) }, []string{"wan1"}, "wan3"},
		"another is dead": {func(f *explain.Facts) { f.Notes.Links["wan2"].Dead["ipv4"] = true }, []string{"wan1"}, "wan3"},
		"without address": {func(f *explain.Facts) { delete(f.Addresses, wan2) }, []string{"wan1"}, "wan3"},
		"nothing works":   {func(*explain.Facts) {}, []string{"wan1", "wan2", "wan3"}, "wan0"},
		"shares": {func(f *explain.Facts) {
			for _, name := range []string{"wan0", "wan3"} {
				note(f, name, func(l *explain.LinkNote) { l.Weight = 1 })
			}
		}, []string{"wan1"}, "wan3"},
	} {
		f := house()
		c.set(f)
		after, err := f.WhatIf(down(c.down...))
		if err != nil {
			t.Fatal(err)
		}
		if d := after.Explain(flow); d.Interface != c.want || !d.Complete {
			t.Errorf("%s: %q, want %s; assumed %q", name, d.Summary, c.want, d.Assumptions)
		}
	}
}

// TestForeignSource6: IPv6 looks up for any source, and a socket may not have it.
func TestForeignSource6(t *testing.T) {
	t.Parallel()
	f := &explain.Facts{Addresses: map[int][]netip.Prefix{wan0: {prefix("2001:db8::120/64")}}}
	f.Family = routing.IPv6
	has := func(from string) bool {
		d := f.Explain(lookup.Flow{To: addr("2600::1"), From: addr(from)})
		return slices.ContainsFunc(d.MayDiffer, func(c explain.Caveat) bool { return c.Code == explain.CaveatSource })
	}
	if has("2001:db8::120") || !has("2001:db8::9") {
		t.Error("an address of this host and another one are alike")
	}
}
