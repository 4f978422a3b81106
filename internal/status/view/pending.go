package view

import (
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

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

// Unsettled reports links that come or go.
func (v *View) Unsettled(name string) bool {
	claim, _ := v.ClaimOf(v.Links[name])
	return claim.Standing == reconcile.Draining || claim.Pending || !v.Links[name].Carrier
}

// Unplanned is what is missing, but for what stays away for a while on purpose.
func (v *View) Unplanned() []routing.Op {
	if len(v.Missing) == 0 {
		return nil
	}
	away := v.away()
	yielding := map[routing.Rule]bool{}
	for _, p := range v.Planner.Shared() {
		yielding[p.Rule] = p.Yields && v.Running
	}
	var out []routing.Op
	for _, op := range v.Missing {
		_, waits := away[objectKey{op.Rule.Family, op.Rule.String()}]
		if op.Verb != routing.AddRule || !waits && !yielding[op.Rule] {
			out = append(out, op)
		}
	}
	return out
}
