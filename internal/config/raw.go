package config

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
	Include               []rawMatcher `toml:"include"`
	Exclude               []rawMatcher `toml:"exclude"`
	Link                  []rawLink    `toml:"link"`
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
