package answers_test

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"multihomed/routing"
	"multihomed/routing/answers"
)

// A kernel holds the table, and refuses what nf_tables refuses.
type kernel struct {
	held answers.Held
	// handle is the last one given.
	handle uint64
}

func (k kernel) clone() kernel {
	h := k.held
	h.Chains, h.Sets, h.Elements, h.Rules, h.Others = slices.Clone(h.Chains), slices.Clone(h.Sets), slices.Clone(h.Elements), slices.Clone(h.Rules), slices.Clone(h.Others)
	return kernel{h, k.handle}
}

// do does the operations of a phase in one transaction.
func (k *kernel) do(ops []answers.Op) error {
	next := k.clone()
	// Some kernels count an element that is deleted in the same transaction as one that leads to its chain.
	for _, o := range ops {
		if err := next.one(o, k.held.Elements); err != nil {
			return fmt.Errorf("%s: %w", o, err)
		}
	}
	*k = next
	return nil
}

var (
	errBusy   = errors.New("busy")
	errAbsent = errors.New("does not exist")
	errExists = errors.New("exists")
)

func (k *kernel) one(o answers.Op, before []answers.HeldElement) error {
	h := &k.held
	if !h.Exists && o.Verb != answers.AddTable {
		return errAbsent
	}
	chain := func(name string) int {
		return slices.IndexFunc(h.Chains, func(c answers.HeldChain) bool { return c.Name == name })
	}
	set := func(name string) int {
		return slices.IndexFunc(h.Sets, func(s answers.HeldSet) bool { return s.Name == name })
	}
	element := func(key answers.Element) int {
		return slices.IndexFunc(h.Elements, func(e answers.HeldElement) bool { return e.Element.Key() == key.Key() })
	}
	rule := func(handle uint64) int {
		return slices.IndexFunc(h.Rules, func(r answers.HeldRule) bool { return r.Handle == handle })
	}
	asks := func(name string) bool {
		return slices.ContainsFunc(h.Rules, func(r answers.HeldRule) bool { return r.Rule.In.Set == name || r.Rule.Map.Set == name })
	}
	leads := func(elements []answers.HeldElement, name string) bool {
		return slices.ContainsFunc(elements, func(e answers.HeldElement) bool {
			return e.Element.Number != 0 && answers.LinkChain(e.Element.Number) == name
		})
	}
	switch o.Verb {
	case answers.AddTable:
		h.Exists, h.Dormant = true, false
	case answers.DeleteTable:
		*h = answers.Held{}
	case answers.AddChain:
		if chain(o.Chain.Name) >= 0 {
			return errExists
		}
		h.Chains = append(h.Chains, answers.HeldChain{Name: o.Chain.Name})
	case answers.DeleteChain:
		at := chain(o.Chain.Name)
		if at < 0 {
			return errAbsent
		}
		if leads(before, o.Chain.Name) || leads(h.Elements, o.Chain.Name) || slices.ContainsFunc(h.Rules, func(r answers.HeldRule) bool { return r.Rule.Goto == o.Chain.Name || r.Chain == o.Chain.Name }) {
			return errBusy
		}
		h.Chains = slices.Delete(h.Chains, at, at+1)
	case answers.AddSet:
		if set(o.Set.Name) >= 0 {
			return errExists
		}
		h.Sets = append(h.Sets, answers.HeldSet{Name: o.Set.Name})
	case answers.DeleteSet:
		at := set(o.Set.Name)
		if at < 0 {
			return errAbsent
		}
		if asks(o.Set.Name) {
			return errBusy
		}
		h.Sets = slices.Delete(h.Sets, at, at+1)
		h.Elements = slices.DeleteFunc(h.Elements, func(e answers.HeldElement) bool { return e.Element.Set == o.Set.Name })
	case answers.AddElement:
		if element(o.Element) >= 0 {
			return errExists
		}
		if set(o.Element.Set) < 0 || o.Element.Number != 0 && chain(answers.LinkChain(o.Element.Number)) < 0 {
			return errAbsent
		}
		h.Elements = append(h.Elements, answers.HeldElement{Element: o.Element})
	case answers.DeleteElement:
		at := element(o.Element)
		if at < 0 {
			return errAbsent
		}
		h.Elements = slices.Delete(h.Elements, at, at+1)
	case answers.AddRule:
		if chain(o.Rule.Chain) < 0 || o.Rule.Goto != "" && chain(o.Rule.Goto) < 0 {
			return errAbsent
		}
		for _, l := range []answers.Lookup{o.Rule.In, o.Rule.Map} {
			if l.Key != answers.NoKey && set(l.Set) < 0 {
				return errAbsent
			}
		}
		k.handle++
		r := answers.HeldRule{Chain: o.Rule.Chain, Handle: k.handle, Rule: o.Rule}
		if o.Handle == 0 {
			h.Rules = append(h.Rules, r)
			return nil
		}
		at := rule(o.Handle)
		if at < 0 || h.Rules[at].Chain != o.Rule.Chain {
			return errAbsent
		}
		h.Rules = slices.Insert(h.Rules, at, r)
	case answers.DeleteRule:
		at := rule(o.Handle)
		if at < 0 || h.Rules[at].Chain != o.Rule.Chain {
			return errAbsent
		}
		h.Rules = slices.Delete(h.Rules, at, at+1)
	}
	return nil
}

var phases = []answers.Phase{answers.BeforeRules, answers.AfterRules, answers.Leftovers}

// converge does all phases.
func (k *kernel) converge(t *rapid.T, planned answers.Table, mayDelete func(answers.Op) bool) {
	ops := answers.Diff(planned, k.clone().held, mayDelete)
	for _, phase := range phases {
		if err := k.do(answers.Of(ops, phase)); err != nil {
			t.Fatalf("%s: %v\n%v", phase, err, ops)
		}
	}
	if n := len(answers.Of(ops, answers.BeforeRules)) + len(answers.Of(ops, answers.AfterRules)) + len(answers.Of(ops, answers.Leftovers)); n != len(ops) {
		t.Fatalf("%d of %d operations have a phase", n, len(ops))
	}
}

func (k *kernel) mustHold(t *rapid.T, planned answers.Table) {
	got := k.held.Table()
	if diff := cmp.Diff(planned, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("(-planned +held)\n%s", diff)
	}
	if len(got.Rules)+countForeign(k.held) != len(k.held.Rules) {
		t.Fatalf("altered rules are left: %+v", k.held.Rules)
	}
	if ops := answers.Diff(planned, k.held, answers.Everything); len(ops) > 0 {
		t.Fatalf("a second pass: %v", ops)
	}
}

func countForeign(h answers.Held) (n int) {
	for _, r := range h.Rules {
		if r.Origin == answers.Foreign {
			n++
		}
	}
	return n
}

func plan(f answers.Facts) answers.Table {
	t, _ := answers.Plan(f)
	return t
}

// spoil does to the table what somebody else can do to it.
func (k *kernel) spoil(t *rapid.T) {
	h := &k.held
	pick := func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "which") }
	for range rapid.IntRange(0, 6).Draw(t, "deeds") {
		switch deed := rapid.IntRange(0, 11).Draw(t, "deed"); {
		case deed == 0 && len(h.Rules) > 0:
			at := pick(len(h.Rules))
			h.Rules = slices.Delete(h.Rules, at, at+1)
		case deed == 1 && len(h.Rules) > 0:
			// One more of the same, elsewhere.
			r := h.Rules[pick(len(h.Rules))]
			k.handle++
			r.Handle = k.handle
			h.Rules = slices.Insert(h.Rules, pick(len(h.Rules)), r)
		case deed == 2:
			h.Rules = rapid.Permutation(h.Rules).Draw(t, "order")
		case deed == 3 && len(h.Rules) > 0:
			at := pick(len(h.Rules))
			h.Rules[at].Origin, h.Rules[at].Rule = answers.Altered, answers.Rule{}
		case deed == 4 && len(h.Chains) > 0:
			k.handle++
			h.Rules = append(h.Rules, answers.HeldRule{Chain: h.Chains[pick(len(h.Chains))].Name, Handle: k.handle, Origin: answers.Foreign})
		case deed == 5 && len(h.Elements) > 0:
			at := pick(len(h.Elements))
			h.Elements = slices.Delete(h.Elements, at, at+1)
		case deed == 6 && len(h.Elements) > 0:
			at := pick(len(h.Elements))
			h.Elements[at].Altered = true
			h.Elements[at].Element.Number = 0
		case deed == 7 && len(h.Chains) > 0:
			h.Chains[pick(len(h.Chains))].Altered = true
		case deed == 8 && len(h.Sets) > 0:
			at := pick(len(h.Sets))
			h.Sets[at].Altered = true
			h.Elements = slices.DeleteFunc(h.Elements, func(e answers.HeldElement) bool { return e.Element.Set == h.Sets[at].Name })
		case deed == 9 && h.Exists:
			h.Others = append(h.Others, "chain mine")
		case deed == 10:
			h.Dormant = h.Exists
		case deed == 11:
			*h = answers.Held{}
		}
	}
}

// alteredForever reports whether a chain cannot be made anew, because somebody else's rules are in it.
func alteredForever(h answers.Held) bool {
	return slices.ContainsFunc(h.Chains, func(c answers.HeldChain) bool {
		return c.Altered && slices.ContainsFunc(h.Rules, func(r answers.HeldRule) bool { return r.Chain == c.Name && r.Origin == answers.Foreign })
	})
}

// TestConverges: from any table, the phases lead to what is planned, and a second pass has nothing to do.
// What is somebody else's stays.
func TestConverges(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		k := &kernel{}
		k.converge(t, plan(genFacts(t)), answers.Everything)
		k.spoil(t)
		spoilt := k.clone().held
		if alteredForever(spoilt) {
			return
		}
		planned := plan(genFacts(t))
		k.converge(t, planned, answers.Everything)
		if !slices.Equal(k.held.Others, spoilt.Others) || countForeign(k.held) != countForeign(spoilt) {
			t.Fatalf("what is not ours changed: %+v, then %+v", spoilt, k.held)
		}
		if len(spoilt.Others)+countForeign(spoilt) > 0 {
			// Chains and sets to which it may refer stay, empty.
			k.held.Chains = slices.DeleteFunc(k.held.Chains, func(c answers.HeldChain) bool {
				chain, _ := answers.ChainNamed(c.Name)
				return !slices.Contains(planned.Chains, chain)
			})
			k.held.Sets = slices.DeleteFunc(k.held.Sets, func(s answers.HeldSet) bool {
				set, _ := answers.SetNamed(s.Name)
				return !slices.Contains(planned.Sets, set)
			})
			if len(k.held.Elements) != len(planned.Elements) {
				t.Fatalf("elements are left: %v", k.held.Elements)
			}
			k.held.Rules = slices.DeleteFunc(k.held.Rules, func(r answers.HeldRule) bool { return r.Origin == answers.Foreign })
			k.held.Others = nil
			if planned.Empty() {
				return
			}
		} else if k.held.Exists != !planned.Empty() {
			t.Fatalf("the table exists: %t", k.held.Exists)
		}
		k.mustHold(t, planned)
	})
}

// TestKilledAnywhere: after any phase, or none, another start with other facts converges.
func TestKilledAnywhere(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		k := &kernel{}
		for range rapid.IntRange(1, 4).Draw(t, "starts") {
			ops := answers.Diff(plan(genFacts(t)), k.clone().held, answers.Everything)
			for _, phase := range phases[:rapid.IntRange(0, 3).Draw(t, "phases")] {
				if err := k.do(answers.Of(ops, phase)); err != nil {
					t.Fatalf("%s: %v", phase, err)
				}
			}
		}
		planned := plan(genFacts(t))
		k.converge(t, planned, answers.Everything)
		k.mustHold(t, planned)
	})
}

// A stage is a host at a moment: which links it has, and which tables of routing the numbers lead to.
type stage struct {
	facts answers.Facts
	// tables are those of rules 9100, by family and number; devices say whose table that is.
	tables map[routing.Family]map[uint8]string
}

// genStage draws links with addresses, and a number for each table.
func genStage(t *rapid.T) stage {
	s := stage{
		facts:  answers.Facts{Group: group, Answers: both(true), Fence: both(true), Mask: rapid.SampledFrom([]routing.MarkMask{0, 0, 0x00ff0000}).Draw(t, "mask")},
		tables: map[routing.Family]map[uint8]string{routing.IPv4: {}, routing.IPv6: {}},
	}
	pool := map[routing.Family][]string{routing.IPv4: {"192.0.2.10", "192.0.2.11", "198.51.100.10", "198.51.100.11"}, routing.IPv6: {"2001:db8::10", "2001:db8::11", "2001:db8::12"}}
	byName := map[string]*answers.Link{}
	for _, f := range routing.Families() {
		numbers := rapid.Permutation([]uint8{1, 2, 3, 4}).Draw(t, "numbers")
		for i, a := range rapid.Permutation(pool[f]).Draw(t, "addresses")[:rapid.IntRange(0, len(pool[f])).Draw(t, "count")] {
			name := fmt.Sprintf("wan%d", i%3)
			if byName[name] == nil {
				byName[name] = &answers.Link{Name: name}
			}
			number := numbers[i%3]
			s.tables[f][number] = name
			byName[name].Sources = append(byName[name].Sources, answers.Source{Address: addr(a), Number: number})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		s.facts.Links = append(s.facts.Links, *byName[name])
	}
	return s
}

// holder is the link that has an address.
func (s stage) holder(a netip.Addr) string {
	for _, l := range s.facts.Links {
		if slices.ContainsFunc(l.Sources, func(s answers.Source) bool { return s.Address == a }) {
			return l.Name
		}
	}
	return ""
}

// judge takes an answer of each address through the table, and fails if it gets a number whose rule, as the
// stage has it, is missing or leads to the table of another link than the one that has the address.
func (s stage) judge(t *rapid.T, when string, held answers.Held) {
	mask := s.facts.Mask
	if mask == 0 {
		mask = routing.DefaultMarkMask
	}
	for _, a := range []string{"192.0.2.10", "192.0.2.11", "198.51.100.10", "198.51.100.11", "2001:db8::10", "2001:db8::11", "2001:db8::12"} {
		peer, server := "203.0.113.1", "172.17.0.2"
		if strings.Contains(a, ":") {
			peer, server = "2001:db8:f::1", "fd00:17::2"
		}
		f := routing.FamilyOf(addr(a))
		mark, _ := pass(held.Table(), answers.Prerouting, flow("docker0", "", answers.Reply, peer+" > "+a, server+" > "+peer))
		if mark&uint32(mask) == 0 {
			continue // Main says, as without us.
		}
		number := uint8(0)
		for n := uint8(1); n <= 4; n++ {
			if mask.Mark(n).Value == mark {
				number = n
			}
		}
		if table, stands := s.tables[f][number]; !stands || table != s.holder(addr(a)) {
			t.Fatalf("%s: an answer of %s has the mark 0x%08x, of table %q; %q has the address", when, a, mark, table, s.holder(addr(a)))
		}
	}
}

// TestNeverDivertedToNothing: between the phases, before and after the rules of routing have changed, no
// packet is led to a table that does not serve it.
func TestNeverDivertedToNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		k := &kernel{}
		was := genStage(t)
		k.converge(t, plan(was.facts), answers.Everything)
		was.judge(t, "at first", k.held)
		for range 2 {
			is := genStage(t)
			planned := plan(is.facts)
			ops := answers.Diff(planned, k.clone().held, answers.Everything)
			if err := k.do(answers.Of(ops, answers.BeforeRules)); err != nil {
				t.Fatal(err)
			}
			// A number whose table has another link now still has its element if the address moved with it.
			was.judge(t, "before the rules change", k.held)
			is.judge(t, "after the rules have changed", k.held)
			if err := k.do(answers.Of(ops, answers.AfterRules)); err != nil {
				t.Fatal(err)
			}
			is.judge(t, "after the rules", k.held)
			if err := k.do(answers.Of(ops, answers.Leftovers)); err != nil {
				t.Fatal(err)
			}
			is.judge(t, "at last", k.held)
			k.mustHold(t, planned)
			was = is
		}
	})
}

// TestFenceBetweenPhases: a packet that leaves by the link of its source is never dropped, whatever the phase
// is, if the link has had the address all along.
func TestFenceBetweenPhases(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		k := &kernel{}
		was, is := genStage(t), genStage(t)
		k.converge(t, plan(was.facts), answers.Everything)
		ops := answers.Diff(plan(is.facts), k.clone().held, answers.Everything)
		check := func(when string) {
			for _, l := range is.facts.Links {
				for _, s := range l.Sources {
					if was.holder(s.Address) != l.Name {
						continue
					}
					p := packet{out: l.Name, uplinks: []string{"wan0", "wan1", "wan2"}, user: -1, source: s.Address, destination: addr("203.0.113.1")}
					if _, passes := pass(k.held.Table(), answers.Postrouting, p); !passes {
						t.Fatalf("%s: %s by %s is dropped", when, s.Address, l.Name)
					}
				}
			}
		}
		for _, phase := range phases {
			if err := k.do(answers.Of(ops, phase)); err != nil {
				t.Fatal(err)
			}
			check(phase.String())
		}
	})
}

// TestIncompleteKnowledge: what may not be deleted stays and works, and the transactions succeed.
func TestIncompleteKnowledge(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		k := &kernel{}
		first := plan(genFacts(t))
		k.converge(t, first, answers.Everything)
		planned := plan(genFacts(t))
		asked := map[answers.Op]bool{}
		k.converge(t, planned, func(o answers.Op) bool {
			o.Phase = 0
			if may, before := asked[o]; before {
				return may
			}
			asked[o] = rapid.Bool().Draw(t, "may")
			return asked[o]
		})
		for o, may := range asked {
			if may {
				continue
			}
			stays := true
			switch o.Verb {
			case answers.DeleteRule:
				stays = slices.ContainsFunc(k.held.Rules, func(r answers.HeldRule) bool { return r.Handle == o.Handle })
			case answers.DeleteElement:
				stays = slices.Contains(k.held.Elements, answers.HeldElement{Element: o.Element})
			case answers.DeleteChain:
				stays = slices.ContainsFunc(k.held.Chains, func(c answers.HeldChain) bool { return c.Name == o.Chain.Name })
			case answers.DeleteSet:
				stays = slices.ContainsFunc(k.held.Sets, func(s answers.HeldSet) bool { return s.Name == o.Set.Name })
			case answers.DeleteTable:
				stays = k.held.Exists
			default: // Nobody is asked about what is added.
			}
			if !stays {
				t.Fatalf("%s, which was not allowed", o)
			}
		}
		got := k.held.Table()
		for _, e := range planned.Elements {
			if !slices.Contains(got.Elements, e) {
				t.Fatalf("%s is missing", e)
			}
		}
		for _, r := range planned.Rules {
			if !slices.Contains(got.Rules, r) {
				t.Fatalf("%s is missing", r)
			}
		}
	})
}

// TestCounts: a rule that stays where it is keeps its handle, and with it what it has counted.
func TestCounts(t *testing.T) {
	t.Parallel()
	facts := twoUplinks(bind(answers.Binding{Users: one(1001), Link: "wan1", Strict: true}))
	k := kernel{}
	if err := k.do(answers.Diff(plan(facts), k.clone().held, answers.Everything)); err != nil {
		t.Fatal(err)
	}
	handles := map[answers.Rule]uint64{}
	for _, r := range k.held.Rules {
		handles[r.Rule] = r.Handle
	}
	facts.Bindings = append(facts.Bindings, answers.Binding{Users: one(1000), Link: "wan0", Strict: true})
	ops := answers.Diff(plan(facts), k.clone().held, answers.Everything)
	if len(ops) != 1 || ops[0].Verb != answers.AddRule {
		t.Fatalf("one more binding: %v", ops)
	}
	if err := k.do(ops); err != nil {
		t.Fatal(err)
	}
	for _, r := range k.held.Rules {
		if h, before := handles[r.Rule]; before && h != r.Handle {
			t.Errorf("%s was made anew", r.Rule)
		}
	}
}

// TestOneTransaction: a link that comes is one transaction behind the rules of routing.
func TestOneTransaction(t *testing.T) {
	t.Parallel()
	facts := twoUplinks()
	k := kernel{}
	if err := k.do(answers.Diff(plan(facts), k.clone().held, answers.Everything)); err != nil {
		t.Fatal(err)
	}
	facts.Links = append(facts.Links, answers.Link{Name: "wan2", Sources: sources(3, "203.0.113.9", "2001:db8:c::9")})
	ops := answers.Diff(plan(facts), k.clone().held, answers.Everything)
	if got := answers.Of(ops, answers.AfterRules); len(got) != len(ops) || !got[len(got)-1].Element.Address.IsValid() || got[len(got)-1].Element.Number != 3 {
		t.Errorf("%v", ops)
	}
}

// TestMoves: an address that moves is answered by nobody until its rules stand, and passes the fence by
// both links meanwhile.
func TestMoves(t *testing.T) {
	t.Parallel()
	facts := twoUplinks(func(f *answers.Facts) {
		f.Answers.Set(routing.IPv6, false)
		f.Fence.Set(routing.IPv6, false)
	})
	k := kernel{}
	if err := k.do(answers.Diff(plan(facts), k.clone().held, answers.Everything)); err != nil {
		t.Fatal(err)
	}
	facts.Links = []answers.Link{facts.Links[0], {Name: "wan1"}}
	facts.Links[0].Sources = append(slices.Clone(facts.Links[0].Sources), sources(1, "198.51.100.10")...)
	var got []string
	for _, o := range answers.Diff(plan(facts), k.clone().held, answers.Everything) {
		got = append(got, o.Phase.String()+": "+o.String())
	}
	want := []string{
		`before the rules: delete element answers4 { 198.51.100.10 : goto link2 }`,
		`before the rules: add element pair4 { 198.51.100.10 . "wan0" }`,
		`after the rules: add element answers4 { 198.51.100.10 : goto link1 }`,
		`leftovers: delete rule link2 handle 8`,
		`leftovers: delete element pair4 { 198.51.100.10 . "wan1" }`,
		`leftovers: delete chain link2`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestForeignObjects: each is a problem, and stays.
func TestForeignObjects(t *testing.T) {
	t.Parallel()
	h := answers.Held{
		Exists: true, Others: []string{"chain mine"},
		Chains: []answers.HeldChain{{Name: "fence"}},
		Rules:  []answers.HeldRule{{Chain: "fence", Handle: 7, Origin: answers.Foreign, Text: "counter"}, {Chain: "fence", Handle: 8, Origin: answers.Altered}},
	}
	var got []string
	for _, p := range h.Problems() {
		got = append(got, p.Object)
	}
	if diff := cmp.Diff([]string{"chain mine", "chain fence handle 7"}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for _, o := range answers.Diff(answers.Table{}, h, answers.Everything) {
		if o.Verb != answers.DeleteRule || o.Handle != 8 {
			t.Errorf("%s", o)
		}
	}
}

// BenchmarkDiff compares a table of 100 links with itself and with one link less.
func BenchmarkDiff(b *testing.B) {
	facts := answers.Facts{Group: group, Answers: both(true), Fence: both(true)}
	for i := range 100 {
		facts.Links = append(facts.Links, answers.Link{Name: fmt.Sprintf("wan%d", i), Sources: sources(uint8(i+1), fmt.Sprintf("192.0.2.%d", i), fmt.Sprintf("2001:db8::%d", i))})
	}
	k := kernel{}
	if err := k.do(answers.Diff(plan(facts), k.clone().held, answers.Everything)); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		facts.Links[0], facts.Links[99] = facts.Links[99], facts.Links[0]
		answers.Diff(plan(answers.Facts{Group: group, Answers: facts.Answers, Fence: facts.Fence, Links: facts.Links[:99]}), k.held, answers.Everything)
	}
}
