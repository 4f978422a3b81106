package answering_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/time/rate"

	"multihomed/internal/answering"
	"multihomed/internal/config"
	"multihomed/internal/nftables"
	"multihomed/routing"
	"multihomed/routing/answers"
	"multihomed/routing/reconcile"
)

// A table is one in memory.
type table struct {
	held       answers.Held
	generation nftables.Generation
	// changes are how often somebody else changes the ruleset before a write.
	changes int
	err     error
	wrote   []string
}

func (t *table) Read(context.Context) (answers.Held, nftables.Generation, error) {
	out := t.held
	out.Chains, out.Sets, out.Elements, out.Rules = slices.Clone(t.held.Chains), slices.Clone(t.held.Sets), slices.Clone(t.held.Elements), slices.Clone(t.held.Rules)
	return out, t.generation, t.err
}

func (t *table) Write(_ context.Context, ops []answers.Op, generation nftables.Generation) (nftables.Generation, error) {
	if t.changes > 0 {
		t.changes--
		t.generation++
	}
	if generation != t.generation {
		return 0, nftables.ErrChanged
	}
	for _, o := range ops {
		t.wrote = append(t.wrote, o.Phase.String()+": "+o.String())
		switch o.Verb {
		case answers.AddTable:
			t.held.Exists = true
		case answers.DeleteTable:
			t.held = answers.Held{}
		case answers.AddChain:
			t.held.Chains = append(t.held.Chains, answers.HeldChain{Name: o.Chain.Name})
		case answers.DeleteChain:
			t.held.Chains = slices.DeleteFunc(t.held.Chains, func(c answers.HeldChain) bool { return c.Name == o.Chain.Name })
			t.held.Rules = slices.DeleteFunc(t.held.Rules, func(r answers.HeldRule) bool { return r.Chain == o.Chain.Name })
		case answers.AddSet:
			t.held.Sets = append(t.held.Sets, answers.HeldSet{Name: o.Set.Name})
		case answers.DeleteSet:
			t.held.Sets = slices.DeleteFunc(t.held.Sets, func(s answers.HeldSet) bool { return s.Name == o.Set.Name })
			t.held.Elements = slices.DeleteFunc(t.held.Elements, func(e answers.HeldElement) bool { return e.Element.Set == o.Set.Name })
		case answers.AddElement:
			t.held.Elements = append(t.held.Elements, answers.HeldElement{Element: o.Element})
		case answers.DeleteElement:
			t.held.Elements = slices.DeleteFunc(t.held.Elements, func(e answers.HeldElement) bool { return e.Element.Key() == o.Element.Key() })
		case answers.AddRule:
			at := slices.IndexFunc(t.held.Rules, func(r answers.HeldRule) bool { return r.Handle == o.Handle })
			if at < 0 {
				at = len(t.held.Rules)
			}
			t.held.Rules = slices.Insert(t.held.Rules, at, answers.HeldRule{Chain: o.Rule.Chain, Handle: uint64(len(t.wrote)), Rule: o.Rule})
		case answers.DeleteRule:
			t.held.Rules = slices.DeleteFunc(t.held.Rules, func(r answers.HeldRule) bool { return r.Handle == o.Handle })
		}
	}
	t.generation++
	return t.generation, nil
}

// A world is a keeper with its table, and a host with two uplinks that forwards and translates.
type world struct {
	*answering.Keeper
	t        *testing.T
	table    *table
	host     answering.Host
	planner  *routing.Planner
	problems []routing.Problem
	forgot   []netip.Addr
	// clients ask whether a client is bound, of which the connections with addresses are forgotten.
	clients []string
	log     strings.Builder
}

func newWorld(t *testing.T, repairs int) *world {
	t.Helper()
	w := &world{t: t, table: &table{generation: 1}, planner: routing.NewPlanner(routing.DefaultPolicy())}
	w.host = answering.Host{Forwards: routing.ByFamily[bool]{true, false}, Translates: routing.ByFamily[bool]{true, true}}
	w.Keeper = answering.New(answering.Options{
		Logger: slog.New(slog.NewTextHandler(&w.log, nil)), Config: config.Default().Answers, Table: w.table,
		Host: func(context.Context, *reconcile.Snapshot) (answering.Host, error) { return w.host, nil },
		Forget: func(_ context.Context, all ...netip.Addr) (int, error) {
			w.forgot = append(w.forgot, all...)
			return len(all), nil
		},
		ForgetClients: func(_ context.Context, is func(netip.Addr, int) bool, all ...netip.Addr) (int, error) {
			w.clients = append(w.clients, fmt.Sprintf("%v: behind it %t, in it %t, other %t", all,
				is(netip.MustParseAddr("172.17.0.2"), 9), is(netip.MustParseAddr("172.18.0.2"), 8), is(netip.MustParseAddr("172.19.0.2"), 7)))
			return len(all), nil
		},
		Repairs: rate.NewLimiter(0, repairs), Problems: func(p []routing.Problem) { w.problems = p },
	})
	return w
}

func uplink(n int) routing.Link {
	own := netip.AddrFrom4([4]byte{100, 64, byte(n), 5})
	l := routing.Link{
		Name: []string{"wan0", "wan1"}[n], Index: n + 2, Up: true, Addresses: []routing.Address{{Prefix: netip.PrefixFrom(own, 24)}},
		Routes: []routing.Route{{
			Family: routing.IPv4, Table: routing.TableMain, Destination: routing.IPv4.Any(), Type: routing.RouteUnicast,
			Gateway: netip.AddrFrom4([4]byte{100, 64, byte(n), 1}), Device: n + 2, Metric: uint32(100 + n),
		}},
	}
	l.Tables = map[routing.Key]routing.TableID{routing.Keys(l)[0]: routing.TableID(10000 + n)}
	return l
}

// snapshot is the host after a pass with what the keeper asks for.
func (w *world) snapshot() *reconcile.Snapshot {
	if facts, known := w.Answers(); known {
		w.planner.SetAnswers(facts)
	}
	s := &reconcile.Snapshot{Bindings: w.planner.Bindings(), Policy: w.planner.Policy(), Report: reconcile.Report{Ready: true}, UplinkGroup: w.planner.UplinkGroup(), Answering: w.planner.Answering()}
	for i, f := range routing.Families() {
		s.Answers[i], s.Unnumbered[i] = w.planner.Answers(f)
	}
	for plan := range w.planner.Links() {
		s.Interfaces = append(s.Interfaces, &reconcile.Interface{Facts: routing.Interface{Name: plan.Link.Name, Index: plan.Link.Index}, IsLink: true, Plan: plan})
	}
	s.Interfaces = append(s.Interfaces, &reconcile.Interface{Facts: routing.Interface{Name: "docker0", Index: 9}})
	return s
}

// keep follows passes until nothing is new.
func (w *world) keep() {
	w.t.Helper()
	for range 3 {
		if err := w.Keep(w.t.Context(), w.snapshot()); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) marked() int {
	n := 0
	for _, e := range w.table.held.Elements {
		if e.Element.Number != 0 {
			n++
		}
	}
	return n
}

// TestKeeper: packets are marked after the rungs stand, and no more before they go; what is
// translated to an address that has gone is forgotten.
func TestKeeper(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	w.planner.Set(uplink(0))
	w.keep()
	if w.table.held.Exists || w.State().Families[0].Why != answering.OneUplink {
		t.Errorf("with one uplink there is a table, or it is for another reason: %+v", w.State().Families)
	}
	w.planner.Set(uplink(1))
	if err := w.Keep(t.Context(), w.snapshot()); err != nil || w.marked() != 0 {
		t.Errorf("packets are marked before the rungs stand: %v", err)
	}
	w.keep()
	if facts, _ := w.Answers(); w.marked() != 2 || !facts.Families[0] || facts.Families[1] || len(facts.Diverted[0]) != 2 {
		t.Errorf("%d addresses are marked, the loop is told %+v", w.marked(), facts)
	}
	w.planner.Remove(3)
	w.keep()
	if facts, _ := w.Answers(); w.marked() != 1 || len(facts.Diverted[0]) != 1 || !slices.Equal(w.forgot, []netip.Addr{netip.MustParseAddr("100.64.1.5")}) {
		t.Errorf("%d addresses are marked, the loop is told %+v, forgotten are %v", w.marked(), facts, w.forgot)
	}
	w.host.Forwards = routing.ByFamily[bool]{}
	w.keep()
	if facts, _ := w.Answers(); w.table.held.Exists || facts.Families[0] || len(facts.Diverted[0]) != 0 {
		t.Errorf("off: the loop is told %+v, and the table is %+v", facts, w.table.held)
	}
	if len(w.problems) > 0 {
		t.Errorf("problems: %v", w.problems)
	}
}

// TestBoundClients: what has just been bound to a link loses the tracked connections with addresses of
// the others, once for each link, and nobody else does.
func TestBoundClients(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	w.planner.Set(uplink(0))
	w.planner.Set(uplink(1))
	bind := func(bindings ...routing.Binding) {
		w.clients = nil
		w.planner.SetBindings(bindings)
		w.keep()
	}
	container := routing.Binding{Name: "container", Input: "docker0", Index: 3, LinkName: "wan1", Strict: true}
	network := routing.Binding{Name: "network", Source: netip.MustParsePrefix("172.18.0.0/24"), Index: 2, LinkName: "wan0", Strict: true}
	bind(
		container, routing.Binding{Name: "user", Users: routing.UIDRange{Set: true, First: 5, Last: 5}, Index: 3, Strict: true},
		routing.Binding{Name: "absent", Input: "docker1", Index: 3, Strict: true}, routing.Binding{Name: "lenient", Source: netip.MustParsePrefix("172.19.0.0/24"), Index: 3},
	)
	behind, in := "behind it true, in it false, other false", "behind it false, in it true, other false"
	if want := []string{"[100.64.0.5]: " + behind}; !slices.Equal(w.clients, want) {
		t.Errorf("bound: %q, not %q", w.clients, want)
	}
	bind(container, network)
	if want := []string{"[100.64.1.5]: " + in}; !slices.Equal(w.clients, want) {
		t.Errorf("one more: %q, not %q", w.clients, want)
	}
	container.Index, container.LinkName = 2, "wan0"
	bind(container, network)
	if want := []string{"[100.64.1.5]: " + behind}; !slices.Equal(w.clients, want) {
		t.Errorf("bound to the other link: %q, not %q", w.clients, want)
	}
}

// TestRepairs: what somebody removes is restored and logged, and if he goes on it waits, which is a
// problem.
func TestRepairs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.planner.Set(uplink(0))
	w.planner.Set(uplink(1))
	w.keep()
	w.table.held = answers.Held{}
	w.Removed("nft (process 7)")
	w.keep()
	if w.marked() != 2 || !strings.Contains(w.log.String(), `removed_by="nft (process 7)"`) {
		t.Errorf("%d addresses are marked; the log is\n%s", w.marked(), &w.log)
	}
	w.table.held = answers.Held{}
	if err := w.Keep(t.Context(), w.snapshot()); err == nil || w.table.held.Exists {
		t.Errorf("restored once more at once: %v", err)
	}
	if len(w.problems) != 1 || w.problems[0].Code != answering.Removed {
		t.Errorf("problems: %v", w.problems)
	}
}

// TestChangedMeanwhile: a ruleset that others change at the same time is read again, and a kernel
// without nf_tables is a problem only where answers are needed.
func TestChangedMeanwhile(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.planner.Set(uplink(0))
	w.planner.Set(uplink(1))
	w.table.changes = 3
	w.keep()
	if w.marked() != 2 {
		t.Errorf("%d addresses are marked", w.marked())
	}
	w = newWorld(t, 1)
	w.table.err = nftables.ErrUnsupported
	w.planner.Set(uplink(0))
	w.keep()
	if len(w.problems) > 0 {
		t.Errorf("problems: %v", w.problems)
	}
	w.planner.Set(uplink(1))
	w.keep()
	if len(w.problems) != 1 || w.problems[0].Code != answering.NotWritten || w.problems[0].Fix == "" {
		t.Errorf("problems: %v", w.problems)
	}
}

// TestDecide: why answers are on or off.
func TestDecide(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.planner.Set(uplink(0))
	w.planner.Set(uplink(1))
	two := w.snapshot()
	node := w.snapshot()
	node.Interfaces = append(node.Interfaces, &reconcile.Interface{Facts: routing.Interface{Name: "cali1234", Index: 9}})
	w.planner.Remove(3)
	one := w.snapshot()
	for _, c := range []struct {
		name   string
		change func(*config.Answers, *answering.Host)
		s      *reconcile.Snapshot
		held   bool
		want   answering.Decision
	}{
		{"needed", nil, two, false, answering.Decision{Answers: true, Fence: true, Why: answering.Needed}},
		{"one uplink", nil, one, false, answering.Decision{Why: answering.OneUplink}},
		{"one uplink is left", nil, one, true, answering.Decision{Answers: true, Fence: true, Why: answering.Needed}},
		{"node", nil, node, false, answering.Decision{Why: answering.Kubernetes}},
		{"no forwarding", func(_ *config.Answers, h *answering.Host) { h.Forwards = routing.ByFamily[bool]{} }, two, true, answering.Decision{Why: answering.NotForwarding}},
		{"no translation", func(_ *config.Answers, h *answering.Host) { h.Translates = routing.ByFamily[bool]{} }, two, false, answering.Decision{Why: answering.NotTranslating}},
		{"wanted", func(a *config.Answers, h *answering.Host) {
			a.Forwarded, h.Forwards = config.Yes, routing.ByFamily[bool]{}
		}, one, false, answering.Decision{Answers: true, Fence: true, Why: answering.Configured}},
		{"unwanted", func(a *config.Answers, _ *answering.Host) { a.Forwarded = config.No }, two, true, answering.Decision{Why: answering.Configured}},
		{"switched off", func(a *config.Answers, h *answering.Host) {
			a.Forwarded, a.Fence, h.Off = config.Yes, config.Yes, true
		}, two, true, answering.Decision{Why: answering.SwitchedOff}},
		{"no fence", func(a *config.Answers, _ *answering.Host) { a.Fence = config.No }, two, false, answering.Decision{Answers: true, Why: answering.Needed}},
		{"the fence alone", func(a *config.Answers, _ *answering.Host) { a.Forwarded, a.Fence = config.No, config.Yes }, two, false, answering.Decision{Fence: true, Why: answering.Configured}},
	} {
		cfg, host := config.Default().Answers, w.host
		if c.change != nil {
			c.change(&cfg, &host)
		}
		if got := answering.Decide(cfg, routing.IPv4, host, c.s, c.held); got != c.want {
			t.Errorf("%s: %+v, not %+v", c.name, got, c.want)
		}
		if c.want.Why.Sentence() == string(c.want.Why) {
			t.Errorf("%s has no sentence", c.want.Why)
		}
	}
}
