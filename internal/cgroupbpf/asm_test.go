package cgroupbpf_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/internal/cgroupbpf"
)

func TestJumpsLeadToOnePlaceAhead(t *testing.T) {
	t.Parallel()
	for name, err := range map[string]error{
		"nowhere": cgroupbpf.Dangling(false), "back": cgroupbpf.Dangling(true), "two places": cgroupbpf.TwoPlaces(),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// The bytes were written by hand from linux/bpf.h, for a machine whose lower byte comes first.
func TestInstructionsAreEncodedAsTheKernelReadsThem(t *testing.T) {
	t.Parallel()
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		return // The tests that load programs check the other order.
	}
	got, err := cgroupbpf.MarkCode(cgroupbpf.Mark{Value: 0x82000000, Mask: 0xff000000})
	if err != nil {
		t.Fatal(err)
	}
	want := [][]byte{
		{0x61, 0x12, 12, 0, 0, 0, 0, 0},   // r2 = *(u32 *)(r1 + 12)
		{0x26, 0x02, 8, 0, 255, 0, 0, 0},  // if w2 > 255 goto +8
		{0x61, 0x12, 16, 0, 0, 0, 0, 0},   // r2 = *(u32 *)(r1 + 16)
		{0xbc, 0x23, 0, 0, 0, 0, 0, 0},    // w3 = w2
		{0x54, 0x03, 0, 0, 0, 0, 0, 0xff}, // w3 &= 0xff000000
		{0x56, 0x03, 2, 0, 0, 0, 0, 0},    // if w3 != 0 goto +2
		{0x44, 0x02, 0, 0, 0, 0, 0, 0x82}, // w2 |= 0x82000000
		{0x63, 0x21, 16, 0, 0, 0, 0, 0},   // *(u32 *)(r1 + 16) = r2
		{0xb4, 0x00, 0, 0, 1, 0, 0, 0},    // w0 = 1
		{0x95, 0, 0, 0, 0, 0, 0, 0},       // exit
		{0xb4, 0x00, 0, 0, 0, 0, 0, 0},    // w0 = 0
		{0x95, 0, 0, 0, 0, 0, 0, 0},       // exit
	}
	if !bytes.Equal(got, bytes.Join(want, nil)) {
		t.Errorf("%x, want %x", got, want)
	}
}

func TestKernelTakesTheProgramForOlderOnes(t *testing.T) {
	t.Parallel()
	fd, err := cgroupbpf.LoadOld(cgroupbpf.Mark{Value: 0x82000000, Mask: 0xff000000})
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(fd); err != nil {
		t.Error(err)
	}
}

func TestARefusedProgramSaysWhatTheVerifierSays(t *testing.T) {
	t.Parallel()
	if err := cgroupbpf.LoadWrong(); err == nil || !strings.Contains(err.Error(), "R8 !read_ok") {
		t.Errorf("%v", err)
	}
}

func TestServersAndResolversThatProgramsCannotUseAreRefused(t *testing.T) {
	t.Parallel()
	a := netip.MustParseAddr
	many := make([]netip.Addr, cgroupbpf.MaxResolvers+1)
	for n := range many {
		many[n] = a("192.0.2.1")
	}
	for _, c := range []struct {
		name string
		dns  cgroupbpf.DNS
		good bool
	}{
		{"none", cgroupbpf.DNS{}, true},
		{"both", cgroupbpf.DNS{Server4: a("192.0.2.1"), Server6: a("fd00::1")}, true},
		{"resolvers", cgroupbpf.DNS{Resolvers: append(many[:cgroupbpf.MaxResolvers-1:cgroupbpf.MaxResolvers-1], a("fe80::1%wan0"))}, true},
		{"too many resolvers", cgroupbpf.DNS{Resolvers: many}, false},
		{"no resolver", cgroupbpf.DNS{Resolvers: []netip.Addr{{}}}, false},
		{"exchanged", cgroupbpf.DNS{Server4: a("fd00::1")}, false},
		{"exchanged", cgroupbpf.DNS{Server6: a("192.0.2.1")}, false},
		{"IPv4 in IPv6", cgroupbpf.DNS{Server6: a("::ffff:192.0.2.1")}, false},
		{"without a first word", cgroupbpf.DNS{Server6: a("::2")}, false},
		{"the loopback", cgroupbpf.DNS{Server4: a("127.0.0.53")}, false},
		{"any", cgroupbpf.DNS{Server6: a("::")}, false},
		{"a group", cgroupbpf.DNS{Server4: a("224.0.0.1")}, false},
		{"all", cgroupbpf.DNS{Server4: a("255.255.255.255")}, false},
		{"of the link itself", cgroupbpf.DNS{Server6: a("fe80::1%wan1")}, false},
		{"of the link itself", cgroupbpf.DNS{Server6: a("fe80::1")}, false},
	} {
		if err := c.dns.Check(); (err == nil) != c.good {
			t.Errorf("%s, %+v: %v", c.name, c.dns, err)
		}
	}
}
