package binding

import (
	"cmp"
	"slices"

	"multihomed/internal/status"
	"multihomed/routing"
)

// A Led is a link to whose servers the DNS queries of users go.
type Led struct {
	// Link is what the administrator calls it.
	Link string
	// Mark is what the sockets of these users get.
	Mark routing.Mark
	// Users are ranges that do not touch, by number.
	Users []routing.UIDRange
}

func (l Led) equal(o Led) bool {
	return l.Link == o.Link && l.Mark == o.Mark && slices.Equal(l.Users, o.Users)
}

// ledUsers returns the users whose DNS queries are led, by link. A user whom several entries select, by name and by number,
// belongs to the first of them, as in the rules: the others get what remains of their range.
func ledUsers(states []State) (all []Led) {
	var taken []routing.UIDRange
	for _, s := range states {
		if !s.Range.Set {
			continue
		}
		rest := without(s.Range, taken)
		taken = append(taken, s.Range)
		if s.Mark.Mask == 0 {
			continue
		}
		at := slices.IndexFunc(all, func(l Led) bool { return l.Link == s.Link })
		if at < 0 {
			at, all = len(all), append(all, Led{Link: s.Link, Mark: s.Mark})
		}
		all[at].Users = append(all[at].Users, rest...)
	}
	for i := range all {
		all[i].Users = joined(all[i].Users)
	}
	all = slices.DeleteFunc(all, func(l Led) bool { return len(l.Users) == 0 })
	slices.SortFunc(all, func(a, b Led) int { return cmp.Compare(a.Link, b.Link) })
	return all
}

// without returns what remains of a range.
func without(u routing.UIDRange, taken []routing.UIDRange) []routing.UIDRange {
	rest := []routing.UIDRange{u}
	for _, t := range taken {
		var next []routing.UIDRange
		for _, r := range rest {
			if t.Last < r.First || r.Last < t.First {
				next = append(next, r)
				continue
			}
			if r.First < t.First {
				next = append(next, routing.UIDRange{Set: true, First: r.First, Last: t.First - 1})
			}
			if t.Last < r.Last {
				next = append(next, routing.UIDRange{Set: true, First: t.Last + 1, Last: r.Last})
			}
		}
		rest = next
	}
	return rest
}

// joined sorts ranges that do not overlap, and makes one of those that touch: the kernel takes few programs.
func joined(all []routing.UIDRange) (out []routing.UIDRange) {
	slices.SortFunc(all, func(a, b routing.UIDRange) int { return cmp.Compare(a.First, b.First) })
	for _, u := range all {
		if n := len(out); n > 0 && out[n-1].Last+1 == u.First {
			out[n-1].Last = u.Last
			continue
		}
		out = append(out, u)
	}
	return out
}

// An Attachment is what binds the sockets of one range of users.
type Attachment struct {
	// Link is empty if an earlier process attached it.
	Link  string
	Mark  routing.Mark
	Users routing.UIDRange
	// DNS says that the programs for DNS are with it. They act on all sockets with the mark, so one of a link is enough.
	DNS bool
}

// Attachments are what leads the queries of all.
func Attachments(all []Led) (out []Attachment) {
	for _, l := range all {
		for n, u := range l.Users {
			out = append(out, Attachment{Link: l.Link, Mark: l.Mark, Users: u, DNS: n == 0})
		}
	}
	return out
}

// Missing returns what is wanted and not there.
func Missing(wanted, there []Attachment) []Attachment {
	return slices.DeleteFunc(slices.Clone(wanted), func(a Attachment) bool { return slices.Contains(there, a) })
}

// Outlived reports whether an attachment may end. One that is wanted stays, and one for whose users or
// DNS a new one failed, unless that leads them by another link.
func (a Attachment) Outlived(wanted, failed []Attachment) bool {
	if slices.Contains(wanted, a) {
		return false
	}
	return !slices.ContainsFunc(failed, func(f Attachment) bool {
		return f.Mark == a.Mark && (f.DNS && a.DNS || f.Users.First <= a.Users.Last && a.Users.First <= f.Users.Last)
	})
}

// isLed reports whether all users of an entry are led, but for those of the entries before it.
func isLed(states []State, n int, there []Attachment) bool {
	var taken []routing.UIDRange
	for _, s := range states[:n] {
		if s.Range.Set {
			taken = append(taken, s.Range)
		}
	}
	dns := false
	for _, a := range there {
		if a.Mark == states[n].Mark {
			taken, dns = append(taken, a.Users), dns || a.DNS
		}
	}
	return dns && len(without(states[n].Range, taken)) == 0
}

// SayLed says in rows of [Status] whose queries are led by what is attached.
func SayLed(rows []status.Binding, states []State, there []Attachment) {
	for n, s := range states {
		if !s.Range.Set || !s.DNS {
			continue
		}
		row := &rows[n]
		row.DNSLed = s.Mark.Mask != 0 && isLed(states, n, there)
		if !row.DNSLed && row.State == status.BindingActive {
			row.Why = "its DNS queries go where the host's resolver sends them"
			if s.Mark.Mask == 0 {
				row.Why += ", because all marks are given until the next boot"
			}
		}
	}
}
