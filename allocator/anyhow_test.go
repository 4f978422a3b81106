package allocator_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"multihomed/allocator"
	"multihomed/routing"
)

// anyhow are options of an allocator that works whatever the disk is like. What it
// moves aside is appended to the list.
func anyhow(t *testing.T) (allocator.Options, *[]string) {
	t.Helper()
	o := options(t, 10000, 10099)
	var aside []string
	o.Anyhow = true
	o.Moved = func(to string, _ error) { aside = append(aside, to) }
	o.Now = func() time.Time { return time.Date(2026, 11, 28, 7, 0, 0, 0, time.UTC) }
	return o, &aside
}

func asideFiles(t *testing.T, path string) []string {
	t.Helper()
	found, err := filepath.Glob(path + ".aside-*")
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(found, func(name string) bool { return strings.HasSuffix(name, "-wal") || strings.HasSuffix(name, "-shm") })
}

func TestUselessDatabaseIsMadeAnew(t *testing.T) {
	t.Parallel()
	o, aside := anyhow(t)
	a := open(t, o)
	for n := range 4 {
		acquire(t, a, key(n))
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(o.Path)
	if err != nil {
		t.Fatal(err)
	}
	damaged := slices.Clone(good)
	for i := len(damaged) / 3; i < len(damaged); i++ {
		damaged[i] ^= 0x5a
	}
	header := append([]byte("garbage garbage garbage"), good[23:]...)
	// The kernel knows of two, in another order than they would be given in; the third
	// contradicts itself.
	o.Standing = standing(allocator.Standing{Key: key(1), Table: 10001}, allocator.Standing{Key: key(3), Table: 10003}, allocator.Standing{Key: key(2), Table: 10003}, allocator.Standing{Key: key(9), Table: 10100}, allocator.Standing{Key: key(8), Table: 99})
	change := func(statement string) func() error {
		return func() error {
			if err := errors.Join(os.RemoveAll(o.Path), os.WriteFile(o.Path, good, 0o600)); err != nil {
				return err
			}
			execute(t, raw(t, o.Path), statement)
			return nil
		}
	}
	for _, b := range []struct {
		name string
		do   func() error
	}{
		{"garbage", func() error { return os.WriteFile(o.Path, []byte(strings.Repeat("garbage ", 1000)), 0o600) }},
		{"a garbage header", func() error { return os.WriteFile(o.Path, header, 0o600) }},
		{"a damaged page", func() error { return os.WriteFile(o.Path, damaged, 0o600) }},
		{"a file cut off", func() error { return os.WriteFile(o.Path, good[:len(good)/2], 0o600) }},
		{"a later release's", func() error {
			if err := os.WriteFile(o.Path, good, 0o600); err != nil {
				return err
			}
			execute(t, raw(t, o.Path), "PRAGMA user_version = 4711")
			return nil
		}},
		{"somebody else's", func() error {
			if err := os.Remove(o.Path); err != nil {
				return err
			}
			execute(t, raw(t, o.Path), "CREATE TABLE songs (title TEXT)")
			return nil
		}},
		{"a directory", func() error { return errors.Join(os.Remove(o.Path), os.Mkdir(o.Path, 0o700)) }},
		{"sound, without our table", change("DROP TABLE tables")},
		{"sound, with a table of other columns", change("DROP TABLE tables; CREATE TABLE tables (number INTEGER PRIMARY KEY, title TEXT)")},
		{"sound, with a view in its place", change("ALTER TABLE tables RENAME TO kept; CREATE VIEW tables AS SELECT * FROM kept")},
		{"sound, of an earlier schema by its header", change("PRAGMA user_version = 1")},
		{"sound, of an earlier schema by its header, without our table", change("DROP TABLE tables; PRAGMA user_version = 1")},
		{"sound, new by its header", change("PRAGMA user_version = 0")},
	} {
		if err := b.do(); err != nil {
			t.Fatal(err)
		}
		before, _ := os.ReadFile(o.Path)
		n := len(*aside)
		a, err := allocator.Open(t.Context(), o)
		if err != nil {
			t.Fatalf("%s: %v", b.name, err)
		}
		if a.Fault() != nil || a.Check(t.Context()) != nil {
			t.Errorf("%s: %v, %v", b.name, a.Fault(), a.Check(t.Context()))
		}
		if len(*aside) != n+1 {
			t.Fatalf("%s: moved aside are %v", b.name, *aside)
		}
		if after, _ := os.ReadFile((*aside)[n]); string(after) != string(before) {
			t.Errorf("%s: what was moved aside is not what it was", b.name)
		}
		got, err := a.Acquire(t.Context(), []routing.Key{key(3), key(1), key(0)}, nil)
		if err != nil || got[key(1)] != 10001 || got[key(3)] != 10003 || got[key(0)] != 10000 {
			t.Errorf("%s: %v, %v", b.name, got, err)
		}
		if err := a.Close(); err != nil {
			t.Errorf("%s: %v", b.name, err)
		}
		// It is durable.
		without := o
		without.Standing = nil
		b := open(t, without)
		if n, ok := b.Lookup(key(3)); !ok || n != 10003 {
			t.Errorf("on disk: %d, %t", n, ok)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	// All at the same second, and a bounded number of them is left: the last ones.
	left := asideFiles(t, o.Path)
	want := (*aside)[len(*aside)-5:]
	slices.Sort(left)
	if !slices.Equal(left, want) {
		t.Errorf("left %v, want %v", left, want)
	}
}

// What the kernel tells never contradicts the database.
func TestStandingAddsToTheDatabase(t *testing.T) {
	t.Parallel()
	o, aside := anyhow(t)
	a := open(t, o)
	for n := range 2 {
		acquire(t, a, key(n))
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	o.Standing = standing(allocator.Standing{Key: key(0), Table: 10005}, allocator.Standing{Key: key(7), Table: 10001}, allocator.Standing{Key: key(8), Table: 10008})
	a = open(t, o)
	for k, want := range map[routing.Key]routing.TableID{key(0): 10000, key(1): 10001, key(8): 10008} {
		if n, ok := a.Lookup(k); !ok || n != want {
			t.Errorf("%v has %d, %t", k, n, ok)
		}
	}
	if _, ok := a.Lookup(key(7)); ok || len(*aside) != 0 {
		t.Errorf("somebody's number was given away, or %v", *aside)
	}
}

func TestNewLeasesOnAFullDisk(t *testing.T) {
	t.Parallel()
	o, _ := anyhow(t)
	dir := tmpfs(t, "256k")
	o.Path = filepath.Join(dir, "state", "leases.db")
	a := open(t, o)
	acquire(t, a, key(0))
	filler := fill(t, dir)
	if err := a.Check(t.Context()); !errors.Is(err, allocator.ErrDiskFull) {
		t.Errorf("nothing is to be written, and the disk is full: %v", err)
	}
	used := func(n routing.TableID) (string, bool) { return "a rule", n == 10001 }
	got, err := a.Acquire(t.Context(), keys(0, 3), used)
	if err != nil || got[key(0)] != 10000 || got[key(1)] != 10002 || got[key(2)] != 10003 {
		t.Fatalf("%v, %v", got, err)
	}
	if a.Fault() == nil || !errors.Is(a.Check(t.Context()), allocator.ErrDiskFull) {
		t.Errorf("nothing is wrong: %v", a.Fault())
	}
	// The process dies, and the next one knows them from the kernel.
	again := o
	again.Standing = standing(allocator.Standing{Key: key(1), Table: 10002}, allocator.Standing{Key: key(2), Table: 10003})
	b := open(t, again)
	if got, err := b.Acquire(t.Context(), keys(0, 4), used); err != nil || got[key(1)] != 10002 || got[key(2)] != 10003 || got[key(3)] != 10004 {
		t.Errorf("%v, %v", got, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := b.Check(t.Context()); err != nil || b.Fault() != nil {
		t.Errorf("there is space again: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	o.Standing = nil
	c := open(t, o)
	if n, ok := c.Lookup(key(3)); !ok || n != 10004 {
		t.Errorf("on disk: %d, %t", n, ok)
	}
}

// The directory is removed under a running process.
func TestDirectoryRemoved(t *testing.T) {
	t.Parallel()
	o, _ := anyhow(t)
	o.Path = filepath.Join(filepath.Dir(o.Path), "parent", "state", "leases.db")
	parent := filepath.Dir(filepath.Dir(o.Path))
	a := open(t, o)
	acquire(t, a, key(0))
	// Nobody can make it anew.
	if err := errors.Join(os.RemoveAll(parent), os.WriteFile(parent, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := a.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "make "+filepath.Dir(o.Path)) {
		t.Errorf("check: %v", err)
	}
	if got, err := a.Acquire(t.Context(), keys(0, 2), nil); err != nil || got[key(1)] != 10001 {
		t.Errorf("%v, %v", got, err)
	}
	if err := os.Remove(parent); err != nil {
		t.Fatal(err)
	}
	if err := a.Check(t.Context()); err != nil {
		t.Errorf("check: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	b := open(t, o)
	for n := range 2 {
		if table, ok := b.Lookup(key(n)); !ok || table != routing.TableID(10000+n) {
			t.Errorf("key %d has %d, %t", n, table, ok)
		}
	}
}

func TestNewLeasesWhileLocked(t *testing.T) {
	t.Parallel()
	o, _ := anyhow(t)
	a := open(t, o)
	acquire(t, a, key(0))
	other := raw(t, o.Path)
	execute(t, other, "BEGIN IMMEDIATE")
	if n := acquire(t, a, key(1)); n != 10001 || !errors.Is(a.Fault(), allocator.ErrLocked) {
		t.Errorf("%d, %v", n, a.Fault())
	}
	execute(t, other, "ROLLBACK")
	if err := a.Flush(t.Context()); err != nil || a.Fault() != nil {
		t.Errorf("%v, %v", err, a.Fault())
	}
	r, err := allocator.OpenReadOnly(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if n, ok := r.Lookup(key(1)); !ok || n != 10001 {
		t.Errorf("on disk: %d, %t", n, ok)
	}
}

// Damage that shows while it is in use: memory is the truth.
func TestDamagedWhileOpen(t *testing.T) {
	t.Parallel()
	o, aside := anyhow(t)
	a := open(t, o)
	acquire(t, a, key(0))
	// Another file in its place, which is no database.
	if err := errors.Join(os.Rename(o.Path, o.Path+".gone"), os.Rename(o.Path+"-wal", o.Path+".gone-wal"), os.WriteFile(o.Path, []byte(strings.Repeat("x", 5000)), 0o600)); err != nil {
		t.Fatal(err)
	}
	if n := acquire(t, a, key(1)); n != 10001 || a.Fault() != nil || len(*aside) != 1 {
		t.Errorf("%d, %v, %v", n, a.Fault(), *aside)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	b := open(t, o)
	if n, ok := b.Lookup(key(0)); !ok || n != 10000 {
		t.Errorf("on disk: %d, %t", n, ok)
	}
}

// standing is what the kernel tells.
func standing(all ...allocator.Standing) func(func(routing.TableID) bool) ([]allocator.Standing, error) {
	return func(func(routing.TableID) bool) ([]allocator.Standing, error) { return all, nil }
}

// TestStandingIsAskedForWhatIsNotLeased: whoever reads the kernel can tell which tables
// it need not look at.
func TestStandingIsAskedForWhatIsNotLeased(t *testing.T) {
	t.Parallel()
	o, _ := anyhow(t)
	a := open(t, o)
	table := acquire(t, a, key(1))
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	var leased, free bool
	o.Standing = func(is func(routing.TableID) bool) ([]allocator.Standing, error) {
		leased, free = is(table), is(table+1)
		return nil, errors.New("no kernel")
	}
	if _, err := allocator.Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "no kernel") {
		t.Errorf("opening ends with %v", err)
	}
	if !leased || free {
		t.Errorf("a leased table is leased: %t, a free one: %t", leased, free)
	}
}
