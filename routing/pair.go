package routing

import (
	"maps"
	"net/netip"
	"slices"
)

// Ranks of failover among the rules of its priority: behind all others, the one that reads
// main in front.
const (
	rankFailover uint64 = 0xff << 56
	// rankFailoverTable is that of the rule which reads F.
	rankFailoverTable = rankFailover + 1<<8
)

// Sources that no packet has. A rule that leaves one out is for all, and does not read "from
// all lookup main suppress_prefixlength 0": `wg-quick down` deletes what reads so until
// nothing does. (RFC 919, RFC 4291.)
var nobody = ByFamily[netip.Prefix]{ //nolint:gochecknoglobals // a constant in all but name
	netip.MustParsePrefix("255.255.255.255/32"), netip.MustParsePrefix("ff00::/8"),
}

// ofFailover reports whether a rule is one of the pair.
func (r *Rule) ofFailover() bool {
	return r.Priority.behind() && r.Protocol == Multihomed && r.Action == ActionLookup && r.To == (netip.Prefix{}) &&
		(r.Invert && r.Table == TableMain || !names(r.From) && r.OIF == "" && r.Mark == (Mark{}) && !r.SuppressGroup.Set)
}

// OfPair reports whether a rule of ours is one of the pair in front of main.
func (r Rule) OfPair() bool { return r.ofFailover() }

// HoldPair says whether somebody deleted a rule of the pair that is not restored yet. Without
// the one that reads main, the other one would answer for all that main knows in particular,
// so there is none of the two then.
func (p *Planner) HoldPair(f Family, away bool) {
	if i := familyIndex(f); p.failover.away[i] != away {
		p.failover.away[i] = away
		p.chart(i)
	}
}

// PairIsAway reports whether the pair of a family would stand, but for [Planner.HoldPair].
func (p *Planner) PairIsAway(f Family) bool {
	i := familyIndex(f)
	return p.failover.away[i] && p.failover.course[i].paired()
}

// sentHere reports whether failover of a family is for what this host sends alone.
func (x *failing) sentHere(f Family) bool {
	return x.facts.Forwarded == ForwardedNone || x.facts.Forwarded == ForwardedIPv4 && f == IPv6
}

// alike returns a rule, and the same in other words while somebody else says "iif lo".
func (p *Planner) alike(i int, r PlannedRule) []PlannedRule {
	r.Rule.Family, r.Rule.Protocol = Families()[i], Multihomed
	out := []PlannedRule{r}
	if r.Rule.IIF == Loopback && p.around[i].sender {
		r.Rule.IIF = LoopbackAlias
		r.Rank++
		out = append(out, r)
	}
	return out
}

// pair returns the two rules.
func (p *Planner) pair(i int, table TableID) []PlannedRule {
	reason := Reason{Decision: FollowLiving}
	main := Rule{Priority: p.around[i].last, Action: ActionLookup, Table: TableMain, SuppressPrefixLength: Some(0)}
	other := Rule{Priority: p.around[i].last, Action: ActionLookup, Table: table}
	if p.failover.sentHere(Families()[i]) {
		main.IIF, other.IIF = Loopback, Loopback
	} else {
		main.Invert, main.From = true, nobody[i]
	}
	return append(
		p.alike(i, PlannedRule{Rule: main, Rank: rankFailover, Reason: reason}),
		p.alike(i, PlannedRule{Rule: other, Rank: rankFailoverTable, Reason: reason})...)
}

// twins returns the rungs that lead to the network of a dead uplink by a living one of the
// same network. What main knows inside of the network goes first. While somebody sends
// everything elsewhere there are none: his rules stand behind them.
func (p *Planner) twins(i int) []PlannedRule {
	x := &p.failover
	f := Families()[i]
	if !x.anyDead(i) || p.around[i].fullTunnel {
		return nil
	}
	dead := map[int]struct{}{}
	maps.Copy(dead, x.facts.Dead[i])
	maps.Copy(dead, x.silent[i])
	done := map[netip.Prefix]struct{}{}
	var out []PlannedRule
	for _, index := range slices.Sorted(maps.Keys(dead)) {
		plan, is := p.links[index]
		if !is || plan.Roles[i] != Uplink {
			continue
		}
		for _, k := range plan.Keys {
			if k.Family != f || k.OfHosts() || contains(done, k.Prefix) {
				continue
			}
			done[k.Prefix] = struct{}{}
			way, table, is := p.twin(i, k.Prefix)
			if !is {
				continue
			}
			name := p.links[way].Link.Name
			shorter := uint64(f.Bits() - k.Prefix.Bits()) //nolint:gosec // 0 to 128
			rule := func(r Rule, rank uint64) {
				r.Priority, r.To, r.Action, r.Mark = PriorityTwin, k.Prefix, ActionLookup, p.around[i].ownMark(PriorityTwin)
				out = append(out, p.alike(i, PlannedRule{
					Rule: r, Rank: shorter<<16 | rank, Reason: Reason{Decision: ReachTwin, Link: name, Prefix: k.Network()},
				})...)
			}
			rule(Rule{Table: TableMain, SuppressPrefixLength: Some(uint32(k.Prefix.Bits()))}, 0) //nolint:gosec // 0 to 128
			rule(Rule{Table: table}, 1<<8)
		}
	}
	return out
}

// twin returns the living uplink that reaches a network which main leads to by a dead one,
// and its table.
func (p *Planner) twin(i int, network netip.Prefix) (index int, table TableID, found bool) {
	x := &p.failover
	best, metric, dead := 0, uint32(noDefault), uint32(noDefault)
	for _, other := range slices.Sorted(maps.Keys(p.standing.at[network])) {
		plan := p.links[other]
		if plan == nil || !plan.Link.Up {
			continue
		}
		at := metricTo(&plan.Link, network)
		if plan.Roles[i] == Uplink && x.dead(i, other) {
			dead = min(dead, at)
			continue
		}
		for _, k := range plan.Keys {
			if t, leased := plan.Link.Tables[k]; leased && k.Prefix == network && at < metric && at != noDefault {
				best, table, metric = other, t, at
			}
		}
	}
	return best, table, best != 0 && dead <= metric && dead != noDefault
}

// metricTo is what main has for a network on the link.
func metricTo(l *Link, network netip.Prefix) uint32 {
	best := uint32(noDefault)
	for i := range l.Routes {
		if r := &l.Routes[i]; r.Destination == network && !r.Gateway.IsValid() && r.Type == RouteUnicast && !r.Source.IsValid() {
			best = min(best, r.Metric)
		}
	}
	return best
}

// mostHostRoutes bounds the single hosts that are moved. Whoever has more routes to hosts by
// one uplink has them from a routing daemon.
const mostHostRoutes = 64

// hostRoutes returns rungs for the single hosts that main leads to by dead uplinks.
func (p *Planner) hostRoutes(i int, table TableID) []PlannedRule {
	x := &p.failover
	if !x.facts.HostRoutes || p.around[i].fullTunnel {
		return nil
	}
	f := Families()[i]
	hosts := map[netip.Prefix]uint32{}
	each := func(index int, visit func(Route)) {
		if plan, is := p.links[index]; is && plan.Roles[i] == Uplink {
			for r := range plan.MainRoutes() {
				if r.Family == f && r.Type == RouteUnicast && r.Destination.IsSingleIP() && r.Gateway.IsValid() && !r.Source.IsValid() && !r.Protocol.ofDaemon() {
					visit(r)
				}
			}
		}
	}
	for _, d := range [...]map[int]struct{}{x.facts.Dead[i], x.silent[i]} {
		for index := range d {
			each(index, func(r Route) {
				if m, known := hosts[r.Destination]; !known || r.Metric < m {
					hosts[r.Destination] = r.Metric
				}
			})
		}
	}
	for index := range x.exits[i] {
		if x.dead(i, index) {
			continue
		}
		each(index, func(r Route) {
			if m, known := hosts[r.Destination]; known && r.Metric < m {
				delete(hosts, r.Destination) // Main leads there by a living one.
			}
		})
	}
	if len(hosts) > mostHostRoutes {
		return nil
	}
	var out []PlannedRule
	for _, host := range slices.SortedFunc(maps.Keys(hosts), netip.Prefix.Compare) {
		r := Rule{Priority: PriorityTwin, To: host, Action: ActionLookup, Table: table, Mark: p.around[i].ownMark(PriorityTwin)}
		if x.sentHere(f) {
			r.IIF = Loopback
		}
		out = append(out, p.alike(i, PlannedRule{Rule: r, Rank: 2 << 8, Reason: Reason{Decision: FollowLiving, Prefix: host.String()}})...)
	}
	return out
}
