// Package config reads the configuration of multihomed: an optional TOML file
// with strict keys. Whatever is wrong with it is reported with the file, the
// line, the key and what is allowed, all at once.
package config

import (
	_ "embed"
	"log/slog"
	"time"

	"multihomed/internal/offswitch"
	"multihomed/nm"
	"multihomed/routing"
)

// DefaultPath is where the configuration is, if there is one.
const DefaultPath = "/etc/multihomed/multihomed.toml"

// Reference is a configuration file that documents every key. Without its comment signs it
// means the same as Default.
//
//go:embed reference.toml
var Reference string

// A Config is a configuration that is sound.
type Config struct {
	// Tables is the range of routing tables that links get. Its last number is kept
	// for failover.
	Tables routing.TableRange
	// UplinkGroup is the interface group of uplinks.
	UplinkGroup uint32
	// ContainerPrefixLength is the suppress_prefixlength of the rule that keeps
	// containers, VPN networks and LANs reachable for bound traffic.
	ContainerPrefixLength uint32
	// NetworkRules says which networks get rules that lead to them.
	NetworkRules NetworkRules
	// Include lists interfaces that are links although the facts say no; Exclude lists
	// interfaces that are none, and wins.
	Include, Exclude []Matcher
	// Links are the entries of [[link]], in the order of the file; see [SettingsOf].
	Links    []Link
	LogLevel slog.Level
	// NetworkManager says whether the host has one; Auto looks.
	NetworkManager Presence
	// RepairBurst and RepairsPerSecond bound how often objects that somebody else deleted
	// are restored.
	RepairBurst      int
	RepairsPerSecond float64
	// Allocator is the service that leases tables to other programs.
	Allocator Allocator
	// DNS is the file of servers for dnsmasq.
	DNS DNS
	// Failover moves unbound traffic away from dead links, Share spreads it over several.
	Failover Failover
	Share    Share
	// Answers are for containers and LANs: on which link this host answers for them.
	Answers Answers
	// Run is for multihomectl run.
	Run Run
	// Binds are the entries of [[bind]], in the order of the file.
	Binds []Bind
	// MoveRoutes takes the routes of links that ifupdown brings up out of main.
	MoveRoutes bool
	// StateDir holds the leases, RuntimeDir the lock and what status reads.
	StateDir, RuntimeDir string
}

// Allocator configures the service that leases tables to other programs.
type Allocator struct {
	Enabled bool
	// Socket is the abstract name that the service listens on.
	Socket string
	// Lifetime of a lease that is not renewed; whole seconds.
	Lifetime time.Duration
	// Families that are leased: 0 (unspecified), 2 and 10.
	Families []routing.Family
	// Users and Groups may lease tables besides root, by name or number.
	Users, Groups []string
	// TablesPerUser bounds the leases of every user but root.
	TablesPerUser int
}

// Run configures who may use multihomectl run.
type Run struct {
	// Group is the name or number of the group whose members may, beside root.
	Group string
}

// DNS configures the file of servers that dnsmasq(8) reads (servers-file).
type DNS struct {
	// ServersFile is empty if there is none.
	ServersFile string
	// PIDFile names the dnsmasq that reads it.
	PIDFile string
}

// A Presence says whether this host has a program.
type Presence string

// Presences.
const (
	Auto Presence = "auto"
	Yes  Presence = "yes"
	No   Presence = "no"
)

// NetworkRules says which networks of links get rules that lead to them.
type NetworkRules string

// Missing asks for rules for the networks that main does not have through the
// link; Always for every network.
const (
	Missing NetworkRules = "missing"
	Always  NetworkRules = "always"
)

// A Matcher selects links. Its fields are globs of path.Match or empty for
// anything, and all must match.
type Matcher struct {
	Interface string
	// Profile is the name or the UUID of a profile.
	Profile string
	// Type is a device type as nmcli names it.
	Type string
}

// Default is the configuration of a host without a file.
func Default() Config {
	policy := routing.DefaultPolicy()
	return Config{
		Tables:                policy.Tables,
		UplinkGroup:           policy.UplinkGroup,
		ContainerPrefixLength: policy.ContainerPrefixLength,
		NetworkRules:          Missing,
		LogLevel:              slog.LevelInfo,
		NetworkManager:        Auto,
		RepairBurst:           20,
		RepairsPerSecond:      1,
		Allocator: Allocator{
			Enabled: true, Socket: "tas_socket", Lifetime: time.Hour,
			Families:      []routing.Family{0, routing.IPv4, routing.IPv6},
			Groups:        []string{"multihomed"},
			TablesPerUser: 100,
		},
		Failover:   defaultFailover(),
		Answers:    defaultAnswers(),
		Run:        Run{Group: "multihomed"},
		DNS:        DNS{PIDFile: "/run/dnsmasq/dnsmasq.pid"},
		StateDir:   "/var/lib/multihomed",
		RuntimeDir: "/run/multihomed",
	}
}

// RoutingPolicy is the part that concerns the planner.
func (c Config) RoutingPolicy() routing.Policy {
	return routing.Policy{
		Tables:                c.Tables,
		UplinkGroup:           c.UplinkGroup,
		ContainerPrefixLength: c.ContainerPrefixLength,
		NetworksAlways:        c.NetworkRules == Always,
	}
}

// Switch is where the administrator's off switch is.
func (c Config) Switch() offswitch.Directories {
	return offswitch.Directories{State: c.StateDir, Runtime: c.RuntimeDir}
}

// NMPolicy is the part that decides which devices of NetworkManager are links.
func (c Config) NMPolicy() nm.Policy {
	return nm.Policy{Include: matchers(c.Include), Exclude: matchers(c.Exclude)}
}

func matchers(list []Matcher) []nm.Matcher {
	all := make([]nm.Matcher, 0, len(list))
	for _, m := range list {
		all = append(all, nm.Matcher(m))
	}
	return all
}
