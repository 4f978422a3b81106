package doctor_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"multihomed/internal/doctor"
	"multihomed/internal/status/outcome"
	"multihomed/routing"
	"multihomed/routing/answers"
	"multihomed/test/lab"
)

// A disease is something that disturbs links. Its scripts are for sh.
type disease struct {
	code     routing.Code
	severity routing.Severity
	// link is empty for the host.
	link string
	// provoke makes it; heal takes away what the fix leaves.
	provoke, heal string
}

// srcnat is the hook for sources.
const srcnat = "nat hook postrouting priority srcnat"

// diseases has those that one host can have after each other. In the scripts, $A0 and $A1 are the
// addresses of wan0 and wan1, $G0 and $G1 their routers; 192.0.2.0/24 is behind tun7.
func diseases() []disease {
	return []disease{
		{code: outcome.RuleAhead, severity: routing.Error, provoke: "ip rule add priority 5270 lookup 52; ip route add default dev tun7 table 52", heal: "ip rule del priority 30000; ip route flush table 52"},
		{code: outcome.RuleOfSource, severity: routing.Error, link: "wan1", provoke: "ip route add default via $G0 dev wan0 table 11001; ip rule add priority 9999 from $A1 lookup 11001", heal: "ip route flush table 11001"},
		{code: outcome.RejectDefault, severity: routing.Error, provoke: "ip route add unreachable default metric 10"},
		{code: outcome.GatewayElsewhere, severity: routing.Error, link: "wan1", provoke: "ip route add $G1/32 dev tun7"},
		{code: "main-rule", severity: routing.Warning, provoke: "ip -6 rule del priority 32766"},
		{code: doctor.LocalRule, severity: routing.Error, provoke: "ip -6 rule del priority 0"},
		{code: "goto-resolved", severity: routing.Warning, provoke: "ip rule add priority 100 from 198.51.100.77 goto 9020", heal: "ip rule del priority 100; ip rule del priority 9020 nop"},
		{code: "rule-overtakes", severity: routing.Warning, provoke: "ip rule add uidrange 4000-4001 lookup 77; ip rule add priority 31000 not fwmark 0xca6c lookup 77", heal: "ip rule del priority 31001; ip rule del priority 31000"},
		{code: routing.ForeignGroup, severity: routing.Warning, link: "wan1", provoke: "ip link add br-x type bridge; ip link set br-x group 7 up; ip link set wan1 group 7", heal: "ip link del br-x"},
		{code: doctor.MainSource, severity: routing.Warning, link: "wan1", provoke: "ip route add 192.0.2.128/25 via $G0 dev wan0 src $A1", heal: "ip route del 192.0.2.128/25"},
		{code: doctor.SourceSpecific, severity: routing.Warning, provoke: "ip -6 route add 2001:db8:77::/48 dev tun7; ip -6 route add 2001:db8:77::/48 from 2001:db8:78::/48 dev tun7", heal: "ip -6 route del 2001:db8:77::/48 dev tun7"},
		{code: doctor.FirewallMark, severity: routing.Error, link: "wan1", provoke: table("out", "route hook output priority mangle", "meta mark set 9") + "ip rule add priority 50 fwmark 9 lookup main", heal: "nft delete table ip t; ip rule del priority 50"},
		{code: doctor.StrictMarks, severity: routing.Error, link: "wan1", provoke: table("pre", "filter hook prerouting priority mangle", `iifname "wan1" meta mark set 9`) + "ip rule add priority 50 fwmark 9 lookup main; sysctl -qw net.ipv4.conf.wan1.rp_filter=1 net.ipv4.conf.wan1.src_valid_mark=1 net.ipv4.conf.all.rp_filter=1", heal: "nft delete table ip t; ip rule del priority 50; sysctl -qw net.ipv4.conf.all.rp_filter=2"},
		{code: doctor.SNATAddress, severity: routing.Error, link: "wan1", provoke: table("post", srcnat, `oifname != "lo" snat to $A0`), heal: "nft delete table ip t"},
		{code: doctor.SNATAddress, severity: routing.Error, link: "wan1", provoke: "iptables-nft -t nat -A POSTROUTING -s 172.31.0.0/24 -j SNAT --to-source $A0", heal: "nft delete table ip nat"},
		{code: doctor.MasqueradeMissing, severity: routing.Warning, link: "wan1", provoke: "sysctl -qw net.ipv4.ip_forward=1\n" + table("post", srcnat, `oifname "wan0" ip saddr 172.31.0.0/24 masquerade`), heal: "nft delete table ip t; sysctl -qw net.ipv4.ip_forward=0"},
		{code: doctor.SameMAC, severity: routing.Notice, link: "wan1", provoke: "ip link set wan1 address $(cat /sys/class/net/wan0/address)"},
		{code: doctor.AcceptRA, severity: routing.Warning, link: "wan1", provoke: "nmcli connection modify wan1 ipv6.method ignore; nmcli connection up wan1; sysctl -qw net.ipv6.conf.wan1.accept_ra=1 net.ipv6.conf.wan1.disable_ipv6=0; ip -6 address flush dev wan1 scope global; ip -6 address add 2001:db8:0:2::9/64 dev wan1 valid_lft 3000 preferred_lft 3000; sysctl -qw net.ipv6.conf.wan1.forwarding=1", heal: "sysctl -qw net.ipv6.conf.wan1.forwarding=0 net.ipv6.conf.wan1.accept_ra=0; nmcli connection modify wan1 ipv6.method auto; nmcli connection up wan1"},
		{code: doctor.MPTCPLimits, severity: routing.Warning, provoke: "ip mptcp limits set subflows 0", heal: "ip mptcp limits set subflows 2"},
		{code: doctor.NexthopCompat, severity: routing.Notice, provoke: "sysctl -qw net.ipv4.nexthop_compat_mode=0"},
		// A smaller MTU on the way makes a destination entry.
		{code: doctor.RouteLimit6, severity: routing.Warning, provoke: "ip -n isp0 link add small type bridge; ip -n isp0 link set small mtu 1280 up; ip -n isp0 -6 route add 2001:db8:99::/64 dev small; ping -qc1 -W5 -Mdo -s1400 2001:db8:99::1 || true; sysctl -qw net.ipv6.route.max_size=1", heal: "ip -n isp0 link del small; sysctl -qw net.ipv6.route.max_size=2147483647"},
		{code: answers.SourceChecked, severity: routing.Warning, link: "wan1", provoke: "sysctl -qw net.ipv4.conf.wan1.src_valid_mark=0 net.ipv4.conf.wan1.rp_filter=1 net.ipv4.conf.all.rp_filter=1 net.ipv4.ip_forward=1\n" + table("post", srcnat, `oifname "wan*" masquerade`), heal: "nft delete table ip t; sysctl -qw net.ipv4.ip_forward=0 net.ipv4.conf.all.rp_filter=2"},
		// wan2 is on the wire of wan0.
		{code: "arp", severity: routing.Warning, link: "wan0", provoke: wan2("100.64.0.50/24") + "ping -qc1 -W5 -I wan0 $G0; ping -qc1 -W5 -I wan2 $G0", heal: "nmcli connection delete wan2; sysctl -qw net.ipv4.conf.all.arp_ignore=0 net.ipv4.conf.all.arp_announce=0"},
		{code: "rp-filter", severity: routing.Warning, link: "wan2", provoke: wan2("172.31.0.1/24") + "sysctl -qw net.ipv4.conf.wan2.rp_filter=1 net.ipv4.conf.all.rp_filter=1", heal: "nmcli connection delete wan2; sysctl -qw net.ipv4.conf.all.rp_filter=2"},
		{code: doctor.LinkdownRoutes, severity: routing.Notice, link: "lan0", provoke: "sysctl -qw net.ipv4.conf.lan0.ignore_routes_with_linkdown=1"},
		{code: routing.LeftAlone, severity: routing.Notice, link: "wan1", provoke: "nmcli connection modify wan1 ipv4.route-table 77; nmcli device reapply wan1"},
		{code: doctor.Resolver, severity: routing.Notice, link: "wan1", provoke: "echo nameserver 198.51.100.53 >/etc/resolv.conf", heal: "ip route del 198.51.100.53; : >/etc/resolv.conf"},
	}
}

// table is the table t of nftables with one chain that has one rule.
func table(chain, hook, rule string) string {
	return fmt.Sprintf("nft -f - <<END\ntable ip t {\n chain %s {\n type %s\n %s\n }\n}\nEND\n", chain, hook, rule)
}

// wan2 gives a link of that name an address.
func wan2(address string) string {
	return "nmcli connection add type ethernet con-name wan2 ifname wan2 ipv4.method manual ipv4.addresses " + address + " ipv6.method disabled; nmcli connection up wan2\n"
}

// TestFindings: each is found with its severity, once; what --fix prints removes it; and the host is
// sound again. Both links carry traffic before and after.
func TestFindings(t *testing.T) {
	h := newHost(t)
	_, err := h.NewTun("tun7")
	h.must(err)
	h.must(h.AddAddr("tun7", "192.0.2.1/24"))
	// A local link, and a DNS server that wan1 alone names.
	_, err = h.NewLink(lab.LinkConfig{Name: "lan0"})
	h.must(err)
	h.must(h.AddProfile(t.Context(), "lan0", "lan0", "ipv4.method", "manual", "ipv4.addresses", "172.31.0.1/24", "ipv6.method", "disabled"))
	h.must(h.Up(t.Context(), "lan0"))
	h.must(h.Modify(t.Context(), "wan1", "ipv4.dns", "198.51.100.53"))
	h.must(h.Reapply(t.Context(), "wan1"))
	h.sh(": >/etc/resolv.conf")
	_, err = h.isps[0].AddLink(lab.LinkConfig{Name: "wan2"})
	h.must(err)
	h.sound("before")
	environment := fmt.Sprintf("A0=%s; A1=%s; G0=%s; G1=%s\n", h.address("wan0", lab.IPv4), h.address("wan1", lab.IPv4), lab.DefaultISP(0).IPv4.Addr(), lab.DefaultISP(1).IPv4.Addr())
	for n, d := range diseases() {
		if t.Failed() {
			break // The next ones would find the same.
		}
		t.Run(fmt.Sprintf("%02d %s", n, d.code), func(t *testing.T) {
			in := *h
			in.t = t
			in.carry("before")
			in.sh(environment + d.provoke)
			found := in.find(d.code, d.severity, d.link)
			if found.Commands == "" {
				t.Fatalf("no command fixes it: %s", texts([]doctor.Finding{found}))
			}
			in.fix(d.code)
			in.gone(d.code)
			in.carry("after the fix")
			in.sh(environment + d.heal)
			in.sound("after")
		})
	}
}

// TestProbe: what only packets show.
func TestProbe(t *testing.T) {
	h := newHost(t)
	h.sound("before")
	probe := []string{"--probe", "--target", lab.InternetAddr4.String()}
	r := h.doctor(probe...)
	if !r.Probed || len(r.Findings) > 0 {
		t.Fatalf("a sound host: %s", texts(r.Findings))
	}

	isp := func(script string) { h.sh(strings.ReplaceAll(script, "ISP", "ip netns exec "+h.isps[1].Name())) }
	isp("ISP nft add table ip hole; ISP nft 'add chain ip hole in { type filter hook prerouting priority 0; }'; ISP nft 'add rule ip hole in iifname \"lan\" icmp type echo-request ip length > 1300 drop'")
	if f := h.find(doctor.MTUHole, routing.Warning, "wan1", probe...); !strings.Contains(f.Text, "more than 1300 bytes") {
		t.Errorf("%s", texts([]doctor.Finding{f}))
	}
	h.fix(doctor.MTUHole, probe...)
	if found := h.doctor(probe...).Of(doctor.MTUHole); len(found) > 0 {
		t.Errorf("after the fix: %s", texts(found))
	}
	h.sh("ip link set wan1 mtu 1500")

	isp("ISP nft 'add rule ip hole in iifname \"lan\" ip daddr " + lab.InternetAddr4.String() + " icmp type echo-request drop'")
	dead := h.find(doctor.UpstreamDead, routing.Error, "wan1", probe...)
	if dead.Commands != "" || !strings.Contains(dead.Text, "its router answers") {
		t.Errorf("%s", texts([]doctor.Finding{dead}))
	}
	// What no command can do is a comment.
	script, err := h.as(0, append([]string{"doctor", "--fix", string(doctor.UpstreamDead)}, probe...)...)
	if ended, is := errors.AsType[*exec.ExitError](err); !is || ended.ExitCode() != 1 || !strings.Contains(script, "# by hand: ask the provider") {
		t.Errorf("--fix: %v, %q", err, script)
	}
	isp("ISP nft delete table ip hole")

	mine := netip.MustParseAddr(h.address("wan1", lab.IPv4))
	isp("ISP ip address add " + mine.String() + "/32 dev lan")
	if f := h.find(doctor.DuplicateAddress, routing.Error, "wan1", probe...); f.Object != mine.String() {
		t.Errorf("%s", texts([]doctor.Finding{f}))
	}
	isp("ISP ip address del " + mine.String() + "/32 dev lan")
	// What failover found meanwhile takes its time to recover.
	last := h.doctor(probe...)
	for _, code := range []routing.Code{doctor.MTUHole, doctor.UpstreamDead, doctor.DuplicateAddress} {
		if found := last.Of(code); len(found) > 0 {
			t.Errorf("at the end: %s", texts(found))
		}
	}
}

// TestConfigured: what depends on the configuration, or on a busy host.
func TestConfigured(t *testing.T) {
	h := newHost(t, "[tables]", "first = 11000", "last = 11005", "[answers]", `forwarded = "no"`)
	full := h.find(doctor.TablesNearlyFull, routing.Warning, "")
	if full.Object != "tables 11000-11005" || full.Commands != "" {
		t.Errorf("%s", texts([]doctor.Finding{full}))
	}
	// No number is left to which wan1 could go.
	h.sh("ip route add unreachable 0.0.0.0/1 $(ip route get 8.8.8.8 from " + h.address("wan1", lab.IPv4) + " | grep -o 'table [0-9]*')")
	h.find(outcome.TableInUse, routing.Error, "wan1")
	h.fix(outcome.TableInUse)
	h.gone(outcome.TableInUse)
	h.carry("after the fix")
	// A redirection of what comes from the LAN publishes nothing.
	h.sh("nft add table ip t; nft 'add chain ip t pre { type nat hook prerouting priority dstnat; }'; nft 'add rule ip t pre iifname lan0 udp dport 53 dnat to 172.31.0.5'")
	if found := h.doctor().Of(doctor.PublishedPort); len(found) > 0 {
		t.Errorf("%s", texts(found))
	}
	h.sh("nft 'add rule ip t pre iifname != lan0 tcp dport 80 dnat to 172.31.0.5'")
	if f := h.find(doctor.PublishedPort, routing.Warning, ""); !strings.Contains(f.Fix, "[answers]") || !strings.Contains(f.Text, "172.31.0.5") {
		t.Errorf("%s", texts([]doctor.Finding{f}))
	}
	h.sh("nft delete table ip t")
	// firewalld's IPv6_rpfilter harms a link without rules alone.
	h.sh(nft("table inet firewalld {\n chain mangle_PREROUTING { type filter hook prerouting priority mangle + 10\n  icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept\n  meta nfproto ipv6 fib saddr . mark . iif oif missing drop\n }\n}"))
	if found := h.doctor().Of(doctor.RPFilter6); len(found) > 0 {
		t.Errorf("%s", texts(found))
	}
	h.must(h.Modify(t.Context(), "wan1", "ipv6.route-table", "77"))
	h.must(h.Up(t.Context(), "wan1"))
	if f := h.find(doctor.RPFilter6, routing.Notice, ""); !strings.Contains(f.Text, "wan1 has no rules by source") {
		t.Errorf("%s", texts([]doctor.Finding{f}))
	}
	// More changes than the sockets of a daemon that is stopped hold.
	h.must(h.process.Signal(syscall.SIGSTOP))
	h.sh("i=0; while [ $i -lt 60000 ]; do echo route add blackhole 10.$((i/65536)).$((i/256%256)).$((i%256)); i=$((i+1)); done >/run/routes; ip -batch /run/routes; ip route flush type blackhole")
	h.must(h.process.Signal(syscall.SIGCONT))
	h.find(doctor.SocketOverrun, routing.Notice, "")
	// There is no systemd here: its part is the test's.
	asked := filepath.Join(t.TempDir(), "asked")
	programs := t.TempDir()
	h.must(os.WriteFile(filepath.Join(programs, "systemctl"), []byte("#!/bin/sh\necho \"$*\" >>"+asked+"\n"), 0o700))
	t.Setenv("PATH", programs+":"+os.Getenv("PATH"))
	h.fix(doctor.SocketOverrun)
	if text, err := os.ReadFile(asked); err != nil || string(text) != "restart multihomed\n" {
		t.Fatalf("systemctl was asked for %q, %v", text, err)
	}
	h.must(h.process.Stop(t.Context()))
	h.startDaemon()
	h.gone(doctor.SocketOverrun)
}

// TestWithoutRoot: what is not readable is not called sound.
func TestWithoutRoot(t *testing.T) {
	h := newHost(t)
	h.sound("before")
	const nobody = 65534
	out, err := h.as(nobody, "doctor")
	h.must(err)
	for _, text := range []string{"not looked", "can only be read by root", string(doctor.SNATAddress), string(doctor.PublishedPort), "no findings in what was looked at"} {
		if !strings.Contains(out, text) {
			t.Errorf("%q is missing in:\n%s", text, out)
		}
	}
	if out, err = h.as(nobody, "doctor", "--probe"); err != nil || !strings.Contains(out, "packets can only be sent by root") || !strings.Contains(out, string(doctor.MTUHole)) {
		t.Errorf("%v\n%s", err, out)
	}
	h.sh(table("post", srcnat, `oifname != "lo" snat to `+h.address("wan0", lab.IPv4)))
	// The end of status names it.
	out, err = h.as(0, "status")
	h.must(err)
	if !strings.Contains(out, "the nftables rule ip t post") || !strings.Contains(out, "multihomectl doctor shows 1 such finding") {
		t.Errorf("status:\n%s", out)
	}
	if r := h.doctor(); !slices.ContainsFunc(r.Findings, func(f doctor.Finding) bool { return f.Code == doctor.SNATAddress }) {
		t.Errorf("%s", texts(r.Findings))
	}
}
