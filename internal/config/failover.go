package config

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"multihomed/nm"
	"multihomed/routing"
)

// Failover configures whether and how unbound traffic leaves an uplink that is dead, and how
// that is found out.
type Failover struct {
	Enabled bool
	// Targets are asked instead of the DNS servers of each link; empty for those.
	Targets []Target
	// Probe says how the DNS servers of a link are asked, and nothing at all is sent with
	// ProbeCarrier.
	Probe Probe
	// Interval is the time between two probes of the link that unbound traffic uses, while it
	// carries traffic; Standby that of the other links and of an idle one; Metered that of links
	// that NetworkManager calls metered. None is shorter than the one before.
	Interval, Standby, Metered time.Duration
	// Silence is how long a link must not have answered before it is judged dead.
	Silence time.Duration
	// Recover is how long a dead link must answer again before it is judged alive.
	Recover time.Duration
	// Prefer are the replacements, the best first. Links that it does not name come behind, in
	// the order of main.
	Prefer []Name
	// Forwarded is which forwarded traffic moves with that of the host.
	Forwarded Forwarded
	// HostRoutes moves host routes of main that go through the dead link.
	HostRoutes bool
	// Conntrack deletes the connection tracking entries with source NAT to a dead link's address.
	Conntrack bool
	// CloseConnections is how long a link must have been dead before TCP connections with its
	// address are closed; [Never] if they are not.
	CloseConnections time.Duration
	// MPTCP is whether MPTCP gets endpoints for links for which NetworkManager makes none.
	MPTCP MPTCP
	// Prober is the socket of the process that sends the probes.
	Prober string
}

// Never is a duration that does not end.
const Never time.Duration = -1

// DurationText is a duration as a configuration has it.
func DurationText(d time.Duration) string {
	if d == Never {
		return "never"
	}
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// A Probe is a kind of packet that asks whether a link works.
type Probe string

// Kinds of probes. A target has one of DNS, TCP and ICMP.
const (
	// ProbeAuto is DNS, and what a target says of itself.
	ProbeAuto    Probe = "auto"
	ProbeDNS     Probe = "dns"
	ProbeTCP     Probe = "tcp"
	ProbeICMP    Probe = "icmp"
	ProbeCarrier Probe = "carrier"
)

// A Target is a host that answers if a link works.
type Target struct {
	// Probe is ProbeDNS, ProbeTCP or ProbeICMP.
	Probe Probe
	// Address has the port 0 with ProbeICMP.
	Address netip.AddrPort
}

func (t Target) String() string {
	if t.Probe == ProbeICMP {
		return string(t.Probe) + ":" + t.Address.Addr().String()
	}
	return string(t.Probe) + ":" + t.Address.String()
}

// Forwarded is which traffic of other hosts moves with failover.
type Forwarded string

// Choices of forwarded traffic. That of IPv6 has addresses that one provider delegated, and
// another one drops.
const (
	ForwardedNone Forwarded = "none"
	ForwardedIPv4 Forwarded = "ipv4"
	ForwardedAll  Forwarded = "all"
)

// MPTCP is whether MPTCP gets endpoints.
type MPTCP string

// MPTCPAuto makes endpoints where net.mptcp.enabled is 1.
const (
	MPTCPAuto MPTCP = "auto"
	MPTCPNo   MPTCP = "no"
)

// A Name selects links: a glob of path.Match that is compared with the name of the interface,
// and with the name and the UUID of the profile.
type Name string

// Matches reports whether a device is one of those that are meant. A device that NetworkManager
// does not know has only a name.
func (n Name) Matches(d nm.Device) bool {
	return nm.Matcher{Interface: string(n)}.Matches(d) || nm.Matcher{Profile: string(n)}.Matches(d)
}

// isPattern reports whether the name holds more than itself.
func (n Name) isPattern() bool { return strings.ContainsAny(string(n), `*?[\`) }

// Preference is the place of a device in Prefer; named is false if it has none.
func (f Failover) Preference(d nm.Device) (place int, named bool) {
	place = slices.IndexFunc(f.Prefer, func(n Name) bool { return n.Matches(d) })
	return place, place >= 0
}

// A Weight is the share of some links.
type Weight struct {
	Name Name
	// Weight is from 1 to 255.
	Weight uint8
}

// Share configures how unbound traffic is shared among uplinks. The zero value does not share.
type Share struct {
	// Weights has plain names before patterns, so that the first match counts.
	Weights []Weight
}

// WeightOf is the weight of a device, 0 if it has no share.
func (s Share) WeightOf(d nm.Device) uint8 {
	for _, w := range s.Weights {
		if w.Name.Matches(d) {
			return w.Weight
		}
	}
	return 0
}

// MaxTargets bounds the targets, each of which costs packets on each link.
const MaxTargets = 16

func defaultFailover() Failover {
	return Failover{
		Enabled: true, Probe: ProbeAuto,
		Interval: 250 * time.Millisecond, Standby: 5 * time.Second, Metered: time.Minute,
		Silence: 500 * time.Millisecond, Recover: 10 * time.Second,
		Forwarded: ForwardedIPv4, Conntrack: true, CloseConnections: 10 * time.Second,
		MPTCP: MPTCPAuto, Prober: "/run/multihomed-prober/socket",
	}
}

// durationBounds are those of a key of failover; a test compares them with [specs].
func durationBounds(key string) (shortest, longest time.Duration) {
	switch key {
	case "interval":
		return 100 * time.Millisecond, 10 * time.Second
	case "standby":
		return time.Second, 10 * time.Minute
	case "metered":
		return time.Second, 24 * time.Hour
	case "silence":
		return 200 * time.Millisecond, time.Minute
	case "recover":
		return time.Second, 5 * time.Minute
	default: // close_connections
		return 0, time.Hour
	}
}

const (
	failoverTable = "failover"
	weightsKey    = "share.weights"
)

func (v *validator) failover(file rawFailover, preset Failover) Failover {
	f := preset
	setBool(&f.Enabled, file.Enabled)
	setBool(&f.HostRoutes, file.HostRoutes)
	setBool(&f.Conntrack, file.Conntrack)
	f.Probe = word(v, "failover.probe", file.Probe, f.Probe, ProbeAuto, ProbeDNS, ProbeTCP, ProbeICMP, ProbeCarrier)
	f.Forwarded = word(v, "failover.forwarded", file.Forwarded, f.Forwarded, ForwardedNone, ForwardedIPv4, ForwardedAll)
	f.MPTCP = word(v, "failover.mptcp", file.MPTCP, f.MPTCP, MPTCPAuto, MPTCPNo)
	f.Interval = v.duration("interval", file.Interval, f.Interval)
	f.Standby = v.duration("standby", file.Standby, f.Standby)
	f.Metered = v.duration("metered", file.Metered, f.Metered)
	f.Silence = v.duration("silence", file.Silence, f.Silence)
	f.Recover = v.duration("recover", file.Recover, f.Recover)
	if file.CloseConnections != nil && *file.CloseConnections == "never" {
		f.CloseConnections = Never
	} else {
		f.CloseConnections = v.duration("close_connections", file.CloseConnections, f.CloseConnections)
	}
	f.Prober = v.directory("failover.prober", file.Prober, f.Prober)
	if len(f.Prober) > maxSocketPath {
		v.refuse("failover.prober", quoted(f.Prober))
	}
	f.Targets = v.targets(file.Targets, f.Probe)
	f.Prefer = v.prefer(file.Prefer)
	v.inOrder(file, f)
	return f
}

// maxSocketPath is what sun_path of sockaddr_un (unix(7)) leaves before the zero byte.
const maxSocketPath = 107

func setBool(to *bool, value *bool) {
	if value != nil {
		*to = *value
	}
}

// word is one of a few words that a key may be set to.
func word[T ~string](v *validator, key string, value *string, preset T, choices ...T) T {
	if value == nil {
		return preset
	}
	if !slices.Contains(choices, T(*value)) {
		v.refuseWord(key, *value)
		return preset
	}
	return T(*value)
}

func (v *validator) duration(key string, value *string, preset time.Duration) time.Duration {
	if value == nil {
		return preset
	}
	full := failoverTable + "." + key
	d, err := time.ParseDuration(*value)
	shortest, longest := durationBounds(key)
	switch {
	case err != nil && isNumber(*value):
		v.refuseWith(full, quoted(*value), fmt.Sprintf("it has no unit; write %q for seconds", *value+"s"))
		return preset
	case err != nil || d < shortest || d > longest:
		v.refuse(full, quoted(*value))
		return preset
	}
	return d
}

func isNumber(text string) bool {
	return text != "" && strings.Trim(text, "0123456789.") == ""
}

// refuseWith is refuse with the reason.
func (v *validator) refuseWith(key, value, why string) {
	want, _ := allowed(key)
	v.fail(v.at.first(key), key, fmt.Sprintf("%s is not allowed (%s); want %s", value, why, want))
}

// inOrder refuses intervals of which a longer one is shorter than the one before. It blames a
// key that is in the file.
func (v *validator) inOrder(file rawFailover, f Failover) {
	if v.faulty[failoverTable] || v.isRefused("failover.interval", "failover.standby", "failover.metered") {
		return
	}
	check := func(shortKey string, short time.Duration, longKey string, long time.Duration, longInFile *string) {
		if short <= long {
			return
		}
		key := longKey
		if longInFile == nil {
			key = shortKey
		}
		v.fail(v.at.first("failover."+key), "failover."+key, fmt.Sprintf("%s (%s) is longer than %s (%s); set %s to at least %s, or %s to at most %s",
			shortKey, DurationText(short), longKey, DurationText(long), longKey, DurationText(short), shortKey, DurationText(long)))
	}
	check("interval", f.Interval, "standby", f.Standby, file.Standby)
	check("standby", f.Standby, "metered", f.Metered, file.Metered)
}

// isRefused reports whether one of the keys has a mistake already.
func (v *validator) isRefused(keys ...string) bool {
	return slices.ContainsFunc(v.errs, func(e *Error) bool { return slices.Contains(keys, e.Key) })
}

func (v *validator) targets(file *[]string, probe Probe) []Target {
	if file == nil || len(*file) == 0 {
		return nil // As in Default, so that two configurations compare.
	}
	const key = "failover.targets"
	if probe == ProbeCarrier {
		v.fail(v.at.first(key), key, `no target is asked with probe = "carrier"; remove one of the two`)
		return nil
	}
	if len(*file) > MaxTargets {
		v.refuseWith(key, fmt.Sprintf("a list of %d", len(*file)), fmt.Sprintf("at most %d", MaxTargets))
		return nil
	}
	var all []Target
	for _, text := range *file {
		t, why := target(text, probe)
		switch {
		case why != "":
			v.refuseWith(key, quoted(text), why)
		case !slices.Contains(all, t):
			all = append(all, t)
		}
	}
	return all
}

// target parses [KIND:]ADDRESS[:PORT], or says why it cannot. Without a kind it is asked as
// probe says.
func target(text string, probe Probe) (t Target, why string) {
	rest := text
	t.Probe = probe
	for _, kind := range []Probe{ProbeDNS, ProbeTCP, ProbeICMP} {
		if after, is := strings.CutPrefix(text, string(kind)+":"); is {
			t.Probe, rest = kind, after
		}
	}
	port := uint16(0)
	address, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(rest, "["), "]"))
	if err != nil {
		both, err := netip.ParseAddrPort(rest)
		if err != nil {
			return t, "not an address; write one such as 192.0.2.1, tcp:192.0.2.1:443 or dns:[2001:db8::1]:53"
		}
		if address, port = both.Addr(), both.Port(); port == 0 {
			return t, "port 0 does not exist"
		}
	}
	switch {
	case address.Zone() != "":
		return t, "without a zone: each link asks it"
	case address.Is4In6():
		return t, "an address of IPv4 is written as one"
	case !routing.IsHostAddress(address):
		return t, "not the address of a host"
	case address.IsLinkLocalUnicast():
		return t, "an address of the link proves only the neighbour, not the way behind it"
	}
	if t.Probe == ProbeAuto {
		t.Probe = ProbeDNS
		if port != 0 && port != dnsPort {
			t.Probe = ProbeTCP
		}
	}
	switch {
	case t.Probe == ProbeICMP && port != 0:
		return t, "ICMP has no ports"
	case t.Probe == ProbeTCP && port == 0:
		return t, fmt.Sprintf("TCP needs a port; write tcp:%v", netip.AddrPortFrom(address, 443))
	case t.Probe == ProbeDNS && port == 0:
		port = dnsPort
	}
	t.Address = netip.AddrPortFrom(address, port)
	return t, ""
}

const dnsPort = 53

func (v *validator) prefer(file *[]string) []Name {
	if file == nil || len(*file) == 0 {
		return nil // As in Default, so that two configurations compare.
	}
	all := make([]Name, 0, len(*file))
	for _, text := range *file {
		if why := nameFault(text); why != "" {
			v.refuseWith("failover.prefer", quoted(text), why)
			continue
		}
		if !slices.Contains(all, Name(text)) {
			all = append(all, Name(text))
		}
	}
	return all
}

// nameFault says why a text selects no links, empty if it does.
func nameFault(text string) string {
	_, err := path.Match(text, "")
	switch {
	case text == "":
		return "it matches nothing"
	case err != nil:
		return `not a glob: * any text, ? one character, [a-c] one of a set, \ before a character that is meant itself`
	default:
		return ""
	}
}

func (v *validator) share(file rawShare) Share {
	table, is := file.Weights.(map[string]any)
	if file.Weights != nil && !is {
		v.fail(v.at.first(weightsKey), weightsKey, misfit(file.Weights, weightsKey))
	}
	if len(table) > maxShares {
		v.refuseWith(weightsKey, fmt.Sprintf("a table of %d", len(table)), fmt.Sprintf("at most %d", maxShares))
		return Share{}
	}
	var all []Weight
	for _, name := range slices.Sorted(maps.Keys(table)) {
		full := weightsKey + "." + name
		want, _ := allowed(weightsKey)
		fail := func(format string, arguments ...any) {
			v.fail(v.at.first(full), weightsKey+"."+shown(name), fmt.Sprintf(format, arguments...)+"; want "+want)
		}
		if why := nameFault(name); why != "" {
			fail("%s is not allowed (%s)", quoted(name), why)
			continue
		}
		weight, is := table[name].(int64)
		if text, huge := v.at.huge[occurrence{full, v.at.first(full)}]; huge {
			fail("%s is not allowed", cut(text))
			continue
		}
		switch {
		case isTable(table[name]):
			fail("a table is not allowed (a name with a dot goes in quotation marks: \"eth0.100\" = 1)")
		case !is:
			fail("%s is not allowed", describe(table[name]))
		case weight < 1 || weight > maxWeight:
			fail("%d is not allowed", weight)
		default:
			all = append(all, Weight{Name: Name(name), Weight: uint8(weight)})
		}
	}
	slices.SortStableFunc(all, func(a, b Weight) int {
		return cmp.Or(compareBool(a.Name.isPattern(), b.Name.isPattern()), -cmp.Compare(len(a.Name), len(b.Name)))
	})
	return Share{Weights: all}
}

// maxWeight is the most that a leg of a route can have in every kernel: rtnh_hops of rtnexthop
// (linux/rtnetlink.h) holds the weight less one in 8 bits.
const maxWeight = 255

// maxShares bounds the names, each of which is compared with each link.
const maxShares = 64

func isTable(value any) bool {
	_, is := value.(map[string]any)
	return is
}

// compareBool puts false first.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}
