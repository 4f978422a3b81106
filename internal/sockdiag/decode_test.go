package sockdiag_test

import (
	"errors"
	"io"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/internal/sockdiag"
)

// FuzzDecode: no message of the kernel, however short or odd, is read beyond its end.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, 71))
	whole := make([]byte, 72)
	whole[0], whole[1] = unix.AF_INET6, byte(sockdiag.Established)
	f.Add(whole)
	f.Add(append(whole, 4, 0, 2, 0))               // a tcp_info without content
	f.Add(append(whole, 3, 0, 2, 0))               // an attribute shorter than its header
	f.Add(append(whole, 255, 255, 19, 0, 5, 0, 1)) // one longer than the message
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := sockdiag.Decode(b)
		if err == nil && !s.Source.IsValid() || err != nil && s != (sockdiag.Socket{}) {
			t.Errorf("%+v, %v", s, err)
		}
	})
}

// TestUnsupported: a kernel without inet_diag, and one without tcp_diag, have one name.
func TestUnsupported(t *testing.T) {
	t.Parallel()
	for _, errno := range []error{unix.EOPNOTSUPP, unix.ENOENT} {
		if err := sockdiag.Unsupported(errno); !errors.Is(err, sockdiag.ErrUnsupported) {
			t.Errorf("%v: %v", errno, err)
		}
	}
	for _, other := range []error{nil, unix.EPERM, io.EOF} {
		if err := sockdiag.Unsupported(other); !errors.Is(err, other) {
			t.Errorf("%v: %v", other, err)
		}
	}
}

func TestStates(t *testing.T) {
	t.Parallel()
	set := sockdiag.Set(sockdiag.Established, sockdiag.Listen)
	if !set.Has(sockdiag.Listen) || set.Has(sockdiag.SynSent) || sockdiag.Connected.Has(sockdiag.TimeWait) || !sockdiag.Connected.Has(sockdiag.SynSent) {
		t.Errorf("%b, %b", set, sockdiag.Connected)
	}
	if sockdiag.CloseWait.String() != "CLOSE-WAIT" || sockdiag.State(0).String() != "UNKNOWN" || sockdiag.State(200).String() != "UNKNOWN" {
		t.Error("names of states")
	}
}

// BenchmarkDump is one look at a host with 5,000 sockets: at all, and at those of one address.
func BenchmarkDump(b *testing.B) {
	up(b, "192.0.2.1/32", "192.0.2.2/32")
	must(b, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 20000, Max: 20000}))
	diag := open(b)
	for range 2490 {
		connect(b, "192.0.2.1", "192.0.2.1")
	}
	for range 10 {
		connect(b, "192.0.2.2", "192.0.2.2")
	}
	for name, q := range map[string]sockdiag.Query{"all": {}, "one source": {Sources: []netip.Addr{netip.MustParseAddr("192.0.2.2")}}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				must(b, diag.Dump(b.Context(), q, func(*sockdiag.Socket) bool { return true }))
			}
		})
	}
}
