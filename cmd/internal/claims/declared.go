package claims

import (
	"context"
	"fmt"

	"multihomed/cmd/internal/declared"
	"multihomed/routing/reconcile"
)

// Owners are NetworkManager and those who declared links, together. Create it
// with Join; Run must be running.
type Owners struct {
	manager  *Watcher
	declared *declared.Store
	changed  chan struct{}
	// byManager is what NetworkManager said last.
	byManager map[string]reconcile.Claim
}

// Join puts the owners of links together.
func Join(manager *Watcher, store *declared.Store) *Owners {
	return &Owners{
		manager: manager, declared: store, changed: make(chan struct{}, 1),
		byManager: map[string]reconcile.Claim{},
	}
}

// Run passes on that one of them has something to say, until ctx is done.
func (o *Owners) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-o.manager.Changed():
		case <-o.declared.Changed():
		}
		select {
		case o.changed <- struct{}{}:
		default:
		}
	}
}

// Changed holds a value when Take has something to say.
func (o *Owners) Changed() <-chan struct{} { return o.changed }

// Poke asks for an interface's profile to be read again.
func (o *Owners) Poke(name string) { o.manager.Poke(name) }

// Take returns the claims that changed since it was called last.
func (o *Owners) Take() reconcile.Claims {
	said := o.manager.Take()
	names := map[string]struct{}{}
	for name, claim := range said.Changed {
		o.byManager[name] = claim
		names[name] = struct{}{}
	}
	for _, name := range said.Removed {
		delete(o.byManager, name)
		names[name] = struct{}{}
	}
	for _, name := range o.declared.Take() {
		names[name] = struct{}{}
	}
	all := reconcile.Claims{Changed: map[string]reconcile.Claim{}, Complete: said.Complete, Waiting: said.Waiting}
	for name := range names {
		manager, managed := o.byManager[name]
		if claim, claimed := Merge(manager, managed, name, o.declared); claimed {
			all.Changed[name] = claim
		} else {
			all.Removed = append(all.Removed, name)
		}
	}
	return all
}

// Merge puts together what NetworkManager and others say of an interface. What
// NetworkManager brings up is its whole; on what it leaves alone, the addresses
// take part that were declared.
func Merge(manager reconcile.Claim, managed bool, name string, store *declared.Store) (reconcile.Claim, bool) {
	addresses := store.Of(name)
	if len(addresses) == 0 || manager.Standing != reconcile.NoLink {
		return manager, managed
	}
	manager.Standing, manager.Watched, manager.Only = reconcile.Link, true, addresses
	manager.Why = fmt.Sprintf("lease of %s", addresses[0])
	if more := len(addresses) - 1; more > 0 {
		manager.Why += fmt.Sprintf(" and %d more", more)
	}
	return manager, true
}
