package owners

import (
	"context"
	"slices"
	"time"

	"multihomed/internal/news"
	"multihomed/internal/offswitch"
	"multihomed/nm"
	"multihomed/routing/reconcile"
)

// Owners joins the sources. Create it with Join; Run must be running.
type Owners struct {
	Sources
	changed news.Signal
	// devices is the last word of NetworkManager.
	devices map[string]nm.Device
	status  nm.Status
	// heard says how new the reports of hooks were when NetworkManager said last that an
	// interface is a link. succeeded are the interfaces that a hook reported since, while
	// NetworkManager was away: it has nothing more to say of them until it is back.
	heard     map[string]time.Time
	succeeded map[string]struct{}
	// abandoned says that NetworkManager is away and will not come. left are the interfaces
	// that had routing when that became known.
	abandoned bool
	left      map[string]bool
	// leased are the interfaces that are links by leases alone.
	leased map[string]bool
	// off is what was switched off when Take was called last, the switched-th time.
	off      offswitch.State
	switched uint64
	// generation counts the calls of Take that had changes.
	generation uint64
}

// Join returns the Owners of sources.
func Join(s Sources) *Owners {
	o := &Owners{
		Sources: s, changed: news.NewSignal(), devices: map[string]nm.Device{}, leased: map[string]bool{},
		heard: map[string]time.Time{}, succeeded: map[string]struct{}{},
	}
	o.off, o.switched = s.Off.State()
	return o
}

// Run passes on changes of the sources until ctx is done.
func (o *Owners) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-o.Manager.Changed():
		case <-o.Hooked.Changed():
		case <-o.Declared.Changed():
		case <-o.Off.Changed():
		}
		o.changed.Give()
	}
}

// Changed holds a value when Take has claims.
func (o *Owners) Changed() <-chan struct{} { return o.changed }

// Recheck asks for an interface's profile to be read again.
func (o *Owners) Recheck(name string) { o.Manager.Recheck(name) }

// NoManager reports whether no NetworkManager runs. It is for the goroutine that
// calls Take.
func (o *Owners) NoManager() bool { return o.status.Absent }

// Status is what NetworkManager said of itself last. It is for the goroutine that calls
// Take.
func (o *Owners) Status() nm.Status { return o.status }

// Take returns the claims that changed since it was called last.
func (o *Owners) Take() reconcile.Claims {
	said := o.Manager.TakeChanges()
	names := map[string]struct{}{}
	for name, d := range said.Devices {
		o.devices[name] = d
		names[name] = struct{}{}
		if said.Status.Absent || d.Settling {
			continue // NetworkManager is away, stopping or starting: this is not its word.
		}
		delete(o.succeeded, name)
		if Of(o.Policy, d).Standing == reconcile.Link {
			o.heard[name] = o.Hooked.Newest(name)
		}
	}
	for _, name := range said.Removed {
		delete(o.devices, name)
		delete(o.heard, name)
		delete(o.succeeded, name)
		names[name] = struct{}{}
	}
	wasAbsent := o.status.Absent
	o.status = said.Status
	for _, name := range slices.Concat(o.Hooked.Take(), o.Declared.Take()) {
		names[name] = struct{}{}
	}
	if wasAbsent != o.status.Absent {
		for _, name := range o.Hooked.Interfaces() {
			names[name] = struct{}{}
		}
	}
	o.succeed(names)
	if off, times := o.Off.State(); times != o.switched {
		o.off, o.switched = off, times
		for name := range o.devices {
			names[name] = struct{}{}
		}
		for _, name := range o.Hooked.Interfaces() {
			names[name] = struct{}{}
		}
		for _, l := range o.Declared.All() {
			names[l.Interface] = struct{}{}
		}
	}
	all := reconcile.Claims{Changed: map[string]reconcile.Claim{}, Complete: o.status.Complete, Waiting: o.status.Reason}
	o.inherit(names)
	if o.abandoned {
		all.Complete, all.Waiting = true, ""
	}
	if o.off.HostOff() {
		// The kernel must not hold anything of ours, whatever is still unknown.
		all.Complete, all.Waiting = true, ""
	}
	if len(names) > 0 || said.StatusChanged {
		o.generation++
	}
	for name := range names {
		claim, claimed := o.Of(name)
		if delete(o.leased, name); claim.Only != nil {
			o.leased[name] = true
		}
		if claimed {
			all.Changed[name] = claim
		} else {
			all.Removed = append(all.Removed, name)
		}
	}
	return all
}

// succeed notes which of some interfaces a hook configured after NetworkManager left. What
// NetworkManager said is older: without this, such a link would wait for it for ever. It
// ends when NetworkManager has said all that it has to say; then names has more.
func (o *Owners) succeed(names map[string]struct{}) {
	if o.status.Complete {
		for name := range o.succeeded {
			delete(o.succeeded, name)
			names[name] = struct{}{}
		}
	}
	if !o.status.Absent {
		return
	}
	for name := range names {
		if at := o.Hooked.Newest(name); !at.IsZero() && !at.Equal(o.heard[name]) {
			o.succeeded[name] = struct{}{}
		}
	}
}

// inherit notes the interfaces that a disabled or removed NetworkManager has left with our
// routing. They keep it until their addresses go; what comes after is of somebody else, who
// may be no owner. It adds to names whose owner changes with that.
func (o *Owners) inherit(names map[string]struct{}) {
	abandoned := o.status.Absent && !o.Expected()
	if abandoned == o.abandoned {
		return
	}
	for name := range o.devices {
		names[name] = struct{}{}
	}
	for name := range o.left {
		names[name] = struct{}{}
	}
	o.abandoned, o.left = abandoned, map[string]bool{}
	if !abandoned {
		return
	}
	for _, name := range o.Routed() {
		o.left[name], names[name] = true, struct{}{}
	}
}

// device is NetworkManager's device of an interface, false if it has none, or none that still
// counts.
func (o *Owners) device(name string) (nm.Device, bool) {
	if _, is := o.succeeded[name]; is {
		return nm.Device{}, false
	}
	d, known := o.devices[name]
	return d, known
}

// Of is the claim on an interface, false if it has no owner.
func (o *Owners) Of(name string) (reconcile.Claim, bool) {
	return Judge(o.facts(name))
}

func (o *Owners) facts(name string) Facts {
	f := Facts{Name: name, Policy: o.Policy, Links: o.Links, Leased: o.Declared.Of(name), WasLeased: o.leased[name], Left: o.left[name], Off: o.off}
	f.Device, f.Managed = o.device(name)
	f.Abandoned = o.abandoned
	f.Configs, f.Released = o.Hooked.Of(name)
	if o.status.Absent {
		f.Configs = append(f.Configs, o.Hooked.Hints(name)...)
	}
	if len(f.Configs) > 0 || len(f.Leased) > 0 {
		f.Kind, f.Controller = o.Kind(name)
	}
	return f
}

// HostOff reports whether all of multihomed is switched off. It is for the goroutine
// that calls Take.
func (o *Owners) HostOff() bool { return o.off.HostOff() }

// IsOff reports whether an interface is switched off, by itself or with the host. It is
// for the goroutine that calls Take.
func (o *Owners) IsOff(name string) bool {
	device, _ := o.device(name)
	_, off := o.off.Of(name, device.ProfileUUID)
	return off
}

// Generation grows with every Take that has changes. It is for the goroutine that calls Take.
func (o *Owners) Generation() uint64 { return o.generation }

// ManagerKnown reports whether NetworkManager said what each of its devices is, or does not
// run. It may still be starting, and bring up other devices. It is for the goroutine that
// calls Take.
func (o *Owners) ManagerKnown() bool { return o.status.Complete || o.status.Absent || o.status.Read }
