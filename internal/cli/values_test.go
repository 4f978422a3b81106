package cli_test

import (
	"net/netip"
	"time"

	"multihomed/internal/cli"
	"multihomed/internal/metrics/metricstest"
	"multihomed/internal/status"
	"multihomed/routing"
)

func address(text string, flags ...string) cli.Address {
	p := netip.MustParsePrefix(text)
	return cli.Address{Address: p.Addr(), Length: p.Bits(), Flags: append([]string{}, flags...)}
}

func network(prefix string, table uint32, via string, addresses ...cli.Address) cli.Network {
	n := cli.Network{Family: "ipv4", Prefix: netip.MustParsePrefix(prefix), Table: table, Addresses: addresses, Gateways: []cli.Gateway{}}
	if n.Prefix.Addr().Is6() {
		n.Family = "ipv6"
	}
	if n.Prefix.IsSingleIP() {
		n.Prefix, n.HostAddresses = netip.Prefix{}, true
	}
	switch via {
	case "":
	case "link":
		n.Gateways = append(n.Gateways, cli.Gateway{})
	default:
		n.Gateways = append(n.Gateways, cli.Gateway{Via: new(netip.MustParseAddr(via))})
	}
	return n
}

func rule4(state, text, reason string) cli.Object {
	return cli.Object{Kind: "rule", Family: "ipv4", State: status.State(state), Text: text, Reason: reason}
}

func lift(state, text, whose string) cli.Object {
	o := rule4(state, text, "lift")
	o.Lifts = whose
	return o
}

func all(n int) cli.Count { return cli.Count{Planned: n, Present: n} }

func empty() cli.Status {
	return cli.Status{
		Schema: 1, OK: true, Version: "1.2.3",
		Tables: cli.Range{First: 10000, Last: 10999}, UplinkGroup: 28008,
		Links: []cli.Link{}, Shared: []cli.Object{}, Others: []cli.Other{}, Problems: []cli.Problem{}, Unread: []string{},
		By: "daemon", Unbound: map[string]cli.Unbound{}, OtherRules: []cli.OtherRule{},
	}
}

// sound is a host on which everything is as it should be.
func sound() cli.Status {
	s := empty()
	s.Daemon = cli.Daemon{
		Running: true, PID: 812, Version: "1.2.3", Ready: true,
		Started: new(time.Date(2026, 11, 20, 8, 30, 0, 0, time.UTC)),
	}
	s.NetworkManager = cli.Manager{Running: true, Version: "1.42.4", Complete: true}
	s.Counters = metricstest.Full().Counters
	s.InForce = all(45)
	s.Links = []cli.Link{
		{
			Interface: "wan0", Index: 2, Role: "uplink", RoleWhy: "main has a default route via 198.51.100.1 through it", Why: `connected, profile "Fibre"`, Profile: "Fibre", Type: "ethernet",
			Up: true, Carrier: true, Group: 28008, InForce: all(16),
			Networks: []cli.Network{
				network("198.51.100.0/24", 10000, "198.51.100.1", address("198.51.100.7/24", "dynamic")),
				network("2001:db8:0:1::/64", 10001, "fe80::1",
					address("2001:db8:0:1:a00:27ff:fe4e:66a1/64", "dynamic"),
					address("2001:db8:0:1:d5f2:9a1c:33b7:8e04/64", "temporary", "dynamic"),
					address("2001:db8:0:1:1c0e:7d2a:90fb:41c6/64", "deprecated", "temporary", "dynamic")),
			},
			LeftAlone: map[string]string{}, Unused: []cli.Address{},
			Objects: []cli.Object{
				rule4("in force", "9500: from all oif wan0 lookup 10000", "device"),
				rule4("in force", "10000: from 198.51.100.7 lookup 10000", "source"),
				{Kind: "route", Family: "ipv4", State: "in force", Text: "default via 198.51.100.1 dev wan0 table 10000 src 198.51.100.7", Reason: "copied"},
				{Kind: "group", State: "in force", Text: "link wan0 group 28008", Reason: "uplink-group"},
			},
		},
		{
			Interface: "wwan0", Index: 5, Role: "uplink", RoleWhy: "its owner knows a default route", Why: `connected, profile "LTE"`, Profile: "LTE", Type: "gsm",
			Up: true, Carrier: true, Group: 28008, InForce: all(8),
			Networks:  []cli.Network{network("10.120.4.9/32", 10004, "link", address("10.120.4.9/32"))},
			LeftAlone: map[string]string{"ipv6": `profile "LTE" sets ipv6.route-table=77`}, Unused: []cli.Address{}, Objects: []cli.Object{},
		},
		{
			Interface: "lan0", Index: 3, Role: "local", RoleWhy: "main has no default route through it, and no gateway is known", Why: `connected, profile "Office"`, Profile: "Office", Type: "bridge",
			Up: true, Carrier: true, InForce: all(4),
			Networks:  []cli.Network{network("192.168.10.0/24", 10002, "", address("192.168.10.1/24")), network("10.7.7.1/32", 10005, "", address("10.7.7.1/32"), address("10.7.7.2/32"))},
			LeftAlone: map[string]string{}, Unused: []cli.Address{}, Objects: []cli.Object{},
		},
	}
	s.Unbound = map[string]cli.Unbound{"ipv4": {Interface: "wan0", Table: 254}, "ipv6": {Interface: "wg0", Table: 51820}}
	s.Links[0].Since = new(time.Date(2026, 11, 20, 8, 30, 1, 0, time.UTC))
	s.OtherRules = []cli.OtherRule{
		{Family: "ipv4", Text: "30000: from all fwmark 0x1/0x1 lookup 100", Place: "selects"},
		{Family: "ipv6", Text: "32765: not from all fwmark 0xca6c lookup 51820", Place: "behind"},
	}
	s.Shared = []cli.Object{
		lift("in force", "8500: from all fwmark 0x80000001/0x80000001 goto 30000", "30000: from all fwmark 0x1/0x1 lookup 100"),
		lift("in force", "8500: from all to 192.0.2.5 iif lo goto 30001", "30001: from all to 192.0.2.5 iif lo lookup 101"),
	}
	s.Others = []cli.Other{
		{Interface: "docker0", Why: "it is external: somebody else configured it"},
		{Interface: "eth7", Why: "unavailable"},
		{Interface: "wg0", Why: "it is a VPN (wireguard)"},
	}
	return s
}

// broken is a host on which much is wrong.
func broken() cli.Status {
	s := sound()
	s.OK = false
	s.InForce = cli.Count{Planned: 45, Present: 33, Unexpected: 1}
	s.Links[0].InForce = cli.Count{Planned: 16, Present: 14, Unexpected: 1}
	s.Links[0].Objects[1].State = "missing"
	s.Links[0].Objects[2].State = "different"
	s.Links[0].Objects = append(s.Links[0].Objects, rule4("unexpected", "10000: from 198.51.100.9 lookup 10000", ""))
	s.Links[0].Unused = []cli.Address{address("198.51.100.8/24", "duplicate")}
	s.Links[0].Networks[1].Gateways = []cli.Gateway{}
	s.Links[1].InForce = cli.Count{Planned: 8}
	s.Links[1].Up, s.Links[1].Networks[0].Table, s.Links[1].Networks[0].Gateways = false, 0, nil
	s.Links[2].Draining, s.Links[2].Why = true, "deactivating"
	s.Links[2].InForce.Present = 2
	s.Shared[0].State, s.Shared[1].State = "misplaced", "yields"
	s.Tell([]routing.Problem{
		{Code: "not-in-force", Severity: routing.Error, Text: "12 of 45 rules and routes are not in force, and 1 rule or route of multihomed belongs to no link although multihomed is running", Fix: "look for the reason: journalctl -u multihomed"},
		{Code: "duplicate-address", Severity: routing.Error, Link: "wan0", Text: "address 198.51.100.8 is used by another host (duplicate address detection failed)", Fix: "give one of the two another address, then: nmcli device reapply wan0"},
		{Code: "arp", Severity: routing.Warning, Link: "lan0", Text: "lan0 and lan1 are in one network (192.168.10.0/24) and each answers ARP for the addresses of the others: packets for one link may arrive on another", Fix: "sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2"},
		{Code: "no-default", Severity: routing.Notice, Link: "wan0", Text: `no default route is known for 2001:db8:0:1::/64: packets from there reach only the networks in table 10001, and get "unreachable" for all others`},
		{Code: "rule-ahead", Severity: routing.Error, Object: "5270: from all lookup 52", Text: `the ipv4 rule "5270: from all lookup 52" is not of multihomed, comes before its rules and takes nearly every packet: traffic bound to wan0 and wwan0 leaves by tailscale0 instead, on its way to the internet`, Fix: "give that rule a priority between 20001 and 32764: traffic that is bound to no link still follows it there"},
	})
	for i := range s.Problems {
		s.Problems[i].Since = new(time.Date(2026, 11, 21, 7, 0, 0, 0, time.UTC))
	}
	return s
}

// alone is a host without the daemon, seen by a user without rights; somebody
// chose names that want to play tricks on the terminal.
func alone() cli.Status {
	s := sound()
	s.Daemon = cli.Daemon{}
	s.Links = s.Links[:1]
	s.Links[0].Profile = "Fibre\x1b]0;owned\a\u202e"
	s.Links[0].Carrier = false
	s.InForce = all(20)
	s.Others = s.Others[:1]
	s.By = "multihomectl"
	s.Tell([]routing.Problem{{Code: "daemon", Severity: routing.Warning, Text: "multihomed is not running: its hooks follow links that come, go or get another lease, and nobody follows other changes of addresses, routes and rules", Fix: "systemctl enable --now multihomed"}})
	s.Unread = []string{"this user may not read the leases in /var/lib/multihomed/leases.db; table numbers were taken from the rules and routes in the kernel"}
	return s
}

// waiting is a host on which neither service is ready.
func waiting() cli.Status {
	s := empty()
	s.Daemon = cli.Daemon{Running: true, PID: 812, Version: "1.2.3", Waiting: "NetworkManager is not running"}
	s.NetworkManager = cli.Manager{Error: "system bus: connecting: system bus not found"}
	s.Links = []cli.Link{{
		Interface: "wan0", Index: 2, Role: "uplink", Up: true, Carrier: true, Group: 28008, InForce: all(1),
		Networks: []cli.Network{}, LeftAlone: map[string]string{}, Unused: []cli.Address{}, Objects: []cli.Object{},
	}}
	s.InForce = all(1)
	s.Unread = []string{"NetworkManager: system bus: connecting: system bus not found"}
	return s
}
