package server

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/godbus/dbus/v5"

	"multihomed/internal/dbusapi"
	"multihomed/internal/escape"
	"multihomed/internal/news"
)

// A call waits for its answer.
type call struct {
	frame
	wire *wire
	// uid is the user who calls, nobody until the bus has said who.
	uid uint32
	// isTurn says that the goroutine answers that answers all: it waits for nobody's room, and takes no call of
	// a user who has none.
	isTurn bool
}

// nobody is no user (chown(2)).
const nobody = ^uint32(0)

// fail answers with an error.
func (c *call) fail(ctx context.Context, err *dbusapi.Error) {
	if c.flags&dbus.FlagNoReplyExpected == 0 {
		_ = c.send(ctx, c.failure(err), body{}) // A caller who has gone, or a bus that ended, gets nothing.
	}
}

// refuse is fail for the goroutine that reads. If it waited, the bus would refuse everybody's calls; so
// while very much is refused, some callers get no answer.
func (c *call) refuse(err *dbusapi.Error) {
	if c.flags&dbus.FlagNoReplyExpected == 0 {
		c.wire.try(c.uid, c.failure(err))
	}
}

func (c *call) failure(err *dbusapi.Error) *dbus.Message {
	// An error of the kernel or of a file may quote any bytes.
	m := c.message(dbus.TypeError, escape.Text(err.Text))
	m.Headers[dbus.FieldErrorName] = dbus.MakeVariant(err.Name)
	return m
}

// reply answers with values.
func (c *call) reply(ctx context.Context, values ...any) {
	c.done(ctx, c.message(dbus.TypeMethodReply, values...), body{})
}

// replyWith answers with values that are written already.
func (c *call) replyWith(ctx context.Context, b body) {
	m := c.message(dbus.TypeMethodReply)
	m.Headers[dbus.FieldSignature] = dbus.MakeVariant(b.signature)
	c.done(ctx, m, b)
}

func (c *call) done(ctx context.Context, m *dbus.Message, b body) {
	if c.flags&dbus.FlagNoReplyExpected != 0 {
		return
	}
	err := c.send(ctx, m, b)
	// Who waits gets an answer, whatever it is.
	if _, is := errors.AsType[*encodingError](err); is {
		c.fail(ctx, dbusapi.Errorf(dbusapi.Failed, "%v", err))
	}
}

func (c *call) send(ctx context.Context, m *dbus.Message, b body) error {
	if c.isTurn {
		return c.wire.put(c.wire.laneOf(c.uid), m, b)
	}
	return c.wire.send(ctx, c.uid, m, b)
}

func (c *call) message(kind dbus.Type, values ...any) *dbus.Message {
	m := &dbus.Message{Type: kind, Flags: dbus.FlagNoReplyExpected, Body: values, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldDestination: dbus.MakeVariant(c.sender), dbus.FieldReplySerial: dbus.MakeVariant(c.serial),
	}}
	if len(values) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(values...))
	}
	return m
}

// Bounds of the calls that wait for their turn.
const (
	// mostOfSender bounds those of one connection.
	mostOfSender = 16
	// mostQueuedOfUser bounds those of one user: who has so many has one more for each connection that has
	// none, so that a program does not keep out another one of its user.
	mostQueuedOfUser = 256
	// mostCalls bounds those of all users but root, who has as many alone.
	mostCalls = 1024
	// mostStrangers bounds the connections of which the bus has not said yet whose they are.
	mostStrangers = 1024
)

// Bounds of the bytes of the calls that wait for their turn.
const (
	mostBytesOfUser = 1 << 20
	mostBytes       = 4 << 20
	// mostBytesOfStrangers is for all, each of whom has room for one call of any length.
	mostBytesOfStrangers = 16 << 20
)

// A sender is a connection that has called.
type sender struct {
	name string
	// user is nil until the bus has said whose connection it is.
	user    *user
	waiting []*call
	bytes   int
}

// A user has senders with calls that wait.
type user struct {
	uid          uint32
	order        []*sender
	count, bytes int
}

// A queue gives each user its turn, and each sender of a user, so that who calls much does not delay
// others. The first call of a sender waits until the bus has said whose it is.
type queue struct {
	mu sync.Mutex
	// senders have calls that wait.
	senders map[string]*sender
	// strangers are those without a user, strange the bytes of their calls.
	strangers, strange int
	// users have calls that wait, order has them as their turn comes.
	users map[uint32]*user
	order []*user
	// count and bytes are of all users but root.
	count, bytes int
	// known are users of senders, to be asked for once only. A bus gives a name to one connection alone.
	known  map[string]uint32
	filled news.Signal
}

// mostKnown bounds what is kept of connections; then all is asked again.
const mostKnown = 4096

func newQueue() *queue {
	return &queue{senders: map[string]*sender{}, users: map[uint32]*user{}, known: map[string]uint32{}, filled: news.NewSignal()}
}

var errMany = dbusapi.Errorf(dbusapi.LimitsExceeded, "too many calls wait for an answer")

// add takes a call, if there is room. With ask, the bus is to be asked whose it is: identify takes the answer.
func (q *queue) add(c *call) (ask bool, refusal *dbusapi.Error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.senders[c.sender]
	isNew := s == nil
	if isNew {
		s = &sender{name: c.sender}
		if uid, known := q.known[c.sender]; known {
			s.user = q.userOf(uid)
		}
	}
	switch {
	case len(s.waiting) >= mostOfSender:
		return false, errMany
	case s.user != nil:
		if !q.place(s, c) {
			return false, errMany
		}
		q.senders[c.sender] = s
		return false, nil
	case isNew && q.strangers >= mostStrangers, q.strange+len(c.raw) > mostBytesOfStrangers,
		s.bytes+len(c.raw) > mostFields+mostBody+fixedSize:
		return false, errMany
	}
	if isNew {
		q.senders[c.sender] = s
		q.strangers++
	}
	s.waiting = append(s.waiting, c)
	s.bytes += len(c.raw)
	q.strange += len(c.raw)
	return isNew, nil
}

// userOf finds a user. One who has no calls is not kept before place.
func (q *queue) userOf(uid uint32) *user {
	if u := q.users[uid]; u != nil {
		return u
	}
	return &user{uid: uid}
}

// place puts a call of a sender whose user is known behind its others, if there is room.
func (q *queue) place(s *sender, c *call) bool {
	u, size := s.user, len(c.raw)
	isRoot := u.uid == 0
	if isRoot {
		if u.count >= mostCalls || u.bytes+size > mostBytes {
			return false
		}
	} else if len(s.waiting) > 0 && u.count >= mostQueuedOfUser || u.bytes+size > mostBytesOfUser || q.count >= mostCalls || q.bytes+size > mostBytes {
		return false
	}
	c.uid = u.uid
	if u.count == 0 {
		q.users[u.uid] = u
		q.order = append(q.order, u)
	}
	if len(s.waiting) == 0 {
		u.order = append(u.order, s)
	}
	s.waiting = append(s.waiting, c)
	u.count++
	u.bytes += size
	if !isRoot {
		q.count++
		q.bytes += size
	}
	q.filled.Give()
	return true
}

// identify takes what the bus says of a sender: its user, or nothing. It returns calls that nobody will answer,
// for want of room or of a user.
func (q *queue) identify(name string, uid uint32, is bool) (refused []*call) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.senders[name]
	if s == nil || s.user != nil {
		return nil
	}
	q.strangers--
	q.strange -= s.bytes
	delete(q.senders, name)
	if !is {
		return s.waiting
	}
	if len(q.known) >= mostKnown {
		clear(q.known)
	}
	q.known[name] = uid
	waiting := s.waiting
	s.user, s.waiting, s.bytes = q.userOf(uid), nil, 0
	for _, c := range waiting {
		if q.place(s, c) {
			q.senders[name] = s
		} else {
			refused = append(refused, c)
		}
	}
	return refused
}

// next waits for a call that can be answered, nil when done: not of a user whose answers wait to be written.
func (q *queue) next(ctx context.Context, w *wire) *call {
	for {
		if c := q.take(w.isFull); c != nil {
			return c
		}
		select {
		case <-q.filled:
		case <-w.emptier:
		case <-w.done:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

func (q *queue) take(isFull func(uid uint32) bool) *call {
	q.mu.Lock()
	defer q.mu.Unlock()
	at := slices.IndexFunc(q.order, func(u *user) bool { return !isFull(u.uid) })
	if at < 0 {
		return nil
	}
	u := q.order[at]
	s := u.order[0]
	c := s.waiting[0]
	q.order, u.order, s.waiting = slices.Delete(q.order, at, at+1), u.order[1:], s.waiting[1:]
	if len(s.waiting) > 0 {
		u.order = append(u.order, s)
	} else {
		delete(q.senders, s.name)
	}
	u.count--
	u.bytes -= len(c.raw)
	if u.count > 0 {
		q.order = append(q.order, u)
	} else {
		delete(q.users, u.uid)
	}
	if u.uid != 0 {
		q.count--
		q.bytes -= len(c.raw)
	}
	return c
}
