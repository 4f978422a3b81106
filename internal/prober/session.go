package prober

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"multihomed/internal/prober/wire"
)

const (
	// tick is how often the prober looks around while probes are open, at least. A round that comes later
	// than starved was delayed, and cannot say when its answers arrived.
	tick, starved = 100 * time.Millisecond, 150 * time.Millisecond
	// beat is how often it wakes up without probes, to tell systemd that it is alive.
	beat = 5 * time.Second
	// perSecond and burst bound the probes that a client can have sent: 50 links with two families, each
	// with a burst of one in 50 ms.
	perSecond, burst = 2000, 2000
	// requestsAtOnce is how many requests are read before the sockets have their turn again.
	requestsAtOnce = 64
	eventsAtOnce   = 512
)

// errRequest says that the client broke the protocol.
var errRequest = errors.New("closing the connection, because the client broke the protocol")

// A session serves one client. One goroutine does all but the looks.
type session struct {
	client, epoll int
	alive         func()
	limit         *rate.Limiter

	open map[int32]*probe
	// order are the open probes in the order in which their lifetimes end, and some that are closed.
	order []*probe
	pings []uint64
	// outbox are reports that are not sent yet. While there are some, no request is read, so that they
	// are not more than the open requests have.
	outbox  []report
	blocked bool // the client's socket takes nothing more, and is watched for writing
	horizon wire.Time
	// rounded is when the last round began.
	rounded wire.Time
	events  []unix.EpollEvent
	buffer  []byte

	looking bool
	looks   sync.WaitGroup
	looked  chan wire.Report
	wake    int // an eventfd
	watcher observer
}

type report struct {
	wire.Report
	horizon wire.Time
}

// serve serves a client until it goes, which is no error, or ctx is done. It closes its socket. stop is a
// descriptor that becomes readable when ctx is done.
func serve(ctx context.Context, client, stop int, alive func()) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	s := &session{
		client: client, epoll: -1, wake: -1, alive: alive, limit: rate.NewLimiter(perSecond, burst), open: map[int32]*probe{},
		events: make([]unix.EpollEvent, eventsAtOnce), buffer: make([]byte, wire.MaxDatagram+1), looked: make(chan wire.Report, 1),
	}
	defer func() {
		cancel()
		err = errors.Join(err, s.close())
	}()
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("making an epoll: %w", err)
	}
	if s.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("making an eventfd: %w", err)
	}
	for _, fd := range []int{client, stop, s.wake} {
		if err := s.watch(unix.EPOLL_CTL_ADD, fd, unix.EPOLLIN); err != nil {
			return err
		}
	}
	for ctx.Err() == nil {
		s.alive()
		if err := s.await(); err != nil {
			return err
		}
		if ended, err := s.round(ctx); ended || err != nil {
			return err
		}
	}
	return nil
}

func (s *session) close() error {
	for _, p := range s.open {
		p.close()
	}
	s.looks.Wait()
	errs := []error{s.watcher.close(), unix.Close(s.client)}
	for _, fd := range []int{s.epoll, s.wake} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

func (s *session) watch(operation, fd int, events uint32) error {
	//nolint:gosec // Descriptors are small.
	if err := unix.EpollCtl(s.epoll, operation, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("watching descriptor %d: %w", fd, err)
	}
	return nil
}

// await waits until there is something to do.
func (s *session) await() error {
	wait := beat
	switch {
	case len(s.pings) > 0:
		return nil
	case len(s.open) > 0:
		wait = tick
	}
	_, err := s.poll(wait)
	return err
}

func (s *session) poll(wait time.Duration) (int, error) {
	n, err := unix.EpollWait(s.epoll, s.events, int(wait.Milliseconds()))
	switch {
	case errors.Is(err, unix.EINTR):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("waiting for descriptors: %w", err)
	}
	return n, nil
}

// round does what there is to do. What reached a socket before its begin is delivered by its end, if
// all descriptors that were ready fit into one call: then its begin is the horizon.
func (s *session) round(ctx context.Context) (ended bool, err error) {
	begin := wire.Now()
	late := s.rounded != 0 && begin.Sub(s.rounded) > starved
	s.rounded = begin
	n, err := s.poll(0)
	if err != nil {
		return false, err
	}
	requests, writable := false, false
	before := len(s.outbox)
	for _, e := range s.events[:n] {
		switch fd := int(e.Fd); fd {
		case s.client:
			requests = requests || e.Events&(unix.EPOLLIN|unix.EPOLLHUP|unix.EPOLLERR) != 0
			// At a client that is gone, sending fails and ends the session.
			writable = e.Events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0
		case s.wake:
			s.takeLook()
		default:
			if p := s.open[e.Fd]; p != nil {
				s.read(p, late)
			}
		}
	}
	if n < len(s.events) {
		s.expire(begin)
		s.horizon = begin
		for _, id := range s.pings {
			s.tell(wire.Pong{ID: id, At: wire.Now()})
		}
		s.pings = s.pings[:0]
		if len(s.outbox) > before {
			s.outbox[len(s.outbox)-1].horizon = begin
		}
	}
	if requests && len(s.outbox) == 0 {
		if ended, err := s.requests(ctx); ended || err != nil {
			return true, err
		}
	}
	return s.flush(writable) != nil, nil
}

func (s *session) tell(r wire.Report) {
	s.outbox = append(s.outbox, report{Report: r, horizon: s.horizon})
}

// read looks at a probe whose socket is ready.
func (s *session) read(p *probe, late bool) {
	what, errno := p.read(s.buffer)
	now := wire.Now()
	switch what {
	case waiting:
		return
	case answered:
		s.tell(wire.Answered{ID: p.ID, At: now, RTT: p.rtt(now, late)})
	case failed:
		s.tell(wire.Failed{ID: p.ID, At: now, Errno: errno})
	}
	s.end(p)
}

// end closes the socket of a probe; the kernel takes it out of the epoll.
func (s *session) end(p *probe) {
	delete(s.open, int32(p.fd)) //nolint:gosec // Descriptors are small.
	p.close()
	p.fd = -1
}

// expire ends probes whose lifetime is over. at is a time at which no answer of theirs was there.
func (s *session) expire(at wire.Time) {
	for len(s.order) > 0 {
		p := s.order[0]
		if p.fd >= 0 {
			if at.Sub(p.sent) < wire.Lifetime {
				return
			}
			s.tell(wire.Failed{ID: p.ID, At: wire.Now(), Errno: unix.ETIMEDOUT})
			s.end(p)
		}
		s.order = s.order[1:]
	}
}

// flush sends reports, as many as the client's socket takes. An error means that the client is gone.
func (s *session) flush(writable bool) error {
	if s.blocked && !writable {
		return nil
	}
	for len(s.outbox) > 0 {
		datagram, err := wire.EncodeReport(s.buffer[:0], s.outbox[0].Report, s.outbox[0].horizon)
		if err == nil {
			err = unix.Send(s.client, datagram, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		}
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return s.block(true)
		case err != nil:
			return err
		}
		s.outbox = s.outbox[1:]
	}
	s.outbox = nil
	return s.block(false)
}

// block watches the client's socket for writing, or for reading.
func (s *session) block(blocked bool) error {
	if s.blocked == blocked {
		return nil
	}
	s.blocked = blocked
	events := uint32(unix.EPOLLIN)
	if blocked {
		events = unix.EPOLLOUT
	}
	return s.watch(unix.EPOLL_CTL_MOD, s.client, events)
}

// requests reads what the client asks for.
func (s *session) requests(ctx context.Context) (ended bool, err error) {
	for range requestsAtOnce {
		n, _, err := unix.Recvfrom(s.client, s.buffer, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return false, nil
		case err != nil || n == 0:
			return true, nil //nolint:nilerr // The client is gone, however it went.
		}
		request, err := wire.DecodeRequest(s.buffer[:n])
		if err != nil {
			return true, fmt.Errorf("%w: %w", errRequest, err)
		}
		s.handle(ctx, request)
	}
	return false, nil
}

func (s *session) handle(ctx context.Context, request wire.Request) {
	switch r := request.(type) {
	case wire.Ping:
		// The next round answers it: its begin is after this.
		s.pings = append(s.pings, r.ID)
	case wire.Probe:
		s.probe(r)
	case wire.Look:
		if s.looking {
			s.tell(wire.Unsent{ID: r.ID, At: wire.Now(), Errno: unix.EBUSY})
			return
		}
		s.looking = true
		s.looks.Go(func() {
			s.looked <- s.watcher.look(ctx, r)
			// Its counter is far from full, so that this does not block.
			_, _ = unix.Write(s.wake, binary.NativeEndian.AppendUint64(nil, 1))
		})
	}
}

// takeLook takes the result of a look.
func (s *session) takeLook() {
	var counter [8]byte
	_, _ = unix.Read(s.wake, counter[:]) // It does not block, and what it reads is no news.
	select {
	case r := <-s.looked:
		s.looking = false
		s.tell(r)
	default:
	}
}

// probe sends a probe.
func (s *session) probe(request wire.Probe) {
	unsent := func(err error) {
		s.tell(wire.Unsent{ID: request.ID, At: wire.Now(), Errno: errnoOf(err)})
	}
	if len(s.open) >= wire.MaxOpen || !s.limit.Allow() {
		unsent(unix.ENOBUFS)
		return
	}
	p, err := open(request)
	if err != nil {
		unsent(err)
		return
	}
	interest := uint32(unix.EPOLLIN)
	if p.Kind == wire.TCP {
		interest = unix.EPOLLOUT
	}
	if err := s.watch(unix.EPOLL_CTL_ADD, p.fd, interest); err != nil {
		p.close()
		unsent(err)
		return
	}
	s.open[int32(p.fd)] = p //nolint:gosec // Descriptors are small.
	s.order = append(s.order, p)
	s.tell(wire.Sent{ID: p.ID, At: p.sent})
}
