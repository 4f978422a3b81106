package server

import (
	"bufio"
	"context"
	"io"
	"net"
	"time"

	"github.com/godbus/dbus/v5"

	"multihomed/internal/news"
)

// Encode writes a message.
func Encode(m *dbus.Message, serial uint32) ([]byte, error) { return encode(m, serial) }

// Authenticate does so on a connection to a bus.
func Authenticate(ctx context.Context, conn net.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, authTime)
	defer cancel()
	return (&wire{conn: conn, in: bufio.NewReader(conn)}).authenticate(ctx)
}

// ReadFrame reads a message, and its values if it is a call with text. Held are the bytes that it keeps.
func ReadFrame(r *bufio.Reader) (member string, held int, err error) {
	f, ok, err := readFrame(r)
	if err != nil || !ok {
		return "", 0, err
	}
	if f.raw != nil && f.signature == "s" {
		_, _ = f.body()
	}
	return f.member, len(f.raw), nil
}

// Denied says why polkit could not be asked.
func Denied(err error, action string) error { return denied(err, action) }

// A Queue is one of calls that wait.
type Queue struct{ q *queue }

// NewQueue returns one without calls.
func NewQueue() Queue { return Queue{newQueue()} }

// Add adds a call with so many bytes.
func (q Queue) Add(sender string, size int) (ask, refused bool) {
	c := &call{uid: nobody}
	c.sender, c.raw = sender, make([]byte, size)
	ask, refusal := q.q.add(c)
	return ask, refusal != nil
}

// Identify says whose a sender is, and returns how many of its calls are refused.
func (q Queue) Identify(sender string, uid uint32) int { return len(q.q.identify(sender, uid, true)) }

// Leave says that a sender has gone.
func (q Queue) Leave(sender string) { q.q.identify(sender, 0, false) }

// Take takes the next call, of a user whose answers do not wait. It returns nothing if there is none.
func (q Queue) Take(waits func(uid uint32) bool) (sender string, uid uint32) {
	c := q.q.take(waits)
	if c == nil {
		return "", nobody
	}
	return c.sender, c.uid
}

// IsEmpty reports whether nothing of a call is kept.
func (q Queue) IsEmpty() bool {
	return len(q.q.senders)+len(q.q.users)+len(q.q.order)+q.q.count+q.q.bytes+q.q.strangers+q.q.strange == 0
}

// Written has messages with bodies written to a connection in one go, each for a user, and returns the members in the
// order in which they leave. What did not fit is not among them.
func Written(uids []uint32, members []string, size int, refusals bool) []string {
	ours, theirs := net.Pipe()
	w := &wire{conn: ours, more: news.NewSignal(), emptier: news.NewSignal(), first: newLane(), rest: newLane(), done: make(chan struct{})}
	for n, uid := range uids {
		m := &dbus.Message{Type: dbus.TypeSignal, Body: []any{make([]byte, size)}, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath("/")), dbus.FieldInterface: dbus.MakeVariant("a.b"),
			dbus.FieldMember: dbus.MakeVariant(members[n]), dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf([]byte{})),
		}}
		if refusals {
			w.try(uid, m)
		} else {
			_ = w.send(context.Background(), uid, m, body{})
		}
	}
	left := len(w.first.queue) + len(w.rest.queue)
	go w.write()
	defer w.close()
	var out []string
	for r := bufio.NewReader(theirs); left > 0; left-- {
		f, _, err := readFrame(r)
		if err != nil {
			return nil
		}
		out = append(out, f.member)
	}
	return out
}

// GoesOn reports whether a call of a user is taken that waits because an answer fills the user's lane, when the
// answer has left.
func GoesOn(ctx context.Context, uid uint32) bool {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	ours, theirs := net.Pipe()
	w := &wire{conn: ours, more: news.NewSignal(), emptier: news.NewSignal(), first: newLane(), rest: newLane(), done: make(chan struct{})}
	l := w.laneOf(uid)
	w.mu.Lock()
	w.enqueue(l, make([]byte, mostQueued+1))
	w.mu.Unlock()
	q := newQueue()
	c := &call{uid: nobody}
	c.sender, c.raw = ":1.1", []byte{0}
	_, _ = q.add(c)
	q.identify(":1.1", uid, true)
	<-q.filled // Nothing else comes.
	taken := make(chan bool)
	go func() { taken <- q.next(ctx, w) == c }()
	go w.write()
	defer w.close()
	go func() { _, _ = io.Copy(io.Discard, theirs) }()
	return <-taken
}
