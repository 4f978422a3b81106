package reconcile_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// TestRefusedOnPurpose: a socket that is bound to nothing looks up twice with IPv6, and the
// second time meets the rungs of the source that the kernel chose. Where somebody refuses
// what is bound to nothing, it must not get out by them; where there merely is no route,
// and where somebody has another way, the rungs stay.
func TestRefusedOnPurpose(t *testing.T) {
	const suppressed = "rule add pref 32766 lookup main suppress_prefixlength 0"
	for _, c := range []struct {
		name     string
		commands []string
		// undo ends the refusal.
		undo []string
		// aside says that nobody gets out, by what Object is what the report blames.
		aside  bool
		object string
		// device says that sockets of the device get out all the same.
		device bool
	}{
		{name: "unreachable", commands: []string{"rule add pref 31000 unreachable"}, undo: []string{"rule del pref 31000"}, aside: true, object: "31000: from all unreachable"},
		{name: "prohibit", commands: []string{"rule add pref 31000 prohibit"}, undo: []string{"rule del pref 31000"}, aside: true, object: "31000: from all prohibit"},
		{name: "blackhole", commands: []string{"rule add pref 31000 blackhole"}, undo: []string{"rule del pref 31000"}, aside: true, object: "31000: from all blackhole"},
		{name: "no number", commands: []string{"rule add unreachable"}, undo: []string{"rule del unreachable"}, aside: true, object: "unreachable"},
		{name: "fwmark 0", commands: []string{"rule add pref 31000 fwmark 0/0xff unreachable"}, undo: []string{"rule del pref 31000"}, aside: true, object: "31000: from all fwmark 0/0xff unreachable"},
		{name: "iif lo", commands: []string{"rule add pref 31000 iif lo unreachable"}, undo: []string{"rule del pref 31000"}, aside: true, object: "31000: from all iif lo unreachable"},
		{name: "all but a mark", commands: []string{"rule add pref 31000 not fwmark 1 unreachable"}, undo: []string{"rule del pref 31000"}, aside: true, object: "31000: not from all fwmark 0x1 unreachable"},
		{name: "all but users", commands: []string{"rule add pref 31000 not uidrange 0-999 unreachable"}, undo: []string{"rule del pref 31000"}, aside: true, object: "31000: not from all uidrange 0-999 unreachable"},
		{name: "main without its default", commands: []string{suppressed, "rule del pref 32766 lookup main"}, undo: []string{"rule add pref 32767 lookup main"}, aside: true, object: "lookup main suppress_prefixlength 0"},
		{name: "nobody reads main", commands: []string{"rule del pref 32766 lookup main"}, undo: []string{"rule add pref 32766 lookup main"}},
		{name: "over main", commands: []string{"rule add pref 40000 nop", "rule add pref 31000 goto 40000"}, undo: []string{"rule del pref 31000"}, aside: true, object: "ip -6 rule"},
		{name: "behind main", commands: []string{"rule add pref 40000 unreachable", "route del default via fe80::1 dev wan0"}, undo: []string{"rule del pref 40000"}, aside: true, object: "40000: from all unreachable"},
		{name: "a table's default", commands: []string{"route add unreachable default table 51", "rule add not fwmark 51820 lookup 51"}, undo: []string{"route del unreachable default table 51"}, aside: true, object: "unreachable default table 51", device: true},
		{name: "a table's half", commands: []string{"rule add not fwmark 51820 lookup 51", "route add blackhole 2000::/4 table 51"}, undo: []string{"rule del lookup 51"}, aside: true, object: "blackhole 2000::/4 table 51", device: true},

		{name: "for some", commands: []string{"rule add pref 31000 fwmark 1 unreachable"}, device: true},
		{name: "for users", commands: []string{"rule add pref 31000 uidrange 1000-1000 prohibit"}, device: true},
		{name: "no route", commands: []string{"route del default via fe80::1 dev wan0"}},
		{name: "a network", commands: []string{"rule add not fwmark 51820 lookup 51", "route add unreachable 2001:db8:77::/48 table 51"}, device: true},
		{name: "site addresses in main", commands: []string{"route add unreachable fc00::/7"}, device: true},
		{name: "a tunnel", commands: []string{
			"addr add fd88::2/64 dev tun0 nodad", "route add default dev tun0 table 51", "route add unreachable default table 51 metric 4000",
			"rule add not fwmark 51820 lookup 51", "rule add lookup main suppress_prefixlength 0",
		}, device: true},
		{name: "a default for a source", commands: []string{"route del default via fe80::1 dev wan0", "route add default from 2001:db8::/64 via fe80::1 dev wan0"}, device: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			h.noLinkLocal()
			h.wan(0)
			h.ip("-6 addr add 2001:db8::5/64 dev wan0 nodad")
			h.ip("-6 addr add fe80::5/64 dev wan0 nodad")
			h.ip("-6 route add default via fe80::1 dev wan0 metric 100")
			h.veth("tun0")
			h.owners.complete(true)
			h.pass()
			check := func(when string, aside bool) {
				t.Helper()
				if stand := strings.Contains(h.ip("-6 rule"), "from 2001:db8::/64 iif lo lookup"); stand == aside {
					t.Errorf("%s: the rungs stand: %t\n%s", when, stand, h.ip("-6 rule"))
				}
				said := slices.ContainsFunc(h.last.Problems, func(p routing.Problem) bool {
					return p.Code == routing.UnboundRefused && p.Severity == routing.Notice && p.Fix != "" && strings.Contains(p.Object, c.object)
				})
				if said != aside {
					t.Errorf("%s: reported is %t: %+v", when, said, h.last.Problems)
				}
			}
			for _, command := range c.commands {
				h.ip("-6 " + command)
			}
			h.pass()
			check("at once", c.aside)
			if c.aside {
				refused(t, netip.IPv6Unspecified(), "")
				refused(t, netip.MustParseAddr("2001:db8::5"), "")
			} else if err := connect(netip.MustParseAddr("2001:db8::5"), ""); err != nil && c.device {
				t.Errorf("bound to the address: %v", err)
			}
			switch err := connect(netip.IPv6Unspecified(), "wan0"); {
			case c.device && err != nil:
				t.Errorf("bound to the device: %v", err)
			case c.aside && !c.device && err == nil:
				t.Error("bound to the device, it gets out")
			}
			h.quiet()
			h.restart()
			h.owners.claim("wan0", reconcile.Link)
			h.owners.complete(true)
			h.pass()
			check("after a restart", c.aside)
			for _, command := range c.undo {
				h.ip("-6 " + command)
			}
			h.pass()
			check("afterwards", c.aside && len(c.undo) == 0)
			h.quiet()
		})
	}
}

// refused wants a socket not to get out.
func refused(t *testing.T, from netip.Addr, device string) {
	t.Helper()
	if err := connect(from, device); err == nil {
		t.Errorf("bound to %q and %s, it gets out", device, from)
	}
}

// connect asks for the way of a packet as a socket does, of a user who is nobody's
// exception. The thread is in the namespace of the test.
func connect(from netip.Addr, device string) (err error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	const nobody = 65534
	if err := unix.Fchown(fd, nobody, nobody); err != nil { // sock_i_uid is the owner's (sockfs_setattr)
		return err
	}
	if device != "" {
		if err := unix.BindToDevice(fd, device); err != nil {
			return err
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrInet6{Addr: from.As16()}); err != nil {
		return err
	}
	return unix.Connect(fd, &unix.SockaddrInet6{Port: 53, Addr: netip.MustParseAddr("2001:db8:ff::1").As16()})
}
