package reconcile

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"

	"multihomed/routing"
)

// A try is how often an operation was tried in passes that followed one another,
// and what the kernel said last.
type try struct {
	count int
	err   error
}

const (
	// maxTries is how often the same operation may come back although the
	// kernel said that it did it.
	maxTries = 4
	// maxRefusals is how often the kernel is asked for what it refuses. Once
	// more than once: it may be that the refusal came of an event that the
	// mirror had not seen, and then the next pass does not ask.
	maxRefusals = 2
)

var errUndone = errors.New("done several times, and undone each time")

// pass plans the dirty interfaces and applies what differs. It takes what was
// tried in the pass before and returns what was tried in this one.
func (l *Loop) pass(ctx context.Context, before map[routing.Op]try) map[routing.Op]try {
	l.Counters.passes.Add(1)
	plans := l.plan(ctx)
	planned := l.planner.Take()
	l.retire(planned)
	l.noteProblems(planned)
	l.dated(planned)
	l.touched.Merge(planned)
	l.leaveAway()

	var ops []routing.Op
	whole := false
	l.Mirror.View(func(k State) {
		whole = k.Complete()
		ops = routing.Diff(l.planner, k, l.touched, func(op routing.Op) bool { return whole && l.mayDelete(k, op) })
	})
	compared := l.touched
	l.touched = routing.NewTouched()
	if !whole {
		// The mirror missed something since it was synchronised: what was not
		// deleted is looked at again when it is whole.
		l.touched.Merge(compared)
	}
	tries := make(map[routing.Op]try, len(ops))
	// Where other rules came or went, a rule may have to move once more.
	reordered := len(planned.Rules) > 0 || len(planned.Reranked) > 0
	ops = slices.DeleteFunc(ops, func(op routing.Op) bool {
		t := before[op]
		if op.Verb == routing.MoveRule && reordered {
			t = try{}
		}
		t.count++
		if endless := l.endless(op, t); endless {
			return true
		}
		tries[op] = t
		return false
	})
	// A process that is killed from here on has left word of what it made of the links.
	l.keepMemory()
	l.noteLinks(plans, ops)
	errs := l.Writer.Apply(ctx, ops)
	if ctx.Err() != nil {
		return tries
	}
	written := make([]routing.Op, 0, len(ops))
	for i, op := range ops {
		// What was written is compared once more when the mirror has it.
		touch(l.touched, op)
		if i < len(errs) && errs[i] != nil {
			l.Counters.kernel.Add(1)
			tries[op] = try{count: tries[op].count, err: errs[i]}
			continue
		}
		l.applied(ctx, op)
		written = append(written, op)
	}
	if l.Hooks.Wrote != nil && len(written) > 0 {
		l.Hooks.Wrote(written)
	}
	clear(l.restored)
	return tries
}

// touch names the object of an operation.
func touch(t routing.Touched, op routing.Op) {
	switch op.Verb {
	case routing.AddRule, routing.MoveRule, routing.DeleteRule:
		t.Rules[op.Rule] = struct{}{}
	case routing.AddRoute, routing.ReplaceRoute, routing.DeleteRoute:
		t.Routes[op.Route.Key()] = struct{}{}
	case routing.SetGroup, routing.ResetGroup:
		t.Groups[op.Index] = struct{}{}
	}
}

// endless reports whether trying at once again would not help. Then the
// operation is left for later.
func (l *Loop) endless(op routing.Op, t try) bool {
	switch {
	case t.err != nil && t.count > maxRefusals:
		l.refused(op, t.err)
	case t.count > maxTries:
		l.refused(op, errUndone)
	default:
		return false
	}
	return true
}

// retire remembers which objects a known link has given up: they may be deleted
// however little is known of the rest.
func (l *Loop) retire(t routing.Touched) {
	for r := range t.Rules {
		if _, wanted := l.planner.Rule(r); wanted {
			delete(l.retired.Rules, r)
		} else {
			l.retired.Rules[r] = struct{}{}
		}
	}
	for k := range t.Routes {
		if _, wanted := l.planner.Route(k); wanted {
			delete(l.retired.Routes, k)
		} else {
			l.retired.Routes[k] = struct{}{}
		}
	}
	for index := range t.Groups {
		l.retired.Groups[index] = struct{}{}
	}
}

func (l *Loop) mayDelete(k State, op routing.Op) bool {
	if op.Verb == routing.DeleteRule && !l.answersKnown && op.Rule.IsAnswer() {
		return false // Packets may be marked for it.
	}
	if op.Verb == routing.DeleteRule && !l.bindingsKnown && op.Rule.IsBinding() {
		return false // Something may be bound by it.
	}
	if l.complete || l.abandoned(k, op) {
		return true
	}
	switch op.Verb {
	case routing.DeleteRule:
		// One of two equal rules may always go.
		if _, wanted := l.planner.Rule(op.Rule); wanted {
			return true
		}
		_, retired := l.retired.Rules[op.Rule]
		return retired
	case routing.DeleteRoute:
		_, retired := l.retired.Routes[op.Route.Key()]
		return retired
	default:
		_, retired := l.retired.Groups[op.Index]
		return retired
	}
}

// subject is one interface in a pass.
type subject struct {
	link routing.Link
	keys []routing.Key
	// claim is what the owner says, who calls the interface said.
	claim Claim
	said  string
	// addresses are all of the interface, also those that the owner leaves out.
	addresses []routing.Address
	// whole says that the link has all of its routes, not the structure alone.
	whole bool
}

// reroute hands the routes of main that changed to the planner. Interfaces for which
// they decide more than one route of a table are dirty.
func (l *Loop) reroute() {
	for index, destinations := range l.rerouted {
		if _, planned := l.planner.Link(index); !planned || contains(l.unread, index) {
			l.dirty[index] = struct{}{}
			continue
		}
		refused := l.planner.SetPaths(index, l.ways(index, destinations))
		l.picture.spoilRoutes(index)
		if len(refused) == 0 {
			delete(l.rerouted, index)
			continue
		}
		l.dirty[index] = struct{}{}
		clear(destinations)
		for _, d := range refused {
			destinations[d] = struct{}{}
		}
	}
}

// ways returns the routes that main has to some destinations through an interface.
func (l *Loop) ways(index int, destinations map[routing.Destination]struct{}) map[routing.Destination][]routing.Route {
	ways := make(map[routing.Destination][]routing.Route, len(destinations))
	l.Mirror.View(func(k State) {
		for d := range destinations {
			ways[d] = k.Ways(index, d)
		}
	})
	return ways
}

func contains[K comparable](set map[K]struct{}, k K) bool {
	_, is := set[k]
	return is
}

// plan hands the facts of the dirty interfaces to the planner, and returns the
// plans they had before.
func (l *Loop) plan(ctx context.Context) map[int]routing.LinkPlan {
	l.reroute()
	dirty := slices.Sorted(maps.Keys(l.dirty))
	defer clear(l.rerouted)
	clear(l.dirty)
	l.devices = nil
	before := make(map[int]routing.LinkPlan, len(dirty))
	var links []subject
	missing := map[int][]routing.Key{}
	if len(dirty) > 0 {
		l.picture.restructure(dirty...)
	}
	for _, index := range dirty {
		plan, planned := l.planner.Link(index)
		before[index] = plan
		l.touched.Groups[index] = struct{}{}
		s, is := l.subject(index)
		if !is {
			l.forget(index)
			continue
		}
		if planned && len(plan.Keys) > 0 {
			// It is being brought up once more, as when NetworkManager restarts,
			// and was known to be no uplink: cutting it off would help nobody.
			if plan.Role() == routing.Local {
				s.link.Pending = false
			}
			for _, f := range plan.Shown() {
				s.link.KnownLocal.Set(f, plan.Roles.In(f) == routing.Local)
			}
		}
		if s.claim.Only != nil {
			l.lent[index] = struct{}{}
		} else {
			delete(l.lent, index)
		}
		l.recallRole(&s, plan, planned)
		for _, f := range routing.Families() {
			if planned && routing.HasMainDefault(plan.Link, f) && !routing.HasMainDefault(s.link, f) {
				// The owner may have changed its mind about the link being an uplink.
				l.Owners.Recheck(s.said)
				break
			}
		}
		links = append(links, s)
		for _, k := range s.keys {
			if _, held := l.held[index][k]; !held {
				missing[index] = append(missing[index], k)
			}
		}
	}
	leased := l.leaveTaken(ctx, links, l.lease(ctx, missing))
	for _, s := range links {
		s.link.Tables = l.hold(s, leased)
		l.networks.set(s.link.Index, networksOf(s.link))
		l.Mirror.View(func(k State) {
			s.link.Elsewhere = elsewhereOf(k, s.link, s.claim, l.isLink(k))
		})
		if s.whole {
			l.planner.Set(s.link)
		} else {
			l.planner.SetFacts(s.link)
		}
		delete(l.unread, s.link.Index)
	}
	return before
}

// subject returns the facts of an interface, false if it is no link.
func (l *Loop) subject(index int) (subject, bool) {
	var facts routing.Interface
	var exists, was, claimed bool
	var claim Claim
	said := ""
	plan, planned := l.planner.Link(index)
	whole := !planned || contains(l.unread, index)
	l.Mirror.View(func(k State) {
		facts, exists = k.LinkFacts(index)
		if exists && facts.Up != plan.Link.Up {
			whole = true
		}
		if exists && whole {
			facts, exists = k.Link(index)
		}
		claim, said, claimed = l.of(k, index)
		if exists && (claim.Standing == Draining || claim.Pending && !planned) {
			was = l.was(k, index, facts.Name)
		}
	})
	if !exists {
		delete(l.known, index)
		l.bindings.forget(index)
		return subject{}, false
	}
	if !whole {
		facts.Routes = l.planner.Structure(index, l.ways(index, l.rerouted[index]))
	}
	if claimed {
		l.known[index] = facts.Name
	}
	s := subject{link: linkOf(facts, claim), claim: claim, said: said, addresses: facts.Addresses, whole: whole}
	s.keys = routing.Keys(s.link)
	if was && !planned && facts.Group != l.Policy.UplinkGroup {
		// It is being brought up once more, and the process before this one knew it to be
		// no uplink.
		s.link.Pending = false
	}
	if was && !planned && s.link.Pending {
		stops := l.stopped(s.keys)
		for _, k := range s.keys {
			s.link.KnownLocal.Set(k.Family, !stops.In(k.Family) && l.leads(k.Family, facts.Name))
		}
	}
	switch claim.Standing {
	case Link:
		return s, true
	case Draining:
		return s, was && len(s.keys) > 0
	default:
		return s, false
	}
}

// linkOf puts together what the kernel and the owner say of an interface.
func linkOf(facts routing.Interface, claim Claim) routing.Link {
	addresses := facts.Addresses
	if claim.Only != nil {
		addresses = slices.DeleteFunc(slices.Clone(addresses), func(a routing.Address) bool {
			return !slices.Contains(claim.Only, a.Prefix.Addr())
		})
	}
	return routing.Link{
		Name: facts.Name, Index: facts.Index, Up: facts.Up, NotRunning: !facts.Carrier || !facts.Running, Group: facts.Group,
		Addresses: addresses, Routes: facts.Routes, Others: facts.Others, LongTables: facts.LongTables, Intents: withoutOwnGateways(claim.Intents, facts.Addresses),
		Pending: claim.Pending, Known: claim.Known, DefaultMayBeMissing: claim.DefaultMayBeMissing,
		Choice: claim.Choice, LastResort: claim.LastResort,
	}
}

// withoutOwnGateways leaves out gateways that are addresses of the interface itself: the
// kernel refuses a route through them, and they make no uplink.
func withoutOwnGateways(intents map[routing.Family]routing.Intent, own []routing.Address) map[routing.Family]routing.Intent {
	for f, in := range intents {
		if in.Gateway.IsValid() && HasAddress(own, in.Gateway) {
			intents = maps.Clone(intents) // The map is the claim's.
			in.Gateway = netip.Addr{}
			intents[f] = in
		}
	}
	return intents
}

// HasAddress reports whether an address is among those of an interface.
func HasAddress(own []routing.Address, a netip.Addr) bool {
	return slices.ContainsFunc(own, func(o routing.Address) bool { return o.Prefix.Addr() == a })
}

// of returns the claim that counts for an interface, and the name that its owner uses.
func (l *Loop) of(k State, index int) (c Claim, name string, claimed bool) {
	c, name, claimed = l.bindings.of(k, index)
	if c.Standing == Draining && c.Else != nil && l.drained(k, index, *c.Else) {
		return *c.Else, name, claimed
	}
	return c, name, claimed
}

// drained reports whether nothing of an interface would be taken away if a claim that
// names its addresses counted now.
func (l *Loop) drained(k State, index int, by Claim) bool {
	facts, exists := k.LinkFacts(index)
	if !exists || !l.was(k, index, facts.Name) {
		return true
	}
	link := linkOf(facts, Claim{})
	plan, planned := l.planner.Link(index)
	return !slices.ContainsFunc(facts.Addresses, func(a routing.Address) bool {
		if slices.Contains(by.Only, a.Prefix.Addr()) || !routing.TakesPart(link, a) {
			return false
		}
		if planned {
			return slices.ContainsFunc(plan.Link.Addresses, func(o routing.Address) bool { return o.Prefix == a.Prefix })
		}
		return hasRung(k, a.Prefix)
	})
}

// hasRung reports whether a source rule of ours stands for an address, or for the
// network that it is in.
func hasRung(k State, address netip.Prefix) bool {
	f := routing.FamilyOf(address.Addr())
	for _, from := range []netip.Prefix{netip.PrefixFrom(address.Addr(), address.Addr().BitLen()), address.Masked()} {
		for range k.RulesFrom(f, routing.PrioritySource, from) {
			return true
		}
	}
	return false
}

// was reports whether the interface was a link until now: to this process, or
// to the one before it, which left a rule for the device. What was one by a lease alone
// has no owner who could take it down: there is nothing to drain.
func (l *Loop) was(k State, index int, name string) bool {
	if _, seen := l.known[index]; seen {
		_, was := l.planner.Link(index)
		return was && !contains(l.lent, index)
	}
	if l.ready {
		return false // Whatever was a link before has been claimed by now.
	}
	if l.devices == nil {
		l.devices = map[string]struct{}{}
		for _, f := range routing.Families() {
			for _, r := range k.RuleOrder(f, routing.PriorityDevice) {
				l.devices[r.OIF] = struct{}{}
			}
		}
	}
	_, was := l.devices[name]
	return was
}

// recallRole adds what is remembered of a link. One that is being taken down keeps the
// role it had: nobody says any more what made it one.
func (l *Loop) recallRole(s *subject, before routing.LinkPlan, planned bool) {
	link := &s.link
	claim := s.claim
	if claim.Standing == Link {
		l.recall.learn(*link, s.addresses, claim, l.complete)
	}
	l.recall.lost(*link, l.now())
	link.WasUplink, link.DefaultUntil = l.recall.WasUplink(*link, s.addresses, claim, l.complete)
	if claim.Standing != Draining {
		return
	}
	var stops routing.ByFamily[bool]
	if !planned {
		stops = l.stopped(s.keys)
	}
	for _, f := range routing.Families() {
		link.WasUplink.Set(f, link.WasUplink.In(f) || before.Roles.In(f) == routing.Uplink || stops.In(f))
	}
}

// stopped reports by family whether a rung of uplinks stands for a network: the process
// before this one left it.
func (l *Loop) stopped(keys []routing.Key) (stands routing.ByFamily[bool]) {
	l.Mirror.View(func(k State) {
		for _, f := range routing.Families() {
			for _, r := range k.RuleOrder(f, routing.PriorityUnreachable) {
				// Rungs of local links may be repeated there: see the rung "again".
				if r.Action != routing.ActionUnreachable {
					continue
				}
				stands.Set(f, stands.In(f) || slices.ContainsFunc(keys, func(key routing.Key) bool {
					return key.Family == f && (key.Prefix == r.From || !key.OfHosts() && key.Prefix.Contains(r.From.Addr()))
				}))
			}
		}
	})
	return stands
}

// leads reports whether a rung of a family leads to a table of an interface.
func (l *Loop) leads(f routing.Family, name string) (stands bool) {
	l.Mirror.View(func(k State) {
		stands = slices.ContainsFunc(k.RuleOrder(f, routing.PriorityDevice), func(r routing.Rule) bool { return r.OIF == name })
	})
	return stands
}

func (l *Loop) forget(index int) {
	l.planner.Remove(index)
	delete(l.unread, index)
	delete(l.lent, index)
	l.takeovers.forget(index)
	l.networks.set(index, nil)
	var facts routing.Interface
	exists, whole, claimed := false, false, false
	l.Mirror.View(func(k State) {
		facts, exists = k.LinkFacts(index)
		whole = k.Complete()
		_, _, claimed = l.of(k, index)
	})
	// Whoever has not spoken yet may still say that it is a link.
	switch {
	case !whole:
	case !exists:
		l.recall.noLink(index, nil)
	case claimed && l.complete:
		l.recall.noLink(index, &facts)
	}
	for k := range l.held[index] {
		l.unhold(k)
	}
	delete(l.held, index)
}

func (l *Loop) unhold(k routing.Key) {
	if l.holders[k]--; l.holders[k] <= 0 {
		delete(l.holders, k)
		l.released[k] = struct{}{}
		delete(l.takeovers.stays, k)
	}
}

// lease gets tables for keys, by interface, all in one transaction.
func (l *Loop) lease(ctx context.Context, keys map[int][]routing.Key) map[routing.Key]routing.TableID {
	if len(keys) == 0 {
		return nil
	}
	var all []routing.Key
	for _, index := range slices.Sorted(maps.Keys(keys)) {
		all = append(all, keys[index]...)
	}
	leased, err := l.Leases.Acquire(ctx, all, l.TableInUse)
	if ctx.Err() != nil {
		return leased
	}
	if err != nil {
		l.Counters.database.Add(1)
	}
	for index, wanted := range keys {
		for _, k := range wanted {
			if _, ok := leased[k]; ok || err == nil {
				l.cure(aboutTable(k))
				continue
			}
			l.fail(aboutTable(k), failure{
				Problem: routing.ProblemOf(routing.NoTable, routing.Error, k.Interface, err), index: index,
			})
		}
	}
	return leased
}

// TableInUse says by what a table number is in use. Objects of ours count: what
// stands may be the rest of a link that holds no lease any more. It may be
// called from any goroutine, and says what the mirror knows.
func (l *Loop) TableInUse(t routing.TableID) (why string, used bool) {
	if why, used = l.Reserved(t); used {
		return why, true
	}
	if f, has := l.Policy.FailoverTable(); has && t == f {
		return "failover", true
	}
	if name, used := l.owned.by(t); used {
		return "the profile of " + name, true
	}
	l.Mirror.View(func(k State) { why, used = k.UseOf(t) })
	return why, used
}

// hold notes which keys an interface holds now, and returns their tables.
func (l *Loop) hold(s subject, leased map[routing.Key]routing.TableID) map[routing.Key]routing.TableID {
	before := l.held[s.link.Index]
	now := make(map[routing.Key]routing.TableID, len(s.keys))
	for _, k := range s.keys {
		if t, ok := before[k]; ok {
			now[k] = t
		} else if t, ok := leased[k]; ok {
			now[k] = t
			l.holders[k]++
		}
	}
	for k := range before {
		if _, keeps := now[k]; !keeps {
			l.unhold(k)
		}
	}
	l.held[s.link.Index] = now
	return now
}
