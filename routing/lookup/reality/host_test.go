package reality_test

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multihomed/routing"
	"multihomed/routing/lookup"
	"multihomed/test/lab"
)

// last is the number of the last device, d4.
const last = 4

// newHost moves the calling goroutine's thread into a namespace of its own, with
// five devices, and two addresses of each family on each.
func newHost(tb testing.TB) []lookup.Interface {
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
	interfaces := []lookup.Interface{{Index: lo.Attrs().Index, Name: "lo", Up: true}}
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
		interfaces = append(interfaces, lookup.Interface{Index: d.Attrs().Index, Name: name, Up: true, Group: group})
	}
	// The kernel makes the local routes of IPv6 addresses some time later
	// (addrconf_dad_work in net/ipv6/addrconf.c).
	ctx, cancel := lab.Within(tb.Context(), 10*time.Second)
	defer cancel()
	must(tb, lab.Eventually(ctx, func() error {
		routes, err := handle.RouteListFiltered(unix.AF_INET6, &netlink.Route{Table: unix.RT_TABLE_LOCAL}, netlink.RT_FILTER_TABLE)
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
	return interfaces
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
