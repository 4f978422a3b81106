package daemon

import (
	"os"

	"multihomed/cmd/internal/config"
	"multihomed/internal/offswitch"
	"multihomed/internal/unitfile"
)

// KeptAway says why nobody may do the daemon's work while it does not run; empty if
// somebody may: multihomed is switched off, or the administrator keeps the service from
// running. A service that is merely stopped, or failed, is stood in for.
func KeptAway(cfg config.Config) (why string) {
	if off := offswitch.Load(cfg.Switch()); off.HostOff() {
		return "multihomed is " + off.Why()
	}
	if unit := unitfile.Read(os.DirFS("/"), unitfile.Service); unit.Unwanted() {
		return unitfile.Service + " is " + unit.String()
	}
	return ""
}
