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

// StandingAnswers are [Answers] for a process that only looks: packets are marked as whoever marks
// them was told, which the rungs in the kernel show.
func StandingAnswers(m Mirror, mask routing.MarkMask) Answers { return standingAnswers{m, mask} }

type standingAnswers struct {
	mirror Mirror
	mask   routing.MarkMask
}

func (standingAnswers) Changed() <-chan struct{} { return nil }

func (s standingAnswers) Answers() (routing.Answers, bool) {
	facts := routing.Answers{Mask: s.mask}
	s.mirror.View(func(k State) {
		for r := range k.Rules() {
			if r.Priority != routing.PriorityAnswerNever || !r.IsAnswer() {
				continue
			}
			facts.Families.Set(r.Family, true)
			for number := uint8(1); number <= s.mask.Last(); number++ {
				if s.mask.Mark(number) != r.Mark {
					continue
				}
				if facts.Diverted.In(r.Family) == nil {
					facts.Diverted.Set(r.Family, map[uint8]struct{}{})
				}
				facts.Diverted.In(r.Family)[number] = struct{}{}
			}
		}
	})
	return facts, true
}
