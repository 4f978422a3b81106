package daemon_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"multihomed/internal/daemon"
	"multihomed/internal/status"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

func TestChangesHaveNames(t *testing.T) {
	t.Parallel()
	counted := new(reconcile.Counters).Read()
	for i := range counted.Changes {
		counted.Changes[i] = uint64(i)
	}
	want := []status.Changed{
		{"group", "reset", uint64(routing.ResetGroup)},
		{"group", "set", uint64(routing.SetGroup)},
		{"route", "add", uint64(routing.AddRoute)},
		{"route", "delete", uint64(routing.DeleteRoute)},
		{"route", "replace", uint64(routing.ReplaceRoute)},
		{"rule", "add", uint64(routing.AddRule)},
		{"rule", "delete", uint64(routing.DeleteRule)},
		{"rule", "move", uint64(routing.MoveRule)},
	}
	if diff := cmp.Diff(want, daemon.ChangesOf(counted.Changes[:])); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestHistogramIsCumulative: each bucket has what is in those before it, and what is slower than all is in the
// count alone.
func TestHistogramIsCumulative(t *testing.T) {
	t.Parallel()
	got := daemon.HistogramOf(reconcile.Latencies{Bounds: []time.Duration{time.Millisecond, time.Second}, Buckets: []uint64{3, 4, 5}, Sum: 1500 * time.Millisecond})
	want := status.Histogram{Buckets: []status.Bucket{{0.001, 3}, {1, 7}}, Count: 12, Sum: 1.5}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestLoggedProblemsCount: a problem counts when it is written, not each time it is found.
func TestLoggedProblemsCount(t *testing.T) {
	t.Parallel()
	p := daemon.NewProblems()
	bad := routing.Problem{Code: routing.Refused, Severity: routing.Error, Link: "wan0", Text: "no"}
	p.Note(bad)
	p.Note(bad)
	if n := p.Written(routing.Refused, routing.Error); n != 1 {
		t.Errorf("%d lines", n)
	}
	p.Note()
	p.Note(bad, routing.Problem{Code: routing.Refused, Severity: routing.Warning, Text: "perhaps"})
	if n, m := p.Written(routing.Refused, routing.Error), p.Written(routing.Refused, routing.Warning); n != 2 || m != 1 {
		t.Errorf("%d and %d lines", n, m)
	}
}
