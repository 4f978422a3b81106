package kernel_test

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

// TestSilentChanges are the cases that the random walk found, or would take
// long to find: after every line the mirror is compared with the kernel. The
// interfaces are e0, e1 and e2, of which e2 is of no interest.
func TestSilentChanges(t *testing.T) {
	for name, script := range map[string]string{
		"a link goes down and comes up": `
			ip route add default via 10.0.0.9 metric 100
			ip route add 10.99.0.0/16 nexthop via 10.0.0.9 nexthop via 10.1.0.9
			ip -6 route add 2001:db8:99::/48 nexthop via 2001:db8:0::9 nexthop via 2001:db8:1::9
			ip route add 10.98.0.0/16 dev e0 scope host table 10001
			ip link set e0 down
			ip link set e1 down
			ip link set e0 up
			ip link set e1 up`,
		"a link is deleted": `
			ip route add 10.99.0.0/16 nexthop via 10.0.0.9 nexthop via 10.1.0.9
			ip -6 route add 2001:db8:99::/48 nexthop via 2001:db8:0::9 nexthop via 2001:db8:1::9
			ip route add default via 10.0.0.9 table 10001
			ip link del e0`,
		"the last address goes": `
			ip route add 10.99.0.0/16 via 10.0.0.9 table 10001
			ip route add 10.98.0.0/16 dev e0 scope host
			ip route add 10.97.0.0/16 table 10001 nexthop via 10.0.0.9 nexthop via 10.1.0.9
			ip addr add 10.0.0.3/24 dev e0
			ip addr del 10.0.0.3/24 dev e0
			ip addr del 10.0.0.2/24 dev e0
			ip addr add 10.0.0.2/24 dev e0`,
		"a preferred source goes": `
			ip addr add 10.0.0.3/24 dev e0
			ip addr add 10.0.0.3/32 dev e1
			ip route add 10.99.0.0/16 via 10.1.0.9 src 10.0.0.3
			ip route add 10.99.0.0/16 via 10.1.0.9 src 10.0.0.3 table 10001
			ip addr del 10.0.0.3/24 dev e0
			ip addr del 10.0.0.3/32 dev e1`,
		"a preferred source stays local": `
			ip addr add 10.50.0.3/24 dev e0
			ip route add local 10.50.0.0/16 dev lo
			ip route add 10.99.0.0/16 via 10.1.0.9 src 10.50.0.3
			ip addr del 10.50.0.3/24 dev e0
			ip route del local 10.50.0.0/16 dev lo`,
		"a preferred source of IPv6 goes": `
			ip addr add 2001:db8:0::3/64 dev e0 nodad
			ip -6 route add 2001:db8:99::/48 via 2001:db8:0::9 src 2001:db8:0::3
			ip -6 route add 2001:db8:98::/48 via 2001:db8:1::9 src 2001:db8:0::3 table 10001
			ip addr del 2001:db8:0::3/64 dev e0`,
		"IPv6 is disabled": `
			ip -6 route add 2001:db8:99::/48 nexthop via 2001:db8:0::9 nexthop via 2001:db8:1::9
			ip -6 route add default via 2001:db8:0::9 table 10001
			sysctl ipv6/conf/e0/disable_ipv6 1
			sysctl ipv6/conf/e0/disable_ipv6 0`,
		"IPv6 is disabled without a word": `
			sysctl ipv6/route/skip_notify_on_dev_down 1
			ip -6 route add default via 2001:db8:0::9 table 10001
			ip -6 route add default via 2001:db8:0::9
			sysctl ipv6/conf/e0/disable_ipv6 1
			ip -6 route add default via 2001:db8:1::9
			ip link set e1 down`,
		"the MTU is too small for IPv6": `
			sysctl ipv6/route/skip_notify_on_dev_down 1
			ip -6 route add 2001:db8:99::/48 nexthop via 2001:db8:2::9 nexthop via 2001:db8:1::9
			ip link set e2 mtu 1000
			ip link set e1 mtu 68
			ip link set e1 mtu 1500`,
		"siblings that differ": `
			ip -6 route add 2001:db8:99::/48 via 2001:db8:2::9 metric 100 protocol 150
			ip -6 route append 2001:db8:99::/48 via 2001:db8:1::9 metric 100 protocol static
			ip -6 route append 2001:db8:99::/48 via 2001:db8:0::9 metric 100 protocol static
			ip -6 route del 2001:db8:99::/48 via 2001:db8:2::9 metric 100`,
		"a replacement behind a route of no interest": `
			ip route add 10.99.0.0/16 via 10.2.0.9
			ip route append 10.99.0.0/16 via 10.1.0.9
			ip route replace 10.99.0.0/16 via 10.0.0.9
			ip route replace blackhole 10.99.0.0/16
			ip route del blackhole 10.99.0.0/16`,
		"nexthop objects": `
			ip nexthop add id 1 via 10.0.0.9 dev e0
			ip nexthop add id 2 via 10.1.0.9 dev e1
			ip nexthop add id 3 group 1/2
			ip route add 10.99.0.0/16 nhid 3
			ip route add 10.98.0.0/16 nhid 1 table 10001
			ip route add 10.97.0.0/16 nhid 2
			ip nexthop replace id 2 via 10.1.0.8 dev e1
			ip addr del 10.0.0.2/24 dev e0
			ip nexthop del id 2
			ip link set p-e0 down
			ip link set e0 down`,
		"bridges": `
			ip link add br0 type bridge
			ip route add 10.99.0.0/16 via 10.0.0.9 table 10001
			ip link set e0 master br0
			ip link set e0 nomaster`,
		"secondary addresses": `
			sysctl ipv4/conf/all/promote_secondaries 1
			ip addr add 10.0.0.3/24 dev e0
			ip addr del 10.0.0.2/24 dev e0
			sysctl ipv4/conf/all/promote_secondaries 0
			sysctl ipv4/conf/e0/promote_secondaries 0
			ip addr add 10.0.0.4/24 dev e0
			ip addr del 10.0.0.3/24 dev e0`,
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			for _, name := range []string{"e0", "e1", "e2"} {
				h.veth(name)
				h.address(name, "10."+name[1:]+".0.2/24")
				h.address(name, "2001:db8:"+name[1:]+"::2/64")
			}
			m := h.mirror(kernel.Config{Interest: func(name string) bool { return name != "e2" }})
			audit(t, m)
			for line := range strings.Lines(script) {
				switch words := strings.Fields(line); {
				case len(words) == 0:
					continue
				case words[0] == "sysctl":
					h.sysctl(words[1], words[2])
				default:
					h.ip(strings.Join(words[1:], " "))
				}
				must(t, m.Drain())
				audit(t, m)
				if t.Failed() {
					t.Fatalf("after %s", line)
				}
			}
		})
	}
}

// TestSourceGoneOnOlderKernels: before 6.6 the flush of routes whose preferred
// source went is silent (4b2b606075e5, "ipv4/fib: send notify when delete
// source address routes").
func TestSourceGoneOnOlderKernels(t *testing.T) {
	s := kernel.NewState(tables)
	link := append(make([]byte, 16), 7, 0, 3, 0, 'e', '0', 0, 0)
	link[4], link[8] = 5, 1
	must(t, s.Apply(unix.RTM_NEWLINK, 0, link))
	address := func(last byte) []byte {
		return append([]byte{2, 24, 0, 0, 5, 0, 0, 0}, 8, 0, 2, 0, 192, 0, 2, last)
	}
	must(t, s.Apply(unix.RTM_NEWADDR, 0, address(1)))
	must(t, s.Apply(unix.RTM_NEWADDR, 0, address(2)))
	for _, table := range []routing.TableID{routing.TableMain, 10001} {
		r := route(table, "10.0.0.0/8", "192.0.2.254", 5)
		r.PreferredSource = addr("192.0.2.2")
		must(t, s.Apply(unix.RTM_NEWROUTE, unix.NLM_F_EXCL, kernel.EncodeRoute(r)))
		r.Destination, r.PreferredSource = prefix("11.0.0.0/8"), addr("192.0.2.1")
		must(t, s.Apply(unix.RTM_NEWROUTE, unix.NLM_F_EXCL, kernel.EncodeRoute(r)))
	}
	must(t, s.Apply(unix.RTM_DELADDR, 0, address(2)))
	if l, _ := s.Link(5); len(l.Routes) != 1 || l.Routes[0].Destination != prefix("11.0.0.0/8") {
		t.Errorf("main: %v", l.Routes)
	}
	if ours := s.OurRoutes(10001); len(ours) != 2 {
		t.Errorf("ours: %v", ours)
	}
	must(t, s.Apply(unix.RTM_DELADDR, 0, address(1)))
	if l, _ := s.Link(5); len(l.Routes) != 0 || len(s.OurRoutes(10001)) != 0 {
		t.Errorf("after the last address: %v, %v", l.Routes, s.OurRoutes(10001))
	}
	must(t, s.Consistent())
}
