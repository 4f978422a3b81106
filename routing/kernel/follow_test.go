package kernel_test

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

// TestMirrorFollowsTheKernel is the proof of infer.go: whatever is done to the
// real kernel, in whatever order, the mirror holds what a fresh dump says.
func TestMirrorFollowsTheKernel(t *testing.T) {
	runtime.LockOSThread()
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t, rt)
		defer w.close()
		least := rapid.SampledFrom([]int{1, 40}).Draw(rt, "at least")
		for i, s := range rapid.SliceOfN(rapid.Custom(drawStep), least, 80).Draw(rt, "steps") {
			err := s.do(w)
			w.log = append(w.log, fmt.Sprintf("%d: %s: %v", i, s.what, err))
			// Some steps are seen one by one, some in a heap.
			if !s.look {
				continue
			}
			w.check()
		}
		w.check()
	})
}

// A world is a host to which random things happen.
type world struct {
	*host
	rt     *rapid.T
	mirror *kernel.Mirror
	log    []string
	routes []routeStep
	rules  []routing.Rule
	// told are the routes of main by interface and destination, as who follows
	// Changes has them; up is the state in which they were read whole.
	told map[int]*told
	// defaults are main's as who follows Changes has them.
	defaults [2][]routing.Route
	// thrown is what main throws, in the same way.
	thrown [2][]netip.Prefix
}

// told is what is known of one interface by Changes.
type told struct {
	up, interested bool
	ways           map[routing.Destination][]routing.Route
}

// follow does with Changes what the planner does: it reads the routes to the
// destinations that changed, and all of an interface only where it has to. Then it has
// what the mirror has.
func (w *world) follow() {
	c := w.mirror.Take()
	w.mirror.View(func(s *kernel.State) {
		for i, f := range routing.Families() {
			truth := s.Defaults(f)
			if c.All || c.Defaults[i] {
				w.defaults[i] = truth
			}
			if !slices.Equal(w.defaults[i], truth) {
				w.rt.Fatalf("after\n%s\nwho follows the changes has the defaults\n%v, and there are\n%v", strings.Join(w.log, "\n"), w.defaults[i], truth)
			}
		}
		for i, f := range routing.Families() {
			truth := s.Thrown(f)
			if c.All || c.Thrown[i] {
				w.thrown[i] = truth
			}
			if !slices.Equal(w.thrown[i], truth) {
				w.rt.Fatalf("after\n%s\nwho follows the changes has it that main throws\n%v, and it throws\n%v", strings.Join(w.log, "\n"), w.thrown[i], truth)
			}
		}
		for index := range w.told {
			if _, exists := s.NameOf(index); !exists {
				delete(w.told, index)
			}
		}
		for _, index := range s.Indexes() {
			l, _ := s.Link(index)
			truth := map[routing.Destination][]routing.Route{}
			for _, r := range l.Routes {
				d := routing.DestinationOf(r)
				truth[d] = append(truth[d], r)
			}
			have := w.told[index]
			_, changed := c.Links[index]
			switch {
			case c.All, have == nil, changed && (have.up != l.Up || have.interested != s.Interested(index)):
				if have == nil && !c.All && !changed {
					w.rt.Fatalf("after\n%s\nnobody was told of %s", strings.Join(w.log, "\n"), l.Name)
				}
				w.told[index] = &told{l.Up, s.Interested(index), truth}
				continue
			}
			for d := range c.Destinations[index] {
				if have.ways[d] = s.Ways(index, d); len(have.ways[d]) == 0 {
					delete(have.ways, d)
				}
			}
			if !maps.EqualFunc(have.ways, truth, slices.Equal) {
				w.rt.Fatalf("after\n%s\nwho follows the changes has of %s\n%v, and there is\n%v",
					strings.Join(w.log, "\n"), l.Name, have.ways, truth)
			}
		}
	})
}

func newWorld(t *testing.T, rt *rapid.T) *world {
	t.Helper()
	must(t, unix.Unshare(unix.CLONE_NEWNET))
	w := &world{host: &host{TB: t}, rt: rt, told: map[int]*told{}}
	var err error
	w.link, err = netlink.NewHandle(unix.NETLINK_ROUTE)
	must(t, err)
	w.raw, err = kernel.NewRequester()
	must(t, err)
	w.sysctl("ipv6/conf/default/accept_dad", "0")
	w.sysctl("ipv6/conf/default/router_solicitations", "0")
	w.sysctl("ipv4/nexthop_compat_mode", rapid.SampledFrom([]string{"1", "0"}).Draw(rt, "compat mode"))
	w.up("lo")
	for i := range 3 {
		w.makeLink(i)
	}
	w.mirror, err = kernel.Open(kernel.Config{Tables: tables, Interest: func(name string) bool {
		return !strings.HasPrefix(name, "p-") && name != "e2"
	}})
	must(t, err)
	if rapid.Bool().Draw(rt, "big host") {
		w.mirror.SetBudget(1)
	}
	must(t, w.mirror.Sync(context.Background()))
	w.follow()
	return w
}

func (w *world) close() {
	must(w, w.mirror.Close())
	must(w, w.raw.Close())
	w.link.Close()
}

func (w *world) check() {
	if diff := auditDiff(w, w.mirror); len(diff) > 0 {
		var text string
		w.mirror.View(func(s *kernel.State) { text = strings.Join(s.Lines(), "\n") })
		if os.Getenv("VERBOSE") == "" {
			text = ""
		}
		w.rt.Fatalf("after\n%s\nthe mirror differs (- mirror, + kernel):\n%s\n%s",
			strings.Join(w.log, "\n"), strings.Join(diff, "\n"), text)
	}
	w.follow()
}

// otherNamespace makes a network namespace that lives as long as the file.
func otherNamespace() (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{err: err}
			return
		}
		file, err := os.Open("/proc/thread-self/ns/net")
		done <- result{file, err}
	}()
	r := <-done
	return r.file, r.err
}

func parseAddr(address string) (*netlink.Addr, error) {
	local, peer, with := strings.Cut(address, " peer ")
	a, err := netlink.ParseAddr(local)
	if err != nil {
		return nil, err
	}
	if a.IP.To4() == nil {
		a.Flags = unix.IFA_F_NODAD
	}
	if with {
		if a.Peer, err = netlink.ParseIPNet(peer); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func ends(i int) string { return fmt.Sprintf("e%d", i) }

func (w *world) makeLink(i int) {
	name := ends(i)
	err := w.link.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "p-" + name})
	if err != nil {
		return
	}
	w.up(name)
	w.up("p-" + name)
	_ = w.addr(name, fmt.Sprintf("10.%d.0.2/24", i), false)
	_ = w.addr(name, fmt.Sprintf("2001:db8:%d::2/64", i), false)
}

func (w *world) addr(name, address string, del bool) error {
	l, err := w.link.LinkByName(name)
	if err != nil {
		return err
	}
	a, err := parseAddr(address)
	if err != nil {
		return err
	}
	if del {
		return w.link.AddrDel(l, a)
	}
	return w.link.AddrAdd(l, a)
}

type step struct {
	what string
	look bool
	do   func(*world) error
}

// GoString is what rapid prints.
func (s step) GoString() string { return s.what }

func (s routeStep) String() string {
	text := fmt.Sprintf("flags %x on %s: %s %s protocol %d type %d scope %d nexthop %d",
		s.flags, s.names, s.route.Family, s.route, s.route.Protocol, s.route.Type, s.route.Scope, s.nexthop)
	for i, l := range s.legs {
		text += fmt.Sprintf(" leg via %s dev %s", l.Gateway, s.names[i])
	}
	return text
}

type routeStep struct {
	kind, flags uint16
	names       []string
	route       routing.Route
	legs        []routing.Route
	nexthop     uint32
}

func drawStep(rt *rapid.T) step {
	s := step{look: rapid.IntRange(0, 2).Draw(rt, "look") == 0}
	i := rapid.IntRange(0, 2).Draw(rt, "link")
	name := ends(i)
	onLink := func(f func(w *world, l netlink.Link) error) func(*world) error {
		return func(w *world) error {
			l, err := w.link.LinkByName(name)
			if err != nil {
				return err
			}
			return f(w, l)
		}
	}
	kinds := []string{
		"route", "route", "route", "route", "route", "route", "route", "unroute", "unroute",
		"rule", "rule", "unrule", "address", "address", "unaddress", "unaddress",
		"up", "up", "down", "down", "delete", "make", "rename", "group", "mtu", "peer", "bridge",
		"sysctl", "interest", "lifetime", "anyip", "nexthop", "resync", "away",
	}
	kind := rapid.SampledFrom(kinds).Draw(rt, "kind")
	s.what = kind + " " + name + " "
	switch kind {
	case "route":
		r := drawRoute(rt)
		s.what = "route " + r.String()
		s.do = func(w *world) error { return w.doRoute(r, true) }
	case "unroute":
		n := rapid.IntRange(0, 30).Draw(rt, "which")
		narrow := rapid.Bool().Draw(rt, "exact")
		s.what = fmt.Sprintf("unroute %d %t", n, narrow)
		s.do = func(w *world) error {
			if len(w.routes) == 0 {
				return nil
			}
			r := w.routes[n%len(w.routes)]
			r.kind, r.flags = unix.RTM_DELROUTE, 0
			if !narrow {
				r.legs, r.names, r.nexthop = nil, r.names[:1], 0
				r.route.Gateway, r.route.PreferredSource, r.route.OnLink = netip.Addr{}, netip.Addr{}, false
				r.route.Attributes = routing.Attributes{}
			}
			return w.doRoute(r, false)
		}
	case "rule":
		r := drawRule(rt)
		var flags uint16 = unix.NLM_F_CREATE
		if rapid.Bool().Draw(rt, "exclusive") {
			flags |= unix.NLM_F_EXCL
		}
		s.what = fmt.Sprintf("rule %x %v proto %d", flags, r, r.Protocol)
		s.do = func(w *world) error {
			err := w.raw.Do(unix.RTM_NEWRULE, flags, func(b kernel.Body) { b.Rule(r) })
			if err == nil {
				w.rules = append(w.rules, r)
			}
			return err
		}
	case "unrule":
		n := rapid.IntRange(0, 30).Draw(rt, "which")
		s.what = fmt.Sprintf("unrule %d", n)
		s.do = func(w *world) error {
			if len(w.rules) == 0 {
				return nil
			}
			return w.raw.Do(unix.RTM_DELRULE, 0, func(b kernel.Body) { b.Rule(w.rules[n%len(w.rules)]) })
		}
	case "address", "unaddress":
		a := rapid.SampledFrom(addresses(i)).Draw(rt, "address")
		s.what += " " + a
		s.do = func(w *world) error { return w.addr(name, a, kind == "unaddress") }
	case "lifetime":
		a := rapid.SampledFrom(addresses(i)).Draw(rt, "address")
		valid := rapid.SampledFrom([]int{0, 3600, 7200}).Draw(rt, "valid")
		s.do = onLink(func(w *world, l netlink.Link) error {
			parsed, err := parseAddr(a)
			if err != nil {
				return err
			}
			parsed.ValidLft, parsed.PreferedLft = valid, valid
			return w.link.AddrReplace(l, parsed)
		})
	case "up":
		s.do = onLink(func(w *world, l netlink.Link) error { return w.link.LinkSetUp(l) })
	case "down":
		s.do = onLink(func(w *world, l netlink.Link) error { return w.link.LinkSetDown(l) })
	case "delete":
		s.do = onLink(func(w *world, l netlink.Link) error { return w.link.LinkDel(l) })
	case "away":
		s.do = onLink(func(w *world, l netlink.Link) error {
			// To another namespace, which ends at once and takes it along.
			elsewhere, err := otherNamespace()
			if err != nil {
				return err
			}
			defer elsewhere.Close()
			return w.link.LinkSetNsFd(l, int(elsewhere.Fd()))
		})
	case "make":
		s.do = func(w *world) error { w.makeLink(i); return nil }
	case "rename":
		other := ends(rapid.IntRange(0, 4).Draw(rt, "other"))
		up := rapid.Bool().Draw(rt, "while up")
		s.what += " to " + other
		s.do = onLink(func(w *world, l netlink.Link) error {
			if !up {
				_ = w.link.LinkSetDown(l)
			}
			err := w.link.LinkSetName(l, other)
			_ = w.link.LinkSetUp(l)
			return err
		})
	case "group":
		g := rapid.IntRange(0, 2).Draw(rt, "group")
		s.do = onLink(func(w *world, l netlink.Link) error { return w.link.LinkSetGroup(l, g) })
	case "mtu":
		mtu := rapid.SampledFrom([]int{1500, 1400, 1000, 60}).Draw(rt, "mtu")
		s.what += fmt.Sprint(mtu)
		s.do = onLink(func(w *world, l netlink.Link) error { return w.link.LinkSetMTU(l, mtu) })
	case "peer":
		up := rapid.Bool().Draw(rt, "up")
		s.what += fmt.Sprintf("'s peer up=%t", up)
		s.do = func(w *world) error {
			l, err := w.link.LinkByName("p-" + name)
			if err != nil {
				return err
			}
			if up {
				return w.link.LinkSetUp(l)
			}
			return w.link.LinkSetDown(l)
		}
	case "bridge":
		in := rapid.Bool().Draw(rt, "in")
		s.do = onLink(func(w *world, l netlink.Link) error {
			if !in {
				return w.link.LinkSetNoMaster(l)
			}
			_ = w.link.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br"}})
			br, err := w.link.LinkByName("br")
			if err != nil {
				return err
			}
			return w.link.LinkSetMaster(l, br)
		})
	case "sysctl":
		key := rapid.SampledFrom([]string{
			"ipv6/conf/" + name + "/disable_ipv6", "ipv6/route/skip_notify_on_dev_down",
			"ipv4/conf/all/promote_secondaries",
			// Not keep_addr_on_down: an address that was not announced yet when
			// the link went down then stays and never is.
		}).Draw(rt, "key")
		value := rapid.SampledFrom([]string{"0", "1"}).Draw(rt, "value")
		s.what = "sysctl " + key + "=" + value
		s.do = func(*world) error { return os.WriteFile("/proc/sys/net/"+key, []byte(value), 0) }
	case "interest":
		yes := rapid.Bool().Draw(rt, "interested")
		s.what += fmt.Sprint(yes)
		s.do = onLink(func(w *world, l netlink.Link) error {
			return w.mirror.SetInterest(context.Background(), map[int]bool{l.Attrs().Index: yes})
		})
	case "anyip":
		del := rapid.Bool().Draw(rt, "delete")
		s.do = func(w *world) error {
			lo, err := net.InterfaceByName("lo")
			if err != nil {
				return err
			}
			r := routing.Route{
				Family: routing.IPv4, Table: routing.TableLocal, Destination: prefix("10.0.0.0/8"), Type: 2,
				Scope: routing.ScopeHost, Protocol: 4, Device: lo.Index,
			}
			if del {
				return w.raw.Do(unix.RTM_DELROUTE, 0, func(b kernel.Body) { b.Route(r) })
			}
			return w.raw.Do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE, func(b kernel.Body) { b.Route(r) })
		}
	case "nexthop":
		id := uint32(rapid.IntRange(1, 2).Draw(rt, "id"))
		del := rapid.IntRange(0, 3).Draw(rt, "delete") == 0
		v6 := rapid.Bool().Draw(rt, "v6")
		s.what += fmt.Sprintf(" %d delete=%t v6=%t", id, del, v6)
		s.do = func(w *world) error { return w.nexthop(id, i, v6, del) }
	case "resync":
		s.do = func(w *world) error { return w.mirror.Resync(context.Background()) }
	}
	return s
}

func addresses(i int) []string {
	return []string{
		fmt.Sprintf("10.%d.0.2/24", i), fmt.Sprintf("10.%d.0.3/24", i), fmt.Sprintf("10.%d.0.2/25", i),
		"10.7.0.2/24", "10.7.0.2/32", "10.7.0.2/32 peer 10.7.0.9/32",
		fmt.Sprintf("2001:db8:%d::2/64", i), fmt.Sprintf("2001:db8:%d::3/64", i), "2001:db8:7::2/64", "2001:db8:7::2/128",
	}[:8+i%3]
}

func drawRoute(rt *rapid.T) routeStep {
	s := routeStep{kind: unix.RTM_NEWROUTE}
	s.flags = rapid.SampledFrom([]uint16{
		unix.NLM_F_CREATE | unix.NLM_F_EXCL, unix.NLM_F_CREATE | unix.NLM_F_EXCL, unix.NLM_F_CREATE,
		unix.NLM_F_CREATE | unix.NLM_F_APPEND, unix.NLM_F_CREATE | unix.NLM_F_REPLACE, unix.NLM_F_REPLACE,
	}).Draw(rt, "flags")
	r := routing.Route{
		Family:   rapid.SampledFrom([]routing.Family{routing.IPv4, routing.IPv6}).Draw(rt, "family"),
		Table:    rapid.SampledFrom([]routing.TableID{routing.TableMain, routing.TableMain, routing.TableMain, 10001, 10001, 10002, 100}).Draw(rt, "table"),
		Protocol: rapid.SampledFrom([]routing.Protocol{routing.Multihomed, 4, 9}).Draw(rt, "protocol"),
		Type:     rapid.SampledFrom([]routing.RouteType{1, 1, 1, 1, 1, 1, 6, 7, 9}).Draw(rt, "type"),
		Metric:   uint32(rapid.SampledFrom([]int{100, 100, 100, 100, 0, 200}).Draw(rt, "metric")),
	}
	r.Destination = r.Family.Any()
	if r.Family == routing.IPv4 {
		r.Scope = rapid.SampledFrom([]routing.Scope{0, 0, 0, 253, 253, 254}).Draw(rt, "scope")
		r.TOS = rapid.SampledFrom([]uint8{0, 0, 0, 0, 0, 0, 4}).Draw(rt, "tos")
		if rapid.Bool().Draw(rt, "net") {
			r.Destination = prefix("10.99.0.0/16")
		}
	} else if rapid.Bool().Draw(rt, "net") {
		r.Destination = prefix("2001:db8:99::/48")
		if rapid.IntRange(0, 4).Draw(rt, "source") == 0 {
			r.Source = prefix("2001:db8::/32")
		}
	}
	if rapid.IntRange(0, 4).Draw(rt, "mtu") == 0 {
		setMetric(&r, unix.RTAX_MTU, 1300)
	}
	if rapid.IntRange(0, 3).Draw(rt, "src") == 3 {
		i := rapid.IntRange(0, 2).Draw(rt, "srclink")
		r.PreferredSource = host4or6(r.Family, i, 2)
		if rapid.Bool().Draw(rt, "shared") {
			r.PreferredSource = host4or6(r.Family, 7, 2)
		}
	}
	n := rapid.SampledFrom([]int{1, 1, 1, 2, 3}).Draw(rt, "legs")
	if r.Type != 1 || r.Scope == routing.ScopeHost {
		n = 1
	}
	way := func() (routing.Route, string) {
		l := r
		i := rapid.IntRange(0, 2).Draw(rt, "dev")
		if r.Scope == 0 && (rapid.IntRange(0, 3).Draw(rt, "gateway") != 0 || r.Family == routing.IPv6 && n > 1) {
			l.Gateway = host4or6(r.Family, i, byte(rapid.IntRange(8, 9).Draw(rt, "gw")))
			l.OnLink = rapid.Bool().Draw(rt, "onlink")
		}
		return l, ends(i)
	}
	s.route = r
	for range n {
		l, name := way()
		if r.Type != 1 {
			l, name = r, ""
			l.PreferredSource = netip.Addr{}
		}
		s.legs = append(s.legs, l)
		s.names = append(s.names, name)
	}
	if n == 1 {
		s.route, s.legs = s.legs[0], nil
	}
	if r.Family == routing.IPv6 && s.route.Metric == 100 && n == 1 && !s.route.Gateway.IsValid() {
		// A route without a gateway that stands between the siblings of a
		// multipath route of its metric is neither listed nor flushed
		// (fib6_dump_node and fib6_clean_node skip to the last sibling):
		// nobody can see it.
		s.route.Metric = 101
	}
	if n == 1 && r.Type == 1 && rapid.IntRange(0, 9).Draw(rt, "nexthop") == 9 {
		s.nexthop = uint32(rapid.IntRange(1, 2).Draw(rt, "nhid"))
		s.route.Gateway, s.route.OnLink, s.names = netip.Addr{}, false, []string{""}
	}
	return s
}

func host4or6(f routing.Family, i int, n byte) netip.Addr {
	if f == routing.IPv4 {
		return netip.AddrFrom4([4]byte{10, byte(i), 0, n})
	}
	return addr(fmt.Sprintf("2001:db8:%d::%d", i, n))
}

func (w *world) doRoute(r routeStep, remember bool) error {
	index := func(name string) int {
		l, err := w.link.LinkByName(name)
		if name == "" || err != nil {
			return 0
		}
		return l.Attrs().Index
	}
	legs := make([]routing.Route, len(r.legs))
	for i := range r.legs {
		legs[i] = r.legs[i]
		legs[i].Device = index(r.names[i])
	}
	route := r.route
	if len(legs) == 0 {
		route.Device = index(r.names[0])
	}
	err := w.raw.Do(r.kind, r.flags, func(b kernel.Body) {
		b.Route(route)
		if len(legs) > 0 {
			b.Nexthops(legs)
		}
		if r.nexthop != 0 {
			b.Attribute32(30, r.nexthop)
		}
	})
	if err == nil && remember {
		w.routes = append(w.routes, r)
	}
	return err
}

func drawRule(rt *rapid.T) routing.Rule {
	r := routing.Rule{
		Family:   rapid.SampledFrom([]routing.Family{routing.IPv4, routing.IPv6}).Draw(rt, "family"),
		Priority: rapid.SampledFrom([]routing.Priority{10000, 10500, 9000, 77}).Draw(rt, "priority"),
		Action:   rapid.SampledFrom([]routing.Action{1, 1, 7}).Draw(rt, "action"),
		Protocol: rapid.SampledFrom([]routing.Protocol{routing.Multihomed, 4}).Draw(rt, "protocol"),
	}
	if r.Action == 1 {
		r.Table = rapid.SampledFrom([]routing.TableID{10001, 254, 77}).Draw(rt, "table")
		if rapid.Bool().Draw(rt, "suppress") {
			r.SuppressPrefixLength = routing.Some(uint32(rapid.IntRange(0, 1).Draw(rt, "length")))
		}
	}
	if rapid.Bool().Draw(rt, "from") {
		a := host4or6(r.Family, 1, 2)
		r.From = netip.PrefixFrom(a, a.BitLen())
	}
	if rapid.Bool().Draw(rt, "oif") {
		r.OIF = "e1"
	}
	return r
}

func (w *world) nexthop(id uint32, i int, v6, del bool) error {
	l, err := w.link.LinkByName(ends(i))
	if err != nil {
		return err
	}
	family := routing.IPv4
	if v6 {
		family = routing.IPv6
	}
	if del {
		return w.raw.Do(105, 0, func(b kernel.Body) {
			b.Bytes(0, 0, 0, 0)
			b.Word(0)
			b.Attribute32(1, id)
		})
	}
	return w.raw.Do(104, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, func(b kernel.Body) {
		b.Bytes(byte(family), 0, 4, 0)
		b.Word(0)
		b.Attribute32(1, id)
		b.Attribute32(5, uint32(l.Attrs().Index))
		b.Attribute(6, host4or6(family, i, 8).AsSlice())
	})
}
