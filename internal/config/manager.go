package config

import (
	"os"
	"slices"

	"multihomed/internal/unitfile"
)

// Expected reports whether this host has a NetworkManager that may come, running or
// not: as the configuration says, or by its program and its unit.
func (p Presence) Expected() bool {
	return p.installed("/usr/sbin/NetworkManager", "/usr/bin/NetworkManager", "/usr/local/sbin/NetworkManager") &&
		p.Unwanted() == ""
}

// Unwanted says how the administrator keeps a NetworkManager from running that is
// installed ("disabled", "masked"), empty if he does not or the configuration knows better.
func (p Presence) Unwanted() string {
	unit := unitfile.Read(os.DirFS("/"), "NetworkManager.service")
	if p != Auto || !unit.Unwanted() {
		return ""
	}
	return unit.String()
}

func (p Presence) installed(programs ...string) bool {
	switch p {
	case Yes:
		return true
	case No:
		return false
	default:
		return slices.ContainsFunc(programs, func(path string) bool {
			info, err := os.Stat(path)
			// What cannot be looked at may be there.
			return err == nil && info.Mode().IsRegular() || err != nil && !os.IsNotExist(err)
		})
	}
}
