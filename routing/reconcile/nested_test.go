package reconcile_test

import (
	"os/exec"
	"strings"
	"testing"

	"multihomed/routing/reconcile"
)

// TestDeletingByANestedNetwork: whoever deletes a rule of his by a destination that is also a
// network inside of one behind an opening hits his own.
func TestDeletingByANestedNetwork(t *testing.T) {
	for _, his := range []string{"pref 100 to 10.7.0.0/16 lookup 300", "pref 32000 to 10.7.0.0/16 lookup 300", "pref 9600 to 10.7.0.0/16 fwmark 7 lookup 300"} {
		t.Run(his, func(t *testing.T) {
			h := newHost(t)
			h.noLinkLocal()
			h.wan(0)
			h.wan(1)
			h.veth("corp0")
			h.owners.claim("corp0", reconcile.Link)
			h.owners.complete(true)
			for _, command := range []string{
				"addr add 172.20.0.5/24 dev corp0", "route add 10.0.0.0/8 via 172.20.0.1 dev corp0",
				"-6 addr add 2001:db8::5/64 dev corp0 nodad", "-6 route add default via 2001:db8::1 dev corp0",
				"route add 10.7.0.0/16 via 100.64.1.1 dev wan1",
			} {
				h.ip(command)
			}
			h.pass()
			before := strings.Join(h.rules(), "\n")
			if !strings.Contains(before, "to 10.7.0.0/16") {
				t.Fatalf("nothing is nested:\n%s", before)
			}
			h.ip("rule add " + his)
			h.pass()
			n := 0
			for ; n < 20 && exec.CommandContext(t.Context(), "ip", "rule", "del", "to", "10.7.0.0/16").Run() == nil; n++ {
				h.pass()
				h.leaves("100.64.1.5", "10.7.0.1", "wan1")
				h.leaves("100.64.1.5", "10.8.0.1", "corp0")
			}
			if n != 1 {
				t.Errorf("%d deletions", n)
			}
			h.rest()
			if now := strings.Join(h.rules(), "\n"); now != before {
				t.Errorf("afterwards:\n%s\nbefore:\n%s", now, before)
			}
		})
	}
}
