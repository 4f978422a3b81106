package routedlease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"multihomed/allocator"
	"multihomed/allocator/server"
	"multihomed/allocator/wire"
	"multihomed/internal/event"
	"multihomed/internal/offswitch"
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/reconcile"
)

// A Router sets up the routing of leased addresses: it stores the lease, and waits until the
// loop has routed it as any link. It implements [server.Router].
type Router struct {
	Logger *slog.Logger
	Mirror *kernel.Mirror
	Loop   *reconcile.Loop
	Links  *Store
	Policy nm.Policy
	// Ignored says which entry of [[link]] ignores an interface, if one does.
	Ignored func(name string) (by string, is bool)
	Off     *offswitch.Switch

	// deciding keeps decisions about leases apart. Without it, Follow could end a lease that was just made,
	// because the address had been away, or store one again that a client has just given back.
	deciding sync.Mutex
}

var _ server.Router = (*Router)(nil)

// Route returns when the routing of an address is active.
func (r *Router) Route(ctx context.Context, want server.Route) (routing.TableID, error) {
	if m, excluded := r.Policy.Excluded(want.Interface); excluded {
		return 0, &wire.Error{Code: wire.NotAllowed, Text: fmt.Sprintf("the configuration excludes %v; to fix: change [[exclude]] in multihomed.toml", m)}
	}
	if by, is := r.Ignored(want.Interface); is {
		return 0, &wire.Error{Code: wire.NotAllowed, Text: fmt.Sprintf("the configuration ignores %s; to fix: change [[link]] in multihomed.toml", by)}
	}
	if off, _ := r.Off.State(); off.Any() {
		if why, is := off.Of(want.Interface, ""); is {
			return 0, &wire.Error{Code: wire.NotAllowed, Text: fmt.Sprintf("the routing of %s is %s", want.Interface, why)}
		}
	}
	if err := r.Mirror.Sync(ctx); err != nil {
		return 0, fmt.Errorf("reading the kernel: %w", err)
	}
	stored, known, err := r.put(want)
	if err != nil {
		return 0, err
	}
	table, err := r.await(ctx, want)
	if err != nil && !known && ctx.Err() == nil {
		// A refused lease must not become active later, unasked.
		if undo := r.undo(stored); undo != nil {
			r.Logger.LogAttrs(ctx, event.LevelNotice, "removing a refused lease failed", slog.String("error", undo.Error()))
		}
	}
	if err == nil && !known {
		r.Logger.LogAttrs(ctx, slog.LevelInfo, "address leased", event.Is(event.TableLeased), slog.String("interface", want.Interface),
			slog.String("address", want.Address.String()), slog.Uint64("table", uint64(table)), slog.Uint64("uid", uint64(want.Owner)))
	}
	return table, err
}

// put stores a lease of an address that the interface has, and reports whether it was there.
func (r *Router) put(want server.Route) (stored Link, known bool, err error) {
	r.deciding.Lock()
	defer r.deciding.Unlock()
	if err := r.check(want); err != nil {
		return stored, false, err
	}
	before, known := r.Links.Get(want.Interface, want.Address)
	if known && want.Owner != 0 && want.Owner != before.Owner {
		return stored, known, allocator.ErrNotOwner
	}
	stored = Link{
		Interface: want.Interface, Address: want.Address, Owner: want.Owner, Tag: want.Tag,
		Expires: want.Expires, Since: time.Now(),
	}
	if known {
		// Root renews it for its owner.
		stored.Owner, stored.Since = before.Owner, before.Since
	}
	if err := r.Links.Put(stored); err != nil {
		return stored, known, &wire.Error{Code: wire.Database, Text: err.Error()}
	}
	return stored, known, nil
}

// undo removes a lease that was refused, also if its interface has another name now.
func (r *Router) undo(stored Link) error {
	r.deciding.Lock()
	defer r.deciding.Unlock()
	var errs []error
	for _, l := range r.Links.All() {
		if l.Address == stored.Address && l.Owner == stored.Owner && l.Since.Equal(stored.Since) {
			errs = append(errs, r.Links.Remove(l.Interface, l.Address))
		}
	}
	return errors.Join(errs...)
}

// check looks whether the interface has the address.
func (r *Router) check(want server.Route) error {
	exists, has := false, false
	r.Mirror.View(func(k *kernel.State) {
		index, ok := k.IndexOf(want.Interface)
		exists = ok
		has = ok && hasAddress(k, index, want.Address)
	})
	switch {
	case want.Interface == routing.Loopback:
		return &wire.Error{Code: wire.NoInterface, Text: "the loopback leads nowhere; to fix: name the interface of the network"}
	case !exists:
		return &wire.Error{Code: wire.NoInterface, Text: fmt.Sprintf("there is no interface %s; to fix: ask again when it is there (ip link shows all)", want.Interface)}
	case !has:
		return &wire.Error{Code: wire.BadAddress, Text: fmt.Sprintf("%s does not have the address %s; to fix: add it first (`ip address`)", want.Interface, want.Address)}
	}
	return nil
}

func hasAddress(k *kernel.State, index int, address netip.Addr) bool {
	facts, _ := k.Link(index)
	for _, a := range facts.Addresses {
		if a.Prefix.Addr() == address {
			return true
		}
	}
	return false
}

// await returns the table of an address after the next pass of the loop.
func (r *Router) await(ctx context.Context, want server.Route) (routing.TableID, error) {
	state, err := r.Loop.Settled(ctx, want.Interface)
	if err != nil {
		return 0, err
	}
	if state.Unread {
		return 0, &wire.Error{Code: wire.Kernel, Text: "the kernel's routing could not be read; to fix: see the journal of multihomed"}
	}
	key, ok := routing.KeyOf(state.Plan.Link, want.Address)
	if !ok {
		return 0, r.notRouted(want, state)
	}
	table, leased := state.Plan.Link.Tables[key]
	for _, p := range state.Problems {
		if p.Severity != routing.Error {
			continue
		}
		code := wire.Kernel
		if !leased {
			code = wire.Exhausted
		}
		return 0, &wire.Error{Code: code, Text: p.Text}
	}
	if !leased {
		return 0, r.notRouted(want, state)
	}
	return table, nil
}

// notRouted says why an address takes no part in routing.
func (r *Router) notRouted(want server.Route, state reconcile.LinkState) error {
	if err := r.check(want); err != nil {
		return err // The address has gone meanwhile.
	}
	if state.Plan.Link.Index == 0 {
		return noLink(want, state)
	}
	why := "an address like this needs no routing of its own"
	if reason := state.Plan.Link.Intents[routing.FamilyOf(want.Address)].LeaveAlone; reason != "" {
		why = "its family is its owner's: " + reason
	}
	return &wire.Error{Code: wire.BadAddress, Text: fmt.Sprintf("%s on %s gets no table: %s", want.Address, want.Interface, why)}
}

// noLink says why an interface is no link although a lease makes it one.
func noLink(want server.Route, state reconcile.LinkState) error {
	why := state.Claim.Why
	if state.Waiting != "" {
		if why != "" {
			why += ", and "
		}
		why += "multihomed is waiting: " + state.Waiting
	}
	switch {
	case state.Claim.Standing == reconcile.NoLink && why != "":
		return &wire.Error{Code: wire.NotAllowed, Text: fmt.Sprintf("%s gets no routing of its own: %s", want.Interface, why)}
	case why == "":
		why = "it is coming up or going down"
	}
	return &wire.Error{Code: wire.Kernel, Text: fmt.Sprintf("%s has no routing of its own at the moment: %s; to fix: see `multihomectl status %s`, and ask again", want.Interface, why, want.Interface)}
}

// Unroute takes the routing of an address away. It reports whether there was one.
func (r *Router) Unroute(ctx context.Context, what server.Route) (bool, error) {
	if known, err := r.giveBack(what); !known || err != nil {
		return false, err
	}
	if _, err := r.Loop.Settled(ctx, what.Interface); err != nil {
		return true, err
	}
	return true, nil
}

// giveBack removes a lease for its owner, and reports whether there was one.
func (r *Router) giveBack(what server.Route) (known bool, err error) {
	r.deciding.Lock()
	defer r.deciding.Unlock()
	before, known := r.Links.Get(what.Interface, what.Address)
	switch {
	case !known:
		return false, nil
	case what.Owner != 0 && what.Owner != before.Owner:
		return true, allocator.ErrNotOwner
	}
	if err := r.Links.Remove(what.Interface, what.Address); err != nil {
		return true, &wire.Error{Code: wire.Database, Text: err.Error()}
	}
	return true, nil
}

// Expire ends the leases of clients that did not renew them.
func (r *Router) Expire(ctx context.Context) {
	r.deciding.Lock()
	defer r.deciding.Unlock()
	now := allocator.Uptime()
	for _, l := range r.Links.All() {
		if l.Expires != 0 && l.Expires <= now {
			r.end(ctx, l, "it was not renewed")
		}
	}
}

// Follow ends the leases of addresses that have gone, and renames the others with their
// interfaces. Now is the snapshot of a pass.
func (r *Router) Follow(ctx context.Context, now *reconcile.Snapshot) {
	r.deciding.Lock()
	defer r.deciding.Unlock()
	links := r.Links.All()
	interfaces := now.Bound()
	var gone []Link
	renamed := map[Link]string{}
	r.Mirror.View(func(k *kernel.State) {
		if !k.Complete() {
			return // Not knowing is not emptiness.
		}
		for _, l := range links {
			index, exists := interfaces[l.Interface]
			if _, stands := k.NameOf(index); !exists || !stands {
				index, exists = k.IndexOf(l.Interface)
			}
			name, _ := k.NameOf(index)
			switch {
			case !exists || !hasAddress(k, index, l.Address):
				gone = append(gone, l)
			case name != l.Interface:
				renamed[l] = name
			}
		}
	})
	for l, name := range renamed {
		r.rename(ctx, l, name)
	}
	for _, l := range gone {
		r.end(ctx, l, "the interface does not have the address any more")
	}
}

// rename moves a lease to the new name of its interface.
func (r *Router) rename(ctx context.Context, l Link, name string) {
	attrs := []slog.Attr{slog.String("interface", name), slog.String("before", l.Interface), slog.String("address", l.Address.String())}
	now := l
	now.Interface = name
	if err := r.Links.Put(now); err != nil {
		r.Logger.LogAttrs(ctx, event.LevelNotice, "routed lease does not follow its interface", append(attrs, slog.String("error", err.Error()))...)
		return
	}
	if err := r.Links.Remove(l.Interface, l.Address); err != nil {
		r.Logger.LogAttrs(ctx, event.LevelNotice, "routed lease stays under an old name", append(attrs, slog.String("error", err.Error()))...)
	}
	r.Logger.LogAttrs(ctx, slog.LevelInfo, "routed lease followed its interface", attrs...)
}

func (r *Router) end(ctx context.Context, l Link, why string) {
	attrs := []slog.Attr{slog.String("interface", l.Interface), slog.String("address", l.Address.String()), slog.String("reason", why)}
	if err := r.Links.Remove(l.Interface, l.Address); err != nil {
		r.Logger.LogAttrs(ctx, event.LevelNotice, "ending a routed lease failed", append(attrs, slog.String("error", err.Error()))...)
		return
	}
	r.Logger.LogAttrs(ctx, slog.LevelInfo, "routed lease ended", append(attrs, event.Is(event.LeaseEnded))...)
}
