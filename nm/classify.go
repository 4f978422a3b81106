package nm

import (
	"fmt"
	"path"

	gnm "github.com/Wifx/gonetworkmanager/v2"
)

// A Matcher selects devices. Each field is a glob of path.Match, or empty for
// any; all that are set must match. A Matcher with nothing set matches nothing.
type Matcher struct {
	Interface string
	// Profile is matched against the profile's name and its UUID.
	Profile string
	// Type is matched against [TypeName].
	Type string
}

// Validate reports a glob that cannot be understood.
func (m Matcher) Validate() error {
	for _, f := range []struct{ field, glob string }{
		{"interface", m.Interface}, {"profile", m.Profile}, {"type", m.Type},
	} {
		if _, err := path.Match(f.glob, ""); err != nil {
			return fmt.Errorf("%s %q: %w", f.field, f.glob, err)
		}
	}
	if m == (Matcher{}) {
		return fmt.Errorf("neither interface, profile nor type is set")
	}
	return nil
}

// Matches reports whether a device is one of those that the Matcher selects. Of a
// device that NetworkManager does not know, nothing but Name is set: then a
// Matcher with a profile or a type does not match.
func (m Matcher) Matches(d Device) bool {
	return m != (Matcher{}) &&
		(m.Interface == "" || glob(m.Interface, d.Name)) &&
		(m.Profile == "" || glob(m.Profile, d.ProfileID) || glob(m.Profile, d.ProfileUUID)) &&
		(m.Type == "" || glob(m.Type, TypeName(d.Type)) ||
			// As nmcli shows it.
			d.Type == gnm.NmDeviceTypeVeth && glob(m.Type, TypeName(gnm.NmDeviceTypeEthernet)))
}

func glob(pattern, s string) bool {
	ok, err := path.Match(pattern, s)
	return ok && err == nil && s != ""
}

func (m Matcher) String() string {
	s := ""
	for _, f := range []struct{ field, glob string }{
		{"interface", m.Interface}, {"profile", m.Profile}, {"type", m.Type},
	} {
		if f.glob == "" {
			continue
		}
		if s != "" {
			s += ", "
		}
		s += f.field + " " + f.glob
	}
	return s
}

// A Policy is what the configuration adds to the rules of [Policy.Classify].
// Exclude wins over Include.
type Policy struct {
	Include, Exclude []Matcher
}

// Excluded reports whether the policy excludes every device of a name, whatever
// its type and its profile, and by which matcher.
func (p Policy) Excluded(name string) (Matcher, bool) { return byName(p.Exclude, name) }

// Included reports whether the policy includes every device of a name.
func (p Policy) Included(name string) bool {
	_, is := byName(p.Include, name)
	return is
}

func byName(all []Matcher, name string) (Matcher, bool) {
	for _, m := range all {
		if m.Profile == "" && m.Type == "" && m.Matches(Device{Name: name}) {
			return m, true
		}
	}
	return Matcher{}, false
}

// Leaves reports whether NetworkManager leaves a device to others, and the policy
// does not exclude it: then it is a link if somebody else says so.
func (p Policy) Leaves(d Device) bool {
	for _, m := range p.Exclude {
		if m.Matches(d) {
			return false
		}
	}
	return impossible(d) == "" && (d.External || d.Gone || !d.Managed || d.State == gnm.NmDeviceStateUnmanaged)
}

// A Verdict says what a device is to the routing side.
type Verdict uint8

const (
	// NotLink is a device that has no table and no rules of ours.
	NotLink Verdict = iota
	// Draining is a device that was a link and is not to be started anew: its
	// rules stay until the kernel says that its addresses are gone, so that no
	// packet with such an address leaves by another link.
	Draining
	// Link is a device that has its own table and rules.
	Link
)

func (v Verdict) String() string {
	switch v {
	case NotLink:
		return "no link"
	case Draining:
		return "draining"
	case Link:
		return "link"
	default:
		return fmt.Sprintf("verdict %d", uint8(v))
	}
}

// Classify decides whether a device is a link, and says why. Previous says
// that it was one until now: it has a lease, or objects of ours stand for it.
//
// A link is a managed device on which a profile is being activated, is active
// or is being deactivated (states 40 to 110). It is none if
//   - it is the loopback, or a port of a bridge, bond, team or VRF: no
//     configuration can change that;
//   - the configuration excludes it, or its profile says multihomed.ignore;
//   - it is external, a VPN, a tunnel (tun, iptunnel, vxlan, wireguard), a
//     dummy (there is nothing behind it to route to), a VRF (it has a table of
//     its own) or an Open vSwitch port or bridge, unless the configuration
//     includes it.
//
// A link that is no longer active drains. So does one of which too little is known: its
// profile was not read yet, or NetworkManager is starting. Another device becomes a link
// only when all of this is known.
func (p Policy) Classify(d Device, previous bool) (Verdict, string) {
	if reason := impossible(d); reason != "" {
		return NotLink, reason
	}
	for _, m := range p.Exclude {
		if m.Matches(d) {
			return NotLink, "the configuration excludes " + m.String()
		}
	}
	if d.Ignored {
		return NotLink, fmt.Sprintf("profile %q says %s", d.ProfileID, ignoreKey+"=true")
	}
	keep := func(reason string) (Verdict, string) {
		if previous {
			return Draining, reason
		}
		return NotLink, reason
	}
	if d.Denied {
		return keep(fmt.Sprintf("profile %q is not for multihomed to read (connection.permissions)", d.ProfileID))
	}
	if reason := unusual(d); reason != "" {
		included := false
		for _, m := range p.Include {
			included = included || m.Matches(d)
		}
		if !included {
			return NotLink, reason
		}
	}

	switch {
	case d.Gone:
		return keep("NetworkManager no longer has it")
	case d.Settling:
		return keep("NetworkManager is settling: " + StateName(d.State))
	case !d.Managed || d.State == gnm.NmDeviceStateUnmanaged:
		// The owner took it away from NetworkManager. Its addresses may stay, and
		// packets that carry them must not leave by another link.
		return keep("NetworkManager does not manage it")
	case !d.Real:
		// A placeholder for what a profile could create, or what is left of an
		// interface that was deleted.
		return keep("it does not exist")
	case !d.Active():
		// Failed (120) is followed by disconnected; NetworkManager removes the
		// addresses on the way.
		return keep(StateName(d.State))
	case !d.ProfileKnown:
		return keep("its profile is not known yet")
	case d.Type == gnm.NmDeviceTypeUnknown:
		return keep("its type is unknown")
	default:
		return Link, fmt.Sprintf("%s, profile %q", StateName(d.State), d.ProfileID)
	}
}

// impossible names what no configuration can make a link.
func impossible(d Device) string {
	switch {
	case d.Name == "":
		return "it has no interface"
	case d.Name == "lo" || d.Type == DeviceTypeLoopback:
		return "it is the loopback"
	case d.Controller != "":
		return "it is a port of " + d.Controller
	default:
		return ""
	}
}

// unusual names what is no link unless the configuration includes it.
func unusual(d Device) string {
	switch d.Type {
	case gnm.NmDeviceTypeTun, gnm.NmDeviceTypeIpTunnel, gnm.NmDeviceTypeVxlan:
		return "it is a tunnel (" + TypeName(d.Type) + ")"
	case gnm.NmDeviceTypeWireguard:
		return "it is a VPN (wireguard)"
	case gnm.NmDeviceTypeDummy:
		return "it is a dummy"
	case DeviceTypeVRF:
		return "it is a VRF, which has its own table"
	case gnm.NmDeviceTypeOvsPort, gnm.NmDeviceTypeOvsBridge:
		return "it is an Open vSwitch object without addresses"
	default:
	}
	switch {
	case d.VPN:
		return "it is a VPN"
	case d.External:
		return "it is external: somebody else configured it"
	default:
		return ""
	}
}
