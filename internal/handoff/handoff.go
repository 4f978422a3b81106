// Package handoff passes events from multihomed-dispatcher, and orders from multihomectl, to the
// daemon: one datagram to a socket in the runtime directory, which says what to look at.
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
	// Gone says that the interface lost its configuration.
	Gone bool `json:"gone,omitempty"`
	// Switched says that something was switched off or on: see package offswitch.
	Switched bool `json:"switched,omitempty"`
	// Rebound says that `multihomectl bind` changed what is bound: see package binding.
	Rebound bool `json:"rebound,omitempty"`
	// Failover is an order about the uplink Interface, empty for none.
	Failover Order `json:"failover,omitempty"`
	// Hints are facts that count only if no owner knows better. Facts of hooks that count
	// always are in files (package hookstate).
	Hints []hookstate.Config `json:"hints,omitempty"`

	// answer is where the sender waits, nil if it does not.
	answer *answer
}

// makeWay asks a stand-in to end. The daemon ignores it.
func makeWay() Message { return Message{Caller: "multihomed", Action: makeWayAction} }

// Rebound says that the administrator changed what is bound to links.
func Rebound() Message {
	return Message{Caller: "multihomectl", Action: "bind", Rebound: true}
}

// Switched says that the administrator switched something off or on.
func Switched() Message {
	return Message{Caller: "multihomectl", Action: "off or on", Switched: true}
}

// An Order is what an administrator wants of failover.
type Order string

// Orders.
const (
	// TestFailover lets an uplink count as dead for a while.
	TestFailover Order = "test"
	// ResetFailover forgets the history of an uplink.
	ResetFailover Order = "reset"
)

const makeWayAction = "make way"

// MakesWay reports whether a message is that request.
func (m Message) MakesWay() bool { return m.Caller == "multihomed" && m.Action == makeWayAction }

// Errors of Send and Deliver.
var (
	// ErrNobody: there is no daemon.
	ErrNobody = errors.New("no daemon takes events")
	// ErrBusy: the daemon does not read its events. It will notice changes in the kernel
	// and in NetworkManager itself.
	ErrBusy = errors.New("the daemon does not take its events; to fix: see journalctl -u multihomed")
)

// sendTimeout bounds the wait for a full queue of the daemon.
const sendTimeout = 100 * time.Millisecond

// Send hands a message over, and does not wait for its acknowledgement.
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

// Stands reports whether the socket is still at its path.
func (l *Listener) Stands() bool {
	now, err := os.Lstat(l.path)
	return err == nil && os.SameFile(l.made, now)
}

// Listen makes the socket. Its caller holds the lock, so it may replace the socket of an
// earlier process.
func Listen(runtime string) (*Listener, error) {
	path := filepath.Join(runtime, Name)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("replacing the socket for events: %w", err)
	}
	conn, err := unixgram.Listen(unixgram.Address(path))
	if err != nil {
		return nil, err
	}
	// Run checks the user of each sender; this keeps others from filling the queue.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protecting the socket for events: %w", err), conn.Close())
	}
	made, err := os.Lstat(path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("looking at the socket for events: %w", err), conn.Close())
	}
	return &Listener{conn: conn, path: path, made: made}, nil
}

// Run passes messages to take until ctx is done. Take acknowledges or drops each.
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
			continue // The mode of the socket should have kept it out.
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

// Close removes the socket. It reports whether untaken messages were left, which their
// senders believe delivered.
func (l *Listener) Close() (left bool, err error) {
	// In this order: first nobody can find it, then nobody can send to it, and then the
	// queue is final.
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
		// On a shut socket an empty datagram means an empty queue.
		if len(d.Payload) == 0 {
			break
		}
		left = true
	}
	return left, errors.Join(err, l.conn.Close())
}
