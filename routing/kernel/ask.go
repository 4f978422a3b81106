package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
	"multihomed/routing"
	"multihomed/routing/lookup"
)

// ErrNoQuestion says that RTM_GETROUTE has no words for a flow: see [lookup.Flow.Answerable].
var ErrNoQuestion = errors.New("the kernel cannot be asked about this protocol")

// attributeFlowLabel is RTA_FLOWLABEL of linux/rtnetlink.h (6.14), which neither library has.
const attributeFlowLabel = 31

// Ask asks the kernel where a packet goes: once for the route that matches, with all its
// legs, and once for the way of a packet (RTM_GETROUTE with and without RTM_F_FIB_MATCH). It needs
// no privileges. What the kernel refuses is an answer, not an error. A device that is none of the
// interfaces is the answer NoDevice. The error is ErrNoQuestion, or one of the socket.
//
// The flow label is asked for only if the kernel knows the attribute; one that does not has no
// rule for it either.
func (r *Reader) Ask(ctx context.Context, interfaces []lookup.Interface, f lookup.Flow) (lookup.Answer, error) {
	return r.ask(ctx, indexesOf(interfaces), f, true)
}

// indexes are interfaces by name.
type indexes map[string]int

func indexesOf(interfaces []lookup.Interface) indexes {
	out := make(indexes, len(interfaces))
	for _, i := range interfaces {
		out[i.Name] = i.Index
		for _, name := range i.AltNames {
			out[name] = i.Index
		}
	}
	return out
}

func (r *Reader) ask(ctx context.Context, known indexes, f lookup.Flow, label bool) (a lookup.Answer, err error) {
	f.To, f.From = f.To.Unmap(), f.From.Unmap()
	if !f.Answerable() {
		return a, ErrNoQuestion
	}
	var devices [2]int
	for i, name := range [...]string{f.IIF, f.OIF} {
		if devices[i] = known[name]; name != "" && devices[i] == 0 {
			return lookup.Answer{Missed: lookup.NoDevice, Unsent: lookup.NoDevice}, nil
		}
	}
	if !label {
		f.FlowLabel = 0
	}
	question := func(m *nlmsg.Builder, flags uint32) { encodeQuestion(m, f, devices[0], devices[1], flags) }
	legs, errno, err := r.question(ctx, func(m *nlmsg.Builder) { question(m, unix.RTM_F_FIB_MATCH) })
	if err != nil {
		return a, err
	}
	a.Matched = legs
	a.Missed = refusal(errno, &a)
	if legs, errno, err = r.question(ctx, func(m *nlmsg.Builder) { question(m, 0) }); err != nil {
		return a, err
	}
	if a.Unsent = refusal(errno, &a); a.Unsent == lookup.None {
		if len(legs) == 0 {
			return a, fmt.Errorf("asking for the route to %s: an answer without a next hop", f.To)
		}
		a.Sent = legs[0]
	}
	return a, nil
}

// refusal gives an error of the kernel its name.
func refusal(errno unix.Errno, a *lookup.Answer) lookup.Refusal {
	switch errno {
	case 0:
		return lookup.None
	case unix.ENETUNREACH:
		return lookup.NetUnreachable
	case unix.EHOSTUNREACH:
		return lookup.HostUnreachable
	case unix.EACCES:
		return lookup.AccessDenied
	case unix.EINVAL:
		return lookup.Invalid
	case unix.EXDEV:
		return lookup.CrossDevice
	case unix.ENODEV:
		return lookup.NoDevice
	default:
		a.Errno = int(errno)
		return lookup.Other
	}
}

// encodeQuestion appends the payload of RTM_GETROUTE for a strict socket
// (inet_rtm_valid_getroute_req in net/ipv4/route.c, inet6_rtm_valid_getroute_req in net/ipv6/route.c).
func encodeQuestion(m *nlmsg.Builder, f lookup.Flow, iif, oif int, flags uint32) {
	const ecn = 3
	family := routing.FamilyOf(f.To)
	if family == routing.IPv4 {
		// Else the answer names main, whatever table it is from. IPv6 always names the table, and
		// refuses the flag.
		flags |= unix.RTM_F_LOOKUP_TABLE
	}
	from := byte(0)
	if f.From.IsValid() {
		from = byte(family.Bits()) //nolint:gosec // 32 or 128
	}
	m.Bytes(byte(family), byte(family.Bits()), from, f.TOS&^ecn, 0, 0, 0, 0) //nolint:gosec // 32 or 128
	m.Word(flags)
	m.Attribute(unix.RTA_DST, f.To.AsSlice())
	if from != 0 {
		m.Attribute(unix.RTA_SRC, f.From.AsSlice())
	}
	if iif != 0 {
		m.Attribute32(unix.RTA_IIF, uint32(iif)) //nolint:gosec // an interface index
		f.UID = 0                                // A forwarded packet has no socket. IPv6 would compare the question's.
	}
	if oif != 0 {
		m.Attribute32(unix.RTA_OIF, uint32(oif)) //nolint:gosec // an interface index
	}
	if f.Mark != 0 {
		m.Attribute32(unix.RTA_MARK, f.Mark)
	}
	m.Attribute32(unix.RTA_UID, f.UID) // Else the kernel takes the one of this process.
	if f.IPProto != 0 {
		m.Attribute8(unix.RTA_IP_PROTO, f.IPProto)
	}
	if f.SourcePort != 0 {
		m.Attribute(unix.RTA_SPORT, binary.BigEndian.AppendUint16(nil, f.SourcePort))
	}
	if f.DestinationPort != 0 {
		m.Attribute(unix.RTA_DPORT, binary.BigEndian.AppendUint16(nil, f.DestinationPort))
	}
	if f.FlowLabel != 0 && family == routing.IPv6 {
		m.Attribute(attributeFlowLabel, binary.BigEndian.AppendUint32(nil, f.FlowLabel))
	}
}

// question asks one question and returns the legs of the answer that are alive, or the error of
// the kernel.
func (r *Reader) question(ctx context.Context, body func(*nlmsg.Builder)) (legs []routing.Route, errno unix.Errno, err error) {
	payload, errno, err := r.reply(ctx, body)
	if err != nil || errno != 0 {
		return nil, errno, err
	}
	s := newState(routing.Ownership{}, func(string) bool { return false })
	if h, err := peekRoute(payload); err == nil && h.bare() {
		// net.ipv4.nexthop_compat_mode is off.
		if err := r.loader.nexthops(ctx, s); err != nil {
			return nil, 0, err
		}
	}
	a, err := s.read(payload)
	if err != nil {
		return nil, 0, fmt.Errorf("asking for a route: %w", err)
	}
	for _, l := range a.legs {
		if !l.dead {
			legs = append(legs, l.route)
		}
	}
	return legs, 0, nil
}

// reply sends one question and returns the payload of its answer, which stays valid.
func (r *Reader) reply(ctx context.Context, body func(*nlmsg.Builder)) (reply []byte, errno unix.Errno, err error) {
	q := r.loader.requests
	q.mu.Lock()
	defer q.mu.Unlock()
	defer func() {
		if err != nil {
			// An answer that comes later must not be taken for that of another question.
			err = errors.Join(fmt.Errorf("asking for a route: %w", err), q.reopen())
		}
	}()
	q.seq++
	q.out.B = q.out.B[:0]
	q.out.Begin(unix.RTM_GETROUTE, unix.NLM_F_REQUEST, q.seq)
	body(&q.out)
	q.out.End()
	if err := q.socket.Send(q.out.B); err != nil {
		return nil, 0, err
	}
	for {
		n, err := q.socket.receive(ctx, q.in)
		if err != nil {
			return nil, 0, err
		}
		for rest := q.in[:n]; len(rest) > 0; {
			var h nlmsg.Header
			var payload []byte
			if h, payload, rest, err = nlmsg.Next(rest); err != nil {
				return nil, 0, err
			}
			if h.Seq != q.seq {
				continue
			}
			if h.Kind != unix.RTM_NEWROUTE {
				return nil, refusalOf(h.Kind, payload), nil
			}
			return slices.Clone(payload), 0, nil
		}
	}
}
