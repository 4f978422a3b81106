package answers

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"multihomed/routing"
)

// A Table is what the table holds, or should: values that can be compared.
type Table struct {
	// Chains and Sets are sorted by name, elements by set, address and interface.
	Chains   []Chain
	Sets     []Set
	Elements []Element
	// Rules are in the order of their chains; in a chain the kernel reads them in their order.
	Rules []Rule
}

// Empty reports whether nothing is wanted: then the table does not exist.
func (t *Table) Empty() bool { return len(t.Chains) == 0 }

// A Chain is a list of rules. Names of chains say all about them: see [ChainNamed].
type Chain struct {
	Name string
	// Hook calls the chain; none calls a chain that others go to.
	Hook Hook
	// Priority is that of the hook: packets meet the lowest first. The policy is accept, the type filter.
	Priority int32
}

// A Hook is a place in the way of a packet.
type Hook uint8

// Hooks of base chains. The zero Hook is that of a chain to which others go.
const (
	NoHook Hook = iota
	Prerouting
	Postrouting
)

// Names of chains; linkN sets number N.
const (
	chainAnswers = "answers"
	chainCheck   = "check"
	chainFence   = "fence"
	chainStrays  = "strays"
	linkPrefix   = "link"
)

// Priorities (enum nf_ip_hook_priorities). Marks are set behind tables "mangle" of others, and before
// destination NAT; the fence stands behind source NAT.
const (
	priorityMangle    = -150
	prioritySourceNAT = 100
	priorityCheck     = priorityMangle + 4
	priorityAnswers   = priorityMangle + 5
	priorityFence     = prioritySourceNAT + 50
)

// LinkChain is the name of the chain that sets a number.
func LinkChain(number uint8) string { return linkPrefix + strconv.Itoa(int(number)) }

// LinkNumber is the number that a chain sets, false for the name of another chain.
func LinkNumber(chain string) (uint8, bool) {
	digits, ok := strings.CutPrefix(chain, linkPrefix)
	n, err := strconv.ParseUint(digits, 10, 8)
	return uint8(n), ok && err == nil && n >= 1 && n <= routing.MaxNumber && LinkChain(uint8(n)) == chain
}

// ChainNamed is the chain of ours that has a name, false if none has.
func ChainNamed(name string) (Chain, bool) {
	switch name {
	case chainAnswers:
		return Chain{name, Prerouting, priorityAnswers}, true
	case chainCheck:
		return Chain{name, Prerouting, priorityCheck}, true
	case chainFence:
		return Chain{name, Postrouting, priorityFence}, true
	case chainStrays:
		return Chain{Name: name}, true
	default:
		_, ok := LinkNumber(name)
		return Chain{Name: name}, ok
	}
}

// A Set is a set of keys, or a map from keys to the chains of numbers.
type Set struct {
	Name   string
	Family routing.Family
	Kind   SetKind
}

// A SetKind is what the elements of a set are.
type SetKind uint8

// Kinds of sets.
const (
	// Verdicts is a map from an address to the chain of a number.
	Verdicts SetKind = iota
	// Addresses is a set of addresses.
	Addresses
	// Pairs is a set of addresses, each with the name of an interface.
	Pairs
)

// Roles of sets; the name of a set ends with its family.
const (
	setAnswers = "answers"
	setCheck   = "check"
	setOwn     = "own"
	setPair    = "pair"
)

// nameOf is the name of the set of a family.
func nameOf(role string, f routing.Family) string {
	if f == routing.IPv4 {
		return role + "4"
	}
	return role + "6"
}

// SetNamed is the set of ours that has a name, false if none has.
func SetNamed(name string) (Set, bool) {
	kinds := map[string]SetKind{setAnswers: Verdicts, setOwn: Addresses, setPair: Pairs}
	for _, f := range routing.Families() {
		for role, kind := range kinds {
			if nameOf(role, f) == name {
				return Set{name, f, kind}, true
			}
		}
	}
	// IPv6 has no reverse path filter.
	if name == nameOf(setCheck, routing.IPv4) {
		return Set{name, routing.IPv4, Pairs}, true
	}
	return Set{}, false
}

// An Element is one of a set.
type Element struct {
	Set     string
	Address netip.Addr
	// Interface is part of the key of [Pairs].
	Interface string
	// Number is the value of [Verdicts]: the chain that is gone to.
	Number uint8
}

// Key is the element without its value.
func (e Element) Key() Element {
	e.Number = 0
	return e
}

// diverts reports whether the element gives packets to another routing table.
func (e Element) diverts() bool { return e.Number != 0 }

func (e Element) compare(o Element) int {
	return cmp.Or(strings.Compare(e.Set, o.Set), e.Address.Compare(o.Address), strings.Compare(e.Interface, o.Interface), cmp.Compare(e.Number, o.Number))
}

// String is as nft(8) writes it.
func (e Element) String() string { return e.Text(strconv.Quote) }

// Text is String with names of interfaces that are quoted by a function.
func (e Element) Text(quoted func(name string) string) string {
	out := e.Set + " { " + e.Address.String()
	if e.Interface != "" {
		out += " . " + quoted(e.Interface)
	}
	if e.Number != 0 {
		out += " : goto " + LinkChain(e.Number)
	}
	return out + " }"
}

// A Rule is a rule of a chain: what it selects, and what it does. Two rules are the same if and only if
// they are equal. The zero value of a selector selects everything.
type Rule struct {
	Chain string
	// Family is set in a rule for one family; a rule with an address has it.
	Family routing.Family
	// IIF is the interface by which the packet came in, OIF and NotOIF by which it leaves or does not.
	IIF, OIF, NotOIF string
	// IIFGroup is the group of the interface by which it came in; NotOIFGroup is not that by which it
	// leaves.
	IIFGroup, NotOIFGroup routing.Optional
	// UID selects by the user of the socket: a value and the bits that matter, like a mark.
	UID routing.Mark
	// Mark selects by the packet mark.
	Mark routing.Mark
	// Protocol is that of the transport.
	Protocol uint8
	// Direction is that of the packet in its connection.
	Direction Direction
	// OriginalSource and ReplySource are sources of the connection, before NAT changes them.
	OriginalSource, ReplySource netip.Prefix
	// Source and Destination are those of the packet as it is.
	Source, Destination netip.Prefix
	// In is a set that must contain the packet's key.
	In Lookup
	// Action is what happens to a packet that is selected.
	Action Action
	// Map is what [ActionMap] asks.
	Map Lookup
	// Goto is the chain of [ActionGoto].
	Goto string
	// Set is what [ActionMark] puts into the mark: the bits of its mask become those of its value.
	Set routing.Mark
	// Decision says why the rule exists.
	Decision Decision
}

// A Lookup asks a set for a key of the packet. The zero Lookup asks nothing.
type Lookup struct {
	Key Key
	Set string
}

// A Key is what is looked up.
type Key uint8

// Keys of lookups.
const (
	NoKey Key = iota
	KeySource
	KeySourceOIF
	KeyDestination
	KeyDestinationIIF
	KeyOriginalDestination
	KeyReplyDestination
)

// A Direction is a direction of a connection (enum ip_conntrack_dir). That of its first packet is
// original.
type Direction uint8

// Directions. A packet without a connection has none.
const (
	AnyDirection Direction = iota
	Original
	Reply
)

// An Action is what a rule does.
type Action uint8

// Actions. [ActionDrop] counts what it drops.
const (
	ActionAccept Action = iota
	ActionDrop
	// ActionGoto goes on in a chain, without return.
	ActionGoto
	// ActionMap goes on as a map says, if it has the key.
	ActionMap
	// ActionMark sets the mark.
	ActionMark
)

func (r Rule) compare(o Rule) int { return strings.Compare(r.String(), o.String()) }

// sets are the sets that the rule asks.
func (r Rule) sets() []string {
	var out []string
	for _, l := range []Lookup{r.In, r.Map} {
		if l.Key != NoKey {
			out = append(out, l.Set)
		}
	}
	return out
}

// String is the rule as nft(8) takes it, without its comment.
func (r Rule) String() string { return r.Text(strconv.Quote) }

// Text is String with names of interfaces that are quoted by a function.
func (r Rule) Text(quoted func(name string) string) string {
	var w []string
	say := func(when bool, format string, args ...any) {
		if when {
			w = append(w, fmt.Sprintf(format, args...))
		}
	}
	ip := "ip"
	if r.Family == routing.IPv6 {
		ip = "ip6"
	}
	say(r.NeedsFamily(), "meta nfproto %s", r.Family)
	say(r.IIF != "", "iifname %s", quoted(r.IIF))
	say(r.IIFGroup.Set, "iifgroup %d", r.IIFGroup.Value)
	say(r.NotOIFGroup.Set, "oifgroup != %d", r.NotOIFGroup.Value)
	say(r.UID.Mask != 0, "meta skuid %s", masked(r.UID, "%d"))
	say(r.Mark.Mask != 0, "meta mark %s", masked(r.Mark, "0x%08x"))
	say(r.Protocol != 0, "meta l4proto %d", r.Protocol)
	say(r.Direction == Original, "ct direction original")
	say(r.Direction == Reply, "ct direction reply")
	say(r.OriginalSource.IsValid(), "ct original %s saddr %s", ip, r.OriginalSource)
	say(r.ReplySource.IsValid(), "ct reply %s saddr %s", ip, r.ReplySource)
	say(r.Source.IsValid(), "%s saddr %s", ip, r.Source)
	say(r.Destination.IsValid(), "%s daddr %s", ip, r.Destination)
	say(r.OIF != "", "oifname %s", quoted(r.OIF))
	say(r.NotOIF != "", "oifname != %s", quoted(r.NotOIF))
	say(r.In.Key != NoKey, "%s @%s", r.In.Key.text(ip), r.In.Set)
	switch r.Action {
	case ActionAccept:
		say(true, "accept")
	case ActionDrop:
		say(true, "counter drop")
	case ActionGoto:
		say(true, "goto %s", r.Goto)
	case ActionMap:
		say(true, "%s vmap @%s", r.Map.Key.text(ip), r.Map.Set)
	case ActionMark:
		say(true, "meta mark set meta mark and 0x%08x or 0x%08x", ^r.Set.Mask, r.Set.Value)
	}
	return strings.Join(w, " ")
}

// NeedsFamily reports whether the rule must ask for the family of the packet by itself: other than
// addresses of a connection, which say it.
func (r Rule) NeedsFamily() bool {
	connection := r.OriginalSource.IsValid() || r.ReplySource.IsValid() || r.Map.Key == KeyOriginalDestination || r.Map.Key == KeyReplyDestination
	return r.Family != 0 && (r.hasPacketAddress() || !connection)
}

func (r Rule) hasPacketAddress() bool {
	return r.Source.IsValid() || r.Destination.IsValid() || r.In.Key != NoKey || r.Map.Key == KeyDestination || r.Map.Key == KeySource
}

func masked(m routing.Mark, format string) string {
	if m.Mask == ^uint32(0) {
		return fmt.Sprintf(format, m.Value)
	}
	return fmt.Sprintf("and 0x%08x == 0x%08x", m.Mask, m.Value)
}

func (k Key) text(ip string) string {
	switch k {
	case KeySource:
		return ip + " saddr"
	case KeySourceOIF:
		return ip + " saddr . oifname"
	case KeyDestination:
		return ip + " daddr"
	case KeyDestinationIIF:
		return ip + " daddr . iifname"
	case KeyOriginalDestination:
		return "ct original " + ip + " daddr"
	case KeyReplyDestination:
		return "ct reply " + ip + " daddr"
	default:
		return "nothing"
	}
}

// sort puts all but the rules in their order, each element once.
func (t *Table) sort() {
	slices.SortFunc(t.Chains, func(a, b Chain) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(t.Sets, func(a, b Set) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(t.Elements, Element.compare)
	t.Elements = slices.Compact(t.Elements)
	slices.SortStableFunc(t.Rules, func(a, b Rule) int { return strings.Compare(a.Chain, b.Chain) })
}
