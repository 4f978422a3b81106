//go:build debiankernel

package hosts_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"multihomed/test/lab"
)

// TestWGQuick is the real wg-quick, on a kernel that has wireguard: up, down, up.
func TestWGQuick(t *testing.T) { wgQuickHost(1).once(t) }

// TestWGQuickInAllPhases does it ten times, with multihomed started after it and
// before it.
func TestWGQuickInAllPhases(t *testing.T) { wgQuickHost(10).run(t) }

func wgQuickHost(cycles int) Host {
	h := Host{
		Name:       "wg-quick",
		What:       "A laptop whose whole traffic goes through WireGuard; wg-quick is restarted now and then.",
		Renumbered: true,
		Selects:    nobody,
		Network: func(w *world) {
			w.providers()
			w.peer()
			w.must(os.WriteFile(wgConfig(w), fmt.Appendf(nil, `[Interface]
PrivateKey = %s
Address = %s/32, %s/128
[Peer]
PublicKey = %s
Endpoint = %s
AllowedIPs = 0.0.0.0/0, ::/0
`, w.notes["our key"], wgAddr4, wgAddr6, w.notes["their public key"], w.notes["endpoint"]), 0o600))
		},
		Build: quickUp,
		Ask: func(w *world) []Question {
			return append(tunnelAsk(w), deletions("wg0"), Fact{"tables of nftables", func(w *world) string { return w.run("nft", "list", "tables") }})
		},
	}
	for i := range cycles {
		h.Steps = append(h.Steps,
			Step{fmt.Sprintf("down %d", i+1), quickDown},
			Step{fmt.Sprintf("up %d", i+1), quickUp})
	}
	return h
}

// wgConfig is where wg-quick is told to look: the file's name is the interface's.
func wgConfig(w *world) string {
	w.t.Helper()
	if w.notes["configuration"] == "" {
		w.notes["configuration"] = filepath.Join(w.t.TempDir(), "wg0.conf")
	}
	return w.notes["configuration"]
}

func quickUp(w *world) {
	w.run("wg-quick", "up", wgConfig(w))
	w.notes["deletions of wg0"] = "it is up"
	w.tunnelled("vpn")
}

// quickDown notes how many rules wg-quick deleted: it prints what it does.
func quickDown(w *world) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), lab.Stretched(30*time.Second))
	defer cancel()
	out, err := w.Run(ctx, "wg-quick", "down", wgConfig(w))
	w.must(err)
	counts := map[string]int{}
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "[#] ip ") && strings.Contains(line, " rule delete ") {
			counts[strings.TrimSpace(line)]++
		}
	}
	if len(counts) == 0 {
		w.t.Fatalf("wg-quick does not print its deletions:\n%s", out)
	}
	w.notes["deletions of wg0"] = fmt.Sprint(counts) // sorted by command
	w.t.Logf("wg-quick down, with multihomed %t: %v", w.product, counts)
	w.tunnelled("isp0")
}

// peer makes the far end of a tunnel, behind the first provider: a namespace with
// an internet of its own, whose WireGuard has its socket at the provider.
func (w *world) peer() {
	w.t.Helper()
	vpn, err := w.NewISP(w.t.Context(), lab.ISPConfig{Name: "vpn", Link: "unused0", NoDHCP: true, NoRA: true})
	w.must(err)
	c, err := vpn.Capture()
	w.must(err)
	w.ears["vpn"] = c
	key := func() (private, public string) {
		private = strings.TrimSpace(w.run("wg", "genkey"))
		return private, strings.TrimSpace(w.run("sh", "-c", "echo "+private+" | wg pubkey"))
	}
	ours, ourPublic := key()
	theirs, theirPublic := key()
	w.notes["our key"], w.notes["their public key"] = ours, theirPublic
	w.notes["endpoint"] = w.isps[0].Client4.String() + ":51820"
	file := filepath.Join(w.t.TempDir(), "key")
	w.must(os.WriteFile(file, []byte(theirs), 0o600))
	w.ip("-n isp0 link add tunnel type wireguard", "-n isp0 link set tunnel netns vpn")
	w.run("ip", "netns", "exec", "vpn", "wg", "set", "tunnel", "listen-port", "51820", "private-key", file,
		"peer", ourPublic, "allowed-ips", wgAddr4+"/32,"+wgAddr6+"/128")
	w.ip("-n vpn addr add 10.2.0.1/24 dev tunnel", "-n vpn addr add fd02::1/64 dev tunnel nodad", "-n vpn link set tunnel up")
}

// tunnelAsk asks what a user of the tunnel would.
func tunnelAsk(w *world) []Question {
	questions := grid(w.outside(), append(w.senders(51820), sender{UID: 1001}, sender{In: "wan0", From: netip.MustParseAddr("100.64.0.77")}))
	for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
		questions = append(questions, Fact{"who answers " + lab.InternetAddr(f).String(), func(w *world) string {
			ctx, cancel := lab.Within(w.t.Context(), unanswered)
			defer cancel()
			a, err := lab.DialTCP(ctx, lab.From{}, lab.InternetAddr(f))
			if err != nil {
				return "nobody"
			}
			return a.ISP
		}})
	}
	return questions
}
