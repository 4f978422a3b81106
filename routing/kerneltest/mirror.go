package kerneltest

import (
	"context"
	"maps"
	"net/netip"

	"multihomed/routing"
)

// A Mirror follows a [Kernel] as package kernel follows the real one: it hears of every
// change, and shows what it took up with Sync. It is what package reconcile asks for.
type Mirror struct {
	// Fault, if not nil, is what the kernel answers in place of what it was asked for.
	Fault error
	// Partial is how many more calls of Sync leave the state incomplete, as when what is
	// asked for changes all the time.
	Partial int
	// Strays is the answer to Unbound.
	Strays map[routing.Family][]routing.Unbound

	kernel  *Kernel
	state   *State
	changed chan struct{}
	queue   []event
	// lost says that events were lost: everything is read again.
	lost    bool
	changes routing.Changes
}

// Follow returns a mirror that knows nothing yet.
func (k *Kernel) Follow() *Mirror {
	m := &Mirror{
		kernel: k, state: &State{Kernel: New(k.policy), unwatched: map[int]struct{}{}},
		changed: make(chan struct{}, 1), lost: true, changes: routing.NewChanges(),
	}
	k.mirrors = append(k.mirrors, m)
	return m
}

// hear queues an event, as the socket of a subscriber does.
func (m *Mirror) hear(e event) {
	if !m.lost {
		m.queue = append(m.queue, e)
	}
	m.signal()
}

func (m *Mirror) signal() {
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// Overrun loses what waits in the queue and what comes until the next Sync, as a socket
// does whose buffer is full (netlink_overrun in net/netlink/af_netlink.c).
func (m *Mirror) Overrun() {
	m.queue, m.lost = nil, true
	m.state.whole = false
	m.signal()
}

// Changed is readable when there may be something to take.
func (m *Mirror) Changed() <-chan struct{} { return m.changed }

// Sync takes up what happened. After a loss it reads everything again, and says that
// everything may have changed.
func (m *Mirror) Sync(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if m.Fault != nil {
		if m.lost {
			m.state.whole = false
		}
		return m.Fault
	}
	before := m.state
	m.state = &State{
		Kernel: m.kernel.Clone(), whole: m.Partial == 0, networks: before.networks, unwatched: before.unwatched,
		listed: before.listed, moves: before.moves,
	}
	if m.Partial > 0 {
		m.Partial--
	}
	if m.lost {
		m.changes.All, m.lost = true, false
		m.state.listed = m.kernel.additions
		m.state.moves++
	}
	for _, e := range m.queue {
		m.take(e)
	}
	m.queue = nil
	return nil
}

// take notes what an event says.
func (m *Mirror) take(e event) {
	c := &m.changes
	switch {
	case e.index != 0:
		c.Links[e.index] = struct{}{}
		m.state.moves++
	case e.rule != (routing.Rule{}):
		m.takeRule(e)
	default:
		m.takeRoute(e)
	}
}

func (m *Mirror) takeRule(e event) {
	c := &m.changes
	if !m.kernel.policy.OwnsRule(e.rule) {
		c.Foreign = true
		if m.kernel.policy.Ownership().OwnsTable(e.rule.Table) {
			c.Tables[e.rule.Table] = struct{}{}
		}
		c.ForeignRules[e.rule.Family] = struct{}{}
		if e.gone {
			c.Gone[e.rule] = struct{}{}
		}
		return
	}
	if e.by != ours {
		c.Rules[e.rule] = struct{}{}
	}
	if e.gone && e.by == somebody {
		c.Taken = append(c.Taken, routing.Taken{Rule: e.rule, Port: Somebody})
	}
}

func (m *Mirror) takeRoute(e event) {
	c, r := &m.changes, e.route
	if r.Table == routing.TableMain && r.Type == routing.RouteUnicast && m.state.Interested(r.Device) {
		if c.Destinations[r.Device] == nil {
			c.Destinations[r.Device] = map[routing.Destination]struct{}{}
		}
		c.Destinations[r.Device][routing.DestinationOf(r)] = struct{}{}
	}
	if r.Table == routing.TableMain && r.IsDefault() {
		c.Defaults.Set(r.Family, true)
	}
	if r.Table == routing.TableMain {
		c.Thrown.Set(r.Family, true)
	}
	if !m.kernel.policy.OwnsRoute(r) {
		m.state.moves++
		if m.kernel.policy.Ownership().OwnsTable(r.Table) {
			c.Foreign = true
			c.Tables[r.Table] = struct{}{}
		}
		c.Unbound = c.Unbound || r.IsDefault()
		if r.Table == routing.TableMain && r.Destination.IsSingleIP() && m.state.asked(r.Destination.Addr()) {
			c.Elsewhere[r.Destination] = struct{}{}
		}
		return
	}
	if e.by != ours {
		c.Routes[r.Key()] = struct{}{}
	}
	if e.gone && e.by == somebody {
		c.Taken = append(c.Taken, routing.Taken{Route: r, Port: Somebody})
	}
}

// Take returns what changed since it was last called, except by a [Writer].
func (m *Mirror) Take() routing.Changes {
	c := m.changes
	m.changes = routing.NewChanges()
	return c
}

// View gives access to what was taken up.
func (m *Mirror) View(look func(*State)) { look(m.state) }

// SetInterest says of which interfaces the routes of main are kept. All are at first.
func (m *Mirror) SetInterest(ctx context.Context, interests map[int]bool) error {
	if err := m.Sync(ctx); err != nil {
		return err
	}
	m.state.unwatched = maps.Clone(m.state.unwatched)
	for index, is := range interests {
		if is == m.state.Interested(index) {
			continue
		}
		m.changes.Links[index] = struct{}{}
		if is {
			delete(m.state.unwatched, index)
		} else {
			m.state.unwatched[index] = struct{}{}
		}
	}
	return nil
}

// SetNetworks says in which networks the host routes of main are kept.
func (m *Mirror) SetNetworks(ctx context.Context, networks []netip.Prefix) error {
	if err := m.Sync(ctx); err != nil {
		return err
	}
	before := m.state.networks
	m.state.networks = networks
	for _, f := range routing.Families() {
		for _, r := range m.state.AllRoutes(f, routing.TableMain) {
			if r.Destination.IsSingleIP() && m.state.asked(r.Destination.Addr()) && !insideOne(before, r.Destination.Addr()) {
				m.changes.Elsewhere[r.Destination] = struct{}{}
			}
		}
	}
	return nil
}

// Unbound returns Strays.
func (m *Mirror) Unbound(ctx context.Context) (map[routing.Family][]routing.Unbound, []routing.Unanswered, error) {
	if err := m.Sync(ctx); err != nil {
		return nil, nil, err
	}
	return m.Strays, nil, nil
}
