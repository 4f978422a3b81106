package prober

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
	"multihomed/internal/prober/wire"
	"multihomed/internal/processor"
	"multihomed/internal/sockdiag"
)

// lookTimeout bounds a look. 5,000 sockets take 6 ms.
const lookTimeout = time.Second

// heard are the states of connections whose peer has been heard.
const heard = sockdiag.States(1<<sockdiag.Established | 1<<sockdiag.FinWait1 | 1<<sockdiag.FinWait2 | 1<<sockdiag.CloseWait | 1<<sockdiag.LastAck | 1<<sockdiag.Closing)

// An observer reads what the kernel knows. It opens its sockets at the first look.
type observer struct {
	sockets *sockdiag.Conn
	devices *counterReader
}

func (o *observer) close() error {
	var errs []error
	if o.sockets != nil {
		errs = append(errs, o.sockets.Close())
	}
	if o.devices != nil {
		errs = append(errs, unix.Close(o.devices.fd))
	}
	return errors.Join(errs...)
}

// look does a look. The report is a Looked or an Unsent.
func (o *observer) look(ctx context.Context, l wire.Look) wire.Report {
	ctx, cancel := context.WithTimeoutCause(ctx, lookTimeout, unix.ETIMEDOUT)
	defer cancel()
	// Everything that is known was true at the start or later. A prober that is stopped meanwhile makes
	// no proof younger than it is.
	out := wire.Looked{ID: l.ID, At: wire.Now()}
	var err error
	cost := processor.Cost(func() {
		if err = o.counters(l.Devices, &out); err == nil {
			err = o.connections(ctx, l, &out)
		}
	})
	switch {
	case err == nil:
		out.Cost = min(cost, wire.Now().Sub(out.At))
		return out
	case errors.Is(err, sockdiag.ErrUnsupported):
		return wire.Unsent{ID: l.ID, At: wire.Now(), Errno: unix.EOPNOTSUPP}
	default:
		return wire.Unsent{ID: l.ID, At: wire.Now(), Errno: errnoOf(err)}
	}
}

func (o *observer) connections(ctx context.Context, l wire.Look, out *wire.Looked) error {
	out.Connections = make([]wire.Connections, len(l.Sources))
	// Without sources, sock_diag would list all sockets.
	if len(l.Sources) == 0 {
		return nil
	}
	if o.sockets == nil {
		sockets, err := sockdiag.Open()
		if err != nil {
			return err
		}
		o.sockets = sockets
	}
	index := make(map[netip.Addr]int, len(l.Sources))
	addresses := make([]netip.Addr, len(l.Sources))
	for i, s := range l.Sources {
		index[s.Addr] = i
		addresses[i] = s.Addr
	}
	return o.sockets.Dump(ctx, sockdiag.Query{Sources: addresses, States: heard}, func(s *sockdiag.Socket) bool {
		i, wanted := index[s.Source.Addr()]
		if !wanted || !s.HasInfo || s.Device != 0 && s.Device != l.Sources[i].Device || near(l, s.Destination.Addr()) {
			return true
		}
		count(&out.Connections[i], s, out.At)
		return true
	})
}

// near reports whether a peer proves nothing: it is in a near network, or it is one of the sources, so
// that the packets never leave this host.
func near(l wire.Look, peer netip.Addr) bool {
	for _, s := range l.Sources {
		if s.Addr == peer {
			return true
		}
	}
	for _, p := range l.Near {
		if p.Contains(peer) {
			return true
		}
	}
	return false
}

// idle is how long a connection is quiet before its next packet says nothing about the quiet time.
const idle = time.Second

// count adds a connection to the summary of its source.
func count(c *wire.Connections, s *sockdiag.Socket, at wire.Time) {
	c.Count++
	// Data that comes while nothing is acknowledged does not count as an ACK: the fast path of
	// tcp_rcv_established (net/ipv4/tcp_input.c) calls tcp_ack only where something is.
	quiet := min(s.LastAckRecv, s.LastDataRecv)
	if proof := at.Add(-quiet); proof > c.Proof {
		c.Proof = proof
	}
	if s.Unacked == 0 {
		return
	}
	if quiet >= idle && s.Retransmits == 0 {
		// It was idle, and has sent just now.
		quiet = min(quiet, s.LastDataSent)
	}
	if wire.Time(quiet) <= at {
		c.Silence = max(c.Silence, quiet)
	}
}

// A counterReader reads counters of interfaces (rtnetlink(7), RTM_GETSTATS).
type counterReader struct {
	fd  int
	seq uint32
	in  []byte
	out nlmsg.Builder
}

func newCounterReader() (*counterReader, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening a socket to rtnetlink: %w", err)
	}
	return &counterReader{fd: fd, in: make([]byte, 8<<10)}, nil
}

func (o *observer) counters(devices []int, out *wire.Looked) error {
	out.Devices = make([]wire.Counters, len(devices))
	if len(devices) == 0 {
		return nil
	}
	if o.devices == nil {
		reader, err := newCounterReader()
		if err != nil {
			return err
		}
		o.devices = reader
	}
	for i, d := range devices {
		c, err := o.devices.read(d)
		// A device that does not exist (any more) has zeros.
		if err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("reading the counters of device %d: %w", d, err)
		}
		out.Devices[i] = c
	}
	return nil
}

// Constants of include/uapi/linux/if_link.h: struct if_stats_msg, and the one attribute that is asked for.
const (
	sizeofStatsMsg   = 12
	statsLink64      = 1 // IFLA_STATS_LINK_64
	sizeofTwoNumbers = 16
)

// read asks for the counters of one device. The kernel answers inside sendto(2).
func (r *counterReader) read(device int) (wire.Counters, error) {
	r.seq++
	r.out.B = r.out.B[:0]
	r.out.Begin(unix.RTM_GETSTATS, unix.NLM_F_REQUEST, r.seq)
	r.out.Bytes(unix.AF_UNSPEC, 0, 0, 0)
	r.out.Word(uint32(device)) //nolint:gosec // wire has checked it.
	r.out.Word(1 << (statsLink64 - 1))
	r.out.End()
	if err := unix.Sendto(r.fd, r.out.B, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return wire.Counters{}, err
	}
	for {
		n, from, err := unix.Recvfrom(r.fd, r.in, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return wire.Counters{}, err
		}
		if sa, is := from.(*unix.SockaddrNetlink); !is || sa.Pid != 0 {
			continue
		}
		h, payload, _, err := nlmsg.Next(r.in[:n])
		if err != nil {
			return wire.Counters{}, err
		}
		if h.Seq == r.seq {
			return counters(h, payload)
		}
	}
}

var errMessage = errors.New("a message of rtnetlink is too short")

// counters reads the answer: struct rtnl_link_stats64 begins with rx_packets and tx_packets.
func counters(h nlmsg.Header, body []byte) (wire.Counters, error) {
	if h.Kind == unix.NLMSG_ERROR {
		return wire.Counters{}, nlmsg.ErrorOf(h, body)
	}
	if len(body) < sizeofStatsMsg {
		return wire.Counters{}, errMessage
	}
	for a := (nlmsg.Attributes{Rest: body[sizeofStatsMsg:]}); a.Next(); {
		if a.Kind == statsLink64 && len(a.Value) >= sizeofTwoNumbers {
			ne := binary.NativeEndian
			return wire.Counters{RxPackets: ne.Uint64(a.Value), TxPackets: ne.Uint64(a.Value[8:])}, nil
		}
	}
	return wire.Counters{}, errMessage
}
