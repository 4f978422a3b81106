package owners

import (
	"net/netip"

	"multihomed/internal/hookstate"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// Resolvers are the DNS servers of a link, with their domains.
type Resolvers struct {
	Servers []netip.Addr
	Domains []string
}

// DNS are the DNS servers that the owners of links know at one moment.
type DNS struct {
	resolvers map[string]map[routing.Family]Resolvers
	// named are the interfaces with an owner other than a hint.
	named map[string]struct{}
	// isWhole says that no owner can know more.
	isWhole bool
}

// Of returns the servers of a link, by the name that its owner uses.
func (d *DNS) Of(name string) map[routing.Family]Resolvers { return d.resolvers[name] }

// Knows reports whether Of is complete for an interface. While an expected NetworkManager is
// away, it may know more about interfaces without an owner.
func (d *DNS) Knows(name string) bool {
	_, is := d.named[name]
	return is || d.isWhole
}

// DNS returns the servers that are known now. It is for the goroutine that calls Take.
func (o *Owners) DNS() *DNS {
	d := &DNS{
		resolvers: map[string]map[routing.Family]Resolvers{}, named: map[string]struct{}{},
		isWhole: o.status.Complete || o.status.Read || o.status.Absent && !o.Expected(),
	}
	for name := range o.devices {
		d.resolvers[name], d.named[name] = o.resolvers(name), struct{}{}
	}
	for _, name := range o.Hooked.Interfaces() {
		d.resolvers[name] = o.resolvers(name)
		if configs, _ := o.Hooked.Of(name); len(configs) > 0 {
			d.named[name] = struct{}{}
		}
	}
	return d
}

// resolvers are those of a link, from its owner.
func (o *Owners) resolvers(name string) map[routing.Family]Resolvers {
	out := map[routing.Family]Resolvers{}
	device, managed := o.device(name)
	if (Facts{Name: name, Links: o.Links, Device: device}).settings().Ignore {
		return out
	}
	// While a device settles NetworkManager is stopping or starting, and its state does not
	// count.
	if s := Of(o.Policy, device).Standing; managed && (s == reconcile.Link || s == reconcile.Draining && device.Settling) {
		for f, d := range device.DNS {
			out[f] = Resolvers{Servers: d.Servers, Domains: d.Domains}
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
			out[f] = Resolvers{Servers: servers, Domains: domains}
		}
	}
	return out
}
