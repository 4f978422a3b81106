package preview

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"multihomed/internal/shell"
	"multihomed/routing"
)

// words are those of a command line, each quoted.
type words []string

func (w *words) add(all ...string) {
	for _, s := range all {
		*w = append(*w, shell.Quote(s))
	}
}

func (w *words) number(word string, n uint32) { w.add(word, strconv.FormatUint(uint64(n), 10)) }

func (w words) String() string { return strings.Join(w, " ") }

// ruleCommand is `ip rule` with all that routing/kernel writes of a rule but FIB_RULE_FIND_SADDR, which is no
// part of its identity.
func ruleCommand(verb string, r routing.Rule) (string, error) {
	if r.Unknown {
		return "", errors.New("the rule has attributes that are not known here")
	}
	w := words{"ip", r.Family.Flag(), "rule", verb}
	w.number("pref", uint32(r.Priority))
	if r.Invert {
		w.add("not")
	}
	prefix := func(word string, p netip.Prefix) {
		if p.IsValid() {
			w.add(word, short(p))
		}
	}
	if !r.From.IsValid() {
		w.add("from", "all")
	}
	prefix("from", r.From)
	prefix("to", r.To)
	if r.TOS != 0 {
		w.add("tos", fmt.Sprintf("0x%02x", r.TOS))
	}
	if r.Mark != (routing.Mark{}) {
		w.add("fwmark", fmt.Sprintf("0x%x/0x%x", r.Mark.Value, r.Mark.Mask))
	}
	if r.IIF != "" {
		w.add("iif", r.IIF)
	}
	if r.OIF != "" {
		w.add("oif", r.OIF)
	}
	if r.UIDs.Set {
		w.add("uidrange", fmt.Sprintf("%d-%d", r.UIDs.First, r.UIDs.Last))
	}
	if r.IPProto != 0 {
		w.number("ipproto", uint32(r.IPProto))
	}
	for _, ports := range []struct {
		word string
		routing.PortRange
	}{{"sport", r.SourcePorts}, {"dport", r.DestinationPorts}} {
		if ports.PortRange != (routing.PortRange{}) {
			w.add(ports.word, ports.String())
		}
	}
	if r.TunnelID != 0 {
		w.add("tun_id", strconv.FormatUint(r.TunnelID, 10))
	}
	if r.DSCP.Set {
		value := fmt.Sprintf("0x%x", r.DSCP.Value)
		if r.DSCPMask != 0 {
			value += fmt.Sprintf("/0x%x", r.DSCPMask)
		}
		w.add("dscp", value)
	}
	if r.FlowLabel.Set {
		value := fmt.Sprintf("0x%x", r.FlowLabel.Value)
		if r.FlowLabelMask != 0 {
			value += fmt.Sprintf("/0x%x", r.FlowLabelMask)
		}
		w.add("flowlabel", value)
	}
	if err := ruleAction(&w, r); err != nil {
		return "", err
	}
	w.number("protocol", uint32(r.Protocol))
	return w.String(), nil
}

// short is a prefix without the length of a single address.
func short(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

func ruleAction(w *words, r routing.Rule) error {
	switch r.Action {
	case routing.ActionLookup:
		if r.L3MDev {
			w.add("l3mdev")
		} else {
			w.number("lookup", uint32(r.Table))
		}
	case routing.ActionGoto:
		w.number("goto", uint32(r.Goto))
	case routing.ActionNop:
		w.add("nop")
	case routing.ActionBlackhole:
		w.add("blackhole")
	case routing.ActionUnreachable:
		w.add("unreachable")
	case routing.ActionProhibit:
		w.add("prohibit")
	default:
		return fmt.Errorf("ip has no word for the action %d of a rule", r.Action)
	}
	if r.SuppressPrefixLength.Set {
		w.number("suppress_prefixlength", r.SuppressPrefixLength.Value)
	}
	if r.SuppressGroup.Set {
		w.number("suppress_ifgroup", r.SuppressGroup.Value)
	}
	if r.Realms != 0 {
		w.add("realms", fmt.Sprintf("%d/%d", r.Realms>>16, r.Realms&0xffff))
	}
	return nil
}

// deletes is how ip(8) says that something goes.
const deletes = "del"

// routeCommand is `ip route` with all that routing/kernel writes of a route. A deletion names what
// identifies the route.
func routeCommand(verb string, r routing.Route, name func(int) (string, error)) (string, error) {
	w := words{"ip", r.Family.Flag(), "route", verb}
	switch r.Type {
	case routing.RouteUnicast:
	case routing.RouteThrow:
		w.add("throw")
	default:
		return "", fmt.Errorf("multihomed makes no routes of type %d", r.Type)
	}
	if r.Destination.Bits() == 0 {
		w.add("default")
	} else {
		w.add(short(r.Destination))
	}
	if r.Source.IsValid() {
		w.add("from", short(r.Source))
	}
	if r.TOS != 0 {
		w.add("tos", fmt.Sprintf("0x%02x", r.TOS))
	}
	rare := r.Attributes.Get()
	legs := rare.Legs.All()
	ways := append([]routing.Leg{{Gateway: r.Gateway, Device: r.Device, OnLink: r.OnLink, Realm: rare.Realm, Weight: r.Weight}}, legs...)
	// IPv6 has the share of a way in RTA_MULTIPATH alone.
	single := len(legs) == 0 && (r.Family == routing.IPv4 || r.Weight == 0 || verb == deletes)
	if single {
		if err := way(&w, r, ways[0], name); err != nil {
			return "", err
		}
	}
	w.number("table", uint32(r.Table))
	w.number("proto", uint32(r.Protocol))
	if r.Family == routing.IPv4 {
		w.number("scope", uint32(r.Scope)) // The kernel gives none to routes of IPv6.
	}
	if r.Metric != 0 {
		w.number("metric", r.Metric)
	}
	if verb != deletes {
		if err := routeAttributes(&w, r, rare, len(legs) > 0); err != nil {
			return "", err
		}
	}
	if single {
		return w.String(), nil
	}
	for _, l := range ways {
		w.add("nexthop")
		if err := way(&w, r, l, name); err != nil {
			return "", err
		}
		w.number("weight", uint32(max(l.Weight, 1)))
		if l.Realm != 0 && len(legs) > 0 {
			w.add("realms", realms(l.Realm))
		}
	}
	return w.String(), nil
}

// way adds where a route leads.
func way(w *words, r routing.Route, l routing.Leg, name func(int) (string, error)) error {
	if l.Gateway.IsValid() {
		w.add("via")
		if routing.FamilyOf(l.Gateway) != r.Family {
			w.add("inet6")
		}
		w.add(l.Gateway.String())
	}
	if l.Device != 0 {
		device, err := name(l.Device)
		if err != nil {
			return err
		}
		w.add("dev", device)
	}
	if l.OnLink {
		w.add("onlink")
	}
	return nil
}

func realms(v uint32) string { return fmt.Sprintf("%d/%d", v>>16, v&0xffff) }

// routeAttributes adds what does not identify a route.
func routeAttributes(w *words, r routing.Route, rare routing.RareAttributes, legs bool) error {
	if r.PreferredSource.IsValid() {
		w.add("src", r.PreferredSource.String())
	}
	switch r.Preference {
	case routing.PreferenceMedium:
	case routing.PreferenceHigh:
		w.add("pref", "high")
	case routing.PreferenceLow:
		w.add("pref", "low")
	default:
		return fmt.Errorf("ip has no word for the router preference %d", r.Preference)
	}
	if rare.Realm != 0 && !legs {
		w.add("realms", realms(rare.Realm))
	}
	if err := metrics(w, rare); err != nil {
		return err
	}
	if rare.EncapsulationType != 0 {
		if legs {
			return errors.New("ip cannot give all ways of a route one encapsulation")
		}
		return encapsulation(w, rare)
	}
	return nil
}

// A metricWord is how ip-route(8) calls one of RTAX_* (linux/rtnetlink.h).
type metricWord struct {
	word string
	// locks says that ip takes the word "lock" behind it.
	locks bool
}

// Numbers of metrics with other values than a number.
const (
	metricLock     = 1
	metricFeatures = 12
	featureECN     = 1
	metricRTOMin   = 13
	metricCongCtl  = 16
)

func metricWords() map[int]metricWord {
	return map[int]metricWord{
		2: {"mtu", true}, 3: {"window", true}, 4: {"rtt", true}, 5: {"rttvar", true}, 6: {"ssthresh", true},
		7: {"cwnd", true}, 8: {"advmss", true}, 9: {"reordering", true}, 10: {"hoplimit", true},
		11: {"initcwnd", true}, 13: {"rto_min", false}, 14: {"initrwnd", true}, 15: {"quickack", false}, 17: {"fastopen_no_cookie", false},
	}
}

func metrics(w *words, rare routing.RareAttributes) error {
	locked := rare.Metrics[metricLock]
	known := metricWords()
	for i, v := range rare.Metrics {
		switch lock := locked&(1<<i) != 0; {
		case i == metricLock || i == metricCongCtl || v == 0 && !lock:
		case i == metricFeatures:
			if v != featureECN || lock {
				return fmt.Errorf("ip has no word for the features 0x%x of a route", v)
			}
			w.add("features", "ecn")
		case i == metricRTOMin && lock:
			w.number(known[i].word, v) // ip locks it, always.
		case known[i].word == "", lock && !known[i].locks, i == metricRTOMin:
			return fmt.Errorf("ip has no word for the metric %d of a route (locked: %v)", i, lock)
		case lock:
			w.add(known[i].word, "lock", strconv.FormatUint(uint64(v), 10))
		default:
			w.number(known[i].word, v)
		}
	}
	if rare.Congestion != "" {
		w.add("congctl")
		if locked&(1<<metricCongCtl) != 0 {
			w.add("lock")
		}
		w.add(rare.Congestion)
	}
	return nil
}

// Types of encapsulation (linux/lwtunnel.h), and their attributes (linux/mpls_iptunnel.h, linux/lwtunnel.h).
const (
	encapMPLS = 1
	encapIP   = 2
	encapIP6  = 4

	mplsDestination = 1
	mplsTTL         = 2

	tunnelID          = 1
	tunnelDestination = 2
	tunnelSource      = 3
	tunnelTTL         = 4
	tunnelTOS         = 5
	tunnelFlags       = 6
)

// encapsulation reads RTA_ENCAP, and adds it in words. A route has nothing but what a command can say.
func encapsulation(w *words, rare routing.RareAttributes) error {
	unsaid := fmt.Errorf("plan has no words for the encapsulation of a route (type %d)", rare.EncapsulationType)
	attributes, ok := attributesOf(rare.Encapsulation)
	if !ok {
		return unsaid
	}
	var out words
	switch rare.EncapsulationType {
	case encapMPLS:
		out.add("encap", "mpls")
	case encapIP:
		out.add("encap", "ip")
	case encapIP6:
		out.add("encap", "ip6")
	default:
		return unsaid
	}
	for _, a := range attributes {
		var said bool
		if rare.EncapsulationType == encapMPLS {
			said = mpls(&out, a)
		} else {
			said = tunnel(&out, rare.EncapsulationType == encapIP6, a)
		}
		if !said {
			return unsaid
		}
	}
	*w = append(*w, out...)
	return nil
}

type attribute struct {
	kind  uint16
	value []byte
}

// attributesOf reads attributes of netlink.
func attributesOf(s string) (all []attribute, ok bool) {
	const header = 4
	for b := []byte(s); len(b) > 0; {
		if len(b) < header {
			return nil, false
		}
		n := int(binary.NativeEndian.Uint16(b))
		if n < header || n > len(b) {
			return nil, false
		}
		all = append(all, attribute{binary.NativeEndian.Uint16(b[2:]), b[header:n]})
		b = b[min((n+3)&^3, len(b)):]
	}
	return all, true
}

// mpls adds an attribute of MPLS; the labels are in struct mpls_label (RFC 3032).
func mpls(w *words, a attribute) bool {
	switch {
	case a.kind == mplsDestination && len(a.value) > 0 && len(a.value)%4 == 0:
		var labels []string
		for b := a.value; len(b) > 0; b = b[4:] {
			labels = append(labels, strconv.FormatUint(uint64(binary.BigEndian.Uint32(b)>>12), 10))
		}
		w.add(strings.Join(labels, "/"))
	case a.kind == mplsTTL && len(a.value) == 1:
		w.number("ttl", uint32(a.value[0]))
	default:
		return false
	}
	return true
}

// tunnel adds an attribute of an IP tunnel.
func tunnel(w *words, v6 bool, a attribute) bool {
	ttl, tos := "ttl", "tos"
	if v6 {
		ttl, tos = "hoplimit", "tc"
	}
	switch {
	case a.kind == tunnelID && len(a.value) == 8:
		if id := binary.BigEndian.Uint64(a.value); id != 0 {
			w.add("id", strconv.FormatUint(id, 10))
		}
	case a.kind == tunnelDestination || a.kind == tunnelSource:
		address, ok := netip.AddrFromSlice(a.value)
		if !ok {
			return false
		}
		if !address.IsUnspecified() {
			w.add(map[uint16]string{tunnelDestination: "dst", tunnelSource: "src"}[a.kind], address.String())
		}
	case a.kind == tunnelTTL && len(a.value) == 1:
		if a.value[0] != 0 {
			w.number(ttl, uint32(a.value[0]))
		}
	case a.kind == tunnelTOS && len(a.value) == 1:
		if a.value[0] != 0 {
			w.number(tos, uint32(a.value[0]))
		}
	case a.kind == tunnelFlags && len(a.value) == 2:
		return binary.NativeEndian.Uint16(a.value) == 0
	case a.kind == 0:
	default:
		return false
	}
	return true
}
