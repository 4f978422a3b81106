package server

import (
	"context"
	"errors"
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
}

// fail answers with an error.
func (c *call) fail(ctx context.Context, err *dbusapi.Error) {
	if c.flags&dbus.FlagNoReplyExpected == 0 {
		_ = c.wire.send(ctx, c.failure(err)) // A caller who has gone, or a bus that ended, gets nothing.
	}
}

// refuse is fail for the goroutine that reads. If it waited, the bus would refuse everybody's calls; so
// while very much is refused, some callers get no answer.
func (c *call) refuse(err *dbusapi.Error) {
	if c.flags&dbus.FlagNoReplyExpected == 0 {
		c.wire.try(c.failure(err))
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
	err := c.wire.sendWith(ctx, m, b)
	// Who waits gets an answer, whatever it is.
	if _, is := errors.AsType[*encodingError](err); is {
		c.fail(ctx, dbusapi.Errorf(dbusapi.Failed, "%v", err))
	}
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

// Bounds of the calls that wait.
const (
	// mostOfSender and mostCalls count calls, mostBytes their bytes.
	mostOfSender = 16
	mostCalls    = 1024
	mostBytes    = 4 << 20
)

// A queue gives each sender its turn, so that one that calls much does not delay the others.
type queue struct {
	mu     sync.Mutex
	calls  map[string][]*call
	order  []string
	count  int
	bytes  int
	filled news.Signal
}

func newQueue() *queue { return &queue{calls: map[string][]*call{}, filled: news.NewSignal()} }

// add reports whether there was room.
func (q *queue) add(c *call) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	of := q.calls[c.sender]
	if len(of) >= mostOfSender || q.count >= mostCalls || q.bytes+len(c.raw) > mostBytes {
		return false
	}
	if len(of) == 0 {
		q.order = append(q.order, c.sender)
	}
	q.calls[c.sender] = append(of, c)
	q.count++
	q.bytes += len(c.raw)
	q.filled.Give()
	return true
}

// next waits for a call, nil when done.
func (q *queue) next(ctx context.Context, done <-chan struct{}) *call {
	for {
		if c := q.take(); c != nil {
			return c
		}
		select {
		case <-q.filled:
		case <-done:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

func (q *queue) take() *call {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.order) == 0 {
		return nil
	}
	sender := q.order[0]
	q.order = q.order[1:]
	of := q.calls[sender]
	c := of[0]
	if len(of) > 1 {
		q.calls[sender] = of[1:]
		q.order = append(q.order, sender)
	} else {
		delete(q.calls, sender)
	}
	q.count--
	q.bytes -= len(c.raw)
	return c
}
