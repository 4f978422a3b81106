package reconcile

import "multihomed/routing"

// Answers says for which families packets are marked with the link on which they are to be
// answered. Whoever marks them does so only where the rungs "answer" of a snapshot stand.
type Answers interface {
	// Changed is readable when Answers returns something new.
	Changed() <-chan struct{}
	// Answers returns the facts as they are now, and false while nobody knows what packets are
	// marked with: the rungs that stand stay.
	Answers() (routing.Answers, bool)
}

// StandingAnswers is for whoever does not know what packets are marked with: the rungs that stand
// are right.
type StandingAnswers struct{}

// Changed never is.
func (StandingAnswers) Changed() <-chan struct{} { return nil }

// Answers are not known.
func (StandingAnswers) Answers() (routing.Answers, bool) { return routing.Answers{}, false }

// answered is readable when there are new facts of answers; nil if there are none ever.
func (l *Loop) answered() <-chan struct{} {
	if l.Answers == nil {
		return nil
	}
	return l.Answers.Changed()
}

// takeAnswers hands the planner for what there are answers.
func (l *Loop) takeAnswers() {
	facts, known := routing.Answers{}, true
	if l.Answers != nil {
		facts, known = l.Answers.Answers()
	}
	if known && !l.answersKnown {
		// What an earlier process left is compared now.
		l.Mirror.View(func(k State) {
			for r := range k.Rules() {
				if r.IsAnswer() {
					l.touched.Rules[r] = struct{}{}
				}
			}
		})
	}
	if l.answersKnown = known; !known {
		return
	}
	if l.planner.SetAnswers(facts) {
		l.picture.restructure()
	}
}
