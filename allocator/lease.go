package allocator

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"multihomed/routing"
)

// A Lease says which table a key has.
type Lease struct {
	Key   routing.Key
	Table routing.TableID
	// Live says that the key was acquired and not released since. In a database
	// that was opened read-only it is what was last written, which lags.
	Live bool
	// Created is when the key got the number.
	Created time.Time
	// Released is when the key was last released; zero while it is live.
	Released time.Time
	// OutOfRange says that the configured range does not hold the number: the
	// key gets another one the next time it is acquired.
	OutOfRange bool
}

// lease is a Lease or a ClientLease in memory.
type lease struct {
	holder
	table   routing.TableID
	created int64 // Unix milliseconds, as released
	held

	// stored is what the database says, for the lazy bookkeeping.
	stored held
	// previous and next link the released leases of the range.
	previous, next *lease
}

// held is the part of a lease that changes. Of links it is written lazily.
type held struct {
	live     bool
	released int64
	order    int64 // of the release
	// Of a client's lease:
	owner uint32
	tag   string
	// boot and expires say when it ends: seconds of that boot's
	// CLOCK_MONOTONIC_RAW. Both are zero of a link and of what has ended.
	boot    string
	expires int64
}

// toStore is what the database should say.
func (l *lease) toStore() held {
	h := l.held
	if h.live {
		// When and in which order it was once released says nothing any more.
		h.released, h.order = 0, 0
	} else {
		h.boot, h.expires = "", 0
	}
	return h
}

func (l *lease) public(r routing.TableRange) Lease {
	out := Lease{
		Key: l.link, Table: l.table, Live: l.live,
		Created: time.UnixMilli(l.created), OutOfRange: !r.Contains(l.table),
	}
	if !l.live {
		out.Released = time.UnixMilli(l.released)
	}
	return out
}

// A queue holds the released leases of the range, the longest released first.
type queue struct{ first, last *lease }

func (q *queue) push(l *lease) { q.insertAfter(q.last, l) }

// insert puts a lease back in its place by order; it was near the front.
func (q *queue) insert(l *lease) {
	var after *lease
	for at := q.first; at != nil && at.order < l.order; at = at.next {
		after = at
	}
	q.insertAfter(after, l)
}

// insertAfter links l behind at, or in front of all if at is nil.
func (q *queue) insertAfter(at, l *lease) {
	l.previous = at
	if at == nil {
		l.next, q.first = q.first, l
	} else {
		l.next, at.next = at.next, l
	}
	if l.next == nil {
		q.last = l
	} else {
		l.next.previous = l
	}
}

func (q *queue) remove(l *lease) {
	if l.previous == nil {
		q.first = l.next
	} else {
		l.previous.next = l.next
	}
	if l.next == nil {
		q.last = l.previous
	} else {
		l.next.previous = l.previous
	}
	l.previous, l.next = nil, nil
}

// byRelease orders leases as the queue holds them.
func byRelease(a, b *lease) int {
	return cmp.Or(cmp.Compare(a.order, b.order), cmp.Compare(a.table, b.table))
}

// checkKey refuses what could not be found again under the same name.
func checkKey(k routing.Key) error {
	switch {
	case k.Family != routing.IPv4 && k.Family != routing.IPv6:
		return fmt.Errorf("%v is neither ipv4 nor ipv6", k.Family)
	case !k.Prefix.IsValid() || k.Prefix.Addr().Is4() != (k.Family == routing.IPv4):
		return fmt.Errorf("prefix %v is not of %v", k.Prefix, k.Family)
	case k.Prefix != k.Prefix.Masked():
		return fmt.Errorf("prefix %v has host bits: %v is meant", k.Prefix, k.Prefix.Masked())
	}
	return routing.CheckInterfaceName(k.Interface)
}

// sortLeases orders leases for people: by interface, family and prefix.
func sortLeases(all []Lease) {
	slices.SortFunc(all, func(a, b Lease) int {
		return cmp.Or(
			strings.Compare(a.Key.Interface, b.Key.Interface),
			cmp.Compare(a.Key.Family, b.Key.Family),
			a.Key.Prefix.Compare(b.Key.Prefix),
		)
	})
}
