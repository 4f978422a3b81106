package reconcile_test

import (
	"net/netip"
	"testing"

	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// facts is a link of a test.
type facts struct {
	name      string
	addresses []string
	// gateways are defaults of main: the next hop and who made it.
	gateways map[string]routing.Protocol
	// known is a gateway that main does not have.
	known  string
	group  uint32
	down   bool
	tables routing.TableID
}

var sentencePolicy = routing.Policy{Tables: routing.TableRange{First: 10000, Last: 10099}, UplinkGroup: 28008, ContainerPrefixLength: 7}

// planOf asks the planner.
func planOf(f facts) routing.LinkPlan {
	if f.name == "" {
		return routing.LinkPlan{}
	}
	l := routing.Link{Name: f.name, Index: 2, Up: !f.down, Group: f.group, Intents: map[routing.Family]routing.Intent{}, Tables: map[routing.Key]routing.TableID{}}
	for _, a := range f.addresses {
		p := netip.MustParsePrefix(a)
		l.Addresses = append(l.Addresses, routing.Address{Prefix: p})
		l.Routes = append(l.Routes, routing.Route{
			Family: routing.FamilyOf(p.Addr()), Table: routing.TableMain, Type: routing.RouteUnicast, Protocol: routing.ProtocolKernel,
			Scope: routing.ScopeLink, Destination: p.Masked(), Device: 2,
		})
	}
	for g, protocol := range f.gateways {
		via := netip.MustParseAddr(g)
		l.Routes = append(l.Routes, routing.Route{
			Family: routing.FamilyOf(via), Table: routing.TableMain, Type: routing.RouteUnicast, Protocol: protocol,
			Destination: netip.PrefixFrom(routing.FamilyOf(via).HostAddresses().Addr(), 0), Gateway: via, Device: 2,
		})
	}
	if f.known != "" {
		l.Intents[routing.IPv4] = routing.Intent{Gateway: netip.MustParseAddr(f.known), NeverDefault: true}
	}
	table := max(f.tables, 10000)
	for _, k := range routing.Keys(l) {
		l.Tables[k] = table
		table++
	}
	p := routing.NewPlanner(sentencePolicy)
	p.Set(l)
	p.Take()
	plan, _ := p.Link(2)
	return plan
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	dhcp := func(g string) map[string]routing.Protocol {
		return map[string]routing.Protocol{g: routing.Protocol(16)}
	}
	home := facts{name: "enp2s0", addresses: []string{"192.168.8.20/24"}, gateways: dhcp("192.168.8.1")}
	for _, test := range []struct {
		name             string
		was, is          facts
		added, gone      int
		removed          string
		sentence, reason string
	}{
		{name: "nothing"},
		{name: "the same", was: home, is: home},
		{name: "an uplink", is: home, sentence: "uplink added, 192.168.8.20/24 by gateway 192.168.8.1 (DHCP) in table 10000"},
		{
			name: "a local link", is: facts{name: "lan0", addresses: []string{"10.0.0.1/24", "10.0.0.2/24"}},
			sentence: "local link added, 10.0.0.1/24 and 10.0.0.2/24 in table 10000", reason: "main has no default route through it, and no gateway is known",
		},
		{name: "gone", was: home, removed: "the interface is gone", sentence: "uplink removed (the interface is gone)"},
		{
			name: "another gateway", was: home, is: facts{name: "enp2s0", addresses: home.addresses, gateways: dhcp("192.168.8.254")},
			sentence: "gateway 192.168.8.1 removed, gateway 192.168.8.254 added (DHCP)",
		},
		{
			name: "a local link gets a gateway", was: facts{name: "enp2s0", addresses: home.addresses}, is: home,
			sentence: "gateway 192.168.8.1 added (DHCP), role local -> uplink", reason: "main has a default route via 192.168.8.1 through it",
		},
		{
			name: "a gateway of the profile", was: facts{name: "enp2s0", addresses: home.addresses}, is: facts{name: "enp2s0", addresses: home.addresses, known: "192.168.8.1"},
			sentence: "gateway 192.168.8.1 added (profile), role local -> uplink", reason: "its gateway is known: 192.168.8.1",
		},
		{
			name: "an address", was: home, is: facts{name: "enp2s0", addresses: []string{"192.168.8.20/24", "192.168.8.21/24"}, gateways: home.gateways},
			sentence: "address 192.168.8.21/24 added",
		},
		{
			name: "another network", was: home, is: facts{name: "enp2s0", addresses: []string{"192.168.9.5/24"}, gateways: dhcp("192.168.9.1"), tables: 10004},
			sentence: "address 192.168.8.20/24 removed, address 192.168.9.5/24 added, network moved from 192.168.8.0/24 (table 10000) to 192.168.9.0/24 (table 10004), gateway 192.168.8.1 removed, gateway 192.168.9.1 added (DHCP)",
		},
		{
			name: "IPv6 comes", was: home,
			is: facts{
				name: "enp2s0", addresses: []string{"192.168.8.20/24", "2001:db8::5/64"},
				gateways: map[string]routing.Protocol{"192.168.8.1": routing.Protocol(16), "fe80::1": routing.ProtocolRA},
			},
			sentence: "address 2001:db8::5/64 added, network 2001:db8::/64 (table 10001) added, gateway fe80::1 added (router advertisement)",
		},
		{
			name: "renamed", was: home, is: facts{name: "dsl0", addresses: home.addresses, gateways: home.gateways, tables: 10007},
			sentence: "renamed from enp2s0, network 192.168.8.0/24 moved from table 10000 to 10007",
		},
		{name: "routes", was: home, is: home, added: 3, gone: 1, sentence: "routes +3 -1"},
		{name: "only fewer routes", was: home, is: home, gone: 2, sentence: "routes -2"},
		{
			name: "somebody sets a group", was: home, is: facts{name: "enp2s0", addresses: home.addresses, gateways: home.gateways, group: 7},
			sentence: "interface group 28008 -> 7",
		},
		{
			name: "static instead of DHCP", was: home, is: facts{name: "enp2s0", addresses: home.addresses, gateways: map[string]routing.Protocol{"192.168.8.1": routing.ProtocolStatic}},
			sentence: "gateway 192.168.8.1 now named by static",
		},
		{
			name: "set down", was: home, is: facts{name: "enp2s0", addresses: home.addresses, gateways: home.gateways, down: true},
			sentence: "set down, gateway 192.168.8.1 removed",
		},
	} {
		sentence, reason := reconcile.Describe(planOf(test.was), planOf(test.is), test.added, test.gone, test.removed)
		if sentence != test.sentence || reason != test.reason {
			t.Errorf("%s:\ngot  %q, because %q\nwant %q, because %q", test.name, sentence, reason, test.sentence, test.reason)
		}
	}
}
