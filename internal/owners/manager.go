package owners

import (
	gnm "github.com/Wifx/gonetworkmanager/v2"

	"multihomed/nm"
	"multihomed/routing/reconcile"
)

// A Manager is NetworkManager, followed by a [nm.Watcher] or [Asked] once.
type Manager interface {
	// Changed holds a value when TakeChanges has changes.
	Changed() <-chan struct{}
	// TakeChanges returns what changed since the last call.
	TakeChanges() nm.Changes
	// Recheck asks for an interface's profile to be read again.
	Recheck(name string)
}

// Asked returns a Manager with the content of one snapshot, which never changes.
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

// Of is the claim of NetworkManager on a device. It judges as if the device had been a link;
// the loop knows whether it was.
func Of(p nm.Policy, d nm.Device) reconcile.Claim {
	verdict, why := p.Classify(d, true)
	c := reconcile.Claim{
		Identity: d.ID, Why: why, Profile: d.ProfileID, UUID: d.ProfileUUID, Intents: d.Intents, Tables: d.RouteTables, Problems: d.Problems,
		Type: nm.TypeName(d.Type),
		// A managed device can become a link at any moment. For a released one the loop
		// knows whether it was a link.
		Watched: verdict == nm.Link || (d.Managed && !d.External && d.Controller == ""),
	}
	if d.Active() {
		c.BoundTo = d.Bound
	}
	switch verdict {
	case nm.Link:
		c.Standing = reconcile.Link
		c.Pending = d.State < gnm.NmDeviceStateActivated
	case nm.Draining:
		// Of a device that was just found active, the profile comes a moment later.
		c.Standing, c.Settling = reconcile.Draining, d.Settling || d.Active() && !d.ProfileKnown && !d.Denied
	case nm.NotLink:
		c.Standing = reconcile.NoLink
	}
	return c
}
