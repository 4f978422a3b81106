package routing

// A Policy is what the administrator may decide. Everything else follows from
// the facts.
type Policy struct {
	// Tables is the range that leases come from. Objects outside it are never
	// ours, whatever they carry.
	Tables TableRange
	// UplinkGroup is the interface group (IFLA_GROUP) that marks uplinks, so
	// that one rule can tell them from every other interface.
	UplinkGroup uint32
	// ContainerPrefixLength is the suppress_prefixlength of the rules that keep
	// containers, VPN networks and LANs reachable from bound sockets: routes of
	// main that are this long or shorter do not count. 7 keeps the pieces that VPN
	// clients make a default of (0.0.0.0/1, 2000::/4, 0.0.0.0/5) from catching
	// bound traffic.
	ContainerPrefixLength uint32
	// NetworksAlways asks for the rungs of networks also where main has the
	// network through the link and they change nothing for it.
	NetworksAlways bool
}

// DefaultPolicy is the policy of a host without a configuration.
func DefaultPolicy() Policy {
	return Policy{
		Tables:                TableRange{First: 10000, Last: 10999},
		UplinkGroup:           28008,
		ContainerPrefixLength: 7,
	}
}

// FailoverTable is table F: the last number of the range, which no lease gets. A range of one
// table has none.
func (p Policy) FailoverTable() (TableID, bool) { return p.Ownership().FailoverTable() }

// OwnsRule reports whether a rule found in the kernel is ours, see [Ownership].
func (p Policy) OwnsRule(r Rule) bool { return p.Ownership().OwnsRule(r) }

// OwnsRoute reports whether a route found in the kernel is ours, see [Ownership].
func (p Policy) OwnsRoute(r Route) bool { return p.Ownership().OwnsRoute(r) }

// IsStandIn reports whether a route has the form of those that main gets for a
// link without a table: a default whose metric is the interface's index. The
// protocol alone would not tell it from what somebody else put there.
func (r Route) IsStandIn() bool {
	return r.Table == TableMain && r.Type == RouteUnicast && r.IsDefault() && r.Device > 0 && r.Metric == standInMetric(r.Device)
}

func standInMetric(device int) uint32 { return uint32(device) } //nolint:gosec // indexes are positive
