package dispatcher

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"multihomed/routing"
)

// NetworkManager reads an event of NetworkManager-dispatcher(8): two arguments, the
// interface and the action, and the variables. An action that is not known, from a later
// release, is Changed.
//
// Variables about addresses are there only while the device is activated, so their absence
// says nothing. Those of a device that goes down are out of date. A gateway that is not
// there is 0.0.0.0, in IPv6 too. IP4_ROUTE_N are what was intended: without default routes,
// and without the table, so that routes of other tables look like main's.
func NetworkManager(args []string, env Environment) (Event, error) {
	if len(args) != 2 {
		return Event{}, fmt.Errorf("%d arguments; NetworkManager gives two: the interface and the action", len(args))
	}
	e := Event{Caller: "NetworkManager", Action: short(args[1]), Effect: Changed}
	name := args[0]
	// The interface with the addresses, where that is another: ppp0 of a modem.
	if ip := env["DEVICE_IP_IFACE"]; ip != "" {
		name = ip
	}
	switch e.Action {
	case "hostname", "connectivity-change", "dns-change":
		e.Effect = Nothing
		return e, nil
	case "":
		return Event{}, errors.New("the action is empty")
	case "vpn-pre-up", "vpn-up", "vpn-pre-down", "vpn-down":
		// Of the device below; what the VPN adds to main the kernel says.
	case "up":
		e.Effect = Configured
	case "down":
		e.Effect = Gone
	}
	if err := interfaceName(name); err != nil {
		return Event{}, err
	}
	e.Interface = name
	if e.Effect == Gone {
		return e, nil
	}
	p := &parser{env: env}
	for _, f := range routing.Families() {
		if c, known := p.networkManager(f); known {
			if e.Configs == nil {
				e.Configs = map[routing.Family]Config{}
			}
			e.Configs[f] = c
		}
	}
	e.Odd = p.odd
	return e, nil
}

func (p *parser) networkManager(f routing.Family) (c Config, known bool) {
	ip, dhcp := "IP4_", "DHCP4_"
	if f == routing.IPv6 {
		ip, dhcp = "IP6_", "DHCP6_"
	}
	count, known := p.count(ip + "NUM_ADDRESSES")
	if !known {
		return Config{}, false
	}
	for n := range count {
		name := ip + "ADDRESS_" + strconv.Itoa(n)
		text, rest, _ := strings.Cut(p.env[name], " ")
		bare, length, _ := strings.Cut(text, "/")
		if a, ok := p.network(f, name, bare, length); ok {
			c.Addresses = append(c.Addresses, a)
		}
		c.Gateways = append(c.Gateways, p.gateway(f, name, rest)...)
	}
	c.Gateways = append(c.Gateways, p.gateway(f, ip+"GATEWAY", p.env[ip+"GATEWAY"])...)
	if f == routing.IPv4 {
		c.Gateways = append(c.Gateways, p.addresses(f, dhcp+"ROUTERS")...)
	}
	routes, _ := p.count(ip + "NUM_ROUTES")
	for n := range routes {
		name := ip + "ROUTE_" + strconv.Itoa(n)
		if r, ok := p.networkManagerRoute(f, name); ok {
			c.add(r)
		}
	}
	c.Servers = p.addresses(f, ip+"NAMESERVERS")
	c.Domains = p.domains(ip + "DOMAINS")
	return p.bounded(c), true
}

// count reads how many variables of a kind there are.
func (p *parser) count(name string) (int, bool) {
	text, there := p.env[name]
	if !there {
		return 0, false
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		p.note(name, text, "not a number")
		return 0, false
	}
	if n > maxItems {
		p.note(name, text, fmt.Sprintf("only the first %d are read", maxItems))
		n = maxItems
	}
	return int(n), true
}

// networkManagerRoute reads "10.8.0.0/16 192.0.2.254 100".
func (p *parser) networkManagerRoute(f routing.Family, name string) (Route, bool) {
	words := strings.Fields(p.env[name])
	if len(words) < 2 || len(words) > 3 {
		p.note(name, p.env[name], "not a route: want destination, gateway and metric")
		return Route{}, false
	}
	r, ok := p.route(f, name, words[0], words[1])
	if !ok {
		return Route{}, false
	}
	if len(words) == 3 {
		metric, err := strconv.ParseUint(words[2], 10, 32)
		if err != nil {
			p.note(name, words[2], "not a metric")
			return Route{}, false
		}
		r.Metric = uint32(metric)
	}
	return r, true
}
