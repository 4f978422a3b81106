package routing

// A Forwarded says whose traffic follows failover besides what this host itself sends.
type Forwarded uint8

// Whose traffic follows. A forwarded IPv6 packet has an address of a delegated prefix, which
// the provider of another link drops (RFC 2827).
const (
	// ForwardedIPv4 moves what this host forwards of IPv4, and not of IPv6.
	ForwardedIPv4 Forwarded = iota
	// ForwardedNone moves what this host sends itself.
	ForwardedNone
	// ForwardedAll moves all that this host forwards.
	ForwardedAll
)

// A Failover is what the planner must know to lead unbound traffic to a link that works.
// The zero Failover means off: there is no pair of rules, and table F is empty.
type Failover struct {
	Enabled bool
	// Dead are the uplinks judged dead in a family, by interface index.
	Dead ByFamily[map[int]struct{}]
	// Prefer are interface indexes in the order of the administrator for the replacement. The
	// others come behind these, in main's order.
	Prefer []int
	// Metered are the interfaces that are the last choice.
	Metered map[int]struct{}
	// Shares are the weights of uplinks that share unbound traffic, by interface index; nil
	// where nothing is shared. A weight is 1 to 255.
	Shares    map[int]uint8
	Forwarded Forwarded
	// HostRoutes moves also what main leads to single hosts by a dead uplink: VPN servers.
	HostRoutes bool
}

// A CourseReason names why unbound traffic goes the way that it goes.
type CourseReason string

// Why unbound traffic goes its way.
const (
	// CourseOff: failover is not enabled.
	CourseOff CourseReason = "off"
	// CourseAlone: fewer than two uplinks have a default of the family.
	CourseAlone CourseReason = "one-uplink"
	// CourseNoDefault: main has no default of the family.
	CourseNoDefault CourseReason = "no-default"
	// CourseNoUplink: main's best default leads through an interface that is no uplink, as
	// that of a VPN.
	CourseNoUplink CourseReason = "no-uplink"
	// CourseAlive: main's best default leads through an uplink that is not dead.
	CourseAlive CourseReason = "alive"
	// CourseDead: main's best default leads through a dead uplink, and another one lives.
	CourseDead CourseReason = "dead"
	// CourseNoneLives: main's best default leads through a dead uplink, and no other lives
	// that has a usable address.
	CourseNoneLives CourseReason = "none-lives"
	// CourseShared: several uplinks share unbound traffic.
	CourseShared CourseReason = "shared"
)

// A Course says which way unbound traffic of a family goes, and why.
type Course struct {
	Family Family
	// Main is main's best default, zero if there is none. Used is what unbound traffic uses:
	// main's, or the one of table F. With sharing it is the first way, and the others are
	// its legs.
	Main, Used Route
	// Moved says that unbound traffic does not follow main.
	Moved bool
	Why   CourseReason
}

// SetFailover takes what is judged and configured.
func (p *Planner) SetFailover(f Failover) { p.failover.facts = f }

// SetDefaults takes main's defaults of a family through any device, the best first.
func (p *Planner) SetDefaults(f Family, defaults []Route) { p.failover.defaults.Set(f, defaults) }

// Course returns which way unbound traffic of a family goes, false if no link has a table of
// the family.
func (p *Planner) Course(f Family) (Course, bool) {
	return p.failover.course.In(f), p.tables[f] > 0
}

// failing is what the planner keeps of failover.
type failing struct {
	facts    Failover
	defaults ByFamily[[]Route]
	course   ByFamily[Course]
}
