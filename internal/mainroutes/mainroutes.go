// Package mainroutes moves routes of ifupdown's links out of main, if the administrator wants
// that, and puts them back. It stores moved routes as one more configuration of the
// interface, so that any later process keeps them in the link's table.
package mainroutes

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/hookstate"
	"multihomed/routing"
	"multihomed/routing/kernel"
)

// Take stores the routes, and only then deletes them from main. Configs are all those of the
// link. It returns the routes that it deleted.
func Take(ctx context.Context, mirror *kernel.Mirror, runtime string, link routing.Link, f routing.Family, routes []routing.Route, configs []hookstate.Config) ([]routing.Route, error) {
	note := hookstate.Config{Interface: link.Name, Index: link.Index, Caller: hookstate.Mover, Family: f, Since: time.Now()}
	for _, c := range configs {
		if c.Caller != hookstate.Mover || c.Family != f {
			continue
		}
		note.Since = c.Since
		for _, before := range c.Routes {
			if !slices.ContainsFunc(routes, func(r routing.Route) bool { return r.Destination == before.Destination && r.Metric == before.Metric }) {
				note.Routes = append(note.Routes, before)
			}
		}
	}
	for _, r := range routes {
		source := r.PreferredSource
		if f == routing.IPv6 {
			source = netip.Addr{} // For IPv6 it does not tell the network of a route.
		}
		note.Routes = append(note.Routes, hookstate.Route{Destination: r.Destination, Gateway: r.Gateway, Source: source, Metric: r.Metric, Main: hookstate.MainOf(r)})
	}
	if err := hookstate.Put(runtime, note); err != nil {
		return nil, err
	}
	var out []routing.Route
	errs := kernel.MainTableOf(mirror).Take(ctx, routes)
	for i, r := range routes {
		if errs == nil || errs[i] == nil {
			out = append(out, r)
		}
	}
	return out, errors.Join(errs...)
}

// PutBack adds the routes of a configuration to main, and removes the configuration. If main
// cannot hold two of them side by side the first one stays, as when ifupdown brings up the
// second.
func PutBack(ctx context.Context, mirror *kernel.Mirror, runtime string, c hookstate.Config) error {
	known := c.Known()
	routes := make([]routing.Route, 0, len(known))
	for i, r := range known {
		r.Table, r.Device, r.Protocol, r.Metric = routing.TableMain, c.Index, unix.RTPROT_BOOT, c.Routes[i].Metric
		if was := c.Routes[i].Main; was == (hookstate.Main{}) {
			r.OnLink = r.Gateway.IsValid()
		} else {
			was.Restore(&r)
		}
		routes = append(routes, r)
	}
	// Networks come before the routers that are in them.
	slices.SortStableFunc(routes, func(a, b routing.Route) int { return b.Destination.Bits() - a.Destination.Bits() })
	var errs []error
	for i, err := range kernel.MainTableOf(mirror).Put(ctx, routes) {
		if errors.Is(err, unix.ENETUNREACH) && routes[i].Gateway.IsValid() && !routes[i].OnLink {
			// The network of the router has gone. The host must keep its way out.
			routes[i].OnLink = true
			err = errors.Join(kernel.MainTableOf(mirror).Put(ctx, routes[i:i+1])...)
		}
		if err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return hookstate.Remove(runtime, c.Interface, func(o hookstate.Config) bool { return hookstate.Compare(o, c) == 0 })
}
