package orders

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"multihomed/internal/escape"
	"multihomed/internal/handoff"
	"multihomed/internal/shell"
	"multihomed/internal/status"
	"multihomed/internal/suggest"
)

// quote makes a word fit for a command that is shown.
func quote(word string) string { return shell.Quote(escape.Text(word)) }

// UplinkNames are the uplinks of which failover knows, in the order of people.
func UplinkNames(s status.Status) []string {
	var out []string
	if s.Failover != nil {
		for _, h := range s.Failover.Uplinks {
			out = append(out, h.Interface)
		}
	}
	slices.SortFunc(out, status.CompareNames)
	return slices.Compact(out)
}

// Refused says why the daemon refused an order, and what helps.
func Refused(s status.Status, order handoff.Order, name string, refusal *handoff.RefusedError) error {
	if order != handoff.TestFailover || strings.Contains(refusal.Why, "to fix: ") {
		return fmt.Errorf("%s: %w", escape.Text(name), refusal)
	}
	others, tested := false, ""
	for _, h := range s.Failover.Uplinks {
		if h.Interface == name {
			continue
		}
		others = true
		if h.Tested != nil {
			tested = h.Interface
		}
	}
	switch {
	case !others && len(s.OffLinks) > 0:
		return fmt.Errorf("%s is the only uplink with a default route, so nothing can take its traffic; to fix: multihomectl on %s", escape.Text(name), quote(s.OffLinks[0].Interface))
	case !others:
		return fmt.Errorf("%s is the only uplink with a default route, so nothing can take its traffic; to fix: connect another one", escape.Text(name))
	case tested != "":
		return fmt.Errorf("%s: %w: %s counts as dead by a test; to fix: multihomectl failover reset %s", escape.Text(name), refusal, escape.Text(tested), quote(tested))
	default:
		return fmt.Errorf("%s: %w; to fix: see why the others do not work, multihomectl status", escape.Text(name), refusal)
	}
}

// Uplink finds the uplink that a word names.
func Uplink(s status.Status, word string) (string, error) {
	known := UplinkNames(s)
	names := strings.Join(known, ", ")
	isOff := slices.IndexFunc(s.OffLinks, func(l status.OffLink) bool {
		// Another profile may be active on its interface.
		return isNameOf(word, l.Interface) && !slices.Contains(known, l.Interface)
	})
	switch {
	case s.Off != nil:
		return "", fmt.Errorf("multihomed is switched off%s, so no link is watched; to fix: multihomectl on", s.Off.Text())
	case s.Failover == nil || !s.Failover.Enabled:
		return "", errors.New("failover is switched off; to fix: set enabled = true in [failover] of the configuration, then: systemctl reload multihomed")
	case isOff >= 0:
		l := s.OffLinks[isOff]
		return "", fmt.Errorf("%s is switched off%s, so it is not watched; to fix: multihomectl on %s", escape.Text(l.Interface), l.Text(), quote(l.Interface))
	case len(known) == 0:
		return "", errors.New("no link has a default route, so none is watched; to fix: connect two that have one, see multihomectl status")
	}
	for _, l := range s.Links {
		isNamed := isNameOf(word, l.Interface) || isNameOf(word, l.Profile)
		switch {
		case isNamed && slices.Contains(known, l.Interface):
			return l.Interface, nil
		case isNamed:
			return "", wrong("%s is no uplink with a default route, so it is not watched; there are %s", l.Interface, names)
		case strings.ContainsAny(word, `*?[`) && (matches(word, l.Interface) || matches(word, l.Profile)):
			return "", wrong("%s is a pattern; name one uplink: %s", escape.Text(word), names)
		}
	}
	for _, o := range s.Others {
		if isNameOf(word, o.Interface) {
			return "", wrong("%s is no link, so it is not watched (%s); there are %s", escape.Text(o.Interface), escape.Text(o.Why), names)
		}
	}
	return "", wrong("there is no uplink %q%s; there are %s", escape.Text(word), suggest.Question(word, known), names)
}

// matches reports whether a pattern is one of a name.
func matches(pattern, name string) bool {
	is, err := path.Match(pattern, escape.Original(name))
	return err == nil && is && name != ""
}

// isNameOf reports whether a word is a name, as it is or as it is shown.
func isNameOf(word, name string) bool {
	return name != "" && (word == name || word == escape.Original(name))
}

// IsSeen reports whether a status shows what an order did, the way of unbound traffic included.
func IsSeen(s status.Status, order handoff.Order, name string) bool {
	tested, used := false, false
	for _, h := range s.Failover.Named(name) {
		tested = tested || h.Tested != nil
		used = used || h.Tested != nil && s.Unbound[h.Family].Interface == name
	}
	if order == handoff.TestFailover {
		return tested && !used
	}
	return !tested
}

// SentenceOfOrder says what an order did.
func SentenceOfOrder(s status.Status, order handoff.Order, name string) string {
	var parts []string
	until := ""
	for _, h := range s.Failover.Named(name) {
		way := escape.Text(s.Unbound[h.Family].Interface)
		switch {
		case order == handoff.ResetFailover:
			parts = append(parts, status.FamilyName(h.Family)+" "+h.Word())
		case h.Tested != nil:
			until = h.Tested.Local().Format(time.TimeOnly)
			parts = append(parts, "unbound "+status.FamilyName(h.Family)+" leaves by "+way)
		default:
			parts = append(parts, status.FamilyName(h.Family)+" stays, because no other uplink works")
		}
	}
	word := quote(name)
	name = escape.Text(name)
	text := strings.Join(parts, ", ")
	switch {
	case order == handoff.ResetFailover:
		return fmt.Sprintf("the history of %s is forgotten: %s", name, text)
	case until == "":
		return fmt.Sprintf("the test of %s has begun: multihomectl status shows it", name)
	default:
		return fmt.Sprintf("%s counts as dead until %s: %s; to end it now: multihomectl failover reset %s", name, until, text, word)
	}
}
