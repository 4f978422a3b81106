package kerneltest

import (
	"net/netip"
	"slices"

	"multihomed/routing"
)

// insert puts a rule behind those of its priority.
func (k *Kernel) insert(r routing.Rule) {
	b := band{r.Family, r.Priority}
	k.bands[b] = append(k.bands[b], r)
	k.counts[r]++
	k.additions++
	k.came[r] = append(k.came[r], k.additions)
	k.note(r, false)
}

func (k *Kernel) removeRule(b band, at int) {
	r := k.bands[b][at]
	k.note(r, true)
	if k.came[r] = k.came[r][1:]; len(k.came[r]) == 0 {
		delete(k.came, r)
	}
	if k.counts[r]--; k.counts[r] == 0 {
		delete(k.counts, r)
	}
	if k.bands[b] = slices.Delete(k.bands[b], at, at+1); len(k.bands[b]) == 0 {
		delete(k.bands, b)
	}
}

func (k *Kernel) note(r routing.Rule, gone bool) {
	k.tell(event{rule: r, gone: gone})
	if k.policy.OwnsRule(r) {
		k.noted.Rules[r] = struct{}{}
	}
}

// exists is rule_exists of net/core/fib_rules.c, which NLM_F_EXCL asks. It
// compares all attributes but the target of a goto, inversion and the two prefixes,
// which ops->compare takes for "any" where the request names none: `oif eth0 lookup
// 1` is refused where `from 192.0.2.0/24 oif eth0 lookup 1` stands.
func (k *Kernel) exists(r routing.Rule) bool {
	return slices.ContainsFunc(k.bands[band{r.Family, r.Priority}], func(have routing.Rule) bool {
		from, to := have.From, have.To
		have.From, have.To, have.Goto, have.Invert = r.From, r.To, r.Goto, r.Invert
		return have == r && names(r.From, from) && names(r.To, to)
	})
}

// match is rule_find of net/core/fib_rules.c: a request to delete a rule
// matches the first one that has what the request names; what it does not name
// is not compared, and neither are the target of a goto and inversion.
func (k *Kernel) match(r routing.Rule) (b band, at int, ok bool) {
	b = band{r.Family, r.Priority}
	at = slices.IndexFunc(k.bands[b], func(have routing.Rule) bool {
		return (r.Action == 0 || r.Action == have.Action) &&
			(r.Table == 0 || r.Table == have.Table) &&
			(r.IIF == "" || r.IIF == have.IIF) &&
			(r.OIF == "" || r.OIF == have.OIF) &&
			(r.Mark.Value == 0 || r.Mark.Value == have.Mark.Value) &&
			(r.Mark.Mask == 0 || r.Mark.Mask == have.Mark.Mask) &&
			(!r.UIDs.Set || r.UIDs == have.UIDs) &&
			(r.IPProto == 0 || r.IPProto == have.IPProto) &&
			(r.SourcePorts == routing.PortRange{} || r.SourcePorts == have.SourcePorts) &&
			(r.DestinationPorts == routing.PortRange{} || r.DestinationPorts == have.DestinationPorts) &&
			(r.TunnelID == 0 || r.TunnelID == have.TunnelID) &&
			(!r.L3MDev || have.L3MDev) &&
			(r.TOS == 0 || r.TOS == have.TOS) &&
			(!r.DSCP.Set || r.DSCP == have.DSCP) &&
			(!r.FlowLabel.Set || r.FlowLabel == have.FlowLabel) &&
			(!r.SuppressPrefixLength.Set || r.SuppressPrefixLength == have.SuppressPrefixLength) &&
			(!r.SuppressGroup.Set || r.SuppressGroup == have.SuppressGroup) &&
			(r.Protocol == 0 || r.Protocol == have.Protocol) &&
			names(r.From, have.From) && names(r.To, have.To)
	})
	return b, at, at >= 0
}

// names reports whether the prefix of a request matches that of a rule
// (fib4_rule_compare, fib6_rule_compare).
func names(request, have netip.Prefix) bool {
	return !request.IsValid() || request.Bits() == 0 || request == have
}
