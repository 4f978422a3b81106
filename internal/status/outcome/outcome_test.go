package outcome_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"multihomed/internal/status/outcome"
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
	local   []routing.Route
	tables  map[routing.TableID][]routing.Route
	missing func(routing.Op) bool
	ask     func(outcome.Probe) (outcome.Answer, error)
	partial map[routing.TableID]bool
	// front says that rules of ours stand before those of others with their priority.
	front bool
	// failover is what is judged.
	failover routing.Failover
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

// of are the routes of a family.
func of(f routing.Family, routes []routing.Route) []routing.Route {
	return slices.DeleteFunc(slices.Clone(routes), func(r routing.Route) bool { return r.Family != f })
}

// kernels is a route that the kernel made for an address.
func kernels(r routing.Route) routing.Route {
	r.Protocol = routing.ProtocolKernel
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
	local := slices.Clone(h.local)
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
		var defaults []routing.Route
		for _, r := range of(f, all) {
			if r.IsDefault() {
				defaults = append(defaults, r)
			}
		}
		p.SetDefaults(f, defaults)
	}
	p.SetFailover(h.failover)
	tables := map[routing.Family]map[routing.TableID][]routing.Route{
		routing.IPv4: {routing.TableMain: of(routing.IPv4, all), routing.TableLocal: of(routing.IPv4, local)},
		routing.IPv6: {routing.TableMain: of(routing.IPv6, all), routing.TableLocal: of(routing.IPv6, local)},
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
	mixed := map[routing.Family]map[routing.Priority][]routing.Rule{routing.IPv4: {}}
	for _, o := range h.others {
		order := []routing.Rule{o.Rule}
		for r := range p.Rules() {
			if r.Rule.Family == routing.IPv4 && r.Rule.Priority == o.Rule.Priority {
				order = append(order, r.Rule)
			}
		}
		if h.front {
			slices.Reverse(order)
		}
		mixed[routing.IPv4][o.Rule.Priority] = order
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
		Policy: p.Policy(), Plans: p, Interfaces: interfaces, Tables: tables, Mixed: mixed, Missing: missing, Ask: h.ask,
		Partial: map[routing.Family]map[routing.TableID]bool{routing.IPv4: h.partial},
	}), p
}

func (h *host) findings() []routing.Problem {
	j, p := h.judge()
	var strays []outcome.Stray
	for plan := range p.Links() {
		strays = append(strays, j.Link(&plan)...)
	}
	return outcome.Problems(strays, map[int]string{2: "wan0", 3: "wan1", 4: "lan", tunnel: "tun0", docker: "docker0"}, p.Policy())
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
		"a rule of somebody else behind ours of the same priority": func() *host {
			h := twoWANs()
			h.front = true
			h.tables[300] = []routing.Route{route(300, "0.0.0.0/0", tunnel, "")}
			return h.with(rule(routing.PrioritySource, 300))
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
		"a full tunnel at a priority of ours, before us": {
			func() *host {
				h := twoWANs()
				h.tables[200] = full
				return h.with(rule(routing.PrioritySource, 200))
			}(),
			outcome.RuleAhead, routing.Error, "", "10000: from all lookup 200", "wan0 and wan1 leaves by tun0", "between 20001 and 32764",
		},
		"another interface in the network of a link": {
			func() *host {
				h := twoWANs()
				h.main = append(h.main, kernels(route(254, "203.0.113.0/25", docker, "")))
				return h
			}(),
			outcome.GatewayElsewhere, routing.Error, "wan1", "203.0.113.0/25 dev docker0", "covers the gateway 203.0.113.1 of wan1: traffic bound to wan1 leaves by docker0", "give docker0 an address in another network than 203.0.113.0/25",
		},
		"the gateway behind a tunnel": {
			func() *host {
				h := twoWANs()
				h.main = append(h.main, route(254, "203.0.113.1/32", tunnel, ""))
				return h
			}(),
			outcome.GatewayElsewhere, routing.Error, "wan1", "203.0.113.1 dev tun0", "leaves by tun0", "ip -4 route del 203.0.113.1 dev tun0 table main",
		},
		"the gateway as an address of the host": {
			func() *host {
				h := twoWANs()
				r := route(routing.TableLocal, "203.0.113.1/32", docker, "")
				r.Type = 2
				h.local = append(h.local, kernels(r))
				return h
			}(),
			outcome.GatewayElsewhere, routing.Error, "wan1", "local 203.0.113.1 dev docker0", "does not leave this host", "take the address 203.0.113.1 away",
		},
		"the gateway as a local route": {
			func() *host {
				h := twoWANs()
				r := route(routing.TableLocal, "203.0.113.1/32", docker, "")
				r.Type = 2
				h.local = append(h.local, r)
				return h
			}(),
			outcome.GatewayElsewhere, routing.Error, "wan1", "local 203.0.113.1 dev docker0", "does not leave this host", "ip -4 route del local 203.0.113.1 dev docker0 table local",
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
			outcome.RuleOfSource, routing.Error, "wan1", "300: from all oif wan1 prohibit", "without a gateway", "ip -4 rule del priority 300",
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
	// Failover: to the other uplink while main's best is dead, unless the route is missing.
	h.failover = routing.Failover{Enabled: true}
	j, _ = h.judge()
	if device, table, _ := j.Unbound(routing.IPv4); device != "wan0" || table != routing.TableMain {
		t.Errorf("while all work, %s in table %s", device, table)
	}
	h.failover.Dead[0] = map[int]struct{}{2: {}}
	j, _ = h.judge()
	if device, table, sent := j.Unbound(routing.IPv4); device != "wan1" || table != 10999 || !sent {
		t.Errorf("wan0 is dead: %s in table %s, %t", device, table, sent)
	}
	h.missing = func(op routing.Op) bool { return op.Verb == routing.AddRoute && op.Route.Table == 10999 }
	j, _ = h.judge()
	if device, table, _ := j.Unbound(routing.IPv4); device != "wan0" || table != routing.TableMain {
		t.Errorf("wan0 is dead, and table F empty: %s in table %s", device, table)
	}
	h.missing = nil
	h.tables[300] = []routing.Route{route(300, "0.0.0.0/0", tunnel, "")}
	j, _ = h.with(rule(25000, 300)).judge()
	if device, table, _ := j.Unbound(routing.IPv4); device != "tun0" || table != 300 {
		t.Errorf("%s in table %s", device, table)
	}
}

// TestShared: an address that several uplinks have is named with the link that it leads to.
// Two networks that look the same are no matter, and neither is an address that a link
// without a default has, too.
func TestShared(t *testing.T) {
	t.Parallel()
	modem := func(name string, index int, gateway, address string, metric uint32) routing.Link {
		l := link(name, index, gateway, address)
		l.Routes[len(l.Routes)-1].Metric = metric
		return l
	}
	const gateway, one, other = "192.168.8.1", "192.168.8.100/24", "192.168.8.101/24"
	first, second, third := modem("usb0", 2, gateway, one, 600), modem("usb1", 3, gateway, one, 601), modem("usb2", 5, gateway, one, 602)
	change := func(l routing.Link, how func(*routing.Link)) routing.Link {
		l.Addresses = slices.Clone(l.Addresses)
		how(&l)
		return l
	}
	tunnelled := rule(100, 300)
	for name, c := range map[string]struct {
		host *host
		want string
	}{
		"two modems":   {&host{links: []routing.Link{first, second}}, "[{192.168.8.100 [usb0 usb1] usb0}]"},
		"the metric":   {&host{links: []routing.Link{modem("usb0", 2, gateway, one, 602), second}}, "[{192.168.8.100 [usb0 usb1] usb1}]"},
		"three modems": {&host{links: []routing.Link{first, second, third}}, "[{192.168.8.100 [usb0 usb1 usb2] usb0}]"},
		"a rule of somebody else": {
			(&host{links: []routing.Link{first, second}, tables: map[routing.TableID][]routing.Route{300: {route(300, "0.0.0.0/0", tunnel, "")}}}).with(tunnelled),
			"[{192.168.8.100 [usb0 usb1] tun0}]",
		},
		"nowhere": {
			(&host{links: []routing.Link{first, second}}).with(routing.Rule{Priority: 100, Action: routing.ActionUnreachable}), "[{192.168.8.100 [usb0 usb1] }]",
		},
		"one network":          {&host{links: []routing.Link{first, modem("usb1", 3, gateway, other, 601)}}, "[]"},
		"a LAN has it, too":    {&host{links: []routing.Link{first, link("lan", 4, "", one)}}, "[]"},
		"one is down":          {&host{links: []routing.Link{first, change(second, func(l *routing.Link) { l.Up = false })}}, "[]"},
		"one is brought up":    {&host{links: []routing.Link{first, change(second, func(l *routing.Link) { l.Pending = true })}}, "[]"},
		"one is no address":    {&host{links: []routing.Link{first, change(second, func(l *routing.Link) { l.Addresses[0].Failed = true })}}, "[]"},
		"a link has it twice":  {&host{links: []routing.Link{change(first, func(l *routing.Link) { l.Addresses = append(l.Addresses, l.Addresses[0]) })}}, "[]"},
		"nothing is shared":    {twoWANs(), "[]"},
		"its default has gone": {&host{links: []routing.Link{first, change(second, func(l *routing.Link) { l.Routes = l.Routes[:1]; l.WasUplink.Set(routing.IPv4, true) })}}, "[]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j, _ := c.host.judge()
			if got := fmt.Sprint(j.Shared()); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// TestSharedAsked: where the tables are not known, the kernel is.
func TestSharedAsked(t *testing.T) {
	t.Parallel()
	h := &host{links: []routing.Link{link("usb0", 2, "192.168.8.1", "192.168.8.100/24"), link("usb1", 3, "192.168.8.1", "192.168.8.100/24")}, partial: map[routing.TableID]bool{77: true}}
	h.ask = func(p outcome.Probe) (outcome.Answer, error) {
		if p.From.String() != "192.168.8.100" || p.Device != "" {
			t.Errorf("it asks for %+v", p)
		}
		return outcome.Answer{Device: 3}, nil
	}
	j, _ := h.with(rule(100, 77)).judge()
	if got := fmt.Sprint(j.Shared()); got != "[{192.168.8.100 [usb0 usb1] usb1}]" {
		t.Errorf("got %s", got)
	}
}

// TestRouters: who keeps verdicts sees that a route covers the router of one link, by which
// device whatever, and that the others are as they were.
func TestRouters(t *testing.T) {
	t.Parallel()
	routers := func(h *host) []string {
		var out []string
		j, p := h.judge()
		for plan := range p.Links() {
			out = append(out, j.Routers(&plan))
		}
		return out
	}
	before := routers(twoWANs())
	for _, device := range []int{4, tunnel} {
		h := twoWANs()
		h.main = append(h.main, route(254, "203.0.113.1/32", device, ""))
		if after := routers(h); after[0] != before[0] || after[1] == before[1] || after[2] != before[2] {
			t.Errorf("by %d: before %q, after %q", device, before, after)
		}
	}
}

// TestWordsOfTheFix: who is told to ask the kernel is given whole words.
func TestWordsOfTheFix(t *testing.T) {
	t.Parallel()
	four, six := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")
	for want, s := range map[string]outcome.Stray{
		"ip -4 route get 1.1.1.1 from 192.0.2.7":              {Probe: outcome.Probe{From: four, To: netip.MustParseAddr("1.1.1.1")}, Family: routing.IPv4},
		"ip -4 route get 1.1.1.1 oif wan0":                    {Probe: outcome.Probe{To: netip.MustParseAddr("1.1.1.1"), Device: "wan0"}, Family: routing.IPv4, Refused: true},
		"ip -6 route get 2a00:1::1 from 2001:db8::7 oif wan0": {Probe: outcome.Probe{From: six, To: netip.MustParseAddr("2a00:1::1"), Device: "wan0"}, Family: routing.IPv6, Device: "wan1"},
		"ip -6 route get 2a00:1::1 oif wan0":                  {Probe: outcome.Probe{To: netip.MustParseAddr("2a00:1::1"), Device: "wan0"}, Family: routing.IPv6, Device: "wan1"},
	} {
		s.Link = "wan0"
		found := outcome.Problems([]outcome.Stray{s}, nil, routing.DefaultPolicy())
		if len(found) != 1 || !strings.HasSuffix(found[0].Fix, ": "+want) {
			t.Errorf("%+v, want %q", found, want)
		}
	}
}

// TestSourceSpecificDefaults: a default for the sources of a network is one for them, for
// sockets that are bound to the device, and for what is bound to nothing.
func TestSourceSpecificDefaults(t *testing.T) {
	t.Parallel()
	host := func(source string) *host {
		l := link("wan0", 2, "", "2001:db8:1::7/64")
		r := route(routing.TableMain, "::/0", 2, "fe80::1")
		r.Source = prefix(source)
		l.Routes, l.Group = append(l.Routes, r), 28008
		l.WasUplink.Set(routing.IPv6, true)
		return &host{links: []routing.Link{l}, tables: map[routing.TableID][]routing.Route{}}
	}
	h := host("2001:db8:1::/56")
	j, p := h.judge()
	plans := slices.Collect(p.Links())
	if strays := j.Link(&plans[0]); len(strays) > 0 || !outcome.HasDefault(&plans[0], netip.MustParseAddr("2001:db8:1::7")) {
		t.Errorf("strays %+v of %+v", strays, plans[0].Routes)
	}
	if device, _, sent := j.Unbound(routing.IPv6); device != "wan0" || !sent {
		t.Errorf("unbound by %q, %t", device, sent)
	}
	// It is tried, and would be seen.
	h.missing = func(op routing.Op) bool {
		return op.Verb == routing.AddRoute && op.Route.Destination.Bits() == 0 && op.Route.Source.IsValid()
	}
	if got := h.findings(); len(got) != 1 || got[0].Link != "wan0" || !strings.Contains(got[0].Object, "default from 2001:db8:1::/56 via fe80::1") {
		t.Errorf("without the route: %+v", got)
	}
	j, p = host("2001:db8:2::/56").judge()
	plans = slices.Collect(p.Links())
	if strays := j.Link(&plans[0]); len(strays) > 0 || outcome.HasDefault(&plans[0], netip.MustParseAddr("2001:db8:1::7")) {
		t.Errorf("a default for others: strays %+v", strays)
	}
	if device, _, sent := j.Unbound(routing.IPv6); sent {
		t.Errorf("a default for others: unbound by %q", device)
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
