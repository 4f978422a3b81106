package dbusapi_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"multihomed/internal/dbusapi"
	"multihomed/internal/status"
	"multihomed/routing"
)

// TestPaths: each interface has one path, and no other path is its.
func TestPaths(t *testing.T) {
	t.Parallel()
	for index, want := range map[int]dbus.ObjectPath{3: "/org/multihomed1/link/_33", 17: "/org/multihomed1/link/_317", 1 << 30: "/org/multihomed1/link/_31073741824"} {
		if got := dbusapi.LinkPath(index); got != want {
			t.Errorf("%d has the path %s, want %s", index, got, want)
		}
		if got, is := dbusapi.IndexOf(want); !is || got != index {
			t.Errorf("%s is %d, %t", want, got, is)
		}
	}
	for _, path := range []dbus.ObjectPath{
		"/org/multihomed1/link", "/org/multihomed1/link/3", "/org/multihomed1/link/_", "/org/multihomed1/link/_3", "/org/multihomed1/link/_zz",
		"/org/multihomed1/link/_61", "/org/multihomed1/link/_30", "/org/multihomed1/link/_301", "/org/multihomed1/link/_2d1", "/org/multihomed1/link/_399999999999", "/org/multihomed1/link/_33/_33",
	} {
		if index, is := dbusapi.IndexOf(path); is && dbusapi.LinkPath(index) != path {
			t.Errorf("%s is taken for %d", path, index)
		}
	}
}

// TestModel: every property has a value of its type, names stay escaped, a link that is off is there
// and switched off, and what is measured makes no difference.
func TestModel(t *testing.T) {
	t.Parallel()
	since := time.Unix(1000, 5000)
	rtt, gateway := 3.5, netip.MustParseAddr("192.0.2.1")
	s := status.Status{
		Version: "1", Daemon: status.Daemon{Ready: true}, Tables: status.Range{First: 10000, Last: 10999},
		Unbound: map[string]status.Unbound{"ipv4": {Interface: `a\xffb`, Table: 254, Shares: []status.Leg{{Interface: "wan1", Weight: 3}}}},
		Links: []status.Link{{
			Interface: `a\xffb`, Index: 7, Role: "uplink", Since: &since, InForce: status.Count{Planned: 3, Present: 1},
			Networks: []status.Network{{Family: "ipv4", Prefix: netip.MustParsePrefix("192.0.2.0/24"), Table: 10000, Addresses: []status.Address{{Address: netip.MustParseAddr("192.0.2.2"), Length: 24}}, Gateways: []status.Gateway{{Via: &gateway}}}},
		}},
		OffLinks: []status.OffLink{{Interface: "wan1", Off: status.Off{Since: &since, By: "alice"}}, {Interface: "gone"}},
		Failover: &status.Failover{Uplinks: []status.Health{{Interface: `a\xffb`, Family: "ipv4", State: status.HealthUp, Verdict: "answers come", Why: "answers come: 17", RTT: &rtt}}},
	}
	s.Tell([]routing.Problem{{Code: "x", Severity: routing.Warning, Link: "a\xffb", Text: "what", Commands: routing.CommandsOf("true")}})
	facts := dbusapi.Facts{Devices: map[string]dbusapi.Device{"wan1": {Index: 3, Up: true}}, LogLevel: "info"}
	m := dbusapi.Of(&s, facts, nil)
	if len(m.Links) != 2 || m.Links[0].Values["State"] != dbusapi.Off || m.Links[0].Values["Off"] != true || m.Links[1].Values["State"] != dbusapi.Incomplete {
		t.Fatalf("links are %+v", m.Links)
	}
	if l, is := m.Named("a\xffb"); !is || l.Name != `a\xffb` || l != m.Links[1] {
		t.Errorf("the link of the odd name is %+v", l)
	}
	now := dbusapi.Measured{Links: dbusapi.Measure(s.Failover)}
	all := []map[string]dbus.Variant{m.All(now), m.Links[0].All(now), m.Links[1].All(now)}
	for n, i := range []*dbusapi.Interface{dbusapi.Manager(), dbusapi.LinkOf(), dbusapi.LinkOf()} {
		if len(all[n]) != len(i.Properties) {
			t.Errorf("%s has %d properties, and values for %d", i.Name, len(i.Properties), len(all[n]))
		}
		for _, p := range i.Properties {
			if v := all[n][p.Name]; v.Signature().String() != p.Type {
				t.Errorf("%s.%s is %v of the type %s, want %s", i.Name, p.Name, v, v.Signature(), p.Type)
			}
		}
	}
	// Another measurement, and the model of it.
	other := s
	slower := 99.5
	other.Failover = &status.Failover{Uplinks: slices.Clone(s.Failover.Uplinks)}
	other.Failover.Uplinks[0].RTT, other.Failover.Uplinks[0].Why = &slower, "answers come: 18"
	next := dbusapi.Of(&other, facts, m)
	if told := dbusapi.Changes(m, next, now); len(told) > 0 || next.Manager["Generation"] != m.Manager["Generation"] {
		t.Errorf("a measurement is told: %v", told)
	}
	other.Failover.Uplinks[0].State = status.HealthDown
	dead := dbusapi.Of(&other, facts, next)
	if told := dbusapi.Changes(next, dead, now); len(told) != 1 || told[0].Path != dbusapi.LinkPath(7) || dead.Manager["Generation"] != uint64(2) {
		t.Errorf("a death is told as %v", told)
	}
}

// TestState: a daemon starts once, whatever it waits for later.
func TestState(t *testing.T) {
	t.Parallel()
	var last *dbusapi.Model
	for n, step := range []struct {
		ready, off bool
		want       string
	}{{false, false, dbusapi.Starting}, {true, false, dbusapi.Ready}, {false, false, dbusapi.Ready}, {false, true, dbusapi.Off}, {false, false, dbusapi.Ready}} {
		s := status.Status{Daemon: status.Daemon{Running: true, Ready: step.ready, Waiting: "NetworkManager is not running"}}
		if step.off {
			s.Off = &status.Off{}
		}
		last = dbusapi.Of(&s, dbusapi.Facts{}, last)
		if last.Manager["State"] != step.want {
			t.Errorf("step %d: %v, want %s", n, last.Manager["State"], step.want)
		}
	}
}

// TestWrote: a signal has a bound, and says what it leaves out.
func TestWrote(t *testing.T) {
	t.Parallel()
	got := dbusapi.Wrote([]dbusapi.Change{{Time: 5, Verb: "add rule"}}, 12).Body[0].([]dbusapi.Change)
	if len(got) != 2 || got[1] != (dbusapi.Change{Time: 5, Verb: "more", Object: "12"}) || dbus.SignatureOf(got).String() != "a(tissss)" {
		t.Errorf("it is %v", got)
	}
}
