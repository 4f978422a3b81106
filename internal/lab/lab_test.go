package lab_test

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"multihomed/internal/lab"
	"multihomed/internal/lab/labtest"
)

func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }

func TestTwoProviders(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true})
	var isps []*lab.ISP
	for n := range 2 {
		cfg := lab.DefaultISP(n)
		if n == 1 {
			cfg.DHCPv6 = lab.StatefulDHCPv6
		}
		cfg.Routes = []lab.Route{
			lab.DefaultVia(cfg.IPv4.Addr()),
			{Dst: netip.MustParsePrefix("10.8.0.0/16"), Via: netip.AddrFrom4([4]byte{100, 64, byte(n), 254})},
		}
		isp := labtest.NewISP(t, host, cfg)
		isps = append(isps, isp)
		if err := host.AddProfile(ctx, cfg.Link, cfg.Link); err != nil {
			t.Fatal(err)
		}
		if err := host.Up(ctx, cfg.Link); err != nil {
			t.Fatal(err)
		}
	}
	for n, isp := range isps {
		for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
			src, err := host.WaitAddr(ctx, isp.Link().Name(), f)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s has %v", isp.Link().Name(), src)
			for what, dial := range map[string]func() (lab.Answer, error){
				"udp": func() (lab.Answer, error) {
					return lab.DialUDP(ctx, lab.From{Device: isp.Link().Name()}, lab.InternetAddr(f))
				},
				"tcp": func() (lab.Answer, error) {
					return lab.DialTCP(ctx, lab.From{Device: isp.Link().Name()}, lab.InternetAddr(f))
				},
				"ping": func() (lab.Answer, error) {
					return host.Ping(ctx, lab.From{Device: isp.Link().Name()}, lab.InternetAddr(f))
				},
			} {
				answer, err := dial()
				if err != nil {
					t.Errorf("%s: %v", what, err)
				} else if answer.ISP != isp.Name() {
					t.Errorf("isp%d: %s was answered by %+v", n, what, answer)
				}
			}
		}
	}
	routes, err := host.RoutesText(ctx, lab.IPv4, "main")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(routes, "10.8.0.0/16 via 100.64.1.254 dev wan1") {
		t.Errorf("main lacks the route of option 121:\n%s", routes)
	}
	t.Log("\n" + routes)
}
