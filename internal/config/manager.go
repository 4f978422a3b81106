package config

import (
	"os"
	"slices"

	"multihomed/internal/unitfile"
)

// Expected reports whether this host has a NetworkManager that runs or may start, by the
// configuration, or else by its program and its unit.
func (p Presence) Expected() bool {
	return p.installed("/usr/sbin/NetworkManager", "/usr/bin/NetworkManager", "/usr/local/sbin/NetworkManager") &&
		p.Unwanted() == ""
}

// Unwanted is "disabled" or "masked" if that is the state of NetworkManager's unit, and empty
// otherwise, or if the configuration decides.
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
			// An unreadable path may exist.
			return err == nil && info.Mode().IsRegular() || err != nil && !os.IsNotExist(err)
		})
	}
}
