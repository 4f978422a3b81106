package server_test

import (
	"fmt"
	"slices"
	"testing"

	"multihomed/internal/dbusapi/server"
)

const root, alice, bob = uint32(0), uint32(1000), uint32(1001)

func all(uint32) bool { return false }

// TestQueueOfUsers: a user with many connections, each with many calls, takes turns with the others, and has room
// for so many only. Before, it took the room of all, root included.
func TestQueueOfUsers(t *testing.T) {
	t.Parallel()
	q := server.NewQueue()
	refused := 0
	for n := range 200 {
		for k := range 40 {
			ask, no := q.Add(fmt.Sprint(":1.", n), 200)
			if ask != (k == 0) {
				t.Fatalf("call %d of connection %d: the bus is asked: %t", k, n, ask)
			}
			if no {
				refused++
			}
		}
	}
	for n := range 200 {
		refused += q.Identify(fmt.Sprint(":1.", n), alice)
	}
	if kept := 200*40 - refused; kept < 256 || kept > 256+200 {
		t.Errorf("%d calls of one user wait", kept)
	}
	for sender, uid := range map[string]uint32{":2.1": root, ":3.1": bob} {
		if _, no := q.Add(sender, 200); no || q.Identify(sender, uid) != 0 {
			t.Errorf("user %d has no room beside another one", uid)
		}
	}
	// The user's own other programs have room for a call, too.
	if _, no := q.Add(":1.200", 200); no || q.Identify(":1.200", alice) != 0 {
		t.Error("a program has no room beside others of its user")
	}
	var first []uint32
	for range 3 {
		_, uid := q.Take(all)
		first = append(first, uid)
	}
	if slices.Sort(first); !slices.Equal(first, []uint32{root, alice, bob}) {
		t.Errorf("the first three calls are of the users %v", first)
	}
	turns := map[string]int{}
	for range 201 {
		sender, _ := q.Take(all)
		turns[sender]++
	}
	if len(turns) < 200 {
		t.Errorf("201 turns are those of %d connections", len(turns))
	}
	for sender := "x"; sender != ""; {
		sender, _ = q.Take(all)
	}
	if !q.IsEmpty() {
		t.Errorf("a queue without calls keeps something: %+v", q)
	}
}

// TestQueueOfAnswers: a user whose answers wait to be written is passed over, and keeps its turn.
func TestQueueOfAnswers(t *testing.T) {
	t.Parallel()
	q := server.NewQueue()
	for n, uid := range []uint32{alice, alice, root} {
		sender := fmt.Sprint(":1.", n)
		q.Add(sender, 200)
		q.Identify(sender, uid)
	}
	waits := func(uid uint32) bool { return uid == alice }
	for _, want := range []string{":1.2", ""} {
		if got, _ := q.Take(waits); got != want {
			t.Errorf("while answers wait: %q, want %q", got, want)
		}
	}
	for _, want := range []string{":1.0", ":1.1", ""} {
		if got, _ := q.Take(all); got != want {
			t.Errorf("when they have gone: %q, want %q", got, want)
		}
	}
}

// TestQueueGoesOn: a call that waited because answers for its user filled a lane is taken when they have gone, also
// root's.
func TestQueueGoesOn(t *testing.T) {
	t.Parallel()
	for _, uid := range []uint32{root, alice} {
		if !server.GoesOn(t.Context(), uid) {
			t.Errorf("the next call of user %d waits", uid)
		}
	}
}

// TestQueueOfStrangers: who is not known yet has room for one long call, and those who go leave nothing.
func TestQueueOfStrangers(t *testing.T) {
	t.Parallel()
	q := server.NewQueue()
	const long = 64 << 10
	if _, no := q.Add(":1.1", long); no {
		t.Error("a long call has no room")
	}
	if _, no := q.Add(":1.1", long); !no {
		t.Error("a stranger has room for two long calls")
	}
	strangers := 0
	for n := range 2000 {
		if _, no := q.Add(fmt.Sprint(":2.", n), 200); !no {
			strangers++
		}
	}
	if strangers != 1023 {
		t.Errorf("%d strangers have room beside one", strangers)
	}
	if got, _ := q.Take(all); got != "" {
		t.Errorf("a call of a stranger is taken: %s", got)
	}
	q.Leave(":1.1")
	for n := range 2000 {
		q.Leave(fmt.Sprint(":2.", n))
	}
	if !q.IsEmpty() {
		t.Errorf("who has gone leaves something: %+v", q)
	}
}

// TestLanes: what root waits for is written first. Refusals are lost rather than put before answers.
func TestLanes(t *testing.T) {
	t.Parallel()
	uids, members := []uint32{alice, alice, root, alice, root}, []string{"a", "b", "c", "d", "e"}
	if got := server.Written(uids, members, 1000, false); !slices.Equal(got, []string{"c", "e", "a", "b", "d"}) {
		t.Errorf("answers leave as %v", got)
	}
	// The first of them is as much as may be ahead of a refusal.
	if got := server.Written(uids, members, 32<<10, true); !slices.Equal(got, []string{"c", "a"}) {
		t.Errorf("refusals leave as %v", got)
	}
}
