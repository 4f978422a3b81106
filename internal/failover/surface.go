package failover

import (
	"errors"
	"net/netip"
	"time"

	"multihomed/internal/health"
	"multihomed/routing"
)

// A Link is what is known of an uplink in one family.
type Link struct {
	// Index and Name are the interface's.
	Index  int
	Name   string
	Family routing.Family
	health.Report
	// Unwatched says why nothing is asked, as a clause ("the only link with a default route"),
	// empty if something is.
	Unwatched string
	// Unsent says why its probes cannot be sent, with the fix where there is one; empty if they
	// are, or if something else was judged.
	Unsent string
	// Metered says that its probes are rare because they cost money.
	Metered bool
	// RouterOnly says that all targets that answer are neighbours, such as the resolver of a
	// home router: a failure behind them is not seen.
	RouterOnly bool
	// Tested is when a test of the administrator ends, zero if there is none.
	Tested time.Time
	// Servers are the DNS servers that the link's owner names.
	Servers []netip.Addr
}

// A State is what failover knows at one moment, for status.
type State struct {
	// Prober says why no probes are sent, empty if they are or if none are needed.
	Prober string
	// ProberFix is a command that may help then.
	ProberFix string
	// Links are the uplinks, by index and family.
	Links []Link
	// Generation changes with everything that status shows but times and rates.
	Generation uint64
}

// Errors of tests and resets.
var (
	// ErrNoLink: there is no uplink of that name.
	ErrNoLink = errors.New("there is no uplink of that name")
	// ErrNoOther: no other uplink is alive.
	ErrNoOther = errors.New("no other uplink is alive")
	// ErrOff: failover is switched off.
	ErrOff = errors.New("failover is switched off")
)
