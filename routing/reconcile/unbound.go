package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"multihomed/internal/event"
	"multihomed/routing"
	"multihomed/routing/lookup"
)

// askUnbound hands the planner what the kernel does with packets that are bound to
// nothing, if that may have changed. It comes before the next pass: a rung that catches
// them must not be put up, and must go at once where it stands.
func (l *Loop) askUnbound(ctx context.Context) error {
	if !l.unasked {
		return nil
	}
	found, refused, err := l.Mirror.Unbound(ctx)
	if err != nil {
		return err
	}
	l.unasked = false
	// What was announced meanwhile belongs to what was asked.
	l.takeChanges(ctx)
	for _, f := range routing.Families() {
		l.planner.SetUnbound(f, slices.DeleteFunc(found[f], func(u routing.Unbound) bool { return l.isBetween(u.Device) }))
	}
	asked := len(refused) > 0 && l.asksLastResort()
	l.planner.SetRefused(routing.IPv6, refusal(l.planner.Foreign(routing.IPv6), refused, asked))
	return nil
}

// isBetween reports whether an interface is a link that its owner is bringing up or taking
// down. Its default may come before its addresses, and go after them: nothing of other
// links steps aside for such a moment. The claim that ends it comes with a question anew.
func (l *Loop) isBetween(index int) (is bool) {
	l.Mirror.View(func(k State) {
		claim, _, claimed := l.of(k, index)
		is = claimed && (claim.Pending || claim.Standing == Draining && l.was(k, index, k.Name(index)))
	})
	return is
}

// asksLastResort reports whether the configuration names a last resort for IPv6.
func (l *Loop) asksLastResort() bool {
	for plan := range l.planner.Links() {
		if plan.Link.LastResort && slices.ContainsFunc(plan.Keys, func(k routing.Key) bool { return k.Family == routing.IPv6 }) {
			return true
		}
	}
	return false
}

// refusal finds out whether somebody decided that packets are refused, or there merely is
// no route for them: what the rules of others say of them without us. A table that
// bound traffic asks at rung "known" refuses it there, so routes of such tables are not
// looked at. Asked says that the configuration names a last resort, and what it answers is
// answered.
func refusal(foreign []routing.ForeignRule, refused []routing.Unanswered, asked bool) (found routing.Refusal) {
	if len(refused) == 0 {
		return found
	}
	rules := make([]routing.Rule, 0, len(foreign))
	for _, o := range foreign {
		rules = append(rules, o.Rule)
	}
	for _, r := range refused {
		tables := map[routing.TableID][]routing.Route{}
		if r.Main != (routing.Route{}) {
			tables[routing.TableMain] = []routing.Route{r.Main}
		}
		for _, no := range r.Routes {
			tables[no.Table] = append(tables[no.Table], no)
		}
		host := lookup.Host{Rules: rules, Tables: map[routing.Family]map[routing.TableID][]routing.Route{routing.IPv6: tables}}
		answer, steps := host.Trace(lookup.Flow{To: r.To, UID: r.UID})
		switch {
		case r.Resort && (answer.Outcome == lookup.Rejected || asked):
			// What refuses stands behind it, or it is there by the configuration.
		case answer.Outcome == lookup.Rejected && answer.Route == (routing.Route{}):
			return byRule(answer.Rule)
		case answer.Outcome == lookup.Rejected && found == (routing.Refusal{}):
			found = byRoute(answer.Route)
		case answer.Outcome == lookup.NoRoute && r.Main != (routing.Route{}):
			if slices.ContainsFunc(rules, func(r routing.Rule) bool { return r.Action == routing.ActionLookup && r.Table == routing.TableMain }) {
				return withoutMain(steps)
			}
		}
	}
	return found
}

func byRule(r routing.Rule) routing.Refusal {
	return routing.Refusal{
		By: fmt.Sprintf("the rule %q", r), Object: r.String(), Devices: true,
		Fix: fmt.Sprintf("ip -6 rule del pref %d %s", r.Priority, words(r)),
	}
}

// words are what ip-rule(8) prints behind the priority.
func words(r routing.Rule) string {
	_, out, _ := strings.Cut(r.String(), ":")
	return strings.TrimSpace(out)
}

func byRoute(r routing.Route) routing.Refusal {
	text := fmt.Sprintf("%s %s table %s", r.Refuses(), to(r.Destination), r.Table)
	return routing.Refusal{By: fmt.Sprintf("the route %q", text), Object: text, Fix: "ip -6 route del " + text}
}

func to(p netip.Prefix) string {
	if p.Bits() == 0 {
		return "default"
	}
	return p.String()
}

// withoutMain is the refusal where main has a default, and the rule that reads main leaves it
// out, is not for everybody or is led over. A host without any rule that reads main is none:
// nobody refuses there, and bound traffic keeps its link.
func withoutMain(steps []lookup.Step) routing.Refusal {
	fix := fmt.Sprintf("ip -6 rule add pref %d lookup main", routing.PriorityMain)
	for _, s := range steps {
		if s.Table == routing.TableMain && (s.Result == lookup.TooShort || s.Result == lookup.InGroup) {
			return routing.Refusal{By: fmt.Sprintf("the rule %q, which leaves out the default route of main,", s.Rule), Object: s.Rule.String(), Devices: true, Fix: fix}
		}
	}
	return routing.Refusal{By: "the lack of a rule that reads main for everybody", Object: "ip -6 rule", Devices: true, Fix: fix}
}

// logAside says which sources of a link step aside from now on, and which no longer do.
func (l *Loop) logAside(before, now []routing.Problem) {
	attrs := func(p routing.Problem) []slog.Attr {
		return []slog.Attr{slog.String("interface", p.Link), slog.String("address", p.Object), slog.String("because", p.Text)}
	}
	for _, p := range now {
		if p.Code == routing.UnboundRefused && !slices.Contains(before, p) {
			l.Logger.LogAttrs(context.Background(), event.LevelNotice, "packets bound to addresses of a link are refused",
				slog.String("interface", p.Link), slog.String("by", p.Object), slog.String("because", p.Text))
		}
		if p.Code == routing.SourceAside && !slices.Contains(before, p) {
			l.Logger.LogAttrs(context.Background(), slog.LevelWarn, "packets bound to an address do not keep to their link", attrs(p)...)
		}
	}
	for _, p := range before {
		if p.Code == routing.UnboundRefused && !slices.Contains(now, p) {
			l.Logger.LogAttrs(context.Background(), event.LevelNotice, "packets bound to addresses of a link are no longer refused", slog.String("interface", p.Link))
		}
		if p.Code == routing.SourceAside && !slices.Contains(now, p) {
			l.Logger.LogAttrs(context.Background(), slog.LevelInfo, "packets bound to an address keep to their link again", attrs(p)[:2]...)
		}
	}
}
