package reality_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/lookup"
)

// A manner is how a program sends.
type manner int

const (
	tcpConnect manner = iota
	udpConnect
	udpSend
)

// packets is how many a host sends of each family; rapid draws a hundred hosts, five hundred cases
// and more.
const packets = 4

// A capture sees what leaves by any device.
type capture struct {
	fd     int
	buffer []byte
}

func openCapture(tb testing.TB) *capture {
	tb.Helper()
	all := binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(ne.Uint16(all)))
	must(tb, err)
	tb.Cleanup(func() { must(tb, unix.Close(fd)) })
	return &capture{fd, make([]byte, 2048)}
}

// took returns the devices by which packets to an address have left. The kernel shows them to
// the capture before the system call that sends them returns.
func (c *capture) took(tb testing.TB, to netip.Addr) (devices []int) {
	tb.Helper()
	for {
		n, from, err := unix.Recvfrom(c.fd, c.buffer, 0)
		if errors.Is(err, unix.EAGAIN) {
			return devices
		}
		must(tb, err)
		link, ok := from.(*unix.SockaddrLinklayer)
		if !ok || link.Pkttype != unix.PACKET_OUTGOING {
			continue
		}
		var destination netip.Addr
		switch {
		case n >= 20 && c.buffer[0]>>4 == 4:
			destination = netip.AddrFrom4([4]byte(c.buffer[16:20]))
		case n >= 40 && c.buffer[0]>>4 == 6:
			destination = netip.AddrFrom16([16]byte(c.buffer[24:40]))
		}
		if destination == to {
			devices = append(devices, link.Ifindex)
		}
	}
}

func sockaddr(a netip.Addr, family routing.Family, port uint16) unix.Sockaddr {
	switch {
	case family == routing.IPv4 && !a.IsValid():
		return &unix.SockaddrInet4{Port: int(port)}
	case family == routing.IPv4:
		return &unix.SockaddrInet4{Addr: a.As4(), Port: int(port)}
	case !a.IsValid():
		return &unix.SockaddrInet6{Port: int(port)}
	default:
		return &unix.SockaddrInet6{Addr: a.As16(), Port: int(port)}
	}
}

// send does what a program does, and returns the error of connect(2) or sendto(2).
func sendPacket(tb testing.TB, how manner, f lookup.Flow) error {
	tb.Helper()
	family := routing.FamilyOf(f.To)
	kind := unix.SOCK_DGRAM
	if how == tcpConnect {
		kind = unix.SOCK_STREAM
	}
	s, err := unix.Socket(int(family), kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	must(tb, err)
	defer func() { must(tb, unix.Close(s)) }()
	must(tb, unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	must(tb, unix.SetsockoptLinger(s, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
	must(tb, unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_MARK, int(f.Mark)))
	if family == routing.IPv4 {
		must(tb, unix.SetsockoptInt(s, unix.IPPROTO_IP, unix.IP_TOS, int(f.TOS)))
	} else {
		must(tb, unix.SetsockoptInt(s, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, int(f.TOS)))
	}
	must(tb, unix.Fchown(s, int(f.UID), -1)) // The user of a socket is its owner.
	if f.OIF != "" {
		must(tb, unix.BindToDevice(s, f.OIF))
	}
	must(tb, unix.Bind(s, sockaddr(f.From, family, f.SourcePort)))
	to := sockaddr(f.To, family, f.DestinationPort)
	if how == udpSend {
		return unix.Sendto(s, []byte("x"), 0, to)
	}
	if err := unix.Connect(s, to); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	if how == udpConnect {
		_, err := unix.Write(s, []byte("x"))
		return err
	}
	return nil
}

// An expectation is what may become of a packet.
type expectation struct {
	devices map[int]bool
	errors  map[error]bool
}

var errnos = map[lookup.Refusal]error{
	lookup.NetUnreachable: unix.ENETUNREACH, lookup.HostUnreachable: unix.EHOSTUNREACH,
	lookup.AccessDenied: unix.EACCES, lookup.Invalid: unix.EINVAL,
}

// add takes the verdict of the last lookup in.
func (e *expectation) add(tb testing.TB, v lookup.Verdict, oif int) {
	tb.Helper()
	for one := &v; one != nil; one = one.Otherwise {
		switch {
		case one.Assumed:
			e.devices[oif] = true
		case one.Outcome == lookup.Local:
			e.devices[1] = true
		case one.Outcome == lookup.Sent:
			for _, leg := range append(one.Legs, one.Alternatives...) {
				e.devices[leg.Device] = true
			}
		case errnos[one.Refusal] == nil:
			tb.Errorf("no error for %q", one.Refusal)
		default:
			e.errors[errnos[one.Refusal]] = true
		}
	}
}

// expect is what the product says that a socket does: one lookup, and where the socket asks again,
// with the source that the kernel chose at first. Where it does not say which source that is, it may be any.
func expect(tb testing.TB, reader *kernel.Reader, index map[string]int, how manner, f lookup.Flow) (e expectation, lookups int) {
	tb.Helper()
	e = expectation{map[int]bool{}, map[error]bool{}}
	c, err := reader.Consult(tb.Context(), f, locals(routing.FamilyOf(f.To))...)
	must(tb, err)
	if c.Difference != "" {
		tb.Errorf("%+v: %s\n%+v\n%s", f, c.Difference, c.Answer, explain(c.Facts, c.Steps, f.Question()))
	}
	host := c.Facts.Host()
	first := host.Lookup(f)
	again := f.To.Is4() && how != udpSend && !f.From.IsValid() && (first.Outcome == lookup.Sent || first.Assumed)
	if slices.Contains(host.Doubts(f, first), lookup.OfSource) {
		again = true
		e.add(tb, first, index[f.OIF])
	}
	if !again {
		e.add(tb, first, index[f.OIF])
		return e, 1
	}
	sources := locals(routing.FamilyOf(f.To))
	if c.Again != nil && len(first.Legs) == 1 && first.Otherwise == nil && len(first.Alternatives) == 0 {
		sources = []netip.Addr{c.Again.Flow.From}
	}
	for _, source := range sources {
		second := f
		second.From = source
		e.add(tb, host.Lookup(second), index[f.OIF])
	}
	return e, 2
}

// locals are the addresses of the host.
func locals(family routing.Family) (out []netip.Addr) {
	for i := range last + 1 {
		for _, host := range []int{1, 5} {
			text := fmt.Sprintf("10.%d.0.%d", i, host)
			if family == routing.IPv6 {
				text = fmt.Sprintf("2001:db8:%d::%d", i, host)
			}
			out = append(out, netip.MustParseAddr(text))
		}
	}
	return out
}

// TestPackets: real packets of sockets leave by the device, or fail with the error, that the
// simulation names.
func TestPackets(t *testing.T) {
	index := newHost(t)
	known := probe(t, index)
	quiet(t)
	reader := openReader(t)
	seen := openCapture(t)
	sent, cases := map[string]int{}, 0
	port := uint16(20_000)
	rapid.Check(t, func(r *rapid.T) {
		flush(t)
		for _, family := range routing.Families() {
			install(t, r, family, index, known)
			for range packets {
				f := genFlow(r, family, false, known)
				how := pick(r, "manner", tcpConnect, udpConnect, udpSend)
				if f.To.Is4() && (f.To.As4()[3] == 255 || f.To.As4()[0] == 10) {
					f.To = internet4 // no broadcast, nobody of this host
				}
				if slices.Contains(locals(family), f.To) {
					f.To = internet6
				}
				if f.From.IsValid() && !slices.Contains(locals(family), f.From) || known.vrf && f.OIF == "vrf0" {
					f.From, f.OIF = netip.Addr{}, ""
				}
				f.IPProto, f.FlowLabel = unix.IPPROTO_UDP, 0
				if how == tcpConnect {
					f.IPProto = unix.IPPROTO_TCP
				}
				port++
				f.SourcePort = port
				if f.DestinationPort == 0 {
					f.DestinationPort = 9
				}
				want, lookups := expect(t, reader, index, how, f)
				seen.took(t, f.To)
				err := sendPacket(t, how, f)
				devices := seen.took(t, f.To)
				cases++
				switch {
				case err != nil && (!want.errors[err] || len(devices) > 0):
					r.Fatalf("%+v, manner %d: error %v and devices %v, want %+v", f, how, err, devices, want)
				case err != nil:
					sent[fmt.Sprintf("refused, %d lookups", lookups)]++
				case len(devices) == 0 || slices.ContainsFunc(devices, func(d int) bool { return !want.devices[d] }):
					r.Fatalf("%+v, manner %d: devices %v, want %+v", f, how, devices, want)
				default:
					sent[fmt.Sprintf("sent, %d lookups", lookups)]++
				}
			}
		}
	})
	t.Logf("%d cases: %v", cases, sent)
}

// TestSecondLookup: connect(2) of IPv4 asks again with the source that the first answer chose, and
// sendto(2) does not; nor does IPv6.
func TestSecondLookup(t *testing.T) {
	s := newStage(t)
	quiet(t)
	seen := openCapture(t)
	for _, family := range routing.Families() {
		source := locals(family)[2] // on d1
		s.rule(t, routing.Rule{Family: family, Priority: trapPriority, From: netip.PrefixFrom(source, family.Bits()), Table: trapTable})
		s.route(t, trapTable, family.Any().String(), "", "d2", routing.RouteUnicast)
		must(t, addRoute(0, routing.Route{
			Family: family, Table: routing.TableMain, Destination: family.Any(), Type: routing.RouteUnicast, Device: s.index["d1"],
			PreferredSource: source,
		}))
	}
	port := uint16(40_000)
	for _, to := range []netip.Addr{internet4, internet6} {
		for _, how := range []manner{tcpConnect, udpConnect, udpSend} {
			port++
			f := lookup.Flow{To: to, IPProto: unix.IPPROTO_UDP, SourcePort: port, DestinationPort: 9}
			if how == tcpConnect {
				f.IPProto = unix.IPPROTO_TCP
			}
			want, lookups := "d1", 1
			if to.Is4() && how != udpSend {
				want, lookups = "d2", 2
			}
			said, have := expect(t, s.reader, s.index, how, f)
			if len(said.devices) != 1 || !said.devices[s.index[want]] || have != lookups {
				t.Errorf("%s, manner %d: the product says %+v after %d lookups", to, how, said, have)
			}
			seen.took(t, to)
			must(t, sendPacket(t, how, f))
			if devices := seen.took(t, to); !slices.Equal(devices, []int{s.index[want]}) {
				t.Errorf("%s, manner %d: it left by %v, not by %s", to, how, devices, want)
			}
		}
	}
}

// quiet makes devices that need no answer to send.
func quiet(t *testing.T) {
	t.Helper()
	for i := range last + 1 {
		l, err := netlink.LinkByName(fmt.Sprintf("d%d", i))
		must(t, err)
		must(t, netlink.LinkSetARPOff(l))
	}
}
