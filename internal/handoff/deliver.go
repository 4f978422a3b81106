package handoff

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/lockfile"
)

// AckTimeout bounds the wait for an acknowledgement. A pass takes milliseconds.
const AckTimeout = 3 * time.Second

// errHung says that nobody acknowledged a message in time.
var errHung = errors.New("the daemon does not acknowledge its events")

// errUnanswered says that the reader of a message knows no acknowledgements, or ended.
var errUnanswered = errors.New("the event was taken without acknowledgement")

// Deliver hands a message over and waits for its acknowledgement. It kills a holder of the
// lock that does not acknowledge, because the link of the message has no routing until
// somebody works. It returns ErrNobody then, as without a daemon: the caller must do the
// work. It leaves alone a daemon that is only busy, or that knows no acknowledgements.
func Deliver(ctx context.Context, runtime string, m Message, hung func(pid int)) error {
	path := filepath.Join(runtime, lockfile.Name)
	for {
		// Before the message, so that no later holder is blamed.
		holder, err := lockfile.OpenHolder(path)
		if err != nil {
			return err
		}
		err = deliverTo(ctx, runtime, m, holder, hung)
		if holder != nil {
			err = errors.Join(err, holder.Close())
		}
		if err == nil || !errors.Is(err, errHung) {
			return err
		}
		// Another process holds the lock by now, and has not got the message.
		if ctx.Err() != nil {
			return err
		}
	}
}

func deliverTo(ctx context.Context, runtime string, m Message, holder *lockfile.Process, hung func(pid int)) error {
	before := int64(0)
	if holder != nil {
		before = holder.Worked()
	}
	err := ask(ctx, runtime, m)
	if errors.Is(err, errUnanswered) {
		// That one may have ended, and another may listen now.
		err = ask(ctx, runtime, m)
	}
	switch {
	case errors.Is(err, errUnanswered):
		return nil
	case !errors.Is(err, errHung):
		return err
	case holder == nil:
		// It listens without the lock: it is starting or ending.
		return ErrBusy
	case holder.Busy(before):
		return ErrBusy
	}
	ended, err := holder.End(ctx, filepath.Join(runtime, lockfile.Name))
	switch {
	case err != nil:
		return fmt.Errorf("ending process %d, which does not acknowledge its events: %w", holder.PID, err)
	case !ended:
		return errHung
	}
	hung(holder.PID)
	return ErrNobody
}

// ask sends a message with one end of a pair of sockets, and waits for an answer on the
// other. So it needs no name for the answer. It also tells a reader that knows no
// acknowledgements (the kernel closes the end that it does not take) from one that does
// not read.
func ask(ctx context.Context, runtime string, m Message) error {
	data, err := encode(m)
	if err != nil {
		return err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return doing(err)
	}
	mine, theirs := os.NewFile(uintptr(pair[0]), "answer"), os.NewFile(uintptr(pair[1]), "answer")
	defer mine.Close()
	deadline := time.Now().Add(AckTimeout)
	err = send(runtime, data, unix.UnixRights(int(theirs.Fd())), deadline)
	err = errors.Join(err, theirs.Close())
	switch {
	case errors.Is(err, ErrBusy):
		return errHung // It reads nothing at all.
	case err != nil:
		return err
	}
	if err := mine.SetReadDeadline(deadline); err != nil {
		return doing(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = mine.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	text, err := io.ReadAll(io.LimitReader(mine, 1+maxRefusal))
	switch {
	case len(text) > 0 && text[0] == refused:
		return &RefusedError{Why: string(text[1:])}
	case len(text) > 0:
		return nil
	case ctx.Err() != nil:
		return doing(context.Cause(ctx))
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errHung
	default:
		return errUnanswered
	}
}

// Command hands an order over, and waits until it has been carried out. The errors are
// [ErrNobody], [ErrBusy], and a [RefusedError] if the daemon does not carry it out. It ends
// nobody: an order is not urgent.
func Command(ctx context.Context, runtime string, m Message) error {
	err := ask(ctx, runtime, m)
	switch {
	case errors.Is(err, errHung):
		return ErrBusy
	case errors.Is(err, errUnanswered):
		return ErrNobody // It ended, or is of a release without orders.
	default:
		return err
	}
}

// A RefusedError is an order that was not carried out.
type RefusedError struct {
	// Why is a sentence for the administrator.
	Why string
}

func (e *RefusedError) Error() string { return e.Why }

// First bytes of an answer. That of a release without refusals is 1, too.
const (
	done    = 1
	refused = 2
)

// maxRefusal bounds the text of a refusal.
const maxRefusal = 4 << 10

func encode(m Message) ([]byte, error) {
	data, err := json.Marshal(m)
	if err == nil && len(data) > maxMessage {
		m.Hints = nil
		data, err = json.Marshal(m)
	}
	if err == nil && len(data) > maxMessage {
		err = fmt.Errorf("it has %d bytes, %d is the most", len(data), maxMessage)
	}
	if err != nil {
		return nil, doing(err)
	}
	return data, nil
}

func doing(err error) error { return fmt.Errorf("handing an event over: %w", err) }

// send sends a message to the listener; rights may pass a file (unix(7), SCM_RIGHTS).
func send(runtime string, data, rights []byte, deadline time.Time) error {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Net: "unixgram", Name: filepath.Join(runtime, Name)})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return ErrNobody
	}
	if err != nil {
		return doing(err)
	}
	defer conn.Close()
	if err := conn.SetWriteDeadline(deadline); err != nil {
		return doing(err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return doing(err)
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		failed = unix.Sendmsg(int(fd), data, rights, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		return !errors.Is(failed, unix.EAGAIN)
	})
	if err == nil {
		err = failed
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ErrBusy
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EPIPE):
		return ErrNobody
	case err != nil:
		return doing(err)
	}
	return nil
}

// An answer is the end of a pair of sockets that takes the acknowledgement.
type answer struct{ file *os.File }

// Awaited reports whether the sender waits for an acknowledgement.
func (m Message) Awaited() bool { return m.answer != nil }

// Acknowledge tells the sender that the message was handled. The taker of messages calls it
// or Drop for each.
func (m Message) Acknowledge() {
	if m.answer != nil {
		_, _ = m.answer.file.Write([]byte{done}) // The sender may be gone.
		m.Drop()
	}
}

// Refuse tells the sender that the order is not carried out, and why.
func (m Message) Refuse(why string) {
	if m.answer != nil {
		text := append([]byte{refused}, why...)
		_, _ = m.answer.file.Write(text[:min(len(text), 1+maxRefusal)]) // The sender may be gone.
		m.Drop()
	}
}

// Drop ends the wait of the sender without an acknowledgement. While the lock is held the
// sender takes the message as delivered, and otherwise as never taken.
func (m Message) Drop() {
	if m.answer != nil {
		_ = m.answer.file.Close()
	}
}
