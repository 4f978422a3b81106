package reality_test

import (
	"cmp"
	"errors"
	"fmt"
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

const (
	// questions is how many flows of each family and direction are asked for on
	// one host.
	questions = 60
	// enough is how many there must be in all.
	enough = 20_000
)

// An answer is what the kernel says about a flow.
type answer struct {
	// matched is the route with all its legs, or why there is none
	// (RTM_F_FIB_MATCH).
	matched []routing.Route
	missed  error
	// sent is the way that a packet takes.
	sent   routing.Route
	unsent error
}

func (a answer) String() string {
	return fmt.Sprintf("matched %v (%v), sent %v (%v)", a.matched, a.missed, a.sent, a.unsent)
}

func errno(r lookup.Refusal) error {
	switch r {
	case lookup.NetUnreachable:
		return unix.ENETUNREACH
	case lookup.HostUnreachable:
		return unix.EHOSTUNREACH
	case lookup.AccessDenied:
		return unix.EACCES
	case lookup.Invalid:
		return unix.EINVAL
	default:
		return nil
	}
}

// A hop is one way out.
type hop struct{ device, gateway string }

func hops(legs []routing.Route) []hop {
	out := make([]hop, 0, len(legs))
	for _, l := range legs {
		out = append(out, hop{fmt.Sprint(l.Device), l.Gateway.String()})
	}
	slices.SortFunc(out, func(a, b hop) int {
		return cmp.Or(strings.Compare(a.device, b.device), strings.Compare(a.gateway, b.gateway))
	})
	return out
}

// disagree says where a verdict and the kernel's answer differ, empty if they
// agree.
func disagree(v lookup.Verdict, f lookup.Flow, index map[string]int, a answer) string {
	if v.Otherwise == nil && v.Outcome == lookup.Sent && f.OIF == "" && len(v.Legs) < len(a.matched) {
		return "all legs should be possible"
	}
	var whys []string
	for one := &v; one != nil; one = one.Otherwise {
		// Which of several it is for these packets is decided by a hash.
		why := disagreeOne(*one, f, index, a)
		if why == "" {
			return ""
		}
		whys = append(whys, why)
	}
	return strings.Join(whys, ", or ")
}

func disagreeOne(v lookup.Verdict, f lookup.Flow, index map[string]int, a answer) string {
	switch v.Outcome {
	case lookup.NoRoute, lookup.Rejected:
		want := errno(v.Refusal)
		if v.Assumed {
			if !errors.Is(a.missed, unix.EHOSTUNREACH) || a.unsent != nil || a.sent.Device != index[f.OIF] || a.sent.Gateway.IsValid() {
				return "the destination should be taken for a neighbour"
			}
			return ""
		}
		if !errors.Is(a.missed, want) || !errors.Is(a.unsent, want) {
			return fmt.Sprintf("the error should be %v", want)
		}
		return ""
	case lookup.Local, lookup.Sent:
	}
	if a.missed != nil || a.unsent != nil {
		return "there should be a route"
	}
	got, want := a.matched[0], v.Route
	if got.Destination != want.Destination || got.Source != want.Source || got.Table != want.Table || got.TOS != want.TOS ||
		got.Metric != want.Metric || got.Type != want.Type {
		return fmt.Sprintf("the route should be %s", want)
	}
	if v.Outcome == lookup.Local {
		if got.Device != want.Device {
			return fmt.Sprintf("the address should be that of if%d", want.Device)
		}
		return ""
	}
	all, may := hops(a.matched), hops(v.Legs)
	for _, h := range may {
		if !slices.Contains(all, h) {
			return fmt.Sprintf("leg %v should be there", h)
		}
	}
	if sent := hops([]routing.Route{a.sent})[0]; !slices.Contains(may, sent) {
		return fmt.Sprintf("the way %v should be one of %v", sent, may)
	}
	return ""
}

// TestKernelAgrees asks the simulator and the kernel the same.
func TestKernelAgrees(t *testing.T) {
	interfaces := newHost(t)
	index := map[string]int{}
	for _, i := range interfaces {
		index[i.Name] = i.Index
	}
	asked := 0
	outcomes, results, selectors := map[string]int{}, map[lookup.Result]int{}, map[lookup.Selector]int{}
	rapid.Check(t, func(r *rapid.T) {
		flush(t)
		for _, family := range routing.Families() {
			install(t, r, family, index)
		}
		host := read(t, interfaces)
		indexed := *host
		indexed.Index()
		for _, rule := range host.Rules {
			if rule.Unknown {
				r.Fatalf("a rule that cannot be read: %s", rule)
			}
		}
		for _, family := range routing.Families() {
			for n := range 2 * questions {
				question := genFlow(r, family, n%2 == 1)
				flow := question
				// What RTM_GETROUTE asks is not what was asked for.
				switch {
				case family == routing.IPv4 && question.IPProto == 0:
					flow.IPProto = unix.IPPROTO_UDP // inet_rtm_getroute
				case family == routing.IPv6 && question.IIF != "":
					question.UID = 0 // A forwarded packet has none, a question has.
				}
				var a answer
				a.matched, a.missed = ask(question, index, fibMatch|lookupTable)
				var sent []routing.Route
				if sent, a.unsent = ask(question, index, lookupTable); a.unsent == nil {
					a.sent = sent[0]
				}
				v, steps := indexed.Trace(flow)
				if diff := gocmp.Diff(v, host.Lookup(flow), cmpopts.EquateComparable(routing.Route{}, routing.Rule{})); diff != "" {
					r.Fatalf("with and without index:\n%s", diff)
				}
				if why := disagree(v, flow, index, a); why != "" {
					r.Fatalf("%+v\nsimulator: %s, refused %q, assumed %v, by %s, route %s, legs %v\nkernel: %s\n%s\n%s",
						flow, v.Outcome, v.Refusal, v.Assumed, v.Rule, v.Route, v.Legs, a, why, explain(host, steps, flow))
				}
				asked++
				outcomes[fmt.Sprintf("%s %s", v.Outcome, v.Refusal)]++
				for _, s := range steps {
					results[s.Result]++
					selectors[s.Selector]++
				}
			}
		}
	})
	t.Logf("%d questions: %v; rules: %v; selectors: %v", asked, outcomes, results, selectors)
	if !t.Failed() && asked < enough {
		t.Errorf("only %d questions were asked, want %d", asked, enough)
	}
}

// install adds random rules and routes. What stands already is refused.
func install(tb testing.TB, t *rapid.T, family routing.Family, index map[string]int) {
	tb.Helper()
	for _, rule := range genRules(t, family) {
		if err := addRule(rule); err != nil && !errors.Is(err, unix.EEXIST) {
			t.Fatalf("adding %s: %v", rule, err)
		}
	}
	for _, legs := range genRoutes(t, family, index) {
		flags := unix.NLM_F_APPEND
		// IPv4 chooses among equal defaults by what it knows of neighbours, and
		// two multipath routes of one key cannot be told from one in a list of
		// legs.
		if family == routing.IPv4 && (len(legs) > 1 || legs[0].Destination.Bits() == 0) {
			flags = unix.NLM_F_EXCL
		}
		err := addRoute(flags, legs...)
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

func explain(h *lookup.Host, steps []lookup.Step, f lookup.Flow) string {
	var b strings.Builder
	for _, s := range steps {
		fmt.Fprintf(&b, "  %s: %s %s table %s %s\n", s.Rule, s.Result, s.Selector, s.Table, s.Route)
	}
	for id, routes := range h.Tables[routing.FamilyOf(f.To)] {
		for _, r := range routes {
			if r.Destination.Contains(f.To) {
				fmt.Fprintf(&b, "  %d: %s type %d weight %d pref %d\n", id, r, r.Type, r.Weight, r.Preference)
			}
		}
	}
	return b.String()
}
