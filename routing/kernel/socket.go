package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A socket is one NETLINK_ROUTE socket, non-blocking and waited for by the
// runtime's poller.
type socket struct {
	file *os.File
	raw  syscall.RawConn
	fd   int
	port uint32
}

func openSocket(receiveBuffer int, groups ...int) (_ *socket, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening a routing socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), "rtnetlink")
	defer func() {
		if err != nil {
			_ = file.Close()
		}
	}()
	for _, option := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK, unix.NETLINK_GET_STRICT_CHK} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, option, 1); err != nil {
			return nil, fmt.Errorf("setting option %d of a routing socket: %w", option, err)
		}
	}
	// Without CAP_NET_ADMIN (multihomectl status) net.core.rmem_max limits it.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer); err != nil {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer); err != nil {
			return nil, fmt.Errorf("enlarging the receive buffer: %w", err)
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("binding a routing socket: %w", err)
	}
	for _, group := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
			return nil, fmt.Errorf("subscribing to rtnetlink group %d: %w", group, err)
		}
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("reading the port of a routing socket: %w", err)
	}
	sa, ok := name.(*unix.SockaddrNetlink)
	if !ok {
		return nil, fmt.Errorf("reading the port of a routing socket: address of type %T", name)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("reaching a routing socket: %w", err)
	}
	return &socket{file: file, raw: raw, fd: fd, port: sa.Pid}, nil
}

func (s *socket) close() error { return s.file.Close() }

// tryReceive reads one datagram of the kernel without waiting. It is
// recvfrom(2) by hand because the wrapper in x/sys allocates an address for
// every message.
func (s *socket) tryReceive(buf []byte) (int, error) {
	for {
		var from unix.RawSockaddrNetlink
		size := uint32(unix.SizeofSockaddrNetlink)
		n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(s.fd),
			uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), unix.MSG_DONTWAIT|unix.MSG_TRUNC, //nolint:gosec // recvfrom(2)
			uintptr(unsafe.Pointer(&from)), uintptr(unsafe.Pointer(&size))) //nolint:gosec // recvfrom(2)
		switch {
		case errno == unix.EINTR:
		case errno != 0:
			return 0, errno
		case from.Pid != 0:
			// Only root can do this; whoever it is, it is not the kernel.
		case int(n) > len(buf):
			return 0, unix.EMSGSIZE
		default:
			return int(n), nil
		}
	}
}

// leastTruesize is less than any message takes of a receive buffer
// (SKB_TRUESIZE in include/linux/skbuff.h).
const leastTruesize = 512

// queued is an upper bound of how many messages wait, and one more for an
// error that does.
func (s *socket) queued() (int, error) {
	var info [unix.SK_MEMINFO_VARS]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0) //nolint:gosec // getsockopt(2)
	if errno != 0 {
		return 0, fmt.Errorf("reading the state of the event queue: %w", errno)
	}
	return int(info[unix.SK_MEMINFO_RMEM_ALLOC])/leastTruesize + 2, nil
}

func (s *socket) send(b []byte) error {
	for {
		err := unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// interruptible makes wait return when ctx ends, until release is called.
func (s *socket) interruptible(ctx context.Context) (release func()) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = s.file.SetReadDeadline(time.Unix(1, 0))
		close(done)
	})
	return func() {
		if !stop() {
			<-done
			_ = s.file.SetReadDeadline(time.Time{})
		}
	}
}

// wait blocks until the socket is readable or has an error to tell. poll(2)
// asks without taking: the error stays for the one who reads.
func (s *socket) wait() error {
	var fault error
	err := s.raw.Read(func(fd uintptr) bool {
		ready, err := readable(int(fd))
		fault = err
		return ready || err != nil
	})
	return errors.Join(err, fault)
}

func readable(fd int) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // a file descriptor
	for {
		n, err := unix.Poll(fds, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return n > 0, err
	}
}

// receive reads one datagram, waiting for it. The kernel answers requests
// inside sendto(2), so there is rarely anything to wait for.
func (s *socket) receive(ctx context.Context, buf []byte) (int, error) {
	for {
		n, err := s.tryReceive(buf)
		if !errors.Is(err, unix.EAGAIN) {
			return n, err
		}
		if err := s.waitFor(ctx); err != nil {
			return 0, err
		}
	}
}

func (s *socket) waitFor(ctx context.Context) error {
	defer s.interruptible(ctx)()
	if err := s.wait(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	return nil
}

// errOverrun says that announcements were lost.
var errOverrun = errors.New("announcements were lost")

// lost reports whether an error of the event socket means that announcements
// are missing rather than that the socket is broken.
func lost(err error) bool { return errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EMSGSIZE) }
