package view

import (
	"time"

	"multihomed/internal/offswitch"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// Daemon is what the daemon says of itself.
type Daemon struct {
	Version string
	PID     int
	Started time.Time
	// Ready says that a pass with complete knowledge was made.
	Ready bool
	// Waiting says what the daemon waits for, empty if for nothing.
	Waiting  string
	Problems []routing.Problem
	// Away are the rules and routes that somebody deleted and that are put back later.
	Away []reconcile.Away
	// Directories are where it works, whatever its configuration file says by now.
	Directories offswitch.Directories
}
