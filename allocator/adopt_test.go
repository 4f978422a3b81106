package allocator_test

import (
	"testing"

	"multihomed/allocator"
	"multihomed/routing"
)

// A full range in which all numbers wait for their former clients: each link
// gets that of its own address, in whatever order the links are asked for, and
// the link that has none gets the one that is left.
func TestLinksTakeOverBeforeOthersRecycle(t *testing.T) {
	t.Parallel()
	for name, order := range map[string][]routing.Key{
		"strangers first": {key(8), key(0), key(2)},
		"strangers last":  {key(2), key(0), key(8)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := open(t, options(t, 10000, 10002))
			for _, n := range []int{0, 2, 6} {
				serve(t, a, wants(n))
			}
			for _, n := range []int{0, 2, 6} {
				serve(t, a, gives(n))
			}
			got, err := a.Acquire(t.Context(), order, nil)
			if err != nil || got[key(0)] != 10000 || got[key(2)] != 10001 || got[key(8)] != 10002 {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

func TestTheLastReleasedOfALinkIsTakenOver(t *testing.T) {
	t.Parallel()
	a := open(t, options(t, 10000, 10009))
	first, second := wants(0), wants(0)
	second.Key.Address = "10.0.0.77"
	other := allocator.Demand{Key: second.Key, Owner: second.Owner, Release: true}
	serve(t, a, first, second, other, gives(0))
	if n := acquire(t, a, key(0)); n != 10000 {
		t.Errorf("the link got %d, want 10000, which was released last", n)
	}
	serve(t, a, second)
	if l := a.Clients(); len(l) != 1 || l[0].Table != 10001 {
		t.Errorf("the other address has lost its table: %+v", l)
	}
}
