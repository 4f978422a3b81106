package config

import "strings"

// raw is the file as TOML has it. Numbers are wider than allowed, and nil pointers mark
// missing keys, so that the validator can judge each key with its line.
type raw struct {
	UplinkGroup           *int64       `toml:"uplink_group"`
	ContainerPrefixLength *int64       `toml:"container_prefix_length"`
	NetworkRules          *string      `toml:"network_rules"`
	LogLevel              *string      `toml:"log_level"`
	NetworkManager        *string      `toml:"network_manager"`
	StateDir              *string      `toml:"state_dir"`
	RuntimeDir            *string      `toml:"runtime_dir"`
	Tables                rawTables    `toml:"tables"`
	Repair                rawRepair    `toml:"repair"`
	Allocator             rawAllocator `toml:"allocator"`
	DNS                   rawDNS       `toml:"dns"`
	Ifupdown              rawIfupdown  `toml:"ifupdown"`
	Failover              rawFailover  `toml:"failover"`
	Share                 rawShare     `toml:"share"`
	Answers               rawAnswers   `toml:"answers"`
	Run                   rawRun       `toml:"run"`
	Include               []rawMatcher `toml:"include"`
	Exclude               []rawMatcher `toml:"exclude"`
	Link                  []rawLink    `toml:"link"`
	Bind                  []rawBind    `toml:"bind"`
}

type rawTables struct {
	First *int64 `toml:"first"`
	Last  *int64 `toml:"last"`
}

type rawRepair struct {
	Burst     *int64   `toml:"burst"`
	PerSecond *float64 `toml:"per_second"`
}

type rawAllocator struct {
	Enabled       *bool     `toml:"enabled"`
	Socket        *string   `toml:"socket"`
	Lifetime      *int64    `toml:"lifetime"`
	Families      *[]string `toml:"families"`
	Users         *[]string `toml:"users"`
	Groups        *[]string `toml:"groups"`
	TablesPerUser *int64    `toml:"tables_per_user"`
}

type rawDNS struct {
	ServersFile *string `toml:"servers_file"`
	PIDFile     *string `toml:"dnsmasq_pid_file"`
}

type rawIfupdown struct {
	MoveRoutes *bool `toml:"move_routes"`
}

type rawFailover struct {
	Enabled          *bool     `toml:"enabled"`
	Targets          *[]string `toml:"targets"`
	Probe            *string   `toml:"probe"`
	Interval         *string   `toml:"interval"`
	Standby          *string   `toml:"standby"`
	Metered          *string   `toml:"metered"`
	Silence          *string   `toml:"silence"`
	Recover          *string   `toml:"recover"`
	Prefer           *[]string `toml:"prefer"`
	Forwarded        *string   `toml:"forwarded"`
	HostRoutes       *bool     `toml:"host_routes"`
	Conntrack        *bool     `toml:"conntrack"`
	CloseConnections *string   `toml:"close_connections"`
	MPTCP            *string   `toml:"mptcp"`
	Prober           *string   `toml:"prober"`
}

type rawShare struct {
	// Weights is a table whose keys are names of links.
	Weights any `toml:"weights"`
}

type rawAnswers struct {
	Forwarded *string `toml:"forwarded"`
	Fence     *string `toml:"fence"`
	MarkMask  *int64  `toml:"mark_mask"`
	OnDead    *string `toml:"on_dead"`
}

type rawRun struct {
	Group *string `toml:"group"`
}

type rawMatcher struct {
	Interface *string `toml:"interface"`
	Profile   *string `toml:"profile"`
	Type      *string `toml:"type"`
}

// rawLink repeats the keys of rawMatcher: the reader does not follow embedded structs.
type rawLink struct {
	Interface *string `toml:"interface"`
	Profile   *string `toml:"profile"`
	Type      *string `toml:"type"`
	Role      *string `toml:"role"`
	// Gateway is a string or a list of strings.
	Gateway    any       `toml:"gateway"`
	LastResort *bool     `toml:"last_resort"`
	Ignore     *bool     `toml:"ignore"`
	Delegated  *[]string `toml:"delegated"`
}

func (r rawLink) matcher() rawMatcher {
	return rawMatcher{Interface: r.Interface, Profile: r.Profile, Type: r.Type}
}

type rawBind struct {
	Link      *string `toml:"link"`
	User      *string `toml:"user"`
	Mark      any     `toml:"mark"` // a number or a string
	Interface *string `toml:"interface"`
	Source    *string `toml:"source"`
	Unit      *string `toml:"unit"`
	Slice     *string `toml:"slice"`
	Cgroup    *string `toml:"cgroup"`
	Strict    *bool   `toml:"strict"`
	DNS       *bool   `toml:"dns"`
	Inbound   *string `toml:"inbound"`
}

// A spec is a key and what it may be set to, for error messages.
type spec struct{ key, allowed string }

const globAllowed = `a non-empty glob such as "wan*"`

// specs lists every key. A test compares it with raw and the reference.
func specs() []spec {
	return []spec{
		{"uplink_group", "a number from 1 to 2147483647"},
		{"container_prefix_length", "a number from 0 to 31"},
		{"network_rules", `"missing" or "always"`},
		{"log_level", `"debug", "info", "warn" or "error"`},
		{"network_manager", `"auto", "yes" or "no"`},
		{"state_dir", "the absolute path of a directory"},
		{"runtime_dir", "the absolute path of a directory"},
		{"tables", "a table ([tables])"},
		{"tables.first", "a number from 1 to 4294967295"},
		{"tables.last", "a number from 1 to 4294967295"},
		{"repair", "a table ([repair])"},
		{"repair.burst", "a whole number from 1 to 10000"},
		{"repair.per_second", "a number above 0, at most 1000"},
		{"allocator", "a table ([allocator])"},
		{"allocator.enabled", "true or false"},
		{"allocator.socket", "a name of 1 to 107 bytes, without control characters"},
		{"allocator.lifetime", "a whole number of seconds from 10 to 31536000"},
		{"allocator.families", `a non-empty list of "ipv4", "ipv6" and "unspecified"`},
		{"allocator.users", "a list of names or numbers of users"},
		{"allocator.groups", "a list of names or numbers of groups"},
		{"allocator.tables_per_user", "a whole number from 1 to 1000000"},
		{"dns", "a table ([dns])"},
		{"dns.servers_file", "the absolute path of a file, or empty"},
		{"dns.dnsmasq_pid_file", "the absolute path of a file"},
		{"ifupdown", "a table ([ifupdown])"},
		{"ifupdown.move_routes", "true or false"},
		{"failover", "a table ([failover])"},
		{"failover.enabled", "true or false"},
		{"failover.targets", `a list of at most 16 addresses such as "192.0.2.1", "tcp:192.0.2.1:443" or "icmp:2001:db8::1"`},
		{"failover.probe", `"auto", "dns", "tcp", "icmp" or "carrier"`},
		{"failover.interval", `a duration from "100ms" to "10s"`},
		{"failover.standby", `a duration from "1s" to "10m"`},
		{"failover.metered", `a duration from "1s" to "24h"`},
		{"failover.silence", `a duration from "200ms" to "1m"`},
		{"failover.recover", `a duration from "1s" to "5m"`},
		{"failover.prefer", `a list of interfaces or profiles such as "wan1" or "wwan*"`},
		{"failover.forwarded", `"none", "ipv4" or "all"`},
		{"failover.host_routes", "true or false"},
		{"failover.conntrack", "true or false"},
		{"failover.close_connections", `a duration from "0s" to "1h", or "never"`},
		{"failover.mptcp", `"auto" or "no"`},
		{"failover.prober", "the absolute path of a socket, at most 107 bytes"},
		{"share", "a table ([share])"},
		{"share.weights", "a table of interfaces or profiles with whole numbers from 1 to 255, such as { wan0 = 3, wan1 = 1 }"},
		{"answers", "a table ([answers])"},
		{"answers.forwarded", `"auto", "yes" or "no"`},
		{"answers.fence", `"auto", "yes" or "no"`},
		{"answers.mark_mask", "3 to 8 neighbouring bits, such as 0xff000000"},
		{"answers.on_dead", `"reset" or "keep"`},
		{"run", "a table ([run])"},
		{"run.group", "the name or number of a group"},
		{"include", "a list of tables ([[include]])"},
		{"include.interface", globAllowed},
		{"include.profile", globAllowed},
		{"include.type", globAllowed},
		{"exclude", "a list of tables ([[exclude]])"},
		{"exclude.interface", globAllowed},
		{"exclude.profile", globAllowed},
		{"exclude.type", globAllowed},
		{"link", "a list of tables ([[link]])"},
		{"link.interface", globAllowed},
		{"link.profile", globAllowed},
		{"link.type", globAllowed},
		{"link.role", `"uplink" or "local"`},
		{"link.gateway", "the address of a router, or a list with one of IPv4 and one of IPv6"},
		{"link.last_resort", "true or false"},
		{"link.ignore", "true or false"},
		{"link.delegated", `a non-empty list of networks such as "2001:db8:b::/56"`},
		{"bind", "a list of tables ([[bind]])"},
		{"bind.link", `the name of an interface or a profile, such as "wan1"`},
		{"bind.user", `the name or number of a user other than root, such as "alice", or a range of numbers such as "1000-1999"`},
		{"bind.mark", `a mark such as 0x10, or with a mask such as "0x10/0xff"`},
		{"bind.interface", `the name of an interface such as "br-lan"`},
		{"bind.source", `a network such as "172.31.0.0/24"`},
		{"bind.unit", `the name of a unit of systemd such as "backup.service"`},
		{"bind.slice", `the name of a slice of systemd such as "backup.slice"`},
		{"bind.cgroup", `the path of a control group such as "/sys/fs/cgroup/backup"`},
		{"bind.strict", "true or false"},
		{"bind.dns", "true or false"},
		{"bind.inbound", `"answer" or "deny"`},
	}
}

// allowed says what a key may be set to.
func allowed(key string) (string, bool) {
	for _, s := range specs() {
		if s.key == key {
			return s.allowed, true
		}
	}
	return "", false
}

// isKey reports whether there is such a key. The keys of a table of weights are names of links.
func isKey(key string) bool {
	_, known := allowed(key)
	return known || strings.HasPrefix(key, weightsKey+".")
}
