package routing_test

import (
	"testing"

	"multihomed/routing"
)

// TestTakes: when a route of somebody else says that the table of a link is his.
func TestTakes(t *testing.T) {
	t.Parallel()
	const own, other = 2, 3
	for name, tt := range map[string]struct {
		to          string
		device      int
		kind        routing.RouteType
		alone, rule bool
	}{
		"a route through the link":              {"10.0.0.0/8", own, routing.RouteUnicast, false, false},
		"a default through the link":            {"0.0.0.0/0", own, routing.RouteUnicast, false, true},
		"a network behind another interface":    {"10.8.0.0/24", other, routing.RouteUnicast, false, true},
		"a default through another interface":   {"0.0.0.0/0", other, routing.RouteUnicast, true, true},
		"half of one":                           {"128.0.0.0/1", other, routing.RouteUnicast, true, true},
		"IPv6, through another interface":       {"::/0", other, routing.RouteUnicast, true, true},
		"IPv6, all that is global unicast":      {"2000::/3", own, routing.RouteUnicast, false, true},
		"a default that refuses":                {"0.0.0.0/0", 0, 6, false, false},
		"an IPv6 default that refuses, on lo":   {"::/0", 1, 7, false, false},
		"a network that is sent to other rules": {"10.0.0.0/8", 0, routing.RouteThrow, false, false},
	} {
		r := routing.Route{Destination: prefix(tt.to), Device: tt.device, Type: tt.kind}
		if got := routing.Takes(r, own, false, 7); got != tt.alone {
			t.Errorf("%s: %t", name, got)
		}
		if got := routing.Takes(r, own, true, 7); got != tt.rule {
			t.Errorf("%s, and a rule: %t", name, got)
		}
	}
}
