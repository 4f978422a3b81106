package lookup_test

import (
	"fmt"
	"net/netip"

	"multihomed/routing"
	"multihomed/routing/lookup"
)

// A host with two uplinks. Main's default leads through wan0; the rule sends what has
// wan1's address through wan1.
func ExampleHost_Lookup() {
	host := lookup.Host{
		Interfaces: []lookup.Interface{{Index: 2, Name: "wan0", Up: true}, {Index: 3, Name: "wan1", Up: true}},
		Rules: []routing.Rule{
			{
				Family: routing.IPv4, Priority: routing.PrioritySource, From: netip.MustParsePrefix("198.51.100.10/32"),
				Action: routing.ActionLookup, Table: 10001,
			},
			{Family: routing.IPv4, Priority: 32766, Action: routing.ActionLookup, Table: routing.TableMain},
		},
		Tables: map[routing.Family]map[routing.TableID][]routing.Route{routing.IPv4: {
			routing.TableMain: {{Family: routing.IPv4, Table: routing.TableMain, Destination: routing.IPv4.Any(), Type: routing.RouteUnicast, Gateway: netip.MustParseAddr("192.0.2.1"), Device: 2}},
			10001:             {{Family: routing.IPv4, Table: 10001, Destination: routing.IPv4.Any(), Type: routing.RouteUnicast, Gateway: netip.MustParseAddr("198.51.100.1"), Device: 3}},
		}},
	}
	to := netip.MustParseAddr("203.0.113.7")
	for _, from := range []string{"192.0.2.10", "198.51.100.10"} {
		v := host.Lookup(lookup.Flow{From: netip.MustParseAddr(from), To: to})
		fmt.Println(from, "by", v.Route.Gateway, "through wan1:", v.Through(3))
	}
	// Output:
	// 192.0.2.10 by 192.0.2.1 through wan1: false
	// 198.51.100.10 by 198.51.100.1 through wan1: true
}
