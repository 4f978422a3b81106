package allocator_test

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"multihomed/allocator"
	"multihomed/routing"
)

// keyOf is a key of an interface: the n-th network of IPv4.
func keyOf(name string, n int) routing.Key {
	return routing.Key{Family: routing.IPv4, Interface: name, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(n), 0}), 24)}
}

// The planner has one key for all host addresses of an interface and family.
func TestKeysOfHostAddresses(t *testing.T) {
	t.Parallel()
	o := options(t, 10000, 10009)
	a := open(t, o)
	all := []routing.Key{
		{Family: routing.IPv4, Interface: "ppp0", Prefix: netip.MustParsePrefix("0.0.0.0/32")},
		{Family: routing.IPv6, Interface: "ppp0", Prefix: netip.MustParsePrefix("::/128")},
		{Family: routing.IPv4, Interface: "ppp1", Prefix: netip.MustParsePrefix("0.0.0.0/32")},
	}
	before := map[routing.Key]routing.TableID{}
	for _, k := range all {
		before[k] = acquire(t, a, k)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a = open(t, o)
	after, err := a.Acquire(t.Context(), all, nil)
	if err != nil || len(after) != 3 || !maps.Equal(before, after) {
		t.Errorf("before %v, after %v, %v", before, after, err)
	}
}

// moved has the second of three leases moved to a number, as version 1 may have
// leased it.
func moved(t *testing.T, to routing.TableID) allocator.Options {
	t.Helper()
	o := options(t, 10000, 10008)
	seed(t, o)
	execute(t, raw(t, o.Path), fmt.Sprintf("UPDATE tables SET number = %d WHERE number = 10001", to))
	return o
}

func TestALeaseOfTheKeptNumberIsDropped(t *testing.T) {
	t.Parallel()
	o := moved(t, 10009)
	r, err := allocator.OpenReadOnly(t.Context(), o)
	if err != nil || len(r.List()) != 2 {
		t.Fatalf("a reader sees %v, %v", r.List(), err)
	}
	a := open(t, o)
	if all := a.List(); len(all) != 2 {
		t.Errorf("leases %v", all)
	}
	// It still stands in the kernel, and its key gets another one.
	got, err := a.Acquire(t.Context(), keys(0, 3), func(n routing.TableID) (string, bool) { return "our rule", n == 10009 || n == 10000 })
	if err != nil || got[key(0)] != 10000 || got[key(1)] != 10001 || got[key(2)] != 10002 {
		t.Errorf("got %v, %v", got, err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if all := open(t, o).List(); len(all) != 3 || all[1].Key != key(1) || all[1].Table != 10001 {
		t.Errorf("on disk %v", all)
	}
}

func TestAClientsLeaseOfTheKeptNumberIsDropped(t *testing.T) {
	t.Parallel()
	o := options(t, 10000, 10008)
	at := &clock{now: 1e12}
	o.Uptime, o.Boot = at.uptime, "one"
	a := open(t, o)
	serve(t, a, wants(0), wants(2))
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	execute(t, raw(t, o.Path), "UPDATE tables SET number = 10009 WHERE number = 10000")
	a = open(t, o)
	if all := a.Clients(); len(all) != 1 || all[0].Key != client(2) {
		t.Errorf("clients %+v", all)
	}
	again := wants(0)
	again.Table = 10009 // It knows what it had.
	if got := serve(t, a, again)[0]; got.Table != 10000 || !got.New {
		t.Errorf("%+v", got)
	}
}

// Where nothing can be written the number is kept all the same.
func TestALeaseOfTheKeptNumberOnAFullDisk(t *testing.T) {
	t.Parallel()
	o := moved(t, 10009)
	dir := tmpfs(t, "256k")
	path := filepath.Join(dir, "state", "leases.db")
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o750), copyFiles(o.Path, path)); err != nil {
		t.Fatal(err)
	}
	o.Path = path
	filler := fill(t, dir)
	a := open(t, o)
	if a.Fault() == nil {
		t.Error("the disk is full, and nothing is wrong")
	}
	got, err := a.Acquire(t.Context(), keys(0, 3), nil)
	if len(got) != 2 || got[key(1)] != 0 {
		t.Errorf("got %v, %v", got, err)
	}
	refused(t, err, allocator.ErrDiskFull, o.Path)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if n := acquire(t, a, key(1)); n != 10001 {
		t.Errorf("got %d after there is space again", n)
	}
}

// A backup of version 1 that is put in place of the file brings none back.
func TestABackupWithTheKeptNumber(t *testing.T) {
	t.Parallel()
	o := moved(t, 10009)
	backup := copyDatabase(t, o.Path)
	a := open(t, o)
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(o.Path + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if err := copyFiles(backup, o.Path); err != nil {
		t.Fatal(err)
	}
	if n := acquire(t, a, key(1)); n != 10001 {
		t.Errorf("got %d", n)
	}
	for _, l := range a.List() {
		if l.Table == 10009 {
			t.Errorf("%+v", l)
		}
	}
}

func TestScarceNumbersAreForOtherInterfaces(t *testing.T) {
	t.Parallel()
	a := open(t, options(t, 10000, 10099))
	const greedy = 84 // All but the 16 that are kept.
	all := make([]routing.Key, 0, greedy+2)
	for n := range greedy + 2 {
		all = append(all, keyOf("wan0", n))
	}
	got, err := a.Acquire(t.Context(), append(all, keyOf("wan1", 0)), nil)
	scarce, is := errors.AsType[*allocator.ScarceError](err)
	if !is || len(got) != greedy+1 || got[keyOf("wan1", 0)] != 10000+greedy {
		t.Fatalf("%d numbers, %v", len(got), err)
	}
	const want = "no further routing table for wan0 10.77.84.0/24 and 1 more: wan0 has one, and the last 16 of 10000-10100 are kept for interfaces that have none; to fix: widen first and last of [tables] in the configuration"
	if err.Error() != want || scarce.Kept != 16 {
		t.Errorf("error\n%v\nwant\n%s", err, want)
	}
	// Of the other family too, and as a client.
	six := keyOf("wan1", 0)
	six.Family, six.Prefix = routing.IPv6, netip.MustParsePrefix("2001:db8::/64")
	if _, err := a.Acquire(t.Context(), []routing.Key{six}, nil); err == nil || !strings.Contains(err.Error(), "wan1 has one") {
		t.Errorf("the other family: %v", err)
	}
	demand := wants(0)
	demand.Key = allocator.ClientKey{Interface: "wan1", Address: "modem"}
	hinted := demand
	hinted.Table = 10099
	for _, d := range []allocator.Demand{demand, hinted} {
		if got := a.Serve(t.Context(), []allocator.Demand{d}, nil)[0]; got.Err == nil || !strings.Contains(got.Err.Error(), "no further routing table for wan1 modem: wan1 has one") {
			t.Errorf("a client: %+v", got)
		}
	}
	// Interfaces that have none get the rest, to the last one, each one.
	for n := range 15 {
		acquire(t, a, keyOf(fmt.Sprintf("new%d", n), 0))
	}
	if _, err := a.Acquire(t.Context(), []routing.Key{keyOf("new15", 0)}, nil); err == nil || !strings.Contains(err.Error(), "no routing table is left") {
		t.Errorf("a full range: %v", err)
	}
	// What has a lease keeps it, whatever is left.
	a.Release(all[0])
	if n := acquire(t, a, all[0]); n != 10000 {
		t.Errorf("after down and up: %d", n)
	}
	// An interface that gave up its only one is as one that has none.
	a.Release(keyOf("new3", 0))
	if _, err := a.Acquire(t.Context(), []routing.Key{keyOf("new3", 1)}, nil); err != nil {
		t.Error(err)
	}
}

// In one batch a client's interface that gives back its only table has none.
func TestScarceWithinABatch(t *testing.T) {
	t.Parallel()
	a := open(t, options(t, 10000, 10007)) // Two are kept.
	for n := range 5 {
		acquire(t, a, keyOf("wan0", n))
	}
	one, two := wants(0), wants(0)
	one.Key = allocator.ClientKey{Interface: "veth0", Address: "one"}
	two.Key = allocator.ClientKey{Interface: "veth0", Address: "two"}
	back := one
	back.Release = true
	got := a.Serve(t.Context(), []allocator.Demand{one, two, back, two, one}, nil)
	_, scarce := errors.AsType[*allocator.ScarceError](got[1].Err)
	if got[0].Err != nil || !scarce || got[2].Err != nil || got[3].Err != nil || got[3].Table == 0 {
		t.Errorf("%+v", got)
	}
	// Its old number was not recycled: one was left.
	if got[4].Err != nil || got[4].Table != got[0].Table || got[4].Table == got[3].Table {
		t.Errorf("%+v", got)
	}
}

// A hint is not leased a second time by the look ahead.
func TestHintAndLookAhead(t *testing.T) {
	t.Parallel()
	a := open(t, options(t, 10000, 10099))
	demands := make([]allocator.Demand, 0, 20)
	for n := range 20 {
		d := wants(n)
		if n%2 == 1 {
			d.Table = routing.TableID(10000 + 2*n)
		}
		demands = append(demands, d)
	}
	seen := map[routing.TableID]int{}
	for n, o := range serve(t, a, demands...) {
		if other, twice := seen[o.Table]; twice {
			t.Errorf("%d and %d have %d", other, n, o.Table)
		}
		seen[o.Table] = n
	}
}

// TestScarceModel: whoever has a lease keeps it; a new key gets a number if one is
// left, and one of an interface that holds some if more are left than those kept.
func TestScarceModel(t *testing.T) {
	t.Parallel()
	memory := tmpfs(t, "256m")
	runs := 0
	rapid.Check(t, func(rt *rapid.T) {
		runs++
		dir := filepath.Join(memory, fmt.Sprint(runs))
		size := rapid.IntRange(1, 30).Draw(rt, "size")
		last := routing.TableID(modelFirst + size - 1)
		a, err := allocator.Open(rt.Context(), allocator.Options{Path: filepath.Join(dir, "leases.db"), Range: routing.TableRange{First: modelFirst, Last: last + 1}})
		if err != nil {
			rt.Fatal(err)
		}
		defer func() {
			if err := errors.Join(a.Close(), os.RemoveAll(dir)); err != nil {
				t.Error(err)
			}
		}()
		keep := min(16, size/4)
		live, known, foreign := map[routing.Key]routing.TableID{}, map[routing.Key]routing.TableID{}, map[routing.TableID]bool{}
		anyKey := rapid.Custom(func(t *rapid.T) routing.Key {
			return keyOf(fmt.Sprintf("wan%d", rapid.IntRange(0, 7).Draw(t, "interface")), rapid.IntRange(0, 5).Draw(t, "network"))
		})
		acquire := func(t *rapid.T) {
			k := anyKey.Draw(t, "key")
			left, holds := 0, false
			taken := map[routing.TableID]bool{}
			for other, n := range live {
				taken[n] = true
				holds = holds || other.Interface == k.Interface
			}
			for n := routing.TableID(modelFirst); n <= last; n++ {
				if !taken[n] && !foreign[n] {
					left++
				}
			}
			got, err := a.Acquire(t.Context(), []routing.Key{k}, func(n routing.TableID) (string, bool) { return "foreign", foreign[n] })
			n, served := got[k]
			if had, is := known[k]; is {
				if n != had || err != nil {
					t.Fatalf("%v had %d and got %d, %v", k, had, n, err)
				}
				live[k] = n
				return
			}
			_, scarce := errors.AsType[*allocator.ScarceError](err)
			_, full := errors.AsType[*allocator.FullError](err)
			if full != (left == 0) || scarce != (left > 0 && left <= keep && holds) || served == (full || scarce) {
				t.Fatalf("%v (holds %t): %d left, %d kept: %d, %v", k, holds, left, keep, n, err)
			}
			if !served {
				return
			}
			if n > last || taken[n] || foreign[n] {
				t.Fatalf("%v got %d", k, n)
			}
			maps.DeleteFunc(known, func(_ routing.Key, its routing.TableID) bool { return its == n }) // Recycled.
			live[k], known[k] = n, n
		}
		rt.Repeat(map[string]func(*rapid.T){
			"acquire": acquire, "more": acquire, "most": acquire,
			"release": func(t *rapid.T) {
				k := anyKey.Draw(t, "key")
				a.Release(k)
				delete(live, k)
			},
			"foreign": func(t *rapid.T) {
				n := routing.TableID(rapid.IntRange(modelFirst, modelFirst+29).Draw(t, "table"))
				foreign[n] = !foreign[n]
			},
		})
	})
}
