package client

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/allocator/wire"
	"multihomed/internal/unixgram"
	"multihomed/routing"
)

// DefaultName is the abstract name of the server's socket.
const DefaultName = "tas_socket"

// Defaults of [Options.Tries] and [Options.Interval], as in the client of
// kristrev/multihomed-routing.
const (
	DefaultTries    = 5
	DefaultInterval = 2 * time.Second
)

// serviceUser is the user that multihomed runs as.
const serviceUser = "multihomed"

// Options say which server to ask, and how long to wait for it. The zero value asks
// multihomed as it is installed.
type Options struct {
	// Name of the server's socket in the abstract namespace, without the leading
	// NUL; empty means DefaultName.
	Name string
	// Tries is how often a request is sent before ErrNoAnswer; zero means DefaultTries.
	Tries int
	// Interval is the time to wait for the answer to each; zero means DefaultInterval.
	Interval time.Duration
	// Servers are the uids whose answers count: anybody can send a datagram. Nil means
	// root and, if it exists, the user multihomed.
	Servers []uint32
	// Uptime is the clock in which the server says when a lease expires; nil means
	// CLOCK_MONOTONIC_RAW (clock_gettime(2)).
	Uptime func() time.Duration
}

// A Request names a lease: an Interface with an Address, or an ID.
type Request struct {
	// Interface the lease is for. A plain lease does not need it to exist.
	Interface string
	// Address also decides the family. Leave it zero where ID is set.
	Address netip.Addr
	// ID names what a lease without an address is for: 1 to 45 printable bytes.
	ID string
	// Tag is kept with the lease, for people: up to 127 bytes.
	Tag string
	// Routing asks for the routing of Address.
	Routing bool
	// Hold makes a routed lease expire unless it is renewed. [Client.Hold] sets it.
	Hold bool
}

// A Lease is a table number, and for how long it is leased.
type Lease struct {
	// Table is the number for `ip route … table` and `ip rule … lookup`.
	Table routing.TableID
	// Lifetime is how long the lease lasts from when it was granted or renewed.
	// Zero: it lives as long as the address.
	Lifetime time.Duration
	// Expires is the end of Lifetime on the local clock. Zero if Lifetime is zero.
	Expires time.Time
	// Routed says that the rules and routes of the address are active.
	Routed bool
	// Extended says that the server is multihomed, and not its ancestor.
	Extended bool
}

// ErrNoAnswer says that no server answered within [Options.Tries] times [Options.Interval].
var ErrNoAnswer = errors.New("no server of routing tables answers; to fix: start multihomed (systemctl start multihomed), and see [allocator] in its configuration")

// ErrNotRouted is the answer to a routed request where the server only leases tables.
var ErrNotRouted = errors.New("the server leases tables and does not set up routing: it is not multihomed; to fix: stop it and start multihomed, or ask for a plain lease")

// A Client leases tables. Its methods may be called by several goroutines; one
// request is under way at a time.
type Client struct {
	options Options
	server  unixgram.Address

	mu sync.Mutex
	// tables are the numbers had last, which a server that has lost its memory
	// is told.
	tables map[Request]routing.TableID
}

// New returns a client. It sends nothing. The error is about the options.
func New(o Options) (*Client, error) {
	if o.Name == "" {
		o.Name = DefaultName
	}
	if o.Tries == 0 {
		o.Tries = DefaultTries
	}
	if o.Interval == 0 {
		o.Interval = DefaultInterval
	}
	if o.Tries < 0 || o.Interval < 0 {
		return nil, fmt.Errorf("%d tries of %v make no sense; want positive ones", o.Tries, o.Interval)
	}
	if o.Uptime == nil {
		o.Uptime = uptime
	}
	if o.Servers == nil {
		o.Servers = servers()
	}
	server, err := unixgram.Abstract(o.Name)
	if err != nil {
		return nil, err
	}
	// Padded is the form that both servers know.
	return &Client{options: o, server: server.Padded(), tables: map[Request]routing.TableID{}}, nil
}

// servers are the users that a server may run as.
func servers() []uint32 {
	all := []uint32{0}
	if u, err := user.Lookup(serviceUser); err == nil {
		if uid, err := strconv.ParseUint(u.Uid, 10, 32); err == nil {
			all = append(all, uint32(uid))
		}
	}
	return all
}

func uptime() time.Duration {
	var now unix.Timespec
	// It fails only for a clock that does not exist (clock_gettime(2)).
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &now)
	return time.Duration(now.Nano())
}

// Lease makes or renews a lease. The error is a *wire.Error if the server
// refuses, ErrNoAnswer if there is none, ErrNotRouted, or the context's.
func (c *Client) Lease(ctx context.Context, r Request) (Lease, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l, err := c.lease(ctx, r)
	if err != nil {
		return Lease{}, fmt.Errorf("leasing a table for %s: %w", r, err)
	}
	return l, nil
}

// Release gives a lease back. Releasing a lease that does not exist is not an error.
func (c *Client) Release(ctx context.Context, r Request) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.request(ctx, wire.Release, r); err != nil {
		return fmt.Errorf("releasing the table of %s: %w", r, err)
	}
	delete(c.tables, r)
	return nil
}

func (r Request) String() string {
	if r.ID != "" {
		return r.Interface + " " + strconv.Quote(r.ID)
	}
	return r.Interface + " " + r.Address.String()
}

func (c *Client) lease(ctx context.Context, r Request) (Lease, error) {
	answer, err := c.request(ctx, wire.Lease, r)
	if err != nil {
		return Lease{}, err
	}
	l := Lease{Table: answer.Table, Routed: answer.Routing, Extended: answer.Version > 1}
	if r.Routing && !l.Routed {
		// It is of no use as it is.
		if _, err := c.request(ctx, wire.Release, r); err != nil {
			return Lease{}, errors.Join(ErrNotRouted, err)
		}
		return Lease{}, ErrNotRouted
	}
	if answer.Expires > 0 || !l.Routed {
		// What has expired while it was on its way has no life left; the
		// difference must not wrap around to a long one.
		l.Lifetime = max(time.Duration(answer.Expires)*time.Second-c.options.Uptime(), 0)
		l.Expires = time.Now().Add(l.Lifetime)
	}
	c.tables[r] = l.Table
	return l, nil
}

// request sends a request until it is answered.
func (c *Client) request(ctx context.Context, command wire.Command, r Request) (wire.Response, error) {
	ask := wire.Request{
		Command: command, Version: 2, Interface: r.Interface, Address: r.ID, Tag: r.Tag,
		Routing: r.Routing, Hold: r.Hold && r.Routing, Table: c.tables[r],
	}
	switch {
	case r.Address.IsValid() == (r.ID != ""):
		return wire.Response{}, errors.New("a lease is for either an address or an identifier; give one of them")
	case r.Address.IsValid():
		ask.Family, ask.Address = routing.FamilyOf(r.Address), r.Address.String()
	}
	if ask.Routing {
		ask.Table = 0 // It follows from the link.
	}
	conn, err := listen()
	if err != nil {
		return wire.Response{}, err
	}
	defer conn.Close()
	x := &exchange{Client: c, conn: conn, ask: ask}
	return x.run(ctx)
}

// listen makes a socket with a name of its own. The name of the ancestor's
// client, made of the lease, would let a second one for the same lease wait for
// ever; and answers to an earlier request cannot arrive at a new name.
func listen() (*unixgram.Conn, error) {
	var random [8]byte
	// It never fails (crypto/rand).
	_, _ = rand.Read(random[:])
	name, err := unixgram.Abstract(fmt.Sprintf("multihomed-%d-%s", os.Getpid(), hex.EncodeToString(random[:])))
	if err != nil {
		return nil, err
	}
	return unixgram.Listen(name.Padded())
}

// An exchange is one request and what comes of it.
type exchange struct {
	*Client
	conn *unixgram.Conn
	ask  wire.Request
}

func (x *exchange) run(ctx context.Context) (wire.Response, error) {
	var last error
	for try := range x.options.Tries {
		x.ask.Transaction = uint32(try) + 1
		datagram, refused := x.ask.Encode()
		if refused != nil {
			return wire.Response{}, refused
		}
		answer, err := x.try(ctx, datagram)
		if ctx.Err() != nil {
			return wire.Response{}, context.Cause(ctx)
		}
		refused, _ = errors.AsType[*wire.Error](err)
		switch {
		case err == nil:
			return answer, nil
		case refused != nil && !refused.Temporary():
			return wire.Response{}, refused
		}
		last = err
	}
	if refused, ok := errors.AsType[*wire.Error](last); ok {
		return wire.Response{}, refused
	}
	if last == nil || errors.Is(last, os.ErrDeadlineExceeded) || errors.Is(last, unixgram.ErrNobody) {
		return wire.Response{}, ErrNoAnswer
	}
	return wire.Response{}, errors.Join(ErrNoAnswer, last)
}

// try sends the request once and waits for its interval, answered or not: who
// was told to come again must not come at once.
func (x *exchange) try(ctx context.Context, datagram []byte) (wire.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, x.options.Interval)
	defer cancel()
	answer, err := x.send(ctx, datagram)
	if err == nil {
		return answer, nil
	}
	if refused, ok := errors.AsType[*wire.Error](err); ok && !refused.Temporary() {
		return wire.Response{}, err
	}
	<-ctx.Done()
	return wire.Response{}, err
}

func (x *exchange) send(ctx context.Context, datagram []byte) (wire.Response, error) {
	if err := x.conn.SendWait(ctx, x.server, datagram); err != nil {
		return wire.Response{}, err
	}
	deadline, _ := ctx.Deadline()
	if err := x.conn.SetReadDeadline(deadline); err != nil {
		return wire.Response{}, err
	}
	stop := context.AfterFunc(ctx, func() {
		_ = x.conn.SetReadDeadline(time.Unix(1, 0)) // At worst it is closed.
	})
	defer stop()
	buffer := make([]byte, wire.MaxResponse)
	for {
		d, err := x.conn.Receive(buffer)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, os.ErrClosed):
			return wire.Response{}, err
		case err != nil:
			continue // That one datagram could not be had.
		}
		if answer, believed := x.believe(d); believed {
			if answer.Refused != nil {
				return wire.Response{}, answer.Refused
			}
			return answer, nil
		}
	}
}

// believe decides whether a datagram is the server's answer to the request.
// Whatever else comes is as if it had not come.
func (x *exchange) believe(d unixgram.Datagram) (wire.Response, bool) {
	if d.Truncated || !slices.Contains(x.options.Servers, d.UID) {
		return wire.Response{}, false
	}
	answer, err := wire.DecodeResponse(d.Payload)
	switch {
	case err != nil:
		return wire.Response{}, false
	case answer.Version > 1 && answer.Transaction != x.ask.Transaction:
		return wire.Response{}, false // It came too late.
	case answer.Refused != nil:
		return answer, true
	case x.ask.Command == wire.Lease && !usable(answer.Table):
		return wire.Response{}, false
	}
	return answer, true
}

// usable tells a number that can be leased from one that the kernel has taken.
func usable(t routing.TableID) bool {
	return t != 0 && (t < routing.TableDefault || t > routing.TableLocal)
}
