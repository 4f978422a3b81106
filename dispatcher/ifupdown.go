package dispatcher

import (
	"net/netip"
	"strings"
	"unicode"

	"multihomed/routing"
)

// ifupdown reads what ifup and ifdown set for /etc/network/if-up.d and
// if-post-down.d (interfaces(5)): once for each stanza, with its options as
// IF_*, in every phase the same. An option that is there twice has a line for
// each. An alias (eth0:1) is an interface of its own to ifupdown and a label of an
// address to the kernel.
//
// ifdown reads the file as it is then: of a stanza that was edited in between, the
// part that goes is not the one that came.
//
// NetworkManager runs the same directories (Debian's 01-ifupdown), and tells
// better itself.
func ifupdown(env Environment) (Event, error) {
	if err := missing(env, "interfaces(5)", "IFACE", "ADDRFAM", "METHOD", "PHASE"); err != nil {
		return Event{}, err
	}
	e := Event{Caller: "ifupdown", Action: short(env["PHASE"])}
	var f routing.Family
	switch env["ADDRFAM"] {
	case "inet":
		f = routing.IPv4
	case "inet6":
		f = routing.IPv6
	default:
		return e, nil
	}
	// --all is before and after all interfaces.
	if env["IFACE"] == "--all" || env["METHOD"] == "loopback" || env["METHOD"] == "NetworkManager" {
		return e, nil
	}
	switch env["PHASE"] {
	case "post-up":
		e.Effect = Configured
	case "post-down":
		e.Effect = Gone
	default:
		return e, nil
	}
	p := &parser{env: env}
	name, alias, _ := strings.Cut(env["IFACE"], ":")
	c := p.stanza(f)
	switch {
	case len(c.Addresses) != 0:
		e.Part = c.Addresses[0].Addr().String()
	case plain(name) && plain(alias):
		e.Part = env["IFACE"]
	case plain(env["METHOD"]):
		e.Part = env["METHOD"]
	default:
		p.note("METHOD", env["METHOD"], "not the name of a method")
	}
	if e.Effect == Gone {
		c = Config{}
	}
	e.Odd = p.odd
	return about(e, name, only(f, c))
}

// stanza reads the options of a stanza. Those of other methods than static are
// not about what comes of them.
func (p *parser) stanza(f routing.Family) Config {
	var c Config
	if text := p.env["IF_ADDRESS"]; text != "" {
		bare, length, _ := strings.Cut(text, "/")
		if length == "" {
			length = p.env["IF_NETMASK"]
		}
		if a, ok := p.network(f, "IF_ADDRESS", bare, length); ok {
			c.Addresses = []netip.Prefix{a}
		}
	}
	// ifup fails on a gateway for which main has no room, and would not get here.
	c.Gateways = append(p.gateway(f, "IF_GATEWAY", p.env["IF_GATEWAY"]), p.gateway(f, "IF_MULTIHOMED_GATEWAY", p.env["IF_MULTIHOMED_GATEWAY"])...)
	for _, peer := range p.gateway(f, "IF_POINTOPOINT", p.env["IF_POINTOPOINT"]) {
		c.add(Route{Destination: netip.PrefixFrom(peer, peer.BitLen())})
	}
	c.Servers = append(p.addresses(f, "IF_DNS_NAMESERVERS"), p.addresses(f, "IF_DNS_NAMESERVER")...)
	c.Domains = p.domains("IF_DNS_DOMAIN", "IF_DNS_SEARCH")
	return p.bounded(c)
}

// plain reports whether a word can be shown and compared as it is.
func plain(word string) bool {
	return word != "" && len(word) <= longest && !strings.ContainsFunc(word, func(r rune) bool {
		return r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '-' && r != '_' && r != '.'
	})
}
