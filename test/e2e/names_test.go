package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/test/lab"
)

const (
	serversFile = "/run/dnsmasq/servers"
	dnsmasqPID  = "/run/dnsmasq/pid"
	dnsToml     = "[dns]\nservers_file = \"" + serversFile + "\"\ndnsmasq_pid_file = \"" + dnsmasqPID + "\"\n"
)

// A nameserver is the host's own dnsmasq, which asks all the servers it knows.
type nameserver struct {
	*rig
	process *lab.Process
	isps    []*lab.ISP
	caught  []*lab.Capture
	asked   int
}

func (r *rig) nameserver(isps ...*lab.ISP) *nameserver {
	r.t.Helper()
	r.must(os.MkdirAll("/run/dnsmasq", 0o755))
	r.t.Cleanup(func() { r.must(os.RemoveAll("/run/dnsmasq")) })
	p, err := r.Start(lab.ProcessConfig{Path: "dnsmasq", Args: []string{
		"--keep-in-foreground", "--log-facility=-", "--log-queries", "--conf-file=/dev/null", "--user=root",
		"--pid-file=" + dnsmasqPID, "--servers-file=" + serversFile, "--no-resolv", "--no-hosts", "--all-servers", "--cache-size=0",
		"--listen-address=127.0.0.1", "--bind-interfaces", "--port=5300",
	}})
	r.must(err)
	_, err = p.WaitLine(r.t.Context(), "started, version")
	r.must(err)
	n := &nameserver{rig: r, process: p, isps: isps}
	for _, isp := range isps {
		c, err := isp.Capture()
		r.must(err)
		n.caught = append(n.caught, c)
	}
	r.t.Cleanup(func() {
		if r.t.Failed() {
			text, err := os.ReadFile(serversFile)
			r.t.Logf("the servers are (%v):\n%sdnsmasq says:\n%s", err, text, lab.Tail(p.Log(), 40))
		}
	})
	return n
}

// ask queries a new name each time, because dnsmasq caches.
func (n *nameserver) ask() error {
	n.asked++
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Second)
	defer cancel()
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", "127.0.0.1:5300")
	}}
	_, err := resolver.LookupTXT(ctx, "isp.lab.")
	return err
}

// uses waits until a query reaches exactly the servers of these providers, each
// on its own link and from an address of that link.
func (n *nameserver) uses(want map[int][]netip.Addr) {
	n.t.Helper()
	n.eventually(func() error {
		for _, c := range n.caught {
			c.Reset()
		}
		if err := n.ask(); err != nil && len(want) > 0 {
			return err
		}
		var errs []error
		for i := range n.isps {
			for _, server := range want[i] {
				errs = append(errs, n.eventuallyAsked(i, server))
			}
			others, err := n.caught[i].Matching(func(p lab.Packet) bool { return isQuery(p) && !slices.Contains(want[i], p.Dst) })
			if err != nil || len(others) > 0 {
				errs = append(errs, fmt.Errorf("%s saw others' queries (%w):\n%s", n.isps[i].Name(), err, lab.FormatPackets(others)))
			}
		}
		return errors.Join(errs...)
	})
}

func isQuery(p lab.Packet) bool { return p.Proto == unix.IPPROTO_UDP && p.DstPort == 53 }

func (n *nameserver) eventuallyAsked(i int, server netip.Addr) error {
	isp := n.isps[i]
	queries, err := n.caught[i].Matching(func(p lab.Packet) bool {
		mine := isp.IPv4().Contains(p.Src) || isp.IPv6().Contains(p.Src) || p.Src.IsLinkLocalUnicast()
		return isQuery(p) && p.Dst == server && p.Link == isp.Link().Name() && mine
	})
	if err == nil && len(queries) == 0 {
		err = fmt.Errorf("%s was not asked at %s", isp.Name(), server)
	}
	return err
}

// stray checks that no query ever left from an address of another link.
func (n *nameserver) stray() {
	n.t.Helper()
	for i, isp := range n.isps {
		before := netip.MustParsePrefix(fmt.Sprintf("100.64.%d.0/24", i))
		foreign, err := n.caught[i].Foreign(isp.IPv4(), isp.IPv6(), before)
		n.must(err)
		if len(foreign) > 0 {
			n.t.Errorf("strayed to %s:\n%s", isp.Name(), lab.FormatPackets(foreign))
		}
	}
}

// withNames is a provider whose router names a server as well.
func withNames(n int) lab.ISPConfig {
	cfg := lab.DefaultISP(n)
	ra := lab.DefaultRA(cfg.IPv6)
	ra.DNS = []netip.Addr{cfg.IPv6.Addr()}
	cfg.RA = &ra
	cfg.Lease, cfg.Renew = 2*time.Minute, 3*time.Second
	return cfg
}

// renumber4 gives a provider another IPv4 network while names are asked for all
// the time, and returns its new server.
func (n *nameserver) renumber4(i int) netip.Addr {
	n.t.Helper()
	network := netip.MustParsePrefix(fmt.Sprintf("100.64.%d.1/24", 200+i))
	link := n.isps[i].Link().Name()
	n.must(n.isps[i].Reconfigure(n.t.Context(), func(c *lab.ISPConfig) { c.IPv4 = network }))
	n.eventually(func() error {
		_ = n.ask()
		addrs, err := n.Addrs(link, lab.IPv4)
		if err == nil && (len(addrs) != 1 || !network.Contains(addrs[0].Addr())) {
			err = fmt.Errorf("%s has %v", link, addrs)
		}
		return err
	})
	n.stray()
	return network.Addr()
}

// TestNames is a host whose own dnsmasq asks the servers of each link by that
// link, as NetworkManager knows them.
func TestNames(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, dnsToml)
	isp0, isp1 := r.isp(withNames(0)), r.isp(withNames(1))
	names := r.nameserver(isp0, isp1)
	r.start()
	r.up("wan0", "wan1")
	r.settled("wan0", "wan1")
	servers := func(isp *lab.ISP) []netip.Addr {
		return []netip.Addr{isp.Config().IPv4.Addr(), isp.Config().IPv6.Addr()}
	}
	names.uses(map[int][]netip.Addr{0: servers(isp0), 1: servers(isp1)})
	names.stray()
	names.renumber4(0)
	names.uses(map[int][]netip.Addr{0: servers(isp0), 1: servers(isp1)})
	r.must(r.Down(t.Context(), "wan0"))
	names.uses(map[int][]netip.Addr{1: servers(isp1)})
	r.must(isp1.Link().Delete())
	r.eventually(noServers)
}

func noServers() error {
	text, err := os.ReadFile(serversFile)
	if err == nil && strings.Contains(string(text), "server=") {
		err = fmt.Errorf("servers are left:\n%s", text)
	}
	return err
}

// TestNamesOfHooks is the same with what dhclient and ifupdown say, with the
// daemon and without it.
func TestNamesOfHooks(t *testing.T) {
	onBothHosts(t, dnsToml, func(r *rig) {
		isp0, isp1 := r.connected(withNames(0)), r.connected(withNames(1))
		names := r.nameserver(isp0, isp1)
		r.must(r.WriteInterfaces(`
iface wan0 inet dhcp
iface wan1 inet static
    address 100.64.1.50/24
    multihomed-gateway 100.64.1.1
    dns-nameservers 100.64.1.1
iface wan1 inet6 static
    address 2001:db8:0:2::50/64
    gateway 2001:db8:0:2::1
    dns-nameservers 2001:db8:0:2::1
`))
		r.ifup("wan0", "wan1")
		second := []netip.Addr{isp1.Config().IPv4.Addr(), isp1.Config().IPv6.Addr()}
		names.uses(map[int][]netip.Addr{0: {isp0.Config().IPv4.Addr()}, 1: second})
		names.stray()
		moved := names.renumber4(0)
		names.uses(map[int][]netip.Addr{0: {moved}, 1: second})
		r.ifdown("wan1")
		names.uses(map[int][]netip.Addr{0: {moved}})
		r.must(isp0.Link().Delete())
		if r.daemon == nil {
			r.unplugged("wan0")
		}
		r.eventually(noServers)
	})
}
