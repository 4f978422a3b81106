package dispatcher

import (
	"errors"
	"net/netip"
)

// MaxDelegated bounds the delegated prefixes of one configuration.
const MaxDelegated = 64

// Lengths of the widest networks that are believed to be delegated to one host. A
// registry gives a whole provider an IPv6 /32 and hardly anybody an IPv4 /8; what is
// wider would make nearly every address one of this link.
const (
	widest4 = 8
	widest6 = 16
)

// CheckDelegated refuses what cannot be a network that is delegated to a host: one
// with host bits, one of the link or of the host itself, and one so wide that it
// would take in the addresses of others.
func CheckDelegated(p netip.Prefix) error {
	a := p.Addr()
	switch {
	case !p.IsValid() || a.Is4In6() || a.Zone() != "":
		return errors.New("not a network")
	case p != p.Masked():
		return errors.New("it has host bits")
	case a.Is4() && p.Bits() < widest4, a.Is6() && p.Bits() < widest6:
		return errors.New("too wide to be delegated to a host")
	case a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast():
		return errors.New("not a network that can be delegated")
	}
	return nil
}
