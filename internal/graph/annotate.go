package graph

import (
	"multihomed/internal/escape"
	"multihomed/internal/status"
	"multihomed/routing"
)

// Annotate adds what multihomed says of the host: links with roles, profiles and health, whom
// tables belong to, and why rules exist.
func (f *Facts) Annotate(s *status.Status) {
	f.Links = map[string]Link{}
	f.Owners = map[routing.Family]map[routing.TableID]string{routing.IPv4: {}, routing.IPv6: {}}
	type key struct{ family, text string }
	reasons := map[key]Reason{}
	note := func(link string, objects []status.Object) {
		for _, o := range objects {
			if o.Kind == "rule" && o.Reason != "" {
				reasons[key{o.Family, o.Text}] = Reason{routing.Decision(o.Reason), link}
			}
		}
	}
	for _, l := range s.Links {
		name := escape.Original(l.Interface)
		link := Link{Profile: escape.Original(l.Profile), Roles: map[routing.Family]string{}, Health: map[routing.Family]Health{}}
		for _, family := range routing.Families() {
			link.Roles[family] = l.RoleIn(family.String())
			if h, watched := s.Failover.Of(l.Interface, family.String()); watched {
				link.Health[family] = Health{State: string(h.State), Level: levelOf(h.State), Why: h.Why}
			}
		}
		f.Links[name] = link
		for _, n := range l.Networks {
			if n.Table == 0 {
				continue
			}
			owner := l.Interface
			if n.HostAddresses {
				owner += " host addresses"
			} else {
				owner += " " + n.Prefix.String()
			}
			for _, family := range routing.Families() {
				if n.Family == family.String() {
					f.Owners[family][routing.TableID(n.Table)] = owner
				}
			}
		}
		note(name, l.Objects)
	}
	note("", s.Shared)
	if s.Failover != nil && s.Failover.Enabled {
		for _, family := range routing.Families() {
			f.Owners[family][routing.TableID(s.Tables.Last)] = "failover"
		}
	}
	f.Reasons = map[routing.Rule]Reason{}
	for _, r := range f.Rules {
		if why, known := reasons[key{r.Family.String(), escape.Text(r.String())}]; known && isOurs(r) {
			f.Reasons[r] = why
		}
	}
	f.Unread = append(f.Unread, s.Unread...)
}

func levelOf(s status.HealthState) Level {
	switch s {
	case status.HealthUp:
		return Good
	case status.HealthSuspect, status.HealthRecovering:
		return Doubtful
	case status.HealthDown:
		return Bad
	case status.HealthUnknown, status.HealthUnprobed:
	}
	return Neutral
}
