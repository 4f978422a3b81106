package allocator_test

import (
	"errors"
	"os"
	"testing"

	"multihomed/allocator"
	"multihomed/routing"
)

// TestMove: a key whose number somebody else took gets one from the end of the range, for
// good, and its old number is nobody's.
func TestMove(t *testing.T) {
	t.Parallel()
	o := options(t, 10000, 10099)
	a := open(t, o)
	if _, err := a.Acquire(t.Context(), keys(0, 3), nil); err != nil {
		t.Fatal(err)
	}
	a.Release(key(1))
	foreign := map[routing.TableID]bool{10000: true, 10001: true, 10099: true}
	inUse := func(n routing.TableID) (string, bool) { return "somebody's", foreign[n] }
	from := map[routing.Key]routing.TableID{key(0): 10000, key(1): 10001, key(2): 10050}
	got, err := a.Move(t.Context(), from, inUse)
	if err != nil {
		t.Fatal(err)
	}
	want := map[routing.Key]routing.TableID{key(0): 10098, key(1): 10097, key(2): 10002}
	for k, n := range want {
		if got[k] != n {
			t.Errorf("%v got %d, want %d", k, got[k], n)
		}
	}
	// Said twice it moves nothing.
	if got, err = a.Move(t.Context(), from, inUse); err != nil || got[key(0)] != 10098 {
		t.Errorf("once more: %v, %v", got, err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	b := open(t, o)
	for k, n := range want {
		if table := acquire(t, b, k); table != n {
			t.Errorf("after a restart %v has %d, want %d", k, table, n)
		}
	}
	if n := acquire(t, b, key(3)); n != 10000 {
		t.Errorf("a new key got %d, want 10000, which nobody has any more", n)
	}
}

// TestMoveWithoutRoom: a key for which there is no number keeps the one it has.
func TestMoveWithoutRoom(t *testing.T) {
	t.Parallel()
	a := open(t, options(t, 10000, 10001))
	acquire(t, a, key(0))
	all := func(routing.TableID) (string, bool) { return "somebody's", true }
	got, err := a.Move(t.Context(), map[routing.Key]routing.TableID{key(0): 10000}, all)
	if _, full := errors.AsType[*allocator.FullError](err); !full || len(got) != 0 {
		t.Errorf("got %v, %v; want a FullError", got, err)
	}
	if n := acquire(t, a, key(0)); n != 10000 {
		t.Errorf("the key has %d, want its 10000", n)
	}
}

// TestMoveOnABrokenDisk: the number changes in memory, and the disk follows as soon as it
// can be written.
func TestMoveOnABrokenDisk(t *testing.T) {
	dir := tmpfs(t, "1m")
	o := options(t, 10000, 10099)
	o.Path, o.Anyhow = dir+"/leases.db", true
	a := open(t, o)
	acquire(t, a, key(0))
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	filler := fill(t, dir)
	b := open(t, o)
	acquire(t, b, key(0))
	got, err := b.Move(t.Context(), map[routing.Key]routing.TableID{key(0): 10000}, nil)
	if err != nil || got[key(0)] != 10099 {
		t.Fatalf("got %v, %v", got, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := b.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	c := open(t, o)
	if n := acquire(t, c, key(0)); n != 10099 {
		t.Errorf("after a restart: %d, want 10099", n)
	}
}
