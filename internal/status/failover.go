package status

import (
	"slices"
	"time"

	"multihomed/internal/escape"
)

// Failover says which uplinks work, and whether unbound traffic moved.
type Failover struct {
	// Enabled is the key of the configuration.
	Enabled bool `json:"enabled"`
	// Prober says why no probes are sent although they should be, empty if there is no reason.
	Prober string `json:"prober_error,omitempty"`
	// Uplinks has an entry for each uplink and family in which it has a default route, in the
	// order of the links; it is empty while no family has two.
	Uplinks []Health `json:"uplinks"`
}

// Health says whether an uplink works in one family.
type Health struct {
	// Interface is the name of the uplink, escaped.
	Interface string `json:"interface"`
	// Family is "ipv4" or "ipv6".
	Family string `json:"family"`
	// State is what it is judged to be; unbound traffic avoids one that is down or recovering.
	State HealthState `json:"state"`
	// Since is when the state began, nil if that is not known.
	Since *time.Time `json:"since,omitempty"`
	// Why says in one sentence what the state is judged by.
	Why string `json:"why"`
	// Verdict is Why without the numbers that change with every answer.
	Verdict string `json:"-"`
	// NotWatched says why it is judged by its carrier alone, empty if it is probed.
	NotWatched string `json:"not_watched,omitempty"`
	// RouterOnly says that only neighbours answer, such as the resolver of a home router: a
	// failure behind them is not seen.
	RouterOnly bool `json:"router_only,omitempty"`
	// Metered says that it is probed rarely, because its traffic may cost money.
	Metered bool `json:"metered,omitempty"`
	// Tested is when the death that `multihomectl failover test` declared ends, nil if there is
	// none.
	Tested *time.Time `json:"tested,omitempty"`
	// Loss is the share of probes that got no answer, from 0 to 1, nil before the first.
	Loss *float64 `json:"loss,omitempty"`
	// RTT is the smoothed round-trip time in milliseconds, nil before the first answer.
	RTT *float64 `json:"rtt_ms,omitempty"`
	// LastProof is when the link last showed that it works: an answer, or an acknowledgement.
	LastProof *time.Time `json:"last_proof,omitempty"`
	// Recovered is when a recovery ends if all goes well, nil unless in it.
	Recovered *time.Time `json:"recovered,omitempty"`
	// DeathsToday counts the deaths of the last 24 hours.
	DeathsToday int `json:"deaths_today"`
	// Targets are who is asked.
	Targets []HealthTarget `json:"targets"`
	// Interval is the time between two probes in milliseconds, 0 if there are none.
	Interval int64 `json:"interval_ms"`
}

// HealthTarget is a host that is asked whether an uplink works.
type HealthTarget struct {
	// Target is what is asked, in the words of the configuration: "dns:192.0.2.53:53".
	Target string `json:"target"`
	// OnLink says that it is a neighbour.
	OnLink bool `json:"on_link,omitempty"`
	// Answered says that it has answered at least once; others judge nobody.
	Answered bool `json:"answered"`
	// Silent says that it answers no longer, while others do.
	Silent bool `json:"silent,omitempty"`
}

// A HealthState is what an uplink is judged to be in one family.
type HealthState string

// States of an uplink.
const (
	// HealthUnknown: no answer yet, and no judgement.
	HealthUnknown HealthState = "unknown"
	HealthUp      HealthState = "up"
	// HealthSuspect: an answer is overdue; traffic stays.
	HealthSuspect HealthState = "suspect"
	HealthDown    HealthState = "down"
	// HealthRecovering: it answers again, and must do so for a while.
	HealthRecovering HealthState = "recovering"
	// HealthUnprobed: nothing is asked, or nothing ever answered. It counts as up while it has
	// a carrier.
	HealthUnprobed HealthState = "unprobed"
)

// Word is the state as people say it.
func (h Health) Word() string {
	switch h.State {
	case HealthUnprobed:
		return "not watched"
	case HealthUnknown:
		if h.NotWatched != "" {
			return "not watched"
		}
		return "not known yet"
	case HealthUp, HealthSuspect, HealthDown, HealthRecovering:
		return string(h.State)
	default:
		return escape.Text(string(h.State))
	}
}

// FamilyName is how people write "ipv4" and "ipv6".
func FamilyName(family string) string {
	if family == "ipv6" {
		return "IPv6"
	}
	return "IPv4"
}

// Dead reports whether unbound traffic avoids a link in this state.
func (s HealthState) Dead() bool { return s == HealthDown || s == HealthRecovering }

// Of finds the health of an interface in a family, false if it is not watched over.
func (f *Failover) Of(name, family string) (Health, bool) {
	if f == nil {
		return Health{}, false
	}
	i := slices.IndexFunc(f.Uplinks, func(h Health) bool { return h.Interface == name && h.Family == family })
	if i < 0 {
		return Health{}, false
	}
	return f.Uplinks[i], true
}

// Named are the entries of an interface, one for each family.
func (f *Failover) Named(name string) []Health {
	if f == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(f.Uplinks), func(h Health) bool { return h.Interface != name })
}

// Among counts the uplinks of a family.
func (f *Failover) Among(family string) int {
	n := 0
	if f != nil {
		for _, h := range f.Uplinks {
			if h.Family == family {
				n++
			}
		}
	}
	return n
}

// Leg is one uplink that shares unbound traffic.
type Leg struct {
	// Interface is the name of the uplink, escaped.
	Interface string `json:"interface"`
	// Weight is its part, of the sum of all.
	Weight uint16 `json:"weight"`
}

// Escape makes its names and sentences printable.
func (f *Failover) Escape() {
	f.Prober = escape.Text(f.Prober)
	for i := range f.Uplinks {
		h := &f.Uplinks[i]
		h.Interface = escape.Name(h.Interface)
		for j := range h.Targets {
			h.Targets[j].Target = escape.Text(h.Targets[j].Target)
		}
		h.Why, h.Verdict, h.NotWatched = escape.Text(h.Why), escape.Text(h.Verdict), escape.Text(h.NotWatched)
	}
}
