package wire_test

import (
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

func FuzzDecode(f *testing.F) {
	f.Add([]byte("\x01wan0"))
	f.Add([]byte("\x01\x02text"))
	f.Fuzz(func(t *testing.T, datagram []byte) {
		if link, err := wire.DecodeRequest(datagram); err == nil {
			if again, err := wire.EncodeRequest(nil, link); err != nil || string(again) != string(datagram) {
				t.Errorf("%q, %v", again, err)
			}
		}
		if a, err := wire.DecodeAnswer(datagram); err == nil {
			if again := wire.EncodeAnswer(nil, a); string(again) != string(datagram) {
				t.Errorf("%q", again)
			}
		}
	})
}
