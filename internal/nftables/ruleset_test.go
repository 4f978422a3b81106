package nftables_test

import (
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"multihomed/internal/nftables"
)

// TestRuleset reads what nft(8) and iptables-nft write.
func TestRuleset(t *testing.T) { //nolint:paralleltest // it is in a namespace of its own
	w := newWorld(t)
	w.nft(`table ip n {
	chain post {
		type nat hook postrouting priority srcnat
		oifname != "lo" snat to 192.0.2.7
		oifname "wan0" ip saddr 10.0.0.0/8 masquerade
	}
}
table inet fw {
	chain pre {
		type filter hook prerouting priority mangle + 10
		meta nfproto ipv6 fib saddr . mark . iif oif missing drop
		iifname "wan1" meta mark set 7
	}
	chain plain {
		tcp dport 8080 counter
	}
}
table ip off {
	flags dormant
	chain post {
		type nat hook postrouting priority srcnat
		masquerade
	}
}`)
	for _, line := range []string{
		"-t nat -A POSTROUTING -o wan0 -j MASQUERADE", "-t nat -A POSTROUTING -o wan0 -j SNAT --to-source 192.0.2.8",
		"-t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 172.17.0.2:80", "-t mangle -A OUTPUT -j MARK --set-mark 9",
	} {
		if out, err := exec.CommandContext(t.Context(), "iptables-nft", strings.Fields(line)...).CombinedOutput(); err != nil {
			t.Fatalf("iptables-nft %s: %v\n%s", line, err, out)
		}
	}
	chains, err := w.Ruleset(t.Context())
	must(t, err)
	var found []nftables.Expr
	for _, c := range chains {
		if c.Table.Name == "off" {
			t.Errorf("%+v is switched off", c)
		}
		if c.IsBase != (c.Name != "plain") {
			t.Errorf("base: %+v", c)
		}
		for _, r := range c.Rules {
			for n, e := range r.Exprs {
				switch e := e.(type) {
				case nftables.Translate:
					if e.Source != 0 {
						from, _ := r.ReadBy(n, e.Source).(nftables.Immediate)
						e.To, _ = netip.AddrFromSlice([]byte(from.Value))
						e.Source = 0
					}
					found = append(found, e)
				case nftables.FIB:
					e.Dest = 0
					found = append(found, e)
				case nftables.Mark:
					found = append(found, e)
				}
			}
		}
	}
	address := netip.MustParseAddr
	want := []nftables.Expr{
		nftables.Translate{Kind: nftables.SNAT, To: address("192.0.2.7")},
		nftables.Translate{Kind: nftables.Masquerade},
		nftables.FIB{Result: nftables.FIBResultOIF, Flags: nftables.FIBSource | nftables.FIBMark | nftables.FIBIIF | 1<<5},
		nftables.Translate{Kind: nftables.Masquerade},
		nftables.Translate{Kind: nftables.SNAT, To: address("192.0.2.8")},
		nftables.Translate{Kind: nftables.DNAT, To: address("172.17.0.2")},
		nftables.Mark{Value: 9, Mask: 0xffffffff},
	}
	for _, e := range want {
		i := slices.Index(found, e)
		if i < 0 {
			t.Errorf("%v was not read: %v", e, found)
			continue
		}
		found = slices.Delete(found, i, i+1)
	}
	if len(found) > 0 {
		t.Errorf("not expected: %v", found)
	}
}
