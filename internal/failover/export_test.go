package failover

import (
	"multihomed/internal/config"
	"multihomed/internal/health"
)

// TargetsOf is targetsOf without how they are asked.
func TargetsOf(cfg config.Failover, u *Uplink, all []Uplink) []health.Target {
	targets, _ := targetsOf(cfg, u, all)
	return targets
}

// WithCarriers sets which interfaces run.
func (f Facts) WithCarriers(runs map[int]bool) Facts {
	f.carriers = runs
	return f
}
