package check_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"multihomed/internal/config"
	"multihomed/internal/health"
	"multihomed/internal/offswitch"
	"multihomed/internal/status"
	"multihomed/internal/status/check"
	"multihomed/internal/status/view"
	"multihomed/internal/status/view/viewtest"
	"multihomed/nm"
	"multihomed/routing"
)

// uplinks is a host with two uplinks in states, of which main prefers the first.
func uplinks(states ...health.State) *view.View {
	s := viewtest.Snapshot(viewtest.WAN(0), viewtest.WAN(1))
	v := view.FromSnapshot(config.Default(), s, view.Daemon{Ready: true}, nm.Status{Running: true, Complete: true}, false, offswitch.State{})
	v.Failover = &view.Failover{Enabled: true}
	for i, state := range states {
		l := viewtest.WAN(i)
		v.Failover.Uplinks = append(v.Failover.Uplinks, view.Uplink{
			Index: l.Index, Name: l.Name, Family: routing.IPv4,
			Report: health.Report{State: state, Since: time.Date(2026, 11, 20, 17, 5, 2, 0, time.UTC), Why: "for a reason"},
		})
	}
	v.Unbound = map[routing.Family]status.Unbound{routing.IPv4: {Interface: "wan0", Table: 254}}
	return v
}

// moved makes the unbound traffic of IPv4 go a way for a reason.
func moved(v *view.View, to string, why routing.CourseReason) *view.View {
	main := routing.Route{Device: 2, Table: 254}
	c := routing.Course{Family: routing.IPv4, Main: main, Used: main, Why: why}
	if to != "wan0" {
		c.Moved, c.Used = true, routing.Route{Device: 3, Table: 10999}
		v.Unbound[routing.IPv4] = status.Unbound{Interface: to, Table: 10999}
	}
	v.Snapshot.Courses[0] = c
	return v
}

func TestUplinksThatWork(t *testing.T) {
	for _, state := range []health.State{health.Unknown, health.Up, health.Suspect} {
		expect(t, uplinks(state, health.Up), files())
	}
	// One uplink cannot be replaced, and nothing is said where failover is off.
	expect(t, uplinks(health.Down), files())
	v := uplinks(health.Down, health.Up)
	v.Failover.Enabled = false
	expect(t, v, files())
	v.Failover = nil
	expect(t, v, files())
}

func TestDeadUplink(t *testing.T) {
	dead := want{code: check.UplinkDead, severity: routing.Warning, link: "wan0", text: []string{"wan0 does not work for IPv4 since 2026-11-20 17:05:02: for a reason", "unbound traffic leaves by wan1"}, fix: "ping -c 3 -I wan0 198.51.100.1"}
	v := moved(uplinks(health.Down, health.Up), "wan1", routing.CourseDead)
	expect(t, v, files(), dead)
	if s := v.Status(check.Problems(v, files()), "1"); !s.OK || s.Unbound["ipv4"].Main != "wan0" || s.Unbound["ipv4"].Why != "wan0 does not work" {
		t.Errorf("status %+v, %+v", s.OK, s.Unbound)
	}
	dead.text = []string{"is about to leave it"}
	expect(t, uplinks(health.Down, health.Up), files(), dead)
	v.Failover.Uplinks[0].Evidence.Kind = health.ByCarrier
	dead.text, dead.fix = nil, "check the cable"
	expect(t, v, files(), dead)
	v = moved(uplinks(health.Recovering, health.Up), "wan1", routing.CourseDead)
	v.Failover.Uplinks[0].Recovered = time.Date(2026, 11, 20, 17, 9, 50, 0, time.UTC)
	expect(t, v, files(), want{code: check.UplinkDead, severity: routing.Notice, link: "wan0", text: []string{"at 17:09:50 if nothing is lost"}, fix: "failover reset wan0"})
	v = moved(uplinks(health.Down, health.Up), "wan1", routing.CourseDead)
	v.Failover.Uplinks[0].Tested = time.Date(2026, 11, 20, 17, 5, 32, 0, time.UTC)
	expect(t, v, files(), want{code: check.UplinkDead, severity: routing.Notice, link: "wan0", text: []string{"until 17:05:32"}, fix: "failover reset wan0"})
}

// TestDeadInBothFamilies: an uplink that is dead in both is named once.
func TestDeadInBothFamilies(t *testing.T) {
	v := moved(uplinks(health.Down, health.Up), "wan1", routing.CourseDead)
	for _, u := range v.Failover.In(routing.IPv4) {
		u.Family = routing.IPv6
		v.Failover.Uplinks = append(v.Failover.Uplinks, u)
	}
	v.Unbound[routing.IPv6] = v.Unbound[routing.IPv4]
	both := want{code: check.UplinkDead, severity: routing.Warning, link: "wan0", text: []string{"does not work for IPv4 and IPv6 since", "for a reason; unbound traffic leaves by wan1"}, fix: "ping"}
	expect(t, v, files(), both)
	v.Unbound[routing.IPv6] = status.Unbound{Interface: "wan2", Table: 10999}
	differ := both
	differ.text = []string{"for a reason; unbound IPv4 traffic leaves by wan1; unbound IPv6 traffic leaves by wan2"}
	expect(t, v, files(), differ)
	v.Failover.Uplinks[2].State = health.Recovering
	both.text = []string{"does not work for IPv4 since"}
	expect(t, v, files(), both, want{code: check.UplinkDead, severity: routing.Notice, link: "wan0", text: []string{"works again for IPv6"}, fix: "reset"})
}

func TestAllUplinksDead(t *testing.T) {
	v := moved(uplinks(health.Down, health.Recovering), "wan0", routing.CourseNoneLives)
	expect(t, v, files(),
		want{code: check.AllDead, severity: routing.Warning, text: []string{"wan0 and wan1"}, fix: "each link"},
		want{code: check.UplinkDead, severity: routing.Warning, link: "wan0", text: []string{"stays on it, because no other uplink works"}, fix: "ping"},
		want{code: check.UplinkDead, severity: routing.Notice, link: "wan1", fix: "failover reset wan1"})
	if s := v.Status(nil, "1"); s.Unbound["ipv4"].Main != "" || s.Unbound["ipv4"].Why == "" {
		t.Errorf("unbound %+v", s.Unbound)
	}
}

// TestTooMuchThrown: traffic that failover cannot move stays, and status says why.
func TestTooMuchThrown(t *testing.T) {
	v := moved(uplinks(health.Down, health.Up), "wan0", routing.CourseThrown)
	expect(t, v, files(), want{
		code: check.UplinkDead, severity: routing.Warning, link: "wan0", fix: "ping",
		text: []string{"stays on it, because main has more throw routes than the table of failover can follow"},
	})
	if s := v.Status(nil, "1"); s.Unbound["ipv4"].Main != "" || !strings.Contains(s.Unbound["ipv4"].Why, "more throw routes") {
		t.Errorf("unbound %+v", s.Unbound)
	}
}

// TestStopgap: an uplink that recovers carries the traffic where no other one works. Then it is not
// true that none works, nor that its DNS servers are dead.
func TestStopgap(t *testing.T) {
	v := moved(uplinks(health.Down, health.Recovering), "wan1", routing.CourseDead)
	v.Failover.Uplinks[1].Recovered = time.Date(2026, 11, 20, 17, 9, 50, 0, time.UTC)
	v.Failover.Uplinks[1].Servers = []netip.Addr{netip.MustParseAddr("9.9.9.9")}
	down := want{code: check.UplinkDead, severity: routing.Warning, link: "wan0", text: []string{"unbound traffic leaves by wan1"}, fix: "ping"}
	used := want{code: check.UplinkDead, severity: routing.Notice, link: "wan1", text: []string{"uses it already, because no other uplink works", "counts as up when it has worked for a while: at 17:09:50"}, fix: "to count it as up now: multihomectl failover reset wan1"}
	expect(t, v, files("etc/resolv.conf", "nameserver 9.9.9.9\n"), down, used)
	// The other one answers again, too, and waits.
	v.Failover.Uplinks[0].State = health.Recovering
	expect(t, v, files("etc/resolv.conf", "nameserver 9.9.9.9\n"),
		want{code: check.UplinkDead, severity: routing.Notice, link: "wan0", text: []string{"traffic returns to it"}, fix: "to use it now: multihomectl failover reset wan0"}, used)
}

// TestRecoversBehindMain: where main prefers another uplink now, no traffic returns to one that recovers.
func TestRecoversBehindMain(t *testing.T) {
	v := moved(uplinks(health.Up, health.Recovering), "wan0", routing.CourseAlive)
	spare := want{code: check.UplinkDead, severity: routing.Notice, link: "wan1", text: []string{"works again for IPv4, and counts as up when it has worked for a while"}, fix: "to count it as up now: multihomectl failover reset wan1"}
	expect(t, v, files(), spare)
	shared := spare
	shared.text, shared.fix = []string{"traffic returns to it"}, "to use it now"
	expect(t, moved(v, "wan0", routing.CourseShared), files(), shared)
}

// TestNotWatched: an uplink that has nobody to ask is healthy, and its own line says why it is
// not watched. Without a prober there is something to fix.
func TestNotWatched(t *testing.T) {
	v := uplinks(health.Up, health.Unprobed)
	expect(t, v, files())
	v.Failover.Prober, v.Failover.ProberFix = "it does not answer", "systemctl start multihomed-prober.socket"
	expect(t, v, files(), want{code: check.NotWatched, severity: routing.Notice, text: []string{"by their carrier alone: it does not answer"}, fix: "systemctl start multihomed-prober.socket"})
	v.Failover.Prober = ""
	for _, u := range v.Failover.Uplinks[1:] { // In both families it is said once.
		u.Unsent = "ping sockets are forbidden; to fix: sysctl ping"
		v.Failover.Uplinks[1] = u
		u.Family = routing.IPv6
		v.Failover.Uplinks = append(v.Failover.Uplinks, u, u)
	}
	expect(t, v, files(), want{code: check.NotWatched, severity: routing.Warning, link: "wan1", text: []string{"judged by its carrier alone: ping sockets are forbidden"}, fix: "sysctl ping"})
	v = uplinks(health.Up, health.Unprobed)
	v.Failover.Prober = "it does not answer"
	// Nobody asks for a prober where there is one uplink.
	v.Failover.Uplinks = v.Failover.Uplinks[:1]
	expect(t, v, files())
}

// TestRuleDecides: where a rule of somebody else comes before failover, status does not say that
// failover decided.
func TestRuleDecides(t *testing.T) {
	v := moved(uplinks(health.Down, health.Up), "wan1", routing.CourseDead)
	v.Unbound[routing.IPv4] = status.Unbound{Interface: "wan2", Table: 77}
	if u := v.Status(nil, "1").Unbound["ipv4"]; u.Why != "table 77 decides" || u.Main != "" {
		t.Errorf("%+v", u)
	}
	v.Snapshot.Others[0] = append(v.Snapshot.Others[0], routing.ForeignRule{Rule: routing.Rule{Family: routing.IPv4, Priority: 30000, Action: routing.ActionLookup, Table: 77}})
	if u := v.Status(nil, "1").Unbound["ipv4"]; u.Why != `the rule "30000: from all lookup 77" of another program decides` || u.Interface != "wan2" {
		t.Errorf("%+v", u)
	}
	// Of a VPN that works with a healthy uplink there is nothing to explain.
	moved(v, "wan0", routing.CourseAlive)
	if u := v.Status(nil, "1").Unbound["ipv4"]; u.Why != "" {
		t.Errorf("%+v", u)
	}
}

// TestNeverAnswered: unbound traffic uses an uplink on which nothing ever answered, while another
// one works.
func TestNeverAnswered(t *testing.T) {
	mute := func(states ...health.State) *view.View {
		v := moved(uplinks(states...), "wan0", routing.CourseAlive)
		v.Failover.Uplinks[0].Targets = []health.TargetReport{{Name: "dns:9.9.9.9:53"}}
		return v
	}
	warning := want{
		code: check.NeverAnswered, severity: routing.Warning, link: "wan0",
		text: []string{"wan0 carries unbound IPv4 traffic, and nothing has ever answered", "wan1 works"}, fix: "multihomectl failover test wan0",
	}
	expect(t, mute(health.Unprobed, health.Up), files(), warning)
	v := mute(health.Unprobed, health.Suspect)
	for _, u := range v.Failover.In(routing.IPv4) {
		u.Family = routing.IPv6
		v.Failover.Uplinks = append(v.Failover.Uplinks, u)
	}
	v.Snapshot.Courses[1], v.Unbound[routing.IPv6] = v.Snapshot.Courses[0], v.Unbound[routing.IPv4]
	both := warning
	both.text = []string{"unbound IPv4 and IPv6 traffic"}
	expect(t, v, files(), both)
	v.Failover.Uplinks[3].State = health.Unprobed
	expect(t, v, files(), warning)
	// It is asked still, the other is no better, nobody asks, or a VPN has the traffic.
	expect(t, mute(health.Unknown, health.Up), files())
	expect(t, mute(health.Unprobed, health.Unprobed), files())
	v = mute(health.Unprobed, health.Up)
	v.Failover.Uplinks[0].Targets = nil
	expect(t, v, files())
	v = mute(health.Unprobed, health.Up)
	v.Failover.Uplinks[0].Unwatched = "the configuration asks for the carrier alone"
	expect(t, v, files())
	v = mute(health.Unprobed, health.Up)
	v.Unbound[routing.IPv4] = status.Unbound{Interface: "wg0", Table: 51820}
	expect(t, v, files())
}

func TestFailoverBlocked(t *testing.T) {
	blocked := want{code: check.FailoverBlocked, severity: routing.Notice, text: []string{"unbound IPv4 traffic does not leave"}, fix: "ip -4 rule"}
	expect(t, moved(uplinks(health.Up, health.Up), "wan0", routing.CourseBlocked), files(), blocked)
	expect(t, moved(uplinks(health.Up), "wan0", routing.CourseBlocked), files())
	// Without a rule for main there is no place in front of it, which is another problem.
	v := moved(uplinks(health.Up, health.Up), "wan0", routing.CourseBlocked)
	v.Snapshot.Others[0] = slices.DeleteFunc(v.Snapshot.Others[0], func(o routing.ForeignRule) bool { return o.Rule.Table == routing.TableMain })
	expect(t, v, files(), want{code: "main-rule", severity: routing.Warning, fix: "ip -4 rule add from all lookup main priority 32766"})
}

func TestResolvConf(t *testing.T) {
	of := func(v *view.View, servers ...[]string) *view.View {
		for i, list := range servers {
			for _, a := range list {
				v.Failover.Uplinks[i].Servers = append(v.Failover.Uplinks[i].Servers, netip.MustParseAddr(a))
			}
		}
		return moved(v, "wan1", routing.CourseDead)
	}
	dead := want{code: check.UplinkDead, severity: routing.Warning, link: "wan0", fix: "ping"}
	warning := want{code: check.DeadServers, severity: routing.Warning, text: []string{"only servers of wan0 resolve names (192.0.2.53"}, fix: "servers_file"}
	for name, c := range map[string]struct {
		text string
		ours [][]string
		bad  bool
	}{
		"none":                    {"search example.org\n", nil, false},
		"a local resolver":        {"nameserver 127.0.0.53\n", [][]string{{"192.0.2.53"}}, false},
		"of the dead link":        {"# comment\nnameserver 192.0.2.53\noptions edns0\n", [][]string{{"192.0.2.53"}}, true},
		"and in its network":      {"nameserver 192.0.2.53\nnameserver\t198.51.100.1 \n", [][]string{{"192.0.2.53"}}, true},
		"of both":                 {"nameserver 192.0.2.53\n", [][]string{{"192.0.2.53"}, {"192.0.2.53"}}, false},
		"one of the other":        {"nameserver 192.0.2.53\nnameserver 192.0.2.54\n", [][]string{{"192.0.2.53"}, {"192.0.2.54"}}, false},
		"the other's is the 4th":  {"nameserver 192.0.2.53\nnameserver 192.0.2.53\nnameserver 192.0.2.53\nnameserver 192.0.2.54\n", [][]string{{"192.0.2.53"}, {"192.0.2.54"}}, true},
		"nobody's":                {"nameserver 9.9.9.9\n", [][]string{{"192.0.2.53"}}, false},
		"of a family not watched": {"nameserver 2001:db8::53\n", [][]string{{"2001:db8::53"}}, false},
		"not an address":          {"nameserver x\n", [][]string{{"192.0.2.53"}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			wants := []want{dead}
			if c.bad {
				wants = append(wants, warning)
			}
			expect(t, of(uplinks(health.Down, health.Up), c.ours...), files("etc/resolv.conf", c.text), wants...)
		})
	}
}
