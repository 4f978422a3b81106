package routing_test

import (
	"fmt"
	"slices"
	"testing"

	"multihomed/routing"
)

// TestLegs: what main has as legs of one route is one route of the table, as far as our
// table can hold it so.
func TestLegs(t *testing.T) {
	t.Parallel()
	leg := func(destination, gateway string, weight uint16, change ...func(*routing.Route)) part {
		return func(l *routing.Link) {
			route(destination, gateway, 100)(l)
			r := &l.Routes[len(l.Routes)-1]
			r.Weight = weight
			for _, c := range change {
				c(r)
			}
		}
	}
	encapsulated := func(r *routing.Route) {
		r.Attributes = routing.RareAttributes{EncapsulationType: 1, Encapsulation: "x"}.Share()
	}
	mtu := func(v uint32) func(*routing.Route) {
		return func(r *routing.Route) {
			r.Attributes = r.Attributes.With(func(a *routing.RareAttributes) { a.Metrics[2] = v })
		}
	}
	other := func(r *routing.Route) { r.Protocol = 17 }
	const first = " metric 1073741824"
	for name, c := range map[string]struct {
		legs []part
		want []string
	}{
		"one":                       {[]part{leg(default4, "10.0.0.1", 3)}, []string{"default via 10.0.0.1 dev if2 table 10000 src 10.0.0.5" + first}},
		"two":                       {[]part{leg(default4, "10.0.0.2", 1), leg(default4, "10.0.0.1", 3)}, []string{"default table 10000 src 10.0.0.5" + first + " nexthop via 10.0.0.1 dev if2 weight 3 nexthop via 10.0.0.2 dev if2 weight 1"}},
		"the same twice":            {[]part{leg(default4, "10.0.0.1", 1), leg(default4, "10.0.0.1", 3)}, []string{"default table 10000 src 10.0.0.5" + first + " nexthop via 10.0.0.1 dev if2 weight 1 nexthop via 10.0.0.1 dev if2 weight 3"}},
		"large shares of a group":   {[]part{leg(default4, "10.0.0.1", 1000), leg(default4, "10.0.0.2", 500), leg(default4, "10.0.0.3", 1)}, []string{"default table 10000 src 10.0.0.5" + first + " nexthop via 10.0.0.1 dev if2 weight 256 nexthop via 10.0.0.2 dev if2 weight 128 nexthop via 10.0.0.3 dev if2 weight 1"}},
		"an MTU for all":            {[]part{leg(default4, "10.0.0.1", 1, mtu(1400)), leg(default4, "10.0.0.2", 1, mtu(1400))}, []string{"default table 10000 src 10.0.0.5" + first + " mtu 1400 nexthop via 10.0.0.1 dev if2 weight 1 nexthop via 10.0.0.2 dev if2 weight 1"}},
		"encapsulated":              {[]part{leg(default4, "10.0.0.1", 3, encapsulated), leg(default4, "10.0.0.2", 1)}, []string{"default via 10.0.0.1 dev if2 table 10000 src 10.0.0.5" + first, "default via 10.0.0.2 dev if2 table 10000 src 10.0.0.5 metric 1073741825"}},
		"appended by somebody":      {[]part{leg(default4, "10.0.0.1", 0), leg(default4, "10.0.0.2", 0)}, []string{"default via 10.0.0.1 dev if2 table 10000 src 10.0.0.5" + first, "default via 10.0.0.2 dev if2 table 10000 src 10.0.0.5 metric 1073741825"}},
		"legs of two":               {[]part{leg(default4, "10.0.0.1", 1), leg(default4, "10.0.0.3", 1, other), leg(default4, "10.0.0.2", 1), leg(default4, "10.0.0.4", 1, other)}, []string{"default table 10000 src 10.0.0.5" + first + " nexthop via 10.0.0.1 dev if2 weight 1 nexthop via 10.0.0.2 dev if2 weight 1", "default table 10000 src 10.0.0.5 metric 1073741825 nexthop via 10.0.0.3 dev if2 weight 1 nexthop via 10.0.0.4 dev if2 weight 1"}},
		"IPv6":                      {[]part{leg(default6, "2001:db8::1", 1000), leg(default6, "2001:db8::2", 500)}, []string{"default via 2001:db8::1 dev if2 table 10001" + first + " weight 256", "default via 2001:db8::2 dev if2 table 10001" + first + " weight 128"}},
		"IPv6, without a next hop":  {[]part{leg(default6, "", 0), leg(default6, "2001:db8::2", 0)}, []string{"default dev if2 table 10001" + first, "default via 2001:db8::2 dev if2 table 10001 metric 1073741825"}},
		"IPv6, of other attributes": {[]part{leg(default6, "2001:db8::1", 0, mtu(1400)), leg(default6, "2001:db8::2", 0, mtu(1300))}, []string{"default via 2001:db8::1 dev if2 table 10001" + first + " mtu 1400", "default via 2001:db8::2 dev if2 table 10001 metric 1073741825 mtu 1300"}},
	} {
		l := link(2, "wan0", append([]part{address("10.0.0.5/24", 100), address("2001:db8::5/64", 100)}, c.legs...)...)
		l.Tables = map[routing.Key]routing.TableID{}
		for i, k := range routing.Keys(l) {
			l.Tables[k] = 10000 + routing.TableID(i)
		}
		planner := routing.NewPlanner(policy)
		planner.Set(l)
		plan, _ := planner.Link(2)
		var have []string
		for r := range plan.AllRoutes() {
			if r.Route.IsDefault() {
				text := r.Route.String()
				if r.Route.Family == routing.IPv6 && r.Route.Weight > 0 {
					text += fmt.Sprintf(" weight %d", r.Route.Weight)
				}
				have = append(have, text)
			}
		}
		slices.Sort(have)
		if !slices.Equal(have, c.want) {
			t.Errorf("%s:\n%q, want\n%q", name, have, c.want)
		}
	}
}

// TestReachableGateways: the kernel takes each next hop that a link's owner knows, whatever else
// is known.
func TestReachableGateways(t *testing.T) {
	t.Parallel()
	const via = "192.168.8.1"
	for name, tt := range map[string]struct {
		parts  []part
		onlink bool
	}{
		"in the network":                       {[]part{address("192.168.8.10/24", 101)}, false},
		"in another network of main":           {[]part{address("198.51.100.20/24", 101), route("192.168.8.0/24", "", 101)}, false},
		"in none":                              {[]part{address("198.51.100.20/24", 101)}, true},
		"in a network that is known":           {[]part{address("198.51.100.20/24", 101), known("192.168.8.0/24", "", "")}, false},
		"in one that is known for another one": {[]part{address("198.51.100.20/24", 101), address("203.0.113.5/24", 101), known("192.168.0.0/16", "", "203.0.113.5")}, true},
		"in one with another way":              {[]part{address("198.51.100.20/24", 101), known("128.0.0.0/1", "", ""), known("128.0.0.0/1", "198.51.100.1", "")}, true},
		"in its own destination":               {[]part{address("198.51.100.20/24", 101), known("0.0.0.0/1", "", "203.0.113.5"), address("203.0.113.5/24", 101)}, true},
	} {
		to := "0.0.0.0/1"
		h := hostOf(t, link(3, "wan1", append(tt.parts, known(to, via, ""))...))
		found := false
		for r := range h.kernel.Routes() {
			if r.Gateway == addr(via) && r.Table == 10000 {
				found = true
				if r.OnLink != tt.onlink {
					t.Errorf("%s: %s", name, r)
				}
			}
		}
		if !found {
			t.Errorf("%s: no route by it\n%s", name, h.kernel.Text())
		}
	}
}
