package nm

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	gnm "github.com/Wifx/gonetworkmanager/v2"
	"github.com/godbus/dbus/v5"

	"multihomed/internal/dnsname"
	"multihomed/routing"
)

// DNS is what one family of a device's IP configuration says of name
// resolution.
type DNS struct {
	// Servers are in NetworkManager's order. A link-local one has no zone: it is
	// on the device.
	Servers []netip.Addr
	// Domains are those of the configuration and those to search, sorted, in
	// lower case and without a final dot. "~corp", which NetworkManager uses for
	// routing queries and not for completing names, is "corp"; "~." is every
	// name, and none of them.
	Domains []string
}

func (d DNS) equal(o DNS) bool {
	return slices.Equal(d.Servers, o.Servers) && slices.Equal(d.Domains, o.Domains)
}

func (d DNS) empty() bool { return len(d.Servers) == 0 && len(d.Domains) == 0 }

// A resolution is DNS as the properties bring it.
type resolution struct {
	servers           []netip.Addr
	domains, searches []string
}

// dnsProperties are the properties of IP configurations that updateDNS reads.
func dnsProperties() []string {
	return []string{"Domains", "Searches", "NameserverData", "Nameservers"}
}

// updateDNS takes the properties of name resolution and reports whether there
// were any.
func (c *config) updateDNS(p properties) bool {
	domains := decodeList(c, p, "Domains", &c.resolution.domains, domain)
	searches := decodeList(c, p, "Searches", &c.resolution.searches, domain)
	// IP6Config has no NameserverData, and IP4Config's Nameservers are numbers.
	if c.family == routing.IPv4 {
		return decodeList(c, p, "NameserverData", &c.resolution.servers, serverData) || domains || searches
	}
	return decodeList(c, p, "Nameservers", &c.resolution.servers, server6) || domains || searches
}

// decodeList stores the entries of a property that can be understood, each
// once; the others are noted. A zero value without an error is left out.
func decodeList[E any, T comparable](c *config, p properties, name string, into *[]T, decode func(E) (T, error)) bool {
	if _, ok := p[name]; !ok {
		return false
	}
	delete(c.notes, name)
	var entries []E
	get(p, name, false, &entries, c.notes)
	if c.notes[name] != "" {
		return true
	}
	var (
		none T
		all  []T
		errs []error
	)
	for i, e := range entries {
		v, err := decode(e)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("entry %d: %w", i+1, err))
		case v != none && !slices.Contains(all, v):
			all = append(all, v)
		}
	}
	*into = all
	c.report(name, errs)
	return true
}

// serverData reads an entry of IP4Config's NameserverData.
func serverData(e map[string]dbus.Variant) (netip.Addr, error) {
	address, n := "", notebook{}
	get(e, "address", true, &address, n)
	if problem, bad := n["address"]; bad {
		return netip.Addr{}, errors.New(problem)
	}
	return parseAddress(routing.IPv4, address)
}

// server6 reads an entry of IP6Config's Nameservers.
func server6(b []byte) (netip.Addr, error) {
	if len(b) != 16 {
		return netip.Addr{}, fmt.Errorf("an address of %d bytes, expected 16", len(b))
	}
	return parseAddress(routing.IPv6, netip.AddrFrom16([16]byte(b)).String())
}

// domain reads a domain; it is empty for every name.
func domain(s string) (string, error) {
	if s == "." || s == "~." {
		return "", nil
	}
	return dnsname.Parse(strings.TrimPrefix(s, "~"))
}

func (r resolution) dns() DNS {
	domains := slices.Concat(r.domains, r.searches)
	slices.Sort(domains)
	return DNS{Servers: r.servers, Domains: slices.Compact(domains)}
}

// dnsOf returns what the configuration objects of a device say of name
// resolution. NetworkManager empties them with the activation, and after its
// own restart they are empty until it has brought the device up again: until
// then what was known is kept.
func (t *tree) dnsOf(d *device, state gnm.NmDeviceState, kept map[routing.Family]DNS) map[routing.Family]DNS {
	certain := state == gnm.NmDeviceStateActivated && !t.startup
	var all map[routing.Family]DNS
	for f, path := range d.configs() {
		var now DNS
		c := t.configOf(f, path)
		if c != nil {
			now = c.resolution.dns()
		}
		if now.empty() && (!certain || (c == nil && isPath(path))) {
			now = kept[f]
		}
		if now.empty() {
			continue
		}
		if all == nil {
			all = map[routing.Family]DNS{}
		}
		all[f] = now
	}
	return all
}
