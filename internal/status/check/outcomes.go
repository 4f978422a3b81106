package check

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multihomed/internal/status"
	"multihomed/internal/status/outcome"
	"multihomed/internal/status/view"
	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/lookup"
	"multihomed/routing/reconcile"
)

// A Outcomes finds out whether traffic of links leaves by them. It keeps what it found, and
// looks anew only at links that changed, unless something changed that is common to all.
type Outcomes struct {
	reader *kernel.Reader
	handle *netlink.Handle
	// moves and asked say what tables were read when.
	moves   uint64
	asked   map[routing.Family][]routing.TableID
	tables  map[routing.Family]map[routing.TableID][]routing.Route
	partial map[routing.Family]map[routing.TableID]bool

	environment outcome.Environment
	known       map[int]verdict
}

// A verdict is what was found of a link as it was.
type verdict struct {
	of *reconcile.Interface
	// routers is [outcome.Judge.Routers].
	routers string
	strays  []outcome.Stray
}

// NewOutcomes returns one that knows nothing.
func NewOutcomes() *Outcomes { return &Outcomes{known: map[int]verdict{}} }

// Close closes its sockets.
func (c *Outcomes) Close() {
	if c.reader != nil {
		_ = c.reader.Close() // It was only read from.
	}
	if c.handle != nil {
		c.handle.Close()
	}
}

// mostRoutes is how many routes of a table are read; what comes of larger ones is asked of
// the kernel.
const mostRoutes = 20_000

// Check says where bound traffic goes, for at most so many links that have to be looked at,
// or only for some; the rest is counted. It costs nothing for what has not changed.
func (c *Outcomes) Check(ctx context.Context, v *view.View, only []string, most int) error {
	if err := c.read(ctx, v); err != nil {
		return err
	}
	interfaces := interfacesOf(v)
	var rules []routing.Rule
	for _, f := range routing.Families() {
		for _, o := range v.Planner.Foreign(f) {
			rules = append(rules, o.Rule)
		}
	}
	if err := c.reader.Name(ctx, interfaces, rules); err != nil {
		return err
	}
	judge := outcome.New(outcome.Facts{
		Policy: v.Policy, Plans: v.Planner, Interfaces: interfaces, Tables: c.tables, Partial: c.partial,
		Mixed: v.Mixed(), Missing: v.Unplanned(), Unsettled: v.Unsettled, Ask: c.ask,
	})
	if e := judge.Environment(); !e.Same(c.environment) {
		c.environment = e
		clear(c.known)
	}
	present := map[int]struct{}{}
	for plan := range v.Planner.Links() {
		index := plan.Link.Index
		present[index] = struct{}{}
		var of *reconcile.Interface
		if v.Snapshot != nil {
			of, _ = v.Snapshot.Interface(index)
		}
		routers := judge.Routers(&plan)
		found, known := c.known[index]
		switch {
		case known && found.of == of && of != nil && found.routers == routers:
		case len(only) > 0 && !slices.Contains(only, plan.Link.Name):
			continue
		case most == 0:
			v.Unchecked++
			continue
		default:
			most--
			found = verdict{of: of, routers: routers, strays: judge.Link(&plan)}
			c.known[index] = found
		}
		v.Strays = append(v.Strays, found.strays...)
	}
	maps.DeleteFunc(c.known, func(index int, _ verdict) bool {
		_, is := present[index]
		return !is
	})
	v.Shared = judge.Shared()
	v.Unbound = map[routing.Family]status.Unbound{}
	for _, f := range routing.Families() {
		if device, table, sent := judge.Unbound(f); sent {
			v.Unbound[f] = status.Unbound{Interface: device, Table: uint32(table)}
		}
	}
	return nil
}

func interfacesOf(v *view.View) []lookup.Interface {
	out := make([]lookup.Interface, 0, len(v.Links))
	for _, l := range v.Links {
		out = append(out, lookup.Interface{Index: l.Index, Name: l.Name, Group: l.Group, Up: l.Up})
	}
	slices.SortFunc(out, func(a, b lookup.Interface) int { return a.Index - b.Index })
	return out
}

// leasedIn are the tables of links, by family. A number in our range that no link has is as
// much somebody else's as any other.
func leasedIn(v *view.View) map[routing.Family]map[routing.TableID]struct{} {
	out := map[routing.Family]map[routing.TableID]struct{}{routing.IPv4: {}, routing.IPv6: {}}
	for plan := range v.Planner.Links() {
		for k, t := range plan.Link.Tables {
			out[k.Family][t] = struct{}{}
		}
	}
	return out
}

// read reads the tables that decide besides those of links, unless nothing has happened.
// Tables of links are as planned, but for those that somebody else uses too.
func (c *Outcomes) read(ctx context.Context, v *view.View) error {
	asked, leased := map[routing.Family][]routing.TableID{}, leasedIn(v)
	for _, f := range routing.Families() {
		tables := []routing.TableID{routing.TableLocal, routing.TableMain}
		for _, o := range v.Planner.Foreign(f) {
			if r := o.Rule; r.Action == routing.ActionLookup && r.Table != 0 {
				if _, is := leased[f][r.Table]; !is {
					tables = append(tables, r.Table)
				}
			}
		}
		for t := range leased[f] {
			if _, used := v.ForeignIn[t]; used {
				tables = append(tables, t)
			}
		}
		slices.Sort(tables)
		asked[f] = slices.Compact(tables)
	}
	same := v.Snapshot != nil && v.Snapshot.Moves == c.moves && len(v.ForeignIn) == 0 &&
		maps.EqualFunc(asked, c.asked, slices.Equal[[]routing.TableID])
	if same && c.tables != nil {
		return nil
	}
	if c.reader == nil {
		var err error
		if c.reader, err = kernel.OpenReader(); err != nil {
			return err
		}
	}
	tables, partial := map[routing.Family]map[routing.TableID][]routing.Route{}, map[routing.Family]map[routing.TableID]bool{}
	for f, some := range asked {
		var err error
		if tables[f], partial[f], err = c.reader.Tables(ctx, f, some, mostRoutes); err != nil {
			return err
		}
	}
	c.tables, c.partial, c.asked = tables, partial, asked
	if v.Snapshot != nil {
		c.moves = v.Snapshot.Moves
	}
	return nil
}

// ask is `ip route get fibmatch`.
func (c *Outcomes) ask(p outcome.Probe) (outcome.Answer, error) {
	if c.handle == nil {
		handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return outcome.Answer{}, fmt.Errorf("opening a netlink socket: %w", err)
		}
		c.handle = handle
	}
	options := &netlink.RouteGetOptions{FIBMatch: true, Oif: p.Device}
	if p.From.IsValid() {
		options.SrcAddr = net.IP(p.From.AsSlice())
	}
	routes, err := c.handle.RouteGetWithOptions(p.To.AsSlice(), options)
	if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EINVAL) {
		return outcome.Answer{}, nil // refused
	}
	if err != nil || len(routes) == 0 {
		return outcome.Answer{}, fmt.Errorf("asking for the way to %s: %w", p.To, err)
	}
	r := routes[0]
	a := outcome.Answer{Device: r.LinkIndex, Table: routing.TableID(r.Table)} //nolint:gosec // the kernel's number
	if len(r.MultiPath) > 0 {
		a.Device = r.MultiPath[0].LinkIndex
	}
	if r.Dst != nil {
		a.Bits, _ = r.Dst.Mask.Size()
	}
	return a, nil
}

// checkOutcomes says what takes bound traffic away from its link.
func checkOutcomes(v *view.View, _ files) []routing.Problem {
	names := map[int]string{}
	for _, l := range v.Links {
		names[l.Index] = l.Name
	}
	return outcome.Problems(v.Strays, names, v.Policy)
}

// checkShared says which addresses do not tell their links apart.
func checkShared(v *view.View, _ files) []routing.Problem {
	out := make([]routing.Problem, 0, len(v.Shared))
	for _, s := range v.Shared {
		out = append(out, s.Problem())
	}
	return out
}

// checkUnchecked says that not every link was checked.
func checkUnchecked(v *view.View, _ files) []routing.Problem {
	if v.Unchecked == 0 || v.ByDaemon {
		return nil
	}
	return []routing.Problem{{
		Severity: routing.Notice,
		Text:     fmt.Sprintf("the traffic of %d links was checked; without the daemon, that of the other %d was not", WithoutDaemon, v.Unchecked),
		Fix:      "name the links to check: multihomectl status LINK...",
	}}
}
