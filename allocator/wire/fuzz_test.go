package wire_test

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"multihomed/allocator/wire"
)

// What is accepted is one request only: written and read again it is the same,
// and a plain JSON reader finds the same values.
func FuzzDecodeRequest(f *testing.F) {
	f.Add([]byte(plain), false)
	f.Add([]byte(with("tag", `"a\/b"`)), false)
	f.Add([]byte(with("version", "1")), true)
	f.Add([]byte(`{"version":2,"transaction":1,"address":"fe80::1","ifname":"v0","addr_family":10,"cmd":1,"routing":true}`), false)
	f.Add([]byte(`[]`), false)
	f.Fuzz(func(t *testing.T, datagram []byte, truncated bool) {
		r, refused := wire.DecodeRequest(datagram, truncated)
		if refused != nil {
			answer(t, r, refused)
			return
		}
		if truncated || len(datagram) > wire.MaxRequest {
			t.Fatal("half a request is accepted")
		}
		out, refused := r.Encode()
		if refused != nil || len(out) > wire.MaxRequest {
			t.Fatalf("%+v was accepted, and cannot be sent: %v", r, refused)
		}
		again, refused := wire.DecodeRequest(out, false)
		if refused != nil || again != r {
			t.Fatalf("%s: %v\n%s", out, refused, cmp.Diff(r, again))
		}
		var other struct {
			Interface string `json:"ifname"`
			Tag       string `json:"tag"`
		}
		if err := json.Unmarshal(out, &other); err != nil || other.Interface != r.Interface || other.Tag != r.Tag {
			t.Fatalf("%s is read as %+v, %v", out, other, err)
		}
	})
}

// answer checks that a refusal can be sent to whoever is refused.
func answer(t *testing.T, r wire.Request, refused *wire.Error) {
	t.Helper()
	out := wire.Response{Version: r.Version, Transaction: r.Transaction, Refused: refused}.Encode()
	got, err := wire.DecodeResponse(out)
	switch {
	case err != nil:
		t.Fatalf("%s: %v", out, err)
	case got.Refused == nil || got.Refused.Code != refused.Code:
		t.Fatalf("%s lost the code %s", out, refused.Code)
	case r.Version == 2 && got.Transaction != r.Transaction:
		t.Fatalf("%s lost the transaction %d", out, r.Transaction)
	case r.Version != 2 && (got.Version != 1 || len(out) > 253):
		t.Fatalf("%s is not for a client of version 1", out)
	}
}

func FuzzDecodeResponse(f *testing.F) {
	f.Add([]byte(`{"version":1,"cmd":2,"table":10000,"lease_expires":4095}`))
	f.Add([]byte(`{"version":2,"cmd":2,"table":10000,"lease_expires":4095,"lifetime":3600,"transaction":7,"routing":true}`))
	f.Add([]byte(`{"version":2,"cmd":3,"transaction":7,"code":"busy","error":"later"}`))
	f.Fuzz(func(t *testing.T, datagram []byte) {
		r, err := wire.DecodeResponse(datagram)
		if err != nil {
			return
		}
		out := r.Encode()
		again, err := wire.DecodeResponse(out)
		if err != nil || len(out) > wire.MaxResponse {
			t.Fatalf("%s: %v", out, err)
		}
		if r.Refused != nil { // a text of another server may be longer than ours
			if again.Refused == nil {
				t.Fatalf("%s: the refusal is lost", out)
			}
			r.Refused, again.Refused = nil, nil
		}
		if again != r {
			t.Fatalf("%s\n%s", out, cmp.Diff(r, again))
		}
	})
}
