package routing_test

import (
	stdcmp "cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"multihomed/routing"
	"multihomed/routing/kerneltest"
	_ "multihomed/test/seeds"
)

var policy = routing.DefaultPolicy()

// compare knows the types of netip, which have fields of their own, and the
// unexported notes of the planner.
var compare = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b routing.Attributes) bool { return a == b }),
	cmpopts.IgnoreUnexported(routing.LinkPlan{}, routing.Op{}),
	cmpopts.EquateEmpty(),
}

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// A part adds something to a link.
type part func(*routing.Link)

// link builds the facts of a link that is up. Its leases are handed out by
// lease or worldOf.
func link(index int, name string, parts ...part) routing.Link {
	l := routing.Link{Name: name, Index: index, Up: true, Intents: map[routing.Family]routing.Intent{}}
	for _, p := range parts {
		p(&l)
	}
	return l
}

// address adds an address as the kernel or NetworkManager does: with the route
// to its network, of that metric.
func address(s string, metric uint32, change ...func(*routing.Address)) part {
	return func(l *routing.Link) {
		p := prefix(s)
		bare(s, change...)(l)
		if p.IsSingleIP() {
			return
		}
		r := routing.Route{
			Family: routing.FamilyOf(p.Addr()), Table: routing.TableMain, Destination: p.Masked(), Metric: metric,
			Type: routing.RouteUnicast, Device: l.Index, Protocol: kerneltest.ProtocolKernel,
		}
		if p.Addr().Is4() {
			r.Scope, r.PreferredSource = routing.ScopeLink, p.Addr()
		}
		if !slices.ContainsFunc(l.Routes, func(have routing.Route) bool { return have.Key() == r.Key() }) {
			l.Routes = append(l.Routes, r)
		}
	}
}

// bare adds an address without a route.
func bare(s string, change ...func(*routing.Address)) part {
	return func(l *routing.Link) {
		a := routing.Address{Prefix: prefix(s)}
		if a.Prefix.Addr().Is6() && a.Prefix.Addr().IsLinkLocalUnicast() {
			a.Scope = routing.ScopeLink
		}
		for _, c := range change {
			c(&a)
		}
		l.Addresses = append(l.Addresses, a)
	}
}

func dynamic(a *routing.Address) { a.Dynamic = true }

// route adds a route of main; an empty gateway is none.
func route(to, via string, metric uint32, change ...func(*routing.Route)) part {
	return func(l *routing.Link) {
		r := routing.Route{
			Table: routing.TableMain, Destination: prefix(to), Metric: metric, Type: routing.RouteUnicast,
			Device: l.Index, Protocol: kerneltest.ProtocolDHCP,
		}
		r.Family = routing.FamilyOf(r.Destination.Addr())
		switch {
		case via != "":
			r.Gateway = addr(via)
		case r.Family == routing.IPv4:
			r.Scope = routing.ScopeLink
		}
		for _, c := range change {
			c(&r)
		}
		l.Routes = append(l.Routes, r)
	}
}

func intent(f routing.Family, in routing.Intent) part {
	return func(l *routing.Link) { l.Intents[f] = in }
}

func gatewayHint(s string) part {
	return intent(routing.FamilyOf(addr(s)), routing.Intent{Gateway: addr(s)})
}

// known adds a route that the owner knows, for an address of the link or for none.
func known(to, via, source string) part {
	return func(l *routing.Link) {
		r := routing.Route{Destination: prefix(to), Type: routing.RouteUnicast}
		r.Family = routing.FamilyOf(r.Destination.Addr())
		if source != "" {
			r.PreferredSource = addr(source)
		}
		switch {
		case via != "":
			r.Gateway = addr(via)
		case r.Family == routing.IPv4:
			r.Scope = routing.ScopeLink
		}
		l.Known, l.DefaultMayBeMissing = append(l.Known, r), true
	}
}

func group(g uint32) part { return func(l *routing.Link) { l.Group = g } }

// down takes the link down: the kernel drops its routes.
func down(l *routing.Link) { l.Up, l.Routes = false, nil }

// pending says that the owner is still bringing the link up.
func pending(l *routing.Link) { l.Pending = true }

// leases hands out tables the way the allocator does: one per key, sticky.
type leases map[routing.Key]routing.TableID

func (ls leases) of(l routing.Link) map[routing.Key]routing.TableID {
	out := map[routing.Key]routing.TableID{}
	for _, k := range routing.Keys(l) {
		if _, ok := ls[k]; !ok {
			ls[k] = policy.Tables.First + routing.TableID(len(ls))
		}
		out[k] = ls[k]
	}
	return out
}

// A host is a kernel with links on it, and what is known of them.
type host struct {
	kernel  *kerneltest.Kernel
	planner *routing.Planner
	leases  leases
	links   map[int]routing.Link
	// natural is what rules that the kernel numbered would have without us.
	natural routing.Priority
	// naturals are what each of them would have, nil if all have the same.
	naturals map[routing.Rule]routing.Priority
}

func newHost() *host { return newHostOf(policy) }

func newHostOf(p routing.Policy) *host {
	return &host{
		kernel: kerneltest.New(p), planner: routing.NewPlanner(p),
		leases: leases{}, links: map[int]routing.Link{},
	}
}

// install lets the kernel have a link, and the planner know what came of it.
func (h *host) install(l routing.Link) {
	_, had := h.links[l.Index]
	h.kernel.Install(l)
	if !had && l.Group != 0 {
		h.kernel.SetGroup(l.Index, l.Group)
	}
	if l.Tables == nil {
		l.Tables = h.leases.of(l)
	}
	h.links[l.Index] = l
	h.look(l.Index)
}

// look hands the facts of a link to the planner.
func (h *host) look(index int) {
	if l, ok := h.links[index]; ok {
		h.planner.Set(h.kernel.Facts(l))
	}
}

// lookAll hands all facts to the planner. It is what a daemon knows that starts.
func (h *host) lookAll() {
	h.lookAround()
	for index := range h.links {
		h.look(index)
	}
}

// lookAround hands what others have to the planner. Rules in front of the ladder
// count as the kernel's if they carry the protocol of who names none.
func (h *host) lookAround() {
	for _, f := range routing.Families() {
		var foreign []routing.ForeignRule
		for _, r := range h.kernel.Foreign(f) {
			o := routing.ForeignRule{Rule: r}
			if h.naturals != nil {
				o.Natural, o.Numbered = h.naturals[r]
			} else if r.Protocol == routing.ProtocolBoot && r.Priority >= routing.PriorityNumbered && r.Priority < routing.PriorityKnown {
				// Without us it stands where it stands, unless a test knows better.
				o.Numbered, o.Natural = true, stdcmp.Or(h.natural, r.Priority)
			}
			foreign = append(foreign, o)
		}
		h.planner.SetForeign(f, foreign)
		h.planner.SetDefaults(f, h.kernel.Defaults(f))
		h.planner.SetThrown(f, h.kernel.Thrown(f))
	}
	members := map[uint32]int{}
	for _, group := range h.kernel.Groups() {
		if group != 0 {
			members[group]++
		}
	}
	h.planner.SetGroups(members)
}

func (h *host) remove(index int) {
	delete(h.links, index)
	h.kernel.RemoveInterface(index)
	h.planner.Remove(index)
}

func always(routing.Op) bool { return true }

// converge makes one complete pass and fails on the first refusal.
func (h *host) converge(t tb) {
	t.Helper()
	h.lookAround()
	ops := routing.Diff(h.planner, h.kernel, routing.Everything(h.planner, h.kernel), always)
	h.apply(t, ops)
	h.planner.Take()
}

func (h *host) apply(t tb, ops []routing.Op) {
	t.Helper()
	for i, err := range h.kernel.ApplyAll(ops) {
		if err != nil {
			t.Fatalf("op %d of %d: %v\nops:\n%s", i, len(ops), err, opsText(ops))
		}
	}
	for _, op := range ops {
		if op.Verb == routing.SetGroup || op.Verb == routing.ResetGroup {
			h.look(op.Index)
		}
	}
}

func opsText(ops []routing.Op) string {
	var b []byte
	for _, op := range ops[:min(len(ops), 60)] {
		b = append(b, op.String()...)
		b = append(b, '\n')
	}
	return string(b)
}

// hostOf is a host on which these links are up and everything is in force.
func hostOf(t tb, links ...routing.Link) *host {
	t.Helper()
	h := newHost()
	for _, l := range links {
		h.install(l)
	}
	h.converge(t)
	h.settled(t)
	return h
}

// settled fails unless the kernel holds what the plan says, in an order that
// the plan allows, and nothing is left to do.
func (h *host) settled(t tb) {
	t.Helper()
	rules, routes := map[routing.Rule]int{}, map[routing.RouteKey]routing.Route{}
	for r := range h.planner.Rules() {
		rules[r.Rule] = 1
	}
	for r := range h.planner.Routes() {
		routes[r.Route.Key()] = r.Route
	}
	standing, held := map[routing.Rule]int{}, map[routing.RouteKey]routing.Route{}
	for r := range h.kernel.Rules() {
		standing[r]++
	}
	for r := range h.kernel.Routes() {
		held[r.Key()] = r
	}
	if !maps.Equal(rules, standing) {
		t.Fatalf("rules of the plan (-) and of the kernel (+):\n%s", cmp.Diff(rules, standing, compare))
	}
	if !maps.Equal(routes, held) {
		t.Fatalf("routes of the plan (-) and of the kernel (+):\n%s", cmp.Diff(routes, held, compare))
	}
	for index, now := range h.kernel.Groups() {
		if then := h.planner.Group(index, now); then != now {
			t.Fatalf("interface %d is in group %d and must be in %d", index, now, then)
		}
	}
	h.ordered(t)
	if ops := routing.Diff(h.planner, h.kernel, routing.Everything(h.planner, h.kernel), always); len(ops) > 0 {
		t.Fatalf("a second pass has something to do:\n%s", opsText(ops))
	}
}

// ordered fails unless every two rules that could match the same packet stand
// in the order of their ranks.
func (h *host) ordered(t tb) {
	t.Helper()
	rank := map[routing.Rule]uint64{}
	priorities := map[routing.Priority]struct{}{}
	for r := range h.planner.Rules() {
		rank[r.Rule] = r.Rank
		priorities[r.Rule.Priority] = struct{}{}
	}
	for _, f := range routing.Families() {
		for p := range priorities {
			order := h.kernel.RuleOrder(f, p)
			for i, a := range order {
				for _, b := range order[i+1:] {
					if rank[a] > rank[b] && compete(a, b) {
						t.Fatalf("%s stands before %s", a, b)
					}
				}
			}
		}
	}
}

func compete(a, b routing.Rule) bool {
	overlap := func(a, b netip.Prefix) bool { return !a.IsValid() || !b.IsValid() || a.Overlaps(b) }
	return overlap(a.From, b.From) && overlap(a.To, b.To) && (a.OIF == b.OIF || a.OIF == "" || b.OIF == "") &&
		a.Action != routing.ActionUnreachable
}

// tb is what *testing.T and *rapid.T share.
type tb interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}
