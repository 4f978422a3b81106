package wire_test

import (
	"math"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"multihomed/internal/prober/wire"
)

var compare = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmpopts.EquateEmpty(),
}

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix     { return netip.MustParsePrefix(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func requests() []wire.Request {
	return []wire.Request{
		wire.Probe{ID: 1, Kind: wire.DNS, Device: 3, Target: addrPort("192.0.2.1:53")},
		wire.Probe{ID: math.MaxUint64, Kind: wire.TCP, Device: math.MaxInt32, Source: addr("2001:db8::2"), Target: addrPort("[2001:db8::1]:65535")},
		wire.Probe{Kind: wire.ICMP, Device: 1, Source: addr("192.0.2.2"), Target: addrPort("192.0.2.1:0")},
		wire.Probe{Kind: wire.DNS, Device: 1, Source: addr("fe80::2"), Target: addrPort("[fe80::1]:53")},
		wire.Look{ID: 7},
		wire.Look{
			ID:      8,
			Sources: []wire.Source{{Addr: addr("192.0.2.2"), Device: 2}, {Addr: addr("2001:db8::2"), Device: 3}},
			Near:    []netip.Prefix{prefix("192.0.2.0/24"), prefix("2001:db8::/64"), prefix("0.0.0.0/0")},
			Devices: []int{2, 3},
		},
		wire.Ping{ID: 9},
	}
}

func reports() []wire.Report {
	return []wire.Report{
		wire.Sent{ID: 1, At: 5},
		wire.Answered{ID: 2, At: math.MaxInt64, RTT: time.Second},
		wire.Pong{ID: 3},
		wire.Failed{ID: 4, At: 6, Errno: syscall.EHOSTUNREACH},
		wire.Unsent{ID: 5, At: 7, Errno: syscall.ENODEV},
		wire.Looked{ID: 6, At: 8},
		wire.Looked{
			ID: 6, At: 1e10, Cost: time.Millisecond, Connections: []wire.Connections{{}, {Count: 3, Proof: 1e9, Silence: time.Second}},
			Devices: []wire.Counters{{RxPackets: 1, TxPackets: math.MaxUint64}, {}},
		},
	}
}

// TestRoundTrip: what is encoded is decoded again, and any other length is not.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for _, want := range requests() {
		datagram, err := wire.EncodeRequest(nil, want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := wire.DecodeRequest(datagram)
		if diff := cmp.Diff(want, got, compare); err != nil || diff != "" {
			t.Errorf("%+v: %v\n%s", want, err, diff)
		}
		lengths(t, datagram, func(b []byte) error { _, err := wire.DecodeRequest(b); return err })
	}
	for _, want := range reports() {
		datagram, err := wire.EncodeReport(nil, want, 77)
		if err != nil {
			t.Fatal(err)
		}
		got, horizon, err := wire.DecodeReport(datagram)
		if diff := cmp.Diff(want, got, compare); err != nil || diff != "" || horizon != 77 {
			t.Errorf("%+v, %d: %v\n%s", want, horizon, err, diff)
		}
		lengths(t, datagram, func(b []byte) error { _, _, err := wire.DecodeReport(b); return err })
	}
}

func lengths(t *testing.T, datagram []byte, decode func([]byte) error) {
	t.Helper()
	for n := range datagram {
		if decode(datagram[:n]) == nil {
			t.Errorf("%d bytes of %d are accepted: %x", n, len(datagram), datagram)
		}
	}
	if decode(append(slices.Clip(datagram), 0)) == nil {
		t.Errorf("a byte too many is accepted: %x", datagram)
	}
}

// TestLargest: the longest lists fit into a datagram.
func TestLargest(t *testing.T) {
	t.Parallel()
	l := wire.Look{ID: 1}
	for i := range wire.MaxSources {
		a := addr("2001:db8::1").As16()
		a[14], a[13] = byte(i), byte(i>>8)
		l.Sources = append(l.Sources, wire.Source{Addr: netip.AddrFrom16(a), Device: 1})
	}
	for range wire.MaxNear {
		l.Near = append(l.Near, prefix("2001:db8::/32"))
	}
	for range wire.MaxDevices {
		l.Devices = append(l.Devices, 1)
	}
	if datagram, err := wire.EncodeRequest(nil, l); err != nil || len(datagram) > wire.MaxDatagram {
		t.Errorf("%d bytes, %v", len(datagram), err)
	}
	r := wire.Looked{Connections: make([]wire.Connections, wire.MaxSources), Devices: make([]wire.Counters, wire.MaxDevices)}
	if datagram, err := wire.EncodeReport(nil, r, 0); err != nil || len(datagram) > wire.MaxDatagram {
		t.Errorf("%d bytes, %v", len(datagram), err)
	}
	l.Devices = append(l.Devices, 1)
	if _, err := wire.EncodeRequest(nil, l); err == nil {
		t.Error("a list that is too long is encoded")
	}
	if _, _, err := wire.DecodeReport(make([]byte, wire.MaxDatagram+1)); err == nil || !strings.Contains(err.Error(), "longer") {
		t.Errorf("a datagram that is too long: %v", err)
	}
}

// TestNonsense: what no honest sender means is not sent.
func TestNonsense(t *testing.T) {
	t.Parallel()
	target := addrPort("192.0.2.1:53")
	for name, r := range map[string]wire.Request{
		"no kind":         wire.Probe{Device: 1, Target: target},
		"unknown kind":    wire.Probe{Kind: 4, Device: 1, Target: target},
		"no device":       wire.Probe{Kind: wire.DNS, Target: target},
		"negative device": wire.Probe{Kind: wire.DNS, Device: -1, Target: target},
		"no target":       wire.Probe{Kind: wire.DNS, Device: 1},
		"loopback":        wire.Probe{Kind: wire.DNS, Device: 1, Target: addrPort("127.0.0.53:53")},
		"multicast":       wire.Probe{Kind: wire.DNS, Device: 1, Target: addrPort("[ff02::1]:53")},
		"broadcast":       wire.Probe{Kind: wire.DNS, Device: 1, Target: addrPort("255.255.255.255:53")},
		"zone":            wire.Probe{Kind: wire.DNS, Device: 1, Target: addrPort("[fe80::1%1]:53")},
		"mapped":          wire.Probe{Kind: wire.DNS, Device: 1, Target: addrPort("[::ffff:192.0.2.1]:53")},
		"no port":         wire.Probe{Kind: wire.TCP, Device: 1, Target: addrPort("192.0.2.1:0")},
		"ICMP to a port":  wire.Probe{Kind: wire.ICMP, Device: 1, Target: target},
		"two families":    wire.Probe{Kind: wire.DNS, Device: 1, Source: addr("2001:db8::1"), Target: target},
		"source":          wire.Probe{Kind: wire.DNS, Device: 1, Source: addr("0.0.0.0"), Target: target},
		"look source":     wire.Look{Sources: []wire.Source{{Device: 1}}},
		"look device":     wire.Look{Sources: []wire.Source{{Addr: addr("192.0.2.1")}}},
		"near host bits":  wire.Look{Near: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}},
		"near nothing":    wire.Look{Near: []netip.Prefix{{}}},
		"counters":        wire.Look{Devices: []int{0}},
	} {
		if b, err := wire.EncodeRequest(nil, r); err == nil || len(b) != 0 {
			t.Errorf("%s is encoded: %x", name, b)
		}
	}
	for name, r := range map[string]wire.Report{
		"negative time":         wire.Sent{At: -1},
		"no errno":              wire.Failed{},
		"errno":                 wire.Unsent{Errno: 4096},
		"round trip":            wire.Answered{At: 1, RTT: 2},
		"negative trip":         wire.Answered{At: 1, RTT: -1},
		"negative cost":         wire.Looked{Cost: -1},
		"proof of the future":   wire.Looked{At: 1, Connections: []wire.Connections{{Count: 1, Proof: 2}}},
		"silence before time":   wire.Looked{At: 1, Connections: []wire.Connections{{Count: 1, Silence: 2}}},
		"proof without sockets": wire.Looked{At: 1, Connections: []wire.Connections{{Proof: 1}}},
	} {
		if b, err := wire.EncodeReport(nil, r, 0); err == nil || len(b) != 0 {
			t.Errorf("%s is encoded: %x", name, b)
		}
	}
	if _, err := wire.EncodeReport(nil, wire.Pong{}, -1); err == nil {
		t.Error("a negative horizon is encoded")
	}
}

// FuzzDecodeRequest: what is accepted has one encoding only.
func FuzzDecodeRequest(f *testing.F) {
	for _, r := range requests() {
		datagram, err := wire.EncodeRequest(nil, r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(datagram)
	}
	f.Fuzz(func(t *testing.T, datagram []byte) {
		r, err := wire.DecodeRequest(datagram)
		if err != nil {
			return
		}
		again, err := wire.EncodeRequest(nil, r)
		if err != nil || string(again) != string(datagram) {
			t.Fatalf("%x is read as %+v, which is %x: %v", datagram, r, again, err)
		}
	})
}

// FuzzDecodeReport: what is accepted has one encoding only.
func FuzzDecodeReport(f *testing.F) {
	for _, r := range reports() {
		datagram, err := wire.EncodeReport(nil, r, 4)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(datagram)
	}
	f.Fuzz(func(t *testing.T, datagram []byte) {
		r, horizon, err := wire.DecodeReport(datagram)
		if err != nil {
			return
		}
		again, err := wire.EncodeReport(nil, r, horizon)
		if err != nil || string(again) != string(datagram) {
			t.Fatalf("%x is read as %+v, which is %x: %v", datagram, r, again, err)
		}
	})
}
