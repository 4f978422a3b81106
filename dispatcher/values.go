package dispatcher

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode"

	"multihomed/internal/dnsname"
	"multihomed/routing"
)

// A parser reads the variables of one event and collects what is odd.
type parser struct {
	env Environment
	odd []string
}

// maxOdd bounds what is said of values that make no sense, longest how much of
// each is shown.
const (
	maxOdd  = 20
	longest = 60
)

func (p *parser) note(name, value, why string) {
	if len(p.odd) >= maxOdd {
		return
	}
	p.odd = append(p.odd, fmt.Sprintf("%s=%q: %s", name, short(value), why))
}

// short bounds what is shown of a value.
func short(value string) string {
	if len(value) > longest {
		return value[:longest] + "..."
	}
	return value
}

// maxItems bounds every list.
const maxItems = 256

// words splits a list by white space.
func (p *parser) words(name string) []string {
	all := strings.Fields(p.env[name])
	if len(all) > maxItems {
		p.note(name, p.env[name], fmt.Sprintf("only the first %d are read", maxItems))
		all = all[:maxItems]
	}
	return all
}

// address reads an address of a family that can be somebody's.
func address(f routing.Family, text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	// A zone says by which interface a link-local router is reached, which is
	// known.
	a = a.WithZone("")
	switch {
	case err != nil:
		return netip.Addr{}, fmt.Errorf("not an address")
	case a.Is4In6() || routing.FamilyOf(a) != f:
		return netip.Addr{}, fmt.Errorf("not an address of %v", f)
	case !routing.IsHostAddress(a):
		return netip.Addr{}, fmt.Errorf("not the address of a host")
	}
	return a, nil
}

// addresses reads a list of addresses; what is none is left out.
func (p *parser) addresses(f routing.Family, name string) []netip.Addr {
	var all []netip.Addr
	for _, word := range p.words(name) {
		a, err := address(f, word)
		if err != nil {
			p.note(name, word, err.Error())
			continue
		}
		all = append(all, a)
	}
	return all
}

// gateway reads one gateway, none for what callers write where there is none.
func (p *parser) gateway(f routing.Family, name, text string) []netip.Addr {
	if text = strings.TrimSpace(text); nobody(text) {
		return nil
	}
	a, err := address(f, text)
	if err != nil {
		p.note(name, text, err.Error())
		return nil
	}
	return []netip.Addr{a}
}

func nobody(text string) bool { return text == "" || text == "0.0.0.0" || text == "::" }

// destination reads where a route leads to.
func destination(f routing.Family, text string) (netip.Prefix, error) {
	d, err := netip.ParsePrefix(text)
	if err != nil || d.Addr().Is4In6() || routing.FamilyOf(d.Addr()) != f {
		return netip.Prefix{}, fmt.Errorf("not a destination of %v", f)
	}
	return d.Masked(), nil
}

// route reads a destination and the router to it. One whose router makes no sense
// is none: it would lead to the link.
func (p *parser) route(f routing.Family, name, to, via string) (Route, bool) {
	d, err := destination(f, to)
	if err != nil {
		p.note(name, to, err.Error())
		return Route{}, false
	}
	if nobody(via) {
		return Route{Destination: d}, true
	}
	a, err := address(f, via)
	if err != nil {
		p.note(name, via, err.Error())
		return Route{}, false
	}
	return Route{Destination: d, Gateway: a}, true
}

// delegated reads a prefix of IPv6 that is delegated to this host.
func (p *parser) delegated(name, text string) []netip.Prefix {
	d, err := destination(routing.IPv6, text)
	if err == nil {
		err = CheckDelegated(d)
	}
	if err != nil {
		p.note(name, text, err.Error())
		return nil
	}
	return []netip.Prefix{d}
}

// add puts a route where it belongs.
func (c *Config) add(r Route) {
	if r.Destination.Bits() == 0 && r.Gateway.IsValid() {
		c.Gateways = append(c.Gateways, r.Gateway)
		return
	}
	c.Routes = append(c.Routes, r)
}

// bounded says everything once, and no more than the kernel or a resolver could
// ever be asked to take.
func (p *parser) bounded(c Config) Config {
	c.Addresses = clip(p, "addresses", c.Addresses)
	c.Gateways = clip(p, "gateways", c.Gateways)
	c.Routes = clip(p, "routes", c.Routes)
	c.Servers = clip(p, "name servers", c.Servers)
	c.Domains = clip(p, "domains", c.Domains)
	c.Delegated = clip(p, "delegated prefixes", c.Delegated)
	if len(c.Delegated) > MaxDelegated {
		p.note("delegated prefixes", strconv.Itoa(len(c.Delegated)), fmt.Sprintf("only the first %d are taken", MaxDelegated))
		c.Delegated = c.Delegated[:MaxDelegated]
	}
	return c
}

func clip[T comparable](p *parser, what string, all []T) []T {
	all = unique(all)
	if len(all) > maxItems {
		p.note(what, strconv.Itoa(len(all)), fmt.Sprintf("only the first %d are taken", maxItems))
		all = all[:maxItems]
	}
	return all
}

// network reads an address with the length of its network.
func (p *parser) network(f routing.Family, name, text, length string) (netip.Prefix, bool) {
	a, err := address(f, text)
	if err != nil {
		p.note(name, text, err.Error())
		return netip.Prefix{}, false
	}
	bits, err := prefixLength(f, length)
	if err != nil {
		p.note(name, text+"/"+length, err.Error())
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, bits), true
}

// prefixLength reads a length, which may be a netmask; without one the address
// stands for itself.
func prefixLength(f routing.Family, text string) (int, error) {
	if text == "" {
		return f.Bits(), nil
	}
	if f == routing.IPv4 && strings.Contains(text, ".") {
		mask, err := netip.ParseAddr(text)
		if err != nil || !mask.Is4() {
			return 0, fmt.Errorf("not a netmask")
		}
		b := mask.As4()
		value := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
		ones := 0
		for value&(1<<31) != 0 {
			ones, value = ones+1, value<<1
		}
		if value != 0 {
			return 0, fmt.Errorf("a netmask with holes")
		}
		return ones, nil
	}
	bits, err := strconv.ParseUint(text, 10, 8)
	if err != nil || int(bits) > f.Bits() {
		return 0, fmt.Errorf("not the length of a prefix of %v", f)
	}
	return int(bits), nil
}

// domains reads a list of domains. They end up in configuration files of others,
// so only what a name may hold gets through (RFC 1123, and _ of RFC 8552).
func (p *parser) domains(names ...string) []string {
	var all []string
	for _, name := range names {
		for _, word := range p.words(name) {
			// Servers end the option with a NUL that is no part of it; dhclient
			// writes that as \000.
			word = strings.TrimSuffix(word, `\000`)
			d, err := dnsname.Parse(word)
			if err != nil || strings.HasPrefix(d, "-") {
				p.note(name, strings.TrimSuffix(word, "."), "not a domain")
				continue
			}
			all = append(all, d)
		}
	}
	return unique(all)
}

func unique[T comparable](all []T) []T {
	seen := make(map[T]bool, len(all))
	var out []T
	for _, v := range all {
		if !seen[v] {
			seen[v] = true
			out = append(out, v)
		}
	}
	return out
}

// interfaceName checks the name of an interface. The kernel has names that are no text; no
// caller can mean one.
func interfaceName(name string) error {
	if routing.CheckInterfaceName(name) != nil || strings.ContainsFunc(name, func(r rune) bool {
		return unicode.IsSpace(r) || r == unicode.ReplacementChar || r < ' '
	}) {
		return fmt.Errorf("%q is not the name of an interface", short(name))
	}
	return nil
}
