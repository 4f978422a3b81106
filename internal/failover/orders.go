package failover

import (
	"maps"
	"slices"
	"time"

	"multihomed/internal/health"
	"multihomed/routing"
)

// TestFor is how long a test declares a link dead.
const TestFor = 30 * time.Second

func sortedKeys(m map[key]*watch) []key { return slices.SortedFunc(maps.Keys(m), compareKeys) }

// Test declares an uplink dead for [TestFor], in each family in which another one lives. The
// errors are ErrOff, ErrNoLink and ErrNoOther.
func (c *Controller) Test(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	all, err := c.named(name)
	if err != nil {
		return err
	}
	now := c.epoch.now()
	err = ErrNoOther
	for _, w := range all {
		if c.hasOther(now, w) {
			w.machine.Test(now, now+TestFor)
			w.wake = now
			err = nil
		}
	}
	c.ordered(now)
	return err
}

// Reset forgets the history of an uplink, and ends a test of it. The errors are ErrOff and
// ErrNoLink.
func (c *Controller) Reset(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	all, err := c.named(name)
	if err != nil {
		return err
	}
	now := c.epoch.now()
	for _, w := range all {
		w.machine.Reset(now)
		w.wake = now
		clear(w.answered)
		if c.forget(w.network) {
			c.archive.Put(slices.Clone(c.answered))
		}
	}
	c.ordered(now)
	return nil
}

// ordered makes an order count at once.
func (c *Controller) ordered(now health.Moment) {
	for _, k := range sortedKeys(c.watches) {
		c.note(now, c.watches[k])
	}
	c.say()
	c.generation++
	c.publish(now)
	c.stirred.Give()
}

// named are the watches of an interface.
func (c *Controller) named(name string) (all []*watch, err error) {
	if !c.Config.Failover.Enabled {
		return nil, ErrOff
	}
	for _, k := range sortedKeys(c.watches) {
		if w := c.watches[k]; w.present && w.uplink.Name == name {
			all = append(all, w)
		}
	}
	if len(all) == 0 {
		return nil, ErrNoLink
	}
	return all, nil
}

// hasOther reports whether another uplink of the family carries its traffic, or may.
func (c *Controller) hasOther(now health.Moment, w *watch) bool {
	for _, o := range c.watches {
		if o.present && o.family == w.family && o.index != w.index && !o.machine.Dead(now) && o.uplink.Runs && o.uplink.Exit.Source.IsValid() {
			return true
		}
	}
	s := c.stopgap(now, w.family)
	return s != nil && s != w
}

// State returns what is known now, for status.
func (c *Controller) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	clock := c.epoch.clock()
	s := State{Generation: c.generation}
	if c.isAway(clock.Moment) {
		s.Prober, s.ProberFix = c.lost.Error(), proberFix(c.lost)
	}
	if !c.Config.Failover.Enabled {
		return s
	}
	for _, k := range sortedKeys(c.watches) {
		w := c.watches[k]
		if !w.present {
			continue
		}
		l := Link{
			Index: w.index, Name: w.uplink.Name, Family: w.family, Report: w.machine.Report(clock), Unwatched: w.unwatched,
			Metered: w.uplink.Metered, Tested: clock.At(w.machine.Tested(clock.Moment)), Servers: w.uplink.Servers,
		}
		since := w.unwatchedAt
		if l.Unwatched == "" && s.Prober != "" {
			l.Unwatched, since = s.Prober, c.lostAt
		}
		if l.Unwatched == "" && w.unsent != nil && l.State == health.Unprobed {
			l.Unsent, l.Unwatched, since = w.unsent.Error(), "its probes cannot be sent", 0
		}
		if l.Unwatched != "" && !l.State.IsDead() {
			if since > 0 {
				l.Since = clock.At(since)
			}
			l.State, l.Why, l.Evidence = health.Unprobed, l.Unwatched, health.Evidence{Kind: health.ByLackOfTargets}
		}
		near, behind := false, false
		for _, t := range l.Targets {
			near, behind = near || t.Answered && t.OnLink, behind || t.Answered && !t.OnLink
		}
		l.RouterOnly = near && !behind
		s.Links = append(s.Links, l)
	}
	return s
}

// Kept is what the next process must know of a link.
type Kept struct {
	Interface string         `json:"interface"`
	Index     int            `json:"index"`
	Family    routing.Family `json:"family"`
	health.Memory
}
