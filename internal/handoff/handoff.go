// Package handoff is how multihomed-dispatcher hands over to the daemon: one
// datagram to a socket in the runtime directory, which says what to look at. The
// sender does not wait for anything, however the daemon may be.
package handoff

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"multihomed/internal/event"
	"multihomed/internal/hookstate"
	"multihomed/internal/unixgram"
)

// Name of the socket in the runtime directory.
const Name = "hook"

// maxMessage bounds a message. The kernel takes more (net.core.wmem_default).
const maxMessage = 64 << 10

// A Message says that something happened to an interface.
type Message struct {
	// Caller and Action are for the log.
	Caller string `json:"caller"`
	Action string `json:"action"`
	// Interface to look at.
	Interface string `json:"interface"`
	// Gone says that its configuration was taken away.
	Gone bool `json:"gone,omitempty"`
	// Switched says that something was switched off or on: see package offswitch.
	Switched bool `json:"switched,omitempty"`
	// Hints are what the caller said of it without the right to decide; what a
	// hook may decide is in files (package hooked).
	Hints []hookstate.Config `json:"hints,omitempty"`

	// answer is where its sender waits, nil if it does not.
	answer *answer
}

// makeWay asks a stand-in to end. The daemon ignores it.
func makeWay() Message { return Message{Caller: "multihomed", Action: makeWayAction} }

// Switched tells that the administrator switched something off or on.
func Switched() Message {
	return Message{Caller: "multihomectl", Action: "off or on", Switched: true}
}

const makeWayAction = "make way"

// MakesWay reports whether a message is that request.
func (m Message) MakesWay() bool { return m.Caller == "multihomed" && m.Action == makeWayAction }

// What Send says where a message could not be handed over.
var (
	// ErrNobody: there is no daemon.
	ErrNobody = errors.New("no daemon takes events")
	// ErrBusy: the daemon does not take its events; it will see by itself what
	// can be seen.
	ErrBusy = errors.New("the daemon does not take its events; to fix: see journalctl -u multihomed")
)

// sendTimeout bounds what a full queue of the daemon costs.
const sendTimeout = 100 * time.Millisecond

// Send hands a message over, and does not wait for what becomes of it.
func Send(runtime string, m Message) error {
	data, err := encode(m)
	if err != nil {
		return err
	}
	return send(runtime, data, nil, time.Now().Add(sendTimeout))
}

// A Listener takes messages.
type Listener struct {
	conn *unixgram.Conn
	path string
	// made is the socket's file.
	made fs.FileInfo
}

// Stands reports whether others find the socket.
func (l *Listener) Stands() bool {
	now, err := os.Lstat(l.path)
	return err == nil && os.SameFile(l.made, now)
}

// Listen makes the socket. Its caller holds the lock, so that one of a process
// before may be replaced.
func Listen(runtime string) (*Listener, error) {
	path := filepath.Join(runtime, Name)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("replacing the socket for events: %w", err)
	}
	conn, err := unixgram.Listen(unixgram.Address(path))
	if err != nil {
		return nil, err
	}
	// Who is believed is decided by the sender's user; this keeps others away.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protecting the socket for events: %w", err), conn.Close())
	}
	made, err := os.Lstat(path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("looking at the socket for events: %w", err), conn.Close())
	}
	return &Listener{conn: conn, path: path, made: made}, nil
}

// Run passes messages on until ctx is done. Who takes them acknowledges each.
func (l *Listener) Run(ctx context.Context, log *slog.Logger, take func(Message)) error {
	release, err := l.conn.ReadUntil(ctx)
	if err != nil {
		return err
	}
	defer release()
	buffer := make([]byte, maxMessage)
	for ctx.Err() == nil {
		d, passed, err := l.conn.ReceiveWithFile(buffer)
		m := Message{}
		if passed != nil {
			m.answer = &answer{passed}
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, os.ErrClosed):
			return nil
		case err != nil:
			log.LogAttrs(ctx, event.LevelNotice, "event lost", slog.String("error", err.Error()))
			m.Drop()
			continue
		case d.UID != 0 && int(d.UID) != os.Geteuid():
			m.Drop()
			continue // The mode of the socket does not let them in.
		}
		if err := json.Unmarshal(d.Payload, &m); err != nil || d.Truncated {
			log.LogAttrs(ctx, event.LevelNotice, "event ignored, because it makes no sense", slog.Uint64("uid", uint64(d.UID)))
			m.Drop()
			continue
		}
		log.LogAttrs(ctx, slog.LevelDebug, "event", slog.String("caller", m.Caller), slog.String("action", m.Action), slog.String("interface", m.Interface))
		take(m)
	}
	return nil
}

// Close removes the socket. It reports whether messages were left that nobody
// has taken: their senders believe them handed over.
func (l *Listener) Close() (left bool, err error) {
	// In this order: nobody finds it any more, nobody can send to it, and what
	// is left is complete.
	if err = os.Remove(l.path); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	err = errors.Join(err, l.conn.Shut(), l.conn.SetReadDeadline(time.Time{}))
	buffer := make([]byte, maxMessage)
	for {
		d, got, failed := l.conn.TryReceive(buffer)
		if failed != nil || !got {
			break
		}
		// Where it is shut, an empty one says that there is nothing.
		if len(d.Payload) == 0 {
			break
		}
		left = true
	}
	return left, errors.Join(err, l.conn.Close())
}
