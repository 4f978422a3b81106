package routing_test

import (
	"fmt"
	"net/netip"

	"multihomed/routing"
)

// What the kernel must hold for one uplink with one IPv4 address.
func ExamplePlan() {
	key := routing.Key{Family: routing.IPv4, Interface: "wan0", Prefix: netip.MustParsePrefix("192.0.2.0/24")}
	plan := routing.Plan(routing.DefaultPolicy(), []routing.Link{{
		Name: "wan0", Index: 2, Up: true,
		Addresses: []routing.Address{{Prefix: netip.MustParsePrefix("192.0.2.10/24")}},
		Routes: []routing.Route{
			{Family: routing.IPv4, Table: routing.TableMain, Destination: key.Prefix, Device: 2, Type: routing.RouteUnicast, Scope: 253},
			{Family: routing.IPv4, Table: routing.TableMain, Destination: routing.IPv4.Any(), Gateway: netip.MustParseAddr("192.0.2.1"), Device: 2, Type: routing.RouteUnicast, Metric: 100},
		},
		Tables: map[routing.Key]routing.TableID{key: 10000},
	}})
	for r := range plan.Rules() {
		fmt.Println(r.Rule)
	}
	// Output:
	// 9020: from 192.0.2.10 lookup main suppress_prefixlength 7 suppress_ifgroup 28008
	// 9500: from all oif wan0 lookup 10000
	// 10000: from 192.0.2.10 lookup 10000
	// 10500: from 192.0.2.10 unreachable
	// 91000: from all iif lo lookup 10000
}
