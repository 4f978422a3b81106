package nftables_test

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"multihomed/internal/nftables"
)

// many is a table with one map of n elements.
func many(n int) nftables.Table {
	set := nftables.Set{Name: "s", Key: nftables.IPv4Address}
	for i := range n {
		a := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 10<<24|uint32(i))))
		set.Elements = append(set.Elements, key(nftables.Addr(a)))
	}
	return nftables.Table{Sets: []nftables.Set{set}}
}

// TestManyElements: elements that take many messages are written, read and deleted.
func TestManyElements(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	want := many(10_000)
	w.commit(ops(want)...)
	got, _ := w.read()
	if diff := cmp.Diff(want, plain(got)); diff != "" {
		t.Errorf("%d elements: %.1000s", len(got.Sets[0].Elements), diff)
	}
	// nft lists some elements twice and others never while the kernel enlarges its hash table.
	w.await(func() bool { return strings.Count(w.list(), "10.0.") == len(want.Sets[0].Elements) }, "nft lists all elements")
	w.commit(nftables.DeleteElements{Set: "s", Elements: want.Sets[0].Elements[1:]})
	if got, _ := w.read(); len(got.Sets[0].Elements) != 1 || got.Sets[0].Elements[0] != want.Sets[0].Elements[0] {
		t.Errorf("%d elements are left", len(got.Sets[0].Elements))
	}
	w.commit(nftables.FlushSet{Set: "s"})
	if got, _ := w.read(); len(got.Sets[0].Elements) != 0 {
		t.Errorf("%d elements are left by a flush", len(got.Sets[0].Elements))
	}
}

// TestReadIsBounded: a table that is too large is an error, and the Conn works afterwards.
func TestReadIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.commit(ops(many(1<<17 + 1))...)
	if _, _, err := w.Read(t.Context(), table); !errors.Is(err, nftables.ErrTooLarge) {
		t.Fatalf("reading: %v", err)
	}
	w.commit(nftables.DeleteTable{})
	if _, _, err := w.Read(t.Context(), table); !errors.Is(err, nftables.ErrNoTable) {
		t.Fatalf("reading afterwards: %v", err)
	}
}

// TestBatchIsBounded: a batch that is too large is an error before anything is sent.
func TestBatchIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := w.Commit(t.Context(), table, ops(many(1<<20)), 0); !errors.Is(err, nftables.ErrTooLarge) {
		t.Fatal(err)
	}
	if _, _, err := w.Read(t.Context(), table); !errors.Is(err, nftables.ErrNoTable) {
		t.Fatal(err)
	}
}

// TestBatchIsAtomic: one bad operation, and nothing of the batch stands; the error names it.
func TestBatchIsAtomic(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.commit(ops(example())...)
	before := w.list()
	_, err := w.Commit(t.Context(), table, []nftables.Op{
		nftables.FlushChain{Chain: "fence"},
		nftables.DeleteElements{Set: "own4", Elements: []nftables.Element{key(addr("192.0.2.10"))}},
		nftables.DeleteElements{Set: "own4", Elements: []nftables.Element{key(addr("203.0.113.7"))}},
		nftables.AddRule{Chain: "answers", Rule: rule(verdict(nftables.Jump, "nowhere"))},
		nftables.AddRule{Chain: "answers", Rule: rule(nftables.IPv4Only(), nftables.IPv4Saddr, in("nothing"))},
		nftables.AddChain{Chain: nftables.Chain{Name: "new"}},
	}, 0)
	if !errors.Is(err, unix.ENOENT) {
		t.Fatalf("the batch: %v", err)
	}
	for _, word := range []string{
		"delete element own4 { 0xcb007107 } in inet multihomed: element 0xcb007107: no such file", "add rule answers: [ immediate reg 0 jump nowhere ]",
		"the chain of a verdict does not exist", "the set does not exist",
	} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%v\ndoes not say: %s", err, word)
		}
	}
	if strings.Contains(err.Error(), "flush chain") || strings.Contains(err.Error(), "chain new") {
		t.Errorf("%v\nnames a good operation", err)
	}
	if diff := cmp.Diff(before, w.list()); diff != "" {
		t.Errorf("something of the batch stands: %s", diff)
	}
}

// TestNamesElement: of many elements, the error names the bad one.
func TestNamesElement(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.commit(ops(example())...)
	for _, op := range []nftables.Op{
		nftables.AddElements{Set: "answers4", Elements: []nftables.Element{to("link1", addr("192.0.2.11")), to("link2", addr("192.0.2.10"))}},
		nftables.AddElements{Set: "answers4", Elements: []nftables.Element{to("link1", addr("192.0.2.11")), to("nowhere", addr("192.0.2.10"))}},
		nftables.DeleteElements{Set: "own4", Elements: []nftables.Element{key(addr("198.51.100.10")), key(addr("192.0.2.10")), key(addr("192.0.2.10"))}},
	} {
		_, err := w.Commit(t.Context(), table, []nftables.Op{op}, 0)
		if err == nil || !strings.Contains(err.Error(), "element 0xc000020a") {
			t.Errorf("%s: %v", op, err)
		}
	}
}

// TestLoop: what only the whole batch shows to be wrong is an error of the whole batch, and nothing stands.
func TestLoop(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	chain := func(name string, hook nftables.Base) nftables.Op {
		return nftables.AddChain{Chain: nftables.Chain{Name: name, Base: hook}}
	}
	_, err := w.Commit(t.Context(), table, []nftables.Op{
		nftables.AddTable{},
		chain("base", nftables.Base{Type: nftables.Filter, Policy: nftables.PolicyAccept}), chain("a", nftables.Base{}), chain("b", nftables.Base{}),
		nftables.AddRule{Chain: "base", Rule: rule(verdict(nftables.Jump, "a"))},
		nftables.AddRule{Chain: "a", Rule: rule(verdict(nftables.Goto, "b"))},
		nftables.AddRule{Chain: "b", Rule: rule(verdict(nftables.Jump, "a"))},
	}, 0)
	if !errors.Is(err, unix.ELOOP) && !errors.Is(err, unix.EMLINK) {
		t.Errorf("a loop: %v", err)
	}
	if _, _, err := w.Read(t.Context(), table); !errors.Is(err, nftables.ErrNoTable) {
		t.Errorf("afterwards: %v", err)
	}
}

// TestChainsThatExist: a policy is changed, and another base is refused.
func TestChainsThatExist(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	base := nftables.Base{Type: nftables.Filter, Hook: nftables.Input, Priority: 7, Policy: nftables.PolicyAccept}
	add := func(b nftables.Base) error {
		_, err := w.Commit(t.Context(), table, []nftables.Op{nftables.AddTable{}, nftables.AddChain{Chain: nftables.Chain{Name: "c", Base: b}}}, 0)
		return err
	}
	must(t, add(base))
	must(t, add(nftables.Base{}))
	closed := base
	closed.Policy = nftables.PolicyDrop
	must(t, add(closed))
	if got, _ := w.read(); got.Chain("c").Base != closed {
		t.Errorf("%+v, not %+v", got.Chain("c").Base, closed)
	}
	w.commit(nftables.AddRule{Chain: "c"})
	later, elsewhere := base, base
	later.Priority++
	elsewhere.Hook = nftables.Forward
	for _, b := range []nftables.Base{later, elsewhere} {
		if err := add(b); !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, nftables.ErrUnsupported) {
			t.Errorf("%+v: %v", b, err)
		}
	}
	w.commit(nftables.DeleteChain{Chain: "c"}, nftables.AddChain{Chain: nftables.Chain{Name: "c", Base: elsewhere}}, nftables.AddRule{Chain: "c", Rule: rule("new")})
	got, _ := w.read()
	if c := got.Chain("c"); len(got.Chains) != 1 || c.Base != elsewhere || len(c.Rules) != 1 || c.Rules[0].Comment != "new" {
		t.Errorf("deleted and added: %+v", got.Chains)
	}
}

// TestManyErrors: some refusals are named, and the others counted or said to be lost.
func TestManyErrors(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.commit(nftables.AddTable{})
	for _, n := range []int{100, 20_000} {
		var bad []nftables.Op
		for range n {
			bad = append(bad, nftables.DeleteChain{Chain: "nowhere"})
		}
		_, err := w.Commit(t.Context(), table, bad, 0)
		if !errors.Is(err, unix.ENOENT) || strings.Count(err.Error(), "delete chain nowhere") != 16 || !strings.Contains(err.Error(), "more operations were refused") {
			t.Errorf("%d refusals: %v", n, err)
		}
		if n == 20_000 && !strings.Contains(err.Error(), "some answers of the kernel were lost") {
			t.Errorf("%d refusals: %v", n, err)
		}
		w.read()
	}
}

// TestChanged: a batch that was decided by an older generation does nothing.
func TestChanged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.commit(nftables.AddTable{})
	_, g := w.read()
	g, err := w.Commit(t.Context(), table, []nftables.Op{nftables.AddChain{Chain: nftables.Chain{Name: "first"}}}, g)
	must(t, err)
	if _, now := w.read(); now != g {
		t.Errorf("Commit says it made generation %d, and the kernel has %d", g, now)
	}
	w.nft("add table ip foreign")
	_, err = w.Commit(t.Context(), table, []nftables.Op{nftables.AddChain{Chain: nftables.Chain{Name: "second"}}}, g)
	if !errors.Is(err, nftables.ErrChanged) {
		t.Errorf("after a change: %v", err)
	}
	got, g := w.read()
	if got.Chain("first") == nil || got.Chain("second") != nil {
		t.Errorf("%+v", got)
	}
	if _, err = w.Commit(t.Context(), table, []nftables.Op{nftables.AddChain{Chain: nftables.Chain{Name: "second"}}}, g); err != nil {
		t.Errorf("after reading again: %v", err)
	}
}

// TestNoTable: whatever is done to a table that does not exist, the error says that.
func TestNoTable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, op := range []nftables.Op{
		nftables.DeleteTable{},
		nftables.AddChain{Chain: nftables.Chain{Name: "c"}},
		nftables.FlushChain{Chain: "c"},
		nftables.DeleteChain{Chain: "c"},
		nftables.AddRule{Chain: "c"},
		nftables.InsertRule{Chain: "c"},
		nftables.DeleteRule{Chain: "c", Handle: 7},
		nftables.AddSet{Set: nftables.Set{Name: "s", Key: nftables.IPv4Address}},
		nftables.DeleteSet{Set: "s"},
		nftables.FlushSet{Set: "s"},
		nftables.AddElements{Set: "s", Elements: []nftables.Element{key(addr("192.0.2.1"))}},
		nftables.DeleteElements{Set: "s", Elements: []nftables.Element{key(addr("192.0.2.1"))}},
	} {
		if _, err := w.Commit(t.Context(), table, []nftables.Op{op}, 0); !errors.Is(err, nftables.ErrNoTable) {
			t.Errorf("%s: %v", op, err)
		}
	}
}

// TestCheck: the kernel is asked, and nothing changes, not even the generation.
func TestCheck(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nft("add table inet other")
	_, before, _ := w.Read(t.Context(), table)
	if err := w.Check(t.Context(), table, ops(example())); err != nil {
		t.Errorf("a good batch: %v", err)
	}
	if _, after, err := w.Read(t.Context(), table); !errors.Is(err, nftables.ErrNoTable) || after != before || after == 0 {
		t.Errorf("afterwards: %v, generation %d became %d", err, before, after)
	}
	err := w.Check(t.Context(), table, append(ops(example()), nftables.DeleteChain{Chain: "nowhere"}))
	if refused, ok := errors.AsType[*nftables.OpError](err); !ok || refused.Op != (nftables.DeleteChain{Chain: "nowhere"}) || refused.Table != table {
		t.Errorf("a bad operation: %v", err)
	}
}

// TestUnsupported: what the kernel lacks is told by its name.
func TestUnsupported(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, test := range map[string]struct {
		table nftables.TableID
		op    nftables.Op
		word  string
	}{
		"a family":       {nftables.TableID{Family: 99, Name: "t"}, nftables.AddTable{}, "nf_tables for tables of family 99 (module nf_tables)"},
		"a type of hook": {table, nftables.AddChain{Chain: nftables.Chain{Name: "c", Base: nftables.Base{Type: "bogus"}}}, "nf_tables' chain type bogus (module nft_chain_bogus)"},
	} {
		err := w.Check(t.Context(), test.table, []nftables.Op{nftables.AddTable{}, test.op, test.op})
		if !errors.Is(err, nftables.ErrUnsupported) || !slices.Equal(nftables.Lacks(err), []string{test.word}) {
			t.Errorf("%s: %q of %v", name, nftables.Lacks(err), err)
		}
	}
}

// TestLacksNothing: an error with another reason is no lack.
func TestLacksNothing(t *testing.T) {
	t.Parallel()
	for _, err := range []error{nil, unix.ENOENT, errors.Join(unix.ENOENT, nftables.ErrChanged)} {
		if got := nftables.Lacks(err); len(got) > 0 {
			t.Errorf("%v lacks %q", err, got)
		}
	}
}

// TestRefusesToWrite: what cannot be right is refused before the kernel is asked.
func TestRefusesToWrite(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	chain := func(e ...nftables.Expr) nftables.Op {
		return nftables.AddRule{Chain: "c", Rule: nftables.Rule{Exprs: e}}
	}
	long := strings.Repeat("x", 256)
	for _, op := range []nftables.Op{
		nil,
		nftables.AddChain{},
		nftables.AddChain{Chain: nftables.Chain{Name: long}},
		nftables.FlushChain{Chain: "a\x00b"},
		nftables.DeleteRule{Chain: "c"},
		nftables.AddChain{Chain: nftables.Chain{Name: "c", Base: nftables.Base{Hook: 1}}},
		nftables.DeleteRule{Handle: 1},
		nftables.AddRule{},
		nftables.AddSet{},
		nftables.AddSet{Set: nftables.Set{Name: "s"}},
		nftables.AddSet{Set: nftables.Set{Name: "s", Key: 13}},
		nftables.AddSet{Set: nftables.Set{Name: "s", Key: nftables.IPv4Address, Unknown: true}},
		nftables.DeleteElements{Set: "s"},
		nftables.DeleteElements{Elements: []nftables.Element{key(addr("192.0.2.1"))}},
		nftables.AddElements{Set: "s", Elements: []nftables.Element{{}}},
		nftables.AddElements{Set: "s", Elements: []nftables.Element{{Key: "1234", Unknown: true}}},
		nftables.AddElements{Set: "s", Elements: []nftables.Element{to("", addr("192.0.2.1"))}},
		nftables.AddRule{Chain: "c", Rule: nftables.Rule{Comment: long}},
		nftables.AddRule{Chain: "c", Rule: nftables.Rule{Comment: "a\x00"}},
		chain(nftables.Unknown{Name: "log"}), chain(nil), chain(is("")), chain(is(nftables.Value(long))), chain(in("")), chain(nftables.VerdictMap{}),
		chain(nftables.Bitwise{Mask: "1", Xor: "22"}), chain(verdict(nftables.NoVerdict, "")), chain(verdict(nftables.UnknownVerdict, "")),
		chain(verdict(nftables.Drop, "c")), chain(verdict(nftables.Jump, "")), chain(verdict(nftables.Goto, long)), chain(verdict(99, "")),
		chain(slices.Repeat([]nftables.Expr{nftables.Counter{}}, 129)...),
	} {
		_, err := w.Commit(t.Context(), table, []nftables.Op{nftables.AddTable{}, op}, 0)
		if _, ok := errors.AsType[unix.Errno](err); err == nil || ok {
			t.Errorf("%v: %v", op, err)
		}
	}
	if _, err := w.Commit(t.Context(), nftables.TableID{Family: nftables.INet}, []nftables.Op{nftables.AddTable{}}, 0); err == nil {
		t.Error("a table without a name")
	}
	if _, _, err := w.Read(t.Context(), table); !errors.Is(err, nftables.ErrNoTable) {
		t.Error(err)
	}
}

// TestPlaces: rules come where they shall.
func TestPlaces(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	add := func(comment string) nftables.AddRule { return nftables.AddRule{Chain: "c", Rule: rule(comment)} }
	w.commit(nftables.AddTable{}, nftables.AddChain{Chain: nftables.Chain{Name: "c"}}, add("1"), add("2"), add("3"))
	now := func() (comments string, rules []nftables.Rule) {
		got, _ := w.read()
		for _, r := range got.Chain("c").Rules {
			comments += r.Comment
		}
		return comments, got.Chain("c").Rules
	}
	_, rules := now()
	w.commit(
		nftables.AddRule{Chain: "c", Rule: rule("a"), After: rules[0].Handle}, nftables.InsertRule{Chain: "c", Rule: rule("b"), Before: rules[2].Handle},
		nftables.InsertRule{Chain: "c", Rule: rule("c")}, nftables.DeleteRule{Chain: "c", Handle: rules[1].Handle},
	)
	if got, _ := now(); got != "c1ab3" {
		t.Errorf("the rules are %s", got)
	}
	w.commit(nftables.FlushChain{Chain: "c"}, add("x"))
	if got, _ := now(); got != "x" {
		t.Errorf("the rules are %s", got)
	}
}

// TestAddsTwice: what exists is no error; another verdict is one, but for an element that is deleted before.
func TestAddsTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	all := ops(example())
	w.commit(all...)
	before := w.list()
	w.commit(slices.DeleteFunc(slices.Clone(all), func(o nftables.Op) bool { _, rule := o.(nftables.AddRule); return rule })...)
	if diff := cmp.Diff(before, w.list()); diff != "" {
		t.Error(diff)
	}
	other := nftables.AddElements{Set: "answers4", Elements: []nftables.Element{to("link2", addr("192.0.2.10"))}}
	if _, err := w.Commit(t.Context(), table, []nftables.Op{other}, 0); !errors.Is(err, unix.EEXIST) {
		t.Errorf("another verdict: %v", err)
	}
	w.commit(nftables.DeleteElements(other), other)
	got, _ := w.read()
	if !slices.Contains(got.Set("answers4").Elements, other.Elements[0]) {
		t.Errorf("%v", got.Set("answers4").Elements)
	}
	set := nftables.AddSet{Set: nftables.Set{Name: "own4", Key: nftables.IPv6Address}}
	if _, err := w.Commit(t.Context(), table, []nftables.Op{set}, 0); !errors.Is(err, unix.EEXIST) {
		t.Errorf("another type: %v", err)
	}
	w.commit(nftables.FlushChain{Chain: "fence"}, nftables.DeleteSet{Set: "own4"}, set)
	if got, _ := w.read(); got.Set("own4").Key != nftables.IPv6Address || len(got.Set("own4").Elements) != 0 {
		t.Errorf("deleted and added: %+v", got.Set("own4"))
	}
}

// TestTakesApart: everything can be deleted again, in one batch.
func TestTakesApart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	want := example()
	w.commit(ops(want)...)
	if _, err := w.Commit(t.Context(), table, []nftables.Op{nftables.DeleteSet{Set: "own4"}}, 0); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a set in use: %v", err)
	}
	var apart []nftables.Op
	for _, c := range want.Chains {
		apart = append(apart, nftables.FlushChain{Chain: c.Name})
	}
	for _, s := range want.Sets {
		apart = append(apart, nftables.FlushSet{Set: s.Name}, nftables.DeleteSet{Set: s.Name})
	}
	for _, c := range want.Chains {
		apart = append(apart, nftables.DeleteChain{Chain: c.Name})
	}
	w.commit(apart...)
	if got, _ := w.read(); len(got.Chains)+len(got.Sets)+got.Others != 0 {
		t.Errorf("%+v is left", got)
	}
	w.commit(nftables.DeleteTable{})
}

// TestForeignWriters: while others change the ruleset all the time, a read is of one moment, a commit is
// all or nothing, and both come to an end.
func TestForeignWriters(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nft("add table inet multihomed; add chain inet multihomed a; add chain inet multihomed b; add chain inet multihomed own")
	// Each of these transactions leaves both chains with the same number of rules.
	more := "add rule inet multihomed a accept; add rule inet multihomed b accept\n"
	less := "flush chain inet multihomed a; flush chain inet multihomed b\n"
	stop := make(chan struct{})
	var writers sync.WaitGroup
	scripts := make(chan string)
	writers.Go(func() {
		defer close(scripts)
		for {
			for _, s := range []string{more, more, less} {
				select {
				case <-stop:
					return
				case scripts <- s:
				}
			}
		}
	})
	foreign, err := nftables.Open()
	must(t, err)
	defer func() { must(t, foreign.Close()) }()
	other := nftables.TableID{Family: nftables.IPv4, Name: "other"}
	writers.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := foreign.Commit(t.Context(), other, []nftables.Op{nftables.AddTable{}, nftables.DeleteTable{}}, 0); err != nil {
					t.Errorf("foreign: %v", err)
					return
				}
			}
		}
	})
	nft := exec.CommandContext(t.Context(), "nft", "-i")
	in, err := nft.StdinPipe()
	must(t, err)
	must(t, nft.Start())
	writers.Go(func() {
		for s := range scripts {
			if _, err := in.Write([]byte(s)); err != nil {
				t.Errorf("nft: %v", err)
			}
		}
	})
	committed, changed := 0, 0
	for round := 0; committed < 20; round++ {
		got, g, err := w.Read(t.Context(), table)
		if errors.Is(err, nftables.ErrChanged) {
			changed++
			continue
		}
		if err != nil {
			t.Errorf("reading: %v", err)
			break
		}
		if a, b := len(got.Chain("a").Rules), len(got.Chain("b").Rules); a != b {
			t.Errorf("a read is of two moments: %d and %d rules", a, b)
			break
		}
		if n := len(got.Chain("own").Rules); n != committed {
			t.Errorf("%d own rules, not %d", n, committed)
			break
		}
		_, err = w.Commit(t.Context(), table, []nftables.Op{nftables.AddRule{Chain: "own"}}, g)
		switch {
		case err == nil:
			committed++
		case errors.Is(err, nftables.ErrChanged):
			changed++
		default:
			t.Errorf("committing: %v", err)
		}
		if t.Failed() {
			break
		}
	}
	close(stop)
	writers.Wait()
	must(t, in.Close())
	must(t, nft.Wait())
	t.Logf("%d commits, %d times changed meanwhile", committed, changed)
}
