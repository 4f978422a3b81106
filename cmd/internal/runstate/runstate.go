// Package runstate is what a daemon keeps for the next one, and what it says of itself.
package runstate

import (
	"time"

	"multihomed/routing"
)

// maxSize bounds what is taken from a file that anybody may have replaced.
const maxSize = 1 << 20

// A State is what the daemon says of itself.
type State struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	// Ready says that a pass with complete knowledge was made.
	Ready bool `json:"ready"`
	// Waiting says what the daemon waits for, empty if for nothing.
	Waiting  string            `json:"waiting,omitempty"`
	Problems []routing.Problem `json:"problems,omitempty"`
}
