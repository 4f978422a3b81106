package failover

import (
	"maps"

	"multihomed/routing"
)

// An UplinkName is an uplink in one family, by the name of its interface: it is the same one when the
// interface comes back.
type UplinkName struct {
	Name   string
	Family routing.Family
}

// mostCounted bounds of how many the deaths are counted: interfaces may come and go under new names
// for ever.
const mostCounted = 4096

// Deaths returns how often uplinks were judged dead by this process, also under the
// configurations before this one.
func (c *Controller) Deaths() map[UplinkName]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.deaths)
}

// countDeath counts the death of an uplink. The caller holds mu.
func (c *Controller) countDeath(w *watch) {
	m := UplinkName{w.uplink.Name, w.family}
	if _, known := c.deaths[m]; known || len(c.deaths) < mostCounted {
		c.deaths[m]++
	}
}
