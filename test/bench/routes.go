package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/test/lab"
)

// A RoutesRow is what routes of main through one link cost.
type RoutesRow struct {
	Routes int `json:"routes"`
	// Copies is how many of them the link's table has.
	Copies int `json:"copies"`
	// Appear is the daemon's CPU time for all that were added, in seconds.
	Appear float64 `json:"appear_cpu_s"`
	// Route is the daemon's CPU time for one route that gets another next hop,
	// RouteWall how long it took, and RouteEvent the CPU time of the kernel
	// for the request to main itself.
	Route      Series `json:"route_cpu"`
	RouteWall  Series `json:"route"`
	RouteEvent Series `json:"route_event_cpu"`
	// Address is the daemon's CPU time for one more address of the link.
	Address     Series `json:"address_cpu"`
	AddressWall Series `json:"address"`
	// Memory is what the daemon holds, Restarted what a daemon holds that was
	// started among them. The two per route are beyond what it held with none.
	Memory          Memory  `json:"memory"`
	Restarted       Memory  `json:"restarted"`
	PerRoute        float64 `json:"kb_per_route"`
	PerRouteStarted float64 `json:"kb_per_route_restarted"`
}

// Redundant is what routes of a routing daemon cost that say what the link's
// default says.
type Redundant struct {
	Routes    int    `json:"routes"`
	Copies    int    `json:"copies"`
	Before    Memory `json:"before"`
	After     Memory `json:"after"`
	Restarted Memory `json:"restarted"`
}

// throughLink measures routes of main through a link of two.
func (b *bench) throughLink(ctx context.Context, report *Report) error {
	return b.withFakeOwner(ctx, func() error {
		if err := b.grow(ctx, 2); err != nil {
			return err
		}
		if _, _, err := b.start(ctx); err != nil {
			return err
		}
		if _, err := b.settled(ctx, func(events []event) error { return whole(2, events) }); err != nil {
			return err
		}
		l := b.links[1]
		none, err := b.held(ctx)
		if err != nil {
			return err
		}
		have := 0
		for _, n := range b.routes {
			b.progress("%d routes through a link", n)
			row, err := b.routesThrough(ctx, l, have, n)
			if err != nil {
				return fmt.Errorf("with %d routes through a link: %w", n, err)
			}
			row.PerRoute = perObject(none, row.Memory, n)
			row.PerRouteStarted = perObject(none, row.Restarted, n)
			report.Routes = append(report.Routes, row)
			have = n
		}
		return b.stop(ctx)
	})
}

// redundant measures routes of a routing daemon through the gateway of a link.
func (b *bench) redundant(ctx context.Context, report *Report) error {
	return b.withFakeOwner(ctx, func() error {
		if err := b.grow(ctx, 2); err != nil {
			return err
		}
		b.progress("%d routes of protocol %d that repeat the default", b.bgp, protocolBGP)
		if _, _, err := b.start(ctx); err != nil {
			return err
		}
		if _, err := b.settled(ctx, func(events []event) error { return whole(2, events) }); err != nil {
			return err
		}
		r := &Redundant{Routes: b.bgp}
		var err error
		if r.Before, err = b.held(ctx); err != nil {
			return err
		}
		l := b.links[0]
		b.watch.reset()
		if err := b.addRoutes(0, b.bgp, route{via: l.gateway, index: l.index, metric: 20, protocol: protocolBGP}); err != nil {
			return err
		}
		events, err := b.settled(ctx, nothing)
		if err != nil {
			return err
		}
		r.Copies = len(standing(events))
		if r.After, err = b.held(ctx); err != nil {
			return err
		}
		if r.Restarted, err = b.restarted(ctx); err != nil {
			return err
		}
		report.Redundant = r
		return b.stop(ctx)
	})
}

// withFakeOwner runs do on a new host: what is measured is the daemon, and the
// real NetworkManager reads every route as well.
func (b *bench) withFakeOwner(ctx context.Context, do func() error) error {
	return b.inLab(ctx, lab.HostConfig{NoBus: true}, func() (owner, error) { return newFakeOwner(b.host) }, do)
}

// routesThrough adds routes through a link until there are n and measures.
func (b *bench) routesThrough(ctx context.Context, l link, have, n int) (RoutesRow, error) {
	row := RoutesRow{Routes: n}
	via := func(host byte) netip.Addr { a := l.gateway.As4(); a[3] = host; return netip.AddrFrom4(a) }
	model := route{via: via(2), index: l.index, metric: 20, protocol: unix.RTPROT_STATIC}
	daemon := clockOf(b.daemon.Pid())
	before, err := daemon.read()
	if err != nil {
		return row, err
	}
	b.watch.reset()
	if err := b.addRoutes(have, n, model); err != nil {
		return row, err
	}
	events, err := b.settled(ctx, func(events []event) error {
		if copies := len(standing(events)); copies < n-have {
			return fmt.Errorf("%d routes of %d are in the table", copies, n-have)
		}
		return nil
	})
	if err != nil {
		return row, err
	}
	after, err := daemon.read()
	if err != nil {
		return row, err
	}
	row.Copies, row.Appear = have+len(standing(events)), (after - before).Seconds()
	if row.Memory, err = b.held(ctx); err != nil {
		return row, err
	}
	if row.Restarted, err = b.restarted(ctx); err != nil {
		return row, err
	}

	var route, routeWall, routeEvent, address, addressWall []time.Duration
	for i := range b.runs {
		// Another one each time, all over the table, and a next hop that it never had.
		const first, hops = 3, 90
		b.hop = (b.hop + 1) % hops
		model.dst, model.via = routeAt(i*n/b.runs), via(byte(first+b.hop))
		change := message{kind: unix.RTM_NEWROUTE, flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, payload: model.payload()}
		t, err := b.daemonDoes(ctx, change, func(events []event) error {
			for _, e := range events {
				if e.kind == unix.RTM_NEWROUTE && bytes.Contains(e.payload, model.via.AsSlice()) {
					return nil
				}
			}
			return fmt.Errorf("the route by %v is not in the table", model.via)
		})
		if err != nil {
			return row, err
		}
		route, routeWall, routeEvent = append(route, t.cpu), append(routeWall, t.wall), append(routeEvent, t.event)
		extra := addressPayload(l.index, netip.PrefixFrom(via(byte(100+i%100)), l.address.Bits()))
		t, err = b.daemonDoes(ctx, message{kind: unix.RTM_NEWADDR, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, payload: extra}, rules(unix.RTM_NEWRULE, perSource))
		if err != nil {
			return row, err
		}
		address, addressWall = append(address, t.cpu), append(addressWall, t.wall)
		if _, err := b.daemonDoes(ctx, message{kind: unix.RTM_DELADDR, payload: extra}, rules(unix.RTM_DELRULE, perSource)); err != nil {
			return row, err
		}
	}
	row.Route, row.RouteWall, row.RouteEvent = series(route), series(routeWall), series(routeEvent)
	row.Address, row.AddressWall = series(address), series(addressWall)
	return row, nil
}

// perSource is how many rules of an uplink are made per address: 9020, 10000 and
// 10500.
const perSource = 3

// rules is a condition: so many rules were announced.
func rules(kind uint16, n int) func([]event) error {
	return func(events []event) error {
		have := 0
		for _, e := range events {
			if e.kind == kind {
				have++
			}
		}
		if have < n {
			return fmt.Errorf("%d announcements of rules instead of %d", have, n)
		}
		return nil
	}
}

// daemonDoes sends a request and measures what the daemon does about it.
func (b *bench) daemonDoes(ctx context.Context, m message, enough func([]event) error) (trial, error) {
	daemon := clockOf(b.daemon.Pid())
	before, err := daemon.read()
	if err != nil {
		return trial{}, err
	}
	own, err := thisThread.read()
	if err != nil {
		return trial{}, err
	}
	b.watch.reset()
	begin := time.Now()
	if err := b.send.batched([]message{m}); err != nil {
		return trial{}, err
	}
	event, err := thisThread.read()
	if err != nil {
		return trial{}, err
	}
	events, err := b.settled(ctx, enough)
	if err != nil {
		return trial{}, err
	}
	after, err := daemon.read()
	return trial{wall: last(events).Sub(begin), cpu: after - before, event: event - own}, err
}

// routeAt is the destination of a route through a link.
func routeAt(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(20 + n>>16), byte(n >> 8), byte(n), 0}), 24)
}

// addRoutes adds routes like a model to main.
func (b *bench) addRoutes(from, to int, model route) error {
	messages := make([]message, 0, to-from)
	for n := from; n < to; n++ {
		model.dst = routeAt(n)
		messages = append(messages, message{
			kind: unix.RTM_NEWROUTE, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, payload: model.payload(),
		})
	}
	if err := b.send.batched(messages); err != nil {
		return fmt.Errorf("adding routes: %w", err)
	}
	return nil
}

// held is what the daemon holds after a rest.
func (b *bench) held(ctx context.Context) (Memory, error) {
	if err := pause(ctx, rest); err != nil {
		return Memory{}, err
	}
	return memoryOf(b.daemon.Pid())
}

// restarted starts the daemon again and returns what it holds.
func (b *bench) restarted(ctx context.Context) (Memory, error) {
	if err := b.stop(ctx); err != nil {
		return Memory{}, err
	}
	if _, _, err := b.start(ctx); err != nil {
		return Memory{}, err
	}
	if _, err := b.settled(ctx, nothing); err != nil {
		return Memory{}, err
	}
	return b.held(ctx)
}

// perObject is the memory in KB for each of n objects, 0 for few: memory comes
// in pages.
func perObject(none, m Memory, n int) float64 {
	const enough = 100
	if n < enough {
		return 0
	}
	return (m.RSS - none.RSS) * 1024 / float64(n)
}

func printRoutes(out io.Writer, rows []RoutesRow, r *Redundant) {
	if len(rows) > 0 {
		table(out, "Static routes of main through one link of two by a next hop; the event is the request to main itself",
			"routes\tin the table\tone changed: CPU\tevent CPU\tCPU/event\tuntil it stands\tone more address: CPU\tuntil its rules stand\tall appear: CPU us each\tRSS MB\tKB a route\trestarted MB\tKB a route",
			func(line func(...any)) {
				for _, w := range rows {
					line(w.Routes, w.Copies, w.Route, w.RouteEvent, times(w.Route.Median, w.RouteEvent.Median), w.RouteWall, w.Address, w.AddressWall,
						fmt.Sprintf("%.1f", w.Appear*1e6/float64(max(w.Routes, 1))), mb(w.Memory.RSS), perRoute(w.PerRoute), mb(w.Restarted.RSS), perRoute(w.PerRouteStarted))
				}
			})
	}
	if r != nil {
		table(out, fmt.Sprintf("%d routes of protocol %d through a link that repeat its default", r.Routes, protocolBGP),
			"in the table\tRSS MB before\tafter\trestarted among them", func(line func(...any)) {
				line(r.Copies, mb(r.Before.RSS), mb(r.After.RSS), mb(r.Restarted.RSS))
			})
	}
}

func perRoute(v float64) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", v)
}
