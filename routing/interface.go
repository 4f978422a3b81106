package routing

import (
	"fmt"
	"net/netip"
	"strings"
)

// MaxInterfaceName is how many bytes the name of an interface has at most (IFNAMSIZ of
// linux/if.h without the terminating NUL).
const MaxInterfaceName = 15

// CheckInterfaceName refuses what cannot be the name of an interface (dev_valid_name in
// net/core/dev.c of the kernel). The kernel takes bytes that are no UTF-8, and so does this.
func CheckInterfaceName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
	case len(name) > MaxInterfaceName:
	case strings.ContainsAny(name, "/:\x00 \t\n\v\f\r"):
	default:
		return nil
	}
	if len(name) > 4*MaxInterfaceName {
		name = name[:4*MaxInterfaceName] + "..."
	}
	return fmt.Errorf("%q is not the name of an interface, which is 1 to %d bytes without `/`, `:` and white space", name, MaxInterfaceName)
}

// IsHostAddress reports whether an address can be that of a host on a network: no group, no
// broadcast, not the loopback and not "any" (RFC 6890).
func IsHostAddress(a netip.Addr) bool {
	bare := a.WithZone("").Unmap()
	return a.IsValid() && !bare.IsUnspecified() && !bare.IsLoopback() && !bare.IsMulticast() && bare != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}
