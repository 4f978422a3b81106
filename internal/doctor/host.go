package doctor

import (
	"net/netip"

	"multihomed/routing"
	"multihomed/routing/lookup"
)

// A Host is what is known of a host besides its status. What is zero was not looked at, or is not
// there: Unlooked tells the difference.
type Host struct {
	Interfaces []routing.Interface
	// Names are the interfaces as lookups know them, with all their names.
	Names []lookup.Interface
	// Rules are those of each family, ours and those of others, in the order of the kernel.
	Rules map[routing.Family][]routing.Rule
	// Tables are the routes that rules may lead to; Partial are the tables that are too long.
	Tables  map[routing.Family]map[routing.TableID][]routing.Route
	Partial map[routing.Family]map[routing.TableID]bool
	// Parameters are those of the kernel by their names in /proc/sys, such as
	// "net/ipv4/conf/wan0/rp_filter". Only numbers count.
	Parameters map[string]int
	// Filter is the ruleset of nf_tables, in the order in which packets meet it.
	Filter []FilterRule
	// Neighbors counts the entries of the neighbor tables that may be thrown out.
	Neighbors map[routing.Family]int
	// Entries6 counts the destination entries of IPv6.
	Entries6 int
	// Missing are options that the kernel was built without, such as "CONFIG_IPV6_SUBTREES".
	Missing []string
	// Endpoints are those of Multipath TCP, Subflows how many a connection may add.
	Endpoints []netip.Addr
	Subflows  int
	// Nameservers are those of resolv.conf; NamedBy says which interfaces named each.
	Nameservers []netip.Addr
	NamedBy     map[netip.Addr][]string
	// Agents are programs that make rules for addresses of links.
	Agents []Agent
	// Dropped counts messages that the kernel could not deliver to the netlink sockets of the daemon.
	Dropped int

	// Probed says that packets were sent; Probes are their results.
	Probed bool
	Probes []Probe

	Unlooked []Unlooked
}

// An Agent is a program that makes rules for addresses of links, and will run.
type Agent struct {
	// Name is of the program, File what says that it runs.
	Name, File string
	// Stop are the commands that keep it from running.
	Stop routing.Commands
}

// A Match selects by the name of an interface.
type Match struct {
	// Name may end with *, if the firewall selects by the beginning.
	Name string
	// Not turns it around.
	Not bool
}

// A Deed is what a rule of a firewall does to a packet.
type Deed uint8

// The deeds that matter here.
const (
	// Mark: it sets bits of the mark.
	Mark Deed = iota
	// RestoreMark: it takes the mark from the connection.
	RestoreMark
	SNAT
	Masquerade
	DNAT
	// DropStray: it drops packets whose source the routing table knows elsewhere.
	DropStray
)

// A FilterRule is one rule of a firewall that does something that matters, with what leads to it.
type FilterRule struct {
	// Table is "ip nat"; Base and Chain are the chain that the kernel calls and the one that has the
	// rule. Handle is its number.
	Table, Base, Chain string
	Handle             uint64
	// IPv4 and IPv6 say which packets it sees.
	IPv4, IPv6 bool
	// Hook is "prerouting", "output" or "postrouting".
	Hook string
	Deed Deed
	// In and Out select by interface, also on the way to the rule.
	In, Out []Match
	// Source is of `ip saddr`, zero if it has none. Except says that it leaves out some
	// destinations or protocols, Narrow that it selects by something else, too.
	Source         netip.Prefix
	Except, Narrow bool
	// To is the new address; Value and Mask are those of a mark.
	To          netip.Addr
	Value, Mask uint32
	// XT says that iptables-nft made the table.
	XT bool
}

// String names the rule so that nft(8) finds it.
func (r FilterRule) String() string { return r.Table + " " + r.Chain + " handle " + number(r.Handle) }

// A Probe is what packets by one link showed, in one family.
type Probe struct {
	Link   string
	Family routing.Family
	// RouterAnswers and OutsideAnswers say who answered; OutsideAsked that somebody outside was asked.
	RouterAnswers, OutsideAsked, OutsideAnswers bool
	// Router and Outside are who were asked.
	Router, Outside netip.Addr
	// MTU is that of the interface, PathMTU the largest packet that was answered; zero if sizes were
	// not tried.
	MTU, PathMTU int
	// Conflicts are addresses of the link that another host answers for, with its hardware address.
	Conflicts []Conflict
}

// A Conflict is an address that another host has, too.
type Conflict struct {
	Address  netip.Addr
	Hardware string
}
