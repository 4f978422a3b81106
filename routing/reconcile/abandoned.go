package reconcile

import (
	"slices"

	"multihomed/routing"
)

// abandoned reports whether an object that nobody wants is the rest of an
// interface that does not exist any more, or that its owner has let go: it may be
// deleted although not every owner has spoken. What is called on is the state
// before the pass, in which rules still say whose table is whose.
func (l *Loop) abandoned(k State, op routing.Op) bool {
	switch op.Verb {
	case routing.DeleteRule:
		table := op.Rule.Table
		if !l.Policy.Tables.Contains(table) {
			table = tableBeside(k, op.Rule)
		}
		return l.Policy.Tables.Contains(table) && l.abandonedTable(k, table)
	case routing.DeleteRoute:
		if op.Route.Type == routing.RouteThrow {
			// It has no interface.
			return l.Policy.Tables.Contains(op.Route.Table) && l.abandonedTable(k, op.Route.Table)
		}
		return l.letGo(k, op.Route.Device)
	case routing.ResetGroup:
		return l.letGo(k, op.Index)
	default:
		return false
	}
}

// tableBeside returns the table of the packets that a rule stops, or leads elsewhere
// before.
func tableBeside(k State, other routing.Rule) routing.TableID {
	switch {
	case other.From.IsValid():
		for r := range k.RulesFrom(other.Family, routing.PrioritySource, other.From) {
			return r.Table
		}
	case other.To.IsValid():
		for _, r := range k.RuleOrder(other.Family, routing.PriorityNetwork) {
			if r.To == other.To {
				return r.Table
			}
		}
	}
	return 0
}

// abandonedTable reports whether no interface that may need the table is left.
func (l *Loop) abandonedTable(k State, table routing.TableID) bool {
	named := false
	for _, f := range routing.Families() {
		for r := range k.RulesTo(f, routing.PriorityDevice, table) {
			named = true
			if index, exists := k.IndexOf(r.OIF); exists && !l.letGo(k, index) {
				return false
			}
		}
	}
	// Of an interface that was renamed the routes are left.
	return named && !slices.ContainsFunc(k.OurRoutes(table), func(r routing.Route) bool {
		return r.Type != routing.RouteThrow && !l.letGo(k, r.Device)
	})
}

// letGo reports whether an interface was let go by its owner and is no link
// any more.
func (l *Loop) letGo(k State, index int) bool {
	if _, planned := l.planner.Link(index); planned || !exists(k, index) {
		return false
	}
	claim, _, claimed := l.of(k, index)
	return claimed && claim.Released
}
