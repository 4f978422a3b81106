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
		{Object: "group", Verb: "reset", Count: uint64(routing.ResetGroup)},
		{Object: "group", Verb: "set", Count: uint64(routing.SetGroup)},
		{Object: "route", Verb: "add", Count: uint64(routing.AddRoute)},
		{Object: "route", Verb: "delete", Count: uint64(routing.DeleteRoute)},
		{Object: "route", Verb: "replace", Count: uint64(routing.ReplaceRoute)},
		{Object: "rule", Verb: "add", Count: uint64(routing.AddRule)},
		{Object: "rule", Verb: "delete", Count: uint64(routing.DeleteRule)},
		{Object: "rule", Verb: "move", Count: uint64(routing.MoveRule)},
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
	want := status.Histogram{Buckets: []status.Bucket{{UpTo: 0.001, Count: 3}, {UpTo: 1, Count: 7}}, Count: 12, Sum: 1.5}
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
