package answers_test

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	table "multihomed/internal/answers"
	"multihomed/internal/nftables"
	"multihomed/routing"
	"multihomed/routing/answers"
	"multihomed/test/lab/nettest"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// facts use every rule that a plan can have.
func facts() answers.Facts {
	f := answers.Facts{
		Group: 28008, Answers: routing.ByFamily[bool]{true, true}, Fence: routing.ByFamily[bool]{true, true},
		Links: []answers.Link{
			{Name: "wan0", Check: answers.CheckByMark, Sources: []answers.Source{
				{Address: netip.MustParseAddr("192.0.2.10"), Number: 1}, {Address: netip.MustParseAddr("2001:db8:a::10"), Number: 2},
			}},
			{Name: "wan1", Sources: []answers.Source{
				{Address: netip.MustParseAddr("198.51.100.20"), Number: 3}, {Address: netip.MustParseAddr("2001:db8:b::20"), Number: 127},
			}},
		},
		Bindings: []answers.Binding{
			{Users: one(1001), Link: "wan1", Strict: true},
			{Mark: routing.Mark{Value: 0x10, Mask: 0xff}, Link: "wan1", Strict: true},
			{Input: "br-w1", Link: "wan1", Strict: true},
			{Source: netip.MustParsePrefix("172.31.0.0/24"), Link: "wan1", Strict: true},
		},
	}
	for _, family := range routing.Families() {
		for _, r := range []routing.Rule{
			{Mark: routing.Mark{Value: 0x1000, Mask: 0xf000}},
			{Mark: routing.Mark{Value: 0x80000000, Mask: 0x80000000}},
			{UIDs: routing.UIDRange{Set: true, First: 1000, Last: 1005}},
			{IIF: "tun0"},
			{OIF: "wan1"},
			{IPProto: 17},
		} {
			r.Family, r.Priority, r.Action, r.Table = family, 20000, routing.ActionLookup, 77
			f.Foreign = append(f.Foreign, r)
		}
	}
	f.Foreign = append(f.Foreign,
		routing.Rule{Family: routing.IPv4, Priority: 20001, From: netip.MustParsePrefix("192.0.2.0/24"), To: netip.MustParsePrefix("203.0.113.0/24"), Action: routing.ActionLookup, Table: 77},
		routing.Rule{Family: routing.IPv6, Priority: 20001, From: netip.MustParsePrefix("2001:db8:a::/64"), To: netip.MustParsePrefix("2001:db8:f::/48"), Action: routing.ActionLookup, Table: 77},
	)
	return f
}

func may(answers.Op) bool { return true }

// TestStore: what is planned stands in the kernel after three transactions, and is read as what was
// planned; nothing is left when nothing is planned.
func TestStore(t *testing.T) { //nolint:paralleltest // it has one network namespace
	conn, err := nftables.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	store := table.NewStore(conn)
	apply := func(planned answers.Table) {
		t.Helper()
		held, generation, err := store.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ops := answers.Diff(planned, held, may)
		for _, phase := range []answers.Phase{answers.BeforeRules, answers.AfterRules, answers.Leftovers} {
			if generation, err = store.Write(t.Context(), answers.Of(ops, phase), generation); err != nil {
				t.Fatal(err)
			}
		}
		held, _, err = store.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if left := answers.Diff(planned, held, may); len(left) > 0 {
			t.Fatalf("a second pass has something to do: %v", left)
		}
	}
	whole, _ := answers.Plan(facts())
	if len(whole.Rules) < 20 {
		t.Fatalf("the plan has %d rules", len(whole.Rules))
	}
	apply(whole)
	out, err := exec.CommandContext(t.Context(), "nft", "list", "table", "inet", "multihomed").CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
	for _, words := range []string{
		"192.0.2.10 : goto link1", "2001:db8:b::20 : goto link127", `198.51.100.20 . "wan1"`, "type filter hook prerouting priority mangle + 5", "ct direction reply ct original ip daddr vmap @answers4",
		`meta skuid 1001 oifname != "wan1" counter`, "oifgroup != 28008 accept",
	} {
		if !strings.Contains(string(out), words) {
			t.Errorf("nft does not list %q:\n%s", words, out)
		}
	}
	less := facts()
	less.Links, less.Bindings, less.Fence = less.Links[:1], nil, routing.ByFamily[bool]{true, false}
	part, _ := answers.Plan(less)
	apply(part)
	apply(whole)
	apply(answers.Table{})
	if exists, err := store.Exists(t.Context()); exists || err != nil {
		t.Errorf("there is a table: %t, %v", exists, err)
	}
	apply(whole)
	for range 2 {
		if err := store.Delete(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if exists, err := store.Exists(t.Context()); exists || err != nil {
		t.Errorf("there is a table: %t, %v", exists, err)
	}
}

// TestAltered: a rule that somebody changed is replaced, what he added stays.
func TestAltered(t *testing.T) { //nolint:paralleltest // it has one network namespace
	conn, err := nftables.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	store := table.NewStore(conn)
	planned, _ := answers.Plan(facts())
	write := func() {
		t.Helper()
		held, generation, err := store.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ops := answers.Diff(planned, held, may)
		for _, phase := range []answers.Phase{answers.BeforeRules, answers.AfterRules, answers.Leftovers} {
			if generation, err = store.Write(t.Context(), answers.Of(ops, phase), generation); err != nil {
				t.Fatal(err)
			}
		}
	}
	write()
	for _, line := range []string{"flush chain inet multihomed link1", "add chain inet multihomed his", "add rule inet multihomed his counter", "add rule inet multihomed link1 counter drop"} {
		if out, err := exec.CommandContext(t.Context(), "nft", strings.Fields(line)...).CombinedOutput(); err != nil {
			t.Fatalf("nft %s: %v\n%s", line, err, out)
		}
	}
	write()
	held, _, err := store.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if left := answers.Diff(planned, held, may); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	out, err := exec.CommandContext(t.Context(), "nft", "list", "table", "inet", "multihomed").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "chain his") {
		t.Errorf("his chain is gone: %v\n%s", err, out)
	}
	if err := store.Delete(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestSourceCheck: the greater value of an interface and of all counts.
func TestSourceCheck(t *testing.T) { //nolint:paralleltest // it changes sysctls
	set := func(name, value string) {
		t.Helper()
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+name, []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	set("all/rp_filter", "0")
	for _, c := range []struct {
		filter, mark string
		want         answers.SourceCheck
	}{{"0", "0", answers.CheckLoose}, {"2", "1", answers.CheckLoose}, {"1", "0", answers.CheckStrict}, {"1", "1", answers.CheckByMark}} {
		set("lo/rp_filter", c.filter)
		set("lo/src_valid_mark", c.mark)
		if got, err := table.SourceCheck("lo"); got != c.want || err != nil {
			t.Errorf("%+v: %v, %v", c, got, err)
		}
	}
	if _, err := table.SourceCheck("absent"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an interface that does not exist: %v", err)
	}
	if _, err := table.SourceCheck("../all"); err == nil {
		t.Error("a path is no name")
	}
}

// one is one user.
func one(uid uint32) routing.UIDRange { return routing.UIDRange{Set: true, First: uid, Last: uid} }
