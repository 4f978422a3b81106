package hosts_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"multihomed/test/lab"
)

// ownNetworks is a Selects for links that are not in the group of uplinks: to
// their networks, traffic goes as main says.
func ownNetworks(links ...string) func(*world, Question) bool {
	return func(w *world, q Question) bool {
		l, ok := q.(Lookup)
		if !ok || particular(w, q) {
			return particular(w, q)
		}
		for _, link := range links {
			isp := w.link(link)
			if (isp.IPv4().Contains(l.Dst) || isp.IPv6().Contains(l.Dst)) && l.Out == "" && w.owner(l.From) != isp {
				return true
			}
		}
		return false
	}
}

// takeDefaults takes main's defaults away and remembers them.
func takeDefaults(w *world) {
	w.t.Helper()
	for _, f := range []string{"-4", "-6"} {
		for _, link := range []string{"wan0", "wan1"} {
			out, err := w.IP(w.t.Context(), f, "route", "show", "default", "dev", link)
			w.must(err)
			out, _, _ = strings.Cut(strings.TrimSpace(out), " expires")
			w.notes[f+link] = out
			w.ip(f + " route del " + out + " dev " + link)
		}
	}
}

func giveDefaults(w *world) {
	w.t.Helper()
	for _, f := range []string{"-4", "-6"} {
		for _, link := range []string{"wan0", "wan1"} {
			w.ip(f + " route add " + w.notes[f+link] + " dev " + link)
		}
	}
}

func moveLocal(w *world) {
	w.both("rule add pref 32765 lookup local", "rule del pref 0")
}

func putLocalBack(w *world) {
	w.both("rule add pref 0 lookup local protocol kernel", "rule del pref 32765 lookup local")
}

// localBack restores the kernel's own rule after the test, in whatever state.
func localBack(w *world) {
	w.t.Cleanup(func() {
		for _, f := range []string{"-4", "-6"} {
			if out, err := w.IP(w.ctx(), f, "rule", "show", "pref", "0"); err == nil && strings.TrimSpace(out) == "" {
				_, _ = w.IP(w.ctx(), f, "rule", "add", "pref", "0", "lookup", "local", "protocol", "kernel")
			}
		}
	})
}

func toOurselves(w *world) []Question {
	return append(grid([]netip.Addr{w.addr("wan0", lab.IPv4), w.addr("wan1", lab.IPv4), w.addr("wan1", lab.IPv6)}, w.senders()),
		Dial{Dst: netip.MustParseAddr("127.0.0.1")}, Dial{Dst: w.addr("wan1", lab.IPv4)})
}

// strayless promises of links whose IPv6 router is known from main alone (router advertisements
// name it only to the kernel): if main has no default through them, traffic bound to them leaves by
// them or not at all.
func strayless(at func(w *world) bool, links ...string) Promise {
	return Promise{
		Name: "bound IPv6 leaves by its link or not at all",
		Of: func(w *world, q Question) bool {
			if !at(w) || familyOf(q) != lab.IPv6 || len(w.neverDefault) > 0 && ownNetworks(w.neverDefault...)(w, q) {
				return false
			}
			var isp *lab.ISP
			switch q := q.(type) {
			case Lookup:
				if isp = w.link(q.Out); isp == nil {
					isp = w.owner(q.From)
				}
				if isp == nil || !w.toOutside(q.Dst) || isp.IPv6().Contains(q.Dst) || q.In != "" {
					return false
				}
			case Dial:
				isp = w.owner(q.From.Addr)
			case Call:
				isp = w.owner(q.Dst)
			}
			return isp != nil && slices.Contains(links, isp.Config().Link)
		},
		Want: func(_ *world, q Question, without, with string) string {
			if with == "ENETUNREACH" || with == "no reply" {
				return ""
			}
			if l, ok := q.(Lookup); ok && l.Out != "" && with == without {
				return ""
			}
			return "ENETUNREACH or no reply"
		},
		Steps: []string{},
	}
}

func always(*world) bool { return true }

var roleHosts = []Host{
	{
		Name:  "the rule of local moved before",
		What:  "A host with VRFs: its rule of `local` stands at 32765; it is put back and moved again while the daemon runs.",
		Build: func(w *world) { localBack(w); moveLocal(w) },
		Steps: []Step{
			{"put back", putLocalBack},
			{"moved again", moveLocal},
		},
		Ask: toOurselves,
	},
	{
		Name:  "the rule of local moved meanwhile",
		What:  "A routing daemon moves the rule of `local` to 32765 while everything runs.",
		Build: localBack,
		Steps: []Step{
			{"moved", moveLocal},
			{"put back", putLocalBack},
		},
		Ask: toOurselves,
	},
	{
		Name: "a never-default kill switch",
		What: "Both links are `never-default`; a VPN has the only default, and goes down.",
		Network: func(w *world) {
			w.neverDefault = []string{"wan0", "wan1"}
			w.provider(lab.DefaultISP(0), "ipv4.never-default=true", "ipv6.never-default=true")
			w.provider(lab.DefaultISP(1), "ipv4.never-default=true", "ipv6.never-default=true")
			w.activate()
		},
		Build: func(w *world) {
			w.tun("tun0", "10.200.0.2/24", "fd20::2/64")
			w.ip("route add default dev tun0", "-6 route add default dev tun0 metric 50")
		},
		Steps: []Step{
			{"the VPN is down", func(w *world) { w.ip("route del default dev tun0", "-6 route del default dev tun0") }},
			{"the VPN is up", func(w *world) { w.ip("route add default dev tun0", "-6 route add default dev tun0 metric 50") }},
		},
		Selects:  ownNetworks("wan0", "wan1"),
		Promised: []Promise{strayless(always, "wan0", "wan1")},
		Ask:      func(w *world) []Question { return grid(w.outside(), w.senders()) },
	},
	{
		Name: "a never-default network behind an edge",
		What: "An edge host: the inner link has a router by DHCP but is never-default; a static route leads to a network behind it.",
		Lab:  routing,
		Network: func(w *world) {
			w.neverDefault = []string{"wan1"}
			w.provider(lab.DefaultISP(0))
			w.provider(lab.DefaultISP(1), "ipv4.never-default=true", "ipv6.never-default=true", "ipv4.route1=10.30.0.0/16,100.64.1.1")
			w.activate()
		},
		Selects:  ownNetworks("wan1"),
		Promised: []Promise{strayless(always, "wan1")},
		Ask: func(w *world) []Question {
			return append(grid(addrs("10.30.0.5"), append(w.senders(), forwarded("wan1", "100.64.1.9")...)), group("wan1"))
		},
	},
	{
		Name: "a reject route as the last default",
		What: "A script keeps `unreachable default` with a bad metric in main, so that nothing is lost in silence.",
		Build: func(w *world) {
			w.ip("route add unreachable default metric 4278198272", "-6 route add unreachable default metric 4278198272")
		},
	},
	{
		Name: "the defaults taken away",
		What: "An administrator takes both defaults out of main (a kill switch by hand) and gives them back.",
		Steps: []Step{
			{"taken away", takeDefaults},
			{"given back", giveDefaults},
		},
		Promised: []Promise{strayless(func(w *world) bool { return w.step == "taken away" }, "wan0", "wan1")},
	},
	{
		Name: "groups of the administrator",
		What: "Both uplinks are in the administrator's interface group, by which the firewall closes a port.",
		Build: func(w *world) {
			w.ip("link set wan0 group 10", "link set wan1 group 10")
			w.nft(`table inet fw {
 chain in { type filter hook input priority 0; iifgroup 10 tcp dport 7009 reject with tcp reset
 }
}`)
		},
		Ask: func(w *world) []Question {
			return []Question{group("wan0"), group("wan1"), Call{By: w.isps[0], Dst: w.addr("wan0", lab.IPv4), Port: 7009}}
		},
	},
	{
		Name: "unmanaged while up",
		What: "`nmcli device set wan1 managed no` to hand the link to another tool; addresses and routes stay.",
		Steps: []Step{
			{"unmanaged", func(w *world) {
				_, err := w.NMCLI(w.t.Context(), "device", "set", "wan1", "managed", "no")
				w.must(err)
				w.must(w.WaitDeviceState(w.t.Context(), "wan1", "unmanaged"))
			}},
			{"managed", func(w *world) {
				_, err := w.NMCLI(w.t.Context(), "device", "set", "wan1", "managed", "yes")
				w.must(err)
				w.eventually("wan1 to be managed", func() error {
					out, err := w.NMCLI(w.t.Context(), "-g", "GENERAL.STATE", "device", "show", "wan1")
					if err == nil && strings.Contains(out, "unmanaged") {
						err = errors.New(out)
					}
					return err
				})
				w.activate()
			}},
		},
	},
	{
		Name: "strongSwan chooses its path",
		Loud: true,
		What: "charon with local_addrs = %any reads all tables to find its own address and next hop.",
		Ask: func(*world) []Question {
			return []Question{Fact{"where IKE goes", charon}}
		},
	},
}

const charonConf = `charon-systemd { load = random nonce aes sha1 sha2 hmac kdf gmp kernel-netlink socket-default vici kernel-libipsec updown pem pkcs1 x509 constraints pubkey
 journal { default = -1
 }
 retransmit_tries = 1
}
swanctl { load = random pem pkcs1 x509 pubkey
}
`

const swanctlConf = `connections { c { remote_addrs = 198.51.100.1
  local_addrs = %any
  proposals = aes128-sha256-modp2048
  local { auth = psk
   id = a
  }
  remote { auth = psk
   id = b
  }
  children { k { remote_ts = 10.99.0.0/16
    local_ts = 192.168.77.0/24
    esp_proposals = aes128-sha256
  } }
} }
secrets { ike { secret = x
} }
`

// charon lets strongSwan call a gateway on the internet and says where its first
// packet was seen.
func charon(w *world) string {
	dir := w.t.TempDir()
	conf, swan := filepath.Join(dir, "strongswan.conf"), filepath.Join(dir, "swanctl.conf")
	w.must(os.WriteFile(conf, []byte(charonConf), 0o600))
	w.must(os.WriteFile(swan, []byte(swanctlConf), 0o600))
	env := []string{"STRONGSWAN_CONF=" + conf}
	ike := func(p lab.Packet) bool { return p.DstPort == 500 || p.DstPort == 4500 }
	before := w.count(ike)
	p, err := w.Start(lab.ProcessConfig{Path: "charon-systemd", Env: env})
	w.must(err)
	defer func() { w.must(p.Stop(w.ctx())) }()
	w.eventually("charon", func() error {
		_, err := w.Run(w.t.Context(), "env", env[0], "swanctl", "--load-all", "--file", swan)
		return err
	})
	call, err := w.Start(lab.ProcessConfig{Path: "swanctl", Args: []string{"--initiate", "--child", "k", "--timeout", "5"}, Env: env})
	w.must(err)
	defer func() { w.must(call.Kill()) }()
	var answer string
	w.eventually("a packet of charon", func() error {
		select {
		case <-call.Done():
			return errors.New(call.Log() + p.Log())
		default:
		}
		for name, n := range w.count(ike) {
			if n > before[name] {
				list, err := w.ears[name].Matching(ike)
				w.must(err)
				answer = fmt.Sprintf("seen by %s from %v", name, list[before[name]].Src)
				return nil
			}
		}
		return errors.New("none yet")
	})
	return answer
}
