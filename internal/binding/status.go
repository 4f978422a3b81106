package binding

import (
	"fmt"
	"net/netip"
	"slices"

	"multihomed/internal/config"
	"multihomed/internal/status"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// Status is what status says of entries, of profiles that bind, and of the marks that sockets may
// have, in this order.
func Status(states []State, held []Held, mask routing.MarkMask, s *reconcile.Snapshot) []status.Binding {
	var out []status.Binding
	told := map[string]struct{}{}
	add := func(row status.Binding, name string) {
		row.Name = name
		told[name] = struct{}{}
		if row.State == "" {
			find(&row, s)
		}
		out = append(out, row)
	}
	for _, st := range states {
		sel := st.Selector()
		row := status.Binding{
			Selector: sel.Key, Value: sel.Value, Link: st.Link, Strict: st.Strict, DNS: st.DNS,
			Deny: st.Inbound == config.Deny, By: string(st.Origin),
		}
		switch {
		case st.Refused != "":
			row.State, row.Why = status.BindingRefused, st.Refused
		case st.Waits != "":
			row.State, row.Why = status.BindingWaits, st.Waits
		}
		add(row, st.Name())
	}
	for _, b := range s.Bindings {
		if _, is := told[b.Name]; !is && b.Input != "" {
			add(status.Binding{Selector: "interface", Value: b.Input, Link: b.LinkName, Strict: b.Strict, By: b.Name}, b.Name)
		}
	}
	for _, h := range held {
		if !h.isOf(h.Link, mask) {
			continue // Those of before are left to their sockets.
		}
		add(status.Binding{
			Selector: "mark", Value: fmt.Sprintf("%#x", mask.Bound(h.Number).Value), Link: h.Link, Strict: true, By: "sockets",
		}, h.Name())
	}
	return out
}

// find says what became of a binding in the plan.
func find(row *status.Binding, s *reconcile.Snapshot) {
	at := slices.IndexFunc(s.Bindings, func(b routing.Binding) bool { return b.Name == row.Name })
	if own, link := ownAddress(row, s); at < 0 && own.IsValid() {
		row.State, row.Why = status.BindingRefused, fmt.Sprintf("%v, an address of %s, is in the network: the packets of this host would be bound, too; to fix: name a smaller network, or the interface behind which it is", own, link)
		return
	}
	if at < 0 {
		row.State, row.Why = status.BindingWaits, "multihomed is switched off, or has not planned it yet"
		return
	}
	b := s.Bindings[at]
	meanwhile := "nothing of it leaves"
	if !b.Strict {
		meanwhile = "it leaves as main says"
	}
	i, known := s.Interface(b.Index)
	switch {
	case !known:
		row.State, row.Why = status.BindingDown, "there is no link "+row.Link+", and "+meanwhile
	case !leads(i, b):
		row.State, row.Why = status.BindingDown, i.Facts.Name+" has no address or is no link now, and "+meanwhile
	case b.Input != "" && !slices.ContainsFunc(s.Interfaces, func(i *reconcile.Interface) bool { return i.Facts.Name == b.Input }):
		row.State, row.Why = status.BindingWaits, "there is no interface "+b.Input
	default:
		row.State = status.BindingActive
	}
	if known {
		row.Interface = i.Facts.Name
	}
}

// ownAddress finds the address of an uplink in the network that is bound.
func ownAddress(row *status.Binding, s *reconcile.Snapshot) (own netip.Addr, link string) {
	network, err := netip.ParsePrefix(row.Value)
	if row.Selector != "source" || err != nil {
		return own, ""
	}
	for plan := range s.Links() {
		if own := reconcile.OwnAddressIn(plan, network); own.IsValid() {
			return own, plan.Link.Name
		}
	}
	return own, ""
}

// leads reports whether a link has a table of its own in a family of the binding.
func leads(i *reconcile.Interface, b routing.Binding) bool {
	return i.IsLink && slices.ContainsFunc(i.Plan.Keys, func(k routing.Key) bool {
		_, leased := i.Plan.Link.Tables[k]
		return leased && (!b.Source.IsValid() || routing.FamilyOf(b.Source.Addr()) == k.Family)
	})
}
