package allocator

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/routing"
)

// A ClientLease says which table a client has.
type ClientLease struct {
	Key   ClientKey
	Table routing.TableID
	// Owner is the user who may renew and release it, or the last one who did.
	Owner uint32
	Tag   string
	// Live says that it has not been released and has not expired.
	Live bool
	// Expires is when it ends unless it is renewed, on CLOCK_MONOTONIC_RAW;
	// zero of what has ended.
	Expires time.Duration
	// Created is when the key got the number; Released when the lease last
	// ended, zero while it is live.
	Created, Released time.Time
	// OutOfRange says that the configured range does not hold the number.
	OutOfRange bool
}

func (l *lease) publicClient(r routing.TableRange) ClientLease {
	out := ClientLease{
		Key: l.client, Table: l.table, Owner: l.owner, Tag: l.tag, Live: l.live,
		Created: time.UnixMilli(l.created), OutOfRange: !r.Contains(l.table),
	}
	if l.live {
		out.Expires = time.Duration(l.expires) * time.Second
	} else {
		out.Released = time.UnixMilli(l.released)
	}
	return out
}

// Clients returns the leases of clients, sorted by interface, family and address.
func (a *Allocator) Clients() []ClientLease {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.readOnly {
		a.expire()
	}
	var all []ClientLease
	for _, l := range a.byHolder {
		if l.kind == kindClient {
			all = append(all, l.publicClient(a.numbers))
		}
	}
	slices.SortFunc(all, func(x, y ClientLease) int { return compareClients(x.Key, y.Key) })
	return all
}

// LookupClient returns the number of a client's key that has a lease in the
// range, live or not.
func (a *Allocator) LookupClient(key ClientKey) (routing.TableID, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.byHolder[clientHolder(key)]
	if l == nil || !a.numbers.Contains(l.table) {
		return 0, false
	}
	return l.table, true
}

// Expire ends the leases that were not renewed in time, and returns them. The next Flush
// writes that. After a crash before that, they live a little longer.
func (a *Allocator) Expire() []ClientLease {
	a.mu.Lock()
	defer a.mu.Unlock()
	overdue := a.expire()
	ended := make([]ClientLease, 0, len(overdue))
	for _, l := range overdue {
		ended = append(ended, l.publicClient(a.numbers))
	}
	slices.SortFunc(ended, func(x, y ClientLease) int { return compareClients(x.Key, y.Key) })
	return ended
}

// expire costs nothing while nothing can have expired.
func (a *Allocator) expire() (ended []*lease) {
	now := a.second()
	if now < a.earliest {
		return nil
	}
	var overdue []*lease
	a.earliest = never
	for _, l := range a.byHolder {
		switch {
		case l.kind != kindClient || !l.live:
		case l.expires <= now:
			overdue = append(overdue, l)
		default:
			a.earliest = min(a.earliest, l.expires)
		}
	}
	// In the order in which they ended, as far as that can be told.
	slices.SortFunc(overdue, func(x, y *lease) int {
		if x.expires != y.expires {
			return int(x.expires - y.expires)
		}
		return compareClients(x.client, y.client)
	})
	for _, l := range overdue {
		a.release(l)
	}
	return overdue
}

// second is the time by which leases of clients expire.
func (a *Allocator) second() int64 { return int64(a.uptime() / time.Second) }

// release ends a live lease. Its number waits in the queue.
func (a *Allocator) release(l *lease) {
	a.uncount(l)
	a.end(l)
	if a.numbers.Contains(l.table) {
		a.free.push(l)
	}
}

// end marks a lease as released now.
func (a *Allocator) end(l *lease) {
	a.order++
	l.live, l.released, l.order = false, a.now().UnixMilli(), a.order
}

// revive makes a released lease of the range live.
func (a *Allocator) revive(l *lease) {
	l.live = true
	a.free.remove(l)
	a.count(l)
}

func (a *Allocator) count(l *lease) {
	if l.kind == kindClient {
		a.owned[l.owner]++
		a.earliest = min(a.earliest, l.expires)
	}
}

func (a *Allocator) uncount(l *lease) {
	if l.kind != kindClient {
		return
	}
	if a.owned[l.owner]--; a.owned[l.owner] <= 0 {
		delete(a.owned, l.owner)
	}
}

// stillLive reports whether a lease that is live on disk is so in fact. That a
// link is there is for its owner to say again. A client's lease lives until it
// expires, but never longer than the boot it was made in: its clock and its
// client are gone.
func (a *Allocator) stillLive(l *lease, linksToo bool) bool {
	if l.kind == kindLink {
		return linksToo
	}
	return l.boot == a.boot && l.expires > a.second()
}

// former are the released leases of clients, by interface, whose numbers a link
// takes over: so a host that changes from a client's leases to links, or from
// the ancestor of this program, keeps its numbers.
type former map[string][]*lease

// formerly costs nothing on a host without clients.
func (a *Allocator) formerly(wanted int) former {
	if wanted == 0 {
		return nil
	}
	var all former
	for _, l := range a.byHolder {
		if l.kind != kindClient || l.live || l.client.Family == 0 || !a.numbers.Contains(l.table) {
			continue
		}
		if all == nil {
			all = former{}
		}
		all[l.client.Interface] = append(all[l.client.Interface], l)
	}
	return all
}

// take returns the lease that a link takes over, the one released last if there
// are several, nil if there is none. It must still be in force.
func (f former) take(k routing.Key, inForce map[routing.TableID]*lease) *lease {
	var best *lease
	for _, l := range f[k.Interface] {
		if l.client.Family != k.Family || inForce[l.table] != l || best != nil && best.order > l.order {
			continue
		}
		if address, ok := l.client.address(); ok && k.Prefix.Contains(address) {
			best = l
		}
	}
	return best
}

// Uptime reads CLOCK_MONOTONIC_RAW, the clock of the protocol: it stands still
// while the host sleeps, as the timers of clients do.
func Uptime() time.Duration {
	var now unix.Timespec
	// It fails only for a clock that does not exist (clock_gettime(2)).
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &now)
	return time.Duration(now.Nano())
}

const bootIDPath = "/proc/sys/kernel/random/boot_id"

func bootID() (string, error) {
	data, err := os.ReadFile(bootIDPath)
	if err != nil {
		return "", fmt.Errorf("telling this boot from others: %w", err)
	}
	id := strings.TrimSpace(string(data))
	if id == "" {
		return "", errors.New("telling this boot from others: " + bootIDPath + " is empty")
	}
	return id, nil
}
