package kerneltest

import (
	"cmp"
	"net/netip"
	"slices"

	"multihomed/routing"
)

// A Flow is what the kernel looks up a route for.
type Flow struct {
	// From is zero for a socket that is bound to no address.
	From, To netip.Addr
	// IIF is the name of the interface that a forwarded packet came in by,
	// empty for packets of this host.
	IIF string
	// OIF is the name of the device that a socket is bound to.
	OIF string
}

// An Outcome is what becomes of a packet.
type Outcome uint8

// Outcomes. NoRoute means that no rule had an answer; Rejected that one said no.
const (
	NoRoute Outcome = iota
	Rejected
	Local
	Sent
)

func (o Outcome) String() string {
	return [...]string{"no route", "rejected", "local", "sent"}[o]
}

// A Verdict is the answer to a lookup.
type Verdict struct {
	Outcome Outcome
	// Rule is the rule that had the answer.
	Rule routing.Rule
	// Legs are the routes that the packet may take: one, or all of a multipath
	// route.
	Legs []routing.Route
}

// Way returns the outcome and the first route without its table, protocol and
// metric: what a copy of a route has in common with it.
func (v Verdict) Way() (Outcome, routing.Route) {
	if len(v.Legs) == 0 {
		return v.Outcome, routing.Route{}
	}
	r := v.Legs[0]
	r.Table, r.Protocol, r.Metric = 0, 0, 0
	return v.Outcome, r
}

// Through reports whether every leg leaves by one of the devices.
func (v Verdict) Through(devices ...int) bool {
	return v.Outcome == Sent && !slices.ContainsFunc(v.Legs, func(r routing.Route) bool { return !slices.Contains(devices, r.Device) })
}

// Lookup walks the rules as fib_rules_lookup of net/core/fib_rules.c does.
func (k *Kernel) Lookup(f Flow) Verdict { return k.lookup(f, func(routing.Rule) bool { return true }) }

// LookupWithoutUs is Lookup on a kernel that holds nothing of ours.
func (k *Kernel) LookupWithoutUs(f Flow) Verdict {
	return k.lookup(f, func(r routing.Rule) bool { return !k.policy.OwnsRule(r) })
}

func (k *Kernel) lookup(f Flow, stands func(routing.Rule) bool) Verdict {
	family := routing.FamilyOf(f.To)
	for _, p := range k.priorities(family) {
		for _, r := range k.bands[band{family, p}] {
			if !stands(r) || !matches(r, f) {
				continue
			}
			if v, done := k.act(r, f); done {
				return v
			}
		}
	}
	return Verdict{Outcome: NoRoute}
}

// matches is fib_rule_match. A rule with attributes unknown here matches
// nothing.
func matches(r routing.Rule, f Flow) bool {
	in := f.IIF
	if in == "" {
		in = "lo"
	}
	return !r.Unknown &&
		(!r.From.IsValid() || r.From.Bits() == 0 || (f.From.IsValid() && r.From.Contains(f.From))) &&
		(!r.To.IsValid() || r.To.Contains(f.To)) &&
		(r.IIF == "" || r.IIF == in) &&
		(r.OIF == "" || r.OIF == f.OIF)
}

// act does what a rule says; done is false where the next rule is to be asked.
func (k *Kernel) act(r routing.Rule, f Flow) (v Verdict, done bool) {
	switch r.Action {
	case routing.ActionUnreachable, 6, 8: // FR_ACT_BLACKHOLE, FR_ACT_PROHIBIT
		return Verdict{Outcome: Rejected, Rule: r}, true
	case routing.ActionLookup:
	default:
		return Verdict{}, false
	}
	if r.Table == routing.TableLocal {
		if k.isLocal(f.To) {
			return Verdict{Outcome: Local, Rule: r}, true
		}
		return Verdict{}, false
	}
	legs := k.resolve(fib{r.Family, r.Table}, f)
	if len(legs) == 0 {
		return Verdict{}, false
	}
	switch best := legs[0]; {
	case best.Type == RouteThrow:
		return Verdict{}, false
	case best.Type != routing.RouteUnicast:
		// A route that says no is an error, and errors are not suppressed.
		return Verdict{Outcome: Rejected, Rule: r, Legs: legs}, true
	case k.suppressed(r, best):
		return Verdict{}, false
	}
	return Verdict{Outcome: Sent, Rule: r, Legs: legs}, true
}

// suppressed is fib4_rule_suppress and fib6_rule_suppress: they look at the one
// route that was found, for a multipath route at its first leg.
func (k *Kernel) suppressed(r routing.Rule, found routing.Route) bool {
	if r.SuppressPrefixLength.Set && found.Destination.Bits() <= int(r.SuppressPrefixLength.Value) {
		return true
	}
	group, ok := k.Group(found.Device)
	return r.SuppressGroup.Set && ok && group == r.SuppressGroup.Value
}

// resolve returns the legs of the route that a table has for a flow: the
// longest destination, the longest source, the lowest metric, on the device the
// socket is bound to.
func (k *Kernel) resolve(t fib, f Flow) []routing.Route {
	var found []routing.Route
	for _, r := range k.routes[t] {
		if !r.Destination.Contains(f.To) || r.TOS != 0 ||
			(r.Source.IsValid() && (!f.From.IsValid() || !r.Source.Contains(f.From))) ||
			(f.OIF != "" && r.Type == routing.RouteUnicast && k.name(r.Device) != f.OIF) {
			continue
		}
		found = append(found, r)
	}
	slices.SortStableFunc(found, func(a, b routing.Route) int {
		return cmp.Or(
			cmp.Compare(b.Destination.Bits(), a.Destination.Bits()),
			cmp.Compare(b.Source.Bits(), a.Source.Bits()),
			cmp.Compare(a.Metric, b.Metric),
		)
	})
	for i, r := range found {
		if r.Destination != found[0].Destination || r.Source != found[0].Source || r.Metric != found[0].Metric {
			return found[:i]
		}
	}
	return found
}
