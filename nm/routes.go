package nm

import (
	"net/netip"
	"slices"

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

// RouteData is one route as NetworkManager shows or stores it.
type RouteData struct {
	Destination netip.Prefix
	// NextHop is zero for a route on the link.
	NextHop netip.Addr
	// Metric is 32 bits wide; gonetworkmanager v2.2.0 reads 8 of them, so that
	// 600 became 88.
	Metric uint32
	// Table is main if NetworkManager does not name one.
	Table routing.TableID
}
