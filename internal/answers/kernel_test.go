package answers_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netns"
	"pgregory.net/rapid"

	table "multihomed/internal/answers"
	"multihomed/internal/nftables"
	"multihomed/routing"
	"multihomed/routing/answers"
)

// A world is a network namespace with the test's thread in it.
type world struct {
	testing.TB
	*table.Store
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	runtime.LockOSThread() // The thread ends with the test.
	ns, err := netns.New()
	if err != nil {
		tb.Fatal(err)
	}
	conn, err := nftables.Open()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := errors.Join(conn.Close(), ns.Close()); err != nil {
			tb.Error(err)
		}
	})
	return &world{tb, table.NewStore(conn)}
}

func (w *world) nft(script string) {
	w.Helper()
	cmd := exec.CommandContext(w.Context(), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		w.Fatalf("nft: %v\n%s\n%s", err, script, out)
	}
}

func (w *world) held() answers.Held {
	w.Helper()
	h, _, err := w.Read(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	return h
}

// converge does all phases, and wants a second pass to have nothing to do.
func (w *world) converge(planned answers.Table) {
	w.Helper()
	held, generation, err := w.Read(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	ops := answers.Diff(planned, held, answers.Everything)
	for _, phase := range []answers.Phase{answers.BeforeRules, answers.AfterRules, answers.Leftovers} {
		if generation, err = w.Write(w.Context(), answers.Of(ops, phase), generation); err != nil {
			w.Fatalf("%v\n%v", err, ops)
		}
	}
	h := w.held()
	if left := answers.Diff(planned, h, answers.Everything); len(left) > 0 {
		w.Fatalf("a second pass: %v", left)
	}
}

// mustBe wants the table to be what is planned, and nothing else.
func (w *world) mustBe(planned answers.Table) {
	w.Helper()
	h := w.held()
	if diff := cmp.Diff(planned, h.Table(), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()); diff != "" {
		w.Fatalf("(-planned +held)\n%s", diff)
	}
	if len(h.Others) > 0 || len(h.Problems()) > 0 || len(h.Rules) != len(planned.Rules) || h.Exists == planned.Empty() {
		w.Fatalf("%+v", h)
	}
}

func planned(f answers.Facts) answers.Table {
	t, _ := answers.Plan(f)
	return t
}

// script is a table as a person writes it for nft(8).
func script(t answers.Table) string {
	var b strings.Builder
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(&b, format, args...) }
	say("table inet multihomed {\n")
	for _, s := range t.Sets {
		address := map[routing.Family]string{routing.IPv4: "ipv4_addr", routing.IPv6: "ipv6_addr"}[s.Family]
		switch s.Kind {
		case answers.Verdicts:
			say("map %s { type %s : verdict\n", s.Name, address)
		case answers.Addresses:
			say("set %s { type %s\n", s.Name, address)
		case answers.Pairs:
			say("set %s { type %s . ifname\n", s.Name, address)
		}
		say("}\n")
	}
	for _, c := range t.Chains {
		say("chain %s {\n", c.Name)
		switch c.Hook {
		case answers.Prerouting:
			say("type filter hook prerouting priority %d; policy accept;\n", c.Priority)
		case answers.Postrouting:
			say("type filter hook postrouting priority %d; policy accept;\n", c.Priority)
		case answers.NoHook:
		}
		for _, r := range t.Rules {
			if r.Chain == c.Name {
				say("%s comment %q\n", r, r.Decision.Comment())
			}
		}
		say("}\n")
	}
	say("}\n")
	for _, e := range t.Elements {
		say("add element inet multihomed %s\n", e)
	}
	return b.String()
}

// TestSameAsNFT: what nft(8) makes of the text of a plan is read as the plan, rule by rule: expressions and
// text say the same.
func TestSameAsNFT(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	plan := planned(facts())
	w.nft(script(plan))
	w.mustBe(plan)
}

// TestOddNames: names of interfaces of 15 bytes, and of bytes that are no letters, come back as they were.
func TestOddNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := facts()
	for i, name := range []string{"fifteen-bytes-x", "w\"an*\xff\x01;"} {
		f.Links[i].Name, f.Links[i].Check = name, answers.CheckByMark
		f.Bindings = append(f.Bindings, answers.Binding{Users: one(uint32(2000 + i)), Link: name, Strict: true})
	}
	plan := planned(f)
	w.converge(plan)
	w.mustBe(plan)
}

// genFacts draws facts that share much with each other.
func genFacts(t *rapid.T) answers.Facts {
	f := facts()
	for _, family := range routing.Families() {
		f.Answers.Set(family, rapid.IntRange(0, 4).Draw(t, "answers") > 0)
		f.Fence.Set(family, rapid.IntRange(0, 4).Draw(t, "fence") > 0)
	}
	f.Mask = rapid.SampledFrom([]routing.MarkMask{0, 0, 0x00ff0000}).Draw(t, "mask")
	f.Bindings = rapid.SliceOfN(rapid.SampledFrom(f.Bindings), 0, 4).Draw(t, "bindings")
	f.Foreign = rapid.SliceOfN(rapid.SampledFrom(f.Foreign), 0, 4).Draw(t, "foreign")
	f.Links = nil
	for i := range rapid.IntRange(0, 3).Draw(t, "links") {
		l := answers.Link{Name: fmt.Sprintf("wan%d", i), Check: answers.SourceCheck(rapid.IntRange(0, 2).Draw(t, "check"))}
		for _, a := range []string{"192.0.2.10", "198.51.100.10", "2001:db8::10", "2001:db8::11"} {
			if rapid.Bool().Draw(t, a) {
				l.Sources = append(l.Sources, answers.Source{Address: netip.MustParseAddr(a), Number: uint8(rapid.IntRange(0, 4).Draw(t, "number"))})
			}
		}
		f.Links = append(f.Links, l)
	}
	return f
}

// TestTransitions: the kernel takes every transaction between any two plans, also after a kill between two
// phases, and then holds the second.
func TestTransitions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rapid.Check(t, func(t *rapid.T) {
		held, generation, err := w.Read(w.Context())
		if err != nil {
			t.Fatal(err)
		}
		ops := answers.Diff(planned(genFacts(t)), held, answers.Everything)
		for _, phase := range []answers.Phase{answers.BeforeRules, answers.AfterRules, answers.Leftovers}[:rapid.IntRange(0, 3).Draw(t, "phases")] {
			if generation, err = w.Write(w.Context(), answers.Of(ops, phase), generation); err != nil {
				t.Fatalf("%v\n%v", err, ops)
			}
		}
		plan := planned(genFacts(t))
		w.converge(plan)
		w.mustBe(plan)
	})
}

// TestRepairs: whatever somebody does to the table, the phases restore it, and what he added stays.
func TestRepairs(t *testing.T) {
	t.Parallel()
	plan := planned(facts())
	for _, c := range []struct {
		name, deed string
		// others is how many objects of his stay.
		others int
	}{
		{"the table is deleted", "delete table inet multihomed", 0},
		{"the ruleset is flushed", "flush ruleset", 0},
		{"a chain is empty", "flush chain inet multihomed fence", 0},
		{"a map is empty", "flush map inet multihomed answers4", 0},
		{"an address is missing", "delete element inet multihomed own4 { 192.0.2.10 }", 0},
		{"an address too many", "add element inet multihomed own4 { 203.0.113.9 }", 0},
		{"an address leads elsewhere", "delete element inet multihomed answers4 { 192.0.2.10 }; add element inet multihomed answers4 { 192.0.2.10 : goto link3 }", 0},
		{"an address is dropped", "delete element inet multihomed answers4 { 192.0.2.10 }; add element inet multihomed answers4 { 192.0.2.10 : drop }", 0},
		{"rules in another order", "flush chain inet multihomed answers; add rule inet multihomed answers " + last(plan, "answers") + "; add rule inet multihomed answers " + first(plan, "answers"), 0},
		{"a rule of ours twice", "add rule inet multihomed answers " + first(plan, "answers"), 0},
		{"a rule of ours does something else", `add rule inet multihomed link1 meta mark set 0x01000000 comment "multihomed set-mark: mine"`, 0},
		{"a chain has another priority", "flush chain inet multihomed answers; delete chain inet multihomed answers; add chain inet multihomed answers { type filter hook prerouting priority 7; policy drop; }", 0},
		{"a chain has another policy", "add chain inet multihomed fence { policy drop; }", 0},
		{"the table is dormant", "add table inet multihomed { flags dormant; }", 0},
		{"a set is another one", "flush chain inet multihomed fence; flush chain inet multihomed strays; delete set inet multihomed own4; add set inet multihomed own4 { type ipv4_addr; flags interval; }", 0},
		{"a rule of his", "insert rule inet multihomed fence counter", 1},
		{"a chain of his", "add chain inet multihomed his; add rule inet multihomed his ip saddr @own4 goto link1", 1},
		{"a set of his", "add set inet multihomed his { type inet_service; }", 1},
		{"a counter of his", "add counter inet multihomed his", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.converge(plan)
			w.nft(strings.ReplaceAll(c.deed, "; add ", "\nadd "))
			h := w.held()
			if ops := answers.Diff(plan, h, answers.Everything); c.others == 0 && len(ops) == 0 {
				t.Fatal("it was not noticed")
			}
			w.converge(plan)
			h = w.held()
			if got := h.Problems(); len(got) != c.others {
				t.Errorf("problems: %v", got)
			}
			if c.others == 0 {
				w.mustBe(plan)
			}
			// When nothing is wanted, his objects keep the table, and nothing of ours has an effect.
			w.converge(answers.Table{})
			h = w.held()
			if h.Exists != (c.others > 0) || len(h.Elements) > 0 || slices.ContainsFunc(h.Rules, func(r answers.HeldRule) bool { return r.Origin != answers.Foreign }) {
				t.Errorf("left: %+v", h)
			}
		})
	}
}

// commented is a rule as nft(8) takes it, with its comment.
func commented(r answers.Rule) string { return fmt.Sprintf("%s comment %q", r, r.Decision.Comment()) }

func first(t answers.Table, chain string) string {
	return commented(t.Rules[slices.IndexFunc(t.Rules, func(r answers.Rule) bool { return r.Chain == chain })])
}

func last(t answers.Table, chain string) string {
	for _, r := range slices.Backward(t.Rules) {
		if r.Chain == chain {
			return commented(r)
		}
	}
	return ""
}

// TestChanged: a transaction that was decided by an older ruleset does nothing.
func TestChanged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	held, generation, err := w.Read(w.Context())
	if err != nil {
		t.Fatal(err)
	}
	plan := planned(facts())
	w.nft("add table ip somebody")
	if _, err := w.Write(w.Context(), answers.Diff(plan, held, answers.Everything), generation); !errors.Is(err, nftables.ErrChanged) {
		t.Fatalf("%v", err)
	}
	if exists, err := w.Exists(w.Context()); exists || err != nil {
		t.Fatalf("the table exists: %t, %v", exists, err)
	}
	w.converge(plan)
	w.mustBe(plan)
}
