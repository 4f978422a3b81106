package routing

import (
	"maps"
	"slices"
)

// Unbound traffic follows main. While main's best default leads through a dead uplink, and
// another one lives, it follows table F instead: two rules in front of main read first what
// main knows besides its defaults, and then F. Main stays untouched, and an empty F changes
// nothing. See the rung "failover" of [Ladder].

// A Forwarded says whose traffic follows failover besides what this host itself sends.
type Forwarded uint8

// Whose traffic follows. A forwarded IPv6 packet has an address of a delegated prefix, which
// the provider of another link drops (RFC 2827).
const (
	// ForwardedIPv4 moves what this host forwards of IPv4, and not of IPv6.
	ForwardedIPv4 Forwarded = iota
	// ForwardedNone moves what this host sends itself.
	ForwardedNone
	// ForwardedAll moves all that this host forwards.
	ForwardedAll
)

// A Failover is what the planner must know to lead unbound traffic to a link that works.
// The zero Failover means off: there is no pair of rules, and table F is empty.
type Failover struct {
	Enabled bool
	// Dead are the uplinks judged dead in a family, by interface index. An uplink whose
	// interface is not running is dead whether it is here or not.
	Dead ByFamily[map[int]struct{}]
	// Unjudged says of a family that its uplinks have not been judged since the start: what
	// stands in F stays, as long as it leads through an uplink that is running.
	Unjudged ByFamily[bool]
	// Frozen is for a process that does not stay to judge again: what stands in F stays, as
	// with Unjudged, and nothing is put into it.
	Frozen bool
	// Prefer are interface indexes in the administrator's order of preference for the
	// replacement. The others come behind these, in main's order.
	Prefer []int
	// Metered are the interfaces that are the last choice, but for those in Prefer.
	Metered map[int]struct{}
	// Shares are the weights of uplinks that share unbound traffic, by interface index; nil
	// where nothing is shared. A weight is 1 to 255.
	Shares    map[int]uint8
	Forwarded Forwarded
	// HostRoutes moves also what main leads to single hosts by a dead uplink: VPN servers.
	HostRoutes bool
}

// equal reports whether the plan may stay.
func (f *Failover) equal(o *Failover) bool {
	return f.Enabled == o.Enabled && maps.Equal(f.Dead[0], o.Dead[0]) && maps.Equal(f.Dead[1], o.Dead[1]) &&
		f.Unjudged == o.Unjudged && f.Frozen == o.Frozen && slices.Equal(f.Prefer, o.Prefer) && maps.Equal(f.Metered, o.Metered) &&
		maps.Equal(f.Shares, o.Shares) && f.Forwarded == o.Forwarded && f.HostRoutes == o.HostRoutes
}

// clone returns an independent copy.
func (f Failover) clone() Failover {
	for i := range f.Dead {
		f.Dead[i] = maps.Clone(f.Dead[i])
	}
	f.Prefer, f.Metered, f.Shares = slices.Clone(f.Prefer), maps.Clone(f.Metered), maps.Clone(f.Shares)
	return f
}

// SetFailover takes what is judged and configured.
func (p *Planner) SetFailover(f Failover) {
	if f.equal(&p.failover.facts) {
		return
	}
	p.failover.facts = f.clone()
	p.chartAll()
}

// SetDefaults takes main's defaults of a family through any device, the best first: one for
// each leg, those of others that refuse packets included.
func (p *Planner) SetDefaults(f Family, defaults []Route) {
	i := familyIndex(f)
	if slices.Equal(p.failover.defaults[i], defaults) {
		return
	}
	p.failover.defaults[i] = slices.Clone(defaults)
	p.chart(i)
}

// SetHeld takes what stands in table F of ours. It counts while uplinks are not judged.
func (p *Planner) SetHeld(f Family, held []Route) {
	i := familyIndex(f)
	if slices.Equal(p.failover.held[i], held) {
		return
	}
	p.failover.held[i] = slices.Clone(held)
	if p.failover.keeps(i) {
		p.chart(i)
	}
}

// SetFailoverTaken takes who else uses table F in a family, empty if nobody does. Then there
// is no pair: his routes would be for unbound traffic.
func (p *Planner) SetFailoverTaken(f Family, by string) {
	i := familyIndex(f)
	if p.failover.taken[i] != by {
		p.failover.taken[i] = by
		p.chart(i)
	}
}

// FailoverTaken returns what SetFailoverTaken was given.
func (p *Planner) FailoverTaken(f Family) string { return p.failover.taken.In(f) }

// Course returns which way unbound traffic of a family goes, false if no link has a table of
// the family.
func (p *Planner) Course(f Family) (Course, bool) {
	return p.failover.course.In(f), p.tables[f] > 0
}

// FailoverRoutes returns what must stand in table F.
func (p *Planner) FailoverRoutes() []PlannedRoute {
	return slices.Concat(p.failover.table[0], p.failover.table[1])
}

// failing is what the planner keeps of failover, by family.
type failing struct {
	facts    Failover
	defaults ByFamily[[]Route]
	held     ByFamily[[]Route]
	taken    ByFamily[string]
	// leased counts the links whose lease is table F: a version that knew no failover gave
	// it away.
	leased ByFamily[int]
	// blocked says that the rules of others leave no place for the pair.
	blocked ByFamily[bool]
	// away says that the pair is held away as a whole: see [Planner.HoldPair].
	away ByFamily[bool]
	// exits are the uplinks that have a default, silent those whose interface is not running.
	exits  [2]map[int]exit
	silent [2]map[int]struct{}

	course ByFamily[Course]
	rules  [2][]PlannedRule
	table  [2][]PlannedRoute
}

func newFailing() failing {
	f := failing{exits: [2]map[int]exit{{}, {}}, silent: [2]map[int]struct{}{{}, {}}}
	for i, family := range Families() {
		f.course[i] = Course{Family: family, Why: CourseOff}
	}
	return f
}

// keeps reports whether what stands in F stays.
func (x *failing) keeps(i int) bool { return x.facts.Frozen || x.facts.Unjudged[i] }

func (x *failing) dead(i, index int) bool {
	return contains(x.facts.Dead[i], index) || contains(x.silent[i], index)
}

func (x *failing) anyDead(i int) bool { return len(x.facts.Dead[i])+len(x.silent[i]) > 0 }

// lives reports whether an uplink may replace another one.
func (x *failing) lives(i, index int) (exit, bool) {
	e, is := x.exits[i][index]
	return e, is && e.source.IsValid() && !x.dead(i, index)
}

// noteExit takes the plan of a link, nil if it has gone.
func (p *Planner) noteExit(index int, old, now *planned) {
	x := &p.failover
	for i, f := range Families() {
		changed := x.anyDead(i) || len(x.rules[i]) > 0 || x.course[i].Why == CourseTaken
		e, is := exit{}, false
		silent := false
		if now != nil {
			e, is = exitOf(&now.LinkPlan, f)
			silent = now.Link.NotRunning && now.Roles.In(f) == Uplink
		}
		if before, was := x.exits[i][index]; was != is || before != e {
			changed = true
			if is {
				x.exits[i][index] = e
			} else {
				delete(x.exits[i], index)
			}
		}
		if silent != contains(x.silent[i], index) {
			changed = true
			if silent {
				x.silent[i][index] = struct{}{}
			} else {
				delete(x.silent[i], index)
			}
		}
		was := old != nil && old.Roles.In(f) == Uplink
		if changed || was != (now != nil && now.Roles.In(f) == Uplink) {
			p.chart(i)
		}
	}
}

// countFailover counts the links whose lease is table F.
func (p *Planner) countFailover(l *Link, by int) {
	f, has := p.policy.FailoverTable()
	if !has {
		return
	}
	for k, t := range l.Tables {
		if t == f {
			p.failover.leased[familyIndex(k.Family)] += by
		}
	}
}

// noteBlocked looks whether main is what the kernel reads next behind the pair. Where a rule
// of somebody else comes between, or main is not read there, the pair would answer in place
// of what he wants.
func (p *Planner) noteBlocked(i int) {
	foreign := p.foreign[i]
	blocked, next := false, false
	for _, o := range foreign {
		r := o.Rule
		if r.Priority > PriorityAgain && !next {
			next = true
			blocked = !r.isLookupOfAll() || r.Table != TableMain
		}
	}
	blocked = blocked || len(foreign) > 0 && !next
	if p.failover.blocked[i] != blocked {
		p.failover.blocked[i] = blocked
		p.chart(i)
	}
}
