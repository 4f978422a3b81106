package scrape

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/english"
	"multihomed/internal/metrics"
	"multihomed/internal/news"
)

const (
	// most bounds the clients that are served at once. More are let in, and the oldest that asks nothing gives way.
	most = 256
	// While somebody waits for a place, a client may ask nothing for askGrace, and take nothing of its answer for takeGrace.
	askGrace, takeGrace = 500 * time.Millisecond, 2 * time.Second
	// quiet is how long the next fault of a client is only counted.
	quiet = 10 * time.Second
	// makeTime is more than a host of thousands of links needs for a document, all patience with its daemon included.
	makeTime = 30 * time.Second
	// unsent bounds what the kernel keeps for a client that does not read, in bytes.
	unsent = 64 << 10
)

// A Document returns the metrics in a format.
type Document func(context.Context, metrics.Format) ([]byte, error)

// A Server answers requests on sockets that somebody else opened. Any user may connect, so nobody can keep others
// out: who asks nothing gives way to who comes later, and clients that ask at the same time get the same answer.
type Server struct {
	// Document is called by one goroutine for each format at once.
	Document Document
	// Fault is told what goes wrong with clients, seldom.
	Fault func(error)
	// Stuck is called when a document is not made in makeTime. It must end the process: everybody waits for that document,
	// and systemd starts another process for who comes next.
	Stuck func()
	// Idle ends Serve when nobody has been connected for so long.
	Idle time.Duration
}

// Serve serves until it is idle or ctx ends. It closes the listeners.
func (s *Server) Serve(ctx context.Context, listeners ...net.Listener) error {
	// Clients go on when the doors are shut: one may have come through at the last moment.
	shut := func() {
		for _, l := range listeners {
			_ = l.Close()
		}
	}
	defer context.AfterFunc(ctx, shut)()
	r := newRoom(s.Idle, shut)
	defer r.idle.Stop()
	shared := map[metrics.Format]*answers{metrics.OpenMetrics: {}, metrics.Prometheus: {}}
	document := func(ctx context.Context, f metrics.Format) ([]byte, error) {
		return shared[f].newest(ctx, func() ([]byte, error) {
			defer time.AfterFunc(makeTime, s.Stuck).Stop()
			return s.Document(ctx, f)
		})
	}
	faults := faults{tell: s.Fault}
	var clients, doors sync.WaitGroup
	broken := make([]error, len(listeners))
	for i, l := range listeners {
		doors.Go(func() {
			defer shut()
			for {
				conn, err := l.Accept()
				if err != nil {
					if !errors.Is(err, net.ErrClosed) {
						broken[i] = fmt.Errorf("waiting for clients: %w", err)
					}
					return
				}
				g := r.enter(conn)
				clients.Go(func() {
					defer r.leave(g)
					if err := serve(ctx, g, document); err != nil && ctx.Err() == nil {
						faults.add(err)
					}
				})
			}
		})
	}
	doors.Wait()
	clients.Wait()
	faults.end()
	return errors.Join(broken...)
}

// A stage is what a client does.
type stage uint8

// Stages, in the order in which they give way.
const (
	// asking has sent no complete request.
	asking stage = iota
	// leaving has its answer, and has not closed.
	leaving
	// taking is sent its answer.
	taking
	// waiting is for the metrics.
	waiting
)

// A guest is a client in the room.
type guest struct {
	net.Conn
	room  *room
	stage stage
	// since is when it began that, or last took a part of its answer.
	since time.Time
	out   bool
}

// to changes the stage of a guest, and reports whether it is still in the room.
func (g *guest) to(next stage) bool {
	g.room.mu.Lock()
	defer g.room.mu.Unlock()
	g.stage, g.since = next, time.Now()
	g.room.changed.Give()
	return !g.out
}

// Write sends an answer in parts, so that it is known who takes it.
func (g *guest) Write(answer []byte) (n int, err error) {
	for part := range slices.Chunk(answer, unsent) {
		g.to(taking)
		sent, err := g.Conn.Write(part)
		n += sent
		if err != nil {
			return n, err //nolint:wrapcheck // the caller says what it did
		}
	}
	return n, nil
}

// A room has the clients that are served.
type room struct {
	mu     sync.Mutex
	guests []*guest // by arrival
	idle   *time.Timer
	wait   time.Duration
	// changed has a value when somebody has left or does something else.
	changed news.Signal
}

func newRoom(idle time.Duration, empty func()) *room {
	return &room{idle: time.AfterFunc(idle, empty), wait: idle, changed: news.NewSignal()}
}

// enter lets a client in. It waits while nobody can give way.
func (r *room) enter(conn net.Conn) *guest {
	if buffered, is := conn.(interface{ SetWriteBuffer(bytes int) error }); is {
		_ = buffered.SetWriteBuffer(unsent) // What it cannot set bounds less.
	}
	g := &guest{Conn: conn, room: r, since: time.Now()}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.idle.Stop()
	for len(r.guests) >= most && !r.evict() {
		r.mu.Unlock()
		select {
		case <-r.changed:
		case <-time.After(askGrace / 10):
		}
		r.mu.Lock()
	}
	r.guests = append(r.guests, g)
	return g
}

// mayGo reports whether a guest may give way. Its place is kept while what it asked is here and was not read yet: then
// this process is slow, and not the guest.
func (g *guest) mayGo() bool {
	switch g.stage {
	case leaving:
		return true
	case asking:
		return time.Since(g.since) >= askGrace && !g.hasUnread()
	case taking:
		return time.Since(g.since) >= takeGrace
	default:
		return false
	}
}

func (g *guest) hasUnread() (has bool) {
	c, is := g.Conn.(syscall.Conn)
	if !is {
		return false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	// Control waits for nobody; Read would wait for the reader.
	err = raw.Control(func(fd uintptr) {
		n, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		has = err == nil && n > 0
	})
	return has && err == nil
}

// evict closes the connection of the oldest guest who may give way.
func (r *room) evict() bool {
	var victim *guest
	for _, g := range r.guests {
		if (victim == nil || g.stage < victim.stage) && g.mayGo() {
			victim = g
		}
	}
	if victim == nil {
		return false
	}
	victim.out = true
	_ = victim.Close()
	r.remove(victim)
	return true
}

// leave is the end of a client.
func (r *room) leave(g *guest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.remove(g)
	r.changed.Give()
	if len(r.guests) == 0 {
		r.idle.Reset(r.wait)
	}
}

func (r *room) remove(g *guest) {
	if i := slices.Index(r.guests, g); i >= 0 {
		r.guests = slices.Delete(r.guests, i, i+1)
	}
}

// An answerOnce is made once for all who wait for it.
type answerOnce struct {
	made chan struct{}
	body []byte
	err  error
}

// answers are those of one format: the one that is being made, and the one after it.
type answers struct {
	mu        sync.Mutex
	now, next *answerOnce
}

// newest returns an answer whose making began after the call.
func (a *answers) newest(ctx context.Context, produce func() ([]byte, error)) ([]byte, error) {
	a.mu.Lock()
	if a.next == nil {
		a.next = &answerOnce{made: make(chan struct{})}
	}
	mine := a.next
	if a.now == nil {
		a.begin()
		go a.work(produce)
	}
	a.mu.Unlock()
	select {
	case <-mine.made:
		return mine.body, mine.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (a *answers) begin() { a.now, a.next = a.next, nil }

// work makes answers while somebody waits for one.
func (a *answers) work(produce func() ([]byte, error)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.now != nil {
		once := a.now
		a.mu.Unlock()
		once.body, once.err = produce()
		close(once.made)
		a.mu.Lock()
		a.begin()
	}
}

// faults tells of faults, at most one in a while: anybody can make thousands.
type faults struct {
	tell  func(error)
	mu    sync.Mutex
	told  time.Time
	count int
}

func (f *faults) add(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.told.IsZero() && time.Since(f.told) < quiet {
		f.count++
		return
	}
	f.flush()
	f.told = time.Now()
	f.tell(err)
}

// end tells how many were not told.
func (f *faults) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flush()
}

func (f *faults) flush() {
	if f.count > 0 {
		f.tell(fmt.Errorf("%s failed", english.Count(f.count, "more client")))
	}
	f.count = 0
}
