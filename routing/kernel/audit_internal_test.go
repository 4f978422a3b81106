package kernel

import (
	"context"
	"fmt"
	"slices"

	"multihomed/routing"
)

// auditAttempts is how often the kernel may change while it is compared with.
const auditAttempts = 20

// Audit compares the mirror with everything the kernel lists at this moment
// and returns the differences, none if all is well. The lines start with "-"
// for what only the mirror has and "+" for what only the kernel has. It reads
// all routes.
func (m *Mirror) Audit(ctx context.Context) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.signal()
	for range auditAttempts {
		if err := m.sync(ctx); err != nil {
			return nil, err
		}
		if err := m.loader.requests.barrier(ctx); err != nil {
			return nil, err
		}
		if err := m.drain(); err != nil {
			return nil, err
		}
		before := m.state.events
		if !m.state.Complete() {
			continue
		}
		fresh, err := loader{requests: m.loader.requests}.load(ctx, m.state)
		if err != nil {
			return nil, err
		}
		if err := m.drain(); err != nil {
			return nil, err
		}
		if m.lost || m.state.events != before || !m.state.doubts.none() {
			continue
		}
		return differences(m.state.lines(), fresh.lines()), nil
	}
	return nil, fmt.Errorf("comparing with the kernel: it changed %d times meanwhile", auditAttempts)
}

func differences(have, want []string) []string {
	var out []string
	for len(have) > 0 || len(want) > 0 {
		switch {
		case len(want) == 0 || len(have) > 0 && have[0] < want[0]:
			out = append(out, "- "+have[0])
			have = have[1:]
		case len(have) == 0 || want[0] < have[0]:
			out = append(out, "+ "+want[0])
			want = want[1:]
		default:
			have, want = have[1:], want[1:]
		}
	}
	return out
}

// lines describes all that a state shows, sorted.
func (s *State) lines() []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, index := range s.Indexes() {
		l, _ := s.Link(index)
		for _, r := range l.Others {
			add("other route through %d: %+v", index, r)
		}
		// Not the carrier: a dump shows it at once, the announcement comes up
		// to a second later (net/core/link_watch.c).
		// Nor the group of an interface that is down: see Link.Group.
		if !l.Up {
			l.Group = 0
		}
		add("link %d %s up=%t group=%d kind=%s master=%d mtu=%d mac=%x",
			l.Index, l.Name, l.Up, l.Group, l.Kind, l.Master, l.MTU, l.Hardware)
		for _, a := range l.Addresses {
			add("address on %d: %s peer %s scope %d dynamic=%t failed=%t tentative=%t deprecated=%t temporary=%t", index,
				a.Prefix, a.Peer, a.Scope, a.Dynamic, a.Failed, a.Tentative, a.Deprecated, a.Temporary)
		}
		for i, r := range l.Routes {
			add("route %d on %d: %s", copies(l.Routes[:i], r), index, describe(r))
		}
	}
	for t := range s.fib.byTable {
		if t == routing.TableMain {
			continue // with their interfaces
		}
		for a := range s.fib.byTable[t] {
			for _, l := range a.legs {
				if !l.dead {
					add("table %d: %s", t, describe(l.route))
				}
			}
		}
	}
	for device, keys := range s.elsewhere.locals {
		for k := range keys {
			add("local %s on %d metric %d tos %d", k.prefix, device, k.metric, k.tos)
		}
	}
	for _, ways := range s.elsewhere.guests {
		for g := range ways {
			add("guest %+v", g)
		}
	}
	out = append(out, s.nexthopLines()...)
	places := map[band]int{}
	for _, r := range slices.Concat(slices.Collect(s.Rules()), s.ForeignRules()) {
		k := band{r.Family, r.Priority}
		add("rule %s %d.%d: %+v", r.Family, r.Priority, places[k], r)
		places[k]++
	}
	slices.Sort(out)
	return out
}

func copies(before []routing.Route, r routing.Route) int {
	n := 0
	for _, o := range before {
		if o == r {
			n++
		}
	}
	return n
}

// describe adds to the words of ip(8) what they leave out.
func describe(r routing.Route) string {
	rare := r.Attributes.Get()
	return fmt.Sprintf("%s %s protocol %d type %d scope %d tos %d preference %d weight %d metrics %d %q realm %d encap %d %x legs %v",
		r.Family, r, r.Protocol, r.Type, r.Scope, r.TOS, r.Preference, r.Weight, rare.Metrics, rare.Congestion, rare.Realm,
		rare.EncapsulationType, rare.Encapsulation, rare.Legs.All())
}
