//go:build debiankernel

package hosts_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"multihomed/test/lab"
)

// TestKernelHosts asks the hosts for which the kernel of the test host may lack
// something, and so runs in the machines of package debian: each once.
func TestKernelHosts(t *testing.T) {
	for _, h := range kernelHosts {
		t.Run(h.Name, h.once)
	}
}

// TestKernelHostsInAllPhases asks them as the others are asked.
func TestKernelHostsInAllPhases(t *testing.T) {
	for _, h := range kernelHosts {
		if h.Name == nmWireGuard {
			t.Run(h.Name, h.once)
		} else {
			t.Run(h.Name, h.run)
		}
	}
}

// once asks a host without multihomed, with it started last, in the steps, with
// it started before what the steps bring, and after its removal, in one lab: in an
// emulated machine a lab takes longer than the questions.
func (h Host) once(t *testing.T) {
	t.Helper()
	t.Logf("%s", h.What)
	w := h.world(t)
	h.build(w)
	control := h.ask(w)
	w.start()
	h.compare(w, "started last", control)
	h.gone(w, control)
}

// cable gives a link of a provider another name, so that the link can be something
// that stands on it.
func (w *world) cable(isp *lab.ISP, name string) {
	w.t.Helper()
	link := isp.Config().Link
	w.eventually(link+" to be called "+name, func() error {
		if _, err := w.IP(w.t.Context(), "link", "set", link, "down"); err != nil {
			return err
		}
		_, err := w.IP(w.t.Context(), "link", "set", link, "name", name)
		return err
	})
	w.ip("link set " + name + " up")
}

// port is a profile of a part of another link.
func (w *world) port(name, controller, kind string) {
	w.t.Helper()
	w.must(w.WriteProfile(name, name, "connection.master="+controller, "connection.slave-type="+kind))
}

// fails names the provider's end of the cable that the bond uses, as the bond uses
// the other one.
func (w *world) fails() string {
	w.t.Helper()
	ends := map[string]string{"port0": "wan0", "port1": "port1"}
	out, err := w.IP(w.t.Context(), "-d", "link", "show", "wan0")
	w.must(err)
	port := word(out, "active_slave")
	if ends[port] == "" {
		w.t.Fatalf("the bond uses no port:\n%s", out)
	}
	return ends[port]
}

// also is the standard promise for an address that no provider's link has.
func also(link string, addresses func(w *world) []netip.Addr) Promise {
	provider := func(w *world) *lab.ISP { return w.isps[1] }
	return Promise{
		Name: "bound traffic of " + link + " keeps its link",
		Of: func(w *world, q Question) bool {
			l, ok := q.(Lookup)
			return ok && l.In == "" && l.Out == "" && w.toOutside(l.Dst) && slices.Contains(addresses(w), l.From)
		},
		Want: func(w *world, q Question, _, with string) string {
			want := strings.ReplaceAll(w.by(provider(w), q.(Lookup).Dst), "dev "+provider(w).Config().Link, "dev "+link)
			if with == want {
				return ""
			}
			return want
		},
	}
}

// serviceAddr is an address of wan1's network that stands on a dummy.
var serviceAddr = netip.MustParseAddr("100.64.1.250")

// nmWireGuard is the host whose link-local address is another one in each lab:
// NetworkManager makes it of a secret.
const nmWireGuard = "WireGuard of NetworkManager"

var kernelHosts = []Host{
	{
		Name: "a bond and a VLAN",
		What: "A server whose uplinks are a bond of two cables, one of which fails now and then, and a VLAN.",
		Network: func(w *world) {
			bond := w.provider(lab.DefaultISP(0), "connection.type=bond", "connection.autoconnect-slaves=1",
				"bond.mode=active-backup", "bond.miimon=50", "ethernet.cloned-mac-address=02:00:00:00:0b:00")
			w.cable(bond, "port0")
			_, err := bond.AddLink(lab.LinkConfig{Name: "port1"})
			w.must(err)
			w.port("port0", "wan0", "bond")
			w.port("port1", "wan0", "bond")
			vlan := w.provider(lab.DefaultISP(1), "connection.type=vlan", "vlan.parent=trunk", "vlan.id=7",
				"ethernet.cloned-mac-address=02:00:00:00:0b:07")
			w.cable(vlan, "trunk")
			w.ip("-n isp1 link set wan1 nomaster", "-n isp1 link add link wan1 name tagged type vlan id 7", "-n isp1 link set tagged master lan up")
			w.must(w.WriteProfile("trunk", "trunk", "ipv4.method=disabled", "ipv6.method=disabled"))
			w.activate()
		},
		Steps: []Step{
			{"a cable fails", func(w *world) { w.ip("-n isp0 link set " + w.fails() + " down") }},
			{"the cable is back", func(w *world) { w.ip("-n isp0 link set wan0 up", "-n isp0 link set port1 up") }},
		},
		Ask: func(*world) []Question { return []Question{group("port0"), group("port1"), group("trunk")} },
	},
	{
		Name: "a bridge and a macvlan",
		What: "A host of virtual machines: a bridge over the first uplink; over the second a macvlan, and both have a lease.",
		Network: func(w *world) {
			bridge := w.provider(lab.DefaultISP(0), "connection.type=bridge", "connection.autoconnect-slaves=1",
				"bridge.stp=false", "bridge.mac-address=02:00:00:00:0c:00")
			w.cable(bridge, "port0")
			w.port("port0", "wan0", "bridge")
			macvlan := w.provider(lab.DefaultISP(1), "connection.type=macvlan", "macvlan.parent=cable1", "macvlan.mode=2",
				"ethernet.cloned-mac-address=02:00:00:00:0c:01")
			w.cable(macvlan, "cable1")
			w.must(w.WriteProfile("cable1", "cable1", "ipv4.method=auto", "ipv4.route-metric=201",
				"ipv6.method=auto", "ipv6.route-metric=201", "ipv6.addr-gen-mode=eui64", "ipv6.ip6-privacy=0"))
			w.must(w.ReloadProfiles(w.t.Context()))
			w.must(w.WaitDeviceState(w.t.Context(), "cable1", "disconnected"))
			w.must(w.Up(w.t.Context(), "cable1"))
			w.activate()
			for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
				_, err := w.WaitAddr(w.t.Context(), "cable1", f)
				w.must(err)
			}
		},
		Steps: []Step{
			{"the bridge gets a port", func(w *world) {
				w.ip("link add vm0 address 02:00:00:00:0c:02 type dummy", "link set vm0 master wan0 up")
			}},
			{"the port goes", func(w *world) { w.ip("link del vm0") }},
		},
		Ask: func(w *world) []Question {
			return append(grid(w.outside(), []sender{{From: w.addr("cable1", lab.IPv4)}, {From: w.addr("cable1", lab.IPv6)}}), group("port0"))
		},
		Promised: []Promise{also("cable1", func(w *world) []netip.Addr {
			return []netip.Addr{w.addr("cable1", lab.IPv4), w.addr("cable1", lab.IPv6)}
		})},
	},
	{
		Name: "a VRF",
		What: "A router with a VRF: its port is a LAN, and the rule of local stands behind that of the VRF, as the kernel's documentation advises.",
		Network: func(w *world) {
			w.providers()
			isp := w.lan(netip.MustParsePrefix("192.168.7.5/24"), netip.MustParseAddr("192.168.7.1"), nil)
			w.lanClient = isp
			w.ip("link add vrf0 type vrf table 77", "link set vrf0 up", "link set lan0 master vrf0", "link set lan0 up", "addr add 192.168.7.1/24 dev lan0")
			w.sysctl("net.ipv4.tcp_l3mdev_accept", "1")
			localBack(w)
		},
		Build: moveLocal,
		Steps: []Step{
			{"the rule of local is in front", putLocalBack},
			{"the rule of local is behind", moveLocal},
		},
		Ask: func(w *world) []Question {
			questions := append(toOurselves(w), Call{By: w.lanClient, Src: netip.MustParseAddr("192.168.7.5"), Dst: netip.MustParseAddr("192.168.7.1")})
			questions = append(questions, grid(append(w.outside(), addrs("192.168.7.5", "192.168.7.1")...),
				[]sender{{Out: "vrf0"}, {Out: "lan0"}, {In: "lan0", From: netip.MustParseAddr("192.168.7.5")}})...)
			return append(questions, group("lan0"), group("vrf0"))
		},
	},
	{
		Name: "a service address on a dummy, and a line that loses packets",
		What: "A server with an address of its second provider's network on a dummy; that provider's line delays packets and loses one in twenty.",
		Network: func(w *world) {
			w.providers()
			w.run("tc", "qdisc", "add", "dev", "wan1", "root", "netem", "delay", "20ms", "loss", "5%")
		},
		Build: addService,
		Steps: []Step{
			{"the service moves away", func(w *world) { w.ip("link del svc0") }},
			{"the service comes back", addService},
		},
		Ask: func(w *world) []Question {
			if w.step == "the service moves away" {
				return nil
			}
			return append(grid(w.outside(), []sender{{From: serviceAddr}}), Call{By: w.isps[1], Dst: serviceAddr},
				Dial{From: lab.From{Addr: serviceAddr}, Dst: lab.InternetAddr4})
		},
		Promised: []Promise{
			{
				Name: "the service keeps its link",
				Of: func(w *world, q Question) bool {
					switch q := q.(type) {
					case Lookup:
						return q.From == serviceAddr && w.toOutside(q.Dst)
					case Dial:
						return q.From.Addr == serviceAddr
					case Call:
						return q.Dst == serviceAddr
					}
					return false
				},
				Want: func(w *world, q Question, _, with string) string {
					want := "answered by isp1"
					switch q := q.(type) {
					case Lookup:
						want = w.by(w.isps[1], q.Dst)
					case Dial:
						want = fmt.Sprintf("seen by isp1 from %v, answered", serviceAddr)
					}
					if with == want {
						return ""
					}
					return want
				},
				Steps: []string{"", "the service comes back"},
			},
		},
	},
	{
		Name:       nmWireGuard,
		What:       "A laptop whose whole traffic goes through WireGuard, as a profile of NetworkManager.",
		Renumbered: true,
		Selects:    nobody,
		Network: func(w *world) {
			w.providers()
			w.peer()
			w.must(w.WriteProfile("nmwg0", "nmwg0", "connection.type=wireguard", "wireguard.private-key="+w.notes["our key"],
				"ipv4.method=manual", "ipv4.address1="+wgAddr4+"/32", "ipv6.method=manual", "ipv6.address1="+wgAddr6+"/128"))
			w.addPeer("nmwg0")
			w.must(w.ReloadProfiles(w.t.Context()))
		},
		Build: nmTunnelUp,
		Steps: []Step{
			{"down", func(w *world) {
				w.must(w.Down(w.t.Context(), "nmwg0"))
				w.tunnelled("isp0")
			}},
			{"up again", nmTunnelUp},
		},
		Ask: tunnelAsk,
	},
}

// addPeer adds the far end to a profile, in a section that has the peer's key in its
// name.
func (w *world) addPeer(profile string) {
	w.t.Helper()
	f, err := os.OpenFile("/etc/NetworkManager/system-connections/"+profile+".nmconnection", os.O_APPEND|os.O_WRONLY, 0)
	w.must(err)
	_, err = fmt.Fprintf(f, "[wireguard-peer.%s]\nendpoint=%s\nallowed-ips=0.0.0.0/0;::/0;\n", w.notes["their public key"], w.notes["endpoint"])
	w.must(errors.Join(err, f.Close()))
}

func addService(w *world) {
	w.ip("link add svc0 address 02:00:00:00:0d:00 type dummy", "link set svc0 up", "addr add "+serviceAddr.String()+"/32 dev svc0")
}

func nmTunnelUp(w *world) {
	w.must(w.Up(w.t.Context(), "nmwg0"))
	w.tunnelled("vpn")
}

// tunnelled waits until unbound connections of both families are answered by the
// far end of the tunnel, or by a provider.
func (w *world) tunnelled(by string) {
	w.t.Helper()
	for _, dst := range []netip.Addr{lab.InternetAddr4, lab.InternetAddr6} {
		w.eventually("answers of "+by, func() error {
			ctx, cancel := lab.Within(w.t.Context(), nothing)
			defer cancel()
			a, err := lab.DialTCP(ctx, lab.From{}, dst)
			if err == nil && a.ISP != by {
				err = errors.New("answered by " + a.ISP)
			}
			return err
		})
	}
}
