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

	mu      sync.Mutex
	serial  uint32
	pending map[uint32]chan frame
	// queue is what waits to be written, waiting its bytes; room is given when it shrinks.
	queue   [][]byte
	waiting int
	closed  bool
	more    news.Signal
	room    news.Signal
	// turn is held by who waits for room.
	turn chan struct{}
	// done is closed when the connection is.
	done chan struct{}
}

const (
	// authTime bounds the authentication, callTime an answer of the bus.
	authTime = 5 * time.Second
	callTime = 10 * time.Second
	// mostQueued bounds what waits to be written to the bus, in bytes. One message more may wait.
	mostQueued = 4 << 20
	// mostPending bounds our calls.
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
			conn: conn, in: bufio.NewReaderSize(conn, 32<<10), pending: map[uint32]chan frame{},
			more: news.NewSignal(), room: news.NewSignal(), turn: make(chan struct{}, 1), done: make(chan struct{}),
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

var errClosed = errors.New("the connection to the bus is closed")

// write writes what is queued until the connection is closed.
func (w *wire) write() {
	defer w.close()
	for {
		w.mu.Lock()
		queue := w.queue
		w.queue = nil
		w.mu.Unlock()
		for _, data := range queue {
			if _, err := w.conn.Write(data); err != nil {
				return
			}
			w.mu.Lock()
			w.waiting -= len(data)
			w.mu.Unlock()
			w.room.Give()
		}
		if len(queue) > 0 {
			continue
		}
		select {
		case <-w.more:
		case <-w.done:
			return
		}
	}
}

// send queues a message. It waits while too much is queued, and writes its bytes only then: of many
// that wait with long texts, one exists twice.
func (w *wire) send(ctx context.Context, m *dbus.Message) error { return w.sendWith(ctx, m, body{}) }

// sendWith is send for a message whose body is written already.
func (w *wire) sendWith(ctx context.Context, m *dbus.Message, b body) error {
	select {
	case w.turn <- struct{}{}:
	case <-w.done:
		return errClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-w.turn }()
	for w.isFull() {
		select {
		case <-w.room:
		case <-w.done:
			return errClosed
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return w.put(m, b)
}

// put writes a message into the queue. The caller holds the turn.
func (w *wire) put(m *dbus.Message, b body) error {
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
	w.enqueue(data)
	return nil
}

// try is send for who must not wait: the message is lost if there is no room.
func (w *wire) try(m *dbus.Message) {
	select {
	case w.turn <- struct{}{}:
	default:
		return
	}
	defer func() { <-w.turn }()
	if !w.isFull() {
		_ = w.put(m, body{})
	}
}

func (w *wire) isFull() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.waiting >= mostQueued
}

// enqueue numbers a message. The caller holds mu.
func (w *wire) enqueue(data []byte) (serial uint32) {
	if w.serial++; w.serial == 0 {
		w.serial = 1
	}
	renumber(data, w.serial)
	w.queue = append(w.queue, data)
	w.waiting += len(data)
	w.more.Give()
	return w.serial
}

// call calls a method of somebody else. The answer must have the signature.
func (w *wire) call(ctx context.Context, destination string, path dbus.ObjectPath, iface, member, returns string, args ...any) ([]any, error) {
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
		return nil, err
	}
	answer := make(chan frame, 1)
	w.mu.Lock()
	if w.closed || len(w.pending) >= mostPending {
		w.mu.Unlock()
		return nil, errClosed
	}
	serial := w.enqueue(data)
	w.pending[serial] = answer
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.pending, serial)
	}()
	select {
	case f := <-answer:
		return read(f, returns)
	case <-w.done:
		return nil, errClosed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
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
	defer w.mu.Unlock()
	if answer, is := w.pending[f.replySerial]; is {
		select {
		case answer <- f:
		default: // It has one already.
		}
	}
}
