package dispatcher

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode"

	"multihomed/routing"
)

// dhclient reads what ISC's dhclient sets for dhclient-script(8), whose exit
// hooks get it too. In IPv6 it is called once for each address of a lease, and
// what else the server said is there each time.
//
// On TIMEOUT the script takes the address of the old lease away again if the
// router does not answer, and that does not show: Debian's sets exit_status anew
// for each hook.
func dhclient(env Environment) (Event, error) {
	if err := missing(env, "dhclient-script(8)", "reason", "interface"); err != nil {
		return Event{}, err
	}
	e := Event{Caller: "dhclient", Action: short(env["reason"])}
	p := &parser{env: env}
	var configs map[routing.Family]Config
	switch env["reason"] {
	case "BOUND", "RENEW", "REBIND", "REBOOT", "TIMEOUT":
		e.Effect = Configured
		configs = only(routing.IPv4, p.lease("new_subnet_mask", p.octets, "new_rfc3442_classless_static_routes", "new_ms_classless_static_routes"))
	case "EXPIRE", "FAIL", "RELEASE", "STOP":
		e.Effect = Gone
		configs = only(routing.IPv4, Config{})
	case "BOUND6", "RENEW6", "REBIND6":
		e.Effect, e.Part = Configured, p.lease6Part("new_")
		configs = only(routing.IPv6, p.lease6())
	case "DEPREF6":
		e.Effect = Changed
	case "EXPIRE6", "RELEASE6", "STOP6":
		e.Effect, e.Part = Gone, p.lease6Part("old_")
		configs = only(routing.IPv6, Config{})
	default:
		return e, nil
	}
	e.Odd = p.odd
	return about(e, env["interface"], configs)
}

// lease reads a lease of DHCPv4, as dhclient and dhcpcd agree on it. The routes
// of RFC 3442, of the first of the options that is there, are in each one's own
// words; with them the routers are ignored, whatever comes of the routes.
func (p *parser) lease(length string, classless func(*Config, string), options ...string) Config {
	var c Config
	if text := p.env["new_ip_address"]; text != "" {
		if a, ok := p.network(routing.IPv4, "new_ip_address", text, p.env[length]); ok {
			c.Addresses = []netip.Prefix{a}
		}
	}
	c.Gateways = p.addresses(routing.IPv4, "new_routers")
	for _, name := range options {
		if p.env[name] != "" {
			c.Gateways = nil
			classless(&c, name)
			break
		}
	}
	c.Servers = p.addresses(routing.IPv4, "new_domain_name_servers")
	c.Domains = p.domains("new_domain_name", "new_domain_search")
	return p.bounded(c)
}

// octets reads routes as they were on the wire, each octet a number.
func (p *parser) octets(c *Config, name string) {
	all := strings.FieldsFunc(p.env[name], func(r rune) bool { return r == ',' || unicode.IsSpace(r) })
	for n := 0; len(all) > 0; n++ {
		if n == maxItems {
			p.note(name, p.env[name], fmt.Sprintf("only the first %d are read", maxItems))
			return
		}
		to, via, rest, err := wireRoute(all)
		if err != nil {
			p.note(name, strings.Join(all, " "), err.Error())
			return
		}
		all = rest
		if r, ok := p.route(routing.IPv4, name, to.String(), via.String()); ok {
			c.add(r)
		}
	}
}

// wireRoute reads one route of RFC 3442: the length of the destination, as many
// octets of it as the length covers, and the router.
func wireRoute(all []string) (to netip.Prefix, via netip.Addr, rest []string, err error) {
	bits, err := strconv.ParseUint(all[0], 10, 8)
	if err != nil || bits > 32 {
		return netip.Prefix{}, netip.Addr{}, nil, errors.New("not the length of a destination")
	}
	significant := int(bits+7) / 8
	all = all[1:]
	if len(all) < significant+4 {
		return netip.Prefix{}, netip.Addr{}, nil, errors.New("the route is cut off")
	}
	var octets [8]byte
	for i, text := range all[:significant+4] {
		octet, err := strconv.ParseUint(text, 10, 8)
		if err != nil {
			return netip.Prefix{}, netip.Addr{}, nil, fmt.Errorf("%q is not an octet", short(text))
		}
		octets[i] = byte(octet)
	}
	var destination, router [4]byte
	copy(destination[:], octets[:significant])
	copy(router[:], octets[significant:])
	return netip.PrefixFrom(netip.AddrFrom4(destination), int(bits)), netip.AddrFrom4(router), all[significant+4:], nil
}

func (p *parser) lease6() Config {
	var c Config
	if text := p.env["new_ip6_address"]; text != "" {
		if a, ok := p.network(routing.IPv6, "new_ip6_address", text, p.env["new_ip6_prefixlen"]); ok {
			c.Addresses = []netip.Prefix{a}
		}
	}
	if text := p.env["new_ip6_prefix"]; text != "" {
		c.Delegated = p.delegated("new_ip6_prefix", text)
	}
	c.Servers = p.addresses(routing.IPv6, "new_dhcp6_name_servers")
	c.Domains = p.domains("new_dhcp6_domain_search")
	return p.bounded(c)
}

// lease6Part is the address, or the delegated prefix, that a call is about. One
// without either is about what a stateless server says.
func (p *parser) lease6Part(when string) string {
	if a, err := address(routing.IPv6, p.env[when+"ip6_address"]); err == nil {
		return a.String()
	}
	if d, err := destination(routing.IPv6, p.env[when+"ip6_prefix"]); err == nil {
		return d.String()
	}
	return ""
}
