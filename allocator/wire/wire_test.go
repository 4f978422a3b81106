package wire_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"multihomed/allocator/wire"
	"multihomed/routing"
)

// plain is a request of version 1, as its first client sends it.
const plain = `{"address":"192.168.5.113","ifname":"v0","addr_family":2,"cmd":0,"version":1}`

func TestRequestsOfVersion1(t *testing.T) {
	for text, want := range map[string]wire.Request{
		plain: {Version: 1, Family: routing.IPv4, Interface: "v0", Address: "192.168.5.113"},
		`{"address":"192.168.5.113","ifname":"v0","addr_family":2,"cmd":1,"version":1}`: {
			Command: wire.Release, Version: 1, Family: routing.IPv4, Interface: "v0", Address: "192.168.5.113",
		},
		`{"address":"some-id","ifname":"v0","tag":"mytag","addr_family":0,"cmd":0,"version":1}`: {
			Version: 1, Interface: "v0", Address: "some-id", Tag: "mytag",
		},
		`{"address":"a\/b \"c\" \\ ü","ifname":"eth0:1","addr_family":0,"cmd":0,"version":1}`: {
			Version: 1, Interface: "eth0:1", Address: `a/b "c" \ ü`,
		},
	} {
		got, refused := wire.DecodeRequest([]byte(text), false)
		if refused != nil || !cmp.Equal(got, want) {
			t.Errorf("%s: %v\n%s", text, refused, cmp.Diff(want, got))
		}
		if out, refused := want.Encode(); refused != nil || string(out) != text {
			t.Errorf("encoded: %s, %v\nwant     %s", out, refused, text)
		}
	}
}

func TestRequestsOfVersion2(t *testing.T) {
	request := wire.Request{
		Version: 2, Family: routing.IPv6, Interface: "wwan0", Address: "2001:db8::1", Tag: "modem",
		Transaction: 4294967295, Routing: true, Hold: true, Table: 10007,
	}
	const text = `{"version":2,"transaction":4294967295,"address":"2001:db8::1","ifname":"wwan0","tag":"modem",` +
		`"addr_family":10,"cmd":0,"routing":true,"hold":true,"table":10007}`
	out, refused := request.Encode()
	if refused != nil || string(out) != text {
		t.Errorf("encoded: %s, %v\nwant     %s", out, refused, text)
	}
	got, refused := wire.DecodeRequest([]byte(text), false)
	if refused != nil || got != request {
		t.Errorf("decoded: %+v, %v", got, refused)
	}
	one := strings.Replace(text, `"version":2`, `"version":1`, 1)
	want := request
	want.Version, want.Transaction, want.Routing, want.Hold, want.Table = 1, 0, false, false, 0
	if got, refused = wire.DecodeRequest([]byte(one), false); refused != nil || got != want {
		t.Errorf("version 1 knows nothing of version 2: %+v, %v", got, refused)
	}
}

// What is not as the first server's client sends it, but means the same.
func TestUnderstood(t *testing.T) {
	want := wire.Request{Version: 1, Family: routing.IPv6, Interface: "v0", Address: "2001:db8::1"}
	for _, text := range []string{
		`{"address":"2001:DB8:0:0::1","ifname":"v0","addr_family":10,"cmd":0,"version":1}`,
		` { "version" : 1 , "cmd":0,"addr_family":10,"ifname":"v0","address":"2001:db8::0.0.0.1" } ` + "\n",
		`{"address":"2001:db8::1","ifname":"v0","addr_family":10,"cmd":0,"version":1,"x":{"a":[1,{}]},"Cmd":9,"table":"?"}`,
		`{"address":"2001:db8::1","ifname":"\u0076\u0030","addr_family":10,"cmd":0,"version":1,"tag":""}`,
	} {
		if got, refused := wire.DecodeRequest([]byte(text), false); refused != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, refused)
		}
	}
}

// with replaces one member of a request of version 2.
func with(key, value string) string {
	members := map[string]string{
		"version": "2", "transaction": "7", "address": `"192.0.2.1"`, "ifname": `"v0"`, "addr_family": "2", "cmd": "0",
	}
	members[key] = value
	var parts []string
	for _, key := range []string{"version", "transaction", "address", "ifname", "tag", "addr_family", "cmd", "routing", "hold", "table"} {
		if members[key] != "" {
			parts = append(parts, `"`+key+`":`+members[key])
		}
	}
	return "{" + strings.Join(parts, ",") + "}"
}

func TestRefused(t *testing.T) {
	long := func(n int) string { return `"` + strings.Repeat("x", n) + `"` }
	for _, test := range []struct {
		code wire.Code
		text string
	}{
		{wire.Malformed, ""},
		{wire.Malformed, "[]"},
		{wire.Malformed, "null"},
		{wire.Malformed, "{"},
		{wire.Malformed, "7"},
		{wire.Malformed, plain + plain},
		{wire.Malformed, plain + "\x00"},
		{wire.Malformed, plain[:len(plain)-1]},
		{wire.Malformed, plain[:len(plain)-1] + ",}"},
		{wire.Malformed, plain[:len(plain)-1] + `,"cmd":0}`},
		{wire.Malformed, plain[:len(plain)-1] + `,"x":1,"x":1}`},
		{wire.Malformed, plain[:len(plain)-1] + `,"tag":"` + "\xff" + `"}`},
		{wire.Malformed, plain[:len(plain)-1] + `,"tag":"\ud800"}`},
		{wire.Malformed, strings.Replace(plain, ",", ",,", 1)},
		{wire.Malformed, strings.ReplaceAll(plain, `"`, `'`)},
		{wire.Malformed, strings.Repeat("[", 1024)},
		{wire.Malformed, `{"x":` + strings.Repeat("[", 500) + strings.Repeat("]", 500) + "}x"},
		{wire.BadVersion, "{}"},
		{wire.BadVersion, with("version", "")},
		{wire.BadVersion, with("version", "0")},
		{wire.BadVersion, with("version", "3")},
		{wire.BadVersion, with("version", "99999999999999999999999")},
		{wire.Malformed, with("version", `"2"`)},
		{wire.Malformed, with("version", "2.0")},
		{wire.Malformed, with("version", "-1")},
		{wire.Malformed, with("cmd", "0.5")},
		{wire.Malformed, with("cmd", "-0")},
		{wire.Malformed, with("cmd", "1e0")},
		{wire.Malformed, with("cmd", "null")},
		{wire.Malformed, with("cmd", `"0"`)},
		{wire.BadCommand, with("cmd", "")},
		{wire.BadCommand, with("cmd", "2")},
		{wire.BadCommand, with("cmd", "256")},
		{wire.BadFamily, with("addr_family", "")},
		{wire.BadFamily, with("addr_family", "3")},
		{wire.BadFamily, with("addr_family", "258")},
		{wire.BadFamily, strings.Replace(with("addr_family", "0"), "}", `,"routing":true}`, 1)},
		{wire.NoInterface, with("ifname", "")},
		{wire.NoInterface, with("ifname", `""`)},
		{wire.NoInterface, with("ifname", `"."`)},
		{wire.NoInterface, with("ifname", `".."`)},
		{wire.NoInterface, with("ifname", `"a/b"`)},
		{wire.NoInterface, with("ifname", `"a b"`)},
		{wire.NoInterface, with("ifname", `"a\u00a0b"`)},
		{wire.NoInterface, with("ifname", `"a\u0000"`)},
		{wire.Malformed, with("ifname", "7")},
		{wire.TooLong, with("ifname", long(16))},
		{wire.BadAddress, with("address", "")},
		{wire.BadAddress, with("address", `""`)},
		{wire.BadAddress, with("address", `"some-id"`)},
		{wire.BadAddress, with("address", `"192.0.2.1/24"`)},
		{wire.BadAddress, with("address", `"192.0.2.01"`)},
		{wire.BadAddress, with("address", `"2001:db8::1"`)},
		{wire.BadAddress, strings.Replace(with("address", `"192.0.2.1"`), `"addr_family":2`, `"addr_family":10`, 1)},
		{wire.BadAddress, strings.Replace(with("address", `"::ffff:192.0.2.1"`), `"addr_family":2`, `"addr_family":10`, 1)},
		{wire.BadAddress, strings.Replace(with("address", `"fe80::1%v0"`), `"addr_family":2`, `"addr_family":10`, 1)},
		{wire.BadAddress, strings.Replace(with("address", `"a\u001b[2J"`), `"addr_family":2`, `"addr_family":0`, 1)},
		{wire.TooLong, with("address", long(46))},
		{wire.TooLong, with("tag", long(128))},
		{wire.Malformed, with("tag", `"a\nb"`)},
		{wire.Malformed, with("routing", "1")},
		{wire.Malformed, with("hold", `"yes"`)},
		{wire.Malformed, with("table", "-3")},
		{wire.Malformed, with("table", "4294967296")},
		{wire.Malformed, with("transaction", "4294967296")},
		{wire.TooLong, with("x", "") + strings.Repeat(" ", 1024)},
	} {
		r, refused := wire.DecodeRequest([]byte(test.text), false)
		if refused == nil || refused.Code != test.code {
			t.Errorf("%.80q: %v, want code %s", test.text, refused, test.code)
			continue
		}
		if len(refused.Text) > 200 || strings.ContainsAny(refused.Text, "\x1b\n\x00") {
			t.Errorf("%.80q: the text is %q", test.text, refused.Text)
		}
		if strings.HasPrefix(test.text, `{"version":2,"transaction":7,`) && (r.Version != 2 || r.Transaction != 7) {
			t.Errorf("%.80q: version %d and transaction %d are lost", test.text, r.Version, r.Transaction)
		}
	}
}

// Half a request is refused, and answered to whoever sent it.
func TestTruncated(t *testing.T) {
	text := with("table", "10000")
	for n := range len(text) {
		r, refused := wire.DecodeRequest([]byte(text[:n]), true)
		if refused == nil || refused.Code != wire.TooLong {
			t.Fatalf("%q: %v", text[:n], refused)
		}
		if n > len(`{"version":2,"transaction":7,`) && (r.Version != 2 || r.Transaction != 7) {
			t.Fatalf("%q: version %d and transaction %d are lost", text[:n], r.Version, r.Transaction)
		}
	}
	if _, refused := wire.DecodeRequest([]byte(text), false); refused != nil {
		t.Error(refused)
	}
}

// The longest request that can be is one that the server reads.
func TestLongestRequest(t *testing.T) {
	r := wire.Request{
		Version: 2, Interface: strings.Repeat(`"`, 15), Address: strings.Repeat(`\`, 45), Tag: strings.Repeat("/", 127),
		Transaction: 1<<32 - 1, Hold: true, Table: 1<<32 - 1, Command: wire.Release,
	}
	out, refused := r.Encode()
	// The first server reads 512 bytes.
	if refused != nil || len(out) > 512 {
		t.Fatalf("%d bytes, %v", len(out), refused)
	}
	if got, refused := wire.DecodeRequest(out, false); refused != nil || got != r {
		t.Errorf("decoded: %+v, %v", got, refused)
	}
}

func TestResponses(t *testing.T) {
	for text, want := range map[string]wire.Response{
		`{"version":1,"cmd":2,"table":10000,"lease_expires":4095}`: {Version: 1, Table: 10000, Expires: 4095},
		`{"version":1,"cmd":2,"table":0,"lease_expires":0}`:        {Version: 1},
		`{"version":2,"cmd":2,"table":10000,"lease_expires":4095,"lifetime":3600,"transaction":7,"routing":true}`: {
			Version: 2, Table: 10000, Expires: 4095, Lifetime: 3600, Transaction: 7, Routing: true,
		},
		`{"version":1,"cmd":3,"code":"quota","error":"too many"}`: {
			Version: 1, Refused: &wire.Error{Code: wire.Quota, Text: "too many"},
		},
		`{"version":2,"cmd":3,"transaction":7,"code":"busy","error":"later"}`: {
			Version: 2, Transaction: 7, Refused: &wire.Error{Code: wire.Busy, Text: "later"},
		},
	} {
		got, err := wire.DecodeResponse([]byte(text))
		if err != nil || !cmp.Equal(got, want) {
			t.Errorf("%s: %v\n%s", text, err, cmp.Diff(want, got))
		}
		if out := want.Encode(); string(out) != text {
			t.Errorf("encoded: %s\nwant     %s", out, text)
		}
	}
}

func TestGarbageForAResponse(t *testing.T) {
	for _, text := range []string{
		"", "{}", "[]", "null", `{"version":1}`, `{"version":1,"cmd":0,"table":1,"lease_expires":1}`,
		`{"version":1,"cmd":2,"table":10000}`, `{"version":1,"cmd":2,"lease_expires":10000}`,
		`{"version":1,"cmd":2,"table":10000,"lease_expires":4095`, `{"version":1,"cmd":2,"table":-1,"lease_expires":4095}`,
		`{"version":1,"cmd":2,"table":10000,"table":10001,"lease_expires":4095}`,
		`{"version":1,"cmd":2,"table":10000.5,"lease_expires":4095}`, `{"version":1,"cmd":2,"table":4294967296,"lease_expires":4095}`,
		`{"version":2,"cmd":2,"table":10000,"lease_expires":4095}`, `{"version":2,"cmd":2,"table":10000,"lease_expires":4095,"transaction":7}`,
		`{"version":2,"cmd":2,"table":10000,"lease_expires":4095,"transaction":7,"lifetime":5,"routing":1}`,
		`{"version":3,"cmd":2,"table":10000,"lease_expires":4095,"transaction":7}`, `{"version":1,"cmd":3,"error":"why"}`,
		`{"version":1,"cmd":3,"code":7}`, `{"version":1,"cmd":3,"code":"x","error":7}`, strings.Repeat(" ", 1025),
	} {
		if got, err := wire.DecodeResponse([]byte(text)); err == nil {
			t.Errorf("%.80q is taken for %+v", text, got)
		} else if strings.Contains(err.Error(), string(wire.Malformed)) {
			t.Errorf("%.80q: %v looks like a refusal", text, err)
		}
	}
}

// However long the text is, a client of the version can read the refusal.
func TestRefusalsAreCut(t *testing.T) {
	for _, unit := range []string{"x", `"`, "\x01", "ü", "😀", "\xff", "/"} {
		for n := range 300 {
			for version, limit := range map[int]int{1: 253, 2: wire.MaxResponse} {
				text := strings.Repeat(unit, n*version*2)
				r := wire.Response{Version: version, Transaction: 1<<32 - 1, Refused: &wire.Error{Code: wire.NotAllowed, Text: text}}
				out := r.Encode()
				got, err := wire.DecodeResponse(out)
				switch {
				case len(out) > limit || !json.Valid(out):
					t.Fatalf("%d bytes for version %d: %s", len(out), version, out)
				case err != nil:
					t.Fatal(err)
				case unit != "\xff" && !strings.HasPrefix(text, got.Refused.Text):
					t.Fatalf("%q is not the beginning of %q", got.Refused.Text, text)
				case len(out) < limit-6 && unit != "\xff" && got.Refused.Text != text:
					t.Fatalf("only %d bytes of %d are used, and %q was cut", len(out), limit, text)
				}
			}
		}
	}
}

// A server that does not know the version of a request answers in version 1.
func TestAnswerToUnknownVersion(t *testing.T) {
	request, refused := wire.DecodeRequest([]byte(with("version", "3")), false)
	out := wire.Response{Version: request.Version, Transaction: request.Transaction, Refused: refused}.Encode()
	if want := `{"version":1,"cmd":3,"code":"version","error":"version 3 of the protocol is unknown; send 1 or 2"}`; string(out) != want {
		t.Errorf("got  %s\nwant %s", out, want)
	}
}

func TestTemporary(t *testing.T) {
	for code, want := range map[wire.Code]bool{wire.Busy: true, wire.Database: true, wire.Quota: false, wire.Malformed: false} {
		err := &wire.Error{Code: code, Text: "why"}
		if err.Temporary() != want || err.Error() != "why ("+string(code)+")" {
			t.Errorf("%v is temporary: %t", err, err.Temporary())
		}
	}
}
