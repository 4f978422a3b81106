package claims

import (
	"context"
	"net/netip"
	"slices"

	"multihomed/cmd/internal/config"
	"multihomed/cmd/internal/declared"
	"multihomed/cmd/internal/hooked"
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// Sources are those who say what the links are. NetworkManager has the first
// word, then those who configured an interface, then those who leased a table
// for an address.
type Sources struct {
	Manager *nm.Watcher
	Policy  nm.Policy
	// Links are the entries of [[link]] in the configuration.
	Links    []config.Link
	Hooked   *hooked.Store
	Declared *declared.Store
	// Kind returns the driver's name of a virtual interface (IFLA_INFO_KIND).
	Kind func(name string) string
	// Expected reports whether this host has a NetworkManager that may come.
	Expected func() bool
}

// Owners puts together what the sources say. Create it with Join; Run must be
// running.
type Owners struct {
	Sources
	changed chan struct{}
	// devices is what NetworkManager said last.
	devices map[string]nm.Device
	status  nm.Status
}

// Join puts sources together.
func Join(s Sources) *Owners {
	return &Owners{Sources: s, changed: make(chan struct{}, 1), devices: map[string]nm.Device{}}
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
func (o *Owners) Poke(name string) { o.Manager.Poke(name) }

// Alone reports whether no NetworkManager runs. It is for the goroutine that
// calls Take.
func (o *Owners) Alone() bool { return o.status.Absent }

// Take returns the claims that changed since it was called last.
func (o *Owners) Take() reconcile.Claims {
	said := o.Manager.TakeChanges()
	names := map[string]struct{}{}
	for name, d := range said.Devices {
		o.devices[name] = d
		names[name] = struct{}{}
	}
	for _, name := range said.Removed {
		delete(o.devices, name)
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
	all := reconcile.Claims{Changed: map[string]reconcile.Claim{}, Complete: o.status.Complete, Waiting: o.status.Reason}
	if o.status.Absent && !o.Expected() {
		all.Complete, all.Waiting = true, ""
	}
	for name := range names {
		if claim, claimed := o.Of(name); claimed {
			all.Changed[name] = claim
		} else {
			all.Removed = append(all.Removed, name)
		}
	}
	return all
}

// Of says what an interface is.
func (o *Owners) Of(name string) (reconcile.Claim, bool) {
	return Judge(o.facts(name))
}

func (o *Owners) facts(name string) Facts {
	f := Facts{Name: name, Policy: o.Policy, Links: o.Links, Leased: o.Declared.Of(name)}
	f.Device, f.Managed = o.devices[name]
	f.Configs, f.Released = o.Hooked.Of(name)
	if o.status.Absent {
		f.Configs = append(f.Configs, o.Hooked.Hints(name)...)
	}
	if len(f.Configs) > 0 {
		f.Kind = o.Kind(name)
	}
	return f
}

// Names are the servers for names that a link has, and the domains they are for.
type Names struct {
	Servers []netip.Addr
	Domains []string
}

// Heard reports whether NetworkManager said of every device that is up what it is,
// or is not there. It may still be starting, and bring up others. It is for the
// goroutine that calls Take.
func (o *Owners) Heard() bool {
	if o.status.Complete || o.status.Absent {
		return true
	}
	if !o.status.Running || o.status.Version == "" {
		return false // Its objects have not been read.
	}
	for _, d := range o.devices {
		if d.Managed && d.Active() && !d.ProfileKnown {
			return false
		}
	}
	return true
}

// Names returns what is known of the names of a link, from the one who owns it.
// It is for the goroutine that calls Take.
func (o *Owners) Names(name string) map[routing.Family]Names {
	out := map[routing.Family]Names{}
	device, managed := o.devices[name]
	if (Facts{Name: name, Links: o.Links, Device: device}).settings().Ignore {
		return out
	}
	if managed && Of(o.Policy, device).Standing == reconcile.Link {
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
		servers, domains := hooked.Servers(configs, f)
		if len(servers) > 0 {
			out[f] = Names{Servers: servers, Domains: domains}
		}
	}
	return out
}
