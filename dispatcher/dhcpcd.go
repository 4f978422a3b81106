package dispatcher

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"multihomed/routing"
)

// dhcpcd reads what dhcpcd 9 and 10 set for dhcpcd-run-hooks(8). The part is what
// dhcpcd calls the protocol; it follows from the reason.
//
// Without carrier dhcpcd drops all it has configured, persistent or not, and says
// so before it does; of a static address of IPv6 it says nothing else. One that
// ends has told of each part that it drops, and leaves the rest in place if it is
// persistent, as Debian configures it; only if it released its leases
// nothing can be left.
func dhcpcd(env Environment) (Event, error) {
	if err := missing(env, "dhcpcd-run-hooks(8)", "reason", "interface"); err != nil {
		return Event{}, err
	}
	e := Event{Caller: "dhcpcd", Action: short(env["reason"]), Effect: Configured}
	p := &parser{env: env}
	f, c := routing.IPv4, Config{}
	switch env["reason"] {
	case "BOUND", "RENEW", "REBIND", "REBOOT", "INFORM", "TIMEOUT", "STATIC", "3RDPARTY":
		// Without an address dhcpcd waits for somebody else to set one.
		if env["reason"] == "3RDPARTY" && env["new_ip_address"] == "" {
			e.Effect = Nothing
			return e, nil
		}
		e.Part, c = "dhcp", p.dhcpcdLease()
	case "EXPIRE", "FAIL", "NAK", "RELEASE", "STOP":
		e.Part, e.Effect = "dhcp", Gone
	case "IPV4LL":
		if e.Part = "ipv4ll"; p.down() {
			e.Effect = Gone
			break
		}
		c = p.dhcpcdLease()
	case "BOUND6", "RENEW6", "REBIND6", "REBOOT6", "INFORM6", "TIMEOUT6":
		e.Part, f, c = "dhcp6", routing.IPv6, p.dhcpcdLease6()
	case "EXPIRE6", "FAIL6", "NAK6", "RELEASE6", "STOP6":
		e.Part, f, e.Effect = "dhcp6", routing.IPv6, Gone
	case "DELEGATED6":
		// The interface behind this host that has addresses of a prefix delegated
		// through another one. That it is up does not show in if_up (9.4.1,
		// measured), and of its end nothing is told but that of the other one.
		const name = "new_delegated_dhcp6_prefix"
		e.Part, f = "dhcp6", routing.IPv6
		if env[name] == "" {
			e.Effect = Gone
			break
		}
		for _, word := range p.words(name) {
			bare, length, _ := strings.Cut(word, "/")
			if a, ok := p.network(routing.IPv6, name, bare, length); ok {
				c.Addresses = append(c.Addresses, a)
			}
		}
		c = p.bounded(c)
	case "STATIC6":
		e.Part, f = "static6", routing.IPv6
		// dhcpcd 9 asks too early which address it has.
		if env["new_ip6_address"] == "" {
			e.Effect = Changed
			return about(e, env["interface"], nil)
		}
		c.Addresses = p.with("new_ip6_address")
	case "ROUTERADVERT":
		e.Part, f = "ra", routing.IPv6
		if p.down() || env["nd1_from"] == "" {
			e.Effect = Gone
			break
		}
		c = p.advertisements()
	case "NOCARRIER", "DEPARTED":
		e.Effect = Gone
		return about(e, env["interface"], nil)
	case "STOPPED":
		if e.Effect = Changed; p.down() {
			e.Effect = Gone
		}
		return about(e, env["interface"], nil)
	default:
		e.Effect = Nothing
		return e, nil
	}
	e.Odd = p.odd
	return about(e, env["interface"], only(f, c))
}

func (p *parser) down() bool { return p.env["if_down"] == "true" }

func (p *parser) dhcpcdLease() Config {
	length := "new_subnet_cidr"
	if p.env[length] == "" {
		length = "new_subnet_mask"
	}
	return p.lease(length, p.pairs, "new_classless_static_routes", "new_ms_classless_static_routes")
}

// pairs reads routes as dhcpcd writes them: destination, gateway, destination...
func (p *parser) pairs(c *Config, name string) {
	all := strings.Fields(p.env[name])
	if len(all)%2 != 0 {
		p.note(name, all[len(all)-1], "a destination without a gateway")
	}
	for n := 0; n+1 < len(all); n += 2 {
		if n == 2*maxItems {
			p.note(name, p.env[name], fmt.Sprintf("only the first %d are read", maxItems))
			return
		}
		if r, ok := p.route(routing.IPv4, name, all[n], all[n+1]); ok {
			c.add(r)
		}
	}
}

// associations bounds how many a lease of DHCPv6 may have.
const associations = 16

// dhcpcdLease6 reads a lease of DHCPv6; its addresses have no network. A prefix
// that is delegated is in variables of its own (dhcp6_env of dhcpcd's dhcp6.c),
// which dhcpcd puts into one association or several.
func (p *parser) dhcpcdLease6() Config {
	var c Config
	for _, kind := range []string{"na", "ta"} {
		for n := range associations {
			for name := range p.numbered("new_dhcp6_ia_"+kind+strconv.Itoa(n+1)+"_ia_addr", "") {
				if p.env[name+"_vltime"] != "0" {
					c.Addresses = append(c.Addresses, p.with(name)...)
				}
			}
		}
	}
	for n := range associations {
		for name := range p.numbered("new_dhcp6_ia_pd"+strconv.Itoa(n+1)+"_prefix", "") {
			if p.env[name+"_vltime"] != "0" {
				c.Delegated = append(c.Delegated, p.delegated(name, p.env[name]+"/"+p.env[name+"_length"])...)
			}
		}
	}
	c.Servers = p.addresses(routing.IPv6, "new_dhcp6_name_servers")
	c.Domains = p.domains("new_dhcp6_domain_search")
	return p.bounded(c)
}

// advertisements reads what all routers of a link advertise. The variables hold
// the last of each that is not too old, also of one that is no router any more.
func (p *parser) advertisements() Config {
	type router struct {
		address netip.Addr
		rank    int
	}
	var c Config
	var routers []router
	for nd := range p.numbered("nd", "_from") {
		if p.env[nd+"_lifetime"] != "0" {
			for _, a := range p.gateway(routing.IPv6, nd+"_from", p.env[nd+"_from"]) {
				routers = append(routers, router{a, rank(p.env[nd+"_flags"])})
			}
		}
		for name := range p.numbered(nd+"_addr", "") {
			c.Addresses = append(c.Addresses, p.with(name)...)
		}
		for name := range p.numbered(nd+"_prefix_information", "_prefix") {
			if strings.Contains(p.env[name+"_flags"], "L") && p.env[name+"_vltime"] != "0" {
				if r, ok := p.route(routing.IPv6, name+"_prefix", p.env[name+"_prefix"]+"/"+p.env[name+"_length"], ""); ok {
					c.add(r)
				}
			}
		}
		for name := range p.numbered(nd+"_rdnss", "_servers") {
			if p.env[name+"_lifetime"] != "0" {
				c.Servers = append(c.Servers, p.addresses(routing.IPv6, name+"_servers")...)
			}
		}
		for name := range p.numbered(nd+"_dnssl", "_search") {
			if p.env[name+"_lifetime"] != "0" {
				c.Domains = append(c.Domains, p.domains(name+"_search")...)
			}
		}
	}
	slices.SortStableFunc(routers, func(a, b router) int { return cmp.Compare(a.rank, b.rank) })
	for _, r := range routers {
		c.Gateways = append(c.Gateways, r.address)
	}
	return p.bounded(c)
}

// rank orders routers by the preference of RFC 4191, which is among the flags.
func rank(flags string) int {
	switch {
	case strings.Contains(flags, "h"):
		return 0
	case strings.Contains(flags, "l"):
		return 2
	default:
		return 1
	}
}

// numbered goes through prefix1, prefix2, ... as long as there is a variable of
// that name with the suffix.
func (p *parser) numbered(prefix, suffix string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for n := 1; n <= maxItems; n++ {
			name := prefix + strconv.Itoa(n)
			if _, there := p.env[name+suffix]; !there || !yield(name) {
				return
			}
		}
	}
}

// with reads an address of IPv6 with its length, if it has one.
func (p *parser) with(name string) []netip.Prefix {
	bare, length, _ := strings.Cut(p.env[name], "/")
	a, ok := p.network(routing.IPv6, name, bare, length)
	if !ok {
		return nil
	}
	return []netip.Prefix{a}
}
