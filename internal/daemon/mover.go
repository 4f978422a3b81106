package daemon

import (
	"cmp"
	"context"
	"iter"
	"log/slog"
	"net/netip"
	"slices"

	"multihomed/internal/event"
	"multihomed/internal/hookstate"
	"multihomed/internal/mainroutes"
	"multihomed/internal/owners"
	"multihomed/routing"
	"multihomed/routing/kernel"
)

// A mover takes the routes of links that ifupdown brings up out of main, if the
// administrator wants that. Only the loop's goroutine may use it.
type mover struct {
	log     *slog.Logger
	runtime string
	enabled bool
	hooks   *hookstate.Store
	owners  *owners.Owners
	mirror  *kernel.Mirror
}

// settled is called when the routing of all links stands: what is in main is in the
// links' tables as well.
func (m *mover) settled(ctx context.Context, plans iter.Seq[routing.LinkPlan]) {
	m.putBack(ctx)
	if !m.enabled {
		return
	}
	for plan := range plans {
		for _, f := range routing.Families() {
			if routes := m.movable(plan, f); len(routes) > 0 {
				m.move(ctx, plan.Link, f, routes)
			}
		}
	}
}

// movable are the routes of main that a table has, too.
func (m *mover) movable(plan routing.LinkPlan, f routing.Family) []routing.Route {
	configs, _ := m.hooks.Of(plan.Link.Name)
	if !slices.ContainsFunc(configs, func(c hookstate.Config) bool { return c.Caller == hookstate.Ifupdown && c.Family == f }) {
		return nil
	}
	if claim, _ := m.owners.Of(plan.Link.Name); !claim.DefaultMayBeMissing {
		return nil // It is NetworkManager's by now.
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

func (m *mover) move(ctx context.Context, link routing.Link, f routing.Family, routes []routing.Route) {
	attrs := []slog.Attr{slog.String("interface", link.Name), slog.String("family", f.String())}
	configs, _ := m.hooks.Of(link.Name)
	out, err := mainroutes.Take(ctx, m.mirror, m.runtime, link, f, routes, configs)
	for _, r := range out {
		m.log.LogAttrs(ctx, slog.LevelInfo, "route moved out of main", append(attrs, event.Is(event.RouteMoved), slog.String("destination", r.Destination.String()), slog.String("gateway", r.Gateway.String()))...)
	}
	reload(ctx, m.log, m.hooks, link.Name)
	if err != nil {
		m.log.LogAttrs(ctx, event.LevelNotice, "moving routes out of main failed", append(attrs, slog.String("error", err.Error()))...)
	}
}

// putBack ends what an earlier configuration of ours wanted, and what is switched off.
func (m *mover) putBack(ctx context.Context) {
	for _, c := range m.hooks.Moved() {
		if m.enabled && !m.owners.IsOff(c.Interface) {
			continue
		}
		attrs := []slog.Attr{slog.String("interface", c.Interface), slog.String("family", c.Family.String())}
		if err := mainroutes.PutBack(ctx, m.mirror, m.runtime, c); err != nil {
			m.log.LogAttrs(ctx, event.LevelNotice, "moving routes back into main failed", append(attrs, slog.String("error", err.Error()))...)
			continue
		}
		m.log.LogAttrs(ctx, slog.LevelInfo, "routes moved back into main", append(attrs, event.Is(event.RouteMoved), slog.Int("routes", len(c.Routes)))...)
		reload(ctx, m.log, m.hooks, c.Interface)
	}
}
