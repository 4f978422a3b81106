// Package owners turns what NetworkManager says of its devices into what the
// routing side asks of the owners of links.
package owners

import (
	gnm "github.com/Wifx/gonetworkmanager/v2"

	"multihomed/nm"
	"multihomed/routing/reconcile"
)

// Of says what a device of NetworkManager is to the routing side. It asks as
// if the device had been a link; whether it was, the loop knows.
func Of(p nm.Policy, d nm.Device) reconcile.Claim {
	verdict, why := p.Classify(d, true)
	c := reconcile.Claim{
		Identity: d.ID, Why: why, Profile: d.ProfileID, UUID: d.ProfileUUID, Intents: d.Intents, Tables: d.RouteTables, Problems: d.Problems,
		Type: nm.TypeName(d.Type),
		// A managed device can become a link at any moment. Of one that was let go the
		// loop knows whether it was a link.
		Watched: verdict == nm.Link || (d.Managed && !d.External && d.Controller == ""),
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
