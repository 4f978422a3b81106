// Package runstate is what a daemon keeps for the next one, and what it says of itself.
package runstate

import (
	"time"

	"multihomed/routing"
)

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
	// Away are the rules and routes that somebody deleted and that are put back later.
	Away []Away `json:"away,omitempty"`
	// Gone are rules of others that went just now, for which guards stand: the plan
	// depends on them.
	Gone []routing.Rule `json:"gone,omitempty"`
}

// An Away is a reconcile.Away in JSON.
type Away struct {
	Family routing.Family `json:"family"`
	Text   string         `json:"text"`
	Until  time.Time      `json:"until"`
	His    string         `json:"his,omitempty"`
}
