package reconcile

import (
	"net/netip"
	"slices"
	"strings"

	"multihomed/routing"
)

// Bindings says what is bound to links.
type Bindings interface {
	// Changed is readable when Bindings returns something new.
	Changed() <-chan struct{}
	// Bindings returns what is bound, in the order in which the first one counts, and false while
	// nobody knows: the rules that stand stay. The loop finds the interface that a LinkName means.
	Bindings() ([]routing.Binding, bool)
}

// bindingsChanged is readable when something else is bound; nil if nothing is ever.
func (l *Loop) bindingsChanged() <-chan struct{} {
	if l.Bindings == nil {
		return nil
	}
	return l.Bindings.Changed()
}

// takeBindings hands the planner what is bound.
func (l *Loop) takeBindings() {
	var wanted []routing.Binding
	known := true
	if l.Bindings != nil {
		wanted, known = l.Bindings.Bindings()
	}
	if known && !l.bindingsKnown {
		// What an earlier process left is compared now.
		l.Mirror.View(func(k State) {
			for r := range k.Rules() {
				if r.IsBinding() {
					l.touched.Rules[r] = struct{}{}
				}
			}
		})
	}
	if l.bindingsKnown = known; !known {
		return
	}
	wanted = slices.Concat(wanted, l.boundProfiles(wanted))
	l.Mirror.View(func(k State) {
		for i := range wanted {
			wanted[i].Index = l.linkCalled(k, wanted[i].LinkName)
		}
	})
	wanted = slices.DeleteFunc(wanted, l.holdsOwnAddress)
	if l.planner.SetBindings(wanted) {
		l.picture.restructure()
	}
}

// holdsOwnAddress reports whether a binding is for a network in which this host has an address of an
// uplink: it would take the host's own packets along, and nobody could reach the host there.
func (l *Loop) holdsOwnAddress(b routing.Binding) bool {
	if !b.Source.IsValid() {
		return false
	}
	for plan := range l.planner.Links() {
		if OwnAddressIn(plan, b.Source).IsValid() {
			return true
		}
	}
	return false
}

// OwnAddressIn returns an address that an uplink has in a network, the zero Addr if it has none.
func OwnAddressIn(plan routing.LinkPlan, network netip.Prefix) netip.Addr {
	for _, a := range plan.Link.Addresses {
		if own := a.Prefix.Addr(); network.Contains(own) && plan.Roles.In(routing.FamilyOf(own)) == routing.Uplink {
			return own
		}
	}
	return netip.Addr{}
}

// linkCalled finds the interface that an administrator calls by its name or by that of its profile,
// 0 if there is none.
func (l *Loop) linkCalled(k State, called string) int {
	if called == "" {
		return 0
	}
	if index, is := k.IndexOf(called); is {
		return index
	}
	found := 0
	for name, c := range l.claims {
		index, bound := l.index[name]
		if (c.Profile == called || c.UUID == called) && bound && exists(k, index) && (found == 0 || index < found) {
			found = index
		}
	}
	return found
}

// boundProfiles are the bindings that profiles ask for, for what comes in by their interfaces.
// Those of the administrator win.
func (l *Loop) boundProfiles(others []routing.Binding) []routing.Binding {
	var out []routing.Binding
	for name, c := range l.claims {
		if c.BoundTo == "" {
			continue
		}
		now := name
		l.Mirror.View(func(k State) {
			if n, is := k.NameOf(l.index[name]); is {
				now = n
			}
		})
		if slices.ContainsFunc(others, func(b routing.Binding) bool { return b.Input == now }) {
			continue
		}
		out = append(out, routing.Binding{Name: "profile " + c.Profile, Input: now, LinkName: c.BoundTo, Strict: true})
	}
	slices.SortFunc(out, func(a, b routing.Binding) int { return strings.Compare(a.Input, b.Input) })
	return out
}

// IsBound reports whether something is bound to a link. It is for the loop's goroutine.
func (l *Loop) IsBound() bool { return len(l.planner.Bindings()) > 0 }
