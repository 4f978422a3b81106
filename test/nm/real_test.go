package nm_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	gnm "github.com/Wifx/gonetworkmanager/v2"
	"golang.org/x/sys/unix"

	"multihomed/nm"
	"multihomed/routing"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

func static(n int, more ...string) []string {
	return append([]string{
		"ipv4.method", "manual", "ipv4.addresses", fmt.Sprintf("100.64.%d.10/24", n),
		"ipv4.gateway", fmt.Sprintf("100.64.%d.1", n), "ipv6.method", "ignore",
	}, more...)
}

func gateway(d nm.Device) string { return d.Intents[routing.IPv4].Gateway.String() }

// cable connects wan0 without a peer: enough for static profiles.
func cable(t *testing.T, host *lab.Host, name string) *lab.Link {
	t.Helper()
	l, err := host.NewLink(lab.LinkConfig{Name: name})
	must(t, err)
	return l
}

func TestUpDownSwitch(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true})
	cable(t, host, "wan0")
	must(t, host.AddProfile(ctx, "one", "wan0", static(0)...))
	must(t, host.AddProfile(ctx, "two", "wan0", static(1)...))
	f := follow(t, nm.Options{})
	s := f.awaitComplete(t)
	if !s.Running || s.Startup || !strings.HasPrefix(s.Version, "1.") || s.Reason != "" {
		t.Errorf("status is %+v", s.Status)
	}

	must(t, host.Up(ctx, "one"))
	d := f.awaitDevice(t, "wan0", "is activated with one", func(d nm.Device) bool {
		return d.State == gnm.NmDeviceStateActivated && d.ProfileKnown && d.ProfileID == "one"
	})
	if v, reason := f.verdict("wan0"); v != nm.Link {
		t.Errorf("active wan0 is not a link: %s", reason)
	}
	if got := gateway(d); got != "100.64.0.1" {
		t.Errorf("gateway is %s", got)
	}
	if d.Type != gnm.NmDeviceTypeVeth && d.Type != gnm.NmDeviceTypeEthernet {
		t.Errorf("type is %s", nm.TypeName(d.Type))
	}

	// Up again on the active link: through deactivating and disconnected.
	f.begin()
	must(t, host.Up(ctx, "one"))
	f.awaitDevice(t, "wan0", "is activated again", func(d nm.Device) bool {
		return d.State == gnm.NmDeviceStateActivated && d.ProfileKnown
	})

	must(t, host.Up(ctx, "two"))
	d = f.awaitDevice(t, "wan0", "has switched to two", func(d nm.Device) bool {
		return d.State == gnm.NmDeviceStateActivated && d.ProfileKnown && d.ProfileID == "two"
	})
	if got := gateway(d); got != "100.64.1.1" {
		t.Errorf("gateway after the switch is %s", got)
	}
	f.awaitVerdict(t, "wan0", nm.Link)
	if slices.Contains(f.happened(), "wan0: no link") {
		t.Errorf("what was a link became none on the way: %v", f.happened())
	}

	must(t, host.Down(ctx, "two"))
	d = f.awaitDevice(t, "wan0", "is disconnected", func(d nm.Device) bool { return d.State == gnm.NmDeviceStateDisconnected })
	f.awaitVerdict(t, "wan0", nm.Draining)
	if d.ProfileID != "two" || gateway(d) != "100.64.1.1" {
		t.Errorf("a draining link lost what was known of it: %+v", d)
	}
	must(t, host.Up(ctx, "one"))
	f.awaitVerdict(t, "wan0", nm.Link)
}

// What changes on an active device without a new activation arrives.
func TestReapplyAndModify(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true})
	cable(t, host, "wan0")
	must(t, host.AddProfile(ctx, "one", "wan0", static(0)...))
	f := follow(t, nm.Options{})
	must(t, host.Up(ctx, "one"))
	f.awaitDevice(t, "wan0", "is activated", func(d nm.Device) bool {
		return d.State == gnm.NmDeviceStateActivated && d.ProfileKnown
	})
	f.begin()

	for _, step := range []struct {
		settings []string
		what     string
		ok       func(nm.Device) bool
	}{
		{[]string{"ipv4.gateway", "100.64.0.2"}, "gateway .2", func(d nm.Device) bool { return gateway(d) == "100.64.0.2" }},
		{[]string{"+ipv4.routes", "10.9.0.0/16 table=1234"}, "table 1234 named by a route", func(d nm.Device) bool { return slices.Equal(d.RouteTables, []routing.TableID{1234}) }},
	} {
		begin := time.Now()
		must(t, host.ModifyDevice(ctx, "wan0", step.settings...))
		returned := time.Now()
		f.awaitDevice(t, "wan0", step.what, step.ok)
		t.Logf("modify %v: nmcli took %s, known %s after it returned", step.settings, returned.Sub(begin).Round(time.Millisecond/10), time.Since(returned).Round(time.Millisecond/10))
	}

	must(t, host.Modify(ctx, "one", "ipv4.gateway", "100.64.0.3"))
	if d, _ := f.Device("wan0"); gateway(d) == "100.64.0.3" {
		t.Error("a stored change counts before it is applied")
	}
	must(t, host.Reapply(ctx, "wan0"))
	f.awaitDevice(t, "wan0", "gateway .3", func(d nm.Device) bool { return gateway(d) == "100.64.0.3" })
	if h := f.happened(); len(h) != 0 {
		t.Errorf("the verdict changed: %v", h)
	}

	// NetworkManager 1.52.1 ends when `device modify` changes the table of an
	// active device, so the profile is what changes.
	must(t, host.Modify(ctx, "one", "ipv4.route-table", "1300"))
	must(t, host.Up(ctx, "one"))
	f.awaitDevice(t, "wan0", "left alone", func(d nm.Device) bool {
		return strings.Contains(d.Intents[routing.IPv4].LeaveAlone, "ipv4.route-table=1300") &&
			slices.Equal(d.RouteTables, []routing.TableID{1300})
	})
	must(t, host.Modify(ctx, "one", "ipv4.route-table", "0"))
	must(t, host.Up(ctx, "one"))
	f.awaitDevice(t, "wan0", "not left alone", func(d nm.Device) bool { return d.Intents[routing.IPv4].LeaveAlone == "" })
}

// NetworkManager sends no signal when it reapplies a profile in which only
// [user] changed; the stored profile is signalled.
func TestIgnoredProfile(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true})
	cable(t, host, "wan0")
	const profile = `[connection]
id=one
uuid=7b2f6f0e-5f4b-4bd0-9c0e-0d7a3a8e7a01
type=ethernet
interface-name=wan0
autoconnect=false
[ipv4]
method=manual
address1=100.64.0.10/24,100.64.0.1
[ipv6]
method=ignore
`
	keyfile(t, host, profile+"[user]\nmultihomed.ignore=true\n")
	f := follow(t, nm.Options{})
	f.awaitComplete(t)
	must(t, host.Up(ctx, "one"))
	f.awaitDevice(t, "wan0", "is ignored", func(d nm.Device) bool { return d.State == gnm.NmDeviceStateActivated && d.ProfileKnown && d.Ignored })
	f.awaitVerdict(t, "wan0", nm.NotLink)
	if h := f.happened(); len(h) != 0 {
		t.Errorf("an ignored device was a link for a moment: %v", h)
	}

	keyfile(t, host, profile)
	f.awaitVerdict(t, "wan0", nm.Link)
	keyfile(t, host, profile+"[user]\nmultihomed.ignore=true\n")
	f.awaitVerdict(t, "wan0", nm.NotLink)
	must(t, host.Reapply(ctx, "wan0"))
	// Something that is neither yes nor no changes nothing and is reported.
	keyfile(t, host, profile+"[user]\nmultihomed.ignore=perhaps\n")
	d := f.awaitDevice(t, "wan0", "has a problem", func(d nm.Device) bool { return len(d.Problems) > 0 })
	if !d.Ignored || !strings.Contains(d.Problems[0], "perhaps") {
		t.Errorf("device is %+v", d)
	}
	must(t, host.Reapply(ctx, "wan0"))
	f.Recheck("wan0")
	labtest.Eventually(t, func() error {
		if n := f.log.count("device not understood", "perhaps"); n != 1 {
			return fmt.Errorf("the problem was logged %d times", n)
		}
		return nil
	})
}

// A gateway that is not in main comes from DHCP: at once, when the server names
// another one in a renewal, and in a new activation.
func TestNeverDefault(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true})
	cfg := lab.DefaultISP(0)
	cfg.Lease, cfg.Renew = 120*time.Second, 2*time.Second
	isp := labtest.NewISP(t, host, cfg)
	must(t, host.AddProfile(ctx, "wan0", "wan0", "ipv4.never-default", "yes", "ipv6.never-default", "yes"))
	f := follow(t, nm.Options{})
	must(t, host.Up(ctx, "wan0"))
	d := f.awaitDevice(t, "wan0", "has the DHCP gateway", func(d nm.Device) bool { return d.ProfileKnown && gateway(d) == "100.64.0.1" })
	for _, family := range routing.Families() {
		if !d.Intents[family].NeverDefault {
			t.Errorf("never-default of %v is not known: %+v", family, d.Intents)
		}
	}
	without := func() {
		t.Helper()
		routes, err := host.RoutesText(ctx, lab.IPv4, "main")
		must(t, err)
		if strings.Contains(routes, "default") {
			t.Fatalf("main has a default:\n%s", routes)
		}
	}
	without()
	// The server moves its gateway; the client learns of it when it renews.
	f.begin()
	begin := time.Now()
	must(t, isp.Reconfigure(ctx, func(c *lab.ISPConfig) { c.Gateway = netip.MustParseAddr("100.64.0.2") }))
	f.awaitDevice(t, "wan0", "has the gateway of the renewal", func(d nm.Device) bool { return gateway(d) == "100.64.0.2" })
	t.Logf("renewed gateway known %s after the server changed", time.Since(begin).Round(time.Millisecond))
	if h := f.happened(); len(h) != 0 {
		t.Errorf("the verdict changed: %v", h)
	}
	without()
	must(t, isp.Reconfigure(ctx, func(c *lab.ISPConfig) { c.Gateway = netip.MustParseAddr("100.64.0.3") }))
	must(t, host.Up(ctx, "wan0"))
	f.awaitDevice(t, "wan0", "has the gateway of the new lease", func(d nm.Device) bool { return gateway(d) == "100.64.0.3" })

	must(t, host.Modify(ctx, "wan0", "ipv4.never-default", "no"))
	must(t, host.Up(ctx, "wan0"))
	f.awaitDevice(t, "wan0", "may have a default", func(d nm.Device) bool {
		return !d.Intents[routing.IPv4].NeverDefault && d.Intents[routing.IPv6].NeverDefault
	})
}

// NetworkManager drops the gateway of a profile that sets never-default as well.
func TestNeverDefaultDropsTheGateway(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true})
	cable(t, host, "wan0")
	must(t, host.AddProfile(ctx, "one", "wan0", static(0)...))
	must(t, host.Modify(ctx, "one", "ipv4.never-default", "yes"))
	f := follow(t, nm.Options{})
	must(t, host.Up(ctx, "one"))
	d := f.awaitDevice(t, "wan0", "is activated", func(d nm.Device) bool { return d.State == gnm.NmDeviceStateActivated && d.ProfileKnown })
	if in := d.Intents[routing.IPv4]; !in.NeverDefault || in.Gateway.IsValid() {
		t.Errorf("intent %+v", in)
	}
}

// The router of a lease is the one that NetworkManager makes main's default of.
func TestDHCPRouters(t *testing.T) {
	for _, options := range [][]string{
		{},
		{"121,0.0.0.0/0,100.64.0.3,10.9.0.0/16,100.64.0.4"},
		{"121,10.9.0.0/16,100.64.0.4"},
		{"249,0.0.0.0/0,100.64.0.5"},
		{"121,10.9.0.0/16,100.64.0.4", "249,0.0.0.0/0,100.64.0.5"},
		{"121,10.9.0.0/16,100.64.0.4,0.0.0.0/0,100.64.0.7,0.0.0.0/0,100.64.0.8"},
		{"121,0.0.0.0/0,0.0.0.0"},
	} {
		t.Run(strings.Join(options, " "), func(t *testing.T) {
			ctx := t.Context()
			host := labtest.NewHost(t, lab.HostConfig{FastDAD: true})
			cfg := lab.DefaultISP(0)
			cfg.DHCPOptions = options
			labtest.NewISP(t, host, cfg)
			must(t, host.AddProfile(ctx, "wan0", "wan0", "ipv6.method", "ignore"))
			f := follow(t, nm.Options{})
			must(t, host.Up(ctx, "wan0"))
			f.awaitDevice(t, "wan0", "is activated", func(d nm.Device) bool { return d.State == gnm.NmDeviceStateActivated && d.ProfileKnown })
			best := uint32(1 << 31)
			var main netip.Addr
			labtest.Eventually(t, func() error {
				s, err := nm.ReadOnce(ctx, nm.Options{})
				for _, r := range s.Devices["wan0"].Views[routing.IPv4].Routes {
					if r.Destination.Bits() == 0 && r.Metric < best {
						best, main = r.Metric, r.NextHop
					}
				}
				if err == nil && best == 1<<31 {
					err = fmt.Errorf("main has no default: %+v", s.Devices["wan0"])
				}
				return err
			})
			f.awaitDevice(t, "wan0", fmt.Sprintf("has the gateway %v, of main's default with metric %d", main, best), func(d nm.Device) bool { return gateway(d) == main.String() })

			must(t, host.Modify(ctx, "wan0", "ipv4.never-default", "yes"))
			must(t, host.Up(ctx, "wan0"))
			d := f.awaitDevice(t, "wan0", fmt.Sprintf("is activated again, with the gateway %v", main), func(d nm.Device) bool {
				return d.State == gnm.NmDeviceStateActivated && d.ProfileKnown && d.Intents[routing.IPv4].NeverDefault && gateway(d) == main.String()
			})
			if len(d.Problems) > 0 {
				t.Errorf("with never-default there are problems: %q", d.Problems)
			}
		})
	}
}

func TestDHCPRenewal(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true})
	cfg := lab.DefaultISP(0)
	cfg.Lease, cfg.Renew = 120*time.Second, 2*time.Second
	isp := labtest.NewISP(t, host, cfg)
	must(t, host.AddProfile(ctx, "wan0", "wan0", "ipv6.method", "ignore"))
	f := follow(t, nm.Options{})
	must(t, host.Up(ctx, "wan0"))
	f.awaitDevice(t, "wan0", "has a gateway", func(d nm.Device) bool { return gateway(d) == "100.64.0.1" })
	// The lease is there before the profile is known.
	f.awaitVerdict(t, "wan0", nm.Link)
	f.begin()
	must(t, isp.Reconfigure(ctx, func(c *lab.ISPConfig) { c.Gateway = netip.MustParseAddr("100.64.0.2") }))
	f.awaitDevice(t, "wan0", "has the new gateway", func(d nm.Device) bool { return gateway(d) == "100.64.0.2" })
	if h := f.happened(); len(h) != 0 {
		t.Errorf("the verdict changed: %v", h)
	}
}

func TestCarrierLoss(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true})
	l := cable(t, host, "wan0")
	must(t, host.AddProfile(ctx, "one", "wan0", static(0, "connection.autoconnect", "yes")...))
	f := follow(t, nm.Options{})
	f.awaitVerdict(t, "wan0", nm.Link)
	begin := f.begin()
	must(t, l.SetCarrier(false))
	f.awaitDevice(t, "wan0", "is unavailable", func(d nm.Device) bool { return d.State == gnm.NmDeviceStateUnavailable })
	t.Logf("unavailable %s after the cable was pulled", time.Since(begin).Round(time.Millisecond))
	f.awaitVerdict(t, "wan0", nm.Draining)
	must(t, l.SetCarrier(true))
	f.awaitVerdict(t, "wan0", nm.Link)
	if slices.Contains(f.happened(), "wan0: no link") {
		t.Errorf("history: %v", f.happened())
	}
}

// Whatever happens to NetworkManager, a link that keeps its addresses stays
// one, and what was known of it stays known.
func TestRestarts(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true})
	cable(t, host, "wan0")
	labtest.NewISP(t, host, lab.DefaultISP(1))
	must(t, host.AddProfile(ctx, "one", "wan0", static(0)...))
	must(t, host.AddProfile(ctx, "two", "wan1", "connection.autoconnect", "yes"))
	must(t, host.Up(ctx, "one"))
	f := follow(t, nm.Options{Grace: 2 * time.Second})
	f.awaitComplete(t)
	f.awaitVerdict(t, "wan0", nm.Link)
	f.awaitVerdict(t, "wan1", nm.Link)
	f.awaitDevice(t, "wan1", "has its gateway", func(d nm.Device) bool { return gateway(d) == "100.64.1.1" })

	check := func(what string) {
		t.Helper()
		for _, line := range f.happened() {
			if strings.HasSuffix(line, ": no link") && !strings.HasPrefix(line, "lo") || strings.HasSuffix(line, ": removed") {
				t.Errorf("%s: %s", what, line)
			}
		}
		t.Logf("%s: %v", what, f.happened())
	}
	away := func(what string) {
		t.Helper()
		s := f.await(t, what, func(s nm.Snapshot) bool { return !s.Running })
		t.Logf("%s: %s", what, s.Reason)
		if s.Complete || s.Reason == "" {
			t.Errorf("%s: status is %+v", what, s.Status)
		}
		for name, want := range map[string]string{"wan0": "100.64.0.1", "wan1": "100.64.1.1"} {
			if d := s.Devices[name]; gateway(d) != want || d.State != gnm.NmDeviceStateActivated {
				t.Errorf("%s: %s is %+v", what, name, d)
			}
		}
	}
	back := func(what string, begin time.Time) {
		t.Helper()
		s := f.awaitComplete(t)
		t.Logf("%s: complete %s after the start", what, time.Since(begin).Round(time.Millisecond))
		for _, name := range []string{"wan0", "wan1"} {
			if d := s.Devices[name]; !d.ProfileKnown || d.Settling || d.Gone {
				t.Errorf("%s: %s is %+v", what, name, d)
			}
			f.awaitVerdict(t, name, nm.Link)
		}
		if n := f.lost("wan1"); n != 0 {
			t.Errorf("%s: wan1 was without its gateway %d times", what, n)
		}
		check(what)
	}

	f.begin()
	must(t, host.StopNM(ctx))
	away("NetworkManager stopped")
	begin := time.Now()
	must(t, host.StartNM(ctx))
	back("NetworkManager started", begin)

	f.begin()
	must(t, host.KillNM())
	away("NetworkManager killed")
	begin = time.Now()
	must(t, host.StartNM(ctx))
	back("NetworkManager started after kill -9", begin)

	f.begin()
	must(t, host.StopBus(ctx))
	away("bus stopped")
	must(t, host.StartBus(ctx))
	f.await(t, "the new bus", func(s nm.Snapshot) bool { return !strings.Contains(s.Reason, "system bus") })
	// NetworkManager 1.42 does not come back to a new bus by itself; on a real
	// system, a bus restart means a reboot or a restart of its users.
	begin = time.Now()
	must(t, host.RestartNM(ctx))
	back("bus restarted", begin)
	if n := f.log.count("NetworkManager is not running"); n > 4 {
		t.Errorf("absence was logged %d times", n)
	}
}

func TestAbsenceAtStart(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true, NoBus: true})
	cable(t, host, "wan0")
	f := follow(t, nm.Options{})
	f.await(t, "the missing bus", func(s nm.Snapshot) bool { return strings.HasPrefix(s.Reason, "system bus: ") })
	must(t, host.StartBus(ctx))
	f.await(t, "the missing NetworkManager", func(s nm.Snapshot) bool { return s.Reason == "NetworkManager is not running" })
	if n := f.log.count("system bus"); n != 1 {
		t.Errorf("the missing bus was logged %d times", n)
	}
	must(t, host.StartNM(ctx))
	s := f.awaitComplete(t)
	if _, ok := s.Devices["wan0"]; !ok {
		t.Errorf("wan0 is not known: %+v", s.Devices)
	}
}

// ReadOnce sees what `ip` would show, metric 600 included, without privileges.
func TestReadOnce(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true})
	cable(t, host, "wan0")
	must(t, host.AddProfile(ctx, "one", "wan0", static(0, "ipv4.routes", "10.8.0.0/16 100.64.0.254 600", "ipv4.route-metric", "20100")...))
	must(t, host.Up(ctx, "one"))
	var s nm.Snapshot
	labtest.Eventually(t, func() error {
		var err error
		s, err = nm.ReadOnce(ctx, nm.Options{})
		// Later releases tell of a change up to 333 ms after it.
		if view := s.Devices["wan0"].Views[routing.IPv4]; err == nil && (len(view.Routes) < 3 || len(view.Addresses) == 0) {
			err = fmt.Errorf("the configuration is not there yet: %+v", view)
		}
		return err
	})
	d := s.Devices["wan0"]
	if !d.ProfileKnown || !s.Complete {
		t.Errorf("wan0 is %+v, status %+v", d, s.Status)
	}
	view := d.Views[routing.IPv4]
	want := nm.RouteData{
		Destination: netip.MustParsePrefix("10.8.0.0/16"),
		NextHop:     netip.MustParseAddr("100.64.0.254"), Metric: 600,
	}
	if !slices.Contains(view.Routes, want) {
		t.Errorf("no %+v in %+v", want, view.Routes)
	}
	if !slices.ContainsFunc(view.Routes, func(r nm.RouteData) bool { return r.Destination.Bits() == 0 && r.Metric == 20100 }) {
		t.Errorf("no default with metric 20100 in %+v", view.Routes)
	}
	if view.Gateway.String() != "100.64.0.1" || !slices.Contains(view.Addresses, netip.MustParsePrefix("100.64.0.10/24")) {
		t.Errorf("view is %+v", view)
	}

	// gonetworkmanager v2.2.0 is why RouteData is decoded here.
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", lab.BusAddress)
	manager, err := gnm.NewNetworkManager()
	must(t, err)
	dev, err := manager.GetDeviceByIpIface("wan0")
	must(t, err)
	config, err := dev.GetPropertyIP4Config()
	must(t, err)
	routes, err := config.GetPropertyRouteData()
	must(t, err)
	for _, r := range routes {
		if r.Destination == "10.8.0.0" && uint32(r.Metric) == 600 {
			t.Error("gonetworkmanager reads metrics well now: reconsider DecodeRouteData")
		}
	}
}

// What is not a link on the real NetworkManager: external devices, ports,
// unmanaged devices, a bridge's port once it has left.
func TestNoLinks(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true})
	_, err := host.NewBridge("docker0", netip.MustParsePrefix("172.17.0.1/16"))
	must(t, err)
	cable(t, host, "port0")
	cable(t, host, "other0")
	f := follow(t, nm.Options{})
	f.awaitComplete(t)
	f.awaitDevice(t, "docker0", "is external", func(d nm.Device) bool { return d.External && d.State == gnm.NmDeviceStateActivated })

	_, err = host.NMCLI(ctx, "connection", "add", "type", "bridge", "con-name", "br0", "ifname", "br0", "autoconnect", "no",
		"bridge.stp", "no", "ipv4.method", "manual", "ipv4.addresses", "192.168.9.1/24", "ipv6.method", "ignore")
	must(t, err)
	_, err = host.NMCLI(ctx, "connection", "add", "type", "ethernet", "con-name", "port0", "ifname", "port0", "autoconnect", "no",
		"connection.master", "br0", "connection.slave-type", "bridge")
	must(t, err)
	must(t, host.Up(ctx, "br0"))
	must(t, host.Up(ctx, "port0"))
	d := f.awaitDevice(t, "port0", "is a port", func(d nm.Device) bool { return d.State == gnm.NmDeviceStateActivated && d.Controller != "" })
	if d.Controller != "br0" {
		t.Errorf("port0 is a port of %q", d.Controller)
	}
	f.awaitVerdict(t, "br0", nm.Link)

	_, err = host.NMCLI(ctx, "device", "set", "other0", "managed", "no")
	must(t, err)
	f.awaitDevice(t, "other0", "is unmanaged", func(d nm.Device) bool { return d.State == gnm.NmDeviceStateUnmanaged })
	for name, want := range map[string]string{"docker0": "external", "port0": "port of br0", "lo": "loopback", "other0": ""} {
		v, reason := f.verdict(name)
		if v != nm.NotLink || !strings.Contains(reason, want) {
			t.Errorf("%s: %s, %s", name, v, reason)
		}
	}
	for _, line := range f.happened() {
		if line != "br0: link" {
			t.Errorf("unexpected: %s", line)
		}
	}
}

// A device that NetworkManager no longer manages, or that disappears, is kept for a
// while, because NetworkManager's own exit looks the same.
func TestRelease(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true})
	cable(t, host, "wan0")
	l := cable(t, host, "wan1")
	must(t, host.AddProfile(ctx, "one", "wan0", static(0)...))
	must(t, host.AddProfile(ctx, "two", "wan1", static(1)...))
	f := follow(t, nm.Options{Grace: 2 * time.Second})
	must(t, host.Up(ctx, "one"))
	must(t, host.Up(ctx, "two"))
	f.awaitVerdict(t, "wan0", nm.Link)
	f.awaitVerdict(t, "wan1", nm.Link)

	_, err := host.NMCLI(ctx, "device", "set", "wan0", "managed", "no")
	must(t, err)
	f.awaitDevice(t, "wan0", "is unmanaged", func(d nm.Device) bool { return d.State == gnm.NmDeviceStateUnmanaged })
	// It may be over when nmcli returns.
	if !f.wasKept("wan0") {
		t.Error("wan0 was not kept")
	}
	f.awaitDevice(t, "wan0", "has settled", func(d nm.Device) bool { return !d.Settling })
	f.awaitVerdict(t, "wan0", nm.Draining)
	_, err = host.NMCLI(ctx, "device", "set", "wan0", "managed", "yes")
	must(t, err)
	must(t, host.Up(ctx, "one"))
	f.awaitVerdict(t, "wan0", nm.Link)

	f.begin()
	must(t, l.Delete())
	f.awaitDevice(t, "wan1", "is gone", func(d nm.Device) bool { return d.Gone })
	f.awaitVerdict(t, "wan1", nm.Draining)
	f.awaitDevice(t, "wan1", "has settled", func(d nm.Device) bool { return d.Gone && !d.Settling })
	must(t, l.Recreate())
	f.awaitDevice(t, "wan1", "is back", func(d nm.Device) bool { return !d.Gone })
	must(t, host.Up(ctx, "two"))
	f.awaitVerdict(t, "wan1", nm.Link)
}

// The status command is for everybody.
func TestReadOnceUnprivileged(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true})
	cable(t, host, "wan0")
	must(t, host.AddProfile(ctx, "one", "wan0", static(0)...))
	must(t, host.Up(ctx, "one"))
	type result struct {
		snapshot nm.Snapshot
		err      error
	}
	results := make(chan result)
	go func() {
		// The thread becomes nobody, and ends with the goroutine.
		runtime.LockOSThread()
		const nobody = 65534
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			results <- result{err: errno}
			return
		}
		s, err := nm.ReadOnce(ctx, nm.Options{})
		results <- result{s, err}
	}()
	r := <-results
	must(t, r.err)
	d := r.snapshot.Devices["wan0"]
	if !r.snapshot.Complete || !d.ProfileKnown || gateway(d) != "100.64.0.1" || len(d.Problems) != 0 {
		t.Errorf("status %+v, wan0 %+v", r.snapshot.Status, d)
	}
}

// What profiles, DHCP and RA say of name resolution arrives, and follows a
// reapply.
func TestDNS(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true})
	cable(t, host, "wan0")
	must(t, host.AddProfile(ctx, "one", "wan0", "ipv4.method", "manual", "ipv4.addresses", "100.64.0.10/24", "ipv4.gateway", "100.64.0.1",
		"ipv6.method", "manual", "ipv6.addresses", "2001:db8:0:1::10/64",
		"ipv4.dns", "100.64.0.53,100.64.0.54", "ipv6.dns", "2001:db8:0:1::53", "ipv4.dns-search", "Example.com,~corp"))
	f := follow(t, nm.Options{DNS: true, Grace: 2 * time.Second})
	f.awaitComplete(t)
	await := func(name string, want map[routing.Family]nm.DNS) {
		t.Helper()
		d := f.awaitDevice(t, name, fmt.Sprintf("has %v", want), func(d nm.Device) bool { return fmt.Sprint(d.DNS) == fmt.Sprint(want) })
		if len(d.Problems) > 0 {
			t.Errorf("%s has problems: %q", name, d.Problems)
		}
	}
	addr := netip.MustParseAddr
	must(t, host.Up(ctx, "one"))
	v6 := nm.DNS{Servers: []netip.Addr{addr("2001:db8:0:1::53")}}
	await("wan0", map[routing.Family]nm.DNS{
		routing.IPv4: {Servers: []netip.Addr{addr("100.64.0.53"), addr("100.64.0.54")}, Domains: []string{"corp", "example.com"}},
		routing.IPv6: v6,
	})

	must(t, host.Modify(ctx, "one", "ipv4.dns", "100.64.0.55", "ipv4.dns-search", ""))
	must(t, host.Reapply(ctx, "wan0"))
	want := map[routing.Family]nm.DNS{routing.IPv4: {Servers: []netip.Addr{addr("100.64.0.55")}}, routing.IPv6: v6}
	await("wan0", want)

	// The same through a restart of NetworkManager, without a gap.
	f.begin()
	must(t, host.RestartNM(ctx))
	f.awaitComplete(t)
	f.awaitDevice(t, "wan0", "is up again", func(d nm.Device) bool { return d.ProfileKnown && d.State == gnm.NmDeviceStateActivated })
	await("wan0", want)
	if n := f.nameless("wan0"); n != 0 {
		t.Errorf("wan0 was without DNS %d times", n)
	}

	must(t, host.Modify(ctx, "one", "ipv6.dns", ""))
	must(t, host.Reapply(ctx, "wan0"))
	delete(want, routing.IPv6)
	await("wan0", want)

	cfg := lab.DefaultISP(1)
	cfg.DNS = []netip.Addr{addr("100.64.1.53"), addr("100.64.1.54")}
	cfg.DHCPOptions = []string{"15,lan.example"}
	labtest.NewISP(t, host, cfg)
	must(t, host.AddProfile(ctx, "two", "wan1", "ipv6.method", "ignore"))
	must(t, host.Up(ctx, "two"))
	await("wan1", map[routing.Family]nm.DNS{routing.IPv4: {Servers: cfg.DNS, Domains: []string{"lan.example"}}})
}
