package wire_test

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	binder "multihomed/internal/binder/wire"
	"multihomed/internal/holding/wire"
)

func TestMessagesSurviveTheWay(t *testing.T) {
	t.Parallel()
	dns := &binder.DNS{Server4: netip.MustParseAddr("192.0.2.53"), Resolvers: []netip.Addr{netip.MustParseAddr("2001:db8::1")}}
	for _, r := range []wire.Request{{Op: wire.Policy}, {Op: wire.Hold, Link: "wan1"}, {Op: wire.Keep, Link: "wan1", DNS: dns}} {
		datagram, err := wire.Encode(r)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := wire.DecodeRequest(datagram); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%s: %+v, %v", datagram, got, err)
		}
	}
	for op, a := range map[wire.Op]wire.Answer{
		wire.Policy: {Group: &wire.Group{Name: "multihomed", GID: new(uint32(7))}}, wire.Keep: {},
		wire.Hold: {Value: 0x81000000, Mask: 0xff000000, DNS: dns, Note: "a note"},
	} {
		datagram, err := wire.Encode(a)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := wire.DecodeAnswer(datagram, op); err != nil || !reflect.DeepEqual(got, a) {
			t.Errorf("%s: %+v, %v", datagram, got, err)
		}
	}
	if _, err := wire.Encode(wire.Answer{Error: strings.Repeat("x", wire.Max)}); err == nil {
		t.Error("a message that is too long is sent")
	}
}

func TestWrongMessagesAreRefused(t *testing.T) {
	t.Parallel()
	for _, datagram := range []string{
		"", "{", "null", "{}", `{"op":"drop"}`, `{"op":"hold"}`, `{"op":"hold","link":"a/b"}`, `{"op":"keep","link":"wan1"}`,
		`{"op":"policy","more":1}`, `{"op":"policy"}{}`, `{"op":"hold","link":"wan1"}` + strings.Repeat(" ", wire.Max),
	} {
		if r, err := wire.DecodeRequest([]byte(datagram)); err == nil {
			t.Errorf("%.30q is read as %+v", datagram, r)
		}
	}
	for datagram, op := range map[string]wire.Op{
		"{}": wire.Hold, "null": wire.Policy, `{"value":1,"mask":1}`: wire.Hold, `{"value":2,"mask":1,"dns":{}}`: wire.Hold, `{"old":1}`: wire.Keep,
	} {
		if a, err := wire.DecodeAnswer([]byte(datagram), op); err == nil {
			t.Errorf("%q is read as %+v", datagram, a)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"op":"hold","link":"wan1"}`))
	f.Fuzz(func(t *testing.T, datagram []byte) {
		r, err := wire.DecodeRequest(datagram)
		if err != nil {
			return
		}
		again, err := wire.Encode(r)
		if err != nil {
			return // Escapes may make it longer.
		}
		if got, err := wire.DecodeRequest(again); err != nil || got.Op != r.Op {
			t.Errorf("%s: %+v, %v", again, got, err)
		}
	})
}
