package server

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"multihomed/allocator"
	"multihomed/allocator/wire"
	"multihomed/internal/event"
	"multihomed/internal/unixgram"
	"multihomed/routing"
)

// Leases are the leases of tables; allocator.Allocator is one.
type Leases interface {
	Serve(ctx context.Context, demands []allocator.Demand, inUse allocator.InUse) []allocator.Outcome
	Expire() []allocator.ClientLease
}

// Kernel answers which tables are in use. It is asked for each batch of requests.
type Kernel interface {
	// Fresh makes the other methods answer for the kernel as it is now.
	Fresh(ctx context.Context) error
	// InUse reports whether a rule or a route uses a table, and which ("rule 100 from
	// 10.0.0.0/8").
	InUse(t routing.TableID) (why string, used bool)
	// Used returns the table to which a source rule of somebody else sends an address,
	// 0 if there is none. So a client that runs longer than we remember its lease
	// gets its number back.
	Used(address netip.Addr) routing.TableID
}

// A Route is an address whose routing a client asks for.
type Route struct {
	Interface string
	Address   netip.Addr
	Tag       string
	Owner     uint32
	// Expires is a time of CLOCK_MONOTONIC_RAW. Zero: with the address.
	Expires time.Duration
}

// A Router makes the rules and routes of addresses. An error that the client can fix is
// a *wire.Error.
type Router interface {
	// Route returns the table when rules and routes stand.
	Route(ctx context.Context, r Route) (routing.TableID, error)
	// Unroute takes them away. It reports whether there were any.
	Unroute(ctx context.Context, r Route) (bool, error)
	// Expire takes away those of leases that have expired.
	Expire(ctx context.Context)
}

// Options are what a Server works with. All fields are needed.
type Options struct {
	Leases Leases
	Kernel Kernel
	Router Router
	Access Access
	// Families are those that are leased; 0 is that of identifiers.
	Families []routing.Family
	// Lifetime is how long a lease lives unless it is renewed.
	Lifetime time.Duration
	// Quota is how many tables one user may hold. Root may hold any number.
	Quota int
	// Logger receives refusals and failures. The same one of the same user comes at most
	// once a minute, with how often it happened.
	Logger *slog.Logger
	// Uptime reads the clock of the protocol, CLOCK_MONOTONIC_RAW; see allocator.Uptime.
	Uptime func() time.Duration
}

// A Server answers clients.
type Server struct {
	Options
	arbiter    *arbiter
	complaints *complaints
	jobs       chan job
	share      *share
	routes     chan struct{}
	// routing are the goroutines of routed leases.
	routing sync.WaitGroup
}

// A job is one request that may be done.
type job struct {
	conn    *unixgram.Conn
	from    unixgram.Address
	uid     uint32
	request wire.Request
}

const (
	// maxJobs bounds the requests that wait, maxShare those of one user but root.
	maxJobs  = 1024
	maxShare = maxJobs / 4
	// maxRoutes bounds the routed leases in progress.
	maxRoutes = 64
	// maxBatch bounds the requests in one transaction.
	maxBatch = 256
	// sweep is how often expired leases are looked for.
	sweep = 5 * time.Second
)

// New returns a Server.
func New(o Options) *Server {
	return &Server{
		Options: o,
		arbiter: newArbiter(o.Access), complaints: newComplaints(o.Logger),
		jobs: make(chan job, maxJobs), share: newShare(), routes: make(chan struct{}, maxRoutes),
	}
}

// Run answers until ctx is done, and then returns nil. It serves the sockets that
// arrive on the channel, and leaves closing them to the caller.
func (s *Server) Run(ctx context.Context, sockets <-chan *unixgram.Conn) error {
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return s.work(ctx) })
	tasks.Go(func() error { return s.sweep(ctx) })
	for {
		select {
		case <-ctx.Done():
			err := tasks.Wait()
			s.routing.Wait()
			return err
		case conn := <-sockets:
			tasks.Go(func() error { return s.read(ctx, conn) })
		}
	}
}

// read takes in the datagrams of one socket.
func (s *Server) read(ctx context.Context, conn *unixgram.Conn) error {
	release, err := conn.ReadUntil(ctx)
	if err != nil {
		return err
	}
	defer release()
	buffer := make([]byte, wire.MaxRequest)
	for ctx.Err() == nil {
		d, err := conn.Receive(buffer)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, os.ErrClosed):
			return nil
		case err != nil:
			s.complaints.add(ctx, event.LevelNotice, 0, "a datagram could not be received", slog.String("error", err.Error()))
		default:
			s.take(ctx, conn, d)
		}
	}
	return nil
}

// take decides what becomes of a datagram.
func (s *Server) take(ctx context.Context, conn *unixgram.Conn, d unixgram.Datagram) {
	j := job{conn: conn, from: d.From, uid: d.UID}
	request, refused := wire.DecodeRequest(d.Payload, d.Truncated)
	j.request = request
	switch {
	case d.From == "":
		// It could not be told its table, and would hold it for nothing.
		s.complaints.add(ctx, event.LevelNotice, d.UID, "a client has no address to be answered at; to fix: bind its socket", slog.Int("pid", int(d.PID)))
		return
	case !s.arbiter.allows(d.UID, d.GID):
		refused = &wire.Error{Code: wire.NotAllowed, Text: "user " + number(d.UID) + " may not lease tables; to fix: run as root, or add the user or a group of it to [allocator] in multihomed.toml"}
	case refused != nil:
	default:
		refused = s.enqueue(ctx, j)
	}
	if refused != nil {
		s.refuse(ctx, j, refused)
	}
}

// enqueue hands a request to whom it concerns.
func (s *Server) enqueue(ctx context.Context, j job) *wire.Error {
	if !slices.Contains(s.Families, j.request.Family) {
		return &wire.Error{Code: wire.BadFamily, Text: "the configuration does not lease tables of this family; to fix: add it to families of [allocator] in multihomed.toml"}
	}
	if j.request.Routing {
		return s.startRoute(ctx, j)
	}
	if !s.share.add(j.uid) {
		return busy("too many requests of this user wait")
	}
	select {
	case s.jobs <- j:
		return nil
	default:
		s.share.done(j.uid)
		return busy("too many requests wait")
	}
}

func busy(why string) *wire.Error { return &wire.Error{Code: wire.Busy, Text: why + "; ask again"} }

// work does requests, as many at once as there are.
func (s *Server) work(ctx context.Context) error {
	batch := make([]job, 0, maxBatch)
	for {
		batch = batch[:0]
		select {
		case <-ctx.Done():
			return nil
		case j := <-s.jobs:
			batch = append(batch, j)
		}
		for more := true; more && len(batch) < maxBatch; {
			select {
			case j := <-s.jobs:
				batch = append(batch, j)
			default:
				more = false
			}
		}
		s.serve(ctx, batch)
		for _, j := range batch {
			s.share.done(j.uid)
		}
	}
}

// serve does a batch of requests for plain leases.
func (s *Server) serve(ctx context.Context, batch []job) {
	if err := s.Kernel.Fresh(ctx); err != nil {
		if ctx.Err() != nil {
			return
		}
		// An unknown kernel may use any table.
		for _, j := range batch {
			s.refuse(ctx, j, &wire.Error{Code: wire.Kernel, Text: "reading the kernel: " + err.Error()})
		}
		return
	}
	demands := make([]allocator.Demand, 0, len(batch))
	for _, j := range batch {
		demands = append(demands, s.demand(j))
	}
	for i, outcome := range s.Leases.Serve(ctx, demands, s.Kernel.InUse) {
		s.conclude(ctx, batch[i], outcome)
	}
}

func (s *Server) demand(j job) allocator.Demand {
	r := j.request
	d := allocator.Demand{
		Key:     allocator.ClientKey{Family: r.Family, Interface: r.Interface, Address: r.Address},
		Release: r.Command == wire.Release, Owner: j.uid, Tag: r.Tag,
		Lifetime: s.Lifetime, Table: r.Table, Quota: s.Quota,
	}
	if d.Release {
		return d
	}
	var used routing.TableID
	if r.Family != wire.Unspecified {
		if address, err := netip.ParseAddr(r.Address); err == nil {
			used = s.Kernel.Used(address)
		}
	}
	if d.Table == 0 {
		d.Table = used
	}
	if d.Table != 0 && d.Table != used && j.uid != 0 {
		// A user may name any number as his old one. What somebody uses is only his if
		// the kernel says so.
		if _, taken := s.Kernel.InUse(d.Table); taken {
			d.Table = 0
		}
	}
	return d
}

// conclude answers a request for a plain lease.
func (s *Server) conclude(ctx context.Context, j job, o allocator.Outcome) {
	if o.Err != nil {
		s.refuse(ctx, j, refusal(o.Err))
		return
	}
	r := j.request
	answer := wire.Response{Version: r.Version, Transaction: r.Transaction}
	attrs := []slog.Attr{
		slog.String("interface", r.Interface), slog.String("address", r.Address), slog.Uint64("uid", uint64(j.uid)),
	}
	table := slog.Uint64("table", uint64(o.Table))
	switch {
	case r.Command == wire.Release:
		s.Logger.LogAttrs(ctx, slog.LevelInfo, "lease released", append(attrs, event.Is(event.LeaseEnded))...)
	case o.New:
		s.Logger.LogAttrs(ctx, slog.LevelInfo, "table leased", append(attrs, table, event.Is(event.TableLeased))...)
	default:
		s.Logger.LogAttrs(ctx, slog.LevelDebug, "lease renewed", append(attrs, table)...)
	}
	if r.Command == wire.Lease {
		answer.Table, answer.Expires = o.Table, seconds(o.Expires)
		answer.Lifetime = seconds(s.Lifetime)
	}
	s.send(ctx, j, answer)
}

// refusal says to a client what went wrong.
func refusal(err error) *wire.Error {
	if e, ok := errors.AsType[*wire.Error](err); ok {
		return e
	}
	code := wire.Malformed
	switch {
	case errors.Is(err, allocator.ErrNotOwner):
		code = wire.NotYours
	case is[*allocator.FullError](err), is[*allocator.ScarceError](err):
		code = wire.Exhausted
	case is[*allocator.QuotaError](err):
		code = wire.Quota
	case is[*allocator.DatabaseError](err), errors.Is(err, allocator.ErrClosed):
		code = wire.Database
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		code = wire.Busy
	}
	return &wire.Error{Code: code, Text: err.Error()}
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

func seconds(d time.Duration) uint32 { return uint32(d / time.Second) } //nolint:gosec // years of uptime fit

func (s *Server) refuse(ctx context.Context, j job, e *wire.Error) {
	s.complaints.add(ctx, event.LevelNotice, j.uid, "lease refused: "+string(e.Code), slog.String("client", j.from.String()), slog.String("reason", e.Text))
	s.send(ctx, j, wire.Response{Version: j.request.Version, Transaction: j.request.Transaction, Refused: e})
}

// send answers without ever waiting: a client that does not read asks again.
func (s *Server) send(ctx context.Context, j job, r wire.Response) {
	err := j.conn.Send(j.from, r.Encode())
	switch {
	case err == nil, errors.Is(err, os.ErrClosed):
	case errors.Is(err, unixgram.ErrNobody) && j.request.Command == wire.Release:
		// A client that ends need not wait for it.
	default:
		s.complaints.add(ctx, slog.LevelInfo, j.uid, "a client did not take its answer", slog.String("client", j.from.String()), slog.String("error", err.Error()))
	}
}

// sweep ends leases that were not renewed.
func (s *Server) sweep(ctx context.Context) error {
	ticker := time.NewTicker(sweep)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		for _, l := range s.Leases.Expire() {
			s.Logger.LogAttrs(ctx, slog.LevelInfo, "lease expired", event.Is(event.LeaseEnded), slog.String("interface", l.Key.Interface),
				slog.String("address", l.Key.Address), slog.Uint64("table", uint64(l.Table)), slog.Uint64("uid", uint64(l.Owner)))
		}
		s.Router.Expire(ctx)
	}
}

// A share counts the requests that wait, by user.
type share struct {
	mu    sync.Mutex
	count map[uint32]int
}

func newShare() *share { return &share{count: map[uint32]int{}} }

func (s *share) add(uid uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if uid != 0 && s.count[uid] >= maxShare {
		return false
	}
	s.count[uid]++
	return true
}

func (s *share) done(uid uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count[uid]--; s.count[uid] == 0 {
		delete(s.count, uid)
	}
}
