package nftables

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlsocket"
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

// A socket is one NETLINK_NETFILTER socket.
type socket struct {
	*nlsocket.Socket

	most int // what a message may be long
	in   []byte
}

func openSocket(receiveBuffer int, groups ...int) (*socket, error) {
	s, err := nlsocket.Open(nlsocket.Options{
		Protocol: unix.NETLINK_NETFILTER, What: "a socket to nf_tables", ReceiveBuffer: receiveBuffer, Groups: groups,
		Settings: []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK},
	})
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		err = &lack{"nfnetlink", "nfnetlink", err}
	}
	if err != nil {
		return nil, err
	}
	return &socket{Socket: s, in: make([]byte, datagramBuffer)}, nil
}

// sendBuffer makes place for a message of n bytes. The kernel takes no longer one
// (netlink_sendmsg), and doubles the size that it is asked for.
func (s *socket) sendBuffer(n int) error {
	if n <= s.most {
		return nil
	}
	if err := nlsocket.SetBuffer(s.FD, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, n); err != nil {
		return fmt.Errorf("enlarging the send buffer: %w", err)
	}
	size, err := unix.GetsockoptInt(s.FD, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		return fmt.Errorf("reading the size of the send buffer: %w", err)
	}
	s.most = size - 32
	if n > s.most {
		return fmt.Errorf("a batch of %d bytes, and net.core.wmem_max allows %d: %w; to fix: raise net.core.wmem_max", n, s.most, ErrTooLarge)
	}
	return nil
}

// write sends a message. The kernel does what it asks for before write returns.
func (s *socket) write(b []byte) error {
	if err := s.sendBuffer(len(b)); err != nil {
		return err
	}
	return s.Send(b)
}

// try reads one datagram of the kernel without waiting: EAGAIN if there is none. It is valid until
// the next call.
func (s *socket) try() ([]byte, error) {
	for {
		n, from, err := unix.Recvfrom(s.FD, s.in, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
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
	defer s.Interruptible(ctx)()
	var fault error
	err = s.Raw.Read(func(uintptr) bool {
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
