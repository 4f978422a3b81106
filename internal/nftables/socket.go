package nftables

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Buffers. The longest datagram of a dump has 32 KiB (netlink_dump in net/netlink/af_netlink.c), one
// of a notification two pages.
const (
	datagramBuffer = 64 << 10
	// answersBuffer holds the answers to one batch: each takes about 1 KiB of it.
	answersBuffer = 1 << 20
	// notificationsBuffer is kernel memory that foreign changes may take until they are read.
	notificationsBuffer = 2 << 20
)

// A socket is one NETLINK_NETFILTER socket, non-blocking and waited for by the runtime's poller.
type socket struct {
	file *os.File
	raw  syscall.RawConn
	fd   int
	port uint32
	send int // what a message may be long
	in   []byte
}

func openSocket(receiveBuffer int, groups ...int) (_ *socket, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, fmt.Errorf("opening a socket to nf_tables: %w", &lack{"nfnetlink", "nfnetlink", err})
	}
	if err != nil {
		return nil, fmt.Errorf("opening a socket to nf_tables: %w", err)
	}
	file := os.NewFile(uintptr(fd), "nf_tables")
	defer func() {
		if err != nil {
			_ = file.Close()
		}
	}()
	for _, option := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, option, 1); err != nil {
			return nil, fmt.Errorf("setting option %d of a socket to nf_tables: %w", option, err)
		}
	}
	if err := setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, receiveBuffer); err != nil {
		return nil, fmt.Errorf("enlarging the receive buffer of a socket to nf_tables: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("binding a socket to nf_tables: %w", err)
	}
	for _, group := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
			return nil, fmt.Errorf("subscribing to group %d of nfnetlink: %w", group, err)
		}
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("reading the port of a socket to nf_tables: %w", err)
	}
	address, ok := name.(*unix.SockaddrNetlink)
	if !ok {
		return nil, fmt.Errorf("reading the port of a socket to nf_tables: address of type %T", name)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("reaching a socket to nf_tables: %w", err)
	}
	return &socket{file: file, raw: raw, fd: fd, port: address.Pid, in: make([]byte, datagramBuffer)}, nil
}

// setBuffer sets the size of a buffer. Without CAP_NET_ADMIN in the first user namespace, the limits
// of net.core (rmem_max, wmem_max) count.
func setBuffer(fd, force, option, size int) error {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) == nil {
		return nil
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, size)
}

func (s *socket) close() error { return s.file.Close() }

// sendBuffer makes place for a message of n bytes. The kernel takes no longer one
// (netlink_sendmsg), and doubles the size that it is asked for.
func (s *socket) sendBuffer(n int) error {
	if n <= s.send {
		return nil
	}
	if err := setBuffer(s.fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, n); err != nil {
		return fmt.Errorf("enlarging the send buffer: %w", err)
	}
	size, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		return fmt.Errorf("reading the size of the send buffer: %w", err)
	}
	s.send = size - 32
	if n > s.send {
		return fmt.Errorf("a batch of %d bytes, and net.core.wmem_max allows %d: %w; to fix: raise net.core.wmem_max", n, s.send, ErrTooLarge)
	}
	return nil
}

// write sends a message. The kernel does what it asks for before write returns.
func (s *socket) write(b []byte) error {
	if err := s.sendBuffer(len(b)); err != nil {
		return err
	}
	for {
		err := unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// try reads one datagram of the kernel without waiting: EAGAIN if there is none. It is valid until
// the next call.
func (s *socket) try() ([]byte, error) {
	for {
		n, from, err := unix.Recvfrom(s.fd, s.in, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		switch sender, ok := from.(*unix.SockaddrNetlink); {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, err
		case !ok || sender.Pid != 0:
			// Only root can do this; whoever it is, it is not the kernel.
		case n > len(s.in):
			return nil, unix.EMSGSIZE
		default:
			return s.in[:n], nil
		}
	}
}

// receive reads one datagram, and waits for it.
func (s *socket) receive(ctx context.Context) ([]byte, error) {
	b, err := s.try()
	if !errors.Is(err, unix.EAGAIN) {
		return b, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = s.file.SetReadDeadline(time.Unix(1, 0))
		close(done)
	})
	defer func() {
		if !stop() {
			<-done
			_ = s.file.SetReadDeadline(time.Time{})
		}
	}()
	var fault error
	err = s.raw.Read(func(uintptr) bool {
		b, fault = s.try()
		return !errors.Is(fault, unix.EAGAIN)
	})
	switch {
	case err == nil:
		return b, fault
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	default:
		return nil, err
	}
}
