package owners

import (
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// Known is what owners know of a link besides its claim.
type Known struct {
	// Device is NetworkManager's; of another link it has a name alone.
	Device nm.Device
	// Resolvers are its DNS servers. IsWhole says that no owner can know more of them: see
	// [DNS.Knows].
	Resolvers map[routing.Family]Resolvers
	IsWhole   bool
}

// Known returns what owners know of a link, by the name that its owner uses. It is for the
// goroutine that calls Take.
func (o *Owners) Known(name string) Known {
	device, managed := o.device(name)
	if !managed {
		device = nm.Device{Name: name}
	}
	k := Known{Device: device, Resolvers: o.resolvers(name)}
	configs, _ := o.Hooked.Of(name)
	k.IsWhole = managed && Of(o.Policy, device).Standing == reconcile.Link && !device.Settling || len(configs) > 0
	return k
}
