package cli

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"multihomed/internal/escape"
	"multihomed/internal/status"
	"multihomed/internal/suggest"
)

// A filter is one word after `status`: an interface, a profile, an address, a network,
// a table, or a pattern of interfaces and profiles (path.Match).
type filter string

func (f filter) link(l Link) bool {
	return f.name(l.Interface) || l.Profile != "" && f.name(l.Profile) || slices.ContainsFunc(l.Networks, f.network) ||
		slices.ContainsFunc(l.Unused, f.address)
}

// name compares with an escaped name; the word may be written either way.
func (f filter) name(name string) bool {
	if string(f) == name || string(f) == escape.Original(name) {
		return true
	}
	matches, err := path.Match(string(f), escape.Original(name))
	return err == nil && matches
}

func (f filter) network(n Network) bool {
	if p, err := netip.ParsePrefix(string(f)); err == nil && p.Masked() == n.Prefix {
		return true
	}
	if t, err := strconv.ParseUint(string(f), 10, 32); err == nil && uint32(t) == n.Table && t != 0 {
		return true
	}
	return slices.ContainsFunc(n.Addresses, f.address)
}

func (f filter) address(a Address) bool {
	ip, err := netip.ParseAddr(string(f))
	if err != nil {
		p, err := netip.ParsePrefix(string(f)) // as `ip address` prints it
		return err == nil && p.Addr() == a.Address && p.Bits() == a.Length
	}
	return ip.WithZone("") == a.Address
}

// restrict leaves only some interfaces in a status, with the facts of the whole host. It
// counts again.
func restrict(s *Status, only []string) error {
	if len(only) == 0 {
		return nil
	}
	wanted := map[string]bool{}
	for _, word := range only {
		f, found := filter(word), false
		for _, l := range s.Links {
			if f.link(l) {
				wanted[l.Interface], found = true, true
			}
		}
		for _, o := range s.Others {
			if f.name(o.Interface) {
				wanted[o.Interface], found = true, true
			}
		}
		if found {
			continue
		}
		var known []string
		for _, l := range s.Links {
			known = append(known, l.Interface)
		}
		for _, o := range s.Others {
			known = append(known, o.Interface)
		}
		slices.SortFunc(known, status.CompareNames)
		if _, err := path.Match(word, ""); err != nil {
			return fmt.Errorf("%q is no pattern: %w", escape.Text(word), err)
		}
		return fmt.Errorf("there is no interface %s to show, nor a profile, an address or a table%s; there are %s",
			escape.Name(word), suggest.Question(word, known), strings.Join(known, ", "))
	}
	other := func(name string) bool { return !wanted[name] }
	s.Links = slices.DeleteFunc(s.Links, func(l Link) bool { return other(l.Interface) })
	s.Others = slices.DeleteFunc(s.Others, func(o Other) bool { return other(o.Interface) })
	s.Problems = slices.DeleteFunc(s.Problems, func(p Problem) bool { return p.Link != "" && other(p.Link) })
	// Objects that serve all links were not asked for.
	s.Shared, s.InForce = []Object{}, Count{}
	for _, l := range s.Links {
		s.InForce.Add(l.InForce)
	}
	s.OK = s.Sound()
	return nil
}
