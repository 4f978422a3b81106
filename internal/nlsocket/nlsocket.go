// Package nlsocket opens netlink sockets (netlink(7)) that are non-blocking and waited for by the
// runtime's poller. What is sent and received is for those who know the protocol: package nlmsg
// reads and writes the messages.
package nlsocket

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options say which socket is opened.
type Options struct {
	// Protocol is one of NETLINK_ROUTE and so on.
	Protocol int
	// What names the socket in errors: "a routing socket".
	What string
	// Settings are options of SOL_NETLINK that are switched on.
	Settings []int
	// ReceiveBuffer is the size of the buffer in bytes, 0 for the default.
	ReceiveBuffer int
	// Groups are the multicast groups that are subscribed to.
	Groups []int
}

// A Socket is one netlink socket.
type Socket struct {
	File *os.File
	Raw  syscall.RawConn
	FD   int
	// Port is its netlink port: the kernel names it in what the socket caused.
	Port uint32
}

// Open opens a socket in the current network namespace.
func Open(o Options) (_ *Socket, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, o.Protocol)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", o.What, err)
	}
	file := os.NewFile(uintptr(fd), "netlink")
	defer func() {
		if err != nil {
			_ = file.Close()
		}
	}()
	for _, option := range o.Settings {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, option, 1); err != nil {
			return nil, fmt.Errorf("setting option %d of %s: %w", option, o.What, err)
		}
	}
	if o.ReceiveBuffer > 0 {
		if err := SetBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, o.ReceiveBuffer); err != nil {
			return nil, fmt.Errorf("enlarging the receive buffer of %s: %w", o.What, err)
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("binding %s: %w", o.What, err)
	}
	for _, group := range o.Groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
			return nil, fmt.Errorf("subscribing to group %d of %s: %w", group, o.What, err)
		}
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("reading the port of %s: %w", o.What, err)
	}
	address, ok := name.(*unix.SockaddrNetlink)
	if !ok {
		return nil, fmt.Errorf("reading the port of %s: address of type %T", o.What, name)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("reaching %s: %w", o.What, err)
	}
	return &Socket{File: file, Raw: raw, FD: fd, Port: address.Pid}, nil
}

// SetBuffer sets the size of a buffer. Without CAP_NET_ADMIN in the first user namespace, the limits
// of net.core (rmem_max, wmem_max) count.
func SetBuffer(fd, force, option, size int) error {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) == nil {
		return nil
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, size)
}

// Close closes it.
func (s *Socket) Close() error { return s.File.Close() }

// Send sends messages to the kernel, which does what they ask for before it returns.
func (s *Socket) Send(b []byte) error {
	for {
		err := unix.Sendto(s.FD, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Interruptible makes reads of Raw return when ctx ends, until release is called.
func (s *Socket) Interruptible(ctx context.Context) (release func()) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = s.File.SetReadDeadline(time.Unix(1, 0))
		close(done)
	})
	return func() {
		if !stop() {
			<-done
			_ = s.File.SetReadDeadline(time.Time{})
		}
	}
}
