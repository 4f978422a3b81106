package server

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/godbus/dbus/v5"
)

// Bounds of an incoming message, in bytes. What is longer is skipped and not held: any user may send
// 32 MiB (max_message_size of dbus-daemon).
const (
	mostFields = 8 << 10
	mostBody   = 64 << 10
)

// fixedSize is the part of a header that every message has.
const fixedSize = 16

// A frame is a message whose header was read and whose body was not.
type frame struct {
	kind   dbus.Type
	flags  dbus.Flags
	serial uint32
	header
	// raw is the whole message, nil if it was too long.
	raw []byte
	// bodySize are its last bytes.
	bodySize int
}

// header are the fields that the bus has checked, or made (the sender).
type header struct {
	path                                                   dbus.ObjectPath
	iface, member, errName, destination, sender, signature string
	replySerial                                            uint32
}

var errLong = errors.New("a header is too long")

// readFrame reads the next message. A long body is skipped. A message whose header cannot be
// read is skipped, too: then ok is false.
func readFrame(r *bufio.Reader) (f frame, ok bool, err error) {
	fixed, err := r.Peek(fixedSize)
	if err != nil {
		return f, false, err
	}
	var order binary.ByteOrder = binary.LittleEndian
	switch fixed[0] {
	case 'l':
	case 'B':
		order = binary.BigEndian
	default:
		return f, false, fmt.Errorf("a message of the bus begins with %#x", fixed[0])
	}
	f.kind, f.flags = dbus.Type(fixed[1]), dbus.Flags(fixed[2])
	body, fields := int64(order.Uint32(fixed[4:])), int64(order.Uint32(fixed[12:]))
	f.serial = order.Uint32(fixed[8:])
	head := fixedSize + (fields+7)&^7
	if fields > mostFields {
		return f, false, discard(r, head+body)
	}
	isLong := body > mostBody
	size := head
	if !isLong {
		size += body
	}
	raw := make([]byte, size)
	if _, err := io.ReadFull(r, raw); err != nil {
		return f, false, err
	}
	if isLong {
		if err := discard(r, body); err != nil {
			return f, false, err
		}
	}
	if f.header, err = parseHeader(raw[fixedSize:fixedSize+fields], order); err != nil {
		return f, false, nil //nolint:nilerr // nobody can be answered
	}
	if !isLong {
		f.raw, f.bodySize = raw, int(body)
	}
	return f, true, nil
}

// discard skips bytes without holding them.
func discard(r *bufio.Reader, n int64) error {
	_, err := io.CopyN(io.Discard, r, n)
	return err
}

// parseHeader reads the array of fields. A field that is not known is skipped if its type is basic.
func parseHeader(data []byte, order binary.ByteOrder) (h header, err error) {
	c := cursor{data: data, order: order}
	for c.at < len(c.data) && c.err == nil {
		c.align(8)
		if c.at >= len(c.data) {
			break
		}
		field := dbus.HeaderField(c.byte())
		var text string
		var number uint32
		switch kind := c.signature(); kind {
		case "s", "o":
			text = c.string()
		case "g":
			text = c.signature()
		case "u":
			number = c.uint32()
		default:
			return h, errors.New("a field of another type")
		}
		switch field {
		case dbus.FieldPath:
			h.path = dbus.ObjectPath(text)
		case dbus.FieldInterface:
			h.iface = text
		case dbus.FieldMember:
			h.member = text
		case dbus.FieldErrorName:
			h.errName = text
		case dbus.FieldReplySerial:
			h.replySerial = number
		case dbus.FieldDestination:
			h.destination = text
		case dbus.FieldSender:
			h.sender = text
		case dbus.FieldSignature:
			h.signature = text
		case dbus.FieldUnixFDs: // The bus passes none to who has not asked for them.
		}
	}
	return h, c.err
}

// cursor reads values within bounds.
type cursor struct {
	data  []byte
	order binary.ByteOrder
	at    int
	err   error
}

func (c *cursor) align(n int) { c.at = (c.at + n - 1) &^ (n - 1) }

func (c *cursor) take(n int) []byte {
	if c.err != nil || n < 0 || c.at > len(c.data) || n > len(c.data)-c.at {
		c.err = errLong
		return nil
	}
	out := c.data[c.at : c.at+n]
	c.at += n
	return out
}

func (c *cursor) byte() byte {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) uint32() uint32 {
	c.align(4)
	if b := c.take(4); b != nil {
		return c.order.Uint32(b)
	}
	return 0
}

func (c *cursor) string() string {
	n := c.uint32()
	if n > mostFields {
		c.err = errLong
		return ""
	}
	out := string(c.take(int(n)))
	c.take(1) // the zero at its end
	return out
}

func (c *cursor) signature() string {
	out := string(c.take(int(c.byte())))
	c.take(1)
	return out
}

// knownFlags are those of the specification. Others have no meaning for us, and godbus refuses them.
const knownFlags = dbus.FlagNoReplyExpected | dbus.FlagNoAutoStart | dbus.FlagAllowInteractiveAuthorization

// body reads the values of a message. The caller has checked its signature.
func (f *frame) body() ([]any, error) {
	if f.signature == "" {
		return nil, nil
	}
	f.raw[2] = byte(f.flags & knownFlags)
	m, err := dbus.DecodeMessage(bytes.NewReader(f.raw))
	if err != nil {
		return nil, err
	}
	return m.Body, nil
}

// encode writes a message with a serial number.
func encode(m *dbus.Message, serial uint32) ([]byte, error) {
	var b bytes.Buffer
	if err := m.EncodeTo(&b, binary.LittleEndian); err != nil {
		return nil, &encodingError{err}
	}
	renumber(b.Bytes(), serial)
	return b.Bytes(), nil
}

// A body is values that were written once, to be sent many times. It is little-endian, as all that we
// send.
type body struct {
	signature dbus.Signature
	data      []byte
}

// write makes a body.
func write(values ...any) (body, error) {
	b := body{signature: dbus.SignatureOf(values...)}
	data, err := encode(&dbus.Message{Type: dbus.TypeMethodReply, Body: values, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldReplySerial: dbus.MakeVariant(uint32(1)), dbus.FieldSignature: dbus.MakeVariant(b.signature),
	}}, 1)
	if err != nil {
		return body{}, err
	}
	b.data = data[len(data)-int(binary.LittleEndian.Uint32(data[4:])):]
	return b, nil
}

// with puts a body behind the header of a message that has none. Both begin at a multiple of eight bytes.
func (b body) with(header []byte) []byte {
	binary.LittleEndian.PutUint32(header[4:], uint32(len(b.data))) //nolint:gosec // below the limit of godbus
	return append(header, b.data...)
}

// An encodingError says that values cannot be written, such as text that is not UTF-8.
type encodingError struct{ cause error }

func (e *encodingError) Error() string { return "encoding a message: " + e.cause.Error() }

func (e *encodingError) Unwrap() error { return e.cause }

// renumber sets the serial number of a message: godbus numbers those of its own connections alone.
func renumber(message []byte, serial uint32) { binary.LittleEndian.PutUint32(message[8:], serial) }
