package dbusapi_test

import (
	"encoding/binary"
	"io"
	"testing"

	"github.com/godbus/dbus/v5"

	"multihomed/internal/dbusapi"
	"multihomed/internal/status"
)

func model(last *dbusapi.Model, flap int) *dbusapi.Model {
	s := &status.Status{}
	for n := range 1000 {
		l := status.Link{Interface: "wan", Index: n + 1, Role: "uplink", Objects: objects}
		if n == 0 && flap%2 == 1 {
			l.Carrier = true
		}
		s.Links = append(s.Links, l)
	}
	return dbusapi.Of(s, dbusapi.Facts{}, last)
}

var objects = make([]status.Object, 20)

func BenchmarkModel(b *testing.B) {
	m := model(nil, 0)
	n := 0
	for b.Loop() {
		n++
		next := model(m, n)
		dbusapi.Changes(m, next, dbusapi.Measured{})
		m = next
	}
}

func BenchmarkManaged(b *testing.B) {
	m := model(nil, 0)
	for b.Loop() {
		out := make(map[dbus.ObjectPath]map[string]map[string]dbus.Variant, len(m.Links))
		for _, l := range m.Links {
			out[dbusapi.LinkPath(l.Index)] = map[string]map[string]dbus.Variant{dbusapi.LinkInterface: l.All(dbusapi.Measured{})}
		}
		msg := &dbus.Message{Type: dbus.TypeSignal, Body: []any{out}, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath: dbus.MakeVariant(dbusapi.Path), dbus.FieldInterface: dbus.MakeVariant("a.b"), dbus.FieldMember: dbus.MakeVariant("c"),
			dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(out))}}
		if err := msg.EncodeTo(io.Discard, binary.LittleEndian); err != nil {
			b.Fatal(err)
		}
	}
}
