package explain

import (
	"iter"
	"maps"
	"net/netip"
	"slices"

	"multihomed/internal/status"
	"multihomed/routing"
	"multihomed/routing/lookup"
)

// Facts are what an explanation depends on: rules, routes and interfaces of one family, and what
// is known about them.
type Facts struct {
	lookup.Facts
	// Addresses are those of this host in the family, by the index of their interface.
	Addresses map[int][]netip.Prefix
	// Partial are the tables of which not every route to the destination is known.
	Partial map[routing.TableID]bool
	// Answers are what the kernel said at the same time.
	Answers []Asked
	// Notes are what is known of the rules and links of multihomed; the zero Notes are none.
	Notes Notes
	// Users are names of users by number, as far as they are needed.
	Users map[uint32]string
	// Unread are what could not be read, in sentences.
	Unread []string

	// whatIf, assumptions and unknown are set by WhatIf.
	whatIf, assumptions, unknown []string
}

// Asked is a question to the kernel (RTM_GETROUTE) with its answer.
type Asked struct {
	Flow   lookup.Flow
	Answer lookup.Answer
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
	// Preferred is the place in the administrator's list of replacements, from 1; 0 is none. Metered links
	// are the last choice. Weight is the share of unbound traffic, 0 for none.
	Preferred int
	Metered   bool
	Weight    uint8
}

// host is what package lookup walks.
func (f *Facts) host() *lookup.Host {
	h := f.Host()
	h.Partial = map[routing.Family]map[routing.TableID]bool{f.Family: f.Partial}
	return h
}

// answer is what the kernel said about a flow.
func (f *Facts) answer(flow lookup.Flow) (lookup.Answer, bool) {
	for _, a := range f.Answers {
		if a.Flow == flow {
			return a.Answer, true
		}
	}
	return lookup.Answer{}, false
}

// candidates yields all routes that are known, table by table.
func (f *Facts) candidates() iter.Seq[lookup.Candidate] {
	return func(yield func(lookup.Candidate) bool) {
		for _, t := range slices.Sorted(maps.Keys(f.Tables)) {
			for _, c := range f.Tables[t] {
				if !yield(c) {
					return
				}
			}
		}
	}
}
