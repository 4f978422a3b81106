package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
	"multihomed/routing"
)

// eventReceiveBuffer is what may be announced while nobody listens. It takes
// memory only when it is used.
const eventReceiveBuffer = 32 << 20

// Config says what a mirror keeps.
type Config struct {
	// Tables are ours. So are the Former ones, of an earlier configuration.
	Tables routing.TableRange
	Former []routing.TableRange
	// Interest decides, when an interface is first seen, whether its routes in
	// main are kept. Nil keeps all; SetInterest changes it later. It is called
	// with the mirror locked.
	Interest func(name string) bool
	// ReceiveBuffer is the size of the event queue in bytes; zero means 32 MiB.
	ReceiveBuffer int
	// Overrun is called, with the mirror locked, when the kernel has dropped announcements; nil for
	// nobody.
	Overrun func()
}

// A Mirror holds what the kernel holds. Its methods may be called from any
// goroutine; those that ask the kernel block the others meanwhile.
type Mirror struct {
	changed chan struct{}

	mu     sync.Mutex
	events *socket
	buf    []byte
	loader loader
	state  *State
	own    map[uint32]struct{}
	lost   bool
	closed bool
	// overrun is Config.Overrun.
	overrun func()
}

// Open subscribes to the kernel's announcements. The mirror is empty until Sync has
// returned, and [State.Complete] is false.
func Open(c Config) (*Mirror, error) {
	if c.Interest == nil {
		c.Interest = func(string) bool { return true }
	}
	if c.ReceiveBuffer == 0 {
		c.ReceiveBuffer = eventReceiveBuffer
	}
	if c.Overrun == nil {
		c.Overrun = func() {}
	}
	events, err := openSocket(c.ReceiveBuffer,
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_NEXTHOP)
	if err != nil {
		return nil, err
	}
	requests, err := newRequester()
	if err != nil {
		return nil, errors.Join(err, events.Close())
	}
	return &Mirror{
		changed: make(chan struct{}, 1),
		events:  events, buf: make([]byte, bufferSize),
		loader: loader{requests: requests, budget: worthReading},
		state:  newState(routing.Ownership{Tables: c.Tables, Former: c.Former}, c.Interest),
		own:    map[uint32]struct{}{}, lost: true, overrun: c.Overrun,
	}, nil
}

// Close ends the subscription. Run must have returned.
func (m *Mirror) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	return errors.Join(m.events.Close(), m.loader.requests.close())
}

// View calls look with the state, and locks the mirror meanwhile. Look must not keep the
// state.
func (m *Mirror) View(look func(*State)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	look(m.state)
}

// Changed holds a value when [Mirror.Take] returns something.
func (m *Mirror) Changed() <-chan struct{} { return m.changed }

// Take returns what changed since it was last called.
func (m *Mirror) Take() routing.Changes {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.state.changes
	m.state.changes = routing.NewChanges()
	return c
}

// Run follows the kernel until ctx ends, and then returns nil.
func (m *Mirror) Run(ctx context.Context) error {
	defer m.events.Interruptible(ctx)()
	backoff := time.NewTimer(0)
	defer backoff.Stop()
	for {
		err := m.Sync(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil && !m.settled():
			// What is asked for changed all the time.
			continue
		case err == nil:
		case errors.Is(err, os.ErrClosed):
			return err
		default:
			// The kernel would not answer: out of memory, or changing faster
			// than it can be read. What stands is kept, and marked as not
			// complete.
			backoff.Reset(retryAfter)
			select {
			case <-ctx.Done():
				return nil
			case <-backoff.C:
				continue
			}
		}
		if err := m.events.wait(); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("waiting for the kernel: %w", err)
		}
	}
}

func (m *Mirror) settled() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.Complete()
}

// retryAfter is how long the mirror waits after the kernel refused an answer.
const retryAfter = 50 * time.Millisecond

// Drain takes in what was announced, without waiting. Whatever the writer was
// told to be done was announced before (rtnl_notify comes before netlink_ack),
// so after it the mirror has it.
func (m *Mirror) Drain() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.signal()
	return m.drain()
}

// Sync drains and then asks for whatever is not known: everything at first and
// after announcements were lost, the doubtful parts otherwise, usually nothing.
func (m *Mirror) Sync(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.signal()
	return m.sync(ctx)
}

// Resync reads everything from the kernel again.
func (m *Mirror) Resync(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.signal()
	m.forget()
	return m.sync(ctx)
}

// SetInterest says of which interfaces the routes in main are kept. They are
// read when an interface becomes of interest, and forgotten when it no longer
// is. Interfaces that are not named stay as they are.
func (m *Mirror) SetInterest(ctx context.Context, interests map[int]bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.signal()
	if err := m.drain(); err != nil {
		return err
	}
	var gained []int
	for index, interested := range interests {
		l := m.state.links[index]
		if l == nil || l.interested == interested {
			continue
		}
		l.interested = interested
		m.state.changes.Links[index] = struct{}{}
		if interested {
			gained = append(gained, index)
		} else {
			m.state.dropUnwanted(index)
		}
	}
	if len(interests) > 0 {
		m.state.doubtOthers()
	}
	switch {
	case len(gained) == 0:
		return m.sync(ctx)
	case len(gained) > worthAsking:
		m.forget()
	default:
		for _, index := range gained {
			for _, f := range routing.Families() {
				m.state.doubtDevice(f, index)
			}
		}
	}
	return m.sync(ctx)
}

// dropUnwanted forgets the routes through an interface that is no longer of
// interest.
func (s *State) dropUnwanted(device int) {
	keys := make([]fibKey, 0, len(s.fib.byDevice[device]))
	for a := range s.fib.byDevice[device] {
		keys = append(keys, a.key)
	}
	for _, k := range keys {
		s.settle(k)
	}
}

// StandIns returns our routes in main, through interfaces of interest and all others. It
// asks the kernel, and does not change the mirror.
func (m *Mirror) StandIns(ctx context.Context) ([]routing.Route, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []routing.Route
	for _, f := range routing.Families() {
		aliases, err := m.loader.ask(ctx, m.state, routeQuestion{family: f, table: routing.TableMain, protocol: routing.Multihomed})
		if err != nil {
			return nil, err
		}
		for _, a := range aliases {
			for _, l := range a.legs {
				if m.state.fib.owned(l) {
					out = append(out, l.route)
				}
			}
		}
	}
	return out, nil
}

func (m *Mirror) signal() {
	if m.state.changes.Empty() {
		return
	}
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// forget marks the state as incomplete. It is kept: not knowing is not
// emptiness.
func (m *Mirror) forget() {
	m.lost = true
	m.state.whole = false
}

func (m *Mirror) drain() error {
	if m.closed {
		return fmt.Errorf("reading announcements: %w", os.ErrClosed)
	}
	// Others may announce faster than this reads, for ever: so only what was
	// there at the beginning is owed. While announcements are being lost none
	// is added, and the queue does get empty.
	owed, err := m.events.queued()
	if err != nil {
		return err
	}
	for range owed {
		n, err := m.events.tryReceive(m.buf)
		switch {
		case err == nil && m.lost:
			// All of it will be read anew.
		case err == nil:
			m.take(m.buf[:n])
		case errors.Is(err, unix.EAGAIN):
			return nil
		case lost(err):
			// What is in the queue is older than the loss. It has to be read
			// all the same: the kernel goes on dropping until the queue is
			// empty (netlink_rcv_wake in net/netlink/af_netlink.c).
			m.overrun()
			m.forget()
		default:
			return fmt.Errorf("reading announcements: %w", err)
		}
	}
	return nil
}

func (m *Mirror) take(b []byte) {
	for len(b) > 0 {
		h, payload, rest, err := nlmsg.Next(b)
		if err != nil {
			m.forget()
			return
		}
		_, own := m.own[h.Port]
		if err := m.state.apply(h, payload, cause{port: h.Port, own: own}); err != nil {
			m.state.misread(err)
		}
		b = rest
	}
}

func (m *Mirror) sync(ctx context.Context) error {
	for range attempts {
		if err := m.drain(); err != nil {
			return err
		}
		switch {
		case m.lost:
			if err := m.reload(ctx); err != nil {
				return err
			}
		case !m.state.doubts.none():
			if err := m.loader.verify(ctx, m.state, m.drain); err != nil {
				return err
			}
		default:
			return nil
		}
	}
	if m.lost {
		return fmt.Errorf("reading the kernel's routing: %w", errOverrun)
	}
	return nil
}

// reload replaces the state by a new one. Announcements that arrive during the
// dumps may be of before or after what the dumps saw, so it is repeated until
// none does; if that does not happen, the last one is kept with what was
// announced on top: every announcement is then applied at least once, in
// order, and only the order of rules has to be asked for again.
func (m *Mirror) reload(ctx context.Context) error {
	for range attempts {
		if err := m.loader.requests.barrier(ctx); err != nil {
			return m.keepLost(err)
		}
		if err := m.drain(); err != nil {
			return m.keepLost(err)
		}
		// The queue is empty: whatever was lost was lost before the dumps.
		m.lost = false
		fresh, err := m.loader.load(ctx, m.state)
		if err != nil {
			return m.keepLost(err)
		}
		before := fresh.events
		m.adopt(fresh)
		if err := m.drain(); err != nil {
			return m.keepLost(err)
		}
		if m.lost || m.state.events == before {
			return nil
		}
	}
	for _, f := range routing.Families() {
		m.state.doubts.rules[f] = true
		m.state.doubtOthers()
		for index := range m.state.links {
			m.state.doubtDevice(f, index)
		}
	}
	return nil
}

func (m *Mirror) keepLost(err error) error {
	m.forget()
	return err
}

func (m *Mirror) adopt(fresh *State) {
	fresh.changes.Merge(m.state.changes)
	m.state = fresh
}
