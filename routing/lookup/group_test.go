package lookup_test

import (
	"testing"

	"multihomed/routing"
	"multihomed/routing/lookup"
)

// TestToGroup: IPv4 sends to a group by the device of a default route, and not to its gateway.
func TestToGroup(t *testing.T) {
	t.Parallel()
	byRouter := func(r *routing.Route) { r.Gateway = addr("192.0.2.1") }
	h := host([]routing.Rule{rule(v4, 32766, routing.TableMain)}, route(routing.TableMain, "0.0.0.0/0", 2, byRouter))
	for to, gateway := range map[string]bool{"224.0.0.1": false, "255.255.255.255": false, "203.0.113.1": true} {
		f := lookup.Flow{To: addr(to)}
		v := h.Lookup(f)
		if v.Outcome != lookup.Sent || v.Legs[0].Device != 2 || v.Legs[0].Gateway.IsValid() != gateway {
			t.Errorf("%s: %+v", to, v)
		}
		matched, sent := v.Route, v.Legs[0]
		if !gateway {
			matched.Type = 5
		}
		if why := h.Disagree(v, f, lookup.Answer{Matched: []routing.Route{matched}, Sent: sent}); why != "" {
			t.Errorf("%s: %s", to, why)
		}
		sent.Device = 3
		if why := h.Disagree(v, f, lookup.Answer{Matched: []routing.Route{matched}, Sent: sent}); why == "" {
			t.Errorf("%s: another device is the same", to)
		}
	}
}

// TestMergedTables: before the first change of a rule the kernel calls local main.
func TestMergedTables(t *testing.T) {
	t.Parallel()
	h := host([]routing.Rule{rule(v4, 0, routing.TableLocal), rule(v4, 32766, routing.TableMain)}, route(routing.TableLocal, "192.0.2.5/32", 2, kind(local)))
	f := lookup.Flow{To: addr("192.0.2.5")}
	for _, merged := range []bool{false, true} {
		h.Merged = merged
		v := h.Lookup(f)
		got := v.Route
		got.Table = routing.TableMain
		if why := h.Disagree(v, f, lookup.Answer{Matched: []routing.Route{got}, Sent: got}); (why == "") != merged {
			t.Errorf("merged %v: %q", merged, why)
		}
	}
}
