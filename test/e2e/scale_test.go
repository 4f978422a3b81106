package e2e_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"multihomed/routing"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// lan is the nth of many links with static addresses in both families, and no peer
// at the other end.
func lan(n int) string { return fmt.Sprintf("lan%02d", n) }

func (r *rig) addLAN(n int) {
	r.t.Helper()
	_, err := r.NewLink(lab.LinkConfig{Name: lan(n)})
	r.must(err)
	r.must(r.WriteProfile(lan(n), lan(n),
		"ipv4.method=manual", fmt.Sprintf("ipv4.address1=10.64.%d.2/24,10.64.%d.1", n, n),
		"ipv6.method=manual", fmt.Sprintf("ipv6.address1=2001:db8:64:%x::2/64,2001:db8:64:%x::1", n, n)))
}

// upAtOnce activates profiles without waiting for each.
func (r *rig) upAtOnce(profiles ...string) {
	r.t.Helper()
	for _, p := range profiles {
		_, err := r.NMCLI(r.t.Context(), "--wait", "0", "connection", "up", p)
		r.must(err)
	}
}

// complete waits until every link has both families, then looks at each ladder.
func (r *rig) complete(links ...string) {
	r.t.Helper()
	labtest.Eventually(r.t, func() error {
		v, err := r.look()
		if err != nil {
			return err
		}
		if err := v.Converged(); err != nil {
			return err
		}
		has := map[string]int{}
		for _, p := range plans(v.Planner) {
			has[p.Link.Name] = len(p.Link.Tables)
		}
		for _, link := range links {
			if has[link] < 2 {
				return fmt.Errorf("%s has %d tables", link, has[link])
			}
		}
		return nil
	})
	// A router's default may come after its address.
	for _, link := range links {
		labtest.Eventually(r.t, func() error { return errors.Join(r.ladder(link, lab.IPv4), r.ladder(link, lab.IPv6)) })
	}
}

// TestFiftyLinks brings fifty links up at once, some by DHCP and RA.
func TestFiftyLinks(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	const dynamic, all = 5, 50
	var links []string
	for n := range dynamic {
		r.isp(lab.DefaultISP(n))
		links = append(links, fmt.Sprintf("wan%d", n))
	}
	for n := range all - dynamic {
		r.addLAN(n)
		links = append(links, lan(n))
	}
	r.must(r.ReloadProfiles(t.Context()))
	r.start()
	begin := time.Now()
	r.upAtOnce(links...)
	for _, link := range links {
		r.address(link, lab.IPv4)
		r.address(link, lab.IPv6)
	}
	addressed := time.Now()
	r.complete(links...)
	t.Logf("%d links in %v with NetworkManager; complete and looked at %v after the last address", all, addressed.Sub(begin).Round(time.Millisecond), time.Since(addressed).Round(time.Millisecond))
	for n := range dynamic {
		r.answeredBy(fmt.Sprintf("isp%d", n), lab.From{Addr: r.address(fmt.Sprintf("wan%d", n), lab.IPv4)}, lab.InternetAddr4)
	}
	// A fresh daemon finds everything as it would make it.
	r.kill9()
	before := r.ours()
	begin = time.Now()
	r.start()
	t.Logf("ready %v after the start", time.Since(begin).Round(time.Millisecond))
	r.unharmed(before, "a restart with fifty links")
	r.settled()
}

// TestAFlappingLinkLeaksNothing: one of 64 links goes away and comes back a
// thousand times.
func TestAFlappingLinkLeaksNothing(t *testing.T) {
	// Room for all links and a few more: tables that were not given back would
	// be missed among the 256 networks that come and go.
	r := newRig(t, lab.HostConfig{FastDAD: true}, "[tables]\nfirst = 10000\nlast = 10150\n")
	const all, byNM, byHand = 64, 100, 900
	var links []string
	for n := range all {
		r.addLAN(n)
		links = append(links, lan(n))
	}
	r.must(r.ReloadProfiles(t.Context()))
	r.start()
	r.upAtOnce(links...)
	r.complete(links...)
	r.settled()

	flapping := links[0]
	before, settled := r.ours(), r.usage()
	t.Logf("at first %v", settled)

	flaps := 0
	begin := time.Now()
	for range byNM {
		r.up(flapping) // which takes it down first
		flaps++
	}
	r.settled()
	afterNM := r.usage()
	t.Logf("%d times by NetworkManager in %v: %v", byNM, time.Since(begin).Round(time.Millisecond), afterNM)

	// By the kernel: another network comes and goes, every time another one for
	// a while (providers that renumber), and the link's own addresses go and come.
	link, err := netlink.LinkByName(flapping)
	r.must(err)
	own := make([]netlink.Addr, 0, 2)
	for _, a := range []string{"10.64.0.2/24", "2001:db8:64::2/64"} {
		addr, err := netlink.ParseAddr(a)
		r.must(err)
		addr.Flags = syscall.IFA_F_NODAD
		own = append(own, *addr)
	}
	begin = time.Now()
	for n := range byHand {
		guest, err := netlink.ParseAddr(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 65, byte(n % 256), 2}), 24).String())
		r.must(err)
		r.must(netlink.AddrAdd(link, guest))
		for i := range own {
			if own[i].IP.To4() == nil {
				own[i].Flags = syscall.IFA_F_NODAD | 0x200 // IFA_F_NOPREFIXROUTE
			}
			r.must(netlink.AddrDel(link, &own[i]))
		}
		for i := range own {
			// NetworkManager may have restored it already.
			r.must(netlink.AddrReplace(link, &own[i]))
		}
		r.must(netlink.AddrDel(link, guest))
		flaps++
		if n%50 == 49 {
			r.settled() // so that not everything is folded into a few passes
		}
	}
	// The kernel dropped main's IPv4 default with the address that it prefers, and says
	// nothing of it: NetworkManager does not put it back at every activation, and the
	// last resort follows main.
	labtest.Eventually(t, func() error {
		if err := r.Up(t.Context(), flapping); err != nil {
			return err
		}
		main, err := r.RoutesText(t.Context(), lab.IPv4, "main")
		if err != nil {
			return err
		}
		for line := range strings.Lines(main) {
			if strings.Contains(line, "default via") && strings.Contains(line, "dev "+flapping+" ") {
				return nil
			}
		}
		return fmt.Errorf("main has no default through %s:\n%s", flapping, main)
	})
	r.complete(flapping)
	v := r.settled()
	after := r.usage()
	t.Logf("%d times by hand in %v: %v", byHand, time.Since(begin).Round(time.Millisecond), after)
	r.unharmed(before, fmt.Sprintf("%d flaps", flaps))
	if n := len(slices.Collect(v.Planner.Links())); n != all {
		t.Errorf("there are %d links", n)
	}
	if t4 := r.table(v, flapping, routing.IPv4); t4 < 10000 || t4 > 10999 {
		t.Errorf("table %d", t4)
	}

	// The race detector's own memory comes on top, hence the generosity.
	if grown := after.rss - afterNM.rss; grown > 24<<10 {
		t.Errorf("memory grew by %d KiB during the last %d flaps", grown, byHand)
	}
	if after.fds > settled.fds+2 {
		t.Errorf("file descriptors grew from %d to %d", settled.fds, after.fds)
	}
	if after.threads > settled.threads+16 {
		t.Errorf("threads grew from %d to %d", settled.threads, after.threads)
	}
	worn := r.goroutines()
	r.start()
	r.settled()
	fresh := r.goroutines()
	t.Logf("goroutines: %d after %d flaps, %d in a fresh daemon", worn, flaps, fresh)
	if worn > fresh+3 {
		t.Errorf("goroutines grew from %d to %d:\n%s", fresh, worn, r.daemon.Log())
	}
	r.start()
	r.settled()
	r.unharmed(before, "all that")
}

// usage is what a process takes of the machine.
type usage struct{ rss, fds, threads int }

func (u usage) String() string {
	return fmt.Sprintf("RSS %d KiB, %d file descriptors, %d threads", u.rss, u.fds, u.threads)
}

func (r *rig) usage() usage {
	r.t.Helper()
	dir := fmt.Sprintf("/proc/%d/", r.daemon.Pid())
	status, err := os.ReadFile(dir + "status")
	r.must(err)
	fds, err := os.ReadDir(dir + "fd")
	r.must(err)
	u := usage{fds: len(fds)}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 1 {
			switch f[0] {
			case "VmRSS:":
				u.rss, _ = strconv.Atoi(f[1])
			case "Threads:":
				u.threads, _ = strconv.Atoi(f[1])
			}
		}
	}
	return u
}

// goroutines ends the daemon with SIGQUIT and counts the goroutines in its dump.
func (r *rig) goroutines() int {
	r.t.Helper()
	r.must(r.daemon.Signal(syscall.SIGQUIT))
	select {
	case <-r.daemon.Done():
	case <-r.t.Context().Done():
		r.t.Fatal("the daemon does not end")
	}
	return len(regexp.MustCompile(`(?m)^goroutine \d+ `).FindAllString(r.daemon.Log(), -1))
}
