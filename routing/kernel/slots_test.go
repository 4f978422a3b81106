package kernel_test

import (
	"fmt"
	"testing"

	"multihomed/routing/kernel"
)

// TestReplacedWithoutAsking: one question makes every key known whole, and after it a
// replaced route of main costs none, whoever else has a route of its key.
func TestReplacedWithoutAsking(t *testing.T) {
	for _, c := range []struct {
		name   string
		others int
		budget int
		asks   bool
	}{
		{"few of others", 10, 20_000, false},
		{"more of others than are worth reading", 500, 1, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			wan := h.veth("wan0")
			h.address("wan0", "192.0.2.10/24")
			h.veth("lan0")
			h.address("lan0", "198.51.100.10/24")
			for i := range 4 {
				h.ipBatch(fmt.Sprintf("route add 10.0.%d.0/24 via 192.0.2.1", i))
			}
			for i := range c.others {
				h.ipBatch(fmt.Sprintf("route add 172.16.%d.%d/32 via 198.51.100.1", i/256, i%256))
			}
			// The first of its key is somebody else's, and so the one that is replaced.
			h.ipBatch("route prepend 10.0.3.0/24 via 198.51.100.1")
			h.flushBatch()
			m := h.mirror(kernel.Config{Interest: func(string) bool { return false }})
			m.SetBudget(c.budget)
			must(t, m.SetInterest(t.Context(), map[int]bool{wan: true}))

			replaced := func(dst, via string, asks bool) {
				t.Helper()
				h.ip("route replace " + dst + " via " + via)
				must(t, m.Drain())
				if m.Doubtful() != asks {
					t.Errorf("%s by %s: asking is necessary: %t, want %t", dst, via, !asks, asks)
				}
				must(t, m.Sync(t.Context()))
				audit(t, m)
			}
			replaced("10.0.0.0/24", "192.0.2.2", true)
			replaced("10.0.0.0/24", "192.0.2.3", c.asks)
			replaced("10.0.1.0/24", "192.0.2.3", c.asks)
			replaced("10.0.3.0/24", "198.51.100.2", c.asks)
			replaced("10.0.3.0/24", "192.0.2.3", c.asks)
			replaced("10.0.3.0/24", "192.0.2.4", c.asks)
			must(t, m.Resync(t.Context()))
			audit(t, m)
		})
	}
}
