package wire_test

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"multihomed/internal/binder/wire"
)

func TestUsersSurviveTheWayAndWrongOnesAreRefused(t *testing.T) {
	t.Parallel()
	v4 := netip.MustParseAddr("192.0.2.53")
	whole := wire.Users{First: 1000, Last: 1999, Value: 0x82000000, Mask: 0xff000000}
	newMap, oldMap := whole, whole
	newMap.Names, newMap.DNS = wire.NewMap, wire.DNS{Server4: v4, Resolvers: slices.Repeat([]netip.Addr{v4}, wire.MaxResolvers)}
	oldMap.Names = wire.OldMap
	for _, u := range []wire.Users{whole, newMap, oldMap} {
		datagram := wire.EncodeUsers(nil, u)
		if !wire.IsUsers(datagram) || wire.IsChange(datagram) || len(datagram) > wire.MaxUsers {
			t.Errorf("%+v: %x", u, datagram)
		}
		if got, err := wire.DecodeUsers(datagram); err != nil || !reflect.DeepEqual(got, u) {
			t.Errorf("%+v: %+v, %v", u, got, err)
		}
		if _, err := wire.DecodeRequest(datagram); err == nil {
			t.Errorf("%+v is a request for a cgroup", u)
		}
	}
	root, none, reversed, unmarked, outside, unknown := whole, whole, whole, whole, whole, whole
	root.First, none.First, none.Last, reversed.First = 0, 0, 0, 2000
	unmarked.Value, outside.Value, unknown.Names = 0, 1, wire.OldMap+1
	wrong := []string{"", "\x01", "\x01/", "\x01wan0", "\x02" + string(wire.EncodeUsers(nil, whole)[1:]), string(wire.EncodeUsers(nil, newMap)) + zeros(16)}
	for _, u := range []wire.Users{root, none, reversed, unmarked, outside, unknown} {
		wrong = append(wrong, string(wire.EncodeUsers(nil, u)))
	}
	for _, u := range []wire.Users{whole, newMap, oldMap} {
		text := string(wire.EncodeUsers(nil, u))
		wrong = append(wrong, text[:len(text)-1], text+"x", text+strings.Repeat("x", wire.MaxUsers))
	}
	for _, datagram := range wrong {
		if got, err := wire.DecodeUsers([]byte(datagram)); err == nil {
			t.Errorf("%q is read as %+v", datagram, got)
		}
	}
}

func FuzzDecodeUsers(f *testing.F) {
	f.Add(wire.EncodeUsers(nil, wire.Users{First: 1, Last: 2, Value: 1, Mask: 1, Names: wire.NewMap}))
	f.Fuzz(func(t *testing.T, datagram []byte) {
		u, err := wire.DecodeUsers(datagram)
		if err != nil {
			return
		}
		if again, err := wire.DecodeUsers(wire.EncodeUsers(nil, u)); err != nil || !reflect.DeepEqual(again, u) {
			t.Errorf("%+v, %v", again, err)
		}
	})
}
