package client

import (
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"multihomed/internal/prober/wire"
)

// An Event is what the prober reported, or a change of the connection.
type Event struct {
	// Report is a Connected, Lost, Sent, Answered, Failed, Unsent, Looked or Pong.
	Report any
	// Horizon is the time up to which the prober has delivered everything that reached its sockets;
	// the zero Time for Connected and Lost. It never goes back while a connection lasts.
	Horizon time.Time
}

// Connected says that the prober answers, and that requests can be made.
type Connected struct{}

// Lost says that the connection is gone or could not be made, and with it all open requests. While
// there is no connection it comes again only for another reason.
type Lost struct{ Err error }

// The reports of package wire, with the times of this process.
type (
	// Sent says when a probe was sent.
	Sent struct {
		ID uint64
		At time.Time
	}
	// Answered is the last report of a probe: the target answered. RTT is 0 if the prober cannot say
	// how long it took; see [wire.Answered].
	Answered struct {
		ID  uint64
		At  time.Time
		RTT time.Duration
	}
	// Failed is the last report of a probe: it was sent, and gets no answer. Err wraps a
	// [syscall.Errno], which is ETIMEDOUT after [wire.Lifetime].
	Failed struct {
		ID  uint64
		At  time.Time
		Err error
	}
	// Unsent is the last report of a request that the prober could not do, for a reason on this host.
	// Err wraps a [syscall.Errno].
	Unsent struct {
		ID  uint64
		At  time.Time
		Err error
	}
	// Looked is the last report of a look.
	Looked struct {
		ID uint64
		At time.Time
		// Cost is the prober's processor time.
		Cost time.Duration
		// Connections are by source, Devices by interface index.
		Connections map[netip.Addr]Connections
		Devices     map[int]wire.Counters
	}
	// Pong is the last report of a ping.
	Pong struct {
		ID uint64
		At time.Time
	}
	// Connections summarises the TCP connections of a source; see [wire.Connections].
	Connections struct {
		Count   int
		Proof   time.Time // zero if there is none
		Silence time.Duration
	}
)

// event translates a report that was checked. request is what it answers.
func (c *Client) event(report wire.Report, request wire.Request, horizon wire.Time) Event {
	e := Event{Horizon: c.clock.time(horizon)}
	switch r := report.(type) {
	case wire.Sent:
		e.Report = Sent{ID: r.ID, At: c.clock.time(r.At)}
	case wire.Answered:
		e.Report = Answered{ID: r.ID, At: c.clock.time(r.At), RTT: r.RTT}
	case wire.Failed:
		e.Report = Failed{ID: r.ID, At: c.clock.time(r.At), Err: fmt.Errorf("no answer: %w", r.Errno)}
	case wire.Unsent:
		e.Report = Unsent{ID: r.ID, At: c.clock.time(r.At), Err: unsent(request, r.Errno)}
	case wire.Pong:
		e.Report = Pong{ID: r.ID, At: c.clock.time(r.At)}
	case wire.Looked:
		e.Report = c.looked(r, request)
	}
	return e
}

func (c *Client) looked(r wire.Looked, request wire.Request) Looked {
	look, _ := request.(wire.Look) // As take has checked.
	out := Looked{
		ID: r.ID, At: c.clock.time(r.At), Cost: r.Cost,
		Connections: make(map[netip.Addr]Connections, len(r.Connections)), Devices: make(map[int]wire.Counters, len(r.Devices)),
	}
	for i, s := range look.Sources {
		in := r.Connections[i]
		seen := Connections{Count: in.Count, Silence: in.Silence}
		if in.Proof != 0 {
			seen.Proof = c.clock.time(in.Proof)
		}
		out.Connections[s.Addr] = seen
	}
	for i, d := range look.Devices {
		out.Devices[d] = r.Devices[i]
	}
	return out
}

// unsent says why a request was not done, and what to do where the administrator can.
func unsent(request wire.Request, errno syscall.Errno) error {
	p, isProbe := request.(wire.Probe)
	switch {
	case isProbe && p.Kind == wire.ICMP && errno == syscall.EACCES:
		return fmt.Errorf("ping sockets are forbidden: %w; to fix: probe by DNS or TCP, or: sysctl net.ipv4.ping_group_range=\"0 2147483647\"", errno)
	case isProbe && errno == syscall.EPERM:
		return fmt.Errorf("probe not sent: %w; to fix: let the host's firewall pass what multihomed-prober sends, or use Linux 5.7 or later", errno)
	case isProbe:
		return fmt.Errorf("probe not sent: %w", errno)
	}
	return fmt.Errorf("request not done: %w", errno)
}

// A clock translates times of CLOCK_MONOTONIC. Go's own monotonic reading is of the same clock, so
// that the difference is constant.
type clock struct {
	wall time.Time
	at   wire.Time
}

func newClock() clock {
	var best clock
	narrowest := time.Duration(1<<63 - 1)
	// This thread may be interrupted between two readings.
	for range 5 {
		before := wire.Now()
		wall := time.Now()
		after := wire.Now()
		if width := after.Sub(before); width < narrowest {
			narrowest, best = width, clock{wall: wall, at: before.Add(width / 2)}
		}
	}
	return best
}

func (c clock) time(t wire.Time) time.Time { return c.wall.Add(t.Sub(c.at)) }
