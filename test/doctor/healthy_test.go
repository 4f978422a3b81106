package doctor_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// A neighbor is a foreign component that disturbs nothing. Its scripts are for sh; start may be a
// function instead.
type neighbor struct {
	name, make, remove string
	start              func(h *host)
}

// bridgeOf makes a bridge with a container behind it, in the namespace c.
func bridgeOf(name, address, container string) string {
	return fmt.Sprintf(`ip link add %[1]s type bridge; ip address add %[2]s dev %[1]s; ip link set %[1]s up
ip link add vethc type veth peer name eth0 netns c; ip link set vethc master %[1]s up
ip -n c link set lo up; ip -n c link set eth0 up; ip -n c address add %[3]s dev eth0; ip -n c route add default via %[4]s
sysctl -qw net.ipv4.ip_forward=1
`, name, address, container, netip.MustParsePrefix(address).Addr())
}

func withoutBridge(name string) string {
	return "ip link del vethc; ip link del " + name + "; sysctl -qw net.ipv4.ip_forward=0\n"
}

// neighbors are what hosts of users have, as the programs leave it in the kernel. A few are run.
func neighbors() []neighbor {
	return []neighbor{
		{
			name: "docker", make: bridgeOf("docker0", "172.17.0.1/16", "172.17.0.2/16") + `iptables-nft -t nat -N DOCKER
iptables-nft -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
iptables-nft -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
iptables-nft -t nat -A DOCKER ! -i docker0 -p tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80`,
			remove: "iptables-nft -t nat -F; iptables-nft -t nat -X; nft delete table ip nat; " + withoutBridge("docker0"),
		},
		{
			name: "podman", make: bridgeOf("podman0", "10.88.0.1/16", "10.88.0.2/16") + nft(`table inet netavark {
 chain POSTROUTING { type nat hook postrouting priority srcnat
  jump NETAVARK }
 chain NETAVARK {
  ip saddr 10.88.0.0/16 ip daddr 10.88.0.0/16 accept
  ip saddr 10.88.0.0/16 ip daddr != 224.0.0.0/4 masquerade
 }
}`),
			remove: "nft delete table inet netavark; " + withoutBridge("podman0"),
		},
		{
			name: "libvirt", make: bridgeOf("virbr0", "192.168.122.1/24", "192.168.122.2/24") + nft(`table ip libvirt_network {
 chain guest_nat { type nat hook postrouting priority srcnat
  ip saddr 192.168.122.0/24 ip daddr 224.0.0.0/24 return
  ip saddr 192.168.122.0/24 ip daddr != 192.168.122.0/24 masquerade
 }
}`),
			remove: "nft delete table ip libvirt_network; " + withoutBridge("virbr0"),
		},
		{
			name: "Kubernetes", make: bridgeOf("cni0", "10.42.0.1/24", "10.42.0.2/24") + nft(`table ip kube-proxy {
 chain services { type nat hook prerouting priority dstnat
  ip daddr 10.43.0.10 tcp dport 53 dnat to 10.42.0.2
  tcp dport 30080 meta mark set meta mark or 0x4000
 }
 chain marked { type nat hook postrouting priority srcnat
  meta mark and 0x4000 != 0x4000 return
  meta mark set meta mark xor 0x4000
  masquerade
 }
}`),
			remove: "nft delete table ip kube-proxy; " + withoutBridge("cni0"),
		},
		{
			name: "wg-quick with all traffic, on a host that forwards", make: `sysctl -qw net.ipv4.ip_forward=1; ip link add wg0 type bridge; ip address add 10.66.0.2/32 dev wg0; ip link set wg0 up
ip route add default dev wg0 table 51820; ip rule add not fwmark 51820 table 51820; ip rule add table main suppress_prefixlength 0
sysctl -qw net.ipv4.conf.all.src_valid_mark=1
` + nft(`table ip wg-quick-wg0 {
 chain preraw { type filter hook prerouting priority raw
  iifname != "wg0" ip daddr 10.66.0.2 fib saddr type != local drop }
 chain premangle { type filter hook prerouting priority mangle
  meta l4proto udp meta mark set ct mark }
 chain postmangle { type filter hook postrouting priority mangle
  meta l4proto udp meta mark 51820 ct mark set meta mark }
}`),
			remove: "nft delete table ip wg-quick-wg0; ip rule del table 51820; ip rule del table main suppress_prefixlength 0; ip link del wg0; sysctl -qw net.ipv4.conf.all.src_valid_mark=0 net.ipv4.ip_forward=0",
		},
		{
			name: "Tailscale", make: `ip link add tun8 type bridge; ip address add 100.99.0.9/32 dev tun8; ip link set tun8 up; ip route add 100.99.0.0/16 dev tun8 table 52
for f in -4 -6; do ip $f rule add priority 5210 fwmark 0x80000/0xff0000 lookup main; ip $f rule add priority 5230 fwmark 0x80000/0xff0000 lookup default; ip $f rule add priority 5250 fwmark 0x80000/0xff0000 unreachable; ip $f rule add priority 5270 lookup 52; done`,
			remove: "for p in 5210 5230 5250 5270; do ip rule del priority $p; ip -6 rule del priority $p; done; ip link del tun8",
		},
		{
			name: "firewalld", make: nft(`table inet firewalld {
 chain mangle_PREROUTING { type filter hook prerouting priority mangle + 10
  icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
  meta nfproto ipv6 fib saddr . mark . iif oif missing drop
 }
 chain nat_POSTROUTING { type nat hook postrouting priority srcnat + 10
  oifname "wan0" goto nat_POST_external
  oifname "wan1" goto nat_POST_external
 }
 chain nat_POST_external { meta nfproto ipv4 oifname != "lo" masquerade
 }
 chain filter_INPUT { type filter hook input priority filter + 10
  ct state { established, related } accept
  ct state invalid drop
 }
}`),
			remove: "nft delete table inet firewalld",
		},
		{
			name: "TPROXY", make: nft(`table inet proxy {
 chain pre { type filter hook prerouting priority mangle
  ip daddr 10.77.0.0/16 tcp dport 80 meta mark set 1 tproxy ip to 127.0.0.1:8123
 }
 chain out { type route hook output priority mangle
  ip daddr 10.77.0.0/16 tcp dport 80 meta mark set 1
 }
}`) + "ip rule add fwmark 1 lookup 100 priority 400; ip route add local default dev lo table 100",
			remove: "nft delete table inet proxy; ip rule del priority 400; ip route flush table 100",
		},
		{
			name: "connection marks of the administrator", make: bridgeOf("docker0", "172.17.0.1/16", "172.17.0.2/16") + nft(`table ip marks {
 chain published { type nat hook prerouting priority dstnat
  fib daddr type local tcp dport 8080 dnat to 172.17.0.2
 }
 chain pre { type filter hook prerouting priority mangle
  iifname "wan1" ct state new ct mark set 2
  iifname "docker0" meta mark set ct mark
 }
}`) + "ip rule add priority 9700 fwmark 2/0xff lookup 222; ip route add default via $G1 dev wan1 table 222",
			remove: "nft delete table ip marks; ip rule del priority 9700; ip route flush table 222; " + withoutBridge("docker0"),
		},
		{
			name: "static rules of the administrator", make: "ip rule add priority 1000 from 10.9.9.0/24 lookup 200; ip rule add priority 1001 to 192.0.2.99 lookup 200; ip rule add priority 1002 uidrange 4000-4001 lookup 200; ip route add default via $G1 dev wan1 table 200",
			remove: "for p in 1000 1001 1002; do ip rule del priority $p; done; ip route flush table 200",
		},
		{
			name: "OpenVPN with redirect-gateway", make: "ip link add tun8 type bridge; ip address add 10.8.0.2/24 dev tun8; ip link set tun8 up; ip route add 0.0.0.0/1 dev tun8; ip route add 128.0.0.0/1 dev tun8; ip route add 203.0.113.9 via $G0 dev wan0",
			remove: "ip link del tun8; ip route del 203.0.113.9",
		},
		{
			name: "Mullvad", make: `ip link add wg0 type bridge; ip address add 10.64.0.2/32 dev wg0; ip link set wg0 up
ip route add default dev wg0 table 1836018789; ip rule add priority 32000 not fwmark 0x6d6f6c65 lookup 1836018789; ip rule add priority 31999 lookup main suppress_prefixlength 0
` + nft(`table inet mullvad {
 chain mangle { type route hook output priority mangle
  meta cgroup 0x4d9f41 ct mark set 0xf41 meta mark set 0x6d6f6c65 }
 chain nat { type nat hook postrouting priority srcnat
  oif "wg0" ct mark 0xf41 drop
 }
}`),
			remove: "nft delete table inet mullvad; ip rule del priority 32000; ip rule del priority 31999; ip link del wg0",
		},
		{
			name: "strict reverse path filter", make: "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.wan0.rp_filter=1 net.ipv4.conf.wan1.rp_filter=1",
			remove: "sysctl -qw net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.wan0.rp_filter=2 net.ipv4.conf.wan1.rp_filter=2",
		},
		{
			name: "source NAT on each link", make: "sysctl -qw net.ipv4.ip_forward=1\n" + nft(`table ip n {
 chain post { type nat hook postrouting priority srcnat
  oifname "wan0" snat to $A0
  oifname "wan1" snat to $A1
 }
}`), remove: "nft delete table ip n; sysctl -qw net.ipv4.ip_forward=0",
		},
		{
			name: "source NAT by the index of the link", make: "sysctl -qw net.ipv4.ip_forward=1\n" + nft(`table ip n {
 chain post { type nat hook postrouting priority srcnat
  oif "wan0" snat to $A0
  oif "wan1" snat to $A1
 }
}`), remove: "nft delete table ip n; sysctl -qw net.ipv4.ip_forward=0",
		},
		{
			name: "source NAT by sets, marks and maps", make: "sysctl -qw net.ipv4.ip_forward=1\n" + nft(`table ip n {
 chain post { type nat hook postrouting priority srcnat
  ct mark 1 snat to $A0
  ct mark 2 snat to $A1
  oifname { "wan0", "wan9" } snat to $A0
  snat to oifname map { "wan0" : $A0, "wan1" : $A1 }
 }
}`), remove: "nft delete table ip n; sysctl -qw net.ipv4.ip_forward=0",
		},
		{
			name: "hairpin NAT", make: "sysctl -qw net.ipv4.ip_forward=1\n" + nft(`table ip n {
 chain post { type nat hook postrouting priority srcnat
  ip saddr 172.31.0.0/24 ip daddr 172.31.0.5 tcp dport 80 snat to $A0
  oifname "wan0" ip daddr 10.9.0.0/16 masquerade
  oifname "wan*" masquerade
 }
}`), remove: "nft delete table ip n; sysctl -qw net.ipv4.ip_forward=0",
		},
		{
			name: "a LAN that a rule binds to one link", make: "sysctl -qw net.ipv4.ip_forward=1; ip rule add priority 7000 iif lan0 lookup 333; ip route add default via $G0 dev wan0 table 333\n" + nft(`table ip n {
 chain post { type nat hook postrouting priority srcnat
  ip saddr 172.31.0.0/24 oifname != "lan0" snat to $A0
 }
}`), remove: "nft delete table ip n; ip rule del priority 7000; ip route flush table 333; sysctl -qw net.ipv4.ip_forward=0",
		},
		{
			name: "two sites", make: "ip route add 10.9.0.0/16 via $G0 dev wan0 src 172.31.0.1; ip rule add priority 220 lookup 220; ip route add 10.20.0.0/16 via $G1 dev wan1 src 172.31.0.1 table 220",
			remove: "ip route del 10.9.0.0/16; ip rule del priority 220; ip route flush table 220",
		},
		{
			name: "CONNMARK of iptables", make: `iptables-nft -t mangle -A PREROUTING -i wan1 -m conntrack --ctstate NEW -j CONNMARK --set-mark 2; iptables-nft -t mangle -A OUTPUT -j CONNMARK --restore-mark
iptables-nft -t nat -A POSTROUTING -o wan0 -j SNAT --to-source $A0; iptables-nft -t nat -A POSTROUTING -o wan1 -j SNAT --to-source $A1`,
			remove: "nft delete table ip mangle; nft delete table ip nat",
		},
		{
			name: "a router of IPv6 that NetworkManager configures", make: "sysctl -qw net.ipv6.conf.wan1.forwarding=1 net.ipv6.conf.wan1.accept_ra=1",
			remove: "sysctl -qw net.ipv6.conf.wan1.forwarding=0 net.ipv6.conf.wan1.accept_ra=0",
		},
		{name: "ufw", make: "ufw --force enable >/dev/null; ufw allow in on wan1 to any port 22 >/dev/null", remove: "ufw --force disable >/dev/null; nft flush ruleset"},
		{name: "ifupdown", start: ifupdown},
		{name: "dnsmasq", start: dnsmasq},
		{name: "BIRD", start: bird},
		{name: "keepalived", start: keepalived},
	}
}

// nft loads a file of nftables, in which the last statement of a chain has a line of its own.
func nft(text string) string {
	return "nft -f - <<END\n" + strings.ReplaceAll(text, " }\n", "\n }\n") + "\nEND\n"
}

// file writes a file for a program of the host.
func (h *host) file(name, text string) string {
	h.t.Helper()
	path := filepath.Join(h.t.TempDir(), name)
	h.must(os.WriteFile(path, []byte(text), 0o600))
	return path
}

// daemon runs a program until the test ends.
func (h *host) daemon(path string, args ...string) *lab.Process {
	h.t.Helper()
	p, err := h.Start(lab.ProcessConfig{Path: path, Args: args})
	h.must(err)
	h.t.Cleanup(func() { _ = p.Kill() })
	return p
}

func ifupdown(h *host) {
	h.sh("ip link add veth-if type veth peer name veth-peer; ip link set veth-peer up")
	h.t.Cleanup(func() { h.sh("ip link del veth-if") })
	path := h.file("interfaces", "iface veth-if inet static\n address 10.55.0.1/24\n")
	h.sh("ifup --force --no-act -i " + path + " veth-if; ip address add 10.55.0.1/24 dev veth-if; ip link set veth-if up")
}

func dnsmasq(h *host) {
	h.sh("ip link add br-lan type bridge; ip address add 10.56.0.1/24 dev br-lan; ip link set br-lan up")
	h.t.Cleanup(func() { h.sh("ip link del br-lan") })
	p := h.daemon("dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--interface=br-lan", "--bind-interfaces", "--dhcp-range=10.56.0.10,10.56.0.20", "--dhcp-leasefile="+filepath.Join(h.t.TempDir(), "leases"), "--pid-file=")
	_, err := p.WaitLine(h.t.Context(), "DHCP")
	h.must(err)
}

func bird(h *host) {
	path := h.file("bird.conf", "router id 192.0.2.1;\nprotocol device { }\nprotocol static { ipv4; route 10.57.0.0/16 via "+lab.DefaultISP(1).IPv4.Addr().String()+"; route 10.58.0.0/16 blackhole; }\nprotocol kernel { ipv4 { export all; import none; }; }\n")
	p := h.daemon("bird", "-f", "-c", path, "-s", filepath.Join(h.t.TempDir(), "bird.ctl"))
	labtest.Eventually(h.t, func() error {
		out, err := h.IP(h.t.Context(), "route", "show", "10.57.0.0/16")
		if err == nil && out == "" {
			err = fmt.Errorf("BIRD has set no route: %s", p.Log())
		}
		return err
	})
}

func keepalived(h *host) {
	path := h.file("keepalived.conf", "vrrp_instance v {\n state MASTER\n interface lan0\n virtual_router_id 7\n priority 200\n advert_int 1\n virtual_ipaddress { 172.31.0.9/24 }\n}\n")
	h.daemon("keepalived", "-n", "-l", "-f", path, "-p", filepath.Join(h.t.TempDir(), "p"), "-r", filepath.Join(h.t.TempDir(), "r"))
	_, err := h.WaitAddrIn(h.t.Context(), "lan0", netip.MustParsePrefix("172.31.0.9/32"))
	h.must(err)
}

// TestHealthyHosts: hosts of two uplinks with traffic and one component each have no findings.
func TestHealthyHosts(t *testing.T) {
	h := newHost(t)
	_, err := h.NewLink(lab.LinkConfig{Name: "lan0"})
	h.must(err)
	h.must(h.AddProfile(t.Context(), "lan0", "lan0", "ipv4.method", "manual", "ipv4.addresses", "172.31.0.1/24", "ipv6.method", "disabled"))
	h.must(h.Up(t.Context(), "lan0"))
	_, err = h.NewNamespace("c")
	h.must(err)
	h.sound("alone, with Multipath TCP")
	environment := fmt.Sprintf("A0=%s; A1=%s; G0=%s; G1=%s\n", h.address("wan0", lab.IPv4), h.address("wan1", lab.IPv4), lab.DefaultISP(0).IPv4.Addr(), lab.DefaultISP(1).IPv4.Addr())
	for _, n := range neighbors() {
		t.Run(n.name, func(t *testing.T) {
			in := *h
			in.t = t
			if n.start != nil {
				n.start(&in)
			} else {
				in.sh(environment + n.make)
				t.Cleanup(func() { in.sh(environment + n.remove) })
			}
			// The daemon has seen it when nothing more is found.
			in.sound(n.name)
			for i, name := range []string{"wan0", "wan1"} {
				for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
					from := netip.MustParseAddr(in.address(name, f))
					if answer, err := in.Ping(t.Context(), lab.From{Addr: from}, lab.InternetAddr(f)); err != nil || answer.ISP != in.isps[i].Name() {
						t.Errorf("traffic from %s: %+v, %v", from, answer, err)
					}
				}
			}
			if r := in.doctor(); len(r.Findings) > 0 {
				t.Errorf("with traffic: %s", texts(r.Findings))
			}
		})
	}
}
