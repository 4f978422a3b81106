package health

import (
	"math"
	"slices"
	"time"
)

// A Moment is a reading of CLOCK_MONOTONIC.
type Moment = time.Duration

// A Config holds what the configuration says of all links.
type Config struct {
	// Silence is how long nothing must have answered before a link is judged dead.
	Silence time.Duration
	// Recover is how long a dead link must answer before it is judged alive; each further
	// death within deathsCount doubles it, up to longestRecovery.
	Recover time.Duration
}

// The numbers of the judgement. They were measured: see the package's tests.
const (
	// chance is the probability, for each judgement, that a link that works is judged dead: that
	// all of the needed probes got lost.
	chance = 1e-6
	// chanceOfTarget is the same for the judgement that a target alone does not answer.
	chanceOfTarget = 1e-4
	// Loss is a mean over about lossSpan probes. It starts high, as if two of firstSpan had been
	// lost: a link that is lossy would be judged dead before that was learned.
	firstSpan    = 8
	lossSpan     = 64
	firstLoss    = 0.25
	leastLoss    = 0.02
	greatestLoss = 0.75
	// An answer is overdue after the smoothed RTT and four deviations (RFC 6298), within these
	// bounds; after firstRTO if none came yet.
	leastRTO     = 100 * time.Millisecond
	greatestRTO  = 2 * time.Second
	firstRTO     = 500 * time.Millisecond
	leastJitter  = 20 * time.Millisecond
	burst        = 50 * time.Millisecond
	mostOpen     = 128
	lateAnswers  = 5 * time.Second
	unsentProbes = 2 * time.Second
	// waiting is how much earlier than the first probe the silence of TCP may have begun.
	waiting = 300 * time.Millisecond
	// hurried is the least time between two probes that TCP asks for.
	hurried = 200 * time.Millisecond
	// proven is the time between two probes while TCP proves that the link works.
	proven = 10 * time.Second
	// Until the fate of learned probes has told the loss, they are never more than learning
	// apart, unless they cost money: from firstLoss, that is what it takes to leastLoss.
	learned  = 100
	learning = 250 * time.Millisecond
)

// The numbers of recovery.
const (
	deathsCount     = 10 * time.Minute
	longestRecovery = 5 * time.Minute
	day             = 24 * time.Hour
	mostDeaths      = 1000
	recoveryProbes  = 20
	leastAnswers    = 3
	recoveryLoss    = 0.2
	// A dead link is asked each deadInterval, and after deadSoon at the pace of a standby.
	deadInterval = time.Second
	deadSoon     = 2 * time.Minute
	// relapse is how long a recovering link must be silent to be down again.
	relapse = 2 * time.Second
	// unasked is how long a judgement counts that nobody can check.
	unasked = 5 * time.Minute
)

// What never answers. firstTries is how often a target is asked at first before it is one that never answers;
// muteEvery is how often such a target, or one that is silent alone, is asked then.
const (
	firstTries = 8
	muteEvery  = 30 * time.Second
	// firstQuick is how many of the first probes follow one another quickly.
	firstQuick = 6
)

// A Target can be asked.
type Target struct {
	// Name tells it from others.
	Name string
	// OnLink says that it is a neighbour.
	OnLink bool
}

type target struct {
	Target
	// tries counts the probes until the first answer, lost those in a row that got lost while
	// something else was answered.
	tries, lost int
	answered    bool
	silent      bool
	// asked is when it was asked last.
	asked Moment
}

// counts reports whether a probe to it that is not answered says anything.
func (t *target) counts() bool { return t.answered && !t.silent }

type probe struct {
	id     uint32
	target *target
	// ordered is when the machine asked for it, sent when it left, if isSent.
	ordered, sent Moment
	isSent        bool
	// excused says that something proved later that the link works: the probe is no evidence.
	excused bool
	// settled says that it was counted as lost, or must not be counted.
	settled bool
}

// A Machine judges one link in one family. Create it with New. It is not safe for concurrent
// use. The moments that it is given must not go back, those of reports apart.
type Machine struct {
	config  Config
	targets []*target
	turn    int
	// remembered are targets that have answered an earlier process.
	remembered []string
	// interval is the time between two probes of a link that works; 0 sends none.
	interval time.Duration
	// costly says that probes cost money.
	costly bool
	// asks says that probes can be sent; askless is when that ended.
	asks    bool
	askless Moment
	carrier bool
	// back is when the carrier came back.
	back Moment

	state State
	// since is when it came into the state; upSince is that of Up while it is Suspect.
	since, upSince Moment
	evidence       Evidence
	why            string
	// tested is when a test ends, with the moment it began.
	tested, testBegan Moment

	ids  uint32
	open []*probe
	next Moment
	last Moment // when the last probe was asked for
	// life is when something arrived last that proves that the link works, by kind.
	life     Moment
	lifeKind Kind
	// waits is since when TCP waits for an acknowledgement, 0 if it does not.
	waits Moment

	srtt, rttvar time.Duration
	loss         float64
	// fates counts the probes that loss was learned from. Measured is the loss of these alone,
	// for people: loss starts with what is assumed.
	fates    int
	measured float64

	deaths []Moment
	// The recovery since began must last for hold.
	began          Moment
	hold           time.Duration
	answered, lost int
	byTCP          Moment
}

// New returns a machine that knows nothing. It sends nothing until it has targets and a pace.
func New(c Config, now Moment) *Machine {
	m := &Machine{config: c, carrier: true, asks: true, loss: firstLoss, since: now, next: now}
	m.why = "nothing answered yet"
	return m
}

// SetConfig replaces the configuration.
func (m *Machine) SetConfig(c Config) { m.config = c }

// SetTargets says what can be asked, in order. A target that stays keeps its history.
func (m *Machine) SetTargets(now Moment, all []Target) {
	if slices.EqualFunc(m.targets, all, func(t *target, o Target) bool { return t.Target == o }) {
		return
	}
	old := m.targets
	m.targets = nil
	for _, t := range all {
		if i := slices.IndexFunc(old, func(o *target) bool { return o.Name == t.Name }); i >= 0 {
			old[i].OnLink = t.OnLink
			m.targets = append(m.targets, old[i])
			continue
		}
		m.targets = append(m.targets, &target{Target: t, answered: slices.Contains(m.remembered, t.Name)})
		m.next = min(m.next, now)
	}
	for _, p := range m.open {
		if !slices.Contains(m.targets, p.target) {
			p.excused, p.settled = true, true
		}
	}
}

// SetPace sets the time between two probes of a link that works, 0 for none: then the machine
// judges nothing but the carrier.
func (m *Machine) SetPace(now Moment, interval time.Duration) {
	if m.interval == interval {
		return
	}
	if interval == 0 {
		m.forgive(now)
	}
	m.interval = interval
	m.next = min(max(m.last+interval, now), max(m.next, now))
	if m.last == 0 {
		m.next = now
	}
}

// SetCostly says whether probes cost money: then none are sent to learn, and a dead link is
// asked at the pace of one that works.
func (m *Machine) SetCostly(is bool) { m.costly = is }

// SetAsks says whether probes can be sent. While they cannot, only the carrier counts.
func (m *Machine) SetAsks(now Moment, can bool) {
	if m.asks == can {
		return
	}
	m.asks = can
	m.forgive(now)
	if !can {
		m.askless = now
	}
}

// Gap says that time passed in which nothing could be sent or received: the host was
// suspended, or the daemon was stopped.
func (m *Machine) Gap(now Moment) { m.forgive(now) }

// forgive drops what is open: it says nothing of the link.
func (m *Machine) forgive(now Moment) {
	for _, p := range m.open {
		p.excused, p.settled = true, true
	}
	m.waits = 0
	m.next = now
	if m.state == Suspect {
		m.become(now, Up, Evidence{Kind: m.lifeKind}, "probes are answered")
	}
	if m.state == Recovering {
		m.began, m.answered, m.lost = now, 0, 0
	}
}

// SetCarrier says whether the interface has a carrier.
func (m *Machine) SetCarrier(now Moment, up bool) {
	if m.carrier == up {
		return
	}
	m.carrier = up
	m.forgive(now)
	if !up {
		m.die(now, Evidence{Kind: ByCarrier}, "no carrier")
		return
	}
	m.next, m.back = now, now
	m.why = "the carrier is back, nothing has answered yet"
}

// Alone says that the link is the only one, so that nothing is asked: a carrier that is back ends
// a judgement by the carrier, and time ends others.
func (m *Machine) Alone(now Moment) {
	if m.state.IsDead() && m.carrier && (m.evidence.Kind == ByCarrier || now-m.since >= unasked) {
		m.become(now, Unprobed, Evidence{Kind: ByLackOfTargets}, "no other link has a default route")
	}
}

// Test declares the link dead until a moment.
func (m *Machine) Test(now, until Moment) { m.testBegan, m.tested = now, until }

// Reset forgets the history: the deaths, who ever answered, and the state, but for the carrier.
// What was measured of the way stays.
func (m *Machine) Reset(now Moment) {
	m.forgive(now)
	m.deaths, m.tested = nil, 0
	for _, t := range m.targets {
		*t = target{Target: t.Target}
	}
	m.life, m.lifeKind, m.remembered = 0, NoEvidence, nil
	if m.carrier {
		m.become(now, Unknown, Evidence{Kind: ByReset}, "an administrator reset it")
	}
}

// Dead reports whether unbound traffic should leave the link.
func (m *Machine) Dead(now Moment) bool { return m.State(now).IsDead() }

// State returns the state.
func (m *Machine) State(now Moment) State {
	if m.isTested(now) {
		return Down
	}
	return m.state
}

func (m *Machine) isTested(now Moment) bool { return now < m.tested }

func (m *Machine) become(now Moment, s State, e Evidence, why string) {
	switch {
	case s == m.state:
	case s == Suspect:
		m.upSince, m.since = m.since, now
	case s == Up && m.state == Suspect:
		m.since = m.upSince
	default:
		m.since = now
	}
	m.state, m.evidence, m.why = s, e, why
}

// die judges the link dead.
func (m *Machine) die(now Moment, e Evidence, why string) {
	if !m.state.IsDead() {
		m.deaths = append(m.deaths, now)
		if len(m.deaths) > mostDeaths {
			m.deaths = slices.Delete(m.deaths, 0, 1)
		}
		m.hold = m.recovery(now)
	}
	m.become(now, Down, e, why)
	for _, p := range m.open {
		p.excused, p.settled = true, true
	}
	m.waits = 0
	m.next = now
}

// recovery is how long the link must answer before it is alive, if it died now.
func (m *Machine) recovery(now Moment) time.Duration {
	hold := m.config.Recover
	count := 0
	for _, d := range m.deaths {
		if now-d <= deathsCount {
			count++
		}
	}
	for range max(count-1, 0) {
		if hold *= 2; hold >= longestRecovery {
			break
		}
	}
	return max(min(hold, longestRecovery), m.config.Recover)
}

// rto is how long an answer may take.
func (m *Machine) rto() time.Duration {
	if m.srtt == 0 {
		return firstRTO
	}
	return min(max(m.srtt+max(4*m.rttvar, leastJitter), leastRTO), greatestRTO)
}

// needed is how many probes must be overdue.
func (m *Machine) needed() int { return inARow(chance, m.loss) }

// inARow is how many losses in a row are less likely than a chance.
func inARow(chance, loss float64) int {
	return int(math.Ceil(math.Log(chance) / math.Log(min(max(loss, leastLoss), greatestLoss))))
}

// learn takes the fate of one probe into the loss.
func (m *Machine) learn(lost float64) {
	m.fates++
	m.loss += (lost - m.loss) / float64(min(firstSpan+m.fates, lossSpan))
	m.measured += (lost - m.measured) / float64(min(m.fates, lossSpan))
}

func (m *Machine) find(id uint32) *probe {
	for _, p := range m.open {
		if p.id == id {
			return p
		}
	}
	return nil
}

// Sent says that a probe left at a moment.
func (m *Machine) Sent(id uint32, at Moment) {
	if p := m.find(id); p != nil && !p.isSent {
		p.isSent, p.sent = true, at
	}
}

// Unsent says that a probe could not be sent, for a reason that says nothing of the link.
func (m *Machine) Unsent(id uint32) {
	m.open = slices.DeleteFunc(m.open, func(p *probe) bool { return p.id == id })
}

// Refused says that a probe came back as undeliverable, or that there was no way to send it.
// That is no answer: the link may work or not, and the probe counts as one that nobody answers.
func (m *Machine) Refused(id uint32, at Moment) { m.Sent(id, at) }

// Answered says that the answer to a probe arrived at a moment, after a time that is 0 if it is
// not known.
func (m *Machine) Answered(id uint32, at Moment, rtt time.Duration) {
	p := m.find(id)
	if p == nil {
		return
	}
	m.open = slices.DeleteFunc(m.open, func(o *probe) bool { return o == p })
	t := p.target
	t.answered, t.silent, t.lost = true, false, 0
	if !p.isSent {
		p.sent = p.ordered
	}
	if rtt > 0 {
		m.measure(rtt)
	}
	if !p.settled && !m.state.IsDead() {
		m.learn(0)
	}
	m.lives(at, ByAnswers)
	m.excuse(p.sent)
	switch m.state {
	case Unknown, Unprobed:
		m.become(at, Up, Evidence{Kind: ByAnswers}, "probes are answered")
	case Down:
		if m.carrier && p.ordered >= m.since {
			m.recovers(at)
		} else if m.carrier {
			m.next = 0 // It was late: ask at once.
		}
	case Recovering:
		if !p.settled {
			m.answered++
		}
	case Up, Suspect:
	}
}

// recovers begins a recovery.
func (m *Machine) recovers(at Moment) {
	m.began, m.answered, m.lost, m.byTCP = at, 1, 0, 0
	m.become(at, Recovering, Evidence{Kind: m.lifeKind}, "it answers again")
	m.next = 0
}

func (m *Machine) lives(at Moment, k Kind) {
	if at > m.life {
		m.life, m.lifeKind = at, k
	}
	if m.waits <= m.life {
		m.waits = 0
	}
}

// measure takes a time to an answer into the smoothed ones (RFC 6298).
func (m *Machine) measure(rtt time.Duration) {
	if m.srtt == 0 {
		m.srtt, m.rttvar = rtt, rtt/2
		return
	}
	m.rttvar += ((rtt - m.srtt).Abs() - m.rttvar) / 4
	m.srtt += (rtt - m.srtt) / 8
}

// excuse takes away the evidence of all probes that left before a moment.
func (m *Machine) excuse(sent Moment) {
	for _, p := range m.open {
		if p.isSent && p.sent <= sent {
			p.excused = true
		}
	}
}

// Acknowledged says that the kernel received at a moment a packet of an established TCP
// connection from beyond the link.
func (m *Machine) Acknowledged(now, at Moment) {
	if at <= m.life && m.lifeKind == ByTCP {
		return
	}
	m.lives(at, ByTCP)
	m.excuse(at)
	switch m.state {
	case Unknown, Unprobed:
		// Without a target that answers nothing can be judged, so nothing is claimed.
	case Down:
		// A connection that was idle may be acknowledged late. Ask.
		if m.carrier && at > m.since && m.evidence.Kind != ByCarrier {
			m.recovers(at)
		}
	case Recovering:
		if at-m.byTCP >= deadInterval/2 {
			m.byTCP = at
			m.answered++
		}
	case Up, Suspect:
		// It is as good as an answer to a probe, but says nothing of the targets.
		if m.fates >= learned {
			m.next = max(m.next, min(at+m.interval, now+m.interval, m.last+proven))
		}
	}
}

// Waits says that data or a connection request of TCP has been unacknowledged since a moment,
// and nothing else was acknowledged meanwhile: ask at once.
func (m *Machine) Waits(now, since Moment) {
	if m.state != Up && m.state != Suspect {
		return
	}
	if m.waits == 0 {
		m.waits = max(since, m.life+1)
	}
	if !m.isAsked() && now-m.last >= hurried {
		m.next = min(m.next, now)
	}
}

// Hurry asks at once, unless an answer is awaited: the link begins to carry traffic.
func (m *Machine) Hurry(now Moment) {
	if !m.isAsked() {
		m.next = min(m.next, now)
	}
}

// isAsked reports whether there is a probe that may become evidence.
func (m *Machine) isAsked() bool {
	return slices.ContainsFunc(m.open, func(p *probe) bool { return !p.excused && p.target.counts() })
}

// An Order is a probe to be sent.
type Order struct {
	ID     uint32
	Target string
}

// A Step is what a machine wants after [Machine.Step].
type Step struct {
	// Probes are to be sent now.
	Probes []Order
	// Ask says that a judgement waits for a newer horizon.
	Ask bool
	// Wake is when to call Step again, if nothing happens before.
	Wake Moment
}

// Step judges and says what to do. Horizon is a moment before which everything that had arrived
// has been reported: nothing is overdue because its report is.
func (m *Machine) Step(now, horizon Moment) (s Step) {
	horizon = min(horizon, now)
	m.expire(now, horizon)
	if m.carrier {
		s.Ask = m.judge(now, horizon)
	}
	s.Wake = now + time.Hour
	if order, is := m.order(now); is {
		s.Probes = append(s.Probes, order)
	}
	m.wake(now, horizon, &s.Wake)
	return s
}

// expire settles what will not be answered, or does not matter any more.
func (m *Machine) expire(now, horizon Moment) {
	rto := m.rto()
	m.open = slices.DeleteFunc(m.open, func(p *probe) bool {
		if !p.isSent {
			return horizon-p.ordered > unsentProbes
		}
		if p.excused && !p.settled && horizon-p.sent > rto {
			p.settled = true
			m.missed(p)
		}
		return p.excused && horizon-p.sent > lateAnswers
	})
	if len(m.deaths) > 0 && now-m.deaths[0] > day {
		m.deaths = slices.DeleteFunc(m.deaths, func(d Moment) bool { return now-d > day })
	}
}

// missed counts a probe that got lost while the link worked.
func (m *Machine) missed(p *probe) {
	t := p.target
	if m.state.IsDead() || !t.answered {
		return
	}
	if t.counts() {
		m.learn(1)
	}
	if t.lost++; t.lost >= inARow(chanceOfTarget, m.loss) {
		t.silent = true
	}
}

// judge changes the state. Ask says that a newer horizon could change it.
func (m *Machine) judge(now, horizon Moment) (ask bool) {
	switch m.state {
	case Unknown:
		if m.interval > 0 && m.asks && m.isMute() {
			m.become(now, Unprobed, Evidence{Kind: ByLackOfTargets}, m.lack())
		}
		return m.judgeRemembered(now, horizon)
	case Unprobed:
		if m.interval > 0 && m.asks && m.canAnswer() {
			// It was let go of while nobody could ask, or only now is known who answers.
			m.become(now, Unknown, Evidence{}, "nothing answered yet")
			m.forgive(now)
			for _, t := range m.targets {
				t.silent, t.lost = false, 0
			}
			break
		}
		if m.asks || len(m.targets) == 0 {
			m.why = m.lack() // Who asks may be back in a moment, which is no news.
		}
	case Up, Suspect:
		return m.judgeAlive(now, horizon)
	case Down:
		m.judgeDown(now)
	case Recovering:
		return m.judgeRecovery(now, horizon)
	}
	return false
}

// isMute reports whether no target has answered although all were asked often enough.
func (m *Machine) isMute() bool {
	return !slices.ContainsFunc(m.targets, func(t *target) bool { return t.answered || t.tries < firstTries })
}

// canAnswer reports whether any target ever answered.
func (m *Machine) canAnswer() bool {
	return slices.ContainsFunc(m.targets, func(t *target) bool { return t.answered })
}

func (m *Machine) lack() string {
	if len(m.targets) == 0 {
		return "there is nothing to ask"
	}
	if !m.asks {
		return "no probes can be sent"
	}
	return "no target has ever answered"
}

func (m *Machine) judgeAlive(now, horizon Moment) (ask bool) {
	overdue, late, first := m.overdue(now, horizon)
	if overdue == 0 {
		if m.state == Suspect {
			m.become(now, Up, Evidence{Kind: m.lifeKind}, "probes are answered")
		}
		return late > 0
	}
	began := m.silentSince(first)
	silence := horizon - began
	e := Evidence{Kind: BySilence, Overdue: overdue, Needed: m.needed(), Silence: silence, Timeout: m.rto()}
	if m.state == Up {
		m.next = min(m.next, now)
		m.become(now, Suspect, e, "answers are overdue")
	}
	m.evidence = e
	if overdue >= e.Needed && silence >= m.config.Silence {
		m.die(now, e, "nothing answers")
		return false
	}
	return late > overdue || overdue >= e.Needed && now-began >= m.config.Silence
}

// judgeRemembered judges a link of which nothing is known but that its targets have answered an
// earlier process: it may have died while none was there to see it.
func (m *Machine) judgeRemembered(now, horizon Moment) (ask bool) {
	overdue, late, first := m.overdue(now, horizon)
	e := Evidence{Kind: BySilence, Overdue: overdue, Needed: m.needed(), Silence: horizon - m.silentSince(first), Timeout: m.rto()}
	if overdue >= e.Needed && e.Silence >= m.config.Silence {
		m.die(now, e, "nothing answers, though it did before")
		return false
	}
	return late > overdue
}

// silentSince is when the silence began of which the first probe that is open left at a
// moment.
func (m *Machine) silentSince(first Moment) Moment {
	if m.waits > m.life {
		first = min(first, max(m.waits, first-waiting))
	}
	return max(first, m.life)
}

// overdue counts the probes that are overdue by the horizon, and those that are late by the
// clock, and says when the first one left.
func (m *Machine) overdue(now, horizon Moment) (overdue, late int, first Moment) {
	rto := m.rto()
	first = now
	for _, p := range m.open {
		if p.excused || !p.isSent || !p.target.counts() {
			continue
		}
		first = min(first, p.sent)
		if now-p.sent > rto {
			late++
		}
		if horizon-p.sent > rto {
			overdue++
		}
	}
	return overdue, late, first
}

// judgeDown lets go of a judgement that nothing can check.
func (m *Machine) judgeDown(now Moment) {
	if m.interval == 0 || m.asks && (m.canAnswer() || !m.isMute()) {
		return
	}
	hold := m.hold
	if !m.asks && m.evidence.Kind != ByCarrier || m.evidence.Kind == ByMemory {
		hold = max(hold, unasked)
	}
	if now-max(m.back, m.since) >= hold && (m.asks || now-m.askless >= hold) {
		m.become(now, Unprobed, Evidence{Kind: ByLackOfTargets}, m.lack())
	}
}

func (m *Machine) judgeRecovery(now, horizon Moment) (ask bool) {
	rto := m.rto()
	fresh, late := 0, false
	var first Moment
	for _, p := range m.open {
		if !p.isSent || p.settled || !p.target.counts() {
			continue
		}
		late = late || now-p.sent > rto && horizon-p.sent <= rto
		if horizon-p.sent > rto {
			p.settled = true
			m.lost++
		}
	}
	for _, p := range m.open {
		if p.isSent && !p.excused && p.target.counts() && horizon-p.sent > rto {
			if fresh++; first == 0 {
				first = p.sent
			}
		}
	}
	if fresh >= leastAnswers && horizon-max(first, m.life) >= relapse {
		m.die(now, Evidence{Kind: BySilence, Overdue: fresh, Needed: leastAnswers, Silence: horizon - max(first, m.life)}, "nothing answers any more")
		return false
	}
	m.evidence = Evidence{Kind: m.lifeKind, Answered: m.answered, Lost: m.lost}
	if now-m.began < m.hold || m.answered < leastAnswers {
		return late
	}
	if total := m.answered + m.lost; float64(m.lost) > m.tolerated()*float64(total) {
		m.began, m.answered, m.lost = now, 0, 0
		m.why = "it answers again, but too much is lost"
		return false
	}
	m.become(now, Up, m.evidence, "probes are answered")
	m.forgive(now)
	return false
}

// tolerated is the share of losses with which a link may recover: it need not become better
// than it was.
func (m *Machine) tolerated() float64 { return min(max(recoveryLoss, 2*m.loss), greatestLoss) }

// spacing is the time between two probes now.
func (m *Machine) spacing(now Moment) time.Duration {
	switch m.state {
	case Suspect:
		return burst
	case Down:
		if now-m.since < deadSoon {
			return m.atLeast(deadInterval)
		}
		return m.atLeast(m.interval)
	case Recovering:
		return min(max(m.hold/recoveryProbes, burst), 5*time.Second)
	case Unknown:
		// Who has answered before makes a judgement possible, for which traffic waits.
		if m.ids < firstQuick || m.canAnswer() && !m.costly {
			return min(m.interval, 4*burst)
		}
		return min(m.interval, deadInterval)
	case Unprobed:
		return max(m.interval, muteEvery/time.Duration(max(len(m.targets), 1)))
	default:
		if m.fates < learned && !m.costly {
			return min(m.interval, learning)
		}
		return m.interval
	}
}

// atLeast is a time between probes, or the pace of a link whose probes cost money.
func (m *Machine) atLeast(d time.Duration) time.Duration {
	if m.costly {
		return max(m.interval, d)
	}
	return d
}

// order says what to send now.
func (m *Machine) order(now Moment) (Order, bool) {
	if now < m.next || !m.mayAsk() {
		return Order{}, false
	}
	t := m.choose(now)
	m.next, m.last = now+m.spacing(now), now
	if t == nil {
		return Order{}, false
	}
	if m.state == Suspect && !t.counts() {
		m.next = now // It may prove that the link works, and is no evidence against it.
	}
	m.ids++
	t.asked = now
	if !t.answered {
		t.tries++
	}
	m.open = append(m.open, &probe{id: m.ids, target: t, ordered: now})
	return Order{ID: m.ids, Target: t.Name}, true
}

func (m *Machine) mayAsk() bool {
	return m.interval > 0 && m.asks && m.carrier && len(m.targets) > 0 && len(m.open) < mostOpen
}

// choose takes the next target in turn. One that is silent alone, or never answered, is asked
// seldom, unless there is no other.
func (m *Machine) choose(now Moment) *target {
	useful := func(t *target) bool { return t.counts() }
	if !slices.ContainsFunc(m.targets, useful) {
		useful = func(t *target) bool { return t.answered || t.tries < firstTries || m.state == Unprobed }
		if !slices.ContainsFunc(m.targets, useful) {
			useful = func(*target) bool { return true }
		}
	}
	rare := muteEvery
	if m.state == Suspect || m.state.IsDead() {
		rare = 4 * burst
	}
	for range m.targets {
		t := m.targets[m.turn%len(m.targets)]
		m.turn++
		switch {
		case useful(t), t.answered && now-t.asked >= rare:
			return t
		case m.state == Suspect: // What never answered will not do so now.
		case !t.answered && t.tries < firstTries, now-t.asked >= muteEvery:
			return t
		}
	}
	return nil
}

// wake finds the moment of the next step.
func (m *Machine) wake(now, horizon Moment, at *Moment) {
	sooner := func(when Moment) {
		if when > now {
			*at = min(*at, when)
		}
	}
	if m.isTested(now) {
		sooner(m.tested)
	}
	if m.mayAsk() {
		sooner(max(m.next, now+time.Millisecond))
	}
	if !m.carrier {
		return
	}
	rto := m.rto()
	for _, p := range m.open {
		if p.isSent && !p.settled {
			sooner(p.sent + rto + time.Millisecond)
		}
	}
	switch m.state {
	case Suspect:
		if overdue, _, first := m.overdue(now, horizon); overdue > 0 {
			sooner(m.silentSince(first) + m.config.Silence)
		}
	case Recovering:
		sooner(m.began + m.hold)
	case Down:
		for _, hold := range []time.Duration{m.hold, unasked} {
			sooner(max(m.back, m.since) + hold)
			sooner(m.askless + hold)
		}
	case Unknown, Up, Unprobed:
	}
}

// RTT is the smoothed time to an answer, 0 if none came yet.
func (m *Machine) RTT() time.Duration { return m.srtt }

// Since is when the machine came into its state, a test of an administrator apart.
func (m *Machine) Since() Moment { return m.since }

// Tested is when a test of an administrator ends, 0 if there is none.
func (m *Machine) Tested(now Moment) Moment {
	if !m.isTested(now) {
		return 0
	}
	return m.tested
}

// IsJudged reports whether the link has been judged at least once.
func (m *Machine) IsJudged() bool { return m.state != Unknown }
