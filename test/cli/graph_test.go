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
		r = h.as(uid, "graph", "--format", "dot")
		for _, text := range []string{"digraph", "10000: source (2 rules)", "wan0: uplink", "default via " + router.String() + " dev wan1", "IPv6"} {
			if !strings.Contains(r.out, text) || r.status != 0 {
				h.t.Errorf("graph for user %d lacks %q: %s", uid, text, r)
			}
		}
	}
}
