package view

import (
	"slices"

	"multihomed/internal/status"
	"multihomed/routing"
)

// TableRoutedDNS is the table and the priority of NetworkManager's routed-dns.
const TableRoutedDNS routing.TableID = 20053

// Decides reports whether a rule of another program may decide where this host's packets to
// other hosts go. The rule for local does not, nor do that of VRFs
// (vrf_add_fib_rules in drivers/net/vrf.c), what is for forwarded packets alone, main
// without its default, and rules behind the ladder's last rung before main.
func Decides(r routing.Rule) bool {
	if r.Priority > routing.PriorityAgain || r.IIF != "" && r.IIF != "lo" {
		return false
	}
	switch r.Action {
	case routing.ActionLookup:
		return !r.L3MDev && r.Table != routing.TableLocal && r.Table != TableRoutedDNS &&
			(r.Table != routing.TableMain || !r.SuppressPrefixLength.Set)
	case routing.ActionGoto, routing.ActionBlackhole, routing.ActionUnreachable, routing.ActionProhibit:
		return true
	default:
		return false
	}
}

// mostOtherRules bounds the rules of others in a status: routing daemons of meshes have
// thousands.
const mostOtherRules = 1000

// otherRules lists the rules of others that have a say.
func (v *View) otherRules() []status.OtherRule {
	out := []status.OtherRule{}
	for _, f := range routing.Families() {
		for _, o := range v.Planner.Foreign(f) {
			if place := v.placeOf(o); place != "" && len(out) < mostOtherRules {
				out = append(out, status.OtherRule{Family: f.String(), Text: o.Rule.String(), Place: place})
			}
		}
	}
	return out
}

// placeOf says how a rule of somebody else stands to the ladder, empty if it decides
// nothing that would matter.
func (v *View) placeOf(o routing.ForeignRule) string {
	r := o.Rule
	switch {
	case r.Kernels() || r.Action == routing.ActionNop || !Decides(r):
		return ""
	case r.Selects():
		return status.Selects
	case o.SteppedOver():
		return status.SteppedOver
	case r.Priority < routing.PrioritySource || r.Priority == routing.PrioritySource && v.standsBeforeOurs(r):
		return status.Ahead
	default:
		return status.Behind
	}
}

// standsBeforeOurs reports whether a rule of ours comes behind one of somebody else with
// the same priority.
func (v *View) standsBeforeOurs(r routing.Rule) bool {
	order := v.Mixed()[r.Family][r.Priority]
	at := slices.Index(order, r)
	return at >= 0 && slices.ContainsFunc(order[at:], v.Policy.OwnsRule)
}

// Mixed is the order of rules where ours and those of others share a priority.
func (v *View) Mixed() map[routing.Family]map[routing.Priority][]routing.Rule {
	out := map[routing.Family]map[routing.Priority][]routing.Rule{}
	if v.Snapshot == nil {
		return out
	}
	for i, f := range routing.Families() {
		out[f] = v.Snapshot.Mixed[i]
	}
	return out
}
