package hosts_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"multihomed/test/lab"
)

// lanNetwork is two providers and the LAN of a router.
func lanNetwork(w *world) {
	w.providers()
	lanOf(w)
}

// client is the LAN's client.
func (w *world) client() *lab.ISP { return w.lanClient }

// lanAsk asks what the router's LAN asks: its clients call every address of the
// router, it calls them from every address, and the LAN is not an uplink.
func lanAsk(more ...string) func(*world) []Question {
	return func(w *world) []Question {
		list := append(addrs("192.168.7.5", "fd07::5"), addrs(more...)...)
		senders := append(w.senders(), sender{From: netip.MustParseAddr("192.168.7.1")}, sender{Out: "lan0"})
		questions := append(grid(list, senders), lanCalls(w, w.client())...)
		questions = append(questions, grid(w.outside(), append(forwarded("lan0", "192.168.7.5", "fd07::5"), senders...))...)
		for _, a := range append(addrs(more...), list[0]) {
			questions = append(questions, grid(addrs(w.addr("wan0", lab.IPv4).String(), w.addr("wan1", lab.IPv4).String()), []sender{{In: "lan0", From: a}})...)
		}
		return append(questions, group("lan0"),
			Dial{From: lab.From{Addr: w.addr("wan0", lab.IPv4)}, Dst: netip.MustParseAddr("192.168.7.5")},
			Dial{From: lab.From{Addr: w.addr("wan1", lab.IPv4)}, Dst: netip.MustParseAddr("192.168.7.5")})
	}
}

// bird starts a routing daemon in a namespace, nil for the host's.
func (w *world) bird(name, conf string, ns *lab.Namespace) *lab.Process {
	w.t.Helper()
	dir := w.t.TempDir()
	path := filepath.Join(dir, name+".conf")
	w.must(os.WriteFile(path, []byte(conf), 0o600))
	p, err := w.Start(lab.ProcessConfig{Path: "bird", Args: []string{"-f", "-c", path, "-s", filepath.Join(dir, name+".ctl")}, Namespace: ns})
	w.must(err)
	return p
}

// route waits until main has a route to a prefix, or has none.
func (w *world) route(prefix string, want bool) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("the route to %s: %t", prefix, want), func() error {
		out, err := w.IP(w.t.Context(), "route", "show", prefix)
		if err == nil && (strings.TrimSpace(out) != "") != want {
			err = errors.New("not yet")
		}
		return err
	})
}

const birdHost = `router id 192.168.7.1;
protocol device { scan time 1; }
protocol kernel { ipv4 { export all; import none; }; }
protocol bgp { local %[1]s as 65001; neighbor %[2]s as 65002; connect delay time 1; connect retry time 1; error wait time 1,1;
 ipv4 { import all; export none; next hop keep; }; }
`

const birdPeer = `router id 192.168.7.5;
protocol device { }
protocol static { ipv4; %[3]s }
protocol bgp { local %[2]s as 65002; neighbor %[1]s as 65001; passive yes; connect delay time 1; connect retry time 1; error wait time 1,1;
 ipv4 { import none; export all; next hop self; }; }
`

// peers makes two routing daemons speak BGP over a link of the host, and notes how
// the far one is started and stopped.
func (w *world) peers(here, there netip.Addr, ns *lab.Namespace, first string, networks ...string) {
	w.t.Helper()
	var static strings.Builder
	for _, n := range networks {
		fmt.Fprintf(&static, "route %s blackhole; ", n)
	}
	start := func() {
		w.far = w.bird("far", fmt.Sprintf(birdPeer, here, there, static.String()), ns)
		w.near = w.bird("near", fmt.Sprintf(birdHost, here, there), nil)
		w.route(first, true)
	}
	w.speak = start
	start()
}

// silence ends both daemons; the routes of the near one go with its session.
func (w *world) silence(first string) {
	w.t.Helper()
	w.must(w.far.Kill())
	w.must(w.near.Stop(w.t.Context()))
	w.route(first, false)
}

var lanHosts = []Host{
	{
		Name:    "a router with a LAN",
		What:    "A home router: a LAN without anything else, whose clients use the router's outer addresses.",
		Lab:     routing,
		Network: lanNetwork,
		Ask:     lanAsk(),
	},
	{
		Name:    "a LAN with a static route",
		What:    "A gateway whose LAN has one route to another office; it comes and goes.",
		Lab:     routing,
		Network: lanNetwork,
		Build:   func(w *world) { w.ip("route add 10.77.0.0/16 via 192.168.7.5 dev lan0") },
		Steps: []Step{
			{"the route goes", func(w *world) { w.ip("route del 10.77.0.0/16") }},
			{"the route comes", func(w *world) { w.ip("route add 10.77.0.0/16 via 192.168.7.5 dev lan0") }},
		},
		Ask: func(w *world) []Question {
			if w.step == "the route goes" {
				return lanAsk()(w)
			}
			return lanAsk("10.77.0.9")(w)
		},
	},
	{
		Name: "a LAN profile with a static route",
		What: "The same gateway, with the route in the profile.",
		Lab:  routing,
		Network: func(w *world) {
			w.providers()
			lanOf(w, "ipv4.route1=10.77.0.0/16,192.168.7.5")
		},
		Ask: lanAsk("10.77.0.9"),
	},
	{
		Name:      "pods of other nodes by BGP",
		What:      "A Kubernetes node: bird learns the other nodes' pods over the LAN; the session ends and comes back.",
		Lab:       routing,
		Publishes: true,
		Network:   lanNetwork,
		Build: func(w *world) {
			w.peers(netip.MustParseAddr("192.168.7.1"), netip.MustParseAddr("192.168.7.5"), w.client().Namespace(), "10.244.1.0/24", "10.244.1.0/24", "10.244.2.0/24")
		},
		Steps: []Step{
			{"the session ends", func(w *world) { w.silence("10.244.1.0/24") }},
			{"the session is back", func(w *world) { w.speak() }},
		},
		Ask: func(w *world) []Question {
			if w.step == "the session ends" {
				return lanAsk()(w)
			}
			return lanAsk("10.244.1.5")(w)
		},
	},
	{
		Name: "a Thread border router",
		What: "A LAN where a Thread border router announces a route (router lifetime 0), takes it back and announces it again.",
		Lab:  routing,
		Network: func(w *world) {
			w.providers()
			ra := threadRA(30 * time.Minute)
			w.lanClient = w.lan(netip.MustParsePrefix("192.168.7.5/24"), netip.MustParseAddr("192.168.7.1"), &ra)
			w.profile("lan0", "ipv4.method=manual", "ipv4.address1=192.168.7.1/24", "ipv6.method=auto", "ipv6.addr-gen-mode=eui64", "ipv6.ip6-privacy=0", "ipv6.route-metric=110")
			w.thread(true)
		},
		Steps: []Step{
			{"taken back", func(w *world) { w.must(w.client().SetRA(threadRA(0))); w.thread(false) }},
			{"announced", func(w *world) { w.must(w.client().SetRA(threadRA(30 * time.Minute))); w.thread(true) }},
		},
		Ask: func(w *world) []Question {
			senders := append(w.senders(), sender{From: netip.MustParseAddr("192.168.7.1")}, sender{From: w.addr("lan0", lab.IPv6)})
			list := addrs("192.168.7.5", "fd07::5")
			if w.step != "taken back" {
				list = append(list, addrs("fd12:3456:789a:1::9")...)
			}
			return append(append(grid(append(list, w.outside()...), append(forwarded("lan0", "192.168.7.5", "fd07::5"), senders...)), lanCalls(w, w.client())...), group("lan0"))
		},
	},
	{
		Name: "a LAN with an IPv6 router",
		What: "A router for the IPv4 of its LAN, where somebody else advertises himself as the IPv6 router, by mistake or not, and stops.",
		Lab:  routing,
		Network: func(w *world) {
			w.providers()
			ra := lanRA(0)
			w.lanClient = w.lan(netip.MustParsePrefix("192.168.7.5/24"), netip.MustParseAddr("192.168.7.1"), &ra)
			w.profile("lan0", "ipv4.method=manual", "ipv4.address1=192.168.7.1/24", "ipv6.method=auto", "ipv6.addr-gen-mode=eui64", "ipv6.ip6-privacy=0", "ipv6.route-metric=110")
			w.lanRouter(false)
		},
		Build: func(w *world) { w.ip("route add 10.77.0.0/16 via 192.168.7.5 dev lan0") },
		Steps: []Step{
			{"advertised", func(w *world) { w.must(w.client().SetRA(lanRA(30 * time.Minute))); w.lanRouter(true) }},
			{"no router any more", func(w *world) { w.must(w.client().SetRA(lanRA(0))); w.lanRouter(false) }},
		},
		Ask: func(w *world) []Question {
			senders := append(w.senders(), sender{From: netip.MustParseAddr("192.168.7.1")})
			questions := grid(addrs("192.168.7.5", "10.77.1.5"), senders)
			questions = append(questions, grid(w.outside(), append(forwarded("lan0", "192.168.7.5"), sender{From: netip.MustParseAddr("192.168.7.1")}))...)
			for _, link := range []string{"wan0", "wan1", "lan0"} {
				questions = append(questions, Call{By: w.client(), Src: netip.MustParseAddr("192.168.7.5"), Dst: w.addr(link, lab.IPv4)},
					Dial{From: lab.From{Addr: w.addr(link, lab.IPv4)}, Dst: netip.MustParseAddr("192.168.7.5")})
			}
			return questions
		},
	},
	{
		Name: "an uplink with a ULA",
		What: "The second provider gives IPv4 alone; its box advertises a ULA and no IPv6 router.",
		Network: func(w *world) {
			w.provider(lab.DefaultISP(0))
			cfg := lab.DefaultISP(1)
			cfg.IPv6 = netip.MustParsePrefix("fd55::1/64")
			ra := lab.DefaultRA(cfg.IPv6)
			ra.RouterLifetime = 0
			cfg.RA = &ra
			w.provider(cfg)
			w.must(w.ReloadProfiles(w.t.Context()))
			for _, isp := range w.isps {
				w.must(w.Up(w.t.Context(), isp.Config().Link))
				for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
					_, err := w.WaitAddr(w.t.Context(), isp.Config().Link, f)
					w.must(err)
				}
				w.noteRouter(isp)
			}
		},
		Selects: func(w *world, q Question) bool { return particular(w, q) || ofULA(w, q) },
		Ask: func(w *world) []Question {
			there := netip.MustParseAddr("fd55::1")
			return append(grid([]netip.Addr{there}, w.senders()),
				Dial{From: lab.From{Addr: w.addr("wan0", lab.IPv6)}, Dst: there}, Dial{From: lab.From{Addr: w.addr("wan1", lab.IPv6)}, Dst: there})
		},
	},
	{
		Name:      "containers with published ports",
		What:      "Docker: a bridge, masquerading, a port published by DNAT, and an address of the host on the bridge.",
		Lab:       routing,
		Publishes: true,
		Ask: func(w *world) []Question {
			questions := append(grid(addrs("172.17.0.2", "fd17::2"), w.senders()),
				grid(w.outside(), append(forwarded("docker0", "172.17.0.2", "fd17::2"), sender{From: netip.MustParseAddr("172.17.0.1")}))...)
			for _, link := range []string{"wan0", "wan1"} {
				questions = append(questions,
					Dial{From: lab.From{Addr: w.addr(link, lab.IPv4)}, Dst: netip.MustParseAddr("172.17.0.2")},
					Dial{From: lab.From{Addr: w.addr(link, lab.IPv6)}, Dst: netip.MustParseAddr("fd17::2")})
			}
			return questions
		},
	},
}

// lanRA is what a router of the LAN advertises.
func lanRA(lifetime time.Duration) lab.RA {
	ra := lab.DefaultRA(netip.MustParsePrefix("fd07::5/64"))
	ra.RouterLifetime = lifetime
	return ra
}

// lanRouter waits until the LAN has an IPv6 router, or has none.
func (w *world) lanRouter(want bool) {
	w.t.Helper()
	_, err := w.WaitAddr(w.t.Context(), "lan0", lab.IPv6)
	w.must(err)
	w.eventually(fmt.Sprintf("the router of the LAN: %t", want), func() error {
		out, err := w.IP(w.t.Context(), "-6", "route", "show", "default", "dev", "lan0")
		if err == nil && (strings.TrimSpace(out) != "") != want {
			err = errors.New("not yet")
		}
		return err
	})
}

// ofULA reports whether a question is about what is bound to the IPv6 of an uplink that
// is none for IPv6, or for its network.
func ofULA(w *world, q Question) bool {
	isp := w.link("wan1")
	switch q := q.(type) {
	case Lookup:
		return isp.IPv6().Contains(q.Dst) && q.Out == "" || w.owner(q.From) == isp && q.From.Is6() || q.Out == "wan1" && q.Dst.Is6()
	case Dial:
		return isp.IPv6().Contains(q.Dst) || w.owner(q.From.Addr) == isp && q.From.Addr.Is6()
	case Call:
		return w.owner(q.Dst) == isp && q.Dst.Is6()
	}
	return false
}

// threadRA is what a Thread border router announces on the LAN.
func threadRA(lifetime time.Duration) lab.RA {
	ra := lab.DefaultRA(netip.MustParsePrefix("fd07::5/64"))
	ra.RouterLifetime = 0
	ra.Routes = []lab.RARoute{{Prefix: netip.MustParsePrefix("fd12:3456:789a:1::/64"), Lifetime: lifetime}}
	return ra
}

// thread waits until the border router's route is there, or gone.
func (w *world) thread(want bool) {
	w.t.Helper()
	_, err := w.WaitAddr(w.t.Context(), "lan0", lab.IPv6)
	w.must(err)
	w.eventually(fmt.Sprintf("the border router's route: %t", want), func() error {
		out, err := w.IP(w.t.Context(), "-6", "route", "show", "fd12:3456:789a:1::/64")
		if err == nil && strings.Contains(out, "fd12") != want {
			err = errors.New("not yet")
		}
		return err
	})
}
