// Package claims turns what NetworkManager says of its devices into what the
// routing side asks of the owners of links.
package claims

import (
	gnm "github.com/Wifx/gonetworkmanager/v2"

	"multihomed/nm"
	"multihomed/routing/reconcile"
)

// A Watcher follows NetworkManager for a reconcile.Loop.
type Watcher struct {
	nm     *nm.Watcher
	policy nm.Policy
}

// New returns an adapter for a watcher of NetworkManager.
func New(w *nm.Watcher, p nm.Policy) *Watcher { return &Watcher{nm: w, policy: p} }

// Changed holds a value when Take has something to say.
func (o *Watcher) Changed() <-chan struct{} { return o.nm.Changed() }

// Poke asks for an interface's profile to be read again.
func (o *Watcher) Poke(name string) { o.nm.Poke(name) }

// Take returns the claims that changed since it was called last.
func (o *Watcher) Take() reconcile.Claims {
	changes := o.nm.TakeChanges()
	claims := reconcile.Claims{
		Changed:  make(map[string]reconcile.Claim, len(changes.Devices)),
		Removed:  changes.Removed,
		Complete: changes.Status.Complete,
		Waiting:  changes.Status.Reason,
	}
	for name, d := range changes.Devices {
		claims.Changed[name] = Of(o.policy, d)
	}
	return claims
}

// Of says what a device of NetworkManager is to the routing side. It asks as
// if the device had been a link; whether it was, the loop knows.
func Of(p nm.Policy, d nm.Device) reconcile.Claim {
	verdict, why := p.Classify(d, true)
	c := reconcile.Claim{
		Why: why, Profile: d.ProfileID, Intents: d.Intents, Tables: d.RouteTables, Problems: d.Problems,
		// A managed device can become a link at any moment.
		Watched: verdict != nm.NotLink || (d.Managed && !d.External && d.Controller == ""),
	}
	switch verdict {
	case nm.Link:
		c.Standing = reconcile.Link
		c.Pending = d.State < gnm.NmDeviceStateActivated
	case nm.Draining:
		c.Standing = reconcile.Draining
	case nm.NotLink:
		c.Standing = reconcile.NoLink
	}
	return c
}
