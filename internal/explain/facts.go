package explain

import (
	"net/netip"
	"slices"

	"multihomed/internal/status"
	"multihomed/routing"
	"multihomed/routing/lookup"
)

// An Interface is a device of the host.
type Interface struct {
	lookup.Interface
	// Running says that the interface has a carrier and is operational (IFF_RUNNING).
	Running bool
	// RPFilter is the source validation of what comes in: 0 none, 1 strict, 2 loose, the
	// higher one of the interface's value and that of all (net.ipv4.conf.*.rp_filter).
	RPFilter int
}

// A Route is one leg of a route.
type Route struct {
	routing.Route
	// Dead says that the kernel does not use it now (RTNH_F_DEAD, or RTNH_F_LINKDOWN where
	// the host ignores such).
	Dead bool
}

// Facts are what an explanation depends on.
type Facts struct {
	Interfaces []Interface
	// Addresses are those of this host, by the index of their interface.
	Addresses map[int][]netip.Prefix
	// Rules are those of the family of the question in the order of the kernel. Routes come
	// in the order of the kernel within their table, one for each leg.
	Rules  []routing.Rule
	Routes []Route
	// Partial are the tables of which only routes to the destination are known, for other
	// destinations.
	Partial map[routing.TableID]bool
	// SourceValidMark says that the check of the source uses the mark
	// (net.ipv4.conf.*.src_valid_mark), by index.
	SourceValidMark map[int]bool
	// Notes are what is known of the rules and links of multihomed; the zero Notes are none.
	Notes Notes
	// Users are names of users by number, as far as they are needed.
	Users map[uint32]string
	// Unread are what could not be read, in sentences.
	Unread []string
	// Ask asks the kernel (RTM_GETROUTE). It returns false if the kernel cannot be asked.
	Ask func(lookup.Flow) (Answer, bool)

	// whatIf, assumptions and unknown are set by WhatIf.
	whatIf, assumptions, unknown []string
}

// An Answer is what the kernel says about a flow.
type Answer struct {
	// Refused is how the kernel says no, [lookup.None] if it has a route.
	Refused string
	// Routes are the legs of the route that it found, with the table (RTM_F_FIB_MATCH).
	Routes []routing.Route
	// Sent is the way that it chose among them, Source the address that the packet gets.
	Sent   routing.Route
	Source netip.Addr
	// Difference says where the simulation does not agree, empty if it agrees.
	Difference string
}

// Notes are what multihomed says of its objects.
type Notes struct {
	// By says who said it: "daemon", "multihomectl", or nothing.
	By string
	// Rules are those of multihomed by family and text, as [routing.Rule.String] has it and
	// escaped; Tables the interface that a table is for.
	Rules  map[string]RuleNote
	Tables map[routing.TableID]string
	// Links are the links by the escaped name of their interface.
	Links map[string]LinkNote
	// Bindings are what is bound to links. FailoverTable is table F, zero if it is not known.
	Bindings      []status.Binding
	FailoverTable routing.TableID
}

// A RuleNote is why a rule of multihomed exists.
type RuleNote struct {
	Decision routing.Decision
	// Link is the escaped name of the interface, Lifts the rule that this one leads to.
	Link, Lifts string
}

// A LinkNote is what is known of a link.
type LinkNote struct {
	// Profile is its escaped name.
	Profile string
	Role    string
	// Dead says by family ("ipv4") that failover found the link dead.
	Dead map[string]bool
}

func (f *Facts) named(name string) (Interface, bool) {
	if i := slices.IndexFunc(f.Interfaces, func(i Interface) bool { return i.Name == name }); i >= 0 {
		return f.Interfaces[i], true
	}
	return Interface{}, false
}

// host is what package lookup walks.
func (f *Facts) host() *lookup.Host {
	h := &lookup.Host{
		Rules:   f.Rules,
		Tables:  map[routing.Family]map[routing.TableID][]routing.Route{routing.IPv4: {}, routing.IPv6: {}},
		Partial: map[routing.Family]map[routing.TableID]bool{routing.IPv4: f.Partial, routing.IPv6: f.Partial},
	}
	for _, i := range f.Interfaces {
		h.Interfaces = append(h.Interfaces, i.Interface)
	}
	for _, r := range f.Routes {
		if !r.Dead {
			h.Tables[r.Family][r.Table] = append(h.Tables[r.Family][r.Table], r.Route)
		}
	}
	return h
}
