package server_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/godbus/dbus/v5"

	"multihomed/internal/dbusapi/server"
)

// FuzzFrame: whatever comes from the bus, nothing breaks, little is held, and the next message is found.
func FuzzFrame(f *testing.F) {
	good, err := server.Encode(&dbus.Message{Type: dbus.TypeMethodCall, Body: []any{"x"}, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath("/a")), dbus.FieldMember: dbus.MakeVariant("M"), dbus.FieldSender: dbus.MakeVariant(":1.7"),
		dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf("x")),
	}}, 9)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:20])
	f.Add(append(bytes.Repeat([]byte{0xff}, 16), good...))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bufio.NewReader(bytes.NewReader(data))
		for {
			member, held, err := server.ReadFrame(r)
			if err != nil {
				return
			}
			if held > 16+8<<10+8+64<<10 || len(member) > 8<<10 {
				t.Errorf("%d bytes are held", held)
			}
		}
	})
}

// TestFrame: a body that is too long is skipped, its header is read, and the message behind it, too;
// a header that is too long is skipped whole.
func TestFrame(t *testing.T) {
	t.Parallel()
	message := func(member string, size int) []byte {
		body := string(bytes.Repeat([]byte("x"), size))
		data, err := server.Encode(&dbus.Message{Type: dbus.TypeMethodCall, Flags: 0, Body: []any{body}, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath("/a")), dbus.FieldMember: dbus.MakeVariant(member), dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(body)),
		}}, 9)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	long := make([]byte, 16+16<<10)
	copy(long, message("L", 1)[:16])
	binary.LittleEndian.PutUint32(long[4:], 0)
	binary.LittleEndian.PutUint32(long[12:], 16<<10)
	flags := message("Flags", 1)
	flags[2] = 0xf0
	r := bufio.NewReader(bytes.NewReader(bytes.Join([][]byte{message("A", 1), message("B", 1<<20), long, flags, message("C", 60<<10)}, nil)))
	for _, want := range []struct {
		member string
		isHeld bool
	}{{"A", true}, {"B", false}, {"", false}, {"Flags", true}, {"C", true}} {
		member, held, err := server.ReadFrame(r)
		if err != nil || member != want.member || (held > 0) != want.isHeld {
			t.Errorf("%q, %d bytes, %v; want %+v", member, held, err, want)
		}
	}
}
