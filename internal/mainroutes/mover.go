package mainroutes

import (
	"cmp"
	"context"
	"iter"
	"log/slog"
	"net/netip"
	"slices"

	"multihomed/internal/event"
	"multihomed/internal/hookstate"
	"multihomed/internal/owners"
	"multihomed/routing"
	"multihomed/routing/kernel"
)

// A Mover moves the routes of ifupdown's links out of main while the administrator wants that,
// and puts them back afterwards.
type Mover struct {
	Logger *slog.Logger
	// Runtime is the runtime directory.
	Runtime string
	// Enabled says that the administrator wants it.
	Enabled bool
	Hooks   *hookstate.Store
	Owners  *owners.Owners
	Mirror  *kernel.Mirror
}

// Moves are what to do after a pass.
type Moves struct {
	out  []move
	back []hookstate.Config
}

// A move is what leaves main of one link and family.
type move struct {
	link   routing.Link
	family routing.Family
	routes []routing.Route
}

// Look returns what to do, false if nothing. It is for the goroutine of the reconcile loop
// after a complete pass: only then the tables of the links have the routes of main.
func (m *Mover) Look(plans iter.Seq[routing.LinkPlan]) (todo Moves, is bool) {
	// Routes that an earlier configuration moved, or of links that are switched off.
	for _, c := range m.Hooks.Moved() {
		if !m.Enabled || m.Owners.IsOff(c.Interface) {
			todo.back = append(todo.back, c)
		}
	}
	if m.Enabled {
		for plan := range plans {
			for _, f := range routing.Families() {
				if routes := m.movable(plan, f); len(routes) > 0 {
					todo.out = append(todo.out, move{plan.Link, f, routes})
				}
			}
		}
	}
	return todo, len(todo.back) > 0 || len(todo.out) > 0
}

// Move does it. It logs errors; the next pass tries again.
func (m *Mover) Move(ctx context.Context, todo Moves) {
	for _, c := range todo.back {
		m.putBack(ctx, c)
	}
	for _, o := range todo.out {
		m.takeOut(ctx, o)
	}
}

// movable are the routes of main that a table also has.
func (m *Mover) movable(plan routing.LinkPlan, f routing.Family) []routing.Route {
	configs, _ := m.Hooks.Of(plan.Link.Name)
	if !slices.ContainsFunc(configs, func(c hookstate.Config) bool { return c.Caller == hookstate.Ifupdown && c.Family == f }) {
		return nil
	}
	if claim, _ := m.Owners.Of(plan.Link.Name); !claim.DefaultMayBeMissing {
		return nil // It is NetworkManager's link by now.
	}
	type way struct {
		to  netip.Prefix
		via netip.Addr
	}
	copied := map[way]struct{}{}
	for p := range plan.AllRoutes() {
		if p.Route.Table != routing.TableMain {
			copied[way{p.Route.Destination, p.Route.Gateway}] = struct{}{}
		}
	}
	var out []routing.Route
	for r := range plan.MainRoutes() {
		if _, is := copied[way{r.Destination, r.Gateway}]; is && r.Family == f && kernel.Movable(r) && r.Attributes.Get().Encapsulation == "" {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b routing.Route) int {
		return cmp.Or(a.Destination.Compare(b.Destination), cmp.Compare(a.Metric, b.Metric))
	})
	return out
}

func (m *Mover) takeOut(ctx context.Context, o move) {
	attrs := []slog.Attr{slog.String("interface", o.link.Name), slog.String("family", o.family.String())}
	configs, _ := m.Hooks.Of(o.link.Name)
	out, err := Take(ctx, m.Mirror, m.Runtime, o.link, o.family, o.routes, configs)
	for _, r := range out {
		m.Logger.LogAttrs(ctx, slog.LevelInfo, "route moved out of main", append(attrs, event.Is(event.RouteMoved), slog.String("destination", r.Destination.String()), slog.String("gateway", r.Gateway.String()))...)
	}
	m.Hooks.ReloadAndLog(ctx, m.Logger, o.link.Name)
	if err != nil {
		m.Logger.LogAttrs(ctx, event.LevelNotice, "moving routes out of main failed", append(attrs, slog.String("error", err.Error()))...)
	}
}

func (m *Mover) putBack(ctx context.Context, c hookstate.Config) {
	attrs := []slog.Attr{slog.String("interface", c.Interface), slog.String("family", c.Family.String())}
	if err := PutBack(ctx, m.Mirror, m.Runtime, c); err != nil {
		m.Logger.LogAttrs(ctx, event.LevelNotice, "moving routes back into main failed", append(attrs, slog.String("error", err.Error()))...)
		return
	}
	m.Logger.LogAttrs(ctx, slog.LevelInfo, "routes moved back into main", append(attrs, event.Is(event.RouteMoved), slog.Int("routes", len(c.Routes)))...)
	m.Hooks.ReloadAndLog(ctx, m.Logger, c.Interface)
}
