package offline

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"multihomed/allocator"
	"multihomed/internal/kerneltables"
	"multihomed/routing"
	"multihomed/routing/kernel"
)

// openLeases returns what the database knows, nil where it cannot be read.
func (r *reading) openLeases(ctx context.Context) *allocator.Allocator {
	path := filepath.Join(r.cfg.StateDir, allocator.DefaultName)
	leases, err := allocator.OpenReadOnly(ctx, allocator.Options{Path: path, Range: r.cfg.Tables})
	switch {
	case err == nil:
		return leases
	case errors.Is(err, allocator.ErrMissing):
		// Not started yet: there are no leases.
	case errors.Is(err, allocator.ErrUnreadable):
		r.leasesUnread = "this user may not read the leases in " + path + "; table numbers were taken from the rules and routes in the kernel"
	default:
		r.leasesUnread = fmt.Sprintf("leases: %v", err)
		r.notes = append(r.notes, r.leasesUnread)
	}
	return nil
}

// readLeases knows the tables of networks by the database, or by rules and routes in the kernel.
// It gives out none.
type readLeases struct {
	database *allocator.Allocator
	tables   routing.TableRange
	mirror   *kernel.Mirror
}

// Move implements [reconcile.Leases]. Who only looks moves nothing.
func (*readLeases) Move(context.Context, map[routing.Key]routing.TableID, func(routing.TableID) (string, bool)) (map[routing.Key]routing.TableID, error) {
	return map[routing.Key]routing.TableID{}, nil
}

// Acquire implements [reconcile.Leases]. A network without a table has none for now, and
// that is no error.
func (l *readLeases) Acquire(_ context.Context, keys []routing.Key, _ func(routing.TableID) (string, bool)) (map[routing.Key]routing.TableID, error) {
	out := make(map[routing.Key]routing.TableID, len(keys))
	missing := false
	for _, k := range keys {
		if l.database != nil {
			if t, ok := l.database.Lookup(k); ok {
				out[k] = t
				continue
			}
		}
		missing = true
	}
	if !missing {
		return out, nil
	}
	l.mirror.View(func(k *kernel.State) {
		for _, lease := range kerneltables.Read(l.tables, k).Leases(k) {
			if _, known := out[lease.Key]; !known {
				out[lease.Key] = lease.Table
			}
		}
	})
	return out, nil
}

// Release implements [reconcile.Leases].
func (*readLeases) Release(...routing.Key) {}
