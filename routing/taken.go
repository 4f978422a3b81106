package routing

// Takes reports whether a route of somebody else in the table of a link says that the
// number is his. An administrator may add routes for the link to its table, and a rule that
// looks it up: both are welcome, and go on working only where the table stays. So a route
// through the link takes nothing by itself, a rule takes nothing by itself, and a route to a
// network behind another interface neither. What is left:
//
//   - a default, or a part of one, through another interface: packets of the link would leave
//     by that;
//   - a rule that leads to the table, and a default of its own in it: the two need nothing of
//     the link, and the link's networks are in their way. So programs count that number tables
//     themselves (FRR's pbrd, ec2-net-utils);
//   - such a rule, and any route through another interface.
//
// Routes that refuse packets take nothing: `blackhole default` behind the link's own default
// and a rule are how one says "by this link or not at all". Widest is the longest prefix that
// is a part of a default.
func Takes(r Route, device int, rule bool, widest uint32) bool {
	if r.Type != RouteUnicast {
		return false
	}
	wide, elsewhere := r.Destination.Bits() <= int(widest), r.Device != device
	if rule {
		return wide || elsewhere
	}
	return wide && elsewhere
}
