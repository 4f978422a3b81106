package owners

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"multihomed/internal/config"
	"multihomed/internal/hookstate"
	"multihomed/internal/offswitch"
	"multihomed/internal/presence"
	"multihomed/internal/routedlease"
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/reconcile"
)

// Sources are those who say what the links are. NetworkManager has the first
// word, then those who configured an interface, then those who leased a table
// for an address.
type Sources struct {
	Manager Manager
	Policy  nm.Policy
	// Links are the entries of [[link]] in the configuration.
	Links    []config.Link
	Hooked   *hookstate.Store
	Declared *routedlease.Store
	// Kind returns the driver's name of a virtual interface (IFLA_INFO_KIND), and the
	// interface that it is a port of.
	Kind func(name string) (kind, controller string)
	// Expected reports whether this host has a NetworkManager that may come.
	Expected func() bool
	// Standing names the interfaces for which rules of ours stand that lead by device.
	Standing func() []string
	// Off is what the administrator switched off.
	Off *offswitch.Switch
}

// A Manager is NetworkManager, followed by a [nm.Watcher] or [Asked] once.
type Manager interface {
	// Changed holds a value when TakeChanges has something to say.
	Changed() <-chan struct{}
	// TakeChanges returns what changed since it was called last.
	TakeChanges() nm.Changes
	// Recheck asks for an interface's profile to be read again.
	Recheck(name string)
}

// Asked returns a NetworkManager that has said all that it is going to say.
func Asked(s nm.Snapshot) Manager {
	return &asked{nm.Changes{Status: s.Status, StatusChanged: true, Devices: s.Devices}}
}

type asked struct{ changes nm.Changes }

func (*asked) Changed() <-chan struct{} { return nil }
func (*asked) Recheck(string)           {}

func (a *asked) TakeChanges() nm.Changes {
	c := a.changes
	a.changes = nm.Changes{Status: c.Status}
	return c
}

// Unread are the parts of what was written down that cannot be read.
type Unread struct {
	// Hooks are reports of hooks, Leases routed leases.
	Hooks, Leases []error
}

// A Kernel is what is known of the kernel's interfaces; [kernel.Mirror] is one.
type Kernel interface {
	View(look func(*kernel.State))
}

// Open puts together what NetworkManager says with what hooks, clients and the
// administrator have said on this host so far. It is how everybody finds out who the
// links are: the daemon, who stands in for it, and who only looks. What cannot be read is
// left out.
func Open(cfg config.Config, manager Manager, interfaces Kernel) (*Owners, Unread) {
	var unread Unread
	s := Sources{
		Manager: manager, Policy: cfg.NMPolicy(), Links: cfg.Links, Off: offswitch.Open(cfg.Switch()),
		Expected: func() bool { return presence.NetworkManager(cfg.NetworkManager) },
		Standing: func() []string { return standing(interfaces) },
		Kind:     func(name string) (string, string) { return kindOf(interfaces, name) },
	}
	if cfg.NetworkManager != config.Auto {
		s.Standing = func() []string { return nil } // The administrator says who may have made them.
	}
	s.Hooked, unread.Hooks = hookstate.Open(cfg.RuntimeDir)
	s.Declared, unread.Leases = routedlease.Open(cfg.RuntimeDir)
	return Join(s), unread
}

// kindOf returns the driver's name of a virtual interface, and what it is a port of.
func kindOf(interfaces Kernel, name string) (kind, controller string) {
	interfaces.View(func(k *kernel.State) {
		if index, exists := k.IndexOf(name); exists {
			facts, _ := k.LinkFacts(index)
			kind = facts.Kind
			controller, _ = k.NameOf(facts.Master)
		}
	})
	return kind, controller
}

func standing(interfaces Kernel) (names []string) {
	interfaces.View(func(k *kernel.State) {
		for _, f := range routing.Families() {
			for _, r := range k.RuleOrder(f, routing.PriorityDevice) {
				names = append(names, r.OIF)
			}
		}
	})
	return names
}

// Owners puts together what the sources say. Create it with Join; Run must be
// running.
type Owners struct {
	Sources
	changed chan struct{}
	// devices is what NetworkManager said last.
	devices map[string]nm.Device
	status  nm.Status
	// heard says how new the reports of hooks were when NetworkManager said last that an
	// interface is a link. succeeded are the interfaces that a hook reported since, while
	// NetworkManager was away: it has nothing more to say of them until it is back.
	heard     map[string]time.Time
	succeeded map[string]struct{}
	// left are the interfaces that had routing when it became known that NetworkManager
	// will not come, nil before that.
	left map[string]bool
	// leased are the interfaces that are links by leases alone.
	leased map[string]bool
	// off is what was switched off when Take was called last, the switched-th time.
	off      offswitch.State
	switched uint64
}

// Join puts sources together.
func Join(s Sources) *Owners {
	o := &Owners{
		Sources: s, changed: make(chan struct{}, 1), devices: map[string]nm.Device{}, leased: map[string]bool{},
		heard: map[string]time.Time{}, succeeded: map[string]struct{}{},
	}
	o.off, o.switched = s.Off.State()
	return o
}

// Run passes on that one of them has something to say, until ctx is done.
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
		select {
		case o.changed <- struct{}{}:
		default:
		}
	}
}

// Changed holds a value when Take has something to say.
func (o *Owners) Changed() <-chan struct{} { return o.changed }

// Recheck asks for an interface's profile to be read again.
func (o *Owners) Recheck(name string) { o.Manager.Recheck(name) }

// Alone reports whether no NetworkManager runs. It is for the goroutine that
// calls Take.
func (o *Owners) Alone() bool { return o.status.Absent }

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
			continue // These are not its words: it is away, on its way out, or not yet in.
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
	if o.status.Absent && !o.Expected() {
		all.Complete, all.Waiting = true, ""
		o.inherit(names)
	}
	if o.off.HostOff() {
		// Whoever may still speak, nothing of ours is to stand.
		all.Complete, all.Waiting = true, ""
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

// inherit notes what a NetworkManager has left that is disabled or was removed: nobody
// speaks for it after a restart of ours, and its addresses stand. Names gets them.
func (o *Owners) inherit(names map[string]struct{}) {
	if o.left != nil {
		return
	}
	o.left = map[string]bool{}
	for _, name := range o.Standing() {
		o.left[name], names[name] = true, struct{}{}
	}
}

// device is what NetworkManager says of an interface, false if nothing, or nothing that
// still counts.
func (o *Owners) device(name string) (nm.Device, bool) {
	if _, is := o.succeeded[name]; is {
		return nm.Device{}, false
	}
	d, known := o.devices[name]
	return d, known
}

// Of says what an interface is.
func (o *Owners) Of(name string) (reconcile.Claim, bool) {
	return Judge(o.facts(name))
}

func (o *Owners) facts(name string) Facts {
	f := Facts{Name: name, Policy: o.Policy, Links: o.Links, Leased: o.Declared.Of(name), WasLeased: o.leased[name], Left: o.left[name], Off: o.off}
	f.Device, f.Managed = o.device(name)
	f.Configs, f.Released = o.Hooked.Of(name)
	if o.status.Absent {
		f.Configs = append(f.Configs, o.Hooked.Hints(name)...)
	}
	if len(f.Configs) > 0 || len(f.Leased) > 0 {
		f.Kind, f.Controller = o.Kind(name)
	}
	return f
}

// Names are the servers for names that a link has, and the domains they are for.
type Names struct {
	Servers []netip.Addr
	Domains []string
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

// Heard reports whether NetworkManager said of every device that it has what it is, or
// is not there. It may still be starting, and bring up others. It is for the goroutine
// that calls Take.
func (o *Owners) Heard() bool { return o.status.Complete || o.status.Absent || o.status.Read }

// HasNames reports whether Names says all that there is of an interface. While a
// NetworkManager that is expected is away, it may know more of interfaces of which
// nobody has said anything. It is for the goroutine that calls Take.
func (o *Owners) HasNames(name string) bool {
	if o.status.Complete || o.status.Read || o.status.Absent && !o.Expected() {
		return true
	}
	_, known := o.devices[name]
	configs, _ := o.Hooked.Of(name)
	return known || len(configs) > 0
}

// Names returns what is known of the names of a link, from the one who owns it.
// It is for the goroutine that calls Take.
func (o *Owners) Names(name string) map[routing.Family]Names {
	out := map[routing.Family]Names{}
	device, managed := o.device(name)
	if (Facts{Name: name, Links: o.Links, Device: device}).settings().Ignore {
		return out
	}
	// While a device settles, NetworkManager is on its way out or in, and means nothing
	// by what it says.
	if s := Of(o.Policy, device).Standing; managed && (s == reconcile.Link || s == reconcile.Draining && device.Settling) {
		for f, d := range device.DNS {
			out[f] = Names{Servers: d.Servers, Domains: d.Domains}
		}
		return out
	}
	configs, _ := o.Hooked.Of(name)
	if o.status.Absent {
		configs = append(configs, o.Hooked.Hints(name)...)
	}
	for _, f := range routing.Families() {
		servers, domains := hookstate.Servers(configs, f)
		if len(servers) > 0 {
			out[f] = Names{Servers: servers, Domains: domains}
		}
	}
	return out
}
