package kernel

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
	"multihomed/routing"
)

// This file asks the kernel where packets go that are bound to nothing, and what source
// they get. It matters where a device has no address of its own: see [routing.Unbound].

const (
	// wideRoute is the longest prefix that is a part of everything rather than a network:
	// what VPN clients make a default of.
	wideRoute = 7
	// mostHidden is how many routes are looked at in a table that bound traffic does not
	// ask. Tables of full tunnels have a handful.
	mostHidden = 256
	// questionsAtOnce bounds one request.
	questionsAtOnce = 128
)

// wide reports whether a route may decide where unbound packets go that have no network
// of their own: it is wide, or in a table that bound traffic does not ask.
func (s *State) wide(k fibKey) bool {
	switch {
	case k.table == routing.TableMain, k.table == routing.TableDefault:
		return k.destination.Bits() <= wideRoute
	case s.rules.hidden[k.table] > 0:
		return true
	default:
		return s.rules.lookups[k.table] > 0 && k.destination.Bits() <= wideRoute
	}
}

// unnumbered reports whether unbound packets of a family may leave by an interface that
// has no address for them. A link of interest counts only if something wide may lead
// through it, which is not known of tables that are not kept.
func (s *State) unnumbered(f routing.Family) bool {
	isKnown := !s.othersLookUp(f)
	for _, l := range s.links {
		if l.interested && isKnown {
			continue
		}
		if l.isBare(f) {
			return true
		}
	}
	for a := range s.fib.wide {
		if a.key.family == f && slices.ContainsFunc(a.legs, func(way leg) bool {
			l := s.links[way.route.Device]
			return l != nil && l.isBare(f)
		}) {
			return true
		}
	}
	return false
}

// othersLookUp reports whether a rule of somebody else leads to a table of his own.
func (s *State) othersLookUp(f routing.Family) bool {
	for g := range s.rules.foreign[f] {
		if r := g.rule; r.Action == routing.ActionLookup && r.Table != routing.TableMain && r.Table != routing.TableLocal && r.Table != routing.TableDefault {
			return true
		}
	}
	return false
}

// isBare reports whether an interface that packets may leave by has no address for them.
func (l *link) isBare(f routing.Family) bool {
	return l.up() && l.master == 0 && l.flags&unix.IFF_LOOPBACK == 0 && !l.numbered(f)
}

// numbered reports whether the kernel finds a source of a family on the interface itself,
// and prefers it to those of others.
func (l *link) numbered(f routing.Family) bool {
	for _, a := range l.addresses {
		if routing.FamilyOf(a.Prefix.Addr()) == f && a.Scope == routing.ScopeUniverse && !a.Failed && !a.Tentative && !a.Deprecated {
			return true
		}
	}
	return false
}

// expects reports whether an interface is about to have an address for packets of a
// family: one that is tested for duplicates serves a second or two later, or fails. Of an
// interface that may be a link it is better to wait for that: its neighbours' packets would
// leave by it meanwhile.
func (l *link) expects(f routing.Family) bool {
	for _, a := range l.addresses {
		if routing.FamilyOf(a.Prefix.Addr()) == f && a.Scope == routing.ScopeUniverse && a.Tentative && !a.Failed && !a.Deprecated {
			return true
		}
	}
	return false
}

// Unbound asks the kernel where packets of this host go that are bound to nothing, and
// returns those that get a source which the interface that they leave by does not have,
// and of IPv6 the destinations outside to which nothing is sent. Where every interface has
// addresses, and no rule of others may refuse anything, nothing is asked. It costs some
// hundred lookups in the kernel, however many routes there are.
func (m *Mirror) Unbound(ctx context.Context) (found map[routing.Family][]routing.Unbound, refused []routing.Unanswered, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.signal()
	found = map[routing.Family][]routing.Unbound{}
	if err := m.drain(); err != nil {
		return nil, nil, err
	}
	if !m.state.unnumbered(routing.IPv4) && !m.state.unnumbered(routing.IPv6) && !m.state.mayRefuse() {
		return found, nil, nil
	}
	// Routes that went with an address or an interface are gone after this.
	if err := m.loader.requests.barrier(ctx); err != nil {
		return nil, nil, err
	}
	if err := m.drain(); err != nil {
		return nil, nil, err
	}
	for _, f := range routing.Families() {
		if !m.state.unnumbered(f) {
			continue
		}
		if found[f], err = m.loader.unbound(ctx, m.state, f); err != nil {
			return nil, nil, err
		}
	}
	if m.state.mayRefuse() {
		refused, err = m.loader.refused(ctx, m.state)
	}
	return found, refused, err
}

// mayRefuse reports whether rules of others may refuse IPv6 packets that are bound to
// nothing: see [routing.Unanswered].
func (s *State) mayRefuse() bool {
	return routing.MayRefuse(func(yield func(routing.Rule) bool) {
		for g := range s.rules.foreign[routing.IPv6] {
			if !yield(g.rule) {
				return
			}
		}
	})
}

// refused asks for the destinations of the Internet (2000::/3, RFC 4291).
func (l loader) refused(ctx context.Context, s *State) ([]routing.Unanswered, error) {
	internet := netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0x20}), 3)
	probes := slices.DeleteFunc(everywhere(routing.IPv6), func(a netip.Addr) bool { return !internet.Contains(a) })
	uid := s.ordinaryUser(routing.IPv6)
	answers, err := l.requests.whereTo(ctx, routing.IPv6, uid, unix.RTM_F_FIB_MATCH, probes)
	if err != nil {
		return nil, err
	}
	var refusing []routing.Route
	if slices.ContainsFunc(answers, func(a answer) bool { return a.refusal != 0 && a.refusal != unix.ENETUNREACH }) {
		// A route may be what refuses: fib6_prop in net/ipv6/route.c has an error for each
		// type, and none is that of a missing route.
		if refusing, err = l.refusing(ctx, s); err != nil {
			return nil, err
		}
	}
	var out []routing.Unanswered
	failover, _ := s.owns.FailoverTable()
	for i, a := range answers {
		resort := a.table != failover && a.kind == routing.RouteUnicast && s.owns.OwnsTable(a.table)
		if a.refusal == 0 && !resort {
			continue
		}
		r := routing.Unanswered{To: probes[i], UID: uid, Resort: resort, Main: s.wideWay(probes[i])}
		for _, no := range refusing {
			if no.Destination.Contains(r.To) {
				r.Routes = append(r.Routes, no)
			}
		}
		out = append(out, r)
	}
	return out, nil
}

// refusing reads the routes that refuse much in tables which bound traffic does not ask.
func (l loader) refusing(ctx context.Context, s *State) ([]routing.Route, error) {
	var out []routing.Route
	for t := range s.rules.hidden {
		for _, kind := range [...]routing.RouteType{unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT} {
			var some []routing.Route
			q := routeQuestion{family: routing.IPv6, table: t, kind: kind}.dump()
			q.restart = func() { some = some[:0] }
			q.each = func(payload []byte) bool {
				a, err := s.read(payload)
				if err != nil || a.key.table != t || a.kind != kind || a.key.source.IsValid() || a.key.destination.Bits() > wideRoute {
					return true
				}
				some = append(some, routing.Route{
					Family: routing.IPv6, Table: t, Type: kind, Destination: a.key.destination, Metric: a.key.metric,
				})
				return len(some) < mostHidden
			}
			if err := l.requests.dump(ctx, q); err != nil && !absent(err) && !errors.Is(err, errBudget) {
				return nil, err
			}
			out = append(out, some...)
		}
	}
	slices.SortFunc(out, compareRoutes)
	return out, nil
}

// wideWay is a route of main for everything from everywhere, through an interface of
// interest.
func (s *State) wideWay(to netip.Addr) (best routing.Route) {
	for a := range s.fib.wide {
		if a.kind != routing.RouteUnicast || a.key.source.IsValid() || !a.key.destination.Contains(to) {
			continue
		}
		for _, l := range a.legs {
			if !l.dead && s.Interested(l.route.Device) && (best == routing.Route{} || compareRoutes(l.route, best) < 0) {
				best = l.route
			}
		}
	}
	return best
}

func (l loader) unbound(ctx context.Context, s *State, f routing.Family) ([]routing.Unbound, error) {
	probes := everywhere(f)
	for t := range s.rules.hidden {
		more, err := l.destinations(ctx, f, t)
		if err != nil {
			return nil, err
		}
		probes = append(probes, more...)
	}
	uid := s.ordinaryUser(f)
	answers, err := l.requests.whereTo(ctx, f, uid, 0, probes)
	if err != nil {
		return nil, err
	}
	var odd []netip.Addr
	var out []routing.Unbound
	for i, a := range answers {
		device := s.links[a.device]
		if a.kind != routing.RouteUnicast || !a.source.IsValid() || device == nil || device.holds(a.source) || a.source.IsLinkLocalUnicast() ||
			device.interested && device.expects(f) {
			continue
		}
		odd = append(odd, probes[i])
		out = append(out, routing.Unbound{Address: a.source, Device: a.device, Name: device.name, Group: device.group})
	}
	routes, err := l.requests.whereTo(ctx, f, uid, unix.RTM_F_FIB_MATCH, odd)
	if err != nil {
		return nil, err
	}
	for i, r := range routes {
		out[i].Table, out[i].Length = r.table, r.length
	}
	slices.SortFunc(out, func(a, b routing.Unbound) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Device, b.Device), cmp.Compare(a.Table, b.Table), cmp.Compare(a.Length, b.Length))
	})
	return slices.Compact(out), nil
}

// everywhere returns an address of every wide prefix: one of each /7 of IPv4 below
// multicast, and of the /7 of IPv6 that are in use.
func everywhere(f routing.Family) []netip.Addr {
	var out []netip.Addr
	if f == routing.IPv4 {
		const firstMulticast = 224
		for first := byte(0); first < firstMulticast; first += 2 {
			octet := first + 1
			if octet == 127 { // RFC 1122
				octet = first
			}
			// Nobody has a network of its own around these, most likely.
			out = append(out, netip.AddrFrom4([4]byte{octet, 157, 213, 91}))
		}
		return out
	}
	// 2000::/3 and fc00::/7 (RFC 4291, RFC 4193), and the prefix of NAT64 (RFC 6052).
	for first := byte(0x20); first < 0x40; first += 2 {
		out = append(out, netip.AddrFrom16([16]byte{0: first, 1: 0x1d, 2: 0x9b, 3: 0x57, 15: 0x91}))
	}
	return append(out, netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x9b, 2: 0x57, 3: 0xd5, 15: 0x91}),
		netip.AddrFrom16([16]byte{1: 0x64, 2: 0xff, 3: 0x9b, 12: 203, 14: 113, 15: 91}))
}

// destinations returns an address of every unicast route of a table, of the first if there
// are very many.
func (l loader) destinations(ctx context.Context, f routing.Family, t routing.TableID) ([]netip.Addr, error) {
	var out []netip.Addr
	q := routeQuestion{family: f, table: t, kind: routing.RouteUnicast}.dump()
	q.restart = func() { out = out[:0] }
	q.each = func(payload []byte) bool {
		h, err := peekRoute(payload)
		if err != nil || h.flags&routeCloned != 0 {
			return true
		}
		a := h.key.destination.Addr()
		if !h.key.destination.IsSingleIP() {
			a = a.Next()
		}
		if h.key.destination.Bits() > 0 {
			out = append(out, a)
		}
		return len(out) < mostHidden
	}
	if err := l.requests.dump(ctx, q); err != nil && !absent(err) && !errors.Is(err, errBudget) {
		return nil, err
	}
	return out, nil
}

// ordinaryUser is a user whom no rule names: those that leave some users out are for him.
func (s *State) ordinaryUser(f routing.Family) uint32 {
	const last = 1<<32 - 2
	uid := uint32(0)
	for again := true; again; {
		again = false
		for g := range s.rules.foreign[f] {
			u := g.rule.UIDs
			if u.Set && (u.First > 0 || u.Last < last) && u.First <= uid && uid <= u.Last {
				if u.Last >= last {
					return 0
				}
				uid, again = u.Last+1, true
			}
		}
	}
	return uid
}

// An answer is what the kernel says of one destination.
type answer struct {
	kind   routing.RouteType
	device int
	source netip.Addr
	table  routing.TableID
	length int
	// refusal is the error, 0 if there is none.
	refusal unix.Errno
}

// whereTo asks where packets go that are bound to nothing: RTM_GETROUTE. What the kernel
// refuses is the zero answer.
func (r *requester) whereTo(ctx context.Context, f routing.Family, uid, flags uint32, to []netip.Addr) ([]answer, error) {
	out := make([]answer, 0, len(to))
	for some := range slices.Chunk(to, questionsAtOnce) {
		answers, err := r.whereSome(ctx, f, uid, flags, some)
		if err != nil {
			return nil, fmt.Errorf("asking where unbound packets go: %w", err)
		}
		out = append(out, answers...)
	}
	return out, nil
}

func (r *requester) whereSome(ctx context.Context, f routing.Family, uid, flags uint32, to []netip.Addr) ([]answer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f == routing.IPv4 {
		flags |= unix.RTM_F_LOOKUP_TABLE // Else the answer names no table.
	}
	first := r.seq + 1
	r.out.B = r.out.B[:0]
	for _, a := range to {
		r.seq++
		r.out.Begin(unix.RTM_GETROUTE, unix.NLM_F_REQUEST, r.seq)
		r.out.Bytes(byte(f), byte(f.Bits()), 0, 0, 0, 0, 0, 0) //nolint:gosec // 32 or 128
		r.out.Word(flags)
		r.out.Attribute(unix.RTA_DST, a.AsSlice())
		r.out.Attribute32(unix.RTA_UID, uid)
		r.out.End()
	}
	if err := r.socket.Send(r.out.B); err != nil {
		return nil, err
	}
	out := make([]answer, len(to))
	for left := len(to); left > 0; {
		n, err := r.socket.receive(ctx, r.in)
		if err != nil {
			// The rest of the answers would be taken for those of another question.
			return nil, errors.Join(err, r.reopen())
		}
		for rest := r.in[:n]; len(rest) > 0; {
			var h nlmsg.Header
			var payload []byte
			if h, payload, rest, err = nlmsg.Next(rest); err != nil {
				return nil, errors.Join(err, r.reopen())
			}
			i := int(h.Seq - first)
			if h.Seq < first || i >= len(out) {
				continue
			}
			left--
			if h.Kind != unix.RTM_NEWROUTE {
				out[i].refusal = refusalOf(h.Kind, payload) // unreachable, for example
				continue
			}
			if out[i], err = readAnswer(payload); err != nil {
				return nil, errors.Join(err, r.reopen())
			}
		}
	}
	return out, nil
}

// refusalOf reads the error of NLMSG_ERROR.
func refusalOf(kind uint16, payload []byte) unix.Errno {
	if kind != unix.NLMSG_ERROR || len(payload) < 4 {
		return unix.ENETUNREACH
	}
	return unix.Errno(-int32(binary.NativeEndian.Uint32(payload))) //nolint:gosec // a negative errno
}

func readAnswer(b []byte) (answer, error) {
	h, err := peekRoute(b)
	if err != nil {
		return answer{}, err
	}
	out := answer{kind: h.kind, device: h.device, table: h.key.table, length: h.key.destination.Bits()}
	for a := (nlmsg.Attributes{Rest: b[unix.SizeofRtMsg:]}); a.Next(); {
		switch a.Kind {
		case unix.RTA_PREFSRC:
			if out.source, err = decodeAddr(h.key.family, a.Value); err != nil {
				return answer{}, fmt.Errorf("reading an answer: %w", err)
			}
		case unix.RTA_MULTIPATH:
			if len(a.Value) >= unix.SizeofRtNexthop && out.device == 0 {
				out.device = int(int32(binary.NativeEndian.Uint32(a.Value[4:]))) //nolint:gosec // rtnh_ifindex is an int
			}
		}
	}
	return out, nil
}
