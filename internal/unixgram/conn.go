package unixgram

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Errors of Send and SendWait.
var (
	ErrFull   = errors.New("the receiver's queue is full")
	ErrNobody = errors.New("nobody has a datagram socket there")
	ErrDenied = errors.New("the receiver does not take datagrams from here")
)

// errNoCredentials cannot happen on a socket that this package made ready.
var errNoCredentials = errors.New("a datagram came without its sender's credentials")

// A Conn is an AF_UNIX datagram socket with a name. Its methods may be called
// by several goroutines at once, but for SendWait: one at a time.
type Conn struct {
	file   *os.File
	raw    syscall.RawConn
	local  Address
	peer   Address // of SendWait
	closed atomic.Bool
}

// A Datagram is what Receive returns.
type Datagram struct {
	Payload   []byte // in the caller's buffer
	Truncated bool   // the datagram was longer than the buffer
	From      Address
	UID, GID  uint32 // of the sender, by the kernel
	PID       int32
}

// Listen makes a socket and gives it a name.
func Listen(local Address) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making a datagram socket: %w", err)
	}
	// Before the name: whoever can send can also be recognised.
	if err := setup(fd); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	if err := bind(fd, local); err != nil {
		return nil, errors.Join(fmt.Errorf("naming a datagram socket %s: %w", local, inUse(err)), unix.Close(fd))
	}
	return newConn(fd)
}

func inUse(err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("%w; stop the program that has it (`ss -xlp` and `ss -xap` show it), or choose another name", err)
	}
	return err
}

// FromFile takes over a socket from whoever opened it, such as systemd. The file
// remains the caller's, to be closed.
func FromFile(file *os.File) (*Conn, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("taking over socket %s: %w", file.Name(), err)
	}
	fd, dupErr := -1, error(nil)
	err = raw.Control(func(inherited uintptr) {
		fd, dupErr = unix.FcntlInt(inherited, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err = errors.Join(err, dupErr); err != nil {
		return nil, fmt.Errorf("taking over socket %s: %w", file.Name(), err)
	}
	if err := adopt(fd); err != nil {
		return nil, errors.Join(fmt.Errorf("taking over socket %s: %w", file.Name(), err), unix.Close(fd))
	}
	return newConn(fd)
}

// adopt checks what kind of socket it is, and makes it ready.
func adopt(fd int) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("asking for its domain: %w", err)
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return fmt.Errorf("asking for its type: %w", err)
	}
	if domain != unix.AF_UNIX || kind != unix.SOCK_DGRAM {
		return errors.New("it is not an AF_UNIX datagram socket; in a unit of systemd that is ListenDatagram=@NAME")
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("making it non-blocking: %w", err)
	}
	return setup(fd)
}

func setup(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		return fmt.Errorf("asking for the credentials of senders: %w", err)
	}
	return nil
}

// newConn owns fd also when there is an error.
func newConn(fd int) (*Conn, error) {
	local, err := localAddress(fd)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("asking for the name of a socket: %w", err), unix.Close(fd))
	}
	file := os.NewFile(uintptr(fd), local.String()) // non-blocking: the runtime polls it
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("polling a socket: %w", err), file.Close())
	}
	return &Conn{file: file, raw: raw, local: local}, nil
}

// LocalAddress is the name of the socket.
func (c *Conn) LocalAddress() Address { return c.local }

// SetReadDeadline ends Receive with os.ErrDeadlineExceeded at that time.
func (c *Conn) SetReadDeadline(t time.Time) error {
	if err := c.file.SetReadDeadline(t); err != nil {
		return fmt.Errorf("setting a deadline for receiving: %w", c.translate(err))
	}
	return nil
}

// Close ends the socket, and every call that waits for it, with os.ErrClosed.
func (c *Conn) Close() error {
	c.closed.Store(true)
	if err := c.file.Close(); err != nil {
		return fmt.Errorf("closing a datagram socket: %w", err)
	}
	return nil
}

// translate names what the runtime has no exported name for.
func (c *Conn) translate(err error) error {
	if err != nil && c.closed.Load() {
		return os.ErrClosed
	}
	return err
}

// Shut refuses everything that is sent from now on. What has been sent can still
// be received.
func (c *Conn) Shut() error {
	var failed error
	err := c.raw.Control(func(fd uintptr) { failed = unix.Shutdown(int(fd), unix.SHUT_RD) })
	if err = errors.Join(c.translate(err), failed); err != nil {
		return fmt.Errorf("shutting a datagram socket: %w", err)
	}
	return nil
}

// Receive waits for a datagram. An error other than of Close and of a deadline
// concerns this one datagram, and the next call may succeed.
func (c *Conn) Receive(buffer []byte) (Datagram, error) {
	d, _, err := c.receive(buffer, true)
	return d, err
}

// TryReceive returns a datagram that is queued now; false says that none is.
func (c *Conn) TryReceive(buffer []byte) (Datagram, bool, error) {
	return c.receive(buffer, false)
}

// ReceiveWithFile is Receive with the file that the sender passed, nil if none was: on
// a socket that strangers cannot send to (see receive).
func (c *Conn) ReceiveWithFile(buffer []byte) (Datagram, *os.File, error) {
	var passed *os.File
	d, _, err := c.receiveWith(buffer, true, &passed)
	return d, passed, err
}

func (c *Conn) receive(buffer []byte, wait bool) (d Datagram, got bool, err error) {
	return c.receiveWith(buffer, wait, nil)
}

func (c *Conn) receiveWith(buffer []byte, wait bool, passed **os.File) (d Datagram, got bool, err error) {
	var failed error
	err = c.raw.Read(func(fd uintptr) bool {
		d, failed = receive(int(fd), buffer, passed)
		got = !errors.Is(failed, unix.EAGAIN)
		return got || !wait
	})
	switch {
	case err != nil:
		return Datagram{}, false, fmt.Errorf("receiving: %w", c.translate(err))
	case !got:
		return Datagram{}, false, nil
	case failed != nil:
		return Datagram{}, true, fmt.Errorf("receiving: %w", failed)
	}
	return d, true, nil
}

// Send sends a datagram and never waits. It may be delivered although the
// receiver never reads it.
func (c *Conn) Send(to Address, payload []byte) error {
	var failed error
	err := c.raw.Control(func(fd uintptr) {
		failed = send(int(fd), to, payload)
	})
	if err != nil {
		err = c.translate(err)
	} else {
		err = meaning(failed)
	}
	if err != nil {
		return fmt.Errorf("sending to %s: %w", to, err)
	}
	return nil
}

// SendWait sends a datagram, and waits while the receiver's queue is full.
//
// It connects the socket to the receiver, because the kernel wakes up only
// connected senders. From then on the kernel refuses datagrams from anybody
// else, and a receiver that was given another receiver before is forgotten
// together with what it sent.
func (c *Conn) SendWait(ctx context.Context, to Address, payload []byte) error {
	if err := c.sendWait(ctx, to, payload); err != nil {
		return fmt.Errorf("sending to %s: %w", to, err)
	}
	return nil
}

// ReadUntil has reads end with [os.ErrDeadlineExceeded] when ctx is done, and not before.
// Whoever has read calls release: after it nothing sets a deadline any more, so that the
// next one may.
func (c *Conn) ReadUntil(ctx context.Context) (release func(), err error) {
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_ = c.SetReadDeadline(time.Unix(1, 0)) // At worst it is closed, and reads end too.
	})
	return func() {
		if !stop() {
			<-woken
		}
	}, nil
}

func (c *Conn) sendWait(ctx context.Context, to Address, payload []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := c.file.SetWriteDeadline(time.Time{}); err != nil {
		return c.translate(err)
	}
	stop := context.AfterFunc(ctx, func() {
		_ = c.file.SetWriteDeadline(time.Unix(1, 0)) // closed already, at worst
	})
	defer stop()
	err := c.write(to, payload)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%w: %w", context.Cause(ctx), ErrFull)
	}
	return err
}

func (c *Conn) write(to Address, payload []byte) error {
	var failed error
	err := c.raw.Write(func(fd uintptr) bool {
		failed = c.sendConnected(int(fd), to, payload)
		// A send that finds the queue full asks the kernel for a wake-up.
		return !errors.Is(failed, unix.EAGAIN)
	})
	if err != nil {
		return c.translate(err)
	}
	return meaning(failed)
}

// sendConnected connects where that is needed: the first time, and when the
// receiver it was connected to has gone and perhaps come again.
func (c *Conn) sendConnected(fd int, to Address, payload []byte) error {
	if c.peer == to {
		err := send(fd, "", payload)
		if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNRESET) {
			return err
		}
	}
	c.peer = ""
	if err := connect(fd, to); err != nil {
		return err
	}
	c.peer = to
	return send(fd, "", payload)
}

// meaning translates what send(2) and connect(2) say.
func meaning(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EAGAIN):
		return ErrFull
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EPROTOTYPE):
		return fmt.Errorf("%w (%w)", ErrNobody, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w (%w)", ErrDenied, err)
	}
	return err
}
