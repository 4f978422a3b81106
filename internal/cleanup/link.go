package cleanup

import (
	"net/netip"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

// A link tells the objects of one interface from those of the others by the kernel's
// state: rules for the device and routes through it name its tables, and the rules that
// lead there name its sources and networks. It remembers what it learned, because the
// objects that taught it are deleted first.
type link struct {
	// name is empty for all interfaces.
	name  string
	index int
	// isLast says that no other interface has objects: the shared ones go too.
	isLast bool
	// alone says of a family that fewer than two other interfaces have a default: what serves
	// failover goes too. Failover is the table that it reads.
	alone    routing.ByFamily[bool]
	failover map[routing.TableID]struct{}
	tables   map[routing.TableID]struct{}
	sources  map[netip.Prefix]struct{}
	networks map[netip.Prefix]struct{}
}

func newLink(name string) link {
	return link{
		name: name, tables: map[routing.TableID]struct{}{}, failover: map[routing.TableID]struct{}{},
		sources: map[netip.Prefix]struct{}{}, networks: map[netip.Prefix]struct{}{},
	}
}

func (l *link) learn(k *kernel.State) {
	if l.name == "" {
		return
	}
	l.index = 0
	if index, exists := k.IndexOf(l.name); exists {
		l.index = index
	}
	for r := range k.Rules() {
		if t, reads := r.ReadsFailover(); reads {
			l.failover[t] = struct{}{}
		}
	}
	// A table that a rule for another device names is not this one's, whatever its routes. Nor is
	// the failover table, which leads through whatever link works.
	others := map[routing.TableID]struct{}{}
	for r := range k.Rules() {
		if t, leads := r.LeadsTo(); leads && r.OIF == l.name {
			l.tables[t] = struct{}{}
		} else if leads && r.OIF != "" {
			others[t] = struct{}{}
		}
	}
	for r := range k.Routes() {
		_, is := others[r.Table]
		_, shared := l.failover[r.Table]
		if r.Device == l.index && r.Type == routing.RouteUnicast && r.Table != routing.TableMain && !is && !shared {
			l.tables[r.Table] = struct{}{}
		}
	}
	shared := map[netip.Prefix]struct{}{}
	l.isLast = true
	for r := range k.Rules() {
		t, leads := r.LeadsTo()
		if !leads {
			continue
		}
		if _, own := l.tables[t]; own {
			note(l.sources, r.From)
			note(l.networks, r.To)
			continue
		}
		l.isLast = false
		note(shared, r.From)
		note(shared, r.To)
	}
	for _, f := range routing.Families() {
		l.alone.Set(f, len(l.others(k, f)) < 2)
	}
	// Two links may have the same address: its rules serve the other one.
	for p := range shared {
		delete(l.sources, p)
		delete(l.networks, p)
	}
}

// others returns the other interfaces that have a default of a family in a table of theirs.
func (l *link) others(k *kernel.State, f routing.Family) map[int]struct{} {
	found := map[int]struct{}{}
	for r := range k.Routes() {
		_, own := l.tables[r.Table]
		_, shared := l.failover[r.Table]
		if r.Family == f && r.IsDefault() && r.Type == routing.RouteUnicast && r.Device != l.index && r.Table != routing.TableMain && !own && !shared {
			found[r.Device] = struct{}{}
		}
	}
	return found
}

func note(set map[netip.Prefix]struct{}, p netip.Prefix) {
	if p.IsValid() {
		set[p] = struct{}{}
	}
}

// has reports whether the object of a deletion is the interface's.
func (l *link) has(op routing.Op) bool {
	switch {
	case l.name == "":
		return true
	case op.Verb == routing.DeleteRule:
		return l.isLast || l.hasRule(op.Rule) || l.alone.In(op.Rule.Family) && op.Rule.ServesFailover()
	case op.Verb == routing.DeleteRoute:
		_, own := l.tables[op.Route.Table]
		_, shared := l.failover[op.Route.Table]
		return own || op.Route.Device == l.index && op.Route.Type == routing.RouteUnicast || shared && l.alone.In(op.Route.Family)
	default:
		return op.Index == l.index
	}
}

func (l *link) hasRule(r routing.Rule) bool {
	if r.OIF != "" {
		return r.OIF == l.name
	}
	if t, leads := r.LeadsTo(); leads {
		_, own := l.tables[t]
		return own
	}
	if r.Action == routing.ActionGoto && r.IIF != routing.Loopback && r.IIF != routing.LoopbackAlias {
		return false // A lift serves all links.
	}
	if _, own := l.sources[r.From]; own {
		return true
	}
	_, own := l.networks[r.To]
	return own && !r.From.IsValid()
}
