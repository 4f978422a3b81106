package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A message is one request to rtnetlink without its header.
type message struct {
	kind, flags uint16
	payload     []byte
}

const receiveBuffer = 64 << 20

// openNetlink opens a blocking rtnetlink socket.
func openNetlink(groups ...int) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return 0, fmt.Errorf("opening a routing socket: %w", err)
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, receiveBuffer))
	err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1))
	err = errors.Join(err, unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	for _, g := range groups {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g))
	}
	if err != nil {
		return 0, errors.Join(fmt.Errorf("preparing a routing socket: %w", err), unix.Close(fd))
	}
	return fd, nil
}

// A sender is the bare loop: it sends requests and reads their answers, and does
// nothing else.
type sender struct {
	fd      int
	seq     uint32
	out, in []byte
}

func newSender() (*sender, error) {
	fd, err := openNetlink()
	if err != nil {
		return nil, err
	}
	return &sender{fd: fd, in: make([]byte, 64<<10)}, nil
}

func (s *sender) close() error { return unix.Close(s.fd) }

func (s *sender) append(m message, flags uint16) {
	s.seq++
	ne := binary.NativeEndian
	s.out = ne.AppendUint32(s.out, uint32(unix.SizeofNlMsghdr+len(m.payload)))
	s.out = ne.AppendUint16(s.out, m.kind)
	s.out = ne.AppendUint16(s.out, m.flags|flags|unix.NLM_F_REQUEST)
	s.out = ne.AppendUint32(s.out, s.seq)
	s.out = ne.AppendUint32(s.out, 0)
	s.out = append(s.out, m.payload...)
	for len(s.out)%unix.NLMSG_ALIGNTO != 0 {
		s.out = append(s.out, 0)
	}
}

// each sends one request per system call and reads the answer before the next.
func (s *sender) each(messages []message) error {
	for _, m := range messages {
		s.out = s.out[:0]
		s.append(m, unix.NLM_F_ACK)
		if err := s.flush(); err != nil {
			return err
		}
	}
	return nil
}

// batchBytes is what one system call carries, as in routing/kernel.
const batchBytes = 32 << 10

// batched sends many requests in one system call; the last is acknowledged.
func (s *sender) batched(messages []message) error {
	s.out = s.out[:0]
	for i, m := range messages {
		last := i == len(messages)-1 || len(s.out)+len(m.payload) > batchBytes
		var flags uint16
		if last {
			flags = unix.NLM_F_ACK
		}
		s.append(m, flags)
		if last {
			if err := s.flush(); err != nil {
				return err
			}
			s.out = s.out[:0]
		}
	}
	return nil
}

func (s *sender) flush() error {
	if err := unix.Sendto(s.fd, s.out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("asking the kernel: %w", err)
	}
	for {
		n, _, err := unix.Recvfrom(s.fd, s.in, 0)
		if err != nil {
			return fmt.Errorf("reading the kernel's answer: %w", err)
		}
		for rest := s.in[:n]; len(rest) >= unix.SizeofNlMsghdr+4; {
			length := int(binary.NativeEndian.Uint32(rest))
			seq := binary.NativeEndian.Uint32(rest[8:])
			if code := int32(binary.NativeEndian.Uint32(rest[unix.SizeofNlMsghdr:])); code != 0 {
				return fmt.Errorf("the kernel refused a request of type %d: %w", binary.NativeEndian.Uint16(rest[4:]), unix.Errno(-code))
			}
			if seq == s.seq {
				return nil
			}
			rest = rest[min((length+3)&^3, len(rest)):]
		}
	}
}

// A builder makes payloads.
type builder struct{ b []byte }

func (b *builder) word(v uint32) { b.b = binary.NativeEndian.AppendUint32(b.b, v) }

func (b *builder) attribute(kind uint16, value []byte) {
	b.b = binary.NativeEndian.AppendUint16(b.b, uint16(unix.SizeofNlAttr+len(value)))
	b.b = binary.NativeEndian.AppendUint16(b.b, kind)
	b.b = append(b.b, value...)
	for len(b.b)%unix.NLMSG_ALIGNTO != 0 {
		b.b = append(b.b, 0)
	}
}

func (b *builder) attribute32(kind uint16, v uint32) {
	b.attribute(kind, binary.NativeEndian.AppendUint32(nil, v))
}

func familyOf(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// addressPayload is RTM_NEWADDR and RTM_DELADDR as NetworkManager sends it: with
// IFA_F_NOPREFIXROUTE, because it makes the routes itself.
func addressPayload(index int, p netip.Prefix) []byte {
	var b builder
	flags := uint32(unix.IFA_F_NOPREFIXROUTE)
	if p.Addr().Is6() {
		flags |= unix.IFA_F_NODAD
	}
	b.b = append(b.b, familyOf(p.Addr()), byte(p.Bits()), 0, unix.RT_SCOPE_UNIVERSE)
	b.word(uint32(index))
	b.attribute(unix.IFA_LOCAL, p.Addr().AsSlice())
	b.attribute(unix.IFA_ADDRESS, p.Addr().AsSlice())
	b.attribute32(unix.IFA_FLAGS, flags)
	return b.b
}

// route is a route of main.
type route struct {
	dst      netip.Prefix
	via, src netip.Addr
	index    int
	metric   uint32
	protocol byte
}

func (r route) payload() []byte {
	var b builder
	scope := byte(unix.RT_SCOPE_UNIVERSE)
	if !r.via.IsValid() && r.dst.Addr().Is4() {
		scope = unix.RT_SCOPE_LINK
	}
	b.b = append(b.b, familyOf(r.dst.Addr()), byte(r.dst.Bits()), 0, 0, unix.RT_TABLE_MAIN, r.protocol, scope, unix.RTN_UNICAST)
	b.word(0)
	if r.dst.Bits() > 0 {
		b.attribute(unix.RTA_DST, r.dst.Addr().AsSlice())
	}
	if r.via.IsValid() {
		b.attribute(unix.RTA_GATEWAY, r.via.AsSlice())
	}
	if r.src.IsValid() && r.src.Is4() {
		b.attribute(unix.RTA_PREFSRC, r.src.AsSlice())
	}
	b.attribute32(unix.RTA_OIF, uint32(r.index))
	b.attribute32(unix.RTA_PRIORITY, r.metric)
	return b.b
}

// groupPayload is RTM_SETLINK with a group.
func groupPayload(index int, group uint32) []byte {
	var b builder
	b.b = append(b.b, unix.AF_UNSPEC, 0, 0, 0)
	b.word(uint32(index))
	b.word(0)
	b.word(0)
	b.attribute32(unix.IFLA_GROUP, group)
	return b.b
}

// eachAttribute walks attributes.
func eachAttribute(b []byte, f func(kind uint16, value []byte)) {
	for len(b) >= unix.SizeofNlAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofNlAttr || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&nl.NLA_TYPE_MASK, b[unix.SizeofNlAttr:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}
