package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

var errTruncated = errors.New("truncated netlink message")

// header is struct nlmsghdr.
type header struct {
	length uint32
	kind   uint16
	flags  uint16
	seq    uint32
	port   uint32
}

func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// nextMessage cuts the first message off b: its header, its payload and what
// follows.
func nextMessage(b []byte) (h header, payload, rest []byte, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return h, nil, nil, errTruncated
	}
	ne := binary.NativeEndian
	h = header{
		length: ne.Uint32(b), kind: ne.Uint16(b[4:]), flags: ne.Uint16(b[6:]),
		seq: ne.Uint32(b[8:]), port: ne.Uint32(b[12:]),
	}
	n := int(h.length)
	if n < unix.SizeofNlMsghdr || n > len(b) {
		return h, nil, nil, errTruncated
	}
	return h, b[unix.SizeofNlMsghdr:n], b[min(align(n), len(b)):], nil
}

// attributes walks the attributes of a message. It allocates nothing: a host
// with a full BGP table has its every route pass through here.
type attributes struct {
	rest  []byte
	kind  uint16
	value []byte
}

func (a *attributes) next() bool {
	if len(a.rest) < unix.SizeofNlAttr {
		return false
	}
	n := int(binary.NativeEndian.Uint16(a.rest))
	if n < unix.SizeofNlAttr || n > len(a.rest) {
		a.rest = nil
		return false
	}
	a.kind = binary.NativeEndian.Uint16(a.rest[2:]) & nl.NLA_TYPE_MASK
	a.value = a.rest[unix.SizeofNlAttr:n]
	a.rest = a.rest[min(align(n), len(a.rest)):]
	return true
}

func (a *attributes) uint32() uint32 {
	if len(a.value) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(a.value)
}

func (a *attributes) uint16() uint16 {
	if len(a.value) < 2 {
		return 0
	}
	return binary.NativeEndian.Uint16(a.value)
}

func (a *attributes) uint8() uint8 {
	if len(a.value) < 1 {
		return 0
	}
	return a.value[0]
}

// string is the value up to its first NUL.
func (a *attributes) string() string {
	for i, c := range a.value {
		if c == 0 {
			return string(a.value[:i])
		}
	}
	return string(a.value)
}

// builder appends messages to one buffer.
type builder struct {
	b     []byte
	start int
}

func (m *builder) begin(kind, flags uint16, seq uint32) {
	m.start = len(m.b)
	ne := binary.NativeEndian
	m.b = ne.AppendUint32(m.b, 0)
	m.b = ne.AppendUint16(m.b, kind)
	m.b = ne.AppendUint16(m.b, flags)
	m.b = ne.AppendUint32(m.b, seq)
	m.b = ne.AppendUint32(m.b, 0)
}

func (m *builder) end() {
	binary.NativeEndian.PutUint32(m.b[m.start:], uint32(len(m.b)-m.start)) //nolint:gosec // a request of ours is below 64 KiB
	m.pad()
}

func (m *builder) pad() {
	for len(m.b)%unix.NLMSG_ALIGNTO != 0 {
		m.b = append(m.b, 0)
	}
}

// addFlags sets flags of the message that was built last.
func (m *builder) addFlags(flags uint16) {
	ne := binary.NativeEndian
	ne.PutUint16(m.b[m.start+6:], ne.Uint16(m.b[m.start+6:])|flags)
}

func (m *builder) bytes(v ...byte) { m.b = append(m.b, v...) }

func (m *builder) word(v uint32) { m.b = binary.NativeEndian.AppendUint32(m.b, v) }

func (m *builder) attribute(kind uint16, value []byte) {
	at := m.open(kind)
	m.b = append(m.b, value...)
	m.close(at)
}

func (m *builder) attribute32(kind uint16, v uint32) {
	at := m.open(kind)
	m.word(v)
	m.close(at)
}

func (m *builder) attribute8(kind uint16, v uint8) {
	at := m.open(kind)
	m.bytes(v)
	m.close(at)
}

// text is a NUL-terminated string.
func (m *builder) text(kind uint16, v string) {
	at := m.open(kind)
	m.b = append(append(m.b, v...), 0)
	m.close(at)
}

func (m *builder) open(kind uint16) int {
	at := len(m.b)
	m.b = binary.NativeEndian.AppendUint16(m.b, 0)
	m.b = binary.NativeEndian.AppendUint16(m.b, kind)
	return at
}

func (m *builder) close(at int) {
	binary.NativeEndian.PutUint16(m.b[at:], uint16(len(m.b)-at)) //nolint:gosec // as above
	m.pad()
}

// errorOf reads the answer to a request (struct nlmsgerr): nil for an ACK. The
// kernel's own words are appended where it has some (NETLINK_EXT_ACK).
func errorOf(h header, payload []byte) error {
	if len(payload) < 4 {
		return errTruncated
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

func extendedText(h header, payload []byte) string {
	if h.flags&unix.NLM_F_ACK_TLVS == 0 || len(payload) < 4+unix.SizeofNlMsghdr {
		return ""
	}
	skip := 4 + unix.SizeofNlMsghdr
	if h.flags&unix.NLM_F_CAPPED == 0 {
		// The whole request follows, then the attributes.
		skip = 4 + align(int(binary.NativeEndian.Uint32(payload[4:])))
	}
	if skip < 0 || skip > len(payload) {
		return ""
	}
	for a := (attributes{rest: payload[skip:]}); a.next(); {
		if a.kind == nl.NLMSGERR_ATTR_MSG {
			return a.string()
		}
	}
	return ""
}
