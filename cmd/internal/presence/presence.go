// Package presence finds out what this host has.
package presence

import (
	"os"
	"slices"

	"multihomed/cmd/internal/config"
)

// NetworkManager reports whether this host has a NetworkManager, running or not,
// as the configuration says or by its program.
func NetworkManager(configured config.Presence) bool {
	return networkManager(configured, "/usr/sbin/NetworkManager", "/usr/bin/NetworkManager", "/usr/local/sbin/NetworkManager")
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
