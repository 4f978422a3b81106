package daemon

import (
	"context"
	"iter"
	"log/slog"
	"slices"
	"time"

	"multihomed/cmd/internal/claims"
	"multihomed/cmd/internal/hooked"
	"multihomed/routing"
	"multihomed/routing/kernel"
)

// A mover takes the routes of links that ifupdown brings up out of main, if the
// administrator wants that. Only the loop's goroutine may use it.
type mover struct {
	log     *slog.Logger
	runtime string
	enabled bool
	hooks   *hooked.Store
	owners  *claims.Owners
	mirror  *kernel.Mirror
}

// settled is called when the routing of all links stands: what is in main is in the
// links' tables as well.
func (m *mover) settled(ctx context.Context, plans iter.Seq[routing.LinkPlan]) {
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
	if !slices.ContainsFunc(configs, func(c hooked.Config) bool { return c.Caller == hooked.Ifupdown && c.Family == f }) {
		return nil
	}
	if claim, _ := m.owners.Of(plan.Link.Name); !claim.Reach {
		return nil // It is NetworkManager's by now.
	}
	var out []routing.Route
	for _, r := range plan.Link.Routes {
		if r.Family == f && kernel.Movable(r) && slices.ContainsFunc(plan.Routes, func(p routing.PlannedRoute) bool {
			return p.Route.Table != routing.TableMain && p.Route.Destination == r.Destination && p.Route.Gateway == r.Gateway
		}) {
			out = append(out, r)
		}
	}
	return out
}

// move notes what the routes are, so that the table keeps them, and only then takes
// them away.
func (m *mover) move(ctx context.Context, link routing.Link, f routing.Family, routes []routing.Route) {
	attrs := []slog.Attr{slog.String("interface", link.Name), slog.String("family", f.String())}
	moved := hooked.Config{Interface: link.Name, Index: link.Index, Caller: hooked.Mover, Family: f, Since: time.Now()}
	configs, _ := m.hooks.Of(link.Name)
	for _, c := range configs {
		if c.Caller != hooked.Mover || c.Family != f {
			continue
		}
		for _, r := range c.Routes {
			if !slices.ContainsFunc(routes, func(now routing.Route) bool { return now.Destination == r.Destination }) {
				moved.Routes = append(moved.Routes, r)
			}
		}
	}
	for _, r := range routes {
		moved.Routes = append(moved.Routes, hooked.Route{Destination: r.Destination, Gateway: r.Gateway, Source: r.PreferredSource})
	}
	if err := hooked.Put(m.runtime, moved); err != nil {
		m.log.LogAttrs(ctx, slog.LevelWarn, "routes stay in main", append(attrs, slog.String("error", err.Error()))...)
		return
	}
	for _, err := range m.hooks.Reload(link.Name) {
		m.log.LogAttrs(ctx, slog.LevelWarn, "what a hook said is lost", append(attrs, slog.String("error", err.Error()))...)
	}
	errs := m.mirror.TakeFromMain(ctx, routes)
	for i, r := range routes {
		if len(errs) > i && errs[i] != nil {
			m.log.LogAttrs(ctx, slog.LevelWarn, "a route stays in main", append(attrs, slog.String("error", errs[i].Error()))...)
			continue
		}
		m.log.LogAttrs(ctx, slog.LevelInfo, "route moved out of main", append(attrs, slog.String("destination", r.Destination.String()), slog.String("gateway", r.Gateway.String()))...)
	}
}
