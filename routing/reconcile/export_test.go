package reconcile

import (
	"time"

	"multihomed/routing"
)

// SetClock makes the loop ask for the time elsewhere.
func (l *Loop) SetClock(now func() time.Time) { l.now = now }

// UntilNext is how long Run would wait for an event.
func (l *Loop) UntilNext() time.Duration { return l.untilNext() }

// Remembered counts what the loop keeps of the past.
func (l *Loop) Remembered() int {
	return len(l.known) + len(l.held) + len(l.holders) + len(l.released) + len(l.failures) + len(l.retrying) + len(l.problems) +
		len(l.retired.Rules) + len(l.retired.Routes) + len(l.retired.Groups) + len(l.deferred) +
		len(l.dirty) + len(l.rerouted) + len(l.unread) + len(l.touched.Rules) + len(l.touched.Routes)
}

// Disputes counts the objects whose budget is kept.
func (l *Loop) Disputes() int { return len(l.disputes.limits) }

// Describe is what the log says of a change.
func Describe(was, is routing.LinkPlan, added, gone int, removed string) (sentence, reason string) {
	_, sentence, reason = describe(was, is, moved{added, gone}, removed)
	return sentence, reason
}

// LinkOf is linkOf.
func LinkOf(facts routing.Interface, claim Claim) routing.Link { return linkOf(facts, claim) }

// CountChange counts an operation, and that the kernel is as planned then.
func (l *Loop) CountChange(op routing.Op, began time.Time) {
	l.countChange(op)
	l.countConverged(began)
}
