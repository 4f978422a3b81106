package allocator_test

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"
	"testing"

	"multihomed/allocator"
	"multihomed/routing"
)

// TestTrial: a trial gives the numbers that an allocator gives afterwards, recycled ones and those that
// replace others included, and neither makes nor changes a file.
func TestTrial(t *testing.T) {
	t.Parallel()
	o := options(t, 10, 17)
	inUse := func(n routing.TableID) (string, bool) { return "a test", n == 12 }
	trial := func(do func(*allocator.Allocator) (map[routing.Key]routing.TableID, error)) (map[routing.Key]routing.TableID, error) {
		t.Helper()
		a, err := allocator.OpenTrial(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		got, failed := do(a)
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		return got, failed
	}
	same := func(do func(*allocator.Allocator) (map[routing.Key]routing.TableID, error)) {
		t.Helper()
		before, missing := os.ReadFile(o.Path)
		got, failed := trial(do)
		if after, err := os.ReadFile(o.Path); !bytes.Equal(before, after) || errors.Is(missing, fs.ErrNotExist) != errors.Is(err, fs.ErrNotExist) {
			t.Error("the trial changed the database")
		}
		a := open(t, o)
		want, err := do(a)
		if !maps.Equal(got, want) || (err == nil) != (failed == nil) {
			t.Errorf("the trial gave %v and %v, the allocator %v and %v", got, failed, want, err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
	acquire := func(keys ...routing.Key) func(*allocator.Allocator) (map[routing.Key]routing.TableID, error) {
		return func(a *allocator.Allocator) (map[routing.Key]routing.TableID, error) {
			return a.Acquire(t.Context(), keys, inUse)
		}
	}
	same(acquire(keys(0, 3)...)) // There is no database yet.
	same(acquire(keys(1, 4)...))
	same(func(a *allocator.Allocator) (map[routing.Key]routing.TableID, error) {
		return a.Move(t.Context(), map[routing.Key]routing.TableID{key(0): 10}, inUse)
	})
	same(acquire(slices.Concat(keys(20, 5), keys(0, 2))...)) // Some are recycled, and some get none.
	o.Range = routing.TableRange{First: 30, Last: 40}
	same(acquire(keys(0, 4)...))
	o.Standing = func(func(routing.TableID) bool) ([]allocator.Standing, error) {
		return []allocator.Standing{{Key: key(50), Table: 37}}, nil
	}
	same(acquire(key(50), key(51)))
}

// TestTrialOfADamagedDatabase: what cannot be read is an error.
func TestTrialOfADamagedDatabase(t *testing.T) {
	t.Parallel()
	o := options(t, 10, 17)
	acquire(t, open(t, o), key(0))
	if err := os.WriteFile(o.Path, bytes.Repeat([]byte("x"), 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(o.Path + "-wal"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if a, err := allocator.OpenTrial(t.Context(), o); err == nil {
		t.Errorf("a trial opened it: %+v", a.List())
	}
	o.Path = ""
	a, err := allocator.OpenTrial(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if got := acquire(t, a, key(0)); got != 10 {
		t.Errorf("without a database it gave %d", got)
	}
}
