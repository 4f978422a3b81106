package server

import (
	"context"
	"sync"

	"github.com/godbus/dbus/v5"

	"multihomed/internal/dbusapi"
)

// A call waits for its answer.
type call struct {
	frame
	wire *wire
}

// fail answers with an error.
func (c *call) fail(ctx context.Context, err *dbusapi.Error) {
	c.answer(ctx, dbus.TypeError, map[dbus.HeaderField]dbus.Variant{dbus.FieldErrorName: dbus.MakeVariant(err.Name)}, err.Text)
}

// reply answers with values.
func (c *call) reply(ctx context.Context, values ...any) {
	c.answer(ctx, dbus.TypeMethodReply, map[dbus.HeaderField]dbus.Variant{}, values...)
}

func (c *call) answer(ctx context.Context, kind dbus.Type, headers map[dbus.HeaderField]dbus.Variant, values ...any) {
	if c.flags&dbus.FlagNoReplyExpected != 0 {
		return
	}
	headers[dbus.FieldDestination], headers[dbus.FieldReplySerial] = dbus.MakeVariant(c.sender), dbus.MakeVariant(c.serial)
	if len(values) > 0 {
		headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(values...))
	}
	// A caller who has gone, or a bus that ended, gets nothing.
	_ = c.wire.send(ctx, &dbus.Message{Type: kind, Flags: dbus.FlagNoReplyExpected, Headers: headers, Body: values})
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
	filled chan struct{}
}

func newQueue() *queue { return &queue{calls: map[string][]*call{}, filled: make(chan struct{}, 1)} }

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
	give(q.filled)
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
