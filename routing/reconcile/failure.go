package reconcile

import (
	"slices"
	"strings"
	"time"

	"multihomed/routing"
)

// A failure is something promised that is not in force, and when it is tried
// again. Each has a time of its own: a link that gets no table for hours must
// not make another's route wait for a minute.
type failure struct {
	routing.Problem
	// op is what the kernel refused; index the interface that got no table.
	// Neither is set if the kernel could not be read.
	op      routing.Op
	index   int
	attempt int
	// first is when it was refused first.
	first time.Time
	due   time.Time
}

// A retry is a failure that is tried again.
type retry struct {
	attempt int
	first   time.Time
}

const aboutMirror = "mirror"

func aboutTable(k routing.Key) string { return "table of " + k.String() }

// fail notes a problem that a later try may cure, and says so once.
func (l *Loop) fail(about string, f failure) {
	known, failing := l.failures[about]
	if failing {
		f.attempt, f.first, f.due = known.attempt, known.first, known.due
	} else {
		earlier, now := l.retrying[about], l.now()
		if f.attempt, f.first = earlier.attempt+1, earlier.first; f.first.IsZero() {
			f.first = now
		}
		f.due = now.Add(min(firstRetry<<min(f.attempt-1, 10), lastRetry))
	}
	l.failures[about] = f
	if known.Problem == f.Problem {
		return
	}
	l.news = true
}

// refused notes that the kernel did not do an operation.
func (l *Loop) refused(op routing.Op, err error) {
	problem := routing.ProblemOf(routing.Refused, routing.Error, op.Reason.Link, err)
	problem.Object = op.Text(l.nameOf)
	// The kernel's writer says itself what it did.
	if !strings.HasPrefix(problem.Text, problem.Object) {
		problem.Text = problem.Object + ": " + problem.Text
	}
	l.fail(op.String(), failure{
		Problem: problem, op: op,
	})
}

func (l *Loop) failed(about string) bool {
	_, failed := l.failures[about]
	return failed
}

// cure forgets a failure: what it was about is in force.
func (l *Loop) cure(about string) {
	if l.failed(about) {
		delete(l.failures, about)
		l.news = true
	}
}

// forgetMoot drops the failures of what nobody wants any more, or what came
// about otherwise.
func (l *Loop) forgetMoot() {
	clear(l.retrying)
	open := routing.NewTouched()
	for about, f := range l.failures {
		switch {
		case f.op != (routing.Op{}):
			touch(open, f.op)
		case f.index != 0 && !l.wantsTable(f.index, about):
			l.cure(about)
		}
	}
	if open.Empty() {
		return
	}
	var still []routing.Op
	l.Mirror.View(func(k State) {
		still = routing.Diff(l.planner, k, open, func(op routing.Op) bool { return l.mayDelete(k, op) })
	})
	for about, f := range l.failures {
		if f.op != (routing.Op{}) && !slices.Contains(still, f.op) {
			l.cure(about)
		}
	}
}

// wantsTable reports whether a link still has the key that got no table.
func (l *Loop) wantsTable(index int, about string) bool {
	plan, _ := l.planner.Link(index)
	return slices.ContainsFunc(plan.Keys, func(k routing.Key) bool {
		_, has := plan.Link.Tables[k]
		return !has && aboutTable(k) == about
	})
}
