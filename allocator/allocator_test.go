package allocator_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"multihomed/allocator"
	"multihomed/routing"
)

func TestAcquireIsSticky(t *testing.T) {
	t.Parallel()
	o := options(t, 10000, 10999)
	a := open(t, o)
	got, err := a.Acquire(t.Context(), keys(0, 3), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := map[routing.Key]routing.TableID{key(0): 10000, key(1): 10001, key(2): 10002}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b routing.Key) bool { return a == b })); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
	a.Release(key(0), key(2))
	if n := acquire(t, a, key(3)); n != 10003 {
		t.Errorf("a new key got %d, want the unused 10003", n)
	}
	if n := acquire(t, a, key(2)); n != 10002 {
		t.Errorf("after release: %d, want 10002", n)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	b := open(t, o)
	for n := range 4 {
		if table, ok := b.Lookup(key(n)); !ok || table != routing.TableID(10000+n) {
			t.Errorf("after reopening: key %d has %d, %v", n, table, ok)
		}
	}
}

func TestRecyclesTheLongestReleased(t *testing.T) {
	t.Parallel()
	o := options(t, 10000, 10002)
	// The clock stands still: the order must not depend on it.
	o.Now = func() time.Time { return time.Unix(0, 0) }
	a := open(t, o)
	for n := range 3 {
		acquire(t, a, key(n))
	}
	a.Release(key(1))
	a.Release(key(2))
	a.Release(key(0))
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	b := open(t, o)
	got, err := b.Acquire(t.Context(), keys(10, 3), nil)
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range []routing.TableID{10001, 10002, 10000} {
		if got[key(10+n)] != want {
			t.Errorf("new key %d got %d, want %d", n, got[key(10+n)], want)
		}
	}
	if _, ok := b.Lookup(key(0)); ok {
		t.Error("a recycled lease is still there")
	}
}

func TestHeldAtTheCrashIsRecycledLast(t *testing.T) {
	t.Parallel()
	o := options(t, 10000, 10002)
	a := open(t, o)
	for n := range 3 {
		acquire(t, a, key(n))
	}
	a.Release(key(2))
	if err := a.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	o.Path = copyDatabase(t, o.Path)
	b := open(t, o)
	if n := acquire(t, b, key(10)); n != 10002 {
		t.Errorf("recycled %d, want 10002: the others were in use until the crash", n)
	}
}

func TestDailyPrefixDoesNotExhaustTheRange(t *testing.T) {
	t.Parallel()
	a := open(t, options(t, 10000, 10009))
	static := acquire(t, a, key(9999))
	for day := range 50 {
		acquire(t, a, key(day))
		a.Release(key(day))
	}
	if n := acquire(t, a, key(9999)); n != static {
		t.Errorf("the link that did not change moved from %d to %d", static, n)
	}
}

func TestInUse(t *testing.T) {
	t.Parallel()
	a := open(t, options(t, 10000, 10003))
	acquire(t, a, key(0))
	foreign := map[routing.TableID]string{10000: "rule 100", 10001: "rt_tables: isp1", 10002: "profile home"}
	inUse := func(n routing.TableID) (string, bool) { why, ok := foreign[n]; return why, ok }
	got, err := a.Acquire(t.Context(), keys(0, 2), inUse)
	if err != nil {
		t.Fatal(err)
	}
	if got[key(0)] != 10000 || got[key(1)] != 10003 {
		t.Errorf("got %v: the lease keeps 10000, the new one gets the only one that nobody uses", got)
	}

	// A released number that still stands in the kernel is not recycled.
	a.Release(key(0))
	got, err = a.Acquire(t.Context(), []routing.Key{key(5)}, inUse)
	full, ok := errors.AsType[*allocator.FullError](err)
	if !ok || len(got) != 0 {
		t.Fatalf("got %v, %v; want a FullError", got, err)
	}
	if full.Live != 1 || full.Others != 3 {
		t.Errorf("%+v: 1 is live, 3 are in use otherwise", full)
	}
	const want = "no routing table is left in 10000-10004 for wan5 2001:db8:5::/64: 1 are held by links and clients, 3 are in use otherwise (10001: rt_tables: isp1); to fix: widen first and last of [tables] in the configuration"
	if err.Error() != want {
		t.Errorf("error\n%v\nwant\n%s", err, want)
	}
}

func TestFullRangeServesWhatItCan(t *testing.T) {
	t.Parallel()
	a := open(t, options(t, 10000, 10002))
	acquire(t, a, key(7))
	got, err := a.Acquire(t.Context(), append(keys(0, 4), key(7)), nil)
	full, ok := errors.AsType[*allocator.FullError](err)
	if !ok {
		t.Fatalf("error %v, want a FullError", err)
	}
	if len(got) != 3 || got[key(7)] != 10000 || got[key(0)] != 10001 || got[key(1)] != 10002 {
		t.Errorf("got %v", got)
	}
	if len(full.Keys) != 2 || full.Keys[0] != key(2) || full.Keys[1] != key(3) {
		t.Errorf("left out %v", full.Keys)
	}
}

func TestInvalidKeysDoNotHinderOthers(t *testing.T) {
	t.Parallel()
	a := open(t, options(t, 10000, 10009))
	bad := []routing.Key{
		{},
		{Family: routing.IPv4, Interface: "wan0", Prefix: netip.MustParsePrefix("192.0.2.5/24")},
		{Family: routing.IPv6, Interface: "wan0", Prefix: netip.MustParsePrefix("192.0.2.0/24")},
		{Family: 1, Interface: "wan0", Prefix: netip.MustParsePrefix("192.0.2.0/24")},
		{Family: routing.IPv4, Interface: "", Prefix: netip.MustParsePrefix("192.0.2.0/24")},
		{Family: routing.IPv4, Interface: "a/b", Prefix: netip.MustParsePrefix("192.0.2.0/24")},
		{Family: routing.IPv4, Interface: strings.Repeat("x", 16), Prefix: netip.MustParsePrefix("192.0.2.0/24")},
	}
	got, err := a.Acquire(t.Context(), append(bad, key(0), key(0)), nil)
	if err == nil || strings.Count(err.Error(), "leasing a table to") != len(bad) {
		t.Errorf("error %v, want one for each of %d keys", err, len(bad))
	}
	if len(got) != 1 || got[key(0)] != 10000 {
		t.Errorf("got %v", got)
	}
}

func TestRangeChange(t *testing.T) {
	t.Parallel()
	o := options(t, 10000, 10003)
	a := open(t, o)
	for n := range 4 {
		acquire(t, a, key(n))
	}
	if err := a.SetRange(routing.TableRange{First: 10002, Last: 10006}); err != nil {
		t.Fatal(err)
	}
	var outside []routing.TableID
	for _, l := range a.List() {
		if l.OutOfRange {
			outside = append(outside, l.Table)
		}
	}
	if diff := cmp.Diff([]routing.TableID{10000, 10001}, outside); diff != "" {
		t.Errorf("reported out of range (-want +got):\n%s", diff)
	}
	if _, ok := a.Lookup(key(0)); ok {
		t.Error("a number out of range is still given")
	}
	got, err := a.Acquire(t.Context(), keys(0, 4), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := map[routing.Key]routing.TableID{key(0): 10004, key(1): 10005, key(2): 10002, key(3): 10003}
	for k, n := range want {
		if got[k] != n {
			t.Errorf("%v has %d, want %d", k, got[k], n)
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	o.Range = a.Range()
	b := open(t, o)
	if all := b.List(); len(all) != 4 {
		t.Errorf("old leases were not replaced: %v", all)
	}
	for _, r := range []routing.TableRange{{}, {First: 0, Last: 5}, {First: 6, Last: 5}, {First: 6, Last: 6}} {
		if err := b.SetRange(r); err == nil {
			t.Errorf("range %v was accepted", r)
		}
	}
}

func TestHugeRangeCostsNothing(t *testing.T) {
	t.Parallel()
	a := open(t, options(t, 1, 0xfffffffe))
	if n := acquire(t, a, key(0)); n != 1 {
		t.Errorf("got %d", n)
	}
	if err := a.SetRange(routing.TableRange{First: 0xfffffffe, Last: 0xffffffff}); err != nil {
		t.Fatal(err)
	}
	if n := acquire(t, a, key(1)); n != 0xfffffffe {
		t.Errorf("got %d", n)
	}
	if _, err := a.Acquire(t.Context(), keys(2, 1), nil); err == nil {
		t.Error("a second number out of one")
	}
}

func TestForgetAndPurge(t *testing.T) {
	t.Parallel()
	o := options(t, 10000, 10009)
	a := open(t, o)
	for n := range 5 {
		acquire(t, a, key(n))
	}
	a.Release(key(0), key(1), key(2))
	if err := a.Forget(t.Context(), key(0), key(0), key(4), key(77)); err == nil || !strings.Contains(err.Error(), "wan4") {
		t.Errorf("error %v, want a complaint about wan4, which is held", err)
	}
	if n := acquire(t, a, key(10)); n != 10000 {
		t.Errorf("got %d, want the forgotten 10000", n)
	}
	if n, err := a.Purge(t.Context()); n != 2 || err != nil {
		t.Errorf("purged %d, %v; want 2", n, err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	all := open(t, o).List()
	left := make([]routing.TableID, 0, len(all))
	for _, l := range all {
		left = append(left, l.Table)
	}
	if diff := cmp.Diff([]routing.TableID{10000, 10003, 10004}, left); diff != "" {
		t.Errorf("left on disk (-want +got):\n%s", diff)
	}
}

func TestListShowsTimes(t *testing.T) {
	t.Parallel()
	o := options(t, 10000, 10009)
	now := time.UnixMilli(1_700_000_000_123)
	o.Now = func() time.Time { return now }
	a := open(t, o)
	acquire(t, a, key(0))
	created := now
	now = now.Add(time.Hour)
	a.Release(key(0))
	want := []allocator.Lease{{Key: key(0), Table: 10000, Created: created, Released: now}}
	compare := cmp.Comparer(func(a, b routing.Key) bool { return a == b })
	if diff := cmp.Diff(want, a.List(), compare); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Hour)
	if diff := cmp.Diff(want, open(t, o).List(), compare); diff != "" {
		t.Errorf("after reopening (-want +got):\n%s", diff)
	}
}

func TestReadOnlyWhileTheDaemonWrites(t *testing.T) {
	t.Parallel()
	o := options(t, 10000, 10009)
	if _, err := allocator.OpenReadOnly(t.Context(), o); !errors.Is(err, allocator.ErrMissing) {
		t.Fatalf("error %v, want ErrMissing", err)
	}
	a := open(t, o)
	for n := range 5 {
		acquire(t, a, key(n))
		r, err := allocator.OpenReadOnly(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if all := r.List(); len(all) != n+1 || !all[n].Live {
			t.Errorf("the reader sees %v after %d leases", all, n+1)
		}
		if got, err := r.Acquire(t.Context(), keys(n, 2), nil); len(got) != 1 || !errors.Is(err, allocator.ErrReadOnly) {
			t.Errorf("the reader acquired %v, %v", got, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	before := listing(t, filepath.Dir(o.Path))
	r, err := allocator.OpenReadOnly(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.List()) != 5 {
		t.Errorf("the reader sees %v", r.List())
	}
	if diff := cmp.Diff(before, listing(t, filepath.Dir(o.Path))); diff != "" {
		t.Errorf("reading left something behind (-before +after):\n%s", diff)
	}
}

func listing(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	a := open(t, options(t, 10000, 10019))
	done := make(chan error)
	const workers = 8
	var shared sync.Map // What each round's common key was told.
	for w := range workers {
		go func() {
			var errs []error
			for i := range 30 {
				common := key(10000 + i%3)
				one, err := a.Acquire(t.Context(), []routing.Key{common}, nil)
				if told, _ := shared.LoadOrStore(common, one[common]); told != one[common] || err != nil {
					errs = append(errs, fmt.Errorf("%v was told %v and %v (%w)", common, told, one[common], err))
				}
				mine := keys(w*100+i, 2)
				got, err := a.Acquire(t.Context(), mine, nil)
				if err == nil && len(got) != 2 {
					err = errors.New("not all keys were served")
				}
				errs = append(errs, err)
				a.List()
				a.Release(mine...)
				if i%10 == 0 {
					errs = append(errs, a.Flush(t.Context()))
				}
			}
			done <- errors.Join(errs...)
		}()
	}
	for range workers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	seen := map[routing.TableID]routing.Key{}
	for _, l := range a.List() {
		if other, ok := seen[l.Table]; ok {
			t.Errorf("%v and %v share %d", other, l.Key, l.Table)
		}
		seen[l.Table] = l.Key
	}
}
