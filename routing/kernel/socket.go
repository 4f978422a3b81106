package kernel

import (
	"context"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlsocket"
)

// A socket is one NETLINK_ROUTE socket.
type socket struct{ *nlsocket.Socket }

func openSocket(receiveBuffer int, groups ...int) (*socket, error) {
	s, err := nlsocket.Open(nlsocket.Options{
		Protocol: unix.NETLINK_ROUTE, What: "a routing socket", ReceiveBuffer: receiveBuffer, Groups: groups,
		Settings: []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK, unix.NETLINK_GET_STRICT_CHK},
	})
	if err != nil {
		return nil, err
	}
	return &socket{s}, nil
}

// tryReceive reads one datagram of the kernel without waiting. It is
// recvfrom(2) by hand because the wrapper in x/sys allocates an address for
// every message.
func (s *socket) tryReceive(buf []byte) (int, error) {
	for {
		var from unix.RawSockaddrNetlink
		size := uint32(unix.SizeofSockaddrNetlink)
		n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(s.FD),
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
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.FD), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0) //nolint:gosec // getsockopt(2)
	if errno != 0 {
		return 0, fmt.Errorf("reading the state of the event queue: %w", errno)
	}
	return int(info[unix.SK_MEMINFO_RMEM_ALLOC])/leastTruesize + 2, nil
}

// wait blocks until the socket is readable or has an error to tell. poll(2)
// asks without taking: the error stays for the one who reads.
func (s *socket) wait() error {
	var fault error
	err := s.Raw.Read(func(fd uintptr) bool {
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
	defer s.Interruptible(ctx)()
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
