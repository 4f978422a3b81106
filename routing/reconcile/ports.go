package reconcile

import (
	"context"
	"net/netip"

	"multihomed/routing"
	"multihomed/routing/kernel"
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
	// Known are routes that the owner knows and main may not have; Reach says
	// that main may lack the default, see [routing.Link].
	Known []routing.Route
	Reach bool
	// Choice is the role that the configuration asks for; LastResort that unbound
	// traffic may leave by the link when main has no default.
	Choice     routing.RoleChoice
	LastResort bool
	// Delegated are prefixes that the network routes to this host through the link,
	// masked and sorted.
	Delegated []netip.Prefix
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
	// Poke asks for a claim to be looked at again: something happened to the
	// interface that its owner may not tell by itself.
	Poke(name string)
}

// Mirror is the kernel's state as the kernel reports it; kernel.Mirror is one.
type Mirror interface {
	Changed() <-chan struct{}
	// Sync takes up every event that the kernel has queued: after it the
	// mirror shows the effects of all operations that were acknowledged.
	Sync(context.Context) error
	// Take returns what changed since it was called last, except by our writer.
	Take() kernel.Changes
	View(func(*kernel.State))
	// SetInterest says of which interfaces the routes of main are kept.
	SetInterest(context.Context, map[int]bool) error
	// SetNetworks says inside which networks the host routes of main are kept.
	SetNetworks(context.Context, []netip.Prefix) error
	// Unbound asks which packets that are bound to nothing get a source which the
	// interface that they leave by does not have, and which are refused.
	Unbound(context.Context) (map[routing.Family][]routing.Unbound, []routing.Unanswered, error)
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
