package check

import (
	"fmt"
	"path"
	"strings"

	"multihomed/internal/config"
	"multihomed/internal/status/view"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// checkGateways finds links whose gateway is one of their own addresses: no route leads
// through it, so it is not used.
func checkGateways(v *view.View, _ files) []routing.Problem {
	var out []routing.Problem
	for plan := range v.Planner.Links() {
		name := plan.Link.Name
		for _, f := range routing.Families() {
			gateway := v.Claims[name].Intents[f].Gateway
			if !gateway.IsValid() || !reconcile.HasAddress(v.Links[name].Addresses, gateway) {
				continue
			}
			out = append(out, routing.Problem{
				Code: routing.OwnGateway, Severity: routing.Error, Link: name, Object: "gateway " + gateway.String(),
				Text: fmt.Sprintf("the gateway that is set for %s, %s, is an address of %s itself and is not used", name, gateway, name),
				Fix:  gatewayFix(v, name),
			})
		}
	}
	return out
}

// gatewayFix says where the gateway of a link is set.
func gatewayFix(v *view.View, name string) string {
	claim := v.Claims[name]
	for _, l := range v.Entries.Links {
		if len(l.Gateways) > 0 && selects(l.Matcher, name, claim) {
			return "set gateway in [[link]] to the address of the router, then: systemctl reload multihomed"
		}
	}
	return "set the gateway of its profile to the address of the router: nmcli connection edit " + claim.Profile
}

// checkEntries finds entries of the configuration that select nothing: the device may be
// unplugged, or its name misspelt.
func checkEntries(v *view.View, _ files) []routing.Problem {
	if !v.Complete() || v.ProfilesUnread {
		return nil // A profile that is not known may be meant.
	}
	var out []routing.Problem
	look := func(entry string, matchers ...config.Matcher) {
		for _, m := range matchers {
			for name := range v.Links {
				if selects(m, name, v.Claims[name]) {
					return
				}
			}
			for name, claim := range v.Claims {
				if selects(m, name, claim) {
					return
				}
			}
		}
		for _, o := range out {
			if o.Object == entry {
				return // It is there twice.
			}
		}
		out = append(out, routing.Problem{
			Code: routing.MatchesNothing, Severity: routing.Notice, Object: entry,
			Text: fmt.Sprintf("%s in the configuration matches no interface of this host at present", entry),
		})
	}
	for _, l := range v.Entries.Links {
		look("[[link]] with "+wordsOf(l.Matcher), l.Matcher)
	}
	for _, m := range v.Entries.Include {
		look("[[include]] with "+wordsOf(m), m)
	}
	for _, m := range v.Entries.Exclude {
		look("[[exclude]] with "+wordsOf(m), m)
	}
	either := func(n config.Name) []config.Matcher {
		return []config.Matcher{{Interface: string(n)}, {Profile: string(n)}}
	}
	for _, n := range v.Entries.Prefer {
		look(fmt.Sprintf("%q in prefer of [failover]", n), either(n)...)
	}
	for _, w := range v.Entries.Weights {
		look(fmt.Sprintf("%q in weights of [share]", w.Name), either(w.Name)...)
	}
	return out
}

// selects reports whether an entry selects an interface, of which only what is claimed
// has a profile and a type.
func selects(m config.Matcher, name string, claim reconcile.Claim) bool {
	glob := func(pattern string, words ...string) bool {
		for _, word := range words {
			if ok, err := path.Match(pattern, word); ok && err == nil && word != "" {
				return true
			}
		}
		return pattern == ""
	}
	types := []string{claim.Type}
	if claim.Type == "veth" {
		types = append(types, "ethernet") // as nmcli shows it
	}
	return glob(m.Interface, name) && glob(m.Profile, claim.Profile, claim.UUID) && glob(m.Type, types...)
}

// wordsOf is an entry as the file has it.
func wordsOf(m config.Matcher) string {
	var words []string
	for _, w := range []struct{ key, value string }{{"interface", m.Interface}, {"profile", m.Profile}, {"type", m.Type}} {
		if w.value != "" {
			words = append(words, fmt.Sprintf("%s = %q", w.key, w.value))
		}
	}
	return strings.Join(words, ", ")
}
