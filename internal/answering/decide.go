package answering

import (
	"strings"

	"multihomed/internal/config"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// A Reason names why packets of a family are answered where they were asked, or are not.
type Reason string

// Reasons.
const (
	// Configured: the configuration says so.
	Configured Reason = "configured"
	// Needed: the host forwards, translates addresses and has two uplinks.
	Needed Reason = "needed"
	// NotForwarding: no interface forwards packets of the family.
	NotForwarding Reason = "not-forwarding"
	// NotTranslating: nothing translates addresses, so there is nothing to answer by.
	NotTranslating Reason = "not-translating"
	// OneUplink: fewer than two uplinks have a table of the family.
	OneUplink Reason = "one-uplink"
	// SwitchedOff: the administrator switched all of multihomed off.
	SwitchedOff Reason = "off"
	// Kubernetes: the host is a node whose network plug-in marks packets itself.
	Kubernetes Reason = "kubernetes"
)

// Sentence says what the reason means.
func (r Reason) Sentence() string {
	switch r {
	case Configured:
		return "the configuration says so"
	case Needed:
		return "the host forwards, translates addresses and has two uplinks"
	case NotForwarding:
		return "no interface forwards"
	case NotTranslating:
		return "nothing translates addresses"
	case OneUplink:
		return "fewer than two uplinks have a table"
	case SwitchedOff:
		return "multihomed is switched off"
	case Kubernetes:
		return "a network plug-in of Kubernetes marks packets itself"
	default:
		return string(r)
	}
}

// A Decision is whether packets of a family are answered where they were asked, and why.
type Decision struct {
	// Answers and Fence say what is on.
	Answers, Fence bool
	Why            Reason
}

// Decide decides about a family. Held says that its answers are on already: then one uplink keeps
// them, for links come and go.
func Decide(cfg config.Answers, f routing.Family, host Host, s *reconcile.Snapshot, held bool) Decision {
	if host.Off {
		return Decision{Why: SwitchedOff}
	}
	d := Decision{Why: Configured}
	switch cfg.Forwarded {
	case config.No:
	case config.Yes:
		d.Answers = true
	default:
		d.Why = auto(f, host, s, held)
		d.Answers = d.Why == Needed
	}
	d.Fence = cfg.Fence == config.Yes || cfg.Fence == config.Auto && d.Answers
	return d
}

func auto(f routing.Family, host Host, s *reconcile.Snapshot, held bool) Reason {
	least := 2
	if held {
		least = 1
	}
	switch {
	case !host.Forwards.In(f):
		return NotForwarding
	case !host.Translates.In(f):
		return NotTranslating
	case onKubernetes(s):
		return Kubernetes
	case uplinks(f, s) < least:
		return OneUplink
	default:
		return Needed
	}
}

// onKubernetes tells a node by the interfaces of the plug-ins that mark all packets: Calico and
// Cilium.
func onKubernetes(s *reconcile.Snapshot) bool {
	for _, i := range s.Interfaces {
		if strings.HasPrefix(i.Facts.Name, "cali") || strings.HasPrefix(i.Facts.Name, "cilium") {
			return true
		}
	}
	return false
}

// uplinks counts those that have a table of a family.
func uplinks(f routing.Family, s *reconcile.Snapshot) int {
	n := 0
	for plan := range s.Links() {
		if plan.Roles.In(f) != routing.Uplink {
			continue
		}
		for _, k := range plan.Keys {
			if _, leased := plan.Link.Tables[k]; leased && k.Family == f {
				n++
				break
			}
		}
	}
	return n
}
