// Package nlmsg reads and writes netlink messages: headers, attributes and answers of the kernel
// (struct nlmsghdr, nlattr and nlmsgerr of include/uapi/linux/netlink.h). It allocates nothing
// for what it reads, for a host with a full BGP table has its every route pass through here.
package nlmsg

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ErrTruncated says that a message ends too early.
var ErrTruncated = errors.New("truncated netlink message")

// A Header is struct nlmsghdr. Its length includes the header, in bytes.
type Header struct {
	Length uint32
	Kind   uint16
	Flags  uint16
	Seq    uint32
	Port   uint32
}

// Align rounds a length up to the alignment of messages and attributes.
func Align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// Next cuts the first message off b: its header, its payload and what follows. The error is
// ErrTruncated.
func Next(b []byte) (h Header, payload, rest []byte, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return h, nil, nil, ErrTruncated
	}
	ne := binary.NativeEndian
	h = Header{
		Length: ne.Uint32(b), Kind: ne.Uint16(b[4:]), Flags: ne.Uint16(b[6:]),
		Seq: ne.Uint32(b[8:]), Port: ne.Uint32(b[12:]),
	}
	n := int(h.Length)
	if n < unix.SizeofNlMsghdr || n > len(b) {
		return h, nil, nil, ErrTruncated
	}
	return h, b[unix.SizeofNlMsghdr:n], b[min(Align(n), len(b)):], nil
}

// Attributes walks attributes: set Rest to them, and call Next until it returns false. An
// attribute that claims to be longer than they are ends the walk.
type Attributes struct {
	Rest []byte
	// Kind is the type without its flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER), Value the payload.
	Kind  uint16
	Value []byte
}

// Next goes to the next attribute, and reports whether there is one.
func (a *Attributes) Next() bool {
	if len(a.Rest) < unix.SizeofNlAttr {
		return false
	}
	n := int(binary.NativeEndian.Uint16(a.Rest))
	if n < unix.SizeofNlAttr || n > len(a.Rest) {
		a.Rest = nil
		return false
	}
	a.Kind = binary.NativeEndian.Uint16(a.Rest[2:]) & nl.NLA_TYPE_MASK
	a.Value = a.Rest[unix.SizeofNlAttr:n]
	a.Rest = a.Rest[min(Align(n), len(a.Rest)):]
	return true
}

// Uint32 is the value in the byte order of the host, 0 if it is too short. So are the others.
func (a *Attributes) Uint32() uint32 {
	if len(a.Value) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(a.Value)
}

// Uint16 is like Uint32.
func (a *Attributes) Uint16() uint16 {
	if len(a.Value) < 2 {
		return 0
	}
	return binary.NativeEndian.Uint16(a.Value)
}

// Uint8 is like Uint32.
func (a *Attributes) Uint8() uint8 {
	if len(a.Value) < 1 {
		return 0
	}
	return a.Value[0]
}

// Text is the value up to its first NUL.
func (a *Attributes) Text() string {
	for i, c := range a.Value {
		if c == 0 {
			return string(a.Value[:i])
		}
	}
	return string(a.Value)
}

// A Builder appends messages to one buffer: Begin, the payload, End.
type Builder struct {
	// B is the buffer. Whoever builds the next request from the start of it sets it to B[:0].
	B     []byte
	start int
}

// Begin appends the header of a message.
func (m *Builder) Begin(kind, flags uint16, seq uint32) {
	m.start = len(m.B)
	ne := binary.NativeEndian
	m.B = ne.AppendUint32(m.B, 0)
	m.B = ne.AppendUint16(m.B, kind)
	m.B = ne.AppendUint16(m.B, flags)
	m.B = ne.AppendUint32(m.B, seq)
	m.B = ne.AppendUint32(m.B, 0)
}

// End completes the message.
func (m *Builder) End() {
	binary.NativeEndian.PutUint32(m.B[m.start:], uint32(len(m.B)-m.start)) //nolint:gosec // a request of ours is below 64 KiB
	m.Pad()
}

// Pad appends zeros up to the alignment.
func (m *Builder) Pad() {
	for len(m.B)%unix.NLMSG_ALIGNTO != 0 {
		m.B = append(m.B, 0)
	}
}

// AddFlags sets flags of the message that was built last.
func (m *Builder) AddFlags(flags uint16) {
	ne := binary.NativeEndian
	ne.PutUint16(m.B[m.start+6:], ne.Uint16(m.B[m.start+6:])|flags)
}

// Bytes appends bytes as they are.
func (m *Builder) Bytes(v ...byte) { m.B = append(m.B, v...) }

// Word appends a number of 32 bits in the byte order of the host.
func (m *Builder) Word(v uint32) { m.B = binary.NativeEndian.AppendUint32(m.B, v) }

// Attribute appends an attribute.
func (m *Builder) Attribute(kind uint16, value []byte) {
	at := m.Open(kind)
	m.B = append(m.B, value...)
	m.Close(at)
}

// Attribute32 appends one with a number of 32 bits in the byte order of the host.
func (m *Builder) Attribute32(kind uint16, v uint32) {
	at := m.Open(kind)
	m.Word(v)
	m.Close(at)
}

// Attribute8 appends one with one byte.
func (m *Builder) Attribute8(kind uint16, v uint8) {
	at := m.Open(kind)
	m.Bytes(v)
	m.Close(at)
}

// Text appends one with a string and its NUL.
func (m *Builder) Text(kind uint16, v string) {
	at := m.Open(kind)
	m.B = append(append(m.B, v...), 0)
	m.Close(at)
}

// Open begins an attribute whose value follows. Close takes what it returns.
func (m *Builder) Open(kind uint16) int {
	at := len(m.B)
	m.B = binary.NativeEndian.AppendUint16(m.B, 0)
	m.B = binary.NativeEndian.AppendUint16(m.B, kind)
	return at
}

// Close ends the attribute that Open began.
func (m *Builder) Close(at int) {
	binary.NativeEndian.PutUint16(m.B[at:], uint16(len(m.B)-at)) //nolint:gosec // as above
	m.Pad()
}

// ErrorOf reads the answer to a request (struct nlmsgerr): nil for an ACK. The
// kernel's own words are appended where it has some (NETLINK_EXT_ACK).
func ErrorOf(h Header, payload []byte) error {
	if len(payload) < 4 {
		return ErrTruncated
	}
	code := int32(binary.NativeEndian.Uint32(payload)) //nolint:gosec // the kernel writes a negative errno
	if code == 0 {
		return nil
	}
	errno := unix.Errno(-code) //nolint:gosec // positive
	if text := extendedText(h, payload); text != "" {
		return fmt.Errorf("%s: %w", text, errno)
	}
	return errno
}

func extendedText(h Header, payload []byte) string {
	for a := extended(h, payload); a.Next(); {
		if a.Kind == nl.NLMSGERR_ATTR_MSG {
			return a.Text()
		}
	}
	return ""
}

// BadAttribute reads from the answer to a request which attribute the kernel complains of, as its
// offset from the header of the request (NLMSGERR_ATTR_OFFS). It is 0 if the kernel does not say.
func BadAttribute(h Header, payload []byte) uint32 {
	for a := extended(h, payload); a.Next(); {
		if a.Kind == nl.NLMSGERR_ATTR_OFFS {
			return a.Uint32()
		}
	}
	return 0
}

// extended are the attributes that follow struct nlmsgerr (NETLINK_EXT_ACK).
func extended(h Header, payload []byte) Attributes {
	if h.Flags&unix.NLM_F_ACK_TLVS == 0 || len(payload) < 4+unix.SizeofNlMsghdr {
		return Attributes{}
	}
	skip := 4 + unix.SizeofNlMsghdr
	if h.Flags&unix.NLM_F_CAPPED == 0 {
		// The whole request follows, then the attributes.
		skip = 4 + Align(int(binary.NativeEndian.Uint32(payload[4:])))
	}
	if skip < 0 || skip > len(payload) {
		return Attributes{}
	}
	return Attributes{Rest: payload[skip:]}
}
