package connections_test

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/connections"
	"multihomed/internal/sockdiag"
)

func wan0() *connections.Dead {
	return &connections.Dead{
		Device:   2,
		Sources:  []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8:a::10")},
		Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:a::/64")},
		For:      10 * time.Second,
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	// Idle since an hour, of the dead link, with a peer behind the provider.
	idle := func(change func(*sockdiag.Socket)) sockdiag.Socket {
		s := sockdiag.Socket{
			Source: netip.MustParseAddrPort("192.0.2.10:40000"), Destination: netip.MustParseAddrPort("203.0.113.1:443"),
			State: sockdiag.Established, Inode: 1, HasInfo: true, LastAckRecv: time.Hour,
		}
		change(&s)
		return s
	}
	peer := func(a string) func(*sockdiag.Socket) {
		return func(s *sockdiag.Socket) { s.Destination = netip.MustParseAddrPort(a) }
	}
	state := func(state sockdiag.State) func(*sockdiag.Socket) {
		return func(s *sockdiag.Socket) { s.State = state }
	}
	for name, c := range map[string]struct {
		change func(*sockdiag.Socket)
		want   connections.Verdict
	}{
		"idle": {func(*sockdiag.Socket) {}, connections.Close},
		"IPv6": {func(s *sockdiag.Socket) {
			s.Source = netip.MustParseAddrPort("[2001:db8:a::10]:4")
			s.Destination = netip.MustParseAddrPort("[2001:db8:f::1]:443")
		}, connections.Close},
		"connecting":                  {func(s *sockdiag.Socket) { s.State, s.LastAckRecv = sockdiag.SynSent, 0 }, connections.Close},
		"half closed by the peer":     {state(sockdiag.CloseWait), connections.Close},
		"half closed by the owner":    {state(sockdiag.FinWait2), connections.Close},
		"without tcp_info":            {func(s *sockdiag.Socket) { s.HasInfo, s.LastAckRecv = false, 0 }, connections.Close},
		"heard just before the death": {func(s *sockdiag.Socket) { s.LastAckRecv = 10 * time.Second }, connections.Close},
		"heard just after the death":  {func(s *sockdiag.Socket) { s.LastAckRecv = 10*time.Second - time.Millisecond }, connections.Heard},
		"of another link":             {func(s *sockdiag.Socket) { s.Source = netip.MustParseAddrPort("198.51.100.10:4") }, connections.Foreign},
		"a listener": {func(s *sockdiag.Socket) {
			s.State, s.Destination = sockdiag.Listen, netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
		}, connections.Foreign},
		"a former connection":         {state(sockdiag.TimeWait), connections.Foreign},
		"bound to a device":           {func(s *sockdiag.Socket) { s.Device = 2 }, connections.Bound},
		"nobody's":                    {func(s *sockdiag.Socket) { s.Inode = 0; s.State = sockdiag.FinWait1 }, connections.Orphan},
		"to the gateway":              {peer("192.0.2.1:80"), connections.Near},
		"to a neighbour by IPv6":      {peer("[2001:db8:a::1]:80"), connections.Near},
		"to itself":                   {peer("192.0.2.10:80"), connections.Near},
		"to the loopback":             {peer("127.0.0.1:80"), connections.Near},
		"to a link-local address":     {peer("[fe80::1]:80"), connections.Near},
		"to a private net":            {peer("10.0.0.1:80"), connections.Close},
		"bound, and heard by the way": {func(s *sockdiag.Socket) { s.Device, s.LastAckRecv = 2, 0 }, connections.Bound},
		"a subflow of Multipath TCP":  {func(s *sockdiag.Socket) { s.MPTCP, s.Token = true, 7 }, connections.Close},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := idle(c.change)
			if got := wan0().Judge(&s); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

func TestLeaves(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		route     connections.Route
		noGateway bool
		want      bool
	}{
		"by the gateway":              {connections.Route{Type: unix.RTN_UNICAST, Device: 2, Gateway: true}, false, true},
		"no route is left":            {connections.Route{Unreachable: true}, false, true},
		"a neighbour":                 {connections.Route{Type: unix.RTN_UNICAST, Device: 2}, false, false},
		"by a line without next hops": {connections.Route{Type: unix.RTN_UNICAST, Device: 2}, true, true},
		"a container":                 {connections.Route{Type: unix.RTN_UNICAST, Device: 5}, false, false},
		"a container's network":       {connections.Route{Type: unix.RTN_UNICAST, Device: 5, Gateway: true}, true, false},
		"this host":                   {connections.Route{Type: unix.RTN_LOCAL, Device: 1}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := wan0()
			d.NoGateway = c.noGateway
			if got := d.Leaves(c.route); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

func TestSurvives(t *testing.T) {
	t.Parallel()
	other := sockdiag.Socket{
		Source: netip.MustParseAddrPort("198.51.100.10:4"), State: sockdiag.Established, MPTCP: true, Token: 7, LastAckRecv: time.Hour,
	}
	for name, c := range map[string]struct {
		change func(*sockdiag.Socket)
		want   bool
	}{
		"idle":                 {func(*sockdiag.Socket) {}, true},
		"busy and heard":       {func(s *sockdiag.Socket) { s.Unacked, s.LastAckRecv = 3, time.Second }, true},
		"silent itself":        {func(s *sockdiag.Socket) { s.Unacked = 3 }, false},
		"of the dead link":     {func(s *sockdiag.Socket) { s.Source = netip.MustParseAddrPort("192.0.2.10:5") }, false},
		"connecting":           {func(s *sockdiag.Socket) { s.State = sockdiag.SynSent }, false},
		"not of Multipath TCP": {func(s *sockdiag.Socket) { s.MPTCP = false }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := other
			c.change(&s)
			if got := wan0().Survives(&s); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}
