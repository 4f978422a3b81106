package reconcile_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"multihomed/routing/reconcile"
)

// ways lists how the tables of ours lead to a destination, as ip(8) prints it: a line
// for each route.
func (h *host) ways(family, table int, destination string) []string {
	h.Helper()
	var out []string
	for line := range strings.Lines(h.ip(fmt.Sprintf("-%d route show table %d proto 150", family, table))) {
		line = strings.Join(strings.Fields(line), " ")
		if way, leg := strings.CutPrefix(line, "nexthop "); leg && len(out) > 0 {
			out[len(out)-1] += " | " + way
			continue
		}
		if way, is := strings.CutPrefix(line, destination+" "); is {
			out = append(out, way)
		}
	}
	for i, line := range out {
		line = " " + line
		for _, noise := range []string{" pref medium", " src 100.64.0.5", " src 100.64.1.5", "via inet "} {
			line = strings.ReplaceAll(line, noise, "")
		}
		out[i] = strings.TrimSpace(line)
	}
	return out
}

// TestMultipathOfMain: a multipath route of main through one device is one route of the
// link's table with the same shares; of one through several devices each table has the
// legs of its own.
func TestMultipathOfMain(t *testing.T) {
	const rank = "metric 1073741824"
	type step struct {
		do string
		// routes are those to the destination in the tables of wan0 and wan1.
		wan0, wan1 []string
		// wrote is how many operations it took, if that is said.
		wrote int
	}
	for name, c := range map[string]struct {
		family      int
		destination string
		steps       []step
	}{
		"a default": {4, "default", []step{
			{do: "route add default nexthop via 100.64.0.1 dev wan0 weight 3 nexthop via 100.64.0.2 dev wan0 weight 1", wan0: []string{rank + " | via 100.64.0.1 dev wan0 weight 3 | via 100.64.0.2 dev wan0 weight 1"}},
			{do: "route replace default nexthop via 100.64.0.1 dev wan0 weight 3 nexthop via 100.64.0.2 dev wan0 weight 9", wan0: []string{rank + " | via 100.64.0.1 dev wan0 weight 3 | via 100.64.0.2 dev wan0 weight 9"}, wrote: 1},
			{do: "route replace default nexthop via 100.64.0.1 dev wan0 weight 3 nexthop via 100.64.0.3 dev wan0 weight 9", wan0: []string{rank + " | via 100.64.0.1 dev wan0 weight 3 | via 100.64.0.3 dev wan0 weight 9"}, wrote: 1},
			{do: "route replace default nexthop via 100.64.0.1 dev wan0 weight 3 nexthop via 100.64.1.1 dev wan1 weight 9", wan0: []string{"via 100.64.0.1 dev wan0 " + rank}, wan1: []string{"via 100.64.1.1 dev wan1 " + rank}},
			{do: "route replace default nexthop via 100.64.0.1 dev wan0 weight 3 nexthop via 100.64.1.1 dev wan1 weight 9 nexthop via 100.64.0.2 dev wan0 weight 2", wan0: []string{rank + " | via 100.64.0.1 dev wan0 weight 3 | via 100.64.0.2 dev wan0 weight 2"}, wan1: []string{"via 100.64.1.1 dev wan1 " + rank}, wrote: 1},
			{do: "route add default via 100.64.0.7 dev wan0 metric 9", wan0: []string{rank + " | via 100.64.0.1 dev wan0 weight 3 | via 100.64.0.2 dev wan0 weight 2", "via 100.64.0.7 dev wan0 metric 1073741825"}, wan1: []string{"via 100.64.1.1 dev wan1 " + rank}, wrote: 1},
			{do: "route del default metric 9", wan0: []string{rank + " | via 100.64.0.1 dev wan0 weight 3 | via 100.64.0.2 dev wan0 weight 2"}, wan1: []string{"via 100.64.1.1 dev wan1 " + rank}, wrote: 1},
			{do: "route replace default via 100.64.0.1 dev wan0", wan0: []string{"via 100.64.0.1 dev wan0 " + rank}},
			{do: "route del default", wrote: 1},
		}},
		"a path": {4, "10.0.0.0/8", []step{
			{do: "route add 10.0.0.0/8 nexthop via 100.64.0.1 dev wan0 weight 3 realm 7 nexthop via 100.64.0.2 dev wan0 weight 1", wan0: []string{rank + " | via 100.64.0.1 realm 7 dev wan0 weight 3 | via 100.64.0.2 dev wan0 weight 1"}, wrote: 1},
			{do: "route replace 10.0.0.0/8 mtu 1400 nexthop via 100.64.0.1 dev wan0 weight 3 nexthop via 100.64.0.2 dev wan0 weight 1 onlink", wan0: []string{rank + " mtu 1400 | via 100.64.0.1 dev wan0 weight 3 | via 100.64.0.2 dev wan0 weight 1 onlink"}, wrote: 1},
			{do: "route del 10.0.0.0/8", wrote: 1},
		}},
		"a daemon's path": {4, "10.0.0.0/8", []step{
			{do: "route add default nexthop via 100.64.0.1 dev wan0 weight 3 nexthop via 100.64.0.2 dev wan0 weight 1"},
			// It says what the default says.
			{do: "route add 10.0.0.0/8 proto bird nexthop via 100.64.0.1 dev wan0 weight 3 nexthop via 100.64.0.2 dev wan0 weight 1"},
			{do: "route replace 10.0.0.0/8 proto bird nexthop via 100.64.0.1 dev wan0 weight 1 nexthop via 100.64.0.2 dev wan0 weight 1", wan0: []string{rank + " | via 100.64.0.1 dev wan0 weight 1 | via 100.64.0.2 dev wan0 weight 1"}, wrote: 1},
			{do: "route replace 10.0.0.0/8 proto bird via 100.64.0.1 dev wan0", wan0: []string{"via 100.64.0.1 dev wan0 " + rank}, wrote: 1},
			{do: "route replace default via 100.64.0.1 dev wan0"},
			{do: "route del 10.0.0.0/8"},
			{do: "route del default"},
		}},
		"a group": {4, "default", []step{
			{do: "nexthop add id 1 via 100.64.0.1 dev wan0"},
			{do: "nexthop add id 2 via 100.64.0.2 dev wan0"},
			{do: "nexthop add id 3 via 100.64.1.1 dev wan1"},
			{do: "nexthop add id 9 group 1,3/2,1/3,1"},
			{do: "route add default nhid 9", wan0: []string{rank + " | via 100.64.0.1 dev wan0 weight 3 | via 100.64.0.2 dev wan0 weight 1"}, wan1: []string{"via 100.64.1.1 dev wan1 " + rank}},
			{do: "nexthop replace id 9 group 1,3/2,2/3,1", wan0: []string{rank + " | via 100.64.0.1 dev wan0 weight 3 | via 100.64.0.2 dev wan0 weight 2"}, wan1: []string{"via 100.64.1.1 dev wan1 " + rank}, wrote: 1},
			{do: "nexthop replace id 2 via 100.64.0.4 dev wan0", wan0: []string{rank + " | via 100.64.0.1 dev wan0 weight 3 | via 100.64.0.4 dev wan0 weight 2"}, wan1: []string{"via 100.64.1.1 dev wan1 " + rank}, wrote: 1},
			{do: "nexthop del id 2", wan0: []string{"via 100.64.0.1 dev wan0 " + rank}, wan1: []string{"via 100.64.1.1 dev wan1 " + rank}},
			{do: "nexthop del id 9"},
		}},
		"IPv6": {6, "default", []step{
			{do: "-6 route add default metric 5 nexthop via 2001:db8::1 dev wan0 weight 3 nexthop via 2001:db8::2 dev wan0 weight 1", wan0: []string{rank + " | via 2001:db8::1 dev wan0 weight 3 | via 2001:db8::2 dev wan0 weight 1"}},
			{do: "-6 route replace default metric 5 nexthop via 2001:db8::1 dev wan0 weight 3 nexthop via 2001:db8::2 dev wan0 weight 7", wan0: []string{rank + " | via 2001:db8::1 dev wan0 weight 3 | via 2001:db8::2 dev wan0 weight 7"}, wrote: 2},
			{do: "-6 route append default metric 5 via 2001:db8:1::1 dev wan1", wan0: []string{rank + " | via 2001:db8::1 dev wan0 weight 3 | via 2001:db8::2 dev wan0 weight 7"}, wan1: []string{"via 2001:db8:1::1 dev wan1 " + rank}},
			{do: "-6 route del default metric 5 via 2001:db8::2 dev wan0", wan0: []string{"via 2001:db8::1 dev wan0 " + rank}, wan1: []string{"via 2001:db8:1::1 dev wan1 " + rank}},
			{do: "-6 route del default metric 5"},
		}},
		"a group of IPv6": {6, "default", []step{
			{do: "nexthop add id 1 via 2001:db8::1 dev wan0"},
			{do: "nexthop add id 2 via 2001:db8::2 dev wan0"},
			{do: "nexthop add id 9 group 1,3/2,1"},
			{do: "-6 route add default nhid 9", wan0: []string{rank + " | via 2001:db8::1 dev wan0 weight 3 | via 2001:db8::2 dev wan0 weight 1"}},
			{do: "nexthop replace id 9 group 1,3/2,5", wan0: []string{rank + " | via 2001:db8::1 dev wan0 weight 3 | via 2001:db8::2 dev wan0 weight 5"}, wrote: 2},
			{do: "nexthop del id 9"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.noLinkLocal()
			for n := range 2 {
				dev := fmt.Sprintf("wan%d", n)
				h.veth(dev)
				h.address(dev, fmt.Sprintf("100.64.%d.5/24", n))
				h.address(dev, fmt.Sprintf("2001:db8:%d::5/64", n))
				h.owners.claim(dev, reconcile.Link)
			}
			h.owners.complete(true)
			h.pass()
			tables := [2]int{10000, 10002}
			if c.family == 6 {
				tables = [2]int{10001, 10003}
			}
			ours := func() string {
				return h.ip("route show table all proto 150") + h.ip("-6 route show table all proto 150") + h.ip("rule") + h.ip("-6 rule")
			}
			before := ours()
			for _, s := range c.steps {
				h.ip(s.do)
				main := h.ip("route show") + h.ip("-6 route show")
				h.pass() // The role may change.
				routes := slices.DeleteFunc(slices.Clone(h.writer.wrote), func(op string) bool { return !strings.Contains(op, "route") })
				if s.wrote > 0 && len(routes) != s.wrote {
					t.Errorf("%s: %d operations:\n%s", s.do, len(routes), strings.Join(routes, "\n"))
				}
				for i, want := range [2][]string{s.wan0, s.wan1} {
					if have := h.ways(c.family, tables[i], c.destination); !slices.Equal(have, want) {
						t.Errorf("%s: wan%d has\n%q, want\n%q", s.do, i, have, want)
					}
				}
				h.quiet()
				if len(h.last.Problems) > 0 {
					t.Errorf("%s: %+v", s.do, h.last.Problems)
				}
				if now := h.ip("route show") + h.ip("-6 route show"); now != main {
					t.Errorf("%s: main was\n%s\nand is\n%s", s.do, main, now)
				}
				h.restart()
				for n := range 2 {
					h.owners.claim(fmt.Sprintf("wan%d", n), reconcile.Link)
				}
				h.owners.complete(true)
				h.quiet()
			}
			h.memory = memory{}
			h.restart()
			for n := range 2 {
				h.owners.claim(fmt.Sprintf("wan%d", n), reconcile.Link)
			}
			h.owners.complete(true)
			h.pass()
			if after := ours(); after != before {
				t.Errorf("it was\n%s\nand is\n%s", before, after)
			}
		})
	}
}
