package nm

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/godbus/dbus/v5"

	"multihomed/routing"
)

// A View is NetworkManager's picture of one family of a device's IP
// configuration.
type View struct {
	Gateway   netip.Addr
	Addresses []netip.Prefix
	Routes    []RouteData
}

func (v View) equal(o View) bool {
	return v.Gateway == o.Gateway && slices.Equal(v.Addresses, o.Addresses) && slices.Equal(v.Routes, o.Routes)
}

// RouteData is one route as NetworkManager shows it (property RouteData) or
// stores it (key route-data of a profile).
type RouteData struct {
	Destination netip.Prefix
	// NextHop is zero for a route on the link.
	NextHop netip.Addr
	// Metric is 32 bits wide; gonetworkmanager v2.2.0 reads 8 of them, so that
	// 600 becomes 88. A profile's route without one has zero.
	Metric uint32
	// Table is zero if NetworkManager does not name one: main, or the one that
	// the profile sets for all its routes.
	Table routing.TableID
	// Type is the kind of a profile's route ("blackhole"); empty for unicast.
	Type string
}

// DecodeRouteData reads a value of type aa{sv}. What cannot be understood is
// left out and reported; the rest is returned.
func DecodeRouteData(f routing.Family, value any) ([]RouteData, []error) {
	entries, ok := value.([]map[string]dbus.Variant)
	if !ok {
		return nil, []error{fmt.Errorf("routes are a %T, expected a list of dictionaries", value)}
	}
	var (
		routes []RouteData
		errs   []error
	)
	for i, e := range entries {
		r, err := decodeRoute(f, e)
		if err != nil {
			errs = append(errs, fmt.Errorf("route %d: %w", i+1, err))
			continue
		}
		routes = append(routes, r)
	}
	return routes, errs
}

func decodeRoute(f routing.Family, e properties) (RouteData, error) {
	var r RouteData
	p, err := decodePrefix(f, e, "dest")
	if err != nil {
		return r, err
	}
	r.Destination = p.Masked()
	n := notebook{}
	nextHop := ""
	get(e, "next-hop", false, &nextHop, n)
	get(e, "metric", false, &r.Metric, n)
	getNumber(e, "table", false, &r.Table, n)
	get(e, "type", false, &r.Type, n)
	if r.Type == "unicast" {
		r.Type = ""
	}
	for _, key := range []string{"next-hop", "metric", "table", "type"} {
		if problem, bad := n[key]; bad {
			return r, fmt.Errorf("%s", problem)
		}
	}
	// A profile may say "0.0.0.0" for a route on the link.
	if a, err := netip.ParseAddr(nextHop); nextHop == "" || (err == nil && a.IsUnspecified()) {
		return r, nil
	}
	if r.NextHop, err = parseAddress(f, nextHop); err != nil {
		return r, fmt.Errorf("next-hop: %w", err)
	}
	return r, nil
}

// DecodeAddressData reads a value of type aa{sv} (property AddressData): the
// addresses with the length of their network.
func DecodeAddressData(f routing.Family, value any) ([]netip.Prefix, []error) {
	entries, ok := value.([]map[string]dbus.Variant)
	if !ok {
		return nil, []error{fmt.Errorf("addresses are a %T, expected a list of dictionaries", value)}
	}
	var (
		prefixes []netip.Prefix
		errs     []error
	)
	for i, e := range entries {
		p, err := decodePrefix(f, e, "address")
		if err != nil {
			errs = append(errs, fmt.Errorf("address %d: %w", i+1, err))
			continue
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, errs
}

// decodePrefix joins an address under the key and the length under "prefix".
func decodePrefix(f routing.Family, e properties, key string) (netip.Prefix, error) {
	var (
		address string
		bits    uint32
	)
	n := notebook{}
	get(e, key, true, &address, n)
	get(e, "prefix", true, &bits, n)
	for _, k := range []string{key, "prefix"} {
		if problem, bad := n[k]; bad {
			return netip.Prefix{}, fmt.Errorf("%s", problem)
		}
	}
	a, err := netip.ParseAddr(address)
	if err != nil || a.Zone() != "" || a.Is4In6() || routing.FamilyOf(a) != f {
		return netip.Prefix{}, fmt.Errorf("%s: %q is no %s address", key, address, f)
	}
	if int64(bits) > int64(f.Bits()) {
		return netip.Prefix{}, fmt.Errorf("prefix: %d is longer than %d", bits, f.Bits())
	}
	return netip.PrefixFrom(a, int(bits)), nil
}
