package e2e_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/status"
	"multihomed/internal/status/socket"
	"multihomed/test/lab"
)

// publishing is a host with two providers and a container behind a bridge, whose echo servers are
// published on the host's own addresses by nftables, as Docker does it.
type publishing struct {
	*rig
	isps      []*lab.ISP
	captures  []*lab.Capture
	container *lab.Namespace
	bridge    *lab.Bridge
}

// forwards are the sysctls of a host with containers.
func forwards(more ...string) lab.HostConfig {
	return lab.HostConfig{FastDAD: true, Sysctls: append([]string{"net.ipv4.ip_forward", "1", "net.ipv6.conf.all.forwarding", "1"}, more...)}
}

const publishingRules = `table ip nat {
	chain pre {
		type nat hook prerouting priority dstnat
		fib daddr type local meta l4proto { tcp, udp } th dport %[1]d dnat to 172.17.0.2
	}
	chain post {
		type nat hook postrouting priority srcnat
		ip saddr 172.17.0.0/16 oifname != "docker0" masquerade
	}
}
table ip6 nat {
	chain pre {
		type nat hook prerouting priority dstnat
		fib daddr type local meta l4proto { tcp, udp } th dport %[1]d dnat to fd17::2
	}
	chain post {
		type nat hook postrouting priority srcnat
		ip6 saddr fd17::/64 oifname != "docker0" masquerade
	}
}
`

func newPublishing(t *testing.T, host lab.HostConfig, toml string) *publishing {
	t.Helper()
	return newPublishingBy(t, host, toml, func(p *publishing) { p.nft(fmt.Sprintf(publishingRules, lab.EchoPort)) })
}

// newPublishingBy is newPublishing with another one who publishes.
func newPublishingBy(t *testing.T, host lab.HostConfig, toml string, publish func(*publishing)) *publishing {
	t.Helper()
	p := newProviders(t, host, toml)
	var err error
	p.bridge, err = p.NewBridge("docker0", netip.MustParsePrefix("172.17.0.1/16"))
	p.must(err)
	p.must(p.bridge.AddAddr(netip.MustParsePrefix("fd17::1/64")))
	p.container, err = p.bridge.Container("container", netip.MustParsePrefix("172.17.0.2/16"))
	p.must(err)
	p.must(p.container.AddAddr("eth0", netip.MustParsePrefix("fd17::2/64")))
	p.must(p.container.AddRoute(lab.DefaultVia(netip.MustParseAddr("fd17::1")), "eth0"))
	publish(p)
	p.up("wan0", "wan1")
	return p
}

// newProviders is a host with two providers, without containers; its links are down.
func newProviders(t *testing.T, host lab.HostConfig, toml string) *publishing {
	t.Helper()
	p := &publishing{rig: newRig(t, host, toml)}
	for n := range 2 {
		isp := p.isp(lab.DefaultISP(n))
		p.isps = append(p.isps, isp)
		c, err := isp.Capture()
		p.must(err)
		p.captures = append(p.captures, c)
	}
	return p
}

// nft loads rules, which stay until the host closes.
func (r *rig) nft(rules string) {
	r.t.Helper()
	file := filepath.Join(r.t.TempDir(), "rules")
	r.must(os.WriteFile(file, []byte(rules), 0o600))
	_, err := r.Run(r.t.Context(), "nft", "-f", file)
	r.must(err)
}

// asked wants the container to answer who asks each provider's address of the host, by TCP and UDP.
func (p *publishing) asked(when string, families ...lab.Family) {
	p.t.Helper()
	for _, isp := range p.isps {
		for _, f := range families {
			p.must(p.askedAt(isp, f, when))
		}
	}
}

func (p *publishing) askedAt(isp *lab.ISP, f lab.Family, when string) error {
	ctx, cancel := p.patience()
	defer cancel()
	at, err := p.WaitAddr(ctx, isp.Link().Name(), f)
	if err != nil {
		return err
	}
	client := isp.Client4
	if f == lab.IPv6 {
		client = isp.Client6
	}
	for _, call := range []struct {
		name string
		call func() (lab.Answer, error)
	}{
		{"TCP", func() (lab.Answer, error) { return isp.Call(ctx, client, at) }},
		{"UDP", func() (lab.Answer, error) { return isp.CallUDP(ctx, client, at) }},
	} {
		if answer, err := call.call(); err != nil || answer.ISP != "container" {
			return fmt.Errorf("%s: %s to %s, asked by %s: answered by %q: %w", when, call.name, at, isp.Name(), answer.ISP, err)
		}
	}
	return nil
}

// strays wants no packet with an address of the other provider's at any provider.
func (p *publishing) strays(when string) {
	p.t.Helper()
	for n := range p.isps {
		p.straysOf(n, when)
	}
	p.afresh()
}

// straysOf wants no packet with an address of a provider's at the other one.
func (p *publishing) straysOf(n int, when string) {
	p.t.Helper()
	own, other := p.isps[n], p.isps[1-n]
	packets, err := p.captures[1-n].Matching(func(k lab.Packet) bool {
		// A host that forwards does so with what a DHCP server sends to the address that it offers.
		offer := k.Src == own.Config().IPv4.Addr() && k.DstPort == 68
		return (own.IPv4().Contains(k.Src) || own.IPv6().Contains(k.Src)) && !offer
	})
	p.must(err)
	if len(packets) > 0 {
		p.t.Errorf("%s: %s saw packets with addresses of %s:\n%s", when, other.Name(), own.Name(), lab.FormatPackets(packets))
	}
}

// afresh forgets what the providers have seen.
func (p *publishing) afresh() {
	p.t.Helper()
	for _, c := range p.captures {
		_, err := c.Matching(func(lab.Packet) bool { return false })
		p.must(err)
		c.Reset()
	}
}

// marks wants packets to be marked by so many addresses of a family.
func (p *publishing) marks(f lab.Family, want int) {
	p.t.Helper()
	p.eventually(func() error {
		s, err := socket.Ask(p.t.Context(), p.cfg.RuntimeDir, true)
		if err != nil {
			return err
		}
		if s.Answers == nil {
			return errors.New("the daemon says nothing of answers")
		}
		for _, one := range s.Answers.Families {
			if one.Family == strings.ToLower(f.String()) && one.Marked != want {
				return fmt.Errorf("%d addresses of %v are answered by link, not %d (%s)", one.Marked, f, want, one.Why)
			}
		}
		return nil
	})
}

func (p *publishing) table() string {
	out, err := p.Run(p.t.Context(), "nft", "list", "table", "inet", "multihomed")
	if err != nil {
		return ""
	}
	return out
}

// TestAnswers: a published port is answered on the provider that was asked, whatever happens to the
// table, the daemon and the links; nothing leaves by the other provider.
func TestAnswers(t *testing.T) {
	p := newPublishing(t, forwards(), "")
	p.start()
	for _, link := range []string{"wan0", "wan1"} {
		_, err := p.WaitAddr(t.Context(), link, lab.IPv6)
		p.must(err)
	}
	p.marks(lab.IPv4, 2)
	p.marks(lab.IPv6, 2)
	p.asked("at first", lab.IPv4, lab.IPv6)
	p.strays("at first")

	from := len(p.daemon.Lines())
	_, err := p.Run(t.Context(), "nft", "delete", "table", "inet", "multihomed")
	p.must(err)
	p.logged(from, "nftables table restored")
	p.marks(lab.IPv4, 2)
	p.marks(lab.IPv6, 2)
	p.asked("after somebody deleted the table", lab.IPv4, lab.IPv6)

	p.must(p.Down(t.Context(), "wan1"))
	p.marks(lab.IPv4, 1)
	p.marks(lab.IPv6, 1)
	p.must(p.askedAt(p.isps[0], lab.IPv4, "with one provider"))
	p.up("wan1")
	p.marks(lab.IPv4, 2)
	p.marks(lab.IPv6, 2)
	p.asked("with both again", lab.IPv4, lab.IPv6)

	p.kill9()
	p.asked("after the daemon was killed", lab.IPv4, lab.IPv6)
	before := p.table()
	p.start()
	p.marks(lab.IPv4, 2)
	p.marks(lab.IPv6, 2)
	if after := p.table(); !strings.Contains(after, "chain answers") || len(strings.Split(after, "\n")) != len(strings.Split(before, "\n")) {
		t.Errorf("the table was\n%s\nand is\n%s", before, after)
	}
	p.asked("after a start", lab.IPv4, lab.IPv6)
	p.strays("to the end")

	p.must(p.daemon.Stop(t.Context()))
	p.asked("after a stop", lab.IPv4, lab.IPv6)
	// Whoever looks without a daemon takes what stands for what is wanted.
	p.must(p.planned())
	p.flush()
	if left := p.table(); left != "" {
		t.Errorf("flush left the table:\n%s", left)
	}
}

// TestAnswersKeepConnections: what a LAN client has by a link stays there when unbound traffic moves
// away from it and back, whether by masquerade or by a rule with a fixed address; when the link dies,
// the client is told, or goes on by the other one. No packet leaves with an address of the other link.
func TestAnswersKeepConnections(t *testing.T) {
	p := newPublishing(t, forwards(), "[failover]\nenabled = false\n")
	p.prefer(0, "100")
	p.prefer(1, "200")
	p.start()
	for _, kind := range []string{"masquerade", "snat"} {
		t.Run(kind, func(t *testing.T) {
			of := *p.rig
			of.t = t
			p := &publishing{rig: &of, isps: p.isps, captures: p.captures, container: p.container, bridge: p.bridge}
			p.marks(lab.IPv4, 2)
			if kind == "snat" {
				rules := "flush chain ip nat post\n"
				for _, link := range []string{"wan0", "wan1"} {
					at, err := p.WaitAddr(t.Context(), link, lab.IPv4)
					p.must(err)
					rules += fmt.Sprintf("add rule ip nat post oifname %s ip saddr 172.17.0.0/16 snat to %v\n", link, at)
				}
				p.nft(rules)
			}
			answeredBy := func(c *conversation, isp string) {
				t.Helper()
				p.eventually(func() error {
					line, err := c.ask()
					if err == nil && !strings.Contains(line, `"`+isp+`"`) {
						err = fmt.Errorf("%s answers, not %s", line, isp)
					}
					return err
				})
			}
			// What is new is answered by a provider.
			newBy := func(isp string, to netip.Addr) {
				t.Helper()
				p.eventually(func() error {
					a, err := p.container.Call(t.Context(), lab.From{}, "tcp", to)
					if err == nil && a.ISP != isp {
						err = fmt.Errorf("a new connection is answered by %s", a.ISP)
					}
					return err
				})
			}
			p.preferred(0, "100")
			p.preferred(1, "200")
			newBy("isp0", lab.InternetAddr4)
			old := []*conversation{converse(t, p.container, "tcp", lab.InternetAddr4), converse(t, p.container, "udp", lab.InternetAddr4)}
			for _, c := range old {
				answeredBy(c, "isp0")
			}
			p.prefer(1, "50")
			newBy("isp1", lab.InternetAddr4)
			for range 5 {
				for _, c := range old {
					answeredBy(c, "isp0")
				}
			}
			p.prefer(1, "200")
			for _, c := range old {
				answeredBy(c, "isp0")
			}
			p.strays(kind + " while the preference moved")
			p.marks(lab.IPv6, 2)
			newBy("isp0", lab.InternetAddr6)
			for _, network := range []string{"tcp", "udp"} {
				c := converse(t, p.container, network, lab.InternetAddr6)
				answeredBy(c, "isp0")
				old = append(old, c)
			}
			p.must(p.Down(t.Context(), "wan0"))
			newBy("isp1", lab.InternetAddr4)
			answeredBy(converse(t, p.container, "tcp", lab.InternetAddr4), "isp1")
			answeredBy(converse(t, p.container, "udp", lab.InternetAddr4), "isp1")
			for n, c := range old {
				p.eventually(func() error {
					line, err := c.ask()
					switch {
					case errors.Is(err, errQuiet):
						return fmt.Errorf("conversation %d hears nothing", n)
					case err == nil && !strings.Contains(line, `"isp1"`):
						return fmt.Errorf("conversation %d goes on with %s", n, line)
					}
					return nil
				})
			}
			p.strays(kind + " after the link went")
			p.up("wan0")
			p.marks(lab.IPv4, 2)
			p.marks(lab.IPv6, 2)
		})
	}
}

// prefer gives a link of a provider another metric. A link that is reapplied asks for its router once more,
// and may not have begun to when nmcli returns.
func (p *publishing) prefer(n int, metric string) {
	p.t.Helper()
	asked := func() int {
		p.t.Helper()
		packets, err := p.captures[n].Matching(func(k lab.Packet) bool {
			const solicitation = 133
			return k.Proto == unix.IPPROTO_ICMPV6 && k.ICMPType == solicitation
		})
		p.must(err)
		return len(packets)
	}
	link, before := p.isps[n].Link().Name(), asked()
	p.must(p.Modify(p.t.Context(), link, "ipv4.route-metric", metric, "ipv6.route-metric", metric))
	p.must(p.Reapply(p.t.Context(), link))
	p.eventually(func() error {
		if asked() == before {
			return fmt.Errorf("%s does not ask for its router", link)
		}
		return nil
	})
	p.preferred(n, metric)
}

// preferred waits until a link has its defaults with a metric, and addresses.
func (p *publishing) preferred(n int, metric string) {
	p.t.Helper()
	link := p.isps[n].Link().Name()
	p.address(link, lab.IPv4)
	p.address(link, lab.IPv6)
	for _, f := range []string{"-4", "-6"} {
		p.eventually(func() error {
			out, err := p.IP(p.t.Context(), f, "route", "show", "default", "dev", link)
			if err == nil && !strings.Contains(out, "metric "+metric+" ") {
				err = fmt.Errorf("%s has %q", link, out)
			}
			return err
		})
	}
}

// TestFence: a packet with the address of one uplink that a socket sends by the other one is dropped
// and counted, and nothing else is. A host that is switched off has no fence, whatever is configured.
func TestFence(t *testing.T) {
	p := newPublishing(t, forwards(), "[answers]\nforwarded = \"yes\"\nfence = \"yes\"\n")
	p.start()
	p.marks(lab.IPv4, 2)
	at, err := p.WaitAddr(t.Context(), "wan1", lab.IPv4)
	p.must(err)
	ctx, cancel := lab.Within(t.Context(), lab.Stretched(time.Second))
	defer cancel()
	if answer, err := lab.DialUDP(ctx, lab.From{Addr: at, Device: "wan0"}, lab.InternetAddr4); err == nil {
		t.Errorf("answered by %s", answer.ISP)
	}
	s, err := p.json()
	p.must(err)
	if s.Answers.Dropped == 0 {
		t.Error("nothing was dropped")
	}
	for n, isp := range p.isps {
		answer, err := lab.DialUDP(t.Context(), lab.From{Device: isp.Link().Name()}, lab.InternetAddr4)
		p.must(err)
		if answer.ISP != p.isps[n].Name() {
			t.Errorf("bound to %s: answered by %s", isp.Link().Name(), answer.ISP)
		}
	}
	p.strays("by a socket with two bindings")

	p.switches("off")
	p.eventually(func() error {
		if out, err := p.Run(t.Context(), "nft", "list", "table", "inet", "multihomed"); err == nil {
			return fmt.Errorf("it stands: %s", out)
		}
		return nil
	})
	p.switches("on")
	p.marks(lab.IPv4, 2)
}

// TestAnswersUnderFilters: under any reverse path filter, requests are answered where they were asked.
// A strict one drops them on the link that main does not prefer, until the sysctl is set that status
// names.
func TestAnswersUnderFilters(t *testing.T) {
	for _, tt := range []struct {
		filter string
		// named is the sysctl that status names.
		named string
	}{
		{"0", ""},
		{"1", "net/ipv4/conf/%s/src_valid_mark=1"},
		{"2", ""},
	} {
		t.Run("rp_filter="+tt.filter, func(t *testing.T) {
			p := newPublishing(t, forwards("net.ipv4.conf.all.rp_filter", tt.filter, "net.ipv4.conf.default.rp_filter", tt.filter), "")
			p.start()
			p.marks(lab.IPv4, 2)
			// NetworkManager makes the filters of links loose.
			for _, link := range []string{"wan0", "wan1"} {
				p.must(p.Sysctl("net.ipv4.conf."+link+".rp_filter", tt.filter))
			}
			if tt.named != "" {
				p.reported(true, "wan1", "strict reverse path filter")
				s, err := socket.Ask(t.Context(), p.cfg.RuntimeDir, true)
				p.must(err)
				for _, link := range []string{"wan0", "wan1"} {
					named := fmt.Sprintf(tt.named, link)
					if !slices.ContainsFunc(s.Problems, func(o status.Problem) bool { return o.Link == link && strings.Contains(o.Fix, named) }) {
						t.Errorf("status does not name %s: %+v", named, s.Problems)
					}
					p.must(p.Sysctl("net.ipv4.conf."+link+".src_valid_mark", "1"))
				}
			}
			// Nobody tells of this sysctl: what touches the host makes the daemon look.
			p.must(p.Sysctl("net.ipv4.conf.docker0.forwarding", "0", "net.ipv4.conf.docker0.forwarding", "1"))
			p.eventually(func() error { return p.askedAt(p.isps[1], lab.IPv4, "by the link that main does not prefer") })
			p.asked("under the filter", lab.IPv4)
			p.reported(false, "wan1", "reverse path filter")
			p.strays("under the filter")
		})
	}
}
