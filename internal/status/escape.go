package status

import "multihomed/internal/escape"

// Escape makes the names and sentences of the status printable, but for its links, which
// are escaped one by one ([Link.Escape]), its problems ([Status.Tell]), and [Failover.Escape]. JSON has no bytes but
// those of UTF-8, and two names must not become one: names are written as [escape.Name]
// writes them, and [escape.Original] finds each again. Names are escaped once; sentences
// may be escaped any number of times.
func (s *Status) Escape() {
	text := func(texts ...*string) {
		for _, t := range texts {
			*t = escape.Text(*t)
		}
	}
	text(&s.Version, &s.Daemon.Version, &s.Daemon.Waiting, &s.NetworkManager.Version, &s.NetworkManager.Waiting, &s.NetworkManager.Error)
	for family, u := range s.Unbound {
		u.Interface, u.Main, u.Why = escape.Name(u.Interface), escape.Name(u.Main), escape.Text(u.Why)
		for i := range u.Shares {
			u.Shares[i].Interface = escape.Name(u.Shares[i].Interface)
		}
		s.Unbound[family] = u
	}
	escapeObjects(s.Shared)
	for i := range s.Bindings {
		s.Bindings[i].Escape()
	}
	for i := range s.OtherRules {
		text(&s.OtherRules[i].Text)
	}
	if s.Off != nil {
		text(&s.Off.By)
	}
	for i := range s.OffLinks {
		o := &s.OffLinks[i]
		o.Interface = escape.Name(o.Interface)
		text(&o.UUID, &o.By)
	}
	for i := range s.Others {
		s.Others[i].Interface = escape.Name(s.Others[i].Interface)
		text(&s.Others[i].Why)
	}
	for i := range s.Unread {
		text(&s.Unread[i])
	}
}

// Escape does so for a link.
func (l *Link) Escape() {
	l.Interface, l.Profile = escape.Name(l.Interface), escape.Name(l.Profile)
	l.RoleWhy, l.Why, l.Type = escape.Text(l.RoleWhy), escape.Text(l.Why), escape.Text(l.Type)
	for f, r := range l.Roles {
		r.Why = escape.Text(r.Why)
		l.Roles[f] = r
	}
	for f, why := range l.LeftAlone {
		l.LeftAlone[f] = escape.Text(why)
	}
	escapeObjects(l.Objects)
}

func escapeObjects(objects []Object) {
	for i := range objects {
		objects[i].Text, objects[i].Lifts = escape.Text(objects[i].Text), escape.Text(objects[i].Lifts)
	}
}
