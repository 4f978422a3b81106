package cleanup

import (
	"context"

	"multihomed/internal/connections"
)

// noDevice is the index of an interface that does not exist.
const noDevice = -1

// device is the interface of the options: 0 for all, noDevice if it does not exist.
func (r *Remains) device() int {
	switch {
	case r.link.name == "":
		return 0
	case r.link.index == 0:
		return noDevice
	default:
		return r.link.index
	}
}

// Endpoints returns the endpoints of Multipath TCP that we made and that the kernel still has. Call
// Left first: it learns which interface is meant.
func (r *Remains) Endpoints(ctx context.Context) ([]connections.Endpoint, error) {
	if r.options.RuntimeDir == "" || r.options.Unreachable {
		return nil, nil
	}
	return connections.Endpoints{Directory: r.options.RuntimeDir}.Left(ctx, r.device())
}

// RemoveEndpoints removes them, and returns how many there were. A connection that has a subflow from
// one loses this subflow, and goes on by its others.
func (r *Remains) RemoveEndpoints(ctx context.Context) (int, error) {
	if r.options.RuntimeDir == "" || r.options.Unreachable {
		return 0, nil
	}
	return connections.Endpoints{Directory: r.options.RuntimeDir}.Remove(ctx, r.device())
}
