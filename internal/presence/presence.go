// Package presence finds out what this host has.
package presence

import (
	"os"
	"slices"

	"multihomed/internal/config"
	"multihomed/internal/unitfile"
)

// NetworkManager reports whether this host has a NetworkManager that may come, running or
// not: as the configuration says, or by its program and its unit.
func NetworkManager(configured config.Presence) bool {
	return networkManager(configured, "/usr/sbin/NetworkManager", "/usr/bin/NetworkManager", "/usr/local/sbin/NetworkManager") &&
		Unwanted(configured) == ""
}

// Unwanted says how the administrator keeps a NetworkManager from running that is
// installed ("disabled", "masked"), empty if he does not or the configuration knows better.
func Unwanted(configured config.Presence) string {
	unit := unitfile.Read(os.DirFS("/"), "NetworkManager.service")
	if configured != config.Auto || !unit.Unwanted() {
		return ""
	}
	return unit.String()
}

func networkManager(configured config.Presence, programs ...string) bool {
	switch configured {
	case config.Yes:
		return true
	case config.No:
		return false
	default:
		return slices.ContainsFunc(programs, func(path string) bool {
			info, err := os.Stat(path)
			// What cannot be looked at may be there.
			return err == nil && info.Mode().IsRegular() || err != nil && !os.IsNotExist(err)
		})
	}
}
