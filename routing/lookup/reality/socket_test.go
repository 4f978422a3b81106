package reality_test

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/routing"
	"multihomed/routing/lookup"
)

// connect is what a UDP socket that is bound to a device, and to a source if
// there is one, gets from connect(2).
func connect(tb testing.TB, f lookup.Flow) error {
	tb.Helper()
	domain := unix.AF_INET
	if f.To.Is6() {
		domain = unix.AF_INET6
	}
	s, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(tb, err)
	defer func() { must(tb, unix.Close(s)) }()
	must(tb, unix.BindToDevice(s, f.OIF))
	at := func(a netip.Addr, port int) unix.Sockaddr {
		if a.Is4() {
			return &unix.SockaddrInet4{Addr: a.As4(), Port: port}
		}
		return &unix.SockaddrInet6{Addr: a.As16(), Port: port}
	}
	if f.From.IsValid() {
		must(tb, unix.Bind(s, at(f.From, 0)))
	}
	return unix.Connect(s, at(f.To, int(f.DestinationPort)))
}

// TestSockets: where RTM_GETROUTE is not what a socket gets, the simulator says
// what a socket gets.
func TestSockets(t *testing.T) {
	index := newHost(t)
	reader := openReader(t)
	flush(t)
	base(t)
	for _, to := range []string{"198.51.100.0/24", "2600::/16"} {
		p := netip.MustParsePrefix(to)
		must(t, addRoute(0, routing.Route{
			Family: routing.FamilyOf(p.Addr()), Table: routing.TableMain, Destination: p, Type: routing.RouteUnicast, Device: index["d1"],
		}))
	}
	for name, tt := range map[string]struct {
		flow    lookup.Flow
		outcome lookup.Outcome
		assumed bool
		socket  error
		asked   lookup.Refusal
	}{
		"IPv6, bound to another device": {
			lookup.Flow{To: netip.MustParseAddr("2600::1"), From: netip.MustParseAddr("2001:db8::1"), OIF: "d0"},
			lookup.NoRoute, false, unix.ENETUNREACH, lookup.None,
		},
		"IPv6, bound to the device": {
			lookup.Flow{To: netip.MustParseAddr("2600::1"), From: netip.MustParseAddr("2001:db8::1"), OIF: "d1"},
			lookup.Sent, false, nil, lookup.None,
		},
		"IPv4, bound to another device": {
			lookup.Flow{To: netip.MustParseAddr("198.51.100.1"), From: netip.MustParseAddr("10.0.0.1"), OIF: "d0"},
			lookup.NoRoute, true, nil, lookup.HostUnreachable,
		},
	} {
		tt.flow.IPProto, tt.flow.DestinationPort = unix.IPPROTO_UDP, 9
		facts, err := reader.Facts(t.Context(), routing.FamilyOf(tt.flow.To), tt.flow.To, tt.flow.From)
		must(t, err)
		v := facts.Host().Lookup(tt.flow)
		answer, err := reader.Ask(t.Context(), facts.Interfaces, tt.flow)
		must(t, err)
		asked := answer.Missed
		if socket := connect(t, tt.flow); v.Outcome != tt.outcome || v.Assumed != tt.assumed || !errors.Is(socket, tt.socket) || asked != tt.asked {
			t.Errorf("%s: simulator %s, assumed %v; socket %v, RTM_GETROUTE %v; want %s %v %v %v",
				name, v.Outcome, v.Assumed, socket, asked, tt.outcome, tt.assumed, tt.socket, tt.asked)
		}
	}
	// A preference, as RTM_GETROUTE takes it, finds the route of another device.
	loose := lookup.Flow{To: netip.MustParseAddr("2600::1"), From: netip.MustParseAddr("2001:db8::1"), OIF: "d0", LooseOIF: true}
	facts, err := reader.Facts(t.Context(), routing.IPv6, loose.To, loose.From)
	must(t, err)
	if v := facts.Host().Lookup(loose); !v.Through(index["d1"]) {
		t.Errorf("preferred device: %s by %v", v.Outcome, v.Legs)
	}
}
