package kernel_test

import (
	"testing"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

func TestMirrorOfASmallHost(t *testing.T) {
	h := newHost(t)
	index := h.veth("wan0")
	h.address("wan0", "192.0.2.10/24")
	h.address("wan0", "2001:db8::10/64")
	h.ip("route add default via 192.0.2.1 dev wan0 metric 600")
	h.ip("-6 route add default via 2001:db8::1 dev wan0 metric 600")
	m := h.mirror(kernel.Config{})
	audit(t, m)
	m.View(func(s *kernel.State) {
		l, ok := s.Link(index)
		if !ok || l.Name != "wan0" || !l.Up || !l.Carrier || l.Kind != "veth" {
			t.Errorf("wan0 is %+v", l)
		}
		if len(l.Addresses) != 3 || len(l.Routes) != 5 {
			t.Errorf("wan0 has %+v", l)
		}
		if l.Routes[0].Gateway != addr("192.0.2.1") || l.Routes[0].Metric != 600 {
			t.Errorf("the first route is %v", l.Routes[0])
		}
	})
	_ = routing.IPv4
}
