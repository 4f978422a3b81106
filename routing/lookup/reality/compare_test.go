package reality_test

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"multihomed/routing"
	"multihomed/routing/lookup"
)

// questions is how many flows of each family and direction are asked for on one host: with the
// hundred hosts that rapid draws, 10,000.
const questions = 100

// enough is how many there must be of each family and direction.
func enough() int {
	checks := flag.Lookup("rapid.checks").Value.(flag.Getter).Get().(int) //nolint:forcetypeassert // an int
	return checks * questions
}

// TestKernelAgrees asks the simulator and the kernel the same: the product's reading, its
// questions and its comparison, on hosts with random rules, routes and settings.
func TestKernelAgrees(t *testing.T) {
	index := newHost(t)
	known := probe(t, index)
	reader := openReader(t)
	asked, unasked := map[string]int{}, map[string]int{}
	outcomes, results, selectors, objections := map[string]int{}, map[lookup.Result]int{}, map[lookup.Selector]int{}, map[string]int{}
	rapid.Check(t, func(r *rapid.T) {
		flush(t)
		configure(t, r)
		for _, family := range routing.Families() {
			install(t, r, family, index, known)
		}
		for _, family := range routing.Families() {
			number := 2 * questions
			if known.suppressedStays {
				number += number / 10 // Some harm the kernel.
			}
			flows := make([]lookup.Flow, number)
			var to []netip.Addr
			for n := range flows {
				flows[n] = genFlow(r, family, n%2 == 1, known)
				if to = append(to, flows[n].To); flows[n].From.IsValid() {
					to = append(to, flows[n].From)
				}
			}
			slices.SortFunc(to, netip.Addr.Compare)
			facts, err := reader.Facts(t.Context(), family, slices.Compact(to)...)
			if err != nil {
				r.Fatal(err)
			}
			facts.Before72 = known.suppressedStays // The release of the kernel is a hint.
			for _, rule := range facts.Rules {
				if rule.Unknown {
					r.Fatalf("a rule that cannot be read: %s", rule)
				}
			}
			host := facts.Host()
			indexed := *host
			indexed.Index()
			for n, flow := range flows {
				question := flow.Question()
				v, steps := indexed.Trace(question)
				if flow.HurtsKernel(v) {
					unasked[class(family, flow.IIF != "")]++
					continue
				}
				answer, err := reader.Ask(t.Context(), facts.Interfaces, flow)
				if err != nil {
					r.Fatal(err)
				}
				if n%8 == 0 {
					if diff := gocmp.Diff(v, host.Lookup(question), cmpopts.EquateComparable(routing.Route{}, routing.Rule{})); diff != "" {
						r.Fatalf("with and without index:\n%s", diff)
					}
				}
				if why := host.Disagree(v, question, answer); why != "" {
					r.Fatalf("%+v\nsimulator: %s, refused %q, objection %q, assumed %v, by %s, route %s, legs %v, way back %+v\nkernel: %+v\n%s\n%s",
						question, v.Outcome, v.Refusal, v.Objection, v.Assumed, v.Rule, v.Route, v.Legs, v.Reverse, answer, why, explain(facts, steps, question))
				}
				asked[class(family, flow.IIF != "")]++
				outcomes[fmt.Sprintf("%s %s", v.Outcome, v.Refusal)]++
				objections[v.Objection.String()]++
				if v.Reverse != nil {
					objections[v.Reverse.Reason.String()]++
				}
				for _, s := range steps {
					results[s.Result]++
					selectors[s.Selector]++
				}
			}
		}
	})
	t.Logf("questions: %v, not asked: %v; %v; rules: %v; selectors: %v; objections: %v", asked, unasked, outcomes, results, selectors, objections)
	for _, family := range []routing.Family{routing.IPv4, routing.IPv6} {
		for _, forwarded := range []bool{false, true} {
			what := class(family, forwarded)
			if n := asked[what]; !t.Failed() && n < enough() {
				t.Errorf("%s: only %d questions were asked, want %d", what, n, enough())
			}
		}
	}
}

func class(f routing.Family, forwarded bool) string {
	return fmt.Sprintf("%s, forwarded: %v", f.Name(), forwarded)
}

// install adds random rules and routes. What stands already is refused.
func install(tb testing.TB, t *rapid.T, family routing.Family, index map[string]int, known features) {
	tb.Helper()
	for _, rule := range genRules(t, family, known) {
		if err := addRule(rule); err != nil && !errors.Is(err, unix.EEXIST) {
			t.Fatalf("adding %s: %v", rule, err)
		}
	}
	for _, route := range genRoutes(t, family, index) {
		legs := route.legs
		flags := unix.NLM_F_APPEND
		// Two multipath routes of one key cannot be told from one in a list of legs.
		if family == routing.IPv4 && (max(len(legs), len(route.nexthops)) > 1) {
			flags = unix.NLM_F_EXCL
		}
		nexthop := uint32(0)
		if len(route.nexthops) > 0 {
			var err error
			if nexthop, err = makeNexthop(family, index, route.nexthops...); family == routing.IPv6 && errors.Is(err, unix.EINVAL) {
				continue
			}
			must(tb, err)
		}
		err := addRouteBy(nexthop, flags, legs...)
		if err != nil && family == routing.IPv6 {
			// A refused route spoils the kernel's tree: a node that has only source-specific
			// routes then names a longer destination, and is not found any more (fib6_add and
			// fib6_del_route, by fib6_find_prefix). Whoever only reads routes cannot know.
			flushTable(tb, family, legs[0].Table)
		}
		if family == routing.IPv6 && errors.Is(err, unix.EINVAL) && legs[0].Gateway.IsValid() {
			continue // Main has the next hop by another device (ip6_route_check_nh_onlink).
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			t.Fatalf("adding %v: %v", legs, err)
		}
	}
}

func explain(h *lookup.Facts, steps []lookup.Step, f lookup.Flow) string {
	var b strings.Builder
	for _, s := range steps {
		fmt.Fprintf(&b, "  %s: %s %s table %s %s\n", s.Rule, s.Result, s.Selector, s.Table, s.Route)
	}
	for id, routes := range h.Tables {
		for _, c := range routes {
			if r := c.Route; r.Destination.Contains(f.To) || f.From.IsValid() && r.Destination.Contains(f.From) {
				fmt.Fprintf(&b, "  %d: %s type %d weight %d pref %d dead %v\n", id, r, r.Type, r.Weight, r.Preference, c.Dead)
			}
		}
	}
	for _, i := range h.Interfaces {
		fmt.Fprintf(&b, "  %+v\n", i)
	}
	return b.String()
}
