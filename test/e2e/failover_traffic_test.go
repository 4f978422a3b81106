package e2e_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/status"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// A conversation is one socket that asks an echo server again and again, and reads the answers.
type conversation struct {
	conn net.Conn
	in   *bufio.Reader
}

// converse opens a socket in the namespace, or on the host if that is nil.
func converse(tb testing.TB, ns *lab.Namespace, network string, dst netip.Addr) *conversation {
	tb.Helper()
	c := &conversation{}
	dial := func() (err error) {
		c.conn, err = (&net.Dialer{Timeout: lab.Stretched(10 * time.Second)}).DialContext(tb.Context(), network, netip.AddrPortFrom(dst, lab.EchoPort).String())
		return err
	}
	do := func(f func() error) error { return f() }
	if ns != nil {
		do = ns.Do
	}
	if err := do(dial); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.conn.Close() })
	c.in = bufio.NewReader(c.conn)
	return c
}

// errQuiet says that nothing came back, and that the socket lives.
var errQuiet = errors.New("no answer")

// ask returns who answers, with the address that the server saw.
func (c *conversation) ask() (string, error) {
	if _, err := c.conn.Write([]byte("who?\n")); err != nil {
		return "", err
	}
	_ = c.conn.SetReadDeadline(time.Now().Add(lab.Stretched(100 * time.Millisecond)))
	line, err := c.in.ReadString('\n')
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "", errQuiet
	}
	return line, err
}

// answered waits until somebody answers the conversation.
func (f *failing) answered(c *conversation, who string) {
	f.t.Helper()
	f.eventually(func() error {
		line, err := c.ask()
		if err == nil && !strings.Contains(line, `"`+who+`"`) {
			err = fmt.Errorf("%s answers, not %s", line, who)
		}
		return err
	})
}

// TestFailoverConnections is what happens to connections that stand when their provider dies.
func TestFailoverConnections(t *testing.T) {
	// With answers, translated connections stay where they are: see TestAnswersKeepConnections.
	const closing = quickToml + "close_connections = \"1s\"\n[answers]\nforwarded = \"no\"\nfence = \"no\"\n"
	f := newFailing(t, lab.HostConfig{FastDAD: true, Sysctls: []string{"net.ipv4.ip_forward", "1"}}, closing, 2, func(_ int, cfg *lab.ISPConfig) {
		cfg.Lease, cfg.Renew = 2*time.Minute, 3*time.Second
	})
	lan, err := f.NewBridge("lan0", netip.MustParsePrefix("192.168.50.1/24"))
	f.must(err)
	client, err := lan.Container("client", netip.MustParsePrefix("192.168.50.2/24"))
	f.must(err)
	_, err = f.NewServer("mirror", f.isps...)
	f.must(err)
	f.begin()
	f.monitor = newMonitor(t)
	t.Run("told", func(t *testing.T) { f.on(t).told() })
	t.Run("MPTCP", func(t *testing.T) { f.on(t).multipath() })
	for _, kind := range []string{"masquerade", "snat"} {
		t.Run(kind, func(t *testing.T) { f.on(t).translated(kind, client) })
	}
}

// told: an established TCP connection gets an error; connections on the link, UDP sockets and
// NetworkManager's own go on.
func (f *failing) told() {
	far := map[lab.Family]*conversation{}
	for _, family := range families {
		far[family] = converse(f.t, nil, "tcp", lab.InternetAddr(family))
		f.answered(far[family], "isp0")
	}
	gateway := f.isps[0].Config().IPv4.Addr()
	near, datagrams := converse(f.t, nil, "tcp", gateway), converse(f.t, nil, "udp", lab.InternetAddr4)
	f.answered(near, "isp0")
	f.answered(datagrams, "isp0")
	f.wire(0).Break(lab.NoInternet)
	for _, family := range families {
		f.eventually(func() error {
			_, err := far[family].ask()
			if err == nil || errors.Is(err, errQuiet) {
				return fmt.Errorf("the %v connection does not end: %w", family, err)
			}
			if !errors.Is(err, unix.ECONNABORTED) {
				f.t.Errorf("the %v connection ended by %v", family, err)
			}
			return nil
		})
		// It is told because traffic has moved, and can connect again at once.
		f.answered(converse(f.t, nil, "tcp", lab.InternetAddr(family)), "isp1")
	}
	f.answered(near, "isp0")
	// Answers to questions of before may come late.
	f.eventually(func() error {
		if line, err := datagrams.ask(); !errors.Is(err, errQuiet) {
			return fmt.Errorf("a UDP socket with the address of the dead link: %s, %w", line, err)
		}
		return nil
	})
	// NetworkManager renews while the link is dead beyond the gateway.
	_, err := f.isps[0].WaitDHCP(f.t.Context(), "DHCPACK(lan)")
	f.must(err)
	if h := f.health(0, lab.IPv4); !h.State.Dead() {
		f.t.Errorf("wan0 is %s, so the renewal proves nothing", h.State)
	}
	f.wire(0).Repair()
	f.answered(datagrams, "isp0")
	f.answered(near, "isp0")
	f.well()
	f.strays("connections")
	f.reset("wan0")
}

// multipath: a transfer by MPTCP goes on, past the moment when connections are told.
func (f *failing) multipath() {
	for n := range f.isps {
		f.wire(n).Set(slowLine)
	}
	// A transfer opens subflows once, from the endpoints that there are then.
	f.eventually(func() error {
		endpoints, err := f.IP(f.t.Context(), "mptcp", "endpoint", "show")
		for _, isp := range f.isps {
			link := isp.Link().Name()
			if err == nil && !slices.ContainsFunc(strings.Split(endpoints, "\n"), func(line string) bool {
				words := strings.Fields(line)
				return strings.HasPrefix(line, f.address(link, lab.IPv4).String()+" ") && slices.Contains(words, "subflow") && word(words, "dev") == link
			}) {
				err = fmt.Errorf("MPTCP has no endpoint for %s:\n%s", link, endpoints)
			}
		}
		return err
	})
	const size = 8 << 20
	d := lab.Download{Dst: lab.SharedAddr4, Bytes: size, MPTCP: true}
	ctx, cancel := context.WithTimeout(f.t.Context(), transferTime)
	defer cancel()
	began := make(chan struct{})
	going := false
	d.Progress = func(n int64) {
		if n > size/20 && !going {
			going = true
			close(began)
		}
	}
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	select {
	case <-began:
	case err := <-done:
		f.t.Fatalf("the transfer ended before anything broke: %v", err)
	}
	f.eventually(func() error {
		for n, c := range f.caught {
			packets, err := c.Matching(func(p lab.Packet) bool { return p.DstPort == lab.StreamPort })
			if err == nil && len(packets) < 10 {
				err = fmt.Errorf("%d packets of the transfer go by %s", len(packets), f.isps[n].Name())
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	f.wire(0).Break(lab.Silent)
	f.state(0, lab.IPv4, status.HealthDown)
	f.leavesBy(1, lab.IPv4)
	plain := converse(f.t, nil, "tcp", lab.InternetAddr4)
	f.answered(plain, "isp1")
	f.wire(1).Set(fastLine)
	f.must(<-done)
	f.t.Logf("%d connections, the longest stall was %v", d.Connections, d.Stall.Round(time.Millisecond))
	if d.Connections != 1 || !d.Multipath || d.Received != size {
		f.t.Errorf("%d connections, MPTCP %t, %d of %d bytes, ends %v", d.Connections, d.Multipath, d.Received, int64(size), d.Ends)
	}
	if limit := 500 * time.Millisecond; *soak && d.Stall > limit { // nothing else runs
		f.t.Errorf("the transfer stalled for %v", d.Stall)
	}
	for n := range f.isps {
		f.wire(n).Set(lab.Conditions{})
	}
	f.well()
	f.strays("MPTCP")
	f.reset("wan0")
}

// translated: what the host translates for a LAN moves with its own traffic, and nothing leaves with
// the address of the dead link.
func (f *failing) translated(kind string, client *lab.Namespace) {
	ctx := f.t.Context()
	rules := "oifname { wan0, wan1 } masquerade\n"
	if kind == "snat" {
		rules = ""
		for _, link := range []string{"wan0", "wan1"} {
			rules += fmt.Sprintf("oifname %s ip saddr 192.168.50.0/24 snat to %v\n", link, f.address(link, lab.IPv4))
		}
	}
	f.nft("table ip nat {\nchain post {\ntype nat hook postrouting priority 100;\n" + rules + "}\n}\n")
	f.t.Cleanup(func() {
		_, err := f.Run(context.WithoutCancel(ctx), "nft", "flush", "ruleset")
		f.must(err)
	})
	flow := converse(f.t, client, "udp", lab.InternetAddr4)
	connection := converse(f.t, client, "tcp", lab.InternetAddr4)
	f.answered(flow, "isp0")
	f.answered(connection, "isp0")
	f.wire(0).Break(lab.Silent)
	f.answered(flow, "isp1") // the same socket
	f.leavesBy(1, lab.IPv4)
	f.answered(converse(f.t, client, "tcp", lab.InternetAddr4), "isp1")
	_, _ = connection.ask() // from which side it ends is the client's affair
	second := converse(f.t, client, "tcp", lab.InternetAddr4)
	f.answered(second, "isp1")
	f.wire(0).Repair()
	// Both talk through the return: the same socket goes on, and the server knows no connection from
	// the new address.
	f.eventually(func() error {
		by, err := flow.ask()
		if line, end := second.ask(); end == nil || errors.Is(end, errQuiet) {
			return fmt.Errorf("a connection by the link that traffic leaves does not end: %q, %w", line, end)
		}
		if err == nil && !strings.Contains(by, `"isp0"`) {
			err = fmt.Errorf("%s answers, not isp0", by)
		}
		return err
	})
	returned := time.Now()
	f.answered(flow, "isp0")
	f.well()
	f.answered(flow, "isp0")
	f.answered(converse(f.t, client, "tcp", lab.InternetAddr4), "isp0")
	// A client that ends a connection which the host no longer tracks is not translated, whoever
	// deleted that: only addresses of the other provider count.
	for n, c := range f.caught {
		other := f.isps[1-n]
		packets, err := c.Matching(func(p lab.Packet) bool { return other.IPv4().Contains(p.Src) || other.IPv6().Contains(p.Src) })
		f.must(err)
		// A rule's translations are made anew after traffic has returned: what is sent in between leaves
		// with the other address.
		if kind == "snat" && n == 0 {
			f.t.Logf("%d packets with the other address before the return was over", len(packets))
			packets = slices.DeleteFunc(packets, func(p lab.Packet) bool { return p.Time.Before(returned) })
		}
		if len(packets) > 0 {
			f.t.Errorf("%s, %s saw:\n%s", kind, f.isps[n].Name(), lab.FormatPackets(packets))
		}
		c.Reset()
	}
	f.reset("wan0")
}

// TestFailoverAndVPN: whatever VPN is there, its tunnel has what it had, and the packets that it sends
// itself move. The first provider is dead all the time.
func TestFailoverAndVPN(t *testing.T) {
	host := lab.HostConfig{FastDAD: true, NMConfig: "[keyfile]\nunmanaged-devices=interface-name:tun9"}
	f := newFailing(t, host, quickToml, 2, nil)
	tun, err := f.NewTun("tun9")
	f.must(err)
	f.must(f.AddAddr("tun9", "10.8.0.2/24"))
	f.must(f.AddAddr("tun9", "fd08::2/64"))
	f.begin()
	f.monitor = newMonitor(t)
	const mark = 51820
	inTunnel := map[lab.Family]netip.Addr{lab.IPv4: netip.MustParseAddr("10.8.0.2"), lab.IPv6: netip.MustParseAddr("fd08::2")}
	// tunnelled waits until unbound traffic enters the tunnel.
	seen := map[lab.Family]int{}
	tunnelled := func(when string) {
		t.Helper()
		for _, family := range families {
			f.eventually(func() error {
				ctx, cancel := context.WithTimeout(t.Context(), lab.Stretched(30*time.Millisecond))
				defer cancel()
				if a, err := lab.DialUDP(ctx, lab.From{}, lab.InternetAddr(family)); err == nil {
					return fmt.Errorf("%s, unbound %v is answered by %s", when, family, a.ISP)
				}
				packets, err := tun.Matching(func(p lab.Packet) bool { return p.Src == inTunnel[family] && p.Dst == lab.InternetAddr(family) })
				if err == nil && len(packets) <= seen[family] {
					err = fmt.Errorf("%s, no unbound %v packet is in the tunnel", when, family)
				}
				seen[family] = len(packets)
				return err
			})
		}
	}
	outer := func(when string) {
		t.Helper()
		for _, family := range families {
			f.eventually(func() error {
				ctx, cancel := context.WithTimeout(t.Context(), lab.Stretched(300*time.Millisecond))
				defer cancel()
				a, err := lab.DialUDP(ctx, lab.From{Mark: mark}, lab.InternetAddr(family))
				if err == nil && a.ISP != "isp1" {
					err = fmt.Errorf("%s, the tunnel's own %v packets are answered by %s", when, family, a.ISP)
				}
				return err
			})
		}
	}
	both := func(words string) {
		t.Helper()
		for _, flag := range []string{"-4", "-6"} {
			f.ip(append([]string{flag}, strings.Fields(words)...)...)
		}
	}
	f.wire(0).Break(lab.Silent)
	f.replacedBy(1)

	f.ip("route", "add", "0.0.0.0/1", "dev", "tun9")
	f.ip("route", "add", "128.0.0.0/1", "dev", "tun9")
	f.ip("-6", "route", "add", "2000::/3", "dev", "tun9")
	tunnelled("with two halves")
	f.ip("route", "del", "0.0.0.0/1")
	f.ip("route", "del", "128.0.0.0/1")
	f.ip("-6", "route", "del", "2000::/3", "dev", "tun9")
	f.replacedBy(1)

	both("route add default dev tun9 metric 50")
	tunnelled("as main's best default")
	for _, family := range families {
		f.tableFHolds(family, "")
	}
	both("route del default dev tun9 metric 50")
	f.replacedBy(1)

	// wg-quick (add_default) after the daemon, and before it.
	both("route add default dev tun9 table 51820")
	wireGuard := func(rules ...string) {
		t.Helper()
		for _, r := range rules {
			both("rule add " + r)
		}
		tunnelled("with rules of WireGuard")
		outer("with rules of WireGuard")
	}
	wireGuard("not fwmark 51820 table 51820", "table main suppress_prefixlength 0")
	f.must(f.daemon.Stop(t.Context()))
	f.flush()
	both("rule del not fwmark 51820 table 51820")
	both("rule del table main suppress_prefixlength 0")
	for _, rule := range []string{"not fwmark 51820 table 51820", "table main suppress_prefixlength 0"} {
		both("rule add " + rule)
	}
	f.start()
	for _, family := range families {
		f.tableFHolds(family, "wan1")
	}
	tunnelled("with WireGuard first")
	outer("with WireGuard first")
	// wg-quick down (del_if) takes away what reads like its own until nothing does.
	deletions := 0
	for _, flag := range []string{"-4", "-6"} {
		for text, del := range map[string]string{
			"lookup 51820": "table 51820", "from all lookup main suppress_prefixlength 0": "table main suppress_prefixlength 0",
		} {
			for {
				out, err := f.IP(t.Context(), flag, "rule", "show")
				f.must(err)
				if !strings.Contains(out, text) {
					break
				}
				f.ip(append([]string{flag, "rule", "delete"}, strings.Fields(del)...)...)
				if deletions++; deletions > 20 {
					t.Fatalf("wg-quick down does not end: %q is still there:\n%s", text, out)
				}
			}
		}
	}
	if deletions != 4 {
		t.Errorf("wg-quick down took %d deletions, not 4", deletions)
	}
	f.replacedBy(1)

	// Rules with places of their own, as NetworkManager makes for WireGuard.
	wireGuard("priority 31124 table main suppress_prefixlength 0", "priority 31125 not fwmark 51820 table 51820")
	both("rule del priority 31124")
	both("rule del priority 31125")
	f.replacedBy(1)

	both("route del default dev tun9 table 51820")
	f.wire(0).Repair()
	f.well()
	f.strays("VPN")
}

// TestFailoverChoice is which of several links replaces a dead one: main's best of those that are not
// metered, a metered one when no other lives, and before all the one that the administrator prefers.
func TestFailoverChoice(t *testing.T) {
	f := newFailing(t, lab.HostConfig{FastDAD: true}, quickToml, 3, nil)
	_, err := f.NMCLI(t.Context(), "connection", "modify", "wan1", "connection.metered", "yes")
	f.must(err)
	f.up("wan1")
	for _, family := range families {
		f.address("wan1", family)
	}
	f.begin()
	for n := range f.isps {
		for _, family := range families {
			if h := f.health(n, family); h.Metered != (n == 1) {
				t.Errorf("%v of wan%d is metered: %t", family, n, h.Metered)
			}
		}
	}
	f.wire(0).Break(lab.Silent)
	f.replacedBy(2)
	f.wire(2).Break(lab.Silent)
	f.replacedBy(1)
	f.wire(2).Repair()
	f.replacedBy(2)
	text, err := os.ReadFile(f.path)
	f.must(err)
	f.writeConfig(string(text) + "prefer = [\"wan1\"]\n")
	f.must(f.daemon.Signal(syscall.SIGHUP))
	f.replacedBy(1)
	f.untouched("while moved")
	f.wire(0).Repair()
	f.well() // main's best is used before any that is preferred
	f.untouched("after the return")
	f.strays("choices")
}

// TestFailoverByCarrier pulls cables: of two links to one network, and of one to another.
func TestFailoverByCarrier(t *testing.T) {
	f := newFailing(t, lab.HostConfig{FastDAD: true}, quickToml, 1, nil)
	second, err := f.isps[0].AddLink(lab.LinkConfig{Name: "wan9", Wire: true})
	f.must(err)
	f.must(f.AddProfile(t.Context(), "wan9", "wan9", stable(1)...))
	f.up("wan9")
	first := f.isps[0].Link()
	for _, family := range families {
		f.address("wan9", family)
	}
	f.startProber()
	f.start()
	alive := func(links ...string) {
		t.Helper()
		f.eventually(func() error {
			s, err := f.failover()
			if err != nil {
				return err
			}
			for _, link := range links {
				for _, family := range families {
					if h, ok := s.Failover.Of(link, key(family)); !ok || h.State != status.HealthUp {
						return fmt.Errorf("%s is %s in %v: %s%s", link, h.State, family, h.Why, h.NotWatched)
					}
				}
			}
			return nil
		})
	}
	alive("wan0", "wan9")
	neighbour := f.isps[0].Config().IPv4.Addr()
	// by waits until unbound traffic to a neighbour and to the internet leaves by a link.
	by := func(link string) {
		t.Helper()
		source := f.address(link, lab.IPv4)
		for _, dst := range []netip.Addr{neighbour, lab.InternetAddr4} {
			f.eventually(func() error {
				ctx, cancel := context.WithTimeout(t.Context(), lab.Stretched(200*time.Millisecond))
				defer cancel()
				a, err := lab.DialUDP(ctx, lab.From{}, dst)
				if err == nil && a.Peer.Addr() != source {
					err = fmt.Errorf("%v is asked from %v, not from %v of %s", dst, a.Peer.Addr(), source, link)
				}
				return err
			})
		}
	}
	by("wan0")
	// NetworkManager waits some seconds before it takes the default away. It is stopped, so that on a slow host
	// failover is first, too.
	pid := f.NMPid()
	f.must(syscall.Kill(pid, syscall.SIGSTOP))
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) }) // If the wait fails, its end is waited for.
	f.must(first.SetCarrier(false))
	by("wan9")
	f.must(syscall.Kill(pid, syscall.SIGCONT))
	f.must(f.WaitDeviceState(t.Context(), "wan0", "unavailable"))
	by("wan9")
	f.tableFHolds(lab.IPv4, "")
	f.must(first.SetCarrier(true))
	f.must(f.WaitDeviceState(t.Context(), "wan0", "disconnected"))
	f.up("wan0")
	for _, family := range families {
		f.address("wan0", family)
	}
	alive("wan0", "wan9")
	by("wan0")

	// The same by silence: the subnet's hosts are reached through the link that lives.
	f.reset("wan0")
	talk := f.NewTries(t.Context(), 20*time.Millisecond, lab.From{}, lab.InternetAddr4, "udp")
	defer talk.Stop()
	first.Wire().Break(lab.Silent)
	by("wan9")
	first.Wire().Repair()
	by("wan0")
	if second.Wire() == first.Wire() {
		t.Error("both links have one wire: nothing was tested")
	}
	f.eventually(func() error {
		left, err := f.IP(t.Context(), "rule", "show", "priority", "18000")
		if err == nil && strings.TrimSpace(left) != "" {
			err = fmt.Errorf("left with all alive:\n%s", left)
		}
		return err
	})
}

// TestFailoverShares: unbound traffic is shared by weights, and a dead link has no share.
func TestFailoverShares(t *testing.T) {
	f := newFailing(t, lab.HostConfig{FastDAD: true}, quickToml+"[share]\nweights = { wan0 = 3, wan1 = 1 }\n", 2, nil)
	many := netip.MustParsePrefix("198.18.0.0/16")
	for _, isp := range f.isps {
		f.must(isp.ServeRange(many))
	}
	f.startProber()
	f.start()
	const asked = 200
	// shared asks many hosts and counts who answered.
	shared := func() (map[string]int, error) {
		counts := map[string]int{}
		for n := range asked {
			ctx, cancel := context.WithTimeout(t.Context(), lab.Stretched(300*time.Millisecond))
			a, err := lab.DialUDP(ctx, lab.From{}, netip.AddrFrom4([4]byte{198, 18, byte(n), byte(1 + n%250)}))
			cancel()
			if err != nil {
				return counts, err
			}
			counts[a.ISP]++
		}
		return counts, nil
	}
	both := func() error {
		counts, err := shared()
		if share := counts["isp0"] * 100 / asked; err == nil && (share < 65 || share > 85) {
			err = fmt.Errorf("of 75 %%, isp0 has %v", counts)
		}
		return err
	}
	alone := func() error {
		counts, err := shared()
		if err == nil && counts["isp0"] != asked {
			err = fmt.Errorf("with isp1 dead, %v", counts)
		}
		return err
	}
	labtest.Eventually(t, both)
	f.wire(1).Break(lab.Silent)
	labtest.Eventually(t, alone)
	f.wire(1).Repair()
	labtest.Eventually(t, both)
	f.strays("sharing")
}

// TestFailoverAndOff: a link that has the traffic of a dead one is switched off. Another one gets it
// from the daemon, which goes on.
func TestFailoverAndOff(t *testing.T) {
	f := newFailing(t, lab.HostConfig{FastDAD: true}, quickToml, 3, nil)
	f.begin()
	f.wire(0).Break(lab.Silent)
	for _, family := range families {
		f.leavesBy(1, family)
	}
	if out := f.switches("off", "wan1"); strings.Contains(out, "killed") {
		t.Errorf("off: %s", out)
	}
	f.replacedBy(2)
	f.switches("on", "wan1")
	f.replacedBy(1)
	f.wire(0).Repair()
	f.well()
	f.untouched("after all")
	f.strays("off")
}
