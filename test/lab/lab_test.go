package lab_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

func TestMain(m *testing.M) {
	if child := os.Getenv(childEnv); child != "" {
		os.Exit(lab.Main(func() int { return runChild(child) }))
	}
	os.Exit(labtest.Main(m))
}

// connect adds a provider and activates a profile on its link.
func connect(t *testing.T, host *lab.Host, cfg lab.ISPConfig, settings ...string) *lab.ISP {
	t.Helper()
	isp := labtest.NewISP(t, host, cfg)
	must(t, host.AddProfile(t.Context(), cfg.Link, cfg.Link, settings...))
	must(t, host.Up(t.Context(), cfg.Link))
	return isp
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func waitAddrIn(t *testing.T, host *lab.Host, dev string, prefix netip.Prefix) netip.Addr {
	t.Helper()
	addr, err := host.WaitAddrIn(t.Context(), dev, prefix)
	must(t, err)
	return addr
}

func waitText(t *testing.T, what string, get func() (string, error), ok func(string) bool) {
	t.Helper()
	labtest.Eventually(t, func() error {
		text, err := get()
		if err != nil {
			return err
		}
		if !ok(text) {
			return fmt.Errorf("%s:\n%s", what, text)
		}
		return nil
	})
}

func waitMain(t *testing.T, host *lab.Host, f lab.Family, ok func(string) bool) {
	t.Helper()
	waitText(t, fmt.Sprintf("main table of %v", f),
		func() (string, error) { return host.RoutesText(t.Context(), f, "main") }, ok)
}

func has(s string) func(string) bool {
	return func(text string) bool { return strings.Contains(text, s) }
}

func hasNot(s string) func(string) bool {
	return func(text string) bool { return !strings.Contains(text, s) }
}

func TestProvidersServeWhatTheyAreToldTo(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true})
	for n := range 2 {
		cfg := lab.DefaultISP(n)
		cfg.Routes = []lab.Route{
			lab.DefaultVia(cfg.IPv4.Addr()),
			{Dst: netip.MustParsePrefix("10.8.0.0/16"), Via: netip.AddrFrom4([4]byte{100, 64, byte(n), 254})},
			{Dst: netip.MustParsePrefix("10.9.0.0/16"), Via: netip.AddrFrom4([4]byte{100, 64, byte(n), 253})},
		}
		isp := connect(t, host, cfg)
		dev := isp.Link().Name()
		capture, err := isp.Capture()
		must(t, err)
		for _, prefix := range []netip.Prefix{isp.IPv4(), isp.IPv6()} {
			src := waitAddrIn(t, host, dev, prefix)
			family := lab.IPv4
			if src.Is6() {
				family = lab.IPv6
			}
			dst := lab.InternetAddr(family)
			bound := lab.From{Device: dev}
			for what, probe := range map[string]func() (lab.Answer, error){
				"udp":  func() (lab.Answer, error) { return lab.DialUDP(ctx, bound, dst) },
				"tcp":  func() (lab.Answer, error) { return lab.DialTCP(ctx, bound, dst) },
				"ping": func() (lab.Answer, error) { return host.Ping(ctx, bound, dst) },
			} {
				answer, err := probe()
				if err != nil {
					t.Errorf("%s: %v", what, err)
				} else if answer.ISP != isp.Name() || answer.Peer.IsValid() && answer.Peer.Addr() != src {
					t.Errorf("%s from %v was answered by %+v", what, src, answer)
				}
			}
			// Three probes with at least one packet each, all seen by the
			// provider with the source that it gave.
			packets, err := capture.Matching(func(p lab.Packet) bool {
				return p.Src == src && p.Dst == dst && p.Link == dev && p.Family == family
			})
			must(t, err)
			if len(packets) < 3 {
				t.Errorf("captured of %v:\n%s", src, lab.FormatPackets(packets))
			}
		}
		foreign, err := capture.Foreign(isp.IPv4(), isp.IPv6())
		must(t, err)
		if len(foreign) > 0 {
			t.Errorf("foreign packets:\n%s", lab.FormatPackets(foreign))
		}
		waitMain(t, host, lab.IPv4, func(text string) bool {
			return strings.Contains(text, fmt.Sprintf("10.8.0.0/16 via 100.64.%d.254 dev wan%d", n, n)) &&
				strings.Contains(text, fmt.Sprintf("10.9.0.0/16 via 100.64.%d.253 dev wan%d", n, n))
		})
	}
}

// Without policy routing, the lab must show the very faults that multihomed is
// there to cure; otherwise no test in it proves anything.
func TestTheFaultsAreVisible(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true, Sysctls: []string{"net.ipv4.conf.default.rp_filter", "1"}})
	must(t, host.ServeEcho())
	isp0 := connect(t, host, lab.DefaultISP(0))
	isp1 := connect(t, host, lab.DefaultISP(1))
	capture, err := isp0.Capture()
	must(t, err)
	addr0 := waitAddrIn(t, host, "wan0", isp0.IPv4())
	addr1 := waitAddrIn(t, host, "wan1", isp1.IPv4())
	waitMain(t, host, lab.IPv4, has("default via 100.64.1.1"))

	answer, err := isp0.Call(ctx, lab.InternetAddr4, addr0)
	must(t, err)
	if answer.ISP != "host" || answer.Peer.Addr() != lab.InternetAddr4 {
		t.Errorf("the call on the first link was answered by %+v", answer)
	}
	short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	if answer, err := isp1.Call(short, isp1.Client4, addr1); err == nil {
		t.Errorf("the call on the second link was answered by %+v, without policy routing and with rp_filter=1", answer)
	}
	short, cancel = context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	if answer, err := lab.DialUDP(short, lab.From{Addr: addr1}, lab.InternetAddr4); err == nil {
		t.Errorf("a socket bound to the second link's address got %+v, without policy routing", answer)
	}
	foreign, err := capture.Foreign(isp0.IPv4(), isp0.IPv6())
	must(t, err)
	if !slices.ContainsFunc(foreign, func(p lab.Packet) bool { return p.Src == addr1 && p.DstPort == lab.EchoPort }) {
		t.Errorf("the capture missed the stray packet; it has:\n%s", lab.FormatPackets(capture.Packets()))
	}
}

func TestCaptureReportsDrops(t *testing.T) {
	host := labtest.NewHost(t, lab.HostConfig{NoBus: true})
	isp := labtest.NewISP(t, host, lab.ISPConfig{Name: "isp0", Link: "wan0", IPv4: netip.MustParsePrefix("192.0.2.1/24"), NoDHCP: true})
	must(t, isp.Link().SetUp(true))
	must(t, host.AddAddr("wan0", "192.0.2.2/24"))
	capture, err := isp.Capture()
	must(t, err)
	probe := func() {
		for range 50 {
			_, err := lab.DialUDP(t.Context(), lab.From{}, netip.MustParseAddr("192.0.2.1"))
			must(t, err)
		}
	}
	probe()
	_, err = capture.Foreign(isp.IPv4())
	must(t, err)
	must(t, capture.Starve(probe))
	if packets, err := capture.Foreign(isp.IPv4()); err == nil || !strings.Contains(err.Error(), "lost") {
		t.Errorf("packets were lost, and the capture says %v, %v", packets, err)
	}
}

func TestRouterAdvertisements(t *testing.T) {
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true})
	isp := connect(t, host, lab.DefaultISP(0))
	waitAddrIn(t, host, "wan0", isp.IPv6())
	waitMain(t, host, lab.IPv6, has("default via fe80:"))

	ra := isp.RA()
	ra.RouterLifetime = 0
	must(t, isp.SendRA(ra))
	waitMain(t, host, lab.IPv6, hasNot("default via"))

	ra = isp.RA()
	next := netip.MustParsePrefix("2001:db8:77::/64")
	ra.Preference = lab.PreferenceHigh
	ra.Prefixes = append(ra.Prefixes, lab.RAPrefix{Prefix: next, Valid: time.Hour, Preferred: time.Hour})
	ra.Routes = []lab.RARoute{{Prefix: netip.MustParsePrefix("2001:db8:88::/48"), Lifetime: time.Hour}}
	must(t, isp.SetRA(ra))
	waitAddrIn(t, host, "wan0", next)
	waitMain(t, host, lab.IPv6, func(text string) bool {
		return strings.Contains(text, "default via fe80:") && strings.Contains(text, "2001:db8:88::/48 via fe80:")
	})

	// A preferred lifetime may end at once. A valid one may not (RFC 4862,
	// 5.5.3 e): a prefix ends if it was given a short one to begin with.
	ra.Prefixes[1].Preferred = 0
	brief := netip.MustParsePrefix("2001:db8:99::/64")
	ra.Prefixes = append(ra.Prefixes, lab.RAPrefix{Prefix: brief, Valid: 2 * time.Second, Preferred: 2 * time.Second})
	must(t, isp.SendRA(ra))
	waitAddrIn(t, host, "wan0", brief)
	waitText(t, "addresses of wan0",
		func() (string, error) {
			return host.IP(t.Context(), "-6", "address", "show", "dev", "wan0", "deprecated")
		},
		has("2001:db8:77:"))
	waitText(t, "addresses of wan0",
		func() (string, error) { return host.IP(t.Context(), "-6", "address", "show", "dev", "wan0") },
		hasNot("2001:db8:99:"))
}

func TestStatefulDHCPv6WithDuplicateAddressDetection(t *testing.T) {
	host := labtest.NewHost(t, lab.HostConfig{})
	cfg := lab.DefaultISP(0)
	cfg.DHCPv6 = lab.StatefulDHCPv6
	ra := lab.DefaultRA(cfg.IPv6)
	ra.Managed, ra.Prefixes[0].NoSLAAC = true, true
	cfg.RA = &ra
	connect(t, host, cfg)
	addr := waitAddrIn(t, host, "wan0", cfg.IPv6)
	if !strings.HasPrefix(addr.String(), "2001:db8:0:1::1") { // ::1000 to ::1fff
		t.Errorf("wan0 has %v, which is not of the pool", addr)
	}
}

func TestRenewalToAnotherAddressAndGateway(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true})
	cfg := lab.DefaultISP(0)
	cfg.Renew = 3 * time.Second
	isp := connect(t, host, cfg, "ipv6.method", "disabled")
	first := waitAddrIn(t, host, "wan0", isp.IPv4())

	must(t, isp.Reconfigure(ctx, func(c *lab.ISPConfig) {
		c.Gateway = netip.MustParseAddr("100.64.0.254")
		c.PoolFirst, c.PoolLast = netip.MustParseAddr("100.64.0.50"), netip.MustParseAddr("100.64.0.59")
	}))
	second := waitAddrIn(t, host, "wan0", netip.MustParsePrefix("100.64.0.48/28"))
	if first == second {
		t.Errorf("the address is still %v", first)
	}
	waitMain(t, host, lab.IPv4, has("default via 100.64.0.254 dev wan0"))

	// Another subnet altogether, with a router outside of it.
	must(t, isp.Reconfigure(ctx, func(c *lab.ISPConfig) {
		c.IPv4 = netip.MustParsePrefix("192.0.2.1/28")
		c.Gateway = netip.MustParseAddr("198.18.0.1")
		c.PoolFirst, c.PoolLast = netip.Addr{}, netip.Addr{}
	}))
	waitAddrIn(t, host, "wan0", netip.MustParsePrefix("192.0.2.0/28"))
	waitMain(t, host, lab.IPv4, has("default via 198.18.0.1 dev wan0"))
	answer, err := lab.DialUDP(ctx, lab.From{}, lab.InternetAddr4)
	must(t, err)
	if answer.ISP != "isp0" {
		t.Errorf("answered by %+v", answer)
	}
}

func TestLinksComeAndGo(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true})
	isp := connect(t, host, lab.DefaultISP(0), "connection.autoconnect", "yes")
	link := isp.Link()
	capture, err := isp.Capture()
	must(t, err)
	waitAddrIn(t, host, "wan0", isp.IPv4())
	index, err := link.Index()
	must(t, err)

	must(t, link.SetCarrier(false))
	must(t, host.WaitDeviceState(ctx, "wan0", "unavailable")) // after NetworkManager's six seconds
	must(t, link.SetCarrier(true))
	must(t, host.WaitDeviceState(ctx, "wan0", "connected"))

	must(t, link.SetUp(false))
	must(t, link.SetUp(true))
	waitMain(t, host, lab.IPv4, has("default via 100.64.0.1"))

	must(t, link.Delete())
	labtest.Eventually(t, func() error {
		if _, err := link.Index(); err == nil {
			return fmt.Errorf("%s is still there", link.Name())
		}
		return nil
	})
	must(t, link.Recreate())
	must(t, host.WaitDeviceState(ctx, "wan0", "connected"))
	waitAddrIn(t, host, "wan0", isp.IPv4())
	waitMain(t, host, lab.IPv4, has("default via 100.64.0.1"))
	again, err := link.Index()
	must(t, err)
	if again == index {
		t.Errorf("the recreated link has the old index %d", index)
	}

	capture.Reset()
	answer, err := lab.DialUDP(ctx, lab.From{}, lab.InternetAddr4)
	must(t, err)
	if answer.ISP != "isp0" {
		t.Errorf("answered by %+v", answer)
	}
	packets, err := capture.Matching(func(p lab.Packet) bool { return p.Dst == lab.InternetAddr4 })
	must(t, err)
	if len(packets) == 0 {
		t.Error("the capture does not follow a link that was recreated")
	}
}

func TestNetworkManagerAndBusComeAndGo(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true})
	isp := connect(t, host, lab.DefaultISP(0))
	waitAddrIn(t, host, "wan0", isp.IPv4())
	pid := host.NMPid()

	must(t, host.RestartNM(ctx))
	if host.NMPid() == pid {
		t.Error("RestartNM left the same process")
	}
	must(t, host.WaitDeviceState(ctx, "wan0", "connected"))

	must(t, host.KillNM())
	if host.NMPid() != 0 {
		t.Error("KillNM left a process")
	}
	if out, err := host.NMCLI(ctx, "general"); err == nil {
		t.Errorf("nmcli without NetworkManager: %s", out)
	} else if !strings.Contains(err.Error(), "NetworkManager is not running") {
		t.Errorf("the error lacks nmcli's output: %v", err)
	}
	must(t, host.StartNM(ctx))
	must(t, host.WaitDeviceState(ctx, "wan0", "connected"))

	must(t, host.KillBus())
	must(t, host.StartBus(ctx))
	must(t, host.RestartNM(ctx))
	must(t, host.WaitDeviceState(ctx, "wan0", "connected"))
	must(t, host.StopBus(ctx))
	must(t, host.StartBus(ctx))
}

func TestProfiles(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true})
	_, err := host.NewLink(lab.LinkConfig{Name: "lan0"})
	must(t, err)
	before, err := host.Snapshot(ctx)
	must(t, err)
	must(t, host.AddProfile(ctx, "lan", "lan0", "ipv6.method", "disabled", "ipv4.method", "manual", "ipv4.addresses", "192.0.2.5/24"))
	must(t, host.Up(ctx, "lan"))
	waitAddrIn(t, host, "lan0", netip.MustParsePrefix("192.0.2.5/32"))
	must(t, host.Modify(ctx, "lan", "+ipv4.addresses", "192.0.2.6/24"))
	must(t, host.Reapply(ctx, "lan0"))
	waitAddrIn(t, host, "lan0", netip.MustParsePrefix("192.0.2.6/32"))
	must(t, host.ModifyDevice(ctx, "lan0", "+ipv4.addresses", "192.0.2.7/24"))
	waitAddrIn(t, host, "lan0", netip.MustParsePrefix("192.0.2.7/32"))
	during, err := host.Snapshot(ctx)
	must(t, err)
	if !strings.Contains(during, "IPv4 main: dev=lan0 dst=192.0.2.0/24") || during == before {
		t.Errorf("the snapshot lacks the link's route:\n%s", during)
	}
	// A snapshot covers foreign objects only.
	_, err = host.IP(ctx, "rule", "add", "from", "192.0.2.5", "lookup", "10000", "priority", "10000", "protocol", "150")
	must(t, err)
	_, err = host.IP(ctx, "route", "add", "192.0.2.0/24", "dev", "lan0", "table", "10000", "protocol", "150")
	must(t, err)
	same, err := host.Snapshot(ctx)
	must(t, err)
	if same != during {
		t.Errorf("snapshot with a rule of ours:\n%s\nand before:\n%s", same, during)
	}
	left, err := host.Leftovers()
	must(t, err)
	if len(left) != 2 {
		t.Errorf("leftovers: %q", left)
	}
	rules, err := host.RulesText(ctx, lab.IPv4)
	must(t, err)
	if !strings.Contains(rules, "10000:\tfrom 192.0.2.5 lookup 10000 proto 150") {
		t.Errorf("rules:\n%s", rules)
	}
	get, err := host.RouteGet(ctx, netip.MustParseAddr("192.0.2.99"), netip.MustParseAddr("192.0.2.6"))
	must(t, err)
	if !strings.Contains(get, "dev lan0") {
		t.Errorf("route get: %s", get)
	}
	must(t, host.Down(ctx, "lan"))
	must(t, host.Delete(ctx, "lan"))
	after, err := host.Snapshot(ctx)
	must(t, err)
	if v4(after) != v4(before) { // NetworkManager leaves the link's disable_ipv6 set
		t.Errorf("snapshot after:\n%s\nand before:\n%s", after, before)
	}
}

// v4 is IPv4's part of a snapshot.
func v4(snapshot string) string {
	before, _, _ := strings.Cut(snapshot, "IPv6")
	return before
}

func TestBridgeAndContainer(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true, Sysctls: []string{"net.ipv4.ip_forward", "1"}})
	isp := connect(t, host, lab.DefaultISP(0), "ipv6.method", "disabled")
	uplink := waitAddrIn(t, host, "wan0", isp.IPv4())
	docker, err := host.NewBridge("docker0", netip.MustParsePrefix("172.17.0.1/16"))
	must(t, err)
	inside := netip.MustParsePrefix("172.17.0.2/16")
	container, err := docker.Container("web", inside)
	must(t, err)

	answer, err := lab.DialTCP(ctx, lab.From{Addr: uplink}, inside.Addr())
	must(t, err)
	if answer.ISP != "web" || answer.Peer.Addr() != uplink {
		t.Errorf("the container answered %+v", answer)
	}
	must(t, isp.RouteTo(inside, uplink))
	waitMain(t, host, lab.IPv4, has("default via"))
	answer, err = container.Call(ctx, lab.From{}, "tcp", lab.InternetAddr4)
	must(t, err)
	if answer.ISP != "isp0" || answer.Peer.Addr() != inside.Addr() {
		t.Errorf("out of the container: %+v", answer)
	}
}

func TestSameAddressOnTwoModemsAndTwoLinksInOneSubnet(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true})
	modem := netip.MustParseAddr("192.168.8.100")
	for n := range 2 {
		isp := connect(t, host, lab.ISPConfig{
			Name: fmt.Sprintf("modem%d", n), Link: fmt.Sprintf("wwan%d", n),
			IPv4: netip.MustParsePrefix("192.168.8.1/24"), PoolFirst: modem,
		}, "ipv6.method", "disabled")
		waitAddrIn(t, host, isp.Link().Name(), netip.PrefixFrom(modem, 32))
		capture, err := isp.Capture()
		must(t, err)
		// Nothing is promised without the daemon but that a packet arrives.
		short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		_, _ = lab.DialUDP(short, lab.From{Device: isp.Link().Name()}, lab.InternetAddr4)
		cancel()
		packets, err := capture.Matching(func(p lab.Packet) bool { return p.Src == modem && p.Dst == lab.InternetAddr4 })
		must(t, err)
		if len(packets) == 0 {
			t.Errorf("no packet left by %s", isp.Link().Name())
		}
	}

	isp := connect(t, host, lab.DefaultISP(0), "ipv6.method", "disabled")
	second, err := isp.AddLink(lab.LinkConfig{Name: "wan9"})
	must(t, err)
	must(t, host.AddProfile(ctx, "wan9", "wan9", "ipv6.method", "disabled"))
	must(t, host.Up(ctx, "wan9"))
	a, b := waitAddrIn(t, host, "wan0", isp.IPv4()), waitAddrIn(t, host, second.Name(), isp.IPv4())
	if a == b {
		t.Errorf("both links have %v", a)
	}
}

func TestManyLinks(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true})
	begin := time.Now()
	for n := range 64 {
		_, err := host.NewLink(lab.LinkConfig{Name: fmt.Sprintf("eth%d", n)})
		must(t, err)
	}
	t.Logf("64 links: %v", time.Since(begin))

	begin = time.Now()
	var wg sync.WaitGroup
	errs := make([]error, 50)
	for n := range errs {
		wg.Go(func() { _, errs[n] = host.NewISP(ctx, lab.DefaultISP(n)) })
	}
	wg.Wait()
	for _, err := range errs {
		must(t, err)
	}
	t.Logf("50 providers: %v", time.Since(begin))
	begin = time.Now()
	for n := range errs {
		name := fmt.Sprintf("wan%d", n)
		must(t, host.WriteProfile(name, name, "ipv4.method=auto", "ipv6.method=auto"))
	}
	must(t, host.ReloadProfiles(ctx))
	t.Logf("50 profiles: %v", time.Since(begin))
	begin = time.Now()
	for n := range errs {
		_, err := host.NMCLI(ctx, "--wait", "0", "connection", "up", fmt.Sprintf("wan%d", n))
		must(t, err)
	}
	for n := range errs {
		cfg := lab.DefaultISP(n)
		waitAddrIn(t, host, cfg.Link, cfg.IPv4)
		waitAddrIn(t, host, cfg.Link, cfg.IPv6)
	}
	t.Logf("50 activations: %v", time.Since(begin))
}

func TestDispatcher(t *testing.T) {
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true})
	must(t, host.EnableDispatcher())
	out := filepath.Join(t.TempDir(), "events")
	script := "#!/bin/sh\necho \"$1 $2\" >>" + out + "\n"
	must(t, os.WriteFile("/etc/NetworkManager/dispatcher.d/50-test", []byte(script), 0o755))
	connect(t, host, lab.DefaultISP(0))
	labtest.Eventually(t, func() error {
		events, err := os.ReadFile(out)
		if err == nil && !strings.Contains(string(events), "wan0 up\n") {
			err = fmt.Errorf("events: %q", events)
		}
		return err
	})
}

// A test that ends between two of its commands leaves no host without the kernel's rules.
func TestKernelRulesComeBack(t *testing.T) {
	families := []lab.Family{lab.IPv4, lab.IPv6}
	host, err := lab.NewHost(t.Context(), lab.HostConfig{NoNM: true, NoBus: true})
	must(t, err)
	var before, after []string
	for _, f := range families {
		text, err := host.RulesText(t.Context(), f)
		must(t, err)
		before = append(before, text)
		flag := map[lab.Family]string{lab.IPv4: "-4", lab.IPv6: "-6"}[f]
		for _, words := range [][]string{{"flush"}, {"add", "priority", "100", "lookup", "main"}, {"add", "priority", "32766", "lookup", "77"}} {
			_, err = host.IP(t.Context(), append([]string{flag, "rule"}, words...)...)
			must(t, err)
		}
	}
	must(t, host.Close())
	host = labtest.NewHost(t, lab.HostConfig{NoNM: true, NoBus: true})
	for _, f := range families {
		text, err := host.RulesText(t.Context(), f)
		must(t, err)
		after = append(after, text)
	}
	if !slices.Equal(before, after) {
		t.Errorf("rules before: %q, after: %q", before, after)
	}
}

// Root is a directory with another release; here, the machine's own files under
// another name.
func TestOtherRelease(t *testing.T) {
	root := t.TempDir()
	must(t, lab.BindMount("/", root))
	t.Cleanup(func() { must(t, lab.Unmount(root)) })
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true, Root: root})
	isp := connect(t, host, lab.DefaultISP(0))
	waitAddrIn(t, host, "wan0", isp.IPv4())
	target, err := os.Readlink(fmt.Sprintf("/proc/%d/root", host.NMPid()))
	must(t, err)
	if target != root {
		t.Errorf("NetworkManager's root is %s", target)
	}
}

func TestProcess(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{NoBus: true})
	self, err := os.Executable()
	must(t, err)
	p, err := host.Start(lab.ProcessConfig{Path: self, Env: []string{childEnv + "=notify"}, Notify: true})
	must(t, err)
	_, err = p.WaitNotify(ctx, "READY=1")
	must(t, err)
	line, err := p.WaitLine(ctx, "second")
	must(t, err)
	if line != "the second line" {
		t.Errorf("line %q of\n%s", line, p.Log())
	}
	must(t, p.Stop(ctx))
	if err := p.Wait(ctx); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	if log, notes := p.Log(), p.Notes(); !strings.HasSuffix(log, "the last line") || !slices.Contains(notes, "STOPPING=1") {
		t.Errorf("it ended after %q and %q", log, notes)
	}
	if _, err := p.WaitLine(ctx, "never"); err == nil || !strings.Contains(err.Error(), "the first line") {
		t.Errorf("waiting for a line of a process that has ended: %v", err)
	}

	p, err = host.Start(lab.ProcessConfig{Path: self, Env: []string{childEnv + "=notify"}})
	must(t, err)
	_, err = p.WaitLine(ctx, "second")
	must(t, err)
	must(t, p.Kill())
	if err := p.Wait(ctx); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("after SIGKILL: %v", err)
	}
}
