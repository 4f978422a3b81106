package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"multihomed/internal/status/socket"
	"multihomed/test/lab"
)

// A companion is a firewall or a VPN that shares the packets, their marks and the rules of routing
// with the table of answers.
type companion struct {
	name string
	// publish publishes the container, before the daemon starts; nftables does if it is nil.
	publish func(*publishing)
	// load starts it beside the running daemon; nil for one that publishes.
	load func(*publishing)
	// rules are its rules as they stand.
	rules func(*publishing) string
	// reload makes it write its rules once more, in whatever way its administrator does.
	reload func(*publishing)
	// flushes says that its reload takes the table of answers away, which is restored then.
	flushes bool
	// masquerades says that it gives whatever leaves the address of the link, so that nothing strays.
	masquerades bool
}

// TestAnswersBesideOthers: with a real firewall or VPN beside it, or its exact rules, a published port
// is answered on the provider that was asked, and the fence drops what would stray. The rules of the
// other program stay as they are, and its reload changes nothing.
func TestAnswersBesideOthers(t *testing.T) {
	for _, c := range companions() {
		t.Run(c.name, func(t *testing.T) {
			publish := c.publish
			if publish == nil {
				publish = func(p *publishing) { p.nft(fmt.Sprintf(publishingRules, lab.EchoPort)) }
			}
			p := newPublishingBy(t, forwards(), "", publish)
			p.start()
			for _, link := range []string{"wan0", "wan1"} {
				_, err := p.WaitAddr(t.Context(), link, lab.IPv6)
				p.must(err)
			}
			p.marks(lab.IPv4, 2)
			p.marks(lab.IPv6, 2)
			if c.load != nil {
				c.load(p)
			}
			before := c.rules(p)
			if before == "" {
				t.Fatal("it has no rules")
			}
			p.coexists("beside it", c.masquerades)
			if after := c.rules(p); after != before {
				t.Errorf("its rules were (-) and are (+):\n%s", difference(before, after))
			}

			c.reload(p)
			if c.flushes {
				p.eventually(func() error {
					if !strings.Contains(p.table(), "chain fence") {
						return errors.New("the table is not restored")
					}
					return nil
				})
				// Until then main answered.
				p.afresh()
			}
			p.coexists("after its reload", c.masquerades)

			p.must(p.daemon.Stop(t.Context()))
			p.start()
			p.marks(lab.IPv4, 2)
			p.coexists("after a restart of the daemon", c.masquerades)
			if after := c.rules(p); sorted(after) != sorted(before) {
				t.Errorf("its rules were (-) and are (+):\n%s", difference(sorted(before), sorted(after)))
			}
			p.must(p.daemon.Stop(t.Context()))
			p.flush()
			if after := c.rules(p); sorted(after) != sorted(before) {
				t.Errorf("without multihomed, its rules are (+), and were (-):\n%s", difference(sorted(before), sorted(after)))
			}
		})
	}
}

// TestBoundBesideFullTunnel: what is bound keeps its link when a full tunnel comes after the daemon,
// whose rules the kernel numbers in front of ours.
func TestBoundBesideFullTunnel(t *testing.T) {
	p := newPublishing(t, forwards(), "[[bind]]\nlink = \"wan1\"\nmark = 0x10\n[[bind]]\nlink = \"wan1\"\ninterface = \"docker0\"\n")
	p.start()
	bound := func() {
		t.Helper()
		for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
			for who, call := range map[string]func(context.Context) (lab.Answer, error){
				"mark": func(ctx context.Context) (lab.Answer, error) {
					return lab.DialTCP(ctx, lab.From{Mark: 0x10}, lab.InternetAddr(f))
				},
				"container": func(ctx context.Context) (lab.Answer, error) {
					return p.container.Call(ctx, lab.From{}, "tcp", lab.InternetAddr(f))
				},
			} {
				p.eventually(func() error {
					ctx, cancel := lab.Within(t.Context(), lab.Stretched(time.Second))
					defer cancel()
					if a, err := call(ctx); err != nil || a.ISP != "isp1" {
						return fmt.Errorf("%s, %v: answered by %q: %w", who, f, a.ISP, err)
					}
					return nil
				})
			}
		}
	}
	bound()
	tunnel := wgQuick()
	tunnel.load(p)
	bound()
	tunnel.reload(p)
	bound()
}

// sorted is for rules that were loaded anew: a firewall that asks which interfaces there are gets them
// in any order.
func sorted(text string) string {
	lines := strings.Split(text, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// coexists wants answers by both providers, no strays, and a fence that drops what nobody translates.
func (p *publishing) coexists(when string, masqueraded bool) {
	p.t.Helper()
	p.asked(when, lab.IPv4, lab.IPv6)
	p.strays(when)
	at, err := p.WaitAddr(p.t.Context(), "wan1", lab.IPv4)
	p.must(err)
	before, astray := p.dropped(), lab.From{Addr: at, Device: "wan0"}
	if masqueraded {
		_, err := lab.DialUDP(p.t.Context(), astray, lab.InternetAddr4)
		if dropped := p.dropped() > before; err != nil || dropped {
			p.t.Errorf("%s: to what strays the answer is %v, and the fence dropped it: %t", when, err, dropped)
		}
	} else {
		p.eventually(func() error {
			ctx, cancel := lab.Within(p.t.Context(), lab.Stretched(100*time.Millisecond))
			defer cancel()
			if answer, err := lab.DialUDP(ctx, astray, lab.InternetAddr4); err == nil {
				p.t.Errorf("%s: what strays is answered by %s", when, answer.ISP)
			}
			if p.dropped() == before {
				return fmt.Errorf("%s: the fence drops nothing of what strays", when)
			}
			return nil
		})
	}
	p.strays(when + ", at the fence")
}

// dropped is how many packets the fence has dropped.
func (p *publishing) dropped() uint64 {
	p.t.Helper()
	s, err := socket.Ask(p.t.Context(), p.cfg.RuntimeDir, true)
	p.must(err)
	if s.Answers == nil {
		p.t.Fatal("the daemon says nothing of answers")
	}
	return s.Answers.Dropped
}

func companions() []companion {
	return []companion{
		firewalld(),
		ufw(),
		{
			// Docker's rules, with its chain for published ports (libnetwork, iptables.go).
			name:    "iptables-nft",
			publish: func(p *publishing) { p.iptables("nft", dockerRules) },
			rules:   func(p *publishing) string { return p.saved("nft") },
			reload:  func(p *publishing) { p.iptables("nft", dockerRules) },
		},
		{
			name:    "iptables-legacy",
			publish: func(p *publishing) { p.iptables("legacy", dockerRules) },
			rules:   func(p *publishing) string { return p.saved("legacy") },
			reload:  func(p *publishing) { p.iptables("legacy", dockerRules) },
		},
		{
			name:    "kube-proxy",
			publish: func(p *publishing) { p.iptables("nft", kubeRules) },
			rules:   func(p *publishing) string { return p.saved("nft") },
			// It restores its chains with --noflush, at each change of a service.
			reload: func(p *publishing) { p.iptables("nft", kubeRules) },
		},
		wgQuick(),
		tailscale(),
		{
			// systemctl reload nftables: its file begins with a flush of everything.
			name:    "nftables.service",
			publish: func(p *publishing) { p.nft("flush ruleset\n" + fmt.Sprintf(publishingRules, lab.EchoPort)) },
			rules:   func(p *publishing) string { return p.ruleset() },
			reload:  func(p *publishing) { p.nft("flush ruleset\n" + fmt.Sprintf(publishingRules, lab.EchoPort)) },
			flushes: true,
		},
	}
}

// ruleset is everything that nft(8) knows but our table.
func (p *publishing) ruleset() string {
	p.t.Helper()
	tables, err := p.Run(p.t.Context(), "nft", "list", "tables")
	p.must(err)
	var out strings.Builder
	for line := range strings.Lines(tables) {
		if words := strings.Fields(line); len(words) == 3 && words[2] != "multihomed" {
			text, err := p.Run(p.t.Context(), "nft", "--stateless", "list", "table", words[1], words[2])
			p.must(err)
			out.WriteString(text)
		}
	}
	return out.String()
}

// iptables loads rules of both families by iptables-restore(8) of a backend, nft or legacy. A rule is
// for the container of the family: %[1]s stands for its address, %[2]s for its network.
func (p *publishing) iptables(backend, rules string) {
	p.t.Helper()
	dir := p.t.TempDir()
	for program, container := range map[string][]any{
		"iptables":  {"172.17.0.2", "172.17.0.0/16"},
		"ip6tables": {"fd17::2", "fd17::/64"},
	} {
		text := fmt.Sprintf(rules, container...)
		if program == "ip6tables" {
			text = strings.NewReplacer("127.0.0.0/8", "::1/128", "icmp-port-unreachable", "icmp6-port-unreachable").Replace(text)
		}
		file := filepath.Join(dir, program)
		p.must(os.WriteFile(file, []byte(text), 0o600))
		_, err := p.Run(p.t.Context(), program+"-"+backend+"-restore", file)
		p.must(err)
	}
	if backend == "legacy" {
		// nft(8) does not see them.
		p.t.Cleanup(func() { p.forgetLegacy() })
	}
}

func (p *publishing) forgetLegacy() {
	file := filepath.Join(p.t.TempDir(), "empty")
	text := ""
	for table, chains := range map[string][]string{"nat": {"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"}, "filter": {"INPUT", "FORWARD", "OUTPUT"}} {
		text += "*" + table + "\n"
		for _, c := range chains {
			text += ":" + c + " ACCEPT [0:0]\n"
		}
		text += "COMMIT\n"
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		p.t.Error(err)
	}
	ctx := context.WithoutCancel(p.t.Context())
	for _, program := range []string{"iptables-legacy-restore", "ip6tables-legacy-restore"} {
		if _, err := p.Run(ctx, program, file); err != nil {
			p.t.Error(err)
		}
	}
}

// saved are the rules of a backend, without comments, which have the time, and without counters.
func (p *publishing) saved(backend string) string {
	p.t.Helper()
	var out strings.Builder
	for _, program := range []string{"iptables", "ip6tables"} {
		text, err := p.Run(p.t.Context(), program+"-"+backend+"-save")
		p.must(err)
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "#") {
				continue
			}
			if strings.HasPrefix(line, ":") {
				line, _, _ = strings.Cut(line, " [")
				line += "\n"
			}
			out.WriteString(line)
		}
	}
	return out.String()
}

const dockerRules = `*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s %[2]s ! -o docker0 -j MASQUERADE
-A POSTROUTING -s %[1]s -d %[1]s -p tcp -m tcp --dport 7007 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 7007 -j DNAT --to-destination %[1]s
-A DOCKER ! -i docker0 -p udp -m udp --dport 7007 -j DNAT --to-destination %[1]s
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER -d %[1]s ! -i docker0 -o docker0 -p tcp -m tcp --dport 7007 -j ACCEPT
-A DOCKER -d %[1]s ! -i docker0 -o docker0 -p udp -m udp --dport 7007 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
`

// kubeRules are a NodePort of kube-proxy (pkg/proxy/iptables/proxier.go) whose clients are masqueraded,
// and kubelet's chain that drops by mark.
const kubeRules = `*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-EXT-ECHO - [0:0]
:KUBE-MARK-DROP - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP-ECHO - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ECHO - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-EXT-ECHO -m comment --comment "masquerade traffic for default/echo external destinations" -j KUBE-MARK-MASQ
-A KUBE-EXT-ECHO -j KUBE-SVC-ECHO
-A KUBE-MARK-DROP -j MARK --or-mark 0x8000
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-NODEPORTS -p tcp -m comment --comment "default/echo" -m tcp --dport 7007 -j KUBE-EXT-ECHO
-A KUBE-NODEPORTS -p udp -m comment --comment "default/echo" -m udp --dport 7007 -j KUBE-EXT-ECHO
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-SEP-ECHO -s %[1]s -m comment --comment "default/echo" -j KUBE-MARK-MASQ
-A KUBE-SEP-ECHO -p tcp -m comment --comment "default/echo" -m tcp -j DNAT --to-destination %[1]s
-A KUBE-SEP-ECHO -p udp -m comment --comment "default/echo" -m udp -j DNAT --to-destination %[1]s
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-ECHO ! -s %[2]s -m comment --comment "default/echo cluster IP" -j KUBE-SEP-ECHO
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL -m comment --comment "kubernetes firewall for dropping marked packets" -m mark --mark 0x8000/0x8000 -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
`

// firewalld is the real one, on nftables, which forwards the port. Its default zone takes the links.
// Its strict check of IPv6 sources is off: firewalld 1 makes it behind its own translation, and drops
// what comes in by a link that main does not prefer, with multihomed and without (docs/limits.md).
func firewalld() companion {
	var dir string
	return companion{
		name:        "firewalld",
		masquerades: true,
		publish: func(p *publishing) {
			dir = p.t.TempDir()
			p.must(os.MkdirAll(filepath.Join(dir, "zones"), 0o700))
			zone := `<?xml version="1.0" encoding="utf-8"?>
<zone>
  <masquerade/>
  <interface name="wan0"/>
  <interface name="wan1"/>
`
			for _, protocol := range []string{"tcp", "udp"} {
				zone += fmt.Sprintf("  <forward-port port=\"%[1]d\" protocol=%[2]q to-port=\"%[1]d\" to-addr=\"172.17.0.2\"/>\n", lab.EchoPort, protocol)
				zone += fmt.Sprintf("  <rule family=\"ipv6\"><forward-port port=\"%[1]d\" protocol=%[2]q to-port=\"%[1]d\" to-addr=\"fd17::2\"/></rule>\n", lab.EchoPort, protocol)
			}
			p.must(os.WriteFile(filepath.Join(dir, "zones", "public.xml"), []byte(zone+"</zone>\n"), 0o600))
			p.must(os.WriteFile(filepath.Join(dir, "zones", "trusted.xml"), []byte(`<?xml version="1.0" encoding="utf-8"?>
<zone target="ACCEPT"><interface name="docker0"/></zone>
`), 0o600))
			p.must(os.WriteFile(filepath.Join(dir, "firewalld.conf"), []byte("DefaultZone=public\nFirewallBackend=nftables\nIPv6_rpfilter=no\nCleanupOnExit=yes\n"), 0o600))
			_, err := p.Start(lab.ProcessConfig{Path: "firewalld", Args: []string{"--nofork", "--nopid", "--system-config", dir, "--log-target", "console"}})
			p.must(err)
			p.firewallRunning()
		},
		rules: func(p *publishing) string { return p.ruleset() },
		reload: func(p *publishing) {
			_, err := p.Run(p.t.Context(), "firewall-cmd", "--reload")
			p.must(err)
			p.firewallRunning()
		},
	}
}

// firewallRunning waits for firewalld's own word.
func (p *publishing) firewallRunning() {
	p.t.Helper()
	p.eventually(func() error {
		_, err := p.Run(p.t.Context(), "firewall-cmd", "--state")
		return err
	})
}

// ufw is the real one, on a copy of its files. It publishes as its manual says (ufw-framework(8)).
func ufw() companion {
	var root string
	run := func(p *publishing, args ...string) {
		p.t.Helper()
		_, err := p.Run(p.t.Context(), "ufw", append([]string{"--rootdir=" + root, "--datadir=" + root}, args...)...)
		p.must(err)
	}
	return companion{
		name: "ufw",
		publish: func(p *publishing) {
			root = p.t.TempDir()
			for _, dir := range []string{"/etc/ufw", "/lib/ufw", "/usr/share/ufw"} {
				p.must(os.CopyFS(root+dir, os.DirFS(dir)))
			}
			defaults, err := os.ReadFile("/etc/default/ufw")
			p.must(err)
			text := strings.Replace(string(defaults), `DEFAULT_FORWARD_POLICY="DROP"`, `DEFAULT_FORWARD_POLICY="ACCEPT"`, 1)
			p.must(os.MkdirAll(root+"/etc/default", 0o700))
			p.must(os.MkdirAll(root+"/run", 0o700))
			p.must(os.WriteFile(root+"/etc/default/ufw", []byte(text), 0o600))
			for file, container := range map[string][]any{"before.rules": {"172.17.0.2", "172.17.0.0/16"}, "before6.rules": {"fd17::2", "fd17::/64"}} {
				file = filepath.Join(root, "etc", "ufw", file)
				// The administrator's file, or the package's.
				had, err := os.ReadFile("/usr/share/ufw/iptables/" + filepath.Base(file))
				p.must(err)
				nat := fmt.Sprintf(`*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-F
-A PREROUTING -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 7007 -j DNAT --to-destination %[1]s
-A PREROUTING -p udp -m addrtype --dst-type LOCAL -m udp --dport 7007 -j DNAT --to-destination %[1]s
-A POSTROUTING -s %[2]s ! -o docker0 -j MASQUERADE
COMMIT
`, container...)
				p.must(os.WriteFile(file, append(had, nat...), 0o600))
			}
			run(p, "--force", "enable")
			// The first reload adds rules for IPv6 that enabling leaves out.
			run(p, "reload")
		},
		rules:  func(p *publishing) string { return p.saved("nft") },
		reload: func(p *publishing) { run(p, "reload") },
	}
}

// wgQuick is the real wg-quick(8) with a full tunnel whose far end is dead: what is in the tunnel is
// lost. The device is a tun where the kernel has no WireGuard, and wg(8) is told nothing.
func wgQuick() companion {
	var dir string
	run := func(p *publishing, verb string) {
		p.t.Helper()
		ctx, cancel := p.patience()
		defer cancel()
		_, err := p.Run(ctx, "env", "PATH="+dir+":"+lab.SearchPath, "WG_QUICK_USERSPACE_IMPLEMENTATION="+dir+"/device", "bash", dir+"/wg-quick", verb, dir+"/wg0.conf")
		p.must(err)
	}
	return companion{
		name: "wg-quick",
		load: func(p *publishing) {
			dir = p.t.TempDir()
			// Programs beside it go before all others.
			program, err := os.ReadFile("/usr/bin/wg-quick")
			p.must(err)
			for name, text := range map[string]string{
				"wg-quick": string(program),
				"device":   "#!/bin/sh\nexec ip tuntap add dev \"$1\" mode tun\n",
				"wg": "#!/bin/sh\ncase \"$*\" in\n'show wg0 allowed-ips') printf 'key\\t0.0.0.0/0 ::/0\\n' ;;\n" +
					"'show wg0 fwmark') echo 0xca6c ;;\n'show interfaces') echo wg0 ;;\nesac\n",
				"wg0.conf": "[Interface]\nAddress = 10.2.0.2/32, fd02::2/128\n[Peer]\nAllowedIPs = 0.0.0.0/0, ::/0\n",
			} {
				p.must(os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700))
			}
			run(p, "up")
		},
		rules: func(p *publishing) string { return p.ruleset() + p.foreignRules() },
		reload: func(p *publishing) {
			run(p, "down")
			run(p, "up")
		},
	}
}

// tailscale has the rules of routing and the chains of an exit node (router_linux.go and
// iptables_runner.go of Tailscale 1.96), connection marks for rp_filter included. Nobody is connected:
// what goes into the device is lost.
func tailscale() companion {
	load := func(p *publishing) {
		for _, f := range []string{"-4", "-6"} {
			for _, rule := range []string{
				"pref 5210 fwmark 0x80000/0xff0000 lookup main", "pref 5230 fwmark 0x80000/0xff0000 lookup default",
				"pref 5250 fwmark 0x80000/0xff0000 unreachable", "pref 5270 lookup 52",
			} {
				_, err := p.IP(p.t.Context(), append([]string{f, "rule", "add"}, strings.Fields(rule)...)...)
				p.must(err)
			}
		}
		p.iptables("nft", tailscaleRules)
	}
	return companion{
		name:    "Tailscale",
		publish: func(p *publishing) { p.iptables("nft", dockerRules) },
		load: func(p *publishing) {
			_, err := p.NewTun("tailscale0")
			p.must(err)
			p.must(p.AddAddr("tailscale0", "100.101.102.103/32"))
			p.must(p.AddAddr("tailscale0", "fd7a:115c:a1e0::1/128"))
			for _, route := range []string{"-4 route add 100.100.100.100 dev tailscale0 table 52", "-6 route add fd7a:115c:a1e0::/48 dev tailscale0 table 52"} {
				_, err := p.IP(p.t.Context(), strings.Fields(route)...)
				p.must(err)
			}
			load(p)
		},
		rules: func(p *publishing) string { return p.saved("nft") + p.foreignRules() },
		// It takes its rules away and adds them again.
		reload: func(p *publishing) {
			for _, f := range []string{"-4", "-6"} {
				for _, priority := range []string{"5210", "5230", "5250", "5270"} {
					_, err := p.IP(p.t.Context(), f, "rule", "del", "pref", priority)
					p.must(err)
				}
			}
			load(p)
		},
	}
}

var tailscaleRules = `*mangle
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -m conntrack --ctstate RELATED,ESTABLISHED -j CONNMARK --restore-mark --nfmask 0xff0000 --ctmask 0xff0000
-A OUTPUT -m conntrack --ctstate NEW -m mark ! --mark 0x0/0xff0000 -j CONNMARK --save-mark --nfmask 0xff0000 --ctmask 0xff0000
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:ts-forward - [0:0]
:ts-input - [0:0]
-A INPUT -j ts-input
-A FORWARD -j ts-forward
-A ts-forward -i tailscale0 -j MARK --set-xmark 0x40000/0xff0000
-A ts-forward -m mark --mark 0x40000/0xff0000 -j ACCEPT
-A ts-forward -o tailscale0 -j ACCEPT
-A ts-input -i tailscale0 -j ACCEPT
-A ts-input -p udp -m udp --dport 41641 -j ACCEPT
COMMIT
` + natOfTailscale

// natOfTailscale is Docker's, which publishes the port, and Tailscale's.
var natOfTailscale = func() string {
	nat, _, _ := strings.Cut(dockerRules, "*filter")
	return strings.NewReplacer(":DOCKER - [0:0]\n", ":DOCKER - [0:0]\n:ts-postrouting - [0:0]\n",
		"COMMIT\n", "-A POSTROUTING -j ts-postrouting\n-A ts-postrouting -m mark --mark 0x40000/0xff0000 -j MASQUERADE\nCOMMIT\n",
	).Replace(nat)
}()

// foreignRules are the rules of routing that are not ours.
func (r *rig) foreignRules() string {
	r.t.Helper()
	var out strings.Builder
	for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
		rules, err := r.RulesText(r.t.Context(), f)
		r.must(err)
		for line := range strings.Lines(rules) {
			if !strings.Contains(line, "proto 150") {
				// The kernel numbers a rule that comes without a number, before all that stands.
				_, selectors, _ := strings.Cut(line, ":")
				out.WriteString(selectors)
			}
		}
	}
	return out.String()
}
