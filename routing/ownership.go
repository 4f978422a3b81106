package routing

// An Ownership decides which rules and routes of the kernel are ours. Planner, differ,
// mirror and clean-up ask it, and nobody decides by himself: two answers would delete
// what is somebody else's, or leave what is ours.
type Ownership struct {
	// Tables is the range that leases come from.
	Tables TableRange
	// Former are tables that were ours under another configuration.
	Former []TableRange
}

// OwnsTable reports whether routes of ours may stand in a table. There may be some
// of others.
func (o Ownership) OwnsTable(t TableID) bool {
	if o.Tables.Contains(t) {
		return true
	}
	for _, r := range o.Former {
		if r.Contains(t) {
			return true
		}
	}
	return false
}

// FailoverTable is [Policy.FailoverTable].
func (o Ownership) FailoverTable() (TableID, bool) {
	return o.Tables.Last, o.Tables.First < o.Tables.Last
}

// OwnsRule reports whether a rule is ours: it carries our protocol and stands on a
// rung of the ladder, leads to one of our tables, or lifts a rule of somebody else or repeats
// rungs behind it, which is done wherever such rules stand.
func (o Ownership) OwnsRule(r Rule) bool {
	if r.Protocol != Multihomed {
		return false
	}
	if r.Action == ActionLookup && o.OwnsTable(r.Table) {
		return true
	}
	if r.Action == ActionGoto && r.Priority >= lowestStep && r.Priority <= PriorityAgain {
		return true
	}
	_, ours := RungOf(r.Priority)
	return ours || r.inside()
}

// OwnsRoute reports whether a route is ours: it carries our protocol and stands in
// one of our tables, or in main for a link that has none.
func (o Ownership) OwnsRoute(r Route) bool {
	return r.Protocol == Multihomed && (o.OwnsTable(r.Table) || r.IsStandIn())
}

// LeadsTo returns the table that a rule of ours says is a link's. Rules that ask
// main, or the tables of others, before it say nothing of that.
func (r Rule) LeadsTo() (TableID, bool) {
	switch r.Table {
	case 0, TableMain, TableLocal, TableDefault:
		return 0, false
	}
	if _, reads := r.ReadsFailover(); reads {
		return 0, false
	}
	return r.Table, r.Action == ActionLookup && !r.SuppressPrefixLength.Set && !r.SuppressGroup.Set
}

// ReadsFailover returns table F, if the rule is the one of ours that leads unbound traffic
// there.
func (r Rule) ReadsFailover() (TableID, bool) {
	return r.Table, r.ofFailover() && r.Table != TableMain
}

// ServesFailover reports whether a rule of ours leads unbound traffic to a link that works:
// one of the pair in front of main, or a rung "twin". Without two uplinks there are none.
func (r Rule) ServesFailover() bool { return r.ofFailover() || r.Priority == PriorityTwin }

// Ownership is what the policy makes ours.
func (p Policy) Ownership() Ownership { return Ownership{Tables: p.Tables} }
