package sockdiag

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
)

var (
	// ErrUnsupported says that this kernel cannot list sockets: it lacks inet_diag or tcp_diag, and
	// cannot load them.
	ErrUnsupported = errors.New("the kernel has no tcp_diag (CONFIG_INET_DIAG)")
	// ErrNoDestroy says that this kernel cannot close sockets for others.
	ErrNoDestroy = errors.New("the kernel cannot close sockets (CONFIG_INET_DIAG_DESTROY)")
	// ErrGone says that the socket does not exist any more.
	ErrGone = errors.New("the socket is gone")
)

// Types of messages: TCPDIAG_GETSOCK, which lists sockets of both families in one walk, and
// SOCK_DESTROY (include/uapi/linux/inet_diag.h, sock_diag.h).
const (
	getSockets = 18
	destroy    = 21
	showInfo   = 1 << (attrInfo - 1)
)

// receiveBuffer is the longest datagram that the kernel makes of a dump
// (netlink_dump in net/netlink/af_netlink.c).
const receiveBuffer = 32 << 10

// A Conn is a socket to the kernel. It belongs to the network namespace in which it was opened. Its
// methods may be called by several goroutines; they wait for each other.
type Conn struct {
	mu     sync.Mutex
	fd     int
	seq    uint32
	in     []byte
	out    nlmsg.Builder
	socket Socket
}

// Open opens a Conn. It needs no rights.
func Open() (*Conn, error) {
	fd, err := openSocket()
	if err != nil {
		return nil, err
	}
	return &Conn{fd: fd, in: make([]byte, receiveBuffer)}, nil
}

func openSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		err = ErrUnsupported
	}
	if err != nil {
		return -1, fmt.Errorf("opening a socket to sock_diag: %w", err)
	}
	return fd, nil
}

// Close closes it.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := unix.Close(c.fd); err != nil {
		return fmt.Errorf("closing the socket to sock_diag: %w", err)
	}
	return nil
}

// Dump calls each for every socket of the query, until each returns false. The socket is valid
// during the call only. The list is of no single moment: a socket that comes or goes meanwhile may
// be missing, or come twice if it changes its bucket. each must not use the Conn.
//
// The error is ErrUnsupported if the kernel cannot do it, and the context's if that is done: it is
// looked at between datagrams of the kernel, each of some 50 sockets.
func (c *Conn) Dump(ctx context.Context, q Query, each func(*Socket) bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.dump(ctx, q, each); err != nil {
		return fmt.Errorf("listing TCP sockets: %w", err)
	}
	return nil
}

func (c *Conn) dump(ctx context.Context, q Query, each func(*Socket) bool) (err error) {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if q.States == 0 {
		q.States = Connected
	}
	if err := c.send(getSockets, unix.NLM_F_DUMP, func(m *nlmsg.Builder) { encodeQuery(m, q) }); err != nil {
		return err
	}
	others := len(q.Sources) > maxConditions
	finished := false
	// A dump that was left half read would answer the next one with EBUSY.
	defer func() {
		if !finished {
			err = errors.Join(err, c.reopen())
		}
	}()
	for {
		b, err := c.receive()
		if err != nil {
			return err
		}
		for len(b) > 0 {
			var h nlmsg.Header
			var payload []byte
			if h, payload, b, err = nlmsg.Next(b); err != nil {
				return err
			}
			switch {
			case h.Seq != c.seq:
			case h.Kind == unix.NLMSG_DONE, h.Kind == unix.NLMSG_ERROR:
				finished = true
				return unsupported(nlmsg.ErrorOf(h, payload))
			case h.Kind == getSockets || h.Kind == unix.SOCK_DIAG_BY_FAMILY:
				if err := c.socket.decode(payload); err != nil {
					return err
				}
				if others && !slices.Contains(q.Sources, c.socket.Source.Addr()) {
					continue
				}
				if !each(&c.socket) {
					return nil
				}
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// encodeQuery appends struct inet_diag_req and the filter.
func encodeQuery(m *nlmsg.Builder, q Query) {
	m.Bytes(unix.AF_UNSPEC, 0, 0, showInfo)
	m.Bytes(make([]byte, sizeofSockID)...)
	m.Word(uint32(q.States))
	m.Word(0)
	if code := bytecode(q.Sources); code != nil {
		m.Attribute(reqBytecode, code)
	}
}

// Destroy closes a socket that Dump gave, whoever holds it: his next call fails with ECONNABORTED,
// and one that waits fails at once. The peer gets a reset if the connection stood, by the socket's
// own route. It needs CAP_NET_ADMIN.
//
// The error is ErrGone if the socket has ended (another one with the same addresses and ports is
// left alone), ErrNoDestroy if the kernel cannot do it.
func (c *Conn) Destroy(ctx context.Context, s *Socket) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := c.destroy(s.id); err != nil {
		return fmt.Errorf("closing the TCP socket from %s to %s: %w", s.Source, s.Destination, err)
	}
	return nil
}

func (c *Conn) destroy(id identity) error {
	err := c.send(destroy, unix.NLM_F_ACK, func(m *nlmsg.Builder) {
		m.Bytes(id.family, unix.IPPROTO_TCP, 0, 0)
		m.Word(^uint32(0))
		m.Bytes(id.sockID[:]...)
	})
	if err != nil {
		return err
	}
	for {
		b, err := c.receive()
		if err != nil {
			return err
		}
		h, payload, _, err := nlmsg.Next(b)
		if err != nil {
			return err
		}
		if h.Seq != c.seq {
			continue
		}
		switch err := nlmsg.ErrorOf(h, payload); {
		case errors.Is(err, unix.ENOENT):
			return ErrGone
		case errors.Is(err, unix.EOPNOTSUPP):
			return ErrNoDestroy
		default:
			return err
		}
	}
}

// send sends one request with the next number.
func (c *Conn) send(kind, flags uint16, body func(*nlmsg.Builder)) error {
	c.seq++
	c.out.B = c.out.B[:0]
	c.out.Begin(kind, unix.NLM_F_REQUEST|flags, c.seq)
	body(&c.out)
	c.out.End()
	for {
		err := unix.Sendto(c.fd, c.out.B, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// receive reads one datagram of the kernel. It never waits for long: the kernel answers inside
// sendto(2), and continues a dump inside recvmsg(2).
func (c *Conn) receive() ([]byte, error) {
	for {
		n, from, err := unix.Recvfrom(c.fd, c.in, unix.MSG_TRUNC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
			continue
		}
		if n > len(c.in) {
			return nil, unix.EMSGSIZE
		}
		return c.in[:n], nil
	}
}

func (c *Conn) reopen() error {
	fd, err := openSocket()
	if err != nil {
		return err
	}
	old := c.fd
	c.fd = fd
	return unix.Close(old)
}

// unsupported names what a kernel without inet_diag (EOPNOTSUPP, sock_diag_rcv_msg in
// net/core/sock_diag.c) or without tcp_diag (ENOENT, inet_diag_lock_handler in net/ipv4/inet_diag.c)
// answers to a dump.
func unsupported(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) {
		return ErrUnsupported
	}
	return err
}
