package routing

import "net/netip"

// An Exit is the way out of an uplink in one family: what failover leads unbound traffic to.
type Exit struct {
	// Route is the default of the uplink's table.
	Route Route
	// Source is the address that packets by it get, zero if the uplink has none that may be
	// used.
	Source netip.Addr
	// Metric is that of the uplink's best default in main.
	Metric uint32
}

// ExitOf returns the way out of an uplink, false if the link is no uplink of the family or has
// no default.
func ExitOf(plan *LinkPlan, f Family) (Exit, bool) {
	e, is := exitOf(plan, f)
	return Exit{Route: e.route, Source: e.source, Metric: e.metric}, is
}
