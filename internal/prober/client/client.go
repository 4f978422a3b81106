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
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

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

// Errors of Lost.
var (
	// ErrStalled says that the prober left a request unanswered for StallAfter. It is stopped, or hangs.
	ErrStalled = fmt.Errorf("the prober has not answered for %v", StallAfter)
	// ErrLied says that the prober sent what no honest one sends.
	ErrLied = errors.New("the prober broke its protocol")
	// errEnded says that the prober closed the connection.
	errEnded = errors.New("the prober has ended")
)

const (
	// StallAfter is how long the oldest open request may wait. It is more than wire.Lifetime.
	StallAfter = 2 * wire.Lifetime
	// grace is for what arrived while this process was itself stopped.
	grace = time.Second
	// firstPause doubles with each attempt up to longestPause, and for a prober that lies up to
	// longestDistrust. A connection that lasted steady resets it.
	firstPause, longestPause, longestDistrust = 100 * time.Millisecond, 5 * time.Second, time.Minute
	steady                                    = 10 * time.Second
	// eventsQueued is how many events wait for the user before the client stops reading.
	eventsQueued = 256
)

// A Client asks the prober. Its methods may be called by several goroutines at once.
type Client struct {
	path   string
	clock  clock
	events chan Event

	mu   sync.Mutex
	last uint64 // the last ID
	conn *conn  // nil while there is none that works
}

// New returns a client, not connected, of the prober whose socket has a path.
func New(path string) *Client {
	return &Client{path: path, clock: newClock(), events: make(chan Event, eventsQueued)}
}

// Events are what happened, in order. A user that reads too slowly slows the prober down, and loses
// nothing. The channel is closed when Run returns.
func (c *Client) Events() <-chan Event { return c.events }

// Probe asks for a probe and returns the ID of its reports; that of p is ignored. It does not block.
func (c *Client) Probe(p wire.Probe) (id uint64, err error) {
	return c.ask(func(id uint64) wire.Request { p.ID = id; return p })
}

// Look asks for a look and returns the ID of its report; that of l is ignored. It does not block, and
// l must not be changed until the report is there.
func (c *Client) Look(l wire.Look) (id uint64, err error) {
	return c.ask(func(id uint64) wire.Request { l.ID = id; return l })
}

// Ping asks for a Pong, whose horizon is not before this call. It does not block.
func (c *Client) Ping() (id uint64, err error) {
	return c.ask(func(id uint64) wire.Request { return wire.Ping{ID: id} })
}

func (c *Client) ask(request func(id uint64) wire.Request) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		return 0, ErrAway
	}
	return c.send(c.conn, request)
}

// send gives a request a new ID and sends it. The caller holds mu.
func (c *Client) send(to *conn, request func(id uint64) wire.Request) (uint64, error) {
	r := request(c.last + 1)
	if err := to.send(r, c.last+1); err != nil {
		return 0, err
	}
	c.last++
	return c.last, nil
}

// Run keeps a connection to the prober until ctx is done. It connects again when the connection was
// lost: at first after 0.1 seconds, then after pauses of up to 5 seconds, and of up to a minute where
// the prober lies. It may be called once.
func (c *Client) Run(ctx context.Context) {
	defer close(c.events)
	pause, told := firstPause, ""
	for {
		start := time.Now()
		err := c.serve(ctx, func() { told = "" })
		if ctx.Err() != nil {
			return
		}
		if err.Error() != told {
			told = err.Error()
			if c.deliver(ctx, Event{Report: Lost{Err: err}}) != nil {
				return
			}
		}
		longest := longestPause
		if errors.Is(err, ErrLied) {
			longest = longestDistrust
		}
		if time.Since(start) >= steady {
			pause = firstPause
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		pause = min(2*pause, longest)
	}
}

// serve does one connection, and returns why it ended.
func (c *Client) serve(ctx context.Context, connected func()) error {
	to, err := dial(ctx, c.path)
	if err != nil {
		return fmt.Errorf("connecting to the prober: %w", err)
	}
	defer func() { _ = to.socket.Close() }() // It has nothing to lose.
	stop := context.AfterFunc(ctx, func() { _ = to.socket.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	// A socket of systemd, or of a prober that is busy with another client, takes connections that
	// nobody serves yet.
	c.mu.Lock()
	hello, err := c.send(to, func(id uint64) wire.Request { return wire.Ping{ID: id} })
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("greeting the prober: %w", err)
	}
	defer func() {
		c.mu.Lock()
		c.conn = nil
		c.mu.Unlock()
	}()
	for {
		report, horizon, err := to.receive(ctx)
		if err != nil {
			return err
		}
		request, err := to.take(report, horizon)
		if err != nil {
			return err
		}
		if pong, is := report.(wire.Pong); is && pong.ID == hello {
			connected()
			c.mu.Lock()
			c.conn = to
			c.mu.Unlock()
			if err := c.deliver(ctx, Event{Report: Connected{}}); err != nil {
				return err
			}
			continue
		}
		if err := c.deliver(ctx, c.event(report, request, horizon)); err != nil {
			return err
		}
	}
}

func (c *Client) deliver(ctx context.Context, e Event) error {
	select {
	case c.events <- e:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A conn is a connection to the prober.
type conn struct {
	socket *net.UnixConn
	raw    syscall.RawConn
	buffer []byte

	mu   sync.Mutex
	open map[uint64]*open
	// order are the IDs of open in the order of their requests, and of some that are open no more.
	order   []uint64
	horizon wire.Time
}

// An open request waits for a report.
type open struct {
	request wire.Request
	asked   wire.Time
	// sent is when a probe was sent, 0 before.
	sent wire.Time
}

func dial(ctx context.Context, path string) (*conn, error) {
	var d net.Dialer
	socket, err := d.DialContext(ctx, "unixpacket", path)
	if err != nil {
		return nil, err
	}
	unixSocket, _ := socket.(*net.UnixConn) // Of "unixpacket" it is nothing else.
	raw, err := unixSocket.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	return &conn{socket: unixSocket, raw: raw, open: map[uint64]*open{}, buffer: make([]byte, wire.MaxDatagram+1)}, nil
}

// send sends a request, unless that would block.
func (c *conn) send(r wire.Request, id uint64) error {
	datagram, err := wire.EncodeRequest(nil, r)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.open) >= wire.MaxOpen {
		return ErrBusy
	}
	c.open[id] = &open{request: r, asked: wire.Now()}
	c.order = append(c.order, id)
	var failed error
	err = c.raw.Control(func(fd uintptr) {
		failed = unix.Sendto(int(fd), datagram, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
	})
	switch err = errors.Join(err, failed); {
	case err == nil:
		return nil
	case errors.Is(err, unix.EAGAIN):
		err = ErrBusy
	default:
		// The reader sees the end, and says why.
		err = fmt.Errorf("%w: %w", ErrAway, err)
	}
	delete(c.open, id)
	return err
}

// receive returns the next report.
func (c *conn) receive(ctx context.Context) (wire.Report, wire.Time, error) {
	wait, late := c.patience(wire.Now()), false
	for {
		if err := c.socket.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return nil, 0, fmt.Errorf("waiting for the prober: %w", err)
		}
		// The deadline of a context that is done just now may have been overwritten.
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		n, err := c.socket.Read(c.buffer)
		switch {
		case ctx.Err() != nil:
			return nil, 0, ctx.Err()
		case errors.Is(err, os.ErrDeadlineExceeded):
			if wait = c.patience(wire.Now()); wait > 0 {
				continue
			}
			// This process may have been stopped itself, and the deadline passed meanwhile.
			if late {
				return nil, 0, ErrStalled
			}
			wait, late = grace, true
			continue
		case n == 0 || errors.Is(err, io.EOF):
			return nil, 0, errEnded
		case err != nil:
			return nil, 0, fmt.Errorf("%w: %w", errEnded, err)
		}
		report, horizon, err := wire.DecodeReport(c.buffer[:n])
		if err != nil {
			return nil, 0, fmt.Errorf("%w: %w", ErrLied, err)
		}
		return report, horizon, nil
	}
}

// patience returns how long the oldest open request may still wait at a time: StallAfter if there is none.
func (c *conn) patience(at wire.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.patienceLocked(at)
}

func (c *conn) patienceLocked(at wire.Time) time.Duration {
	for len(c.order) > 0 {
		if oldest := c.open[c.order[0]]; oldest != nil {
			return StallAfter - at.Sub(oldest.asked)
		}
		c.order = c.order[1:]
	}
	return StallAfter
}

// take checks a report and its horizon, and returns the request that it is about. The last report of a
// request closes it.
func (c *conn) take(report wire.Report, horizon wire.Time) (wire.Request, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := wire.Now()
	if horizon < c.horizon || horizon > now {
		return nil, fmt.Errorf("%w: a horizon of %d, after %d, at %d", ErrLied, horizon, c.horizon, now)
	}
	c.horizon = horizon
	var id uint64
	var at wire.Time
	// fits says whether the report is one for such a request, in this state.
	var fits func(wire.Request, *open) bool
	sent := func(r wire.Request, o *open) bool {
		_, is := r.(wire.Probe)
		return is && o.sent != 0 && at >= o.sent
	}
	switch r := report.(type) {
	case wire.Sent:
		id, at = r.ID, r.At
		fits = func(request wire.Request, o *open) bool {
			_, is := request.(wire.Probe)
			return is && o.sent == 0
		}
	case wire.Answered:
		id, at = r.ID, r.At
		fits = func(request wire.Request, o *open) bool { return sent(request, o) && r.RTT <= at.Sub(o.sent) }
	case wire.Failed:
		id, at, fits = r.ID, r.At, sent
	case wire.Unsent:
		id, at = r.ID, r.At
		fits = func(_ wire.Request, o *open) bool { return o.sent == 0 }
	case wire.Looked:
		id, at = r.ID, r.At
		fits = func(request wire.Request, o *open) bool {
			l, is := request.(wire.Look)
			return is && r.Cost <= now.Sub(o.asked) && len(l.Sources) == len(r.Connections) && len(l.Devices) == len(r.Devices)
		}
	case wire.Pong:
		id, at = r.ID, r.At
		fits = func(request wire.Request, o *open) bool {
			_, is := request.(wire.Ping)
			return is && horizon >= o.asked
		}
	}
	o := c.open[id]
	if o == nil || at < o.asked || at > now || !fits(o.request, o) {
		return nil, fmt.Errorf("%w: a report %T of %d that fits no open request", ErrLied, report, id)
	}
	if _, is := report.(wire.Sent); is {
		o.sent = at
	} else {
		delete(c.open, id)
	}
	if c.patienceLocked(horizon) <= 0 {
		return nil, ErrStalled
	}
	return o.request, nil
}
