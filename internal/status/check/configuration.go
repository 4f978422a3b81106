package check

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"multihomed/internal/config"
	"multihomed/internal/status/view"
	"multihomed/internal/suggest"
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
func checkEntries(v *view.View, _ files) []routing.Problem { return Entries(v) }

// Entries is the check of the entries of a configuration alone.
func Entries(v *view.View) []routing.Problem {
	if !v.Complete() || v.ProfilesUnread {
		return nil // A profile that is not known may be meant.
	}
	e := entries{view: v}
	matchers := func(list string, all []config.Matcher) {
		entries := make([]entry, 0, len(all))
		for _, m := range all {
			entries = append(entries, entry{fmt.Sprintf("[[%s]] with %s", list, wordsOf(m)), []config.Matcher{m}})
		}
		e.look(entries)
	}
	links := make([]config.Matcher, 0, len(v.Entries.Links))
	for _, l := range v.Entries.Links {
		links = append(links, l.Matcher)
	}
	matchers("link", links)
	matchers("include", v.Entries.Include)
	matchers("exclude", v.Entries.Exclude)
	either := func(n config.Name) []config.Matcher {
		return []config.Matcher{{Interface: string(n)}, {Profile: string(n)}}
	}
	var prefer, weights []entry
	for _, n := range v.Entries.Prefer {
		prefer = append(prefer, entry{fmt.Sprintf("%q in prefer of [failover]", n), either(n)})
	}
	for _, w := range v.Entries.Weights {
		weights = append(weights, entry{fmt.Sprintf("%q in weights of [share]", w.Name), either(w.Name)})
	}
	e.look(prefer)
	e.look(weights)
	return e.out
}

// An entry of a list selects what one of its matchers selects.
type entry struct {
	text     string
	matchers []config.Matcher
}

type entries struct {
	view *view.View
	out  []routing.Problem
}

// look checks the entries of one list.
func (e *entries) look(list []entry) {
	known := map[string]reconcile.Claim{}
	for name := range e.view.Links {
		known[name] = e.view.Claims[name]
	}
	maps.Copy(known, e.view.Claims)
	// What another entry of the list selects is not meant once more.
	free := maps.Clone(known)
	var unmatched []entry
	for _, it := range list {
		matches := false
		for name, claim := range known {
			if slices.ContainsFunc(it.matchers, func(m config.Matcher) bool { return selects(m, name, claim) }) {
				matches = true
				delete(free, name)
			}
		}
		if !matches {
			unmatched = append(unmatched, it)
		}
	}
	for _, it := range unmatched {
		if slices.ContainsFunc(e.out, func(p routing.Problem) bool { return p.Object == it.text }) {
			continue // It is there twice.
		}
		text := it.text + " in the configuration matches no interface of this host at present"
		if word := meant(it, known, free); word != "" {
			text += fmt.Sprintf("; did you mean %q?", word)
		}
		e.out = append(e.out, routing.Problem{Code: routing.MatchesNothing, Severity: routing.Notice, Object: it.text, Text: text})
	}
}

// meant proposes a name for a word of an entry that selects nothing, empty if none is near.
func meant(it entry, known, free map[string]reconcile.Claim) string {
	for _, m := range it.matchers {
		for _, one := range []struct {
			word   string
			alone  config.Matcher
			nameOf func(name string, c reconcile.Claim) string
		}{
			{m.Interface, config.Matcher{Interface: m.Interface}, func(name string, _ reconcile.Claim) string { return name }},
			{m.Profile, config.Matcher{Profile: m.Profile}, func(_ string, c reconcile.Claim) string { return c.Profile }},
		} {
			matched := one.word == "" || strings.ContainsAny(one.word, `*?[\`)
			for name, claim := range known {
				matched = matched || selects(one.alone, name, claim)
			}
			if matched {
				continue // It is not the word that is wrong, or a pattern.
			}
			words := make([]string, 0, len(free))
			for name, claim := range free {
				words = append(words, one.nameOf(name, claim))
			}
			slices.Sort(words)
			if word := suggest.For(one.word, words); word != "" {
				return word
			}
		}
	}
	return ""
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
