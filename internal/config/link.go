package config

import (
	"fmt"
	"net/netip"
	"slices"

	"multihomed/dispatcher"
	"multihomed/nm"
	"multihomed/routing"
)

// A Link is one entry of [[link]]: settings of the administrator for the links that it
// matches, which win over the facts. What an entry does not set is zero.
type Link struct {
	Matcher
	Role routing.RoleChoice
	// Gateways holds at most one router of each family.
	Gateways []netip.Addr
	// LastResort and Ignore are nil where the entry does not set them.
	LastResort, Ignore *bool
	// Delegated are prefixes without host bits, each once.
	Delegated []netip.Prefix
}

// Settings are what all entries of [[link]] together set for one device.
type Settings struct {
	Role routing.RoleChoice
	// Gateways holds at most one router of each family.
	Gateways []netip.Addr
	// LastResort allows unbound traffic on the link when main has no default.
	LastResort bool
	// Ignore says that the device is no link; IgnoredBy is the entry that says so.
	Ignore    bool
	IgnoredBy string
	Delegated []netip.Prefix
}

// SettingsOf combines the entries that match a device: for each key, the first entry that
// sets it counts. A device that NetworkManager does not know has only a name.
func SettingsOf(links []Link, d nm.Device) Settings {
	var s Settings
	var lastResort, ignore *bool
	for _, l := range links {
		if !nm.Matcher(l.Matcher).Matches(d) {
			continue
		}
		if s.Role == routing.ByFacts {
			s.Role = l.Role
		}
		if s.Gateways == nil {
			s.Gateways = l.Gateways
		}
		if s.Delegated == nil {
			s.Delegated = l.Delegated
		}
		if lastResort == nil {
			lastResort = l.LastResort
		}
		if ignore == nil && l.Ignore != nil {
			ignore = l.Ignore
			s.IgnoredBy = nm.Matcher(l.Matcher).String()
		}
	}
	s.LastResort = lastResort != nil && *lastResort
	if s.Ignore = ignore != nil && *ignore; !s.Ignore {
		s.IgnoredBy = ""
	}
	return s
}

// IsIgnored reports whether an entry of [[link]] ignores an interface by its name alone, and
// which entry.
func (c Config) IsIgnored(name string) (by string, ignored bool) {
	s := SettingsOf(c.Links, nm.Device{Name: name})
	return s.IgnoredBy, s.Ignore
}

const linkList = "link"

func (v *validator) links(file []rawLink) []Link {
	if len(file) == 0 {
		return nil // As in Default, so that two configurations compare.
	}
	all := make([]Link, 0, len(file))
	for i, r := range file {
		isWhole := !v.faulty[entryKey(linkList, i, "")]
		if isWhole && r.matcher() == (rawMatcher{}) {
			v.failEntry(i, "", "nothing to match is set; want interface, profile or type, or several")
		}
		if isWhole && r.Role == nil && r.Gateway == nil && r.LastResort == nil && r.Ignore == nil && r.Delegated == nil {
			v.failEntry(i, "", "it sets nothing for the links that it matches; want role, gateway, last_resort, ignore or delegated")
		}
		all = append(all, Link{
			Matcher:    v.matcher(linkList, i, r.matcher()),
			Role:       v.role(i, r.Role),
			Gateways:   v.gateways(i, r.Gateway),
			LastResort: r.LastResort,
			Ignore:     r.Ignore,
			Delegated:  v.delegated(i, r.Delegated),
		})
	}
	return all
}

func (v *validator) failEntry(i int, key, message string) {
	v.fail(v.at.of(linkList, i, key), entryKey(linkList, i, key), message)
}

// refuseEntry says that a value of an entry is not allowed, and why if that is not obvious.
func (v *validator) refuseEntry(i int, key string, value any, why string) {
	want, _ := allowed(linkList + "." + key)
	message := fmt.Sprintf("%v is not allowed", value)
	if why != "" {
		message += " (" + why + ")"
	}
	v.failEntry(i, key, message+"; want "+want)
}

func (v *validator) role(i int, value *string) routing.RoleChoice {
	switch {
	case value == nil:
		return routing.ByFacts
	case *value == "uplink":
		return routing.AlwaysUplink
	case *value == "local":
		return routing.AlwaysLocal
	default:
		want, _ := allowed(linkList + ".role")
		v.failEntry(i, "role", fmt.Sprintf("%s is not allowed; want %s%s", quoted(*value), want, nearestWord(*value, want)))
		return routing.ByFacts
	}
}

// RoleName is the word for a role in a configuration, empty for none.
func RoleName(c routing.RoleChoice) string {
	switch c {
	case routing.AlwaysUplink:
		return "uplink"
	case routing.AlwaysLocal:
		return "local"
	default:
		return ""
	}
}

func (v *validator) gateways(i int, value any) []netip.Addr {
	var words []any
	switch value := value.(type) {
	case nil:
		return nil
	case string:
		words = []any{value}
	case []any:
		words = value
	default:
		v.failEntry(i, "gateway", misfit(value, linkList+".gateway"))
		return nil
	}
	if len(words) == 0 {
		v.refuseEntry(i, "gateway", "an empty list", "")
	}
	var all []netip.Addr
	for _, word := range words {
		text, ok := word.(string)
		if !ok {
			v.failEntry(i, "gateway", "in the list, "+misfit(word, linkList+".gateway"))
			continue
		}
		a, why := router(text)
		if why == "" && slices.ContainsFunc(all, func(o netip.Addr) bool { return o.Is4() == a.Is4() }) {
			why = fmt.Sprintf("a second one of %v", routing.FamilyOf(a))
		}
		if why != "" {
			v.refuseEntry(i, "gateway", quoted(text), why)
			continue
		}
		all = append(all, a)
	}
	return all
}

// router parses the address of a router, or says why it is not one.
func router(text string) (a netip.Addr, why string) {
	a, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		return a, "not an address"
	case a.Zone() != "":
		return a, "without a zone: the interface is known"
	case a.Is4In6():
		return a, "an address of IPv4 is written as one"
	case !routing.IsHostAddress(a):
		return a, "not the address of a host"
	default:
		return a, ""
	}
}

func (v *validator) delegated(i int, file *[]string) []netip.Prefix {
	if file == nil {
		return nil
	}
	if len(*file) == 0 {
		v.refuseEntry(i, "delegated", "an empty list", "")
	}
	if len(*file) > dispatcher.MaxDelegated {
		v.refuseEntry(i, "delegated", fmt.Sprintf("a list of %d", len(*file)), fmt.Sprintf("at most %d", dispatcher.MaxDelegated))
		return nil
	}
	var all []netip.Prefix
	for _, text := range *file {
		p, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
			v.refuseEntry(i, "delegated", quoted(text), "not a network")
		case p != p.Masked():
			v.refuseEntry(i, "delegated", quoted(text), fmt.Sprintf("it has host bits: %v is meant", p.Masked()))
		case dispatcher.CheckDelegated(p) != nil:
			v.refuseEntry(i, "delegated", quoted(text), dispatcher.CheckDelegated(p).Error())
		case !slices.Contains(all, p):
			all = append(all, p)
		}
	}
	return all
}
