package outcome_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"multihomed/internal/outcome"
	"multihomed/routing"
	"multihomed/routing/lookup"
)

const (
	tunnel = 50
	docker = 51
)

// A host is two uplinks and a LAN by default, with tables as a kernel has them.
type host struct {
	links   []routing.Link
	others  []routing.ForeignRule
	main    []routing.Route
	tables  map[routing.TableID][]routing.Route
	missing func(routing.Op) bool
	ask     func(outcome.Probe) (outcome.Answer, error)
	partial map[routing.TableID]bool
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func route(table routing.TableID, to string, device int, gateway string) routing.Route {
	p := prefix(to)
	r := routing.Route{Family: routing.FamilyOf(p.Addr()), Table: table, Destination: p, Type: routing.RouteUnicast, Device: device}
	if gateway != "" {
		r.Gateway = netip.MustParseAddr(gateway)
	}
	return r
}

func link(name string, index int, gateway string, addresses ...string) routing.Link {
	l := routing.Link{Name: name, Index: index, Up: true, Group: 28008}
	if gateway == "" {
		l.Group = 0
	}
	for _, a := range addresses {
		p := prefix(a)
		l.Addresses = append(l.Addresses, routing.Address{Prefix: p})
		l.Routes = append(l.Routes, route(routing.TableMain, p.Masked().String(), index, ""))
	}
	if gateway != "" {
		l.Routes = append(l.Routes, route(routing.TableMain, "0.0.0.0/0", index, gateway))
	}
	return l
}

func twoWANs() *host {
	return &host{links: []routing.Link{
		link("wan0", 2, "198.51.100.1", "198.51.100.7/24"),
		link("wan1", 3, "203.0.113.1", "203.0.113.7/24"),
		link("lan", 4, "", "192.168.1.1/24"),
	}, tables: map[routing.TableID][]routing.Route{}}
}

func rule(p routing.Priority, table routing.TableID) routing.Rule {
	return routing.Rule{Family: routing.IPv4, Priority: p, Action: routing.ActionLookup, Table: table}
}

// with adds rules of others.
func (h *host) with(rules ...routing.Rule) *host {
	for _, r := range rules {
		r.Family = routing.IPv4
		if r.Action == 0 {
			r.Action = routing.ActionLookup
		}
		h.others = append(h.others, routing.ForeignRule{Rule: r})
	}
	return h
}

func (h *host) judge() (*outcome.Judge, *routing.Planner) {
	p := routing.NewPlanner(routing.DefaultPolicy())
	table := p.Policy().Tables.First
	local := []routing.Route{}
	all := slices.Clone(h.main)
	interfaces := []lookup.Interface{{Index: tunnel, Name: "tun0", Up: true}, {Index: docker, Name: "docker0", Up: true}}
	for _, l := range h.links {
		l.Tables = map[routing.Key]routing.TableID{}
		for _, k := range routing.Keys(l) {
			l.Tables[k] = table
			table++
		}
		all = append(all, l.Routes...)
		for _, a := range l.Addresses {
			r := route(routing.TableLocal, netip.PrefixFrom(a.Prefix.Addr(), a.Prefix.Addr().BitLen()).String(), l.Index, "")
			r.Type = 2
			local = append(local, r)
		}
		interfaces = append(interfaces, lookup.Interface{Index: l.Index, Name: l.Name, Group: l.Group, Up: l.Up})
		p.Set(l)
	}
	for _, f := range routing.Families() {
		rules := []routing.ForeignRule{
			{Rule: routing.Rule{Family: f, Priority: 0, Action: routing.ActionLookup, Table: routing.TableLocal}},
			{Rule: routing.Rule{Family: f, Priority: 32766, Action: routing.ActionLookup, Table: routing.TableMain}},
			{Rule: routing.Rule{Family: f, Priority: 32767, Action: routing.ActionLookup, Table: routing.TableDefault}},
		}
		if f == routing.IPv4 {
			rules = append(rules, h.others...)
			slices.SortStableFunc(rules, func(a, b routing.ForeignRule) int { return int(a.Rule.Priority) - int(b.Rule.Priority) })
		}
		p.SetForeign(f, rules)
	}
	tables := map[routing.Family]map[routing.TableID][]routing.Route{
		routing.IPv4: {routing.TableMain: all, routing.TableLocal: local}, routing.IPv6: {},
	}
	for t, routes := range h.tables {
		if p.Policy().Tables.Contains(t) {
			// Somebody else uses a table of ours: it is read, and has what is ours too.
			for r := range p.Routes() {
				if r.Route.Table == t {
					routes = append(routes, r.Route)
				}
			}
		}
		tables[routing.IPv4][t] = routes
	}
	var missing []routing.Op
	if h.missing != nil {
		for r := range p.Rules() {
			if op := (routing.Op{Verb: routing.AddRule, Rule: r.Rule}); h.missing(op) {
				missing = append(missing, op)
			}
		}
		for r := range p.Routes() {
			if op := (routing.Op{Verb: routing.AddRoute, Route: r.Route}); h.missing(op) {
				missing = append(missing, op)
			}
		}
	}
	return outcome.New(outcome.Facts{
		Policy: p.Policy(), Plans: p, Interfaces: interfaces, Tables: tables, Missing: missing, Ask: h.ask,
		Partial: map[routing.Family]map[routing.TableID]bool{routing.IPv4: h.partial},
	}), p
}

func (h *host) findings() []routing.Problem {
	j, p := h.judge()
	var strays []outcome.Stray
	for plan := range p.Links() {
		strays = append(strays, j.Link(&plan)...)
	}
	return outcome.Findings(strays, map[int]string{2: "wan0", 3: "wan1", 4: "lan", tunnel: "tun0", docker: "docker0"}, p.Policy())
}

func tailscale(h *host) *host {
	main, fallback := rule(5210, routing.TableMain), rule(5230, routing.TableDefault)
	mark := routing.Mark{Value: 0x80000, Mask: 0xff0000}
	main.Mark, fallback.Mark = mark, mark
	h.tables[52] = append(h.tables[52], route(52, "100.64.0.9/32", tunnel, ""))
	return h.with(main, fallback, routing.Rule{Priority: 5250, Mark: mark, Action: routing.ActionUnreachable}, rule(5270, 52))
}

// TestHealthyHosts: what people run beside each other, and nothing is wrong with.
func TestHealthyHosts(t *testing.T) {
	t.Parallel()
	from := func(p routing.Priority, source string, table routing.TableID) routing.Rule {
		r := rule(p, table)
		r.From = prefix(source)
		return r
	}
	to := func(p routing.Priority, destination string, table routing.TableID) routing.Rule {
		r := rule(p, table)
		r.To = prefix(destination)
		return r
	}
	marked := func(p routing.Priority, table routing.TableID) routing.Rule {
		r := rule(p, table)
		r.Mark = routing.Mark{Value: 1, Mask: 0xffffffff}
		return r
	}
	modem := func(name string, index int, address string) routing.Link {
		return link(name, index, "192.168.8.1", address)
	}
	for name, h := range map[string]*host{
		"two providers and a LAN": twoWANs(),
		"one provider":            {links: []routing.Link{link("wan0", 2, "198.51.100.1", "198.51.100.7/24")}},
		"a LAN alone":             {links: []routing.Link{link("lan", 2, "", "192.168.1.1/24")}},
		"no link":                 {},
		"docker": func() *host {
			h := twoWANs()
			h.main = append(h.main, route(254, "172.17.0.0/16", docker, ""))
			return h
		}(),
		"tailscale, no exit node": tailscale(twoWANs()),
		"tailscale, subnet routes": func() *host {
			h := tailscale(twoWANs())
			h.tables[52] = append(h.tables[52], route(52, "192.168.7.0/24", tunnel, ""))
			return h
		}(),
		"a split tunnel of a company": func() *host {
			h := twoWANs()
			h.main = append(h.main, route(254, "10.0.0.0/8", tunnel, ""), route(254, "11.0.0.0/8", tunnel, ""))
			return h
		}(),
		"OpenVPN, two halves": func() *host {
			h := twoWANs()
			h.main = append(h.main, route(254, "0.0.0.0/1", tunnel, ""), route(254, "128.0.0.0/1", tunnel, ""))
			return h
		}(),
		"wg-quick, all": func() *host {
			h := twoWANs()
			h.tables[51820] = []routing.Route{route(51820, "0.0.0.0/0", tunnel, "")}
			not := rule(32765, 51820)
			not.Invert, not.Mark = true, routing.Mark{Value: 0xca6c, Mask: 0xffffffff}
			suppress := rule(32764, routing.TableMain)
			suppress.SuppressPrefixLength = routing.Some(0)
			return h.with(suppress, not)
		}(),
		"a proxy by mark": func() *host {
			h := twoWANs()
			r := route(100, "0.0.0.0/0", 1, "")
			r.Type = 2
			h.tables[100] = []routing.Route{r}
			return h.with(marked(100, 100))
		}(),
		"a VPN for one destination": func() *host {
			h := twoWANs()
			h.tables[200] = []routing.Route{route(200, "0.0.0.0/0", tunnel, "")}
			return h.with(to(1000, "8.8.8.0/24", 200), to(30000, "192.0.2.0/24", 200))
		}(),
		"hand-made source rules": func() *host {
			h := twoWANs()
			h.tables[1] = []routing.Route{route(1, "0.0.0.0/0", 2, "198.51.100.1"), route(1, "198.51.100.0/24", 2, "")}
			return h.with(from(100, "198.51.100.7/32", 1))
		}(),
		"guests of a hypervisor": func() *host {
			h := twoWANs()
			h.main = append(h.main, route(254, "10.244.0.0/16", docker, ""), route(254, "198.51.100.9/32", docker, ""))
			return h.with(from(500, "10.244.0.0/16", 254))
		}(),
		"two routers with one network": {links: []routing.Link{modem("usb0", 2, "192.168.8.100/24"), modem("usb1", 3, "192.168.8.101/24")}},
		"two modems with one address":  {links: []routing.Link{modem("usb0", 2, "192.168.8.100/24"), modem("usb1", 3, "192.168.8.100/24")}},
		"policy routing behind us": func() *host {
			h := twoWANs()
			h.tables[300] = []routing.Route{route(300, "0.0.0.0/0", tunnel, "")}
			return h.with(rule(25000, 300))
		}(),
		"a dead provider": func() *host {
			h := twoWANs()
			h.links[1].Up = false
			return h
		}(),
		"an address under test": func() *host {
			h := twoWANs()
			h.links[0].Addresses[0].Tentative = true
			return h
		}(),
		"a local link with a static route": func() *host {
			h := twoWANs()
			h.links[2].Routes = append(h.links[2].Routes, route(254, "10.9.0.0/16", 4, "192.168.1.254"))
			return h
		}(),
		"a host address": {links: []routing.Link{link("wan0", 2, "10.0.0.1", "192.0.2.9/32")}},
	} {
		if h.tables == nil {
			h.tables = map[routing.TableID][]routing.Route{}
		}
		if got := h.findings(); len(got) > 0 {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestFaults: each fault is found, its object is named, and the fix is there.
func TestFaults(t *testing.T) {
	t.Parallel()
	full := []routing.Route{route(200, "0.0.0.0/0", tunnel, "")}
	missing := func(priority routing.Priority) func(routing.Op) bool {
		return func(op routing.Op) bool {
			return op.Verb == routing.AddRule && op.Rule.Priority == priority && (op.Rule.OIF == "wan0" || op.Rule.From == prefix("198.51.100.7/32"))
		}
	}
	for name, c := range map[string]struct {
		host     *host
		code     routing.Code
		severity routing.Severity
		link     string
		object   string
		text     string
		fix      string
	}{
		"a full tunnel in front": {
			func() *host { h := twoWANs(); h.tables[200] = full; return h.with(rule(5000, 200)) }(),
			outcome.RuleAhead, routing.Error, "", "5000: from all lookup 200", "wan0, wan1", "between 20001 and 32764",
		},
		"a rule in front that refuses": {
			twoWANs().with(routing.Rule{Priority: 5000, Action: routing.ActionProhibit}),
			outcome.RuleAhead, routing.Error, "", "5000: from all prohibit", "refused", "between",
		},
		"a rule in front that jumps": {
			twoWANs().with(routing.Rule{Priority: 5000, Action: routing.ActionGoto, Goto: 32766}),
			outcome.RuleAhead, routing.Error, "wan1", "5000: from all goto 32766", "", "between",
		},
		"an exit node": {
			func() *host {
				h := tailscale(twoWANs())
				h.tables[52] = append(h.tables[52], route(52, "0.0.0.0/0", tunnel, ""))
				return h
			}(),
			outcome.RuleAhead, routing.Error, "", "5270: from all lookup 52", "tun0", "between",
		},
		"an exit node in pieces": {
			func() *host {
				h := twoWANs()
				for n := 1; n < 224; n++ {
					h.tables[52] = append(h.tables[52], route(52, fmt.Sprintf("%d.0.0.0/8", n), tunnel, ""))
				}
				return h.with(rule(5270, 52))
			}(),
			outcome.RuleAhead, routing.Error, "", "5270: from all lookup 52", "221 of 221", "between",
		},
		"a rule for the source": {
			func() *host {
				h := twoWANs()
				h.tables[200] = full
				r := rule(30000, 200)
				r.From = prefix("198.51.100.0/24")
				return h.with(r)
			}(),
			outcome.RuleOfSource, routing.Error, "wan0", "30000: from 198.51.100.0/24 lookup 200", "tun0", "ip -4 rule del priority 30000",
		},
		"a rule for the device": {
			twoWANs().with(routing.Rule{Priority: 300, OIF: "wan1", Action: routing.ActionProhibit}),
			outcome.RuleOfSource, routing.Error, "wan1", "300: from all oif wan1 prohibit", "refused", "ip -4 rule del priority 300",
		},
		"a VPN that takes a link's own network": {
			func() *host {
				h := twoWANs()
				h.tables[200] = full
				r := rule(30000, 200)
				r.To = prefix("203.0.113.0/24")
				return h.with(r)
			}(),
			outcome.RuleOfSource, routing.Error, "wan1", "30000: from all to 203.0.113.0/24 lookup 200", "its own gateway", "ip -4 rule del priority 30000",
		},
		"a VPN that knows the LAN": {
			func() *host {
				h := tailscale(twoWANs())
				h.tables[52] = append(h.tables[52], route(52, "192.168.1.0/24", tunnel, ""))
				return h
			}(),
			outcome.RuleAhead, routing.Error, "lan", "5270: from all lookup 52", "its own gateway", "between",
		},
		"a default in pieces": {
			func() *host {
				h := twoWANs()
				for _, p := range []string{"64.0.0.0/8", "65.0.0.0/8", "66.0.0.0/8"} {
					h.main = append(h.main, route(254, p, tunnel, ""))
				}
				return h
			}(),
			outcome.RouteAhead, routing.Notice, "", "routes of main through tun0", "3 of 221", "AllowedIPs",
		},
		"main refuses": {
			func() *host {
				h := twoWANs()
				r := route(254, "0.0.0.0/0", 0, "")
				r.Type, r.Metric = 8, 5
				for i := range h.links {
					for n := range h.links[i].Routes {
						h.links[i].Routes[n].Metric = 100
					}
				}
				h.main = append(h.main, r)
				return h
			}(),
			outcome.RejectDefault, routing.Error, "", "prohibit default metric 5", "refused", "ip -4 route del prohibit default metric 5",
		},
		"somebody else's route in our table": {
			func() *host {
				h := twoWANs()
				h.tables[10000] = []routing.Route{route(10000, "8.0.0.0/7", tunnel, "")}
				return h
			}(),
			outcome.TableInUse, routing.Error, "wan0", "8.0.0.0/7 dev tun0 in table 10000", "tun0", "ip -4 route del 8.0.0.0/7 dev tun0 table 10000",
		},
		"the rule of the source is missing": {
			func() *host { h := twoWANs(); h.missing = missing(routing.PrioritySource); return h }(),
			outcome.Astray, routing.Error, "wan0", "rule 10000: from 198.51.100.7 lookup 10000", "refused", "systemctl restart multihomed",
		},
		"the rule of the device is missing": {
			func() *host {
				h := twoWANs()
				h.missing = missing(routing.PriorityDevice)
				h.links[0].Routes = h.links[0].Routes[:1]
				h.links[0].WasUplink.Set(routing.IPv4, true)
				h.links[0].Intents = map[routing.Family]routing.Intent{routing.IPv4: {Gateway: netip.MustParseAddr("198.51.100.1")}}
				return h
			}(),
			outcome.Astray, routing.Error, "wan0", "rule 9500: from all oif wan0 lookup 10000", "", "systemctl restart multihomed",
		},
		"the default of a table is missing": {
			func() *host {
				h := twoWANs()
				h.missing = func(op routing.Op) bool {
					return op.Verb == routing.AddRoute && op.Route.Device == 2 && op.Route.IsDefault()
				}
				return h
			}(),
			outcome.Astray, routing.Error, "wan0", "route default via 198.51.100.1 dev wan0", "", "systemctl restart multihomed",
		},
	} {
		got := c.host.findings()
		if !slices.ContainsFunc(got, func(p routing.Problem) bool {
			return p.Code == c.code && p.Severity == c.severity && p.Link == c.link && strings.Contains(p.Object, c.object) &&
				strings.Contains(p.Text, c.text) && strings.Contains(p.Fix, c.fix) && p.Fix != ""
		}) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestAskedOfTheKernel: what the facts do not tell is asked, and only that.
func TestAskedOfTheKernel(t *testing.T) {
	t.Parallel()
	h := twoWANs()
	asked := 0
	h.ask = func(outcome.Probe) (outcome.Answer, error) {
		asked++
		return outcome.Answer{Device: tunnel, Table: 77}, nil
	}
	if got := h.findings(); len(got) > 0 || asked > 0 {
		t.Errorf("asked %d times: %+v", asked, got)
	}
	h.partial = map[routing.TableID]bool{77: true}
	got := h.with(rule(5000, 77)).findings()
	if asked == 0 || len(got) != 1 || got[0].Code != outcome.RuleAhead || got[0].Object != "5000: from all lookup 77" {
		t.Errorf("asked %d times: %+v", asked, got)
	}
	h.ask = func(p outcome.Probe) (outcome.Answer, error) {
		device := map[string]int{"wan0": 2, "wan1": 3, "lan": 4}[p.Device]
		for _, l := range h.links {
			if l.Addresses[0].Prefix.Addr() == p.From {
				device = l.Index
			}
		}
		return outcome.Answer{Device: device, Table: 10000}, nil
	}
	if got := h.findings(); len(got) > 0 {
		t.Errorf("the kernel says that all is well: %+v", got)
	}
}

// TestUnbound: the link that is used for what is bound to nothing.
func TestUnbound(t *testing.T) {
	t.Parallel()
	h := twoWANs()
	j, _ := h.judge()
	if device, table, sent := j.Unbound(routing.IPv4); device != "wan0" || table != routing.TableMain || !sent {
		t.Errorf("%s in table %s, %t", device, table, sent)
	}
	if device, _, sent := j.Unbound(routing.IPv6); sent {
		t.Errorf("IPv6 by %s", device)
	}
	h.tables[300] = []routing.Route{route(300, "0.0.0.0/0", tunnel, "")}
	j, _ = h.with(rule(25000, 300)).judge()
	if device, table, _ := j.Unbound(routing.IPv4); device != "tun0" || table != 300 {
		t.Errorf("%s in table %s", device, table)
	}
}

// TestEnvironment: a change of one link leaves the verdicts about the others.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	h := twoWANs()
	before, _ := h.judge()
	h.links[1].Addresses = append(h.links[1].Addresses, routing.Address{Prefix: prefix("203.0.113.8/24")})
	after, _ := h.judge()
	if !before.Environment().Same(after.Environment()) {
		t.Error("an address more on wan1 changed what is common to all")
	}
	h.tables[300] = []routing.Route{route(300, "0.0.0.0/0", tunnel, "")}
	after, _ = h.with(rule(25000, 300)).judge()
	if before.Environment().Same(after.Environment()) {
		t.Error("a rule of somebody else changed nothing")
	}
}

// BenchmarkLink is one link of many.
func BenchmarkLink(b *testing.B) {
	h := &host{tables: map[routing.TableID][]routing.Route{}}
	for n := range 400 {
		h.links = append(h.links, link(fmt.Sprintf("wan%d", n), n+100, fmt.Sprintf("10.%d.%d.1", n/200, n%200), fmt.Sprintf("10.%d.%d.7/24", n/200, n%200)))
	}
	j, p := h.judge()
	plans := slices.Collect(p.Links())
	b.ResetTimer()
	for i := range b.N {
		if s := j.Link(&plans[i%len(plans)]); len(s) > 0 {
			b.Fatalf("%+v", s)
		}
	}
}
