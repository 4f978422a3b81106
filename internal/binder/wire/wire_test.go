package wire_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"multihomed/internal/binder/wire"
)

func TestRequestsSurviveTheWayAndWrongOnesAreRefused(t *testing.T) {
	t.Parallel()
	for _, link := range []string{"wan0", "a", strings.Repeat("x", 15), "caf\xe9"} {
		datagram, err := wire.EncodeRequest(nil, link)
		if err != nil {
			t.Fatal(err)
		}
		if len(datagram) > wire.MaxRequest {
			t.Errorf("%q takes %d bytes", link, len(datagram))
		}
		if got, err := wire.DecodeRequest(datagram); err != nil || got != link {
			t.Errorf("%q: %q, %v", link, got, err)
		}
	}
	for _, datagram := range []string{"", "\x00wan0", "\x02wan0", "\x01", "\x01wan 0", "\x01../x", "\x01" + strings.Repeat("x", 16), "\x01a\x00"} {
		if got, err := wire.DecodeRequest([]byte(datagram)); err == nil {
			t.Errorf("%q is read as %q", datagram, got)
		}
	}
	if _, err := wire.EncodeRequest(nil, "a/b"); err == nil {
		t.Error("a link a/b is sent")
	}
}

func TestAnswersSurviveTheWayAndWrongOnesAreRefused(t *testing.T) {
	t.Parallel()
	for code := wire.Bound; code <= wire.Failed; code++ {
		a := wire.Answer{Code: code, Text: "because; to fix: this"}
		if got, err := wire.DecodeAnswer(wire.EncodeAnswer(nil, a)); err != nil || got != a {
			t.Errorf("%+v: %+v, %v", a, got, err)
		}
	}
	for _, datagram := range []string{"", "\x01", "\x02\x01", "\x01\x00", "\x01\x09", "\x01\x01" + strings.Repeat("x", wire.MaxText+1)} {
		if got, err := wire.DecodeAnswer([]byte(datagram)); err == nil {
			t.Errorf("%.20q is read as %+v", datagram, got)
		}
	}
}

func TestALongTextIsCutBetweenCharacters(t *testing.T) {
	t.Parallel()
	for n := range 4 {
		a, err := wire.DecodeAnswer(wire.EncodeAnswer(nil, wire.Answer{Code: wire.Failed, Text: strings.Repeat("x", n) + strings.Repeat("€", wire.MaxText)}))
		if err != nil || !utf8.ValidString(a.Text) || len(a.Text) < wire.MaxText-utf8.UTFMax {
			t.Errorf("%d bytes, %v", len(a.Text), err)
		}
	}
}

func TestChangesSurviveTheWayAndWrongOnesAreRefused(t *testing.T) {
	t.Parallel()
	v4, v6 := netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("2001:db8::53")
	for _, d := range []wire.DNS{
		{},
		{Server4: v4},
		{Server6: v6},
		{Server4: v4, Server6: v6, Resolvers: []netip.Addr{v6, v4}},
		{Server4: v4, Resolvers: slices.Repeat([]netip.Addr{v4}, wire.MaxResolvers)},
	} {
		datagram := wire.EncodeChange(nil, d)
		if !wire.IsChange(datagram) || len(datagram) > wire.MaxChange {
			t.Errorf("%+v: %x", d, datagram)
		}
		if got, err := wire.DecodeChange(datagram); err != nil || !got.Equal(d) {
			t.Errorf("%+v: %+v, %v", d, got, err)
		}
		if _, err := wire.DecodeRequest(datagram); err == nil {
			t.Errorf("%+v is a request", d)
		}
	}
	if got, err := wire.DecodeChange(wire.EncodeChange(nil, wire.DNS{Resolvers: slices.Repeat([]netip.Addr{v4}, wire.MaxResolvers+1)})); err != nil || len(got.Resolvers) != wire.MaxResolvers {
		t.Errorf("%+v, %v", got, err)
	}
	for _, datagram := range []string{"", "\x01", "\x01\x00", "\x02\x00" + zeros(32), "\x01\x00" + zeros(31), "\x01\x00" + zeros(48), "\x01\x00" + zeros(32+17*16), "\x01wan0"} {
		if got, err := wire.DecodeChange([]byte(datagram)); err == nil {
			t.Errorf("%q is read as %+v", datagram, got)
		}
	}
}

func zeros(n int) string { return strings.Repeat("\x00", n) }

func FuzzDecode(f *testing.F) {
	f.Add([]byte("\x01wan0"))
	f.Add([]byte("\x01\x02text"))
	f.Fuzz(func(t *testing.T, datagram []byte) {
		if link, err := wire.DecodeRequest(datagram); err == nil {
			if again, err := wire.EncodeRequest(nil, link); err != nil || string(again) != string(datagram) {
				t.Errorf("%q, %v", again, err)
			}
		}
		if d, err := wire.DecodeChange(datagram); err == nil {
			if again, err := wire.DecodeChange(wire.EncodeChange(nil, d)); err != nil || !again.Equal(d) {
				t.Errorf("%+v, %v", again, err)
			}
		}
		if a, err := wire.DecodeAnswer(datagram); err == nil {
			if again := wire.EncodeAnswer(nil, a); string(again) != string(datagram) {
				t.Errorf("%q", again)
			}
		}
	})
}
