package nlmsg_test

import (
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
)

// TestRoundTrip reads what a Builder wrote: two messages, with attributes inside of one.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	var m nlmsg.Builder
	m.Begin(unix.RTM_NEWRULE, unix.NLM_F_REQUEST, 7)
	m.Bytes(1, 2, 3, 4)
	at := m.Open(5 | unix.NLA_F_NESTED)
	m.Attribute32(6, 0x01020304)
	m.Attribute8(7, 8)
	m.Text(9, "wan0")
	m.Close(at)
	m.End()
	m.Begin(unix.RTM_DELRULE, 0, 8)
	m.End()
	m.AddFlags(unix.NLM_F_ACK)

	h, payload, rest, err := nlmsg.Next(m.B)
	if err != nil || h.Kind != unix.RTM_NEWRULE || h.Flags != unix.NLM_F_REQUEST || h.Seq != 7 {
		t.Fatalf("header %+v, %v", h, err)
	}
	outer := nlmsg.Attributes{Rest: payload[4:]}
	if !outer.Next() || outer.Kind != 5 {
		t.Fatalf("attribute %d", outer.Kind)
	}
	var number uint32
	var small uint8
	var name string
	for a := (nlmsg.Attributes{Rest: outer.Value}); a.Next(); {
		switch a.Kind {
		case 6:
			number = a.Uint32()
		case 7:
			small = a.Uint8()
		case 9:
			name = a.Text()
		}
	}
	if number != 0x01020304 || small != 8 || name != "wan0" || outer.Next() {
		t.Errorf("read %#x, %d, %q", number, small, name)
	}
	h, payload, rest, err = nlmsg.Next(rest)
	if err != nil || h.Seq != 8 || h.Flags != unix.NLM_F_ACK || len(payload) > 0 || len(rest) > 0 {
		t.Errorf("second header %+v with %d bytes, %d left, %v", h, len(payload), len(rest), err)
	}
	if _, _, _, err := nlmsg.Next(m.B[:unix.SizeofNlMsghdr+2]); !errors.Is(err, nlmsg.ErrTruncated) {
		t.Errorf("half a message: %v", err)
	}
}

// TestErrorOf reads verdicts of the kernel.
func TestErrorOf(t *testing.T) {
	t.Parallel()
	verdict := func(code int32, more ...byte) []byte {
		return append(binary.NativeEndian.AppendUint32(nil, uint32(code)), more...)
	}
	if err := nlmsg.ErrorOf(nlmsg.Header{}, verdict(0)); err != nil {
		t.Errorf("an acknowledgement: %v", err)
	}
	if err := nlmsg.ErrorOf(nlmsg.Header{}, verdict(-int32(unix.EEXIST))); !errors.Is(err, unix.EEXIST) {
		t.Errorf("an errno: %v", err)
	}
	if err := nlmsg.ErrorOf(nlmsg.Header{}, []byte{1}); !errors.Is(err, nlmsg.ErrTruncated) {
		t.Errorf("one byte: %v", err)
	}
	var said nlmsg.Builder
	said.Text(1, "Route already exists") // NLMSGERR_ATTR_MSG
	request := make([]byte, unix.SizeofNlMsghdr)
	err := nlmsg.ErrorOf(nlmsg.Header{Flags: unix.NLM_F_ACK_TLVS | unix.NLM_F_CAPPED}, verdict(-int32(unix.EEXIST), append(request, said.B...)...))
	if !errors.Is(err, unix.EEXIST) || err.Error() != "Route already exists: file exists" {
		t.Errorf("the kernel's own words: %v", err)
	}
	var names nlmsg.Builder
	names.Attribute32(2, 36) // NLMSGERR_ATTR_OFFS
	answer := verdict(-int32(unix.EEXIST), append(request, names.B...)...)
	if got := nlmsg.BadAttribute(nlmsg.Header{Flags: unix.NLM_F_ACK_TLVS | unix.NLM_F_CAPPED}, answer); got != 36 {
		t.Errorf("the bad attribute is at %d", got)
	}
	if got := nlmsg.BadAttribute(nlmsg.Header{}, answer); got != 0 {
		t.Errorf("an attribute at %d in an answer without attributes", got)
	}
}

// FuzzNext reads anything as messages with attributes: it ends, and reads nothing outside.
func FuzzNext(f *testing.F) {
	var m nlmsg.Builder
	m.Begin(unix.RTM_NEWROUTE, 0, 1)
	m.Text(1, "a")
	m.End()
	f.Add(m.B)
	f.Add([]byte{16, 0, 0, 0, 2, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		for all := len(b); len(b) > 0; {
			h, payload, rest, err := nlmsg.Next(b)
			if err != nil {
				break
			}
			if len(rest) >= len(b) || len(payload) > all {
				t.Fatalf("%d of %d bytes are left, with %d of payload", len(rest), len(b), len(payload))
			}
			read := 0
			for a := (nlmsg.Attributes{Rest: payload}); a.Next(); {
				read += unix.SizeofNlAttr + len(a.Value)
				a.Uint8()
				a.Uint16()
				a.Uint32()
				a.Text()
			}
			if read > len(payload) {
				t.Fatalf("attributes of %d bytes in %d", read, len(payload))
			}
			if err := nlmsg.ErrorOf(h, payload); err != nil && err.Error() == "" {
				t.Fatal("an error without words")
			}
			b = rest
		}
	})
}
