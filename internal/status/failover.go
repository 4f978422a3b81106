package status

import (
	"net/netip"
	"time"

	"multihomed/internal/escape"
)

// Failover says which uplinks work, and whether unbound traffic moved.
type Failover struct {
	// Enabled is the key of the configuration.
	Enabled bool `json:"enabled"`
	// Prober is "running", "not needed" (nothing is probed), or "missing".
	Prober string `json:"prober,omitempty"`
	// ProberError says why it is missing.
	ProberError string `json:"prober_error,omitempty"`
	// Uplinks has an entry for each uplink and family in which it has a default route, in the
	// order of the links; it is empty while no family has two.
	Uplinks []Health `json:"uplinks"`
}

// States of the prober.
const (
	ProberRunning   = "running"
	ProberNotNeeded = "not needed"
	ProberMissing   = "missing"
)

// Health says whether an uplink works in one family.
type Health struct {
	Interface string `json:"interface"`
	// Family is "ipv4" or "ipv6".
	Family string      `json:"family"`
	State  HealthState `json:"state"`
	// Since is when the state began, nil if that is not known.
	Since *time.Time `json:"since,omitempty"`
	// Why says in one sentence what the state is judged by.
	Why string `json:"why"`
	// NotWatched says why it is judged by its carrier alone, empty if it is probed.
	NotWatched string `json:"not_watched,omitempty"`
	// Tested is when the death that `multihomectl failover test` declared ends, nil if there is
	// none.
	Tested *time.Time `json:"tested,omitempty"`
	// Loss is the share of probes that got no answer, from 0 to 1, nil before the first.
	Loss *float64 `json:"loss,omitempty"`
	// RTT is the smoothed round-trip time in milliseconds, nil before the first answer.
	RTT *float64 `json:"rtt_ms,omitempty"`
	// LastProof is when the link last showed that it works: an answer, or an acknowledgement.
	LastProof *time.Time `json:"last_proof,omitempty"`
	// DeathsToday counts the deaths of the last 24 hours.
	DeathsToday int `json:"deaths_today"`
	// Targets are who is asked, in the words of the configuration.
	Targets []string `json:"targets"`
	// Interval is the time between two probes in milliseconds, 0 if there are none.
	Interval int64 `json:"interval_ms"`
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
	// HealthUnprobed: no target ever answered, or there is no prober. It counts as up while it
	// has a carrier.
	HealthUnprobed HealthState = "unprobed"
)

// Dead reports whether unbound traffic avoids a link in this state.
func (s HealthState) Dead() bool { return s == HealthDown || s == HealthRecovering }

// Leg is one uplink that shares unbound traffic.
type Leg struct {
	Interface string `json:"interface"`
	// Weight is its part, of the sum of all.
	Weight  uint8       `json:"weight"`
	Gateway *netip.Addr `json:"gateway,omitempty"`
}

// escape makes its names and sentences printable.
func (f *Failover) escape() {
	f.ProberError = escape.Text(f.ProberError)
	for i := range f.Uplinks {
		h := &f.Uplinks[i]
		h.Interface = escape.Name(h.Interface)
		h.Why, h.NotWatched = escape.Text(h.Why), escape.Text(h.NotWatched)
	}
}
