// Package client is the daemon's side of the socket of multihomed-prober.
//
// The prober is not trusted: it may die, hang, be stopped, flood, or send nonsense. Whatever it
// does, the client neither blocks its user nor grows without bound. It takes a report only for a
// request that is open, with times between the request and now. At anything else it closes the
// connection and tries again later.
package client

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"multihomed/internal/prober/wire"
)

// DefaultPath is where multihomed-prober.socket listens.
const DefaultPath = "/run/multihomed-prober/socket"

// Errors of Probe, Look and Ping. None of them says anything about a link.
var (
	// ErrAway says that there is no connection to the prober.
	ErrAway = errors.New("the prober is not connected")
	// ErrBusy says that the prober has as many open requests as it may have, or does not read.
	ErrBusy = errors.New("the prober is busy")
)

// Options are what a client needs.
type Options struct {
	// Path is the prober's socket.
	Path   string
	Logger *slog.Logger
}

// A Client asks the prober. Its methods may be called by several goroutines at once.
type Client struct{}

// New returns a client that is not connected.
func New(Options) *Client { return &Client{} }

// Run keeps a connection to the prober until ctx is done, and returns nil then. It connects again
// when the connection was lost: at first at once, then after pauses of up to 30 seconds. It closes
// Events before it returns.
func (c *Client) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Events are what happened, in order. Whoever reads too slowly slows the prober down.
func (c *Client) Events() <-chan Event { return nil }

// Probe asks for a probe and returns the ID of its reports; that of p is ignored. It does not block.
func (c *Client) Probe(p wire.Probe) (id uint64, err error) { return 0, ErrAway }

// Look asks for a look and returns the ID of its report; that of l is ignored. It does not block.
func (c *Client) Look(l wire.Look) (id uint64, err error) { return 0, ErrAway }

// Ping asks for a Pong, whose horizon is not before this call. It does not block.
func (c *Client) Ping() (id uint64, err error) { return 0, ErrAway }

// An Event is what the prober reported, or a change of the connection.
type Event struct {
	// Report is a Connected, Lost, Sent, Answered, Failed, Unsent, Looked or Pong.
	Report any
	// Horizon is the time up to which the prober has delivered everything that reached its sockets;
	// the zero Time for Connected and Lost. It never goes back while a connection lasts.
	Horizon time.Time
}

// Connected says that requests can be made.
type Connected struct{}

// Lost says that the connection is gone or could not be made, and with it all open requests. It comes
// once for each change of the reason.
type Lost struct{ Err error }

// The reports of package wire, with the times of this process. Errors wrap a [syscall.Errno].
type (
	// Sent says when a probe was sent.
	Sent struct {
		ID uint64
		At time.Time
	}
	// Answered is the last report of a probe: the target answered.
	Answered struct {
		ID uint64
		At time.Time
	}
	// Failed is the last report of a probe: it was sent, and gets no answer.
	Failed struct {
		ID  uint64
		At  time.Time
		Err error
	}
	// Unsent is the last report of a request that the prober could not do, for a reason on this host.
	Unsent struct {
		ID  uint64
		At  time.Time
		Err error
	}
	// Looked is the last report of a look.
	Looked struct {
		ID uint64
		At time.Time
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
