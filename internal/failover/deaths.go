package failover

import (
	"maps"

	"multihomed/routing"
)

// A Mortal is an uplink in one family, by the name of its interface: it is the same one when the
// interface comes back.
type Mortal struct {
	Name   string
	Family routing.Family
}

// mostMortals bounds of how many the deaths are counted: interfaces may come and go under new names
// for ever.
const mostMortals = 4096

// Deaths returns how often uplinks were judged dead by this process, also under the
// configurations before this one.
func (c *Controller) Deaths() map[Mortal]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.deaths)
}

// countDeath counts the death of an uplink. The caller holds mu.
func (c *Controller) countDeath(w *watch) {
	m := Mortal{w.uplink.Name, w.family}
	if _, known := c.deaths[m]; known || len(c.deaths) < mostMortals {
		c.deaths[m]++
	}
}
