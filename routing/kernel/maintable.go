package kernel

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"multihomed/routing"
)

// A MainTable takes routes of others out of main and puts them back, for an administrator
// who asked for it. Nothing else in this program writes to main on behalf of others: a
// [Writer] refuses to.
//
// Main is a fact and not our work, so a mirror hears of its changes as of any that somebody
// else makes.
type MainTable struct{ mirror *Mirror }

// MainTableOf returns the table main of the network namespace that a mirror sees. The
// mirror names interfaces in errors, and is not written to.
func MainTableOf(m *Mirror) MainTable { return MainTable{m} }

// Take deletes routes from main. What the kernel put there itself, or learned from a
// router, stays, see [Movable]. Errors are as with [Writer.Apply]; [ErrNotOurs] says that a
// route may not be moved.
func (t MainTable) Take(ctx context.Context, routes []routing.Route) []error {
	return t.apply(ctx, routing.DeleteRoute, routes)
}

// Put adds routes to main. The error is EEXIST where main has no room for a route,
// otherwise as with Take.
func (t MainTable) Put(ctx context.Context, routes []routing.Route) []error {
	return t.apply(ctx, routing.AddRoute, routes)
}

func (t MainTable) apply(ctx context.Context, v routing.Verb, routes []routing.Route) []error {
	ops := make([]routing.Op, len(routes))
	for i, r := range routes {
		ops[i] = routing.Op{Verb: v, Route: r}
	}
	r, err := newRequester()
	if err != nil {
		return slices.Repeat([]error{fmt.Errorf("changing main: %w", err)}, len(routes))
	}
	// The mirror does not know the port of this socket: it takes the changes for somebody else's.
	// There are no rules among them, so the writer needs no handle for names.
	errs := (&Writer{requests: r, mirror: t.mirror}).apply(ctx, ops, refuseUnmovable)
	_ = r.close() // Nothing is left to be sent.
	return errs
}

func refuseUnmovable(op routing.Op) error {
	if op.Route.Table != routing.TableMain || !Movable(op.Route) {
		return fmt.Errorf("%w: it is the kernel's, or not in main", ErrNotOurs)
	}
	return nil
}

// Movable reports whether a route of main is somebody's who put it there, and not
// the kernel's own.
func Movable(r routing.Route) bool {
	switch r.Protocol {
	case unix.RTPROT_KERNEL, unix.RTPROT_RA, unix.RTPROT_REDIRECT, routing.Multihomed:
		return false
	default:
		return r.Type == routing.RouteUnicast
	}
}
