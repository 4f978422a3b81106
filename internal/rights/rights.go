// Package rights says what this process may do.
package rights

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// NetAdmin reports whether this process may change routing: it has CAP_NET_ADMIN
// (capabilities(7)).
func NetAdmin() (bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false, fmt.Errorf("reading the rights of this process: %w", err)
	}
	return data[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0, nil
}
