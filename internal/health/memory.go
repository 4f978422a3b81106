package health

import "slices"

// A Memory is what the next process must know of a link: a judgement must not be lost with
// the process that made it. It holds for one boot, as its moments do.
type Memory struct {
	// Dead says that the link was judged dead, Since at which moment.
	Dead  bool   `json:"dead,omitempty"`
	Since Moment `json:"since,omitempty"`
	// Deaths are the last ones.
	Deaths []Moment `json:"deaths,omitempty"`
	// Answered are the targets that have answered at least once.
	Answered []string `json:"answered,omitempty"`
	// Loss is the share of losses, learned from so many probes.
	Loss  float64 `json:"loss,omitempty"`
	Fates int     `json:"fates,omitempty"`
}

// mostKept bounds the deaths of a memory: more do not change the recovery.
const mostKept = 100

// Memory returns what the next process must know.
func (m *Machine) Memory() Memory {
	out := Memory{Dead: m.state.IsDead(), Deaths: slices.Clone(m.deaths[max(0, len(m.deaths)-mostKept):]), Loss: m.loss, Fates: m.fates}
	if out.Dead {
		out.Since = m.since
	}
	for _, t := range m.targets {
		if t.answered {
			out.Answered = append(out.Answered, t.Name)
		}
	}
	return out
}

// Restore takes what an earlier process knew into a machine that knows nothing. Targets that
// come later and have answered that process count at once.
func (m *Machine) Restore(now Moment, kept Memory) {
	m.deaths = slices.DeleteFunc(slices.Clone(kept.Deaths), func(d Moment) bool { return d > now || d < 0 })
	if kept.Loss >= 0 && kept.Loss <= 1 && kept.Fates > 0 {
		m.loss, m.fates = kept.Loss, kept.Fates
	}
	m.Remember(kept.Answered)
	if kept.Dead {
		m.become(now, Down, Evidence{Kind: ByMemory}, "it was dead before the daemon was restarted")
		if kept.Since > 0 && kept.Since <= now {
			m.since = kept.Since
		}
		m.hold = m.recovery(m.since)
	}
}

// Remember says that targets have answered before: they count at once, and those that come later
// do, too.
func (m *Machine) Remember(answered []string) {
	m.remembered = slices.Concat(m.remembered, answered)
	slices.Sort(m.remembered)
	m.remembered = slices.Compact(m.remembered)
	for _, t := range m.targets {
		t.answered = t.answered || slices.Contains(answered, t.Name)
	}
}

// Presume judges a link dead of which nothing is known yet, because an earlier process has led
// traffic away from it. That is all that a crash just after the verdict leaves.
func (m *Machine) Presume(now Moment) {
	if m.state != Unknown {
		return
	}
	m.become(now, Down, Evidence{Kind: ByMemory}, "unbound traffic had left it before the daemon was restarted")
	m.hold, m.next = m.recovery(now), now
}
