// Package dispatcher understands what calls multihomed-dispatcher: NetworkManager's
// dispatcher, and the hooks of ifupdown, dhclient, dhcpcd and udev. Each tells what
// happened in arguments and environment variables, in words of its own; here it
// becomes an Event. Nothing is read but what the caller of this package hands in,
// and every byte of it is taken for hostile: a bad value is left out and listed in
// Event.Odd; the rest counts.
//
// The kernel and NetworkManager know most of this better. Only an Event knows a
// gateway that a DHCP server named and nobody put into main.
package dispatcher

import (
	"net/netip"

	"multihomed/routing"
)

// An Effect is what an event means for the interface.
type Effect uint8

// What an event can mean.
const (
	// Nothing: it does not concern addresses or routes.
	Nothing Effect = iota
	// Changed: look at it again.
	Changed
	// Configured: the caller has configured the families of the event, or is
	// about to.
	Configured
	// Gone: the caller has taken the configuration of the families away.
	Gone
	// Removed: the interface does not exist any more.
	Removed
)

func (e Effect) String() string {
	switch e {
	case Nothing:
		return "nothing"
	case Changed:
		return "changed"
	case Configured:
		return "configured"
	case Gone:
		return "gone"
	case Removed:
		return "removed"
	default:
		return "unknown"
	}
}

// An Event is what a caller says.
type Event struct {
	// Caller and Action are the caller's words, for the log.
	Caller, Action string
	// Interface is empty for what concerns none.
	Interface string
	Effect    Effect
	// Part tells apart several configurations of one family by one caller: the
	// address of an ifupdown stanza, the protocol of dhcpcd.
	Part string
	// Configs is what the caller knows of each family. One that is missing is
	// not known; one that is empty has nothing. For Gone it holds the families
	// concerned, each empty, and nil means all that this caller ever said of the
	// interface, whatever the part.
	Configs map[routing.Family]Config
	// Odd says in sentences which values made no sense and were left out.
	Odd []string
}

// A Config is one family of an interface.
type Config struct {
	// Addresses have the prefix length of their network; host bits are kept.
	Addresses []netip.Prefix
	// Gateways are routers for every destination, the best first.
	Gateways []netip.Addr
	// Routes are those to other destinations, and a default route without a router.
	Routes []Route
	// Servers and Domains are those of name resolution (resolv.conf(5)).
	Servers []netip.Addr
	Domains []string
	// Delegated are prefixes that the network routes to this host, masked and
	// checked with [CheckDelegated]: others may have addresses of them behind it
	// (RFC 8415, section 6.3).
	Delegated []netip.Prefix
}

// A Route is one way to a destination. A zero Gateway means that the destination is on the
// link.
type Route struct {
	Destination netip.Prefix
	Gateway     netip.Addr
	// Metric is 0 where the caller names none.
	Metric uint32
}

// Environment is the environment of a process: values by name.
type Environment map[string]string

// Bounds of an environment: the kernel passes 32 pages a string, and hooks of a
// misled DHCP client may hold anything.
const (
	maxVariables = 4096
	maxValue     = 16 << 10
)

// ParseEnvironment takes what os.Environ returns. If a variable is there twice, the first
// counts, as in getenv(3). It keeps at most 4,096 variables, and none whose value is longer
// than 16 KiB.
func ParseEnvironment(environ []string) Environment {
	env := make(Environment, min(len(environ), maxVariables))
	for _, assignment := range environ {
		name, value, ok := cut(assignment)
		if !ok || len(value) > maxValue {
			continue
		}
		if _, twice := env[name]; twice {
			continue
		}
		if len(env) == maxVariables {
			break
		}
		env[name] = value
	}
	return env
}

func cut(assignment string) (name, value string, ok bool) {
	for i := 1; i < len(assignment); i++ {
		if assignment[i] == '=' {
			return assignment[:i], assignment[i+1:], true
		}
	}
	return "", "", false
}
