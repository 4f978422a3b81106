package server

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"

	"multihomed/internal/dbusapi"
	"multihomed/internal/news"
)

// A wire is one connection to the bus. Godbus reads and writes the values; the connection is ours,
// because that of godbus holds any message whole, starts a goroutine for each call, and has no bound.
type wire struct {
	conn net.Conn
	in   *bufio.Reader

	mu     sync.Mutex
	serial uint32
	// pending are our calls that wait for an answer, calling is the number of those that somebody waits for.
	pending map[uint32]pending
	calling int
	// first is written before rest: what root waits for, and our own calls, before what others wait for, and
	// signals. An answer may overtake a signal, whose news it has; no signal overtakes an answer.
	first, rest lane
	closed      bool
	more        news.Signal
	// emptier is given when a lane shrinks.
	emptier news.Signal
	// done is closed when the connection is.
	done chan struct{}
}

// A lane is what waits to be written, in its order.
type lane struct {
	// queue and its bytes belong to the wire's mu. Room is given when they shrink.
	queue   [][]byte
	waiting int
	room    news.Signal
	// turn is held by who waits for room.
	turn chan struct{}
}

func newLane() lane { return lane{room: news.NewSignal(), turn: make(chan struct{}, 1)} }

// pending is a call of ours that waits for an answer.
type pending struct {
	// from is who alone may answer, if it is the bus: others have names of their own there.
	from string
	take func(frame)
}

const (
	// authTime bounds the authentication, callTime an answer of the bus.
	authTime = 5 * time.Second
	callTime = 10 * time.Second
	// mostQueued bounds what waits to be written to the bus in one lane, in bytes. One message more may wait.
	mostQueued = 2 << 20
	// mostAheadOfRefusal is how much may wait ahead of a refusal: dbus-daemon takes some 4 KiB of each connection
	// at a time, and a flood of refusals would keep everybody waiting for answers.
	mostAheadOfRefusal = 32 << 10
	// bufferSize is what the kernel holds of what we wrote: what is there, nothing overtakes.
	bufferSize = 16 << 10
	// mostWritten is how much is written at once, with the message that it ends in.
	mostWritten = 32 << 10
	// mostPending bounds our calls that somebody waits for.
	mostPending = 256
)

// defaultAddress is where a system bus listens (dbus-daemon(1)).
const defaultAddress = "unix:path=/run/dbus/system_bus_socket"

// Address is the one of the system bus.
func Address(env func(string) string) string {
	if a := env("DBUS_SYSTEM_BUS_ADDRESS"); a != "" {
		return a
	}
	return defaultAddress
}

// dial connects to the first address that answers, and authenticates.
func dial(ctx context.Context, addresses string) (*wire, error) {
	ctx, cancel := context.WithTimeout(ctx, authTime)
	defer cancel()
	var failed []error
	for address := range strings.SplitSeq(addresses, ";") {
		name, err := socketOf(address)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", name)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		w := &wire{
			conn: conn, in: bufio.NewReaderSize(conn, 32<<10), pending: map[uint32]pending{},
			more: news.NewSignal(), emptier: news.NewSignal(), first: newLane(), rest: newLane(), done: make(chan struct{}),
		}
		if u, is := conn.(*net.UnixConn); is {
			_ = u.SetWriteBuffer(bufferSize) // what overtakes what is all that depends on it
		}
		if err := w.authenticate(ctx); err != nil {
			failed = append(failed, errors.Join(fmt.Errorf("authenticating: %w", err), conn.Close()))
			continue
		}
		return w, nil
	}
	return nil, errors.Join(failed...)
}

// socketOf reads an address of the form unix:path=… or unix:abstract=…
func socketOf(address string) (string, error) {
	rest, is := strings.CutPrefix(address, "unix:")
	for pair := range strings.SplitSeq(rest, ",") {
		key, value, _ := strings.Cut(pair, "=")
		name, err := url.PathUnescape(value)
		switch {
		case !is || err != nil:
		case key == "path":
			return name, nil
		case key == "abstract":
			return "@" + name, nil
		}
	}
	return "", fmt.Errorf("the address %q of the bus is not understood", address)
}

// authenticate says who we are, which the bus reads from the socket (EXTERNAL).
func (w *wire) authenticate(ctx context.Context) error {
	deadline, _ := ctx.Deadline()
	if err := w.conn.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w.conn, "\x00AUTH EXTERNAL %s\r\n", hex.EncodeToString([]byte(strconv.Itoa(os.Geteuid())))); err != nil {
		return err
	}
	line, err := w.in.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(line), "OK ") {
		return errors.New("the bus refuses this user")
	}
	if _, err := w.conn.Write([]byte("BEGIN\r\n")); err != nil {
		return err
	}
	return w.conn.SetDeadline(time.Time{})
}

// close ends everything that waits.
func (w *wire) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	w.closed = true
	close(w.done)
	_ = w.conn.Close() // nothing is left to be said
}

var (
	errClosed  = errors.New("the connection to the bus is closed")
	errPending = errors.New("too much waits for an answer of the bus")
)

// write writes what is queued until the connection is closed.
func (w *wire) write() {
	defer w.close()
	for {
		w.mu.Lock()
		l := &w.first
		if len(l.queue) == 0 {
			l = &w.rest
		}
		// Many short messages are one system call.
		var some net.Buffers
		size := 0
		for len(l.queue) > 0 && size < mostWritten {
			some = append(some, l.queue[0])
			size += len(l.queue[0])
			l.queue[0], l.queue = nil, l.queue[1:]
		}
		w.mu.Unlock()
		if size > 0 {
			if _, err := some.WriteTo(w.conn); err != nil {
				return
			}
			w.mu.Lock()
			l.waiting -= size
			w.mu.Unlock()
			l.room.Give()
			w.emptier.Give()
			continue
		}
		select {
		case <-w.more:
		case <-w.done:
			return
		}
	}
}

// send queues a message for a user. It waits while too much is queued, and writes its bytes only then: of
// many that wait with long texts, one exists twice. A body is one that is written already.
func (w *wire) send(ctx context.Context, uid uint32, m *dbus.Message, b body) error {
	l := w.laneOf(uid)
	select {
	case l.turn <- struct{}{}:
	case <-w.done:
		return errClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-l.turn }()
	for w.queued(l) >= mostQueued {
		select {
		case <-l.room:
		case <-w.done:
			return errClosed
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return w.put(l, m, b)
}

func (w *wire) laneOf(uid uint32) *lane {
	if uid == 0 {
		return &w.first
	}
	return &w.rest
}

// put writes a message into a queue.
func (w *wire) put(l *lane, m *dbus.Message, b body) error {
	data, err := encode(m, 1)
	if err != nil {
		return err
	}
	if b.data != nil {
		data = b.with(data)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return errClosed
	}
	w.enqueue(l, data)
	return nil
}

// try is send for a refusal by who must not wait: it is lost if there is no room.
func (w *wire) try(uid uint32, m *dbus.Message) {
	if l := w.laneOf(uid); w.queued(l) < mostAheadOfRefusal {
		_ = w.put(l, m, body{})
	}
}

// queued are the bytes that wait in a lane.
func (w *wire) queued(l *lane) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return l.waiting
}

// isFull reports whether an answer for a user would wait.
func (w *wire) isFull(uid uint32) bool { return w.queued(w.laneOf(uid)) >= mostQueued }

// enqueue numbers a message. The caller holds mu.
func (w *wire) enqueue(l *lane, data []byte) (serial uint32) {
	if w.serial++; w.serial == 0 {
		w.serial = 1
	}
	renumber(data, w.serial)
	l.queue = append(l.queue, data)
	l.waiting += len(data)
	w.more.Give()
	return w.serial
}

// call calls a method of somebody else. The answer must have the signature.
func (w *wire) call(ctx context.Context, destination string, path dbus.ObjectPath, iface, member, returns string, args ...any) ([]any, error) {
	answer := make(chan frame, 1)
	w.mu.Lock()
	if w.calling >= mostPending {
		w.mu.Unlock()
		return nil, errPending
	}
	w.calling++
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.calling--
	}()
	serial, err := w.ask(func(f frame) { answer <- f }, destination, path, iface, member, args...)
	if err != nil {
		return nil, err
	}
	select {
	case f := <-answer:
		return read(f, returns)
	case <-w.done:
		return nil, errClosed
	case <-ctx.Done():
		w.forget(serial)
		return nil, context.Cause(ctx)
	}
}

// forget has an answer ignored.
func (w *wire) forget(serial uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.pending, serial)
}

// ask sends a call. Take is called with the answer, by the goroutine that reads.
func (w *wire) ask(take func(frame), destination string, path dbus.ObjectPath, iface, member string, args ...any) (serial uint32, err error) {
	m := &dbus.Message{
		Type: dbus.TypeMethodCall, Flags: dbus.FlagNoAutoStart,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldDestination: dbus.MakeVariant(destination), dbus.FieldPath: dbus.MakeVariant(path),
			dbus.FieldInterface: dbus.MakeVariant(iface), dbus.FieldMember: dbus.MakeVariant(member),
		},
		Body: args,
	}
	if len(args) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(args...))
	}
	if destination == polkitName {
		m.Flags = 0 // It may be started for us.
	}
	data, err := encode(m, 1)
	if err != nil {
		return 0, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, errClosed
	}
	from := ""
	if destination == busName {
		from = busName
	}
	serial = w.enqueue(&w.first, data)
	w.pending[serial] = pending{from, take}
	return serial, nil
}

// read takes an answer apart.
func read(f frame, returns string) ([]any, error) {
	if f.kind == dbus.TypeError {
		text := ""
		if f.raw != nil && f.signature == "s" {
			if body, err := f.body(); err == nil && len(body) > 0 {
				text, _ = body[0].(string)
			}
		}
		return nil, &dbusapi.Error{Name: f.errName, Text: text}
	}
	if f.raw == nil || f.signature != returns {
		return nil, fmt.Errorf("an answer of the type %q, want %q", f.signature, returns)
	}
	return f.body()
}

// answered passes an answer to who waits for it.
func (w *wire) answered(f frame) {
	w.mu.Lock()
	p, is := w.pending[f.replySerial]
	if is = is && (p.from == "" || p.from == f.sender); is {
		delete(w.pending, f.replySerial)
	}
	w.mu.Unlock()
	if is {
		p.take(f)
	}
}
