package holding

import (
	"net/netip"
	"slices"
	"strings"

	"multihomed/internal/binder/wire"
	"multihomed/internal/fsutil"
)

// Choose picks what the programs need of the servers of a link and the resolvers of the host. It is
// the zero DNS for a link without a server.
func Choose(servers, resolvers []netip.Addr) (d wire.DNS) {
	for _, s := range servers {
		switch {
		case !usable(s):
		case s.Is4() && !d.Server4.IsValid():
			d.Server4 = s
		case s.Is6() && !d.Server6.IsValid():
			d.Server6 = s
		}
	}
	for _, r := range resolvers {
		r = r.Unmap().WithZone("")
		// Queries to the loopback go to the link's server anyway.
		if r.IsValid() && !r.IsLoopback() && !r.IsUnspecified() && !slices.Contains(servers, r) && !slices.Contains(d.Resolvers, r) && len(d.Resolvers) < wire.MaxResolvers {
			d.Resolvers = append(d.Resolvers, r)
		}
	}
	return d
}

// usable reports whether a program at connect(2) can send a query to a server: it cannot set the interface that an address of
// the link itself needs, and knows IPv6 addresses by their first bits.
func usable(a netip.Addr) bool {
	b := a.As16()
	return a.IsGlobalUnicast() && a.Zone() == "" && !a.Is4In6() && (a.Is4() || [4]byte(b[:]) != [4]byte{})
}

// ResolvConf is the file of the host's resolvers.
const ResolvConf = "/etc/resolv.conf"

// largestResolvConf bounds what is read of it, in bytes.
const largestResolvConf = 64 << 10

// ReadResolvers returns the resolvers of a resolv.conf(5).
func ReadResolvers(path string) ([]netip.Addr, error) {
	text, err := fsutil.ReadFile(path, largestResolvConf)
	if err != nil {
		return nil, err
	}
	return parseResolvers(string(text)), nil
}

func parseResolvers(text string) (out []netip.Addr) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(words[1]); err == nil && len(out) < wire.MaxResolvers {
			out = append(out, a)
		}
	}
	return out
}
