package nm

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/godbus/dbus/v5"

	"multihomed/routing"
)

// Unescape is unescape.
func Unescape(s string) string { return unescape(s) }

// Backoff is backoff.
func Backoff(first, last time.Duration, attempts int) time.Duration {
	return backoff(first, last, attempts)
}

// FirstRouter is firstRouter.
func FirstRouter(s string) (netip.Addr, error) { return firstRouter(s) }

// LeaseRouter is the router of a lease with options, and what is wrong with them.
func LeaseRouter(options map[string]dbus.Variant, previous netip.Addr) (router netip.Addr, problems []string) {
	l := lease{router: previous, notes: notebook{}}
	l.readRouter(options)
	return l.router, slices.Sorted(maps.Values(l.notes))
}

// A Profile is a decoded profile.
type Profile struct {
	Ignored  bool
	Intents  map[routing.Family]routing.Intent
	Tables   []routing.TableID
	Problems []string
	raw      profile
}

// DecodeProfile decodes a profile after a previous one.
func DecodeProfile(s map[string]map[string]dbus.Variant, previous Profile) Profile {
	p := decodeProfile(s, previous.raw)
	return Profile{p.ignored, p.intents("p", netip.MustParseAddr("192.0.2.1")), p.tables, p.problems, p}
}

// A Tree is the mirror of the objects.
type Tree struct{ *tree }

// NewTree returns an empty one.
func NewTree() Tree { return Tree{newTree(true, true)} }

// Update applies properties.
func (t Tree) Update(path dbus.ObjectPath, iface string, p map[string]dbus.Variant, full bool) {
	t.update(path, iface, p, full)
}

// Remove takes interfaces away.
func (t Tree) Remove(path dbus.ObjectPath, interfaces ...string) { t.remove(path, interfaces) }

// Describe returns the device of an interface.
func (t Tree) Describe(name string, previous Device) (Device, bool) {
	d := t.owner(name)
	if d == nil {
		return previous, false
	}
	return t.describe(d, previous), true
}

// Names lists the interfaces that have devices.
func (t Tree) Names() []string {
	return slices.Collect(maps.Keys(t.byName))
}

// Size counts everything that is held.
func (t Tree) Size() int {
	return len(t.devices) + len(t.actives) + len(t.leases) + len(t.configs) +
		len(t.byName) + len(t.referrers) + len(t.byProfile) + len(t.wanted)
}

// Queue is the queue of signals.
type Queue = queue

// NewQueue is newQueue for one who follows name resolution, or for one who looks once.
func NewQueue(once bool) *Queue {
	if once {
		return newQueue(nil)
	}
	return newQueue(dnsProperties())
}

// Next takes the oldest signal, nil if there is none.
func (q *queue) Next() *dbus.Signal {
	s := q.first()
	if s != nil {
		q.pop()
	}
	return s
}
