package kernel

import (
	"context"
	"errors"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
	"multihomed/routing"
)

const (
	// worthReading is how many routes of no interest a dump of everything may
	// bring before it is cheaper to ask for our tables and interfaces one by
	// one. Everything tells more: see slot.whole.
	worthReading = 20_000
	// worthAsking is up to how many interfaces that is: each question walks all
	// routes of the family inside the kernel, which takes a ninth of the time
	// it takes to read them (BenchmarkLoad).
	worthAsking = 8
	// skipStatistics is RTEXT_FILTER_SKIP_STATS of linux/if_link.h.
	skipStatistics = 1 << 3
)

// A loader fills a state from dumps.
type loader struct {
	requests *requester
	// budget is worthReading, but for tests.
	budget int
}

// load returns a new state. Interfaces that the old one knows keep their
// interest.
func (l loader) load(ctx context.Context, old *State) (*State, error) {
	s := newState(old.owns, old.interest)
	s.departures = old.departures + 1 // Some may have gone unseen.
	s.elsewhere.networks, s.elsewhere.lengths = old.elsewhere.networks, old.elsewhere.lengths
	if err := l.links(ctx, s, old); err != nil {
		return nil, err
	}
	for _, f := range routing.Families() {
		if err := l.addresses(ctx, s, f); err != nil {
			return nil, err
		}
	}
	if err := l.nexthops(ctx, s); err != nil {
		return nil, err
	}
	s.doubts = newDoubts()
	for _, f := range routing.Families() {
		if err := l.routes(ctx, s, f); err != nil {
			return nil, err
		}
	}
	for _, f := range routing.Families() {
		if err := l.guests(ctx, s, f); err != nil {
			return nil, err
		}
	}
	for _, f := range routing.Families() {
		if err := l.rules(ctx, s, f); err != nil {
			return nil, err
		}
	}
	for k := range s.rules.all {
		t, err := l.other(ctx, s, k)
		if err != nil {
			return nil, err
		}
		s.others[k] = t
	}
	s.inherit(old.authors)
	s.changes = routing.NewChanges()
	s.changes.All = true
	s.events = old.events
	s.strange = old.strange + 1
	s.whole = true
	return s, nil
}

// fill runs a dump whose items are collected first and taken in when the dump
// has come to its end whole.
// What cannot be read is left out and noted: it is not one of ours.
func fill[T any](ctx context.Context, r *requester, s *State, d dump, read func([]byte) (T, error), take func(T)) error {
	var items []T
	var faults []error
	d.restart = func() { items, faults = items[:0], faults[:0] }
	d.each = func(payload []byte) bool {
		if item, err := read(payload); err != nil {
			faults = append(faults, err)
		} else {
			items = append(items, item)
		}
		return true
	}
	if err := r.dump(ctx, d); err != nil {
		return err
	}
	for _, err := range faults {
		s.misread(err)
	}
	for _, item := range items {
		take(item)
	}
	return nil
}

func (l loader) links(ctx context.Context, s, old *State) error {
	return fill(ctx, l.requests, s, dump{
		what: "interfaces", kind: unix.RTM_GETLINK,
		body: func(m *nlmsg.Builder) {
			m.Bytes(make([]byte, unix.SizeofIfInfomsg)...)
			m.Attribute32(unix.IFLA_EXT_MASK, skipStatistics)
		},
	}, decodeLink, func(m linkMessage) {
		if m.bridge {
			return
		}
		s.linkSeen(m)
		if o := old.links[m.index]; o != nil {
			s.links[m.index].interested = o.interested
		}
	})
}

func (l loader) addresses(ctx context.Context, s *State, f routing.Family) error {
	return fill(ctx, l.requests, s, dump{
		what: "addresses", kind: unix.RTM_GETADDR,
		body: func(m *nlmsg.Builder) { m.Bytes(byte(f), 0, 0, 0, 0, 0, 0, 0) },
	}, decodeAddress, func(m addressMessage) {
		if m.family == f {
			s.addressAdded(m)
		}
	})
}

func (l loader) rules(ctx context.Context, s *State, f routing.Family) error {
	defer func() { s.rules.loaded = s.rules.last }()
	return fill(ctx, l.requests, s, dump{
		what: "rules", kind: unix.RTM_GETRULE,
		// A strict dump wants the whole header, all zero but the family
		// (fib_valid_dumprule_req in net/core/fib_rules.c).
		body: func(m *nlmsg.Builder) { m.Bytes(byte(f), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) },
	}, decodeRule, func(r routing.Rule) { s.rules.add(r, s.ours(r)) })
}

// ReadRules reads the rules of both families once, in no order, for callers that need
// no mirror. The error is one of the socket, or says that the rules kept changing.
func ReadRules(ctx context.Context) (rules []routing.Rule, err error) {
	requests, err := newRequester()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, requests.close()) }()
	s := newState(routing.Ownership{}, nil)
	for _, f := range routing.Families() {
		if err := (loader{requests: requests}).rules(ctx, s, f); err != nil {
			return nil, err
		}
	}
	return slices.AppendSeq(rules, maps.Keys(s.rules.rungs)), nil
}

// routeQuestion is the filter of a strict dump of routes.
type routeQuestion struct {
	family routing.Family
	table  routing.TableID
	kind   routing.RouteType
	device int
	// protocol is 0 for any.
	protocol routing.Protocol
}

func (q routeQuestion) dump() dump {
	return dump{
		what: "routes", kind: unix.RTM_GETROUTE,
		body: func(m *nlmsg.Builder) {
			m.Bytes(byte(q.family), 0, 0, 0, 0, byte(q.protocol), 0, byte(q.kind))
			m.Word(0)
			if q.table != 0 {
				m.Attribute32(unix.RTA_TABLE, uint32(q.table))
			}
			if q.device != 0 {
				m.Attribute32(unix.RTA_OIF, uint32(q.device)) //nolint:gosec // an interface index
			}
		},
	}
}

// ranges are the tables that are ours.
func (s *State) ranges() []routing.TableRange {
	return append([]routing.TableRange{s.owns.Tables}, s.owns.Former...)
}

// owned is how many tables that are.
func (s *State) owned() (n int) {
	for _, r := range s.ranges() {
		n += r.Size()
	}
	return n
}

// absent reports whether a filtered dump failed because what it filters by is
// not there: no such table (ENOENT) or interface (ENODEV).
func absent(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) }

// routes reads everything, or, where that is too much, what is of interest.
func (l loader) routes(ctx context.Context, s *State, f routing.Family) error {
	var interesting []int
	for index, link := range s.links {
		if link.interested {
			interesting = append(interesting, index)
		}
	}
	slices.Sort(interesting)
	budget := l.budget
	if len(interesting) > worthAsking || s.owned() > 10_000 {
		budget = 0
	}
	listed, err := l.allRoutes(ctx, s, f, budget)
	if errors.Is(err, errBudget) {
		err = l.chosenRoutes(ctx, s, f, interesting, listed)
	}
	if err != nil {
		return err
	}
	for _, aliases := range listed {
		for _, a := range aliases {
			s.loaded(a, true)
		}
	}
	s.settleAll()
	return nil
}

// A reading is a dump of all routes of a family on its way through. The entries
// of one key follow each other; those before the first that is wanted are held
// back, undecoded, because most keys have none that is.
type reading struct {
	state  *State
	listed map[fibKey][]*alias
	// last is the key that is being listed, held what was held back of it.
	last   fibKey
	held   [][]byte
	passed int
	faults []error
}

// allRoutes reads all routes of a family and returns, whole, the keys that have
// something wanted. With a budget it gives up after that many routes of no
// interest, and returns what was listed by then: the default routes are, they
// come first.
func (l loader) allRoutes(ctx context.Context, s *State, f routing.Family, budget int) (map[fibKey][]*alias, error) {
	var r reading
	q := routeQuestion{family: f}.dump()
	q.restart = func() { r = reading{state: s, listed: map[fibKey][]*alias{}} }
	q.each = func(payload []byte) bool {
		if err := r.read(payload); err != nil {
			r.faults = append(r.faults, err)
		}
		return budget == 0 || r.passed <= budget
	}
	err := l.requests.dump(ctx, q)
	if errors.Is(err, errBudget) {
		delete(r.listed, r.last)
	}
	for _, fault := range r.faults {
		s.misread(fault)
	}
	return r.listed, err
}

func (r *reading) read(payload []byte) error {
	h, err := peekRoute(payload)
	if err != nil {
		return err
	}
	if !knownFamily(byte(h.key.family)) || h.flags&routeCloned != 0 {
		return nil
	}
	if h.key.table == routing.TableLocal {
		r.state.localRoute(unix.RTM_NEWROUTE, h)
		r.state.local(unix.RTM_NEWROUTE, 0, h)
		return nil
	}
	if h.key.table != routing.TableMain && !r.state.owns.OwnsTable(h.key.table) {
		return nil
	}
	if r.last != h.key {
		r.last, r.held = h.key, r.held[:0]
	}
	if r.listed[h.key] == nil && !r.state.keeps(h) {
		r.passed++
		if n := len(r.held); n < cap(r.held) {
			// The room of one that was held back before.
			r.held = r.held[:n+1]
			r.held[n] = append(r.held[n][:0], payload...)
		} else {
			r.held = append(r.held, slices.Clone(payload))
		}
		return nil
	}
	for _, p := range r.held {
		if err := r.keep(h.key, p); err != nil {
			return err
		}
	}
	r.held = r.held[:0]
	return r.keep(h.key, payload)
}

func (r *reading) keep(k fibKey, payload []byte) error {
	a, err := r.state.read(payload)
	if err != nil {
		return err
	}
	r.listed[k] = append(r.listed[k], a)
	return nil
}

// chosenRoutes asks for each of our tables and each interface of interest. Of
// the keys in listed all is known.
func (l loader) chosenRoutes(ctx context.Context, s *State, f routing.Family, interesting []int, listed map[fibKey][]*alias) error {
	questions := make([]routeQuestion, 0, s.owned()+len(interesting)+2)
	for _, r := range s.ranges() {
		for t := r.First; t <= r.Last && t >= r.First; t++ {
			questions = append(questions, routeQuestion{family: f, table: t})
		}
	}
	for _, index := range interesting {
		questions = append(questions, routeQuestion{family: f, table: routing.TableMain, device: index})
	}
	questions = append(questions,
		routeQuestion{family: f, table: routing.TableMain, kind: routing.RouteThrow},
		routeQuestion{family: f, table: routing.TableLocal, kind: routing.RouteLocal})
	seen := map[fibKey][]*alias{}
	for _, q := range questions {
		aliases, err := l.ask(ctx, s, q)
		if err != nil {
			return err
		}
		for _, a := range aliases {
			// A multipath route is in the answer for each of its interfaces.
			same := func(o *alias) bool { return sameAlias(o, a) }
			if listed[a.key] != nil || slices.ContainsFunc(seen[a.key], same) {
				continue
			}
			seen[a.key] = append(seen[a.key], a)
			s.loaded(a, a.key.table != routing.TableMain)
		}
	}
	return nil
}

// ask returns the routes of one question that are in a table that is kept.
func (l loader) ask(ctx context.Context, s *State, q routeQuestion) ([]*alias, error) {
	var out []*alias
	err := fill(ctx, l.requests, s, q.dump(), func(payload []byte) (*alias, error) {
		h, err := peekRoute(payload)
		switch {
		case err != nil:
			return nil, err
		case !knownFamily(byte(h.key.family)), h.flags&routeCloned != 0:
			return nil, nil //nolint:nilnil // not one of ours to keep
		case h.key.table == routing.TableLocal:
			s.localRoute(unix.RTM_NEWROUTE, h)
			s.local(unix.RTM_NEWROUTE, 0, h)
			return nil, nil //nolint:nilnil // noted
		case h.key.table != routing.TableMain && !s.owns.OwnsTable(h.key.table):
			return nil, nil //nolint:nilnil // another table
		}
		return s.read(payload)
	}, func(a *alias) {
		if a != nil {
			out = append(out, a)
		}
	})
	if absent(err) {
		return nil, nil
	}
	return out, err
}

// loaded takes in an entry of a dump: behind those of its key that came before.
func (s *State) loaded(a *alias, whole bool) {
	at := 0
	if slot := s.fib.at(a.key); slot != nil {
		at = len(slot.aliases)
	}
	slot := s.fib.insert(a, at)
	slot.whole = whole
}

func (s *State) settleAll() {
	var all []fibKey
	for k := range s.fib.all() {
		all = append(all, k)
	}
	for _, k := range all {
		s.settle(k)
	}
}
