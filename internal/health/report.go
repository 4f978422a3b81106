package health

import (
	"fmt"
	"time"
)

// A State says whether a link works in one family.
type State uint8

// States. Only Down and Recovering count as dead.
const (
	// Unknown: nothing was found out yet.
	Unknown State = iota
	// Up: something answered.
	Up
	// Suspect: an answer is overdue, and more probes are on the way.
	Suspect
	// Down: it was judged dead.
	Down
	// Recovering: it was judged dead and answers again, but not for long enough.
	Recovering
	// Unprobed: nobody answers for it, or nobody asks. It counts as alive.
	Unprobed
)

// States returns all states.
func States() []State { return []State{Unknown, Up, Suspect, Down, Recovering, Unprobed} }

// String is the name of a state in status and in the log.
func (s State) String() string {
	switch s {
	case Unknown:
		return "unknown"
	case Up:
		return "up"
	case Suspect:
		return "suspect"
	case Down:
		return "down"
	case Recovering:
		return "recovering"
	case Unprobed:
		return "unprobed"
	default:
		return fmt.Sprintf("State(%d)", uint8(s))
	}
}

// IsDead reports whether unbound traffic should leave a link in this state.
func (s State) IsDead() bool { return s == Down || s == Recovering }

// A Kind names what a decision was made of.
type Kind string

// Kinds of evidence.
const (
	NoEvidence Kind = ""
	// ByCarrier: the interface lost its carrier.
	ByCarrier Kind = "carrier"
	// BySilence: probes remained without an answer.
	BySilence Kind = "silence"
	// ByAnswers: probes were answered.
	ByAnswers Kind = "answers"
	// ByTCP: packets of a TCP connection arrived from beyond the link.
	ByTCP Kind = "tcp"
	// ByTest: an administrator declared it dead for a while.
	ByTest Kind = "test"
	// ByMemory: the process before this one judged so.
	ByMemory Kind = "memory"
	// ByLackOfTargets: there is nothing to ask, or nothing ever answered.
	ByLackOfTargets Kind = "no-targets"
	// ByReset: an administrator asked to forget.
	ByReset Kind = "reset"
)

// Evidence is what led to a state.
type Evidence struct {
	Kind Kind
	// Overdue counts the probes that were not answered in time, of which Needed had to be;
	// Silence is how long nothing had answered.
	Overdue, Needed int
	Silence         time.Duration
	// Timeout is how long an answer may take.
	Timeout time.Duration
	// Answered and Lost count the probes of a recovery.
	Answered, Lost int
}

// A Report is what is known of a link in one family.
type Report struct {
	State State
	// Since is when it came into the state; LastProof is when something proved last that the
	// link works, zero if nothing did.
	Since, LastProof time.Time
	// Why is a sentence without a period.
	Why      string
	Evidence Evidence
	// Loss is the share of the last probes that remained without an answer, from 0 to 1, while
	// the link was not dead. RTT is the smoothed time to an answer, 0 if none came yet.
	Loss float64
	RTT  time.Duration
	// DeathsToday counts the deaths of the last 24 hours.
	DeathsToday int
	// Recovered is when the recovery ends if all goes well, zero unless in it.
	Recovered time.Time
	// Targets are what is asked; Interval is the time between two probes, 0 if none is sent.
	Targets  []TargetReport
	Interval time.Duration
}

// A TargetReport is what is known of one target.
type TargetReport struct {
	// Name says what is asked: "dns:192.0.2.53:53".
	Name string
	// OnLink says that it is a neighbour, which proves nothing of the way behind it.
	OnLink bool
	// Answered says that it has answered at least once. Others judge nobody.
	Answered bool
	// Silent says that it no longer answers, while others do.
	Silent bool
}

// A Clock turns moments into times for people: it is one moment in both.
type Clock struct {
	Moment Moment
	Time   time.Time
}

// At is the time of a moment, zero for 0.
func (c Clock) At(m Moment) time.Time {
	if m == 0 {
		return time.Time{}
	}
	return c.Time.Add(m - c.Moment)
}

// Report says what is known now.
func (m *Machine) Report(now Clock) Report {
	r := Report{
		State: m.State(now.Moment), Since: now.At(m.since), LastProof: now.At(m.life), Why: m.why, Evidence: m.evidence,
		RTT: m.srtt, Loss: m.measured,
	}
	if m.isTested(now.Moment) {
		r.Since, r.Why, r.Evidence = now.At(m.testBegan), "an administrator declared it dead for a test", Evidence{Kind: ByTest}
	}
	for _, d := range m.deaths {
		if now.Moment-d <= day {
			r.DeathsToday++
		}
	}
	if r.State == Recovering {
		r.Recovered = now.At(m.began + m.hold)
	}
	if m.mayAsk() {
		r.Interval = m.spacing(now.Moment)
	}
	for _, t := range m.targets {
		r.Targets = append(r.Targets, TargetReport{Name: t.Name, OnLink: t.OnLink, Answered: t.answered, Silent: t.silent})
	}
	return r
}
