package reality_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"multihomed/routing"
	"multihomed/routing/lookup"
	"multihomed/test/lab"
)

// last is the number of the last device, d4.
const last = 4

// vrfTable is the table of vrf0, which d4 belongs to where the kernel knows VRFs.
const vrfTable = 201

// features are what a kernel knows; those of Debian lack some selectors.
type features struct{ vrf, dscp, dscpMask, flowLabel, portMask, suppressedStays bool }

// probe tries which selectors the kernel takes, and whether it takes a route that a rule has suppressed.
func probe(tb testing.TB, index map[string]int) features {
	tb.Helper()
	reader := openReader(tb)
	takes := func(r routing.Rule) bool {
		// What a kernel does not know, it refuses or leaves out.
		r.Priority, r.Action, r.Table = 1, routing.ActionLookup, routing.TableMain
		flush(tb)
		err := addRule(r)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
			return false
		}
		must(tb, err)
		facts, err := reader.Facts(tb.Context(), r.Family)
		must(tb, err)
		return len(facts.Rules) == 1 && facts.Rules[0] == r
	}
	f := features{
		vrf:       index["vrf0"] != 0,
		dscp:      takes(routing.Rule{Family: routing.IPv4, DSCP: routing.Some(1)}),
		dscpMask:  takes(routing.Rule{Family: routing.IPv4, DSCP: routing.Some(1), DSCPMask: 1}),
		flowLabel: takes(routing.Rule{Family: routing.IPv6, FlowLabel: routing.Some(1), FlowLabelMask: 1}),
		portMask:  takes(routing.Rule{Family: routing.IPv4, SourcePorts: routing.PortRange{First: 1, Last: 1, Mask: 0xfff1}}),
	}
	flush(tb)
	must(tb, addRule(routing.Rule{Family: routing.IPv6, Priority: 1, Action: routing.ActionLookup, Table: routing.TableMain, SuppressPrefixLength: routing.Some(0)}))
	must(tb, addRoute(routing.Route{Family: routing.IPv6, Table: routing.TableMain, Destination: routing.IPv6.Any(), Type: routing.RouteUnicast, Device: index["d1"]}))
	interfaces, err := reader.Facts(tb.Context(), routing.IPv6)
	must(tb, err)
	answer, err := reader.Ask(tb.Context(), interfaces.Interfaces, lookup.Flow{To: netip.MustParseAddr("2600::1")})
	must(tb, err)
	f.suppressedStays = answer.Unsent == lookup.None
	flush(tb)
	return f
}

// newHost moves the calling goroutine's thread into a namespace of its own, with
// five devices, and two addresses of each family on each; with nexthop objects, and with a VRF if the
// kernel knows them, as Debian's do (test/vm). It returns the interfaces' indexes.
func newHost(tb testing.TB) map[string]int {
	tb.Helper()
	runtime.LockOSThread()
	must(tb, unix.Unshare(unix.CLONE_NEWNET))
	for name, value := range map[string]string{
		"ipv6/conf/default/accept_dad": "0", "ipv6/conf/default/router_solicitations": "0",
		"ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0",
		"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1",
	} {
		must(tb, os.WriteFile("/proc/sys/net/"+name, []byte(value), 0))
	}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	must(tb, err)
	tb.Cleanup(handle.Close)
	lo, err := handle.LinkByName("lo")
	must(tb, err)
	must(tb, handle.LinkSetUp(lo))
	index := map[string]int{"lo": lo.Attrs().Index}
	if vrf := (&netlink.Vrf{LinkAttrs: netlink.LinkAttrs{Name: "vrf0"}, Table: vrfTable}); handle.LinkAdd(vrf) == nil {
		must(tb, handle.LinkSetUp(vrf))
		index["vrf0"] = vrf.Attrs().Index
	} else if os.Getenv(lab.SlowEnv) != "" {
		tb.Fatal("Debian's kernels have VRFs, and this one has none")
	}
	for i, group := range []uint32{0, 5, 28008, 5, 0} {
		name := fmt.Sprintf("d%d", i)
		must(tb, handle.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, Group: group}, PeerName: "p" + name}))
		for _, end := range []string{"p" + name, name} {
			l, err := handle.LinkByName(end)
			must(tb, err)
			must(tb, handle.LinkSetUp(l))
		}
		d, err := handle.LinkByName(name)
		must(tb, err)
		must(tb, handle.LinkSetGroup(d, int(group)))
		if i == last && index["vrf0"] != 0 {
			must(tb, handle.LinkSetMasterByIndex(d, index["vrf0"]))
		}
		for _, host := range []int{1, 5} {
			for _, text := range []string{fmt.Sprintf("10.%d.0.%d/24", i, host), fmt.Sprintf("2001:db8:%d::%d/64", i, host)} {
				a, err := netlink.ParseAddr(text)
				must(tb, err)
				if a.IP.To4() == nil {
					a.Flags = unix.IFA_F_NODAD
				}
				must(tb, handle.AddrAdd(d, a))
			}
		}
		index[name] = d.Attrs().Index
	}
	// The kernel makes the local routes of IPv6 addresses some time later
	// (addrconf_dad_work in net/ipv6/addrconf.c).
	ctx, cancel := lab.Within(tb.Context(), 10*time.Second)
	defer cancel()
	must(tb, lab.Eventually(ctx, func() error {
		routes, err := handle.RouteListFiltered(unix.AF_INET6, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return err
		}
		have := map[string]bool{}
		for _, r := range routes {
			have[r.Dst.String()] = true
		}
		for i := range last + 1 {
			for _, host := range []int{1, 5} {
				a := netip.MustParsePrefix(fmt.Sprintf("2001:db8:%d::%d/128", i, host)).String()
				if !have[a] {
					return fmt.Errorf("there is no local route to %s", a)
				}
			}
		}
		return nil
	}))
	return index
}

// gatewayOf is the router behind a device.
func gatewayOf(family routing.Family, i int) netip.Addr {
	if family == routing.IPv4 {
		return netip.MustParseAddr(fmt.Sprintf("10.%d.0.254", i))
	}
	return netip.MustParseAddr(fmt.Sprintf("2001:db8:%d::fe", i))
}

// makeNexthop makes a nexthop object, or a group of objects, that leads through some devices, and
// returns its number. Each route has its own: IPv6 keeps a copy of the route with the object, and
// answers and suppresses by that of another route that shares it (rt6_get_pcpu_route in net/ipv6/route.c).
//
// The kernel refuses a router that main has by another device (EINVAL, ip6_route_check_nh_onlink).
func makeNexthop(family routing.Family, index map[string]int, devices ...int) (uint32, error) {
	var members []uint32
	for _, i := range devices {
		lastNexthop++
		if err := addNexthop(lastNexthop, family, index[fmt.Sprintf("d%d", i)], gatewayOf(family, i)); err != nil {
			return 0, err
		}
		members = append(members, lastNexthop)
	}
	if len(devices) == 1 {
		return lastNexthop, nil
	}
	lastNexthop++
	return lastNexthop, addNexthop(lastNexthop, family, 0, netip.Addr{}, members...)
}

var lastNexthop uint32

// configure sets what decides about packets that come in.
func configure(tb testing.TB, t *rapid.T) {
	tb.Helper()
	set := func(name string, value int) { sysctl(tb, "ipv4/conf/"+name, value) }
	set("all/rp_filter", pick(t, "rp_filter", 0, 0, 0, 1, 2))
	set("all/src_valid_mark", pick(t, "src_valid_mark", 0, 0, 1))
	for i := range last + 1 {
		device := fmt.Sprintf("d%d/", i)
		set(device+"rp_filter", pick(t, "rp_filter", 0, 0, 0, 1, 2))
		set(device+"src_valid_mark", pick(t, "src_valid_mark", 0, 0, 1))
		set(device+"accept_local", pick(t, "accept_local", 0, 0, 1))
		set(device+"forwarding", pick(t, "forwarding", 1, 1, 1, 1, 1, 0))
	}
}

// base are the rules of a host that has just booted.
func base(tb testing.TB) {
	tb.Helper()
	for _, family := range routing.Families() {
		for priority, table := range map[routing.Priority]routing.TableID{0: routing.TableLocal, 32766: routing.TableMain} {
			must(tb, addRule(routing.Rule{Family: family, Priority: priority, Action: routing.ActionLookup, Table: table}))
		}
	}
}

func sysctl(tb testing.TB, name string, value int) {
	tb.Helper()
	must(tb, os.WriteFile("/proc/sys/net/"+name, []byte(strconv.Itoa(value)), 0))
}
