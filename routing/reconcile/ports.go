package reconcile

import (
	"context"
	"iter"
	"net/netip"

	"multihomed/routing"
)

// A Standing says what the owner of an interface makes of it.
type Standing uint8

// Standings. Draining interfaces are links as long as they were links and have
// addresses: their rules must not go before their addresses do.
const (
	NoLink Standing = iota
	Draining
	Link
)

// A Claim is what the owner of an interface says of it.
type Claim struct {
	Standing Standing
	// Index is the interface's, where the owner knows it, else 0. Identity is by
	// what the owner recognises the interface when it has another name; empty if by
	// nothing. A claim holds for its interface, whatever that is called by now.
	Index    int
	Identity string
	// Why says in words why the interface is a link or is none.
	Why string
	// Profile names the configuration in force, UUID tells it from others; both are
	// empty where the owner has none. The name of a profile may change while it is in
	// force.
	Profile, UUID string
	// Type is the owner's name of the kind of device, empty if it has none.
	Type string
	// LeftToOthers says that the owner knows the interface and leaves it to others. Where
	// one of them claims it by its index, under an earlier name, his claim counts.
	LeftToOthers bool
	// Watched says that the routes of main through the interface may become of
	// interest: it is a link, or can be one. What drains and was a link stays of
	// interest.
	Watched bool
	Intents map[routing.Family]routing.Intent
	// Pending says that the interface is a link that is still being brought up.
	Pending bool
	// Settling says that it is not known yet whether a link that drains is going down: its owner
	// may be starting or ending.
	Settling bool
	// Known are routes that the owner knows and main may not have; DefaultMayBeMissing says
	// that main may lack the default, see [routing.Link].
	Known               []routing.Route
	DefaultMayBeMissing bool
	// Choice is the role that the configuration asks for; LastResort that unbound
	// traffic may leave by the link when main has no default.
	Choice     routing.RoleChoice
	LastResort bool
	// Delegated are prefixes that the network routes to this host through the link,
	// masked and sorted.
	Delegated []netip.Prefix
	// BoundTo is the link by which what comes in by the interface leaves, by the name of its
	// interface or profile; empty if by none.
	BoundTo string
	// Released says that the owner has taken the configuration away: what stands
	// for the interface may go, however little is known of the rest.
	Released bool
	// Only lists the addresses that take part, nil if all do.
	Only []netip.Addr
	// Else is what the interface is if its owner's claim drains and there is nothing to
	// drain: it was no link of his, or all of it that takes part is in Else.Only. Nil
	// stands for no link.
	Else *Claim
	// Tables are table numbers that the owner uses itself.
	Tables []routing.TableID
	// Problems are the owner's own, in sentences.
	Problems []string
}

// Claims is what changed in what the owners say.
type Claims struct {
	// Changed holds new claims by interface name; Removed names interfaces
	// that no owner knows any more.
	Changed map[string]Claim
	Removed []string
	// Complete says that every interface with an owner has been named: what
	// is not claimed now is nobody's.
	Complete bool
	// Waiting says what keeps the knowledge from being complete.
	Waiting string
}

// Owners says who the links are.
type Owners interface {
	Changed() <-chan struct{}
	// Take returns what changed since the last call.
	Take() Claims
	// Recheck asks for a claim to be looked at again: something happened to the
	// interface that its owner may not tell by itself.
	Recheck(name string)
}

// State is what the kernel holds, as far as it is kept. It may be used only inside
// [Mirror.View]; what its methods return may be kept.
type State interface {
	routing.Kernel
	// Complete reports whether this is all that the kernel holds. While it is not,
	// absence proves nothing.
	Complete() bool
	// Moves changes with everything that happens to interfaces, addresses and to routes
	// that are not ours.
	Moves() uint64
	// Unread counts the messages of the kernel that could not be read, and returns the
	// fault of the last one.
	Unread() (int, error)

	// Indexes returns the indexes of all interfaces, sorted.
	Indexes() []int
	// IndexOf returns the index of the interface of a name, NameOf the reverse. Name is
	// for people: it names an interface that is gone by its index.
	IndexOf(name string) (index int, exists bool)
	NameOf(index int) (name string, exists bool)
	Name(index int) string
	// Link returns an interface with its routes, LinkFacts without them, whose number
	// costs nothing then.
	Link(index int) (routing.Interface, bool)
	LinkFacts(index int) (routing.Interface, bool)
	// Interested reports whether the routes of main through an interface are kept.
	Interested(index int) bool
	// Defaults returns the default routes that main has of a family through any interface,
	// the best first.
	Defaults(f routing.Family) []routing.Route
	// Thrown returns the destinations that main throws in a family, sorted: those for which
	// no other route that is kept goes before the throw route.
	Thrown(f routing.Family) []netip.Prefix
	// Ways returns the routes of main to one destination through an interface of interest.
	Ways(index int, d routing.Destination) []routing.Route
	// Elsewhere returns what the host has in networks of an interface that is no address of it.
	Elsewhere(index int, networks []netip.Prefix) []routing.Elsewhere

	// Foreign returns the rules of others in a family, in kernel order.
	Foreign(f routing.Family) []routing.Rule
	// CameAfter reports whether a rule is known to have been added after another one.
	CameAfter(rule, other routing.Rule) bool
	// RulesFrom yields our rules of a priority for a source, RulesTo those that lead to a table.
	RulesFrom(f routing.Family, p routing.Priority, from netip.Prefix) iter.Seq[routing.Rule]
	RulesTo(f routing.Family, p routing.Priority, t routing.TableID) iter.Seq[routing.Rule]

	// CountRoutes counts the routes of everybody in a table.
	CountRoutes(t routing.TableID) int
	// ForeignIn says who else uses a table of a family, UseOf what stands of a table,
	// whoever made it.
	ForeignIn(f routing.Family, t routing.TableID) (what string, used bool)
	UseOf(t routing.TableID) (what string, used bool)
	// TakenBy says who took a table of an interface, whose links use it no more safely:
	// see [routing.Takes].
	TakenBy(f routing.Family, t routing.TableID, device int, widest uint32) (what string, taken bool)
}

// A Source is the kernel's state as the kernel reports it, with a State of its own kind;
// kernel.Mirror is one. See [MirrorOf].
type Source[S State] interface {
	observer
	View(func(S))
}

// Mirror is the kernel's state as the kernel reports it.
type Mirror interface {
	observer
	// View gives access to the state, as it is meanwhile.
	View(func(State))
}

type observer interface {
	// Changed is readable when there is something to take.
	Changed() <-chan struct{}
	// Sync takes up every event that the kernel has queued: after it the
	// mirror shows the effects of all operations that were acknowledged.
	Sync(context.Context) error
	// Take returns what changed since it was called last, except by our writer.
	Take() routing.Changes
	// SetInterest says of which interfaces the routes of main are kept.
	SetInterest(context.Context, map[int]bool) error
	// SetNetworks says inside which networks the host routes of main are kept.
	SetNetworks(context.Context, []netip.Prefix) error
	// Unbound asks which packets that are bound to nothing get a source which the
	// interface that they leave by does not have, and which are refused.
	Unbound(context.Context) (map[routing.Family][]routing.Unbound, []routing.Unanswered, error)
}

// MirrorOf makes a Mirror of a source whose states are of a type of their own.
func MirrorOf[S State](s Source[S]) Mirror { return mirror[S]{s, s} }

type mirror[S State] struct {
	observer
	source Source[S]
}

func (m mirror[S]) View(look func(State)) { m.source.View(func(s S) { look(s) }) }

// Failover says which uplinks are judged dead, and what is configured.
type Failover interface {
	// Changed is readable when Failover returns something new.
	Changed() <-chan struct{}
	// Failover returns the facts as they are now. What it returns is never changed.
	Failover() routing.Failover
}

// Writer changes the kernel. It returns one error for each operation, in order,
// nil where it succeeded.
type Writer interface {
	Apply(context.Context, []routing.Op) []error
}

// Leases hands out table numbers.
type Leases interface {
	// Acquire returns the tables of the keys. Where some have none it returns
	// the others and an error.
	Acquire(ctx context.Context, keys []routing.Key, inUse func(routing.TableID) (string, bool)) (map[routing.Key]routing.TableID, error)
	// Move gives keys other numbers than those that they have, which somebody else uses. A
	// key that is not in the answer keeps what it has.
	Move(ctx context.Context, from map[routing.Key]routing.TableID, inUse func(routing.TableID) (string, bool)) (map[routing.Key]routing.TableID, error)
	// Release says that nothing in the kernel needs the keys' tables.
	Release(keys ...routing.Key)
}
