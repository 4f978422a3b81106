package cli_test

import (
	"encoding/xml"
	"fmt"
	"strings"

	"multihomed/test/lab"
)

// drawn: graph shows the host to every user, and the way of a packet.
func (h *host) drawn() {
	h.t.Helper()
	source, router := h.addr("wan1"), lab.DefaultISP(1).IPv4.Addr()
	for _, uid := range []uint32{0, nobody} {
		r := h.as(uid, "graph", "--flow", "203.0.113.1", "--from", source.String(), "--uid", "0")
		want := fmt.Sprintf("203.0.113.1 from %s leaves by wan1 via %s (rule 10000, table ", source, router)
		if r.status != 0 || xml.Unmarshal([]byte(r.out), new(struct{})) != nil || !strings.Contains(r.out, want) || !strings.Contains(r.out, "wan1: uplink") {
			h.t.Errorf("graph for user %d lacks %q: %s", uid, want, r)
		}
		// The kernel can only be asked for a packet that prefers wan0: that stays on this host.
		own, other := h.prefix("wan0", lab.IPv6).Addr(), h.prefix("wan1", lab.IPv6).Addr()
		want = fmt.Sprintf("%s from %s oif wan0 leaves by wan0 via ", other, own)
		if r = h.as(uid, "graph", "--flow", other.String(), "--from", own.String(), "--oif", "wan0", "--uid", "0"); r.status != 0 || !strings.Contains(r.out, want) {
			h.t.Errorf("graph for user %d lacks %q: %s", uid, want, r)
		}
		r = h.as(uid, "graph", "--format", "dot")
		for _, text := range []string{"digraph", "10000: source (2 rules)", "wan0: uplink", "default via " + router.String() + " dev wan1", "IPv6"} {
			if !strings.Contains(r.out, text) || r.status != 0 {
				h.t.Errorf("graph for user %d lacks %q: %s", uid, text, r)
			}
		}
	}
}
