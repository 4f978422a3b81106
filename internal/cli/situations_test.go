package cli_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"multihomed/allocator"
	"multihomed/internal/cli"
	"multihomed/internal/config"
	"multihomed/internal/health"
	"multihomed/internal/offswitch"
	"multihomed/internal/status"
	"multihomed/internal/status/check"
	"multihomed/internal/status/outcome"
	"multihomed/internal/status/view"
	"multihomed/internal/unitfile"
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/reconcile"
	"multihomed/test/golden"
)

func TestMain(m *testing.M) {
	time.Local = time.UTC //nolint:gosmopolitan,reassign // the golden files are of no place
	os.Exit(m.Run())
}

// A situation is a host as a user meets it. Its sentences are those of the program: the
// real planner, the real checks and the real text.
type situation struct {
	cfg     config.Config
	daemon  view.Daemon
	manager nm.Status
	alone   bool
	stopped bool
	fault   *config.Fault
	// unit is of a service that is stopped, and start what status is told to start it by.
	unit     unitfile.State
	start    string
	bare     bool
	off      offswitch.State
	links    []routing.Link
	claims   map[string]reconcile.Claim
	others   []routing.Interface
	rules    [2][]routing.ForeignRule
	unbound  map[routing.Family]status.Unbound
	strays   []outcome.Stray
	files    fs.FS
	carrier  map[string]bool
	unread   string
	problems []routing.Problem
	failover *view.Failover
	// moves is what the planner is told of failover.
	moves routing.Failover
}

// laptop has one uplink by cable, with both families, and a radio that is not connected.
func laptop() situation {
	s := situation{
		cfg: config.Default(), files: fstest.MapFS{}, carrier: map[string]bool{}, claims: map[string]reconcile.Claim{},
		daemon:  view.Daemon{Version: "1.2.3", PID: 812, Ready: true, Started: time.Date(2026, 11, 20, 8, 30, 0, 0, time.UTC)},
		manager: nm.Status{Running: true, Version: "1.42.4", Complete: true},
		unbound: map[routing.Family]status.Unbound{
			routing.IPv4: {Interface: "enp2s0", Table: 254}, routing.IPv6: {Interface: "enp2s0", Table: 254},
		},
	}
	s.link(uplinkOf("enp2s0", 2, "192.168.1.23/24", "192.168.1.1", "2001:db8:1::a1/64", "fe80::1"), "Wired connection 1", "ethernet")
	s.other("wlp3s0", 3, "unavailable", "wifi")
	return s
}

// twoUplinks is the laptop with its radio connected.
func twoUplinks() situation {
	s := laptop()
	s.others = nil
	delete(s.claims, "wlp3s0")
	s.link(uplinkOf("wlp3s0", 3, "10.20.0.57/16", "10.20.0.1"), "Cafe", "wifi")
	return s
}

func (s *situation) link(l routing.Link, profile, kind string) {
	s.links = append(s.links, l)
	s.carrier[l.Name] = true
	s.claims[l.Name] = reconcile.Claim{Standing: reconcile.Link, Why: fmt.Sprintf("connected, profile %q", profile), Profile: profile, Type: kind, Pending: l.Pending}
}

func (s *situation) other(name string, index int, why, kind string) {
	s.others = append(s.others, routing.Interface{Name: name, Index: index, Up: true, Carrier: true})
	if why != "" {
		s.claims[name] = reconcile.Claim{Why: why, Type: kind}
	}
}

// uplinkOf makes an interface of addresses, each followed by its gateway.
func uplinkOf(name string, index int, pairs ...string) routing.Link {
	l := routing.Link{Name: name, Index: index, Up: true, Group: 28008, Intents: map[routing.Family]routing.Intent{}}
	for i := 0; i < len(pairs); i += 2 {
		p := netip.MustParsePrefix(pairs[i])
		f := routing.FamilyOf(p.Addr())
		l.Addresses = append(l.Addresses, routing.Address{Prefix: p, Dynamic: true})
		l.Intents[f] = routing.Intent{Automatic: true}
		on := routing.Route{Family: f, Table: routing.TableMain, Destination: p.Masked(), Type: routing.RouteUnicast, Device: index, Scope: routing.ScopeLink}
		l.Routes = append(l.Routes, on)
		if i+1 < len(pairs) && pairs[i+1] != "" {
			l.Routes = append(l.Routes, routing.Route{
				Family: f, Table: routing.TableMain, Destination: f.Any(), Type: routing.RouteUnicast, Device: index, Gateway: netip.MustParseAddr(pairs[i+1]),
			})
		}
	}
	return l
}

// rule adds rules of somebody else in one family.
func (s *situation) rule(f routing.Family, rules ...routing.ForeignRule) {
	at := 0
	if f == routing.IPv6 {
		at = 1
	}
	for _, r := range rules {
		r.Rule.Family = f
		if r.Rule.Action == 0 {
			r.Rule.Action = routing.ActionLookup
		}
		s.rules[at] = append(s.rules[at], r)
	}
}

// at is a moment of the day.
func at(hour, minute, second int) time.Time {
	return time.Date(2026, 11, 20, hour, minute, second, 0, time.UTC)
}

// watched is the laptop with two uplinks that work, as failover sees them.
func watched() situation {
	s := twoUplinks()
	up := func(index int, name string, f routing.Family, target string, rtt time.Duration, loss float64) view.Uplink {
		return view.Uplink{Index: index, Name: name, Family: f, Report: health.Report{
			State: health.Up, Since: at(8, 30, 4), LastProof: at(12, 0, 0), Why: "probes are answered", Loss: loss, RTT: rtt, Interval: 5 * time.Second,
			Targets: []health.TargetReport{{Name: target, Answered: true}},
		}}
	}
	s.failover = &view.Failover{Enabled: true, Uplinks: []view.Uplink{
		up(2, "enp2s0", routing.IPv4, "dns:192.168.1.1:53", 1240*time.Microsecond, 0),
		up(2, "enp2s0", routing.IPv6, "dns:[2001:db8::53]:53", 14*time.Millisecond, 0),
		up(3, "wlp3s0", routing.IPv4, "dns:9.9.9.9:53", 38*time.Millisecond, 0.017),
	}}
	s.failover.Uplinks[0].RouterOnly = true
	s.moves.Enabled = true
	return s
}

// deadUplink is the same after the death of the first in IPv4.
func deadUplink() situation {
	s := watched()
	u := &s.failover.Uplinks[0]
	u.State, u.Since, u.LastProof, u.RouterOnly, u.DeathsToday = health.Down, at(17, 5, 2), at(17, 5, 1), false, 2
	u.Why, u.Loss = "nothing answers", 0.06
	u.Evidence = health.Evidence{Kind: health.BySilence, Overdue: 5, Needed: 4, Silence: 610 * time.Millisecond}
	s.unbound[routing.IPv4] = status.Unbound{Interface: "wlp3s0", Table: 10999}
	s.moves.Dead[0] = map[int]struct{}{2: {}}
	return s
}

// view is what the daemon, or multihomectl without it, knows of the situation.
func (s *situation) view() *view.View {
	policy := s.cfg.RoutingPolicy()
	planner := routing.NewPlanner(policy)
	for i, f := range routing.Families() {
		rules := []routing.ForeignRule{
			{Rule: routing.Rule{Family: f, Action: routing.ActionLookup, Table: routing.TableLocal}},
			{Rule: routing.Rule{Family: f, Priority: 32766, Action: routing.ActionLookup, Table: routing.TableMain}},
		}
		if f == routing.IPv4 {
			rules = append(rules, routing.ForeignRule{Rule: routing.Rule{Family: f, Priority: 32767, Action: routing.ActionLookup, Table: routing.TableDefault}})
		}
		rules = append(rules, s.rules[i]...)
		slices.SortStableFunc(rules, func(a, b routing.ForeignRule) int { return int(a.Rule.Priority) - int(b.Rule.Priority) })
		s.rules[i] = rules
		planner.SetForeign(f, rules)
	}
	table := policy.Tables.First
	for _, l := range s.links {
		l.Tables = map[routing.Key]routing.TableID{}
		for _, k := range routing.Keys(l) {
			if !s.bare {
				l.Tables[k] = table
				table++
			}
		}
		planner.Set(l)
	}
	for _, f := range routing.Families() {
		var defaults []routing.Route
		for _, l := range s.links {
			for _, r := range l.Routes {
				if r.Family == f && r.IsDefault() && r.Table == routing.TableMain {
					defaults = append(defaults, r)
				}
			}
		}
		planner.SetDefaults(f, defaults)
	}
	planner.SetFailover(s.moves)
	s.daemon.Problems = append(s.daemon.Problems, s.problems...)
	var v *view.View
	if s.stopped {
		v = &view.View{
			Policy: policy, Planner: planner, Links: map[string]routing.Interface{}, Claims: s.claims, NM: nm.Snapshot{Status: s.manager}, Off: s.off,
			NoManager: s.alone, LeasesUnread: s.unread, Unit: s.unit, Start: s.start, Fault: s.fault,
		}
		for _, l := range append(s.linkFacts(), s.others...) {
			v.Links[l.Name] = l
		}
	} else {
		snapshot := &reconcile.Snapshot{Policy: policy, Claims: s.claims, Others: s.rules, Lifts: planner.Shared(), Failover: planner.FailoverRoutes()}
		for i, f := range routing.Families() {
			snapshot.Courses[i], _ = planner.Course(f)
		}
		for _, facts := range append(s.linkFacts(), s.others...) {
			i := &reconcile.Interface{Facts: facts}
			claim, claimed := s.claims[facts.Name]
			i.Claim, i.Claimed = claim, claimed
			i.Plan, i.IsLink = planner.Link(facts.Index)
			snapshot.Interfaces = append(snapshot.Interfaces, i)
		}
		slices.SortFunc(snapshot.Interfaces, func(a, b *reconcile.Interface) int { return a.Facts.Index - b.Facts.Index })
		v = view.FromSnapshot(s.cfg, snapshot, s.daemon, s.manager, s.alone, s.off)
	}
	if s.bare {
		v.Missing = []routing.Op{{Verb: routing.SetGroup, Index: s.links[0].Index, Group: policy.UplinkGroup}}
	}
	v.Unbound, v.Strays, v.Failover = s.unbound, s.strays, s.failover
	return v
}

func (s *situation) linkFacts() []routing.Interface {
	out := make([]routing.Interface, 0, len(s.links))
	for _, l := range s.links {
		out = append(out, routing.Interface{Name: l.Name, Index: l.Index, Up: l.Up, Carrier: s.carrier[l.Name], Group: l.Group, Addresses: l.Addresses})
	}
	return out
}

// TestSituations are transcripts of `multihomectl status` at 80 columns.
func TestSituations(t *testing.T) {
	for _, c := range []struct {
		name string
		make func() situation
		ok   bool
	}{
		{"one-uplink", laptop, true},
		{"two-uplinks", twoUplinks, true},
		{"not-started-yet", func() situation {
			s := laptop()
			s.stopped, s.bare, s.links[0].Group = true, true, 0
			return s
		}, false},
		{"coming-up", func() situation {
			s := laptop()
			// The router answered with lifetime 0, and DHCP has not answered.
			l := uplinkOf("wlp3s0", 3, "fd00:1::57/64", "")
			l.Pending, l.Intents[routing.IPv4] = true, routing.Intent{Automatic: true}
			s.others = nil
			s.link(l, "Cafe", "wifi")
			return s
		}, true},
		{"full-tunnel", func() situation {
			s := twoUplinks()
			s.other("wg0", 9, "it is a VPN (wireguard)", "wireguard")
			for _, f := range routing.Families() {
				s.rule(f,
					routing.ForeignRule{Numbered: true, Natural: 32764, Rule: routing.Rule{Priority: 9018, Table: routing.TableMain, SuppressPrefixLength: routing.Some(0)}},
					routing.ForeignRule{Numbered: true, Natural: 32765, Rule: routing.Rule{Priority: 9019, Table: 51820, Invert: true, Mark: routing.Mark{Value: 0xca6c, Mask: 0xffffffff}}})
				s.unbound[f] = status.Unbound{Interface: "wg0", Table: 51820}
			}
			return s
		}, true},
		{"split-tunnel", func() situation {
			s := laptop()
			s.other("tailscale0", 9, "it is external: somebody else configured it", "tun")
			mark := routing.Mark{Value: 0x80000, Mask: 0xff0000}
			for _, f := range routing.Families() {
				s.rule(f,
					routing.ForeignRule{Rule: routing.Rule{Priority: 5210, Mark: mark, Table: routing.TableMain}},
					routing.ForeignRule{Rule: routing.Rule{Priority: 5230, Mark: mark, Table: routing.TableDefault}},
					routing.ForeignRule{Rule: routing.Rule{Priority: 5250, Mark: mark, Action: routing.ActionUnreachable}},
					routing.ForeignRule{Rule: routing.Rule{Priority: 5270, Table: 52}})
			}
			return s
		}, true},
		{"docker", func() situation {
			s := laptop()
			s.other("br-5f2a91c0d3e7", 5, "it is external: somebody else configured it", "bridge")
			s.other("docker0", 4, "it is external: somebody else configured it", "bridge")
			s.other("veth3ac81f2", 6, "it is a port of docker0", "ethernet")
			return s
		}, true},
		{"bad-configuration", func() situation {
			s := twoUplinks()
			_, err := config.Parse("/etc/multihomed/multihomed.toml", []byte("uplink_grup = 7\n"))
			fault := config.Fault{File: "/etc/multihomed/multihomed.toml", Err: err, Known: true, Instead: "the last good configuration, of 2026-11-19 21:04:11 (/var/lib/multihomed/last-good.toml)"}
			s.problems = []routing.Problem{fault.Problem()}
			return s
		}, false},
		{"off", func() situation {
			s := twoUplinks()
			s.off.Host = &offswitch.Mark{Since: time.Date(2026, 11, 20, 17, 5, 0, 0, time.UTC), By: "alice"}
			s.switchOff("enp2s0", "wlp3s0")
			return s
		}, true},
		{"link-off", func() situation {
			s := twoUplinks()
			s.off.Links = []offswitch.Link{{Interface: "wlp3s0", Mark: offswitch.Mark{Since: time.Date(2026, 11, 20, 17, 5, 0, 0, time.UTC), By: "alice"}}}
			s.switchOff("wlp3s0")
			return s
		}, true},
		{"service-failed", func() situation {
			s := twoUplinks()
			s.stopped = true
			s.unread = "this user may not read the leases in /var/lib/multihomed/leases.db; table numbers were taken from the rules and routes in the kernel"
			return s
		}, true},
		{"configuration-never-good", func() situation {
			s := laptop()
			s.stopped, s.bare, s.links[0].Group = true, true, 0
			_, err := config.Parse("/etc/multihomed/multihomed.toml", []byte("uplink_grup = 7\n\ntabels = 1\n"))
			s.fault = &config.Fault{File: "/etc/multihomed/multihomed.toml", Err: err, Start: unitfile.Restart}
			s.fault.Refuse()
			return s
		}, false},
		{"service-disabled", func() situation {
			s := twoUplinks()
			s.stopped, s.unit = true, unitfile.Disabled
			return s
		}, true},
		{"service-masked", func() situation {
			s := twoUplinks()
			s.stopped, s.unit, s.start = true, unitfile.Masked, "systemctl unmask multihomed && systemctl enable --now multihomed"
			return s
		}, true},
		{"networkd", func() situation {
			s := situation{
				cfg: config.Default(), claims: map[string]reconcile.Claim{}, alone: true, manager: nm.Status{Absent: true}, daemon: laptop().daemon,
				files: fstest.MapFS{
					"sys/fs/cgroup/system.slice/systemd-networkd.service/cgroup.procs": {Data: []byte("300\n")},
					"run/systemd/netif/links/2":                                        {Data: []byte("ADMIN_STATE=configured\n")}, "run/systemd/netif/links/3": {Data: []byte("ADMIN_STATE=configured\n")},
				},
			}
			for i, name := range []string{"ens3", "ens4"} {
				s.other(name, 2+i, "", "")
				s.others[i].Addresses = []routing.Address{{Prefix: netip.MustParsePrefix("192.0.2.5/24")}}
			}
			return s
		}, false},
		{"rule-ahead", func() situation {
			s := twoUplinks()
			s.other("tun0", 9, "it is external: somebody else configured it", "tun")
			ahead := routing.Rule{Family: routing.IPv4, Priority: 5270, Action: routing.ActionLookup, Table: 52}
			s.rule(routing.IPv4, routing.ForeignRule{Rule: ahead})
			s.unbound[routing.IPv4] = status.Unbound{Interface: "tun0", Table: 52}
			for name, from := range map[string]string{"enp2s0": "192.168.1.23", "wlp3s0": "10.20.0.57"} {
				s.strays = append(s.strays, outcome.Stray{
					Probe: outcome.Probe{From: netip.MustParseAddr(from), To: netip.MustParseAddr("8.1.1.1")}, Family: routing.IPv4, Link: name,
					Device: "tun0", Rule: ahead, Table: 52, Parts: 221, All: 221,
				})
			}
			slices.SortFunc(s.strays, func(a, b outcome.Stray) int { return a.From.Compare(b.From) * -1 })
			return s
		}, false},
		{"read-only-state", func() situation {
			s := twoUplinks()
			err := &allocator.DatabaseError{Path: "/var/lib/multihomed/leases.db", Doing: "writing", Kind: allocator.ErrReadOnly, Cause: syscall.EROFS}
			s.problems = []routing.Problem{routing.ProblemOf("leases", routing.Warning, "", fmt.Errorf("table numbers of new networks cannot be saved, all links keep working: %w", err))}
			return s
		}, true},
		{"no-carrier", func() situation {
			s := twoUplinks()
			s.carrier["enp2s0"] = false
			s.links[0].Routes, s.links[0].WasUplink = nil, routing.ByFamily[bool]{true, true}
			s.unbound = map[routing.Family]status.Unbound{routing.IPv4: {Interface: "wlp3s0", Table: 254}}
			return s
		}, true},
		{"unplugged", func() situation {
			s := laptop()
			s.others[0].Carrier = false
			return s
		}, true},
		{"networkmanager-restarts", func() situation {
			s := twoUplinks()
			s.manager, s.daemon.Waiting = nm.Status{Reason: "NetworkManager is not running"}, "NetworkManager is not running"
			return s
		}, true},
		{"failover-well", watched, true},
		{"failover-dead", deadUplink, true},
		{"failover-recovering", func() situation {
			s := deadUplink()
			u := &s.failover.Uplinks[0]
			u.State, u.Since, u.Recovered, u.LastProof = health.Recovering, at(17, 9, 30), at(17, 9, 50), at(17, 9, 41)
			u.Why, u.Evidence = "it answers again", health.Evidence{Kind: health.ByAnswers, Answered: 12, Lost: 1}
			return s
		}, true},
		{"failover-all-dead", func() situation {
			s := deadUplink()
			u := &s.failover.Uplinks[2]
			u.State, u.Since, u.Why, u.Evidence = health.Down, at(17, 6, 44), "no carrier", health.Evidence{Kind: health.ByCarrier}
			u.DeathsToday = 1
			s.unbound[routing.IPv4] = status.Unbound{Interface: "enp2s0", Table: 254}
			s.moves.Dead[0] = map[int]struct{}{2: {}, 3: {}}
			s.failover.Uplinks[0].Servers = []netip.Addr{netip.MustParseAddr("192.168.1.1")}
			s.failover.Uplinks[2].Servers = []netip.Addr{netip.MustParseAddr("9.9.9.9")}
			s.files = fstest.MapFS{"etc/resolv.conf": {Data: []byte("nameserver 192.168.1.1\nnameserver 9.9.9.9\n")}}
			return s
		}, true},
		{"failover-not-watched", func() situation {
			s := watched()
			u := &s.failover.Uplinks[2]
			u.State, u.Targets, u.RTT, u.LastProof, u.Interval, u.Why = health.Unprobed, []health.TargetReport{{Name: "dns:10.20.0.1:53", OnLink: true}}, 0, time.Time{}, 0, "no target has ever answered"
			return s
		}, true},
		{"failover-never-answered", func() situation {
			s := watched()
			u := &s.failover.Uplinks[0]
			u.State, u.Targets, u.RTT, u.LastProof, u.Interval, u.Why = health.Unprobed, []health.TargetReport{{Name: "dns:9.9.9.9:53"}}, 0, time.Time{}, 0, "no target has ever answered"
			u.RouterOnly = false
			return s
		}, true},
		{"failover-no-prober", func() situation {
			s := watched()
			s.failover.Prober, s.failover.ProberFix = "multihomed-prober does not answer (connect /run/multihomed-prober/socket: connection refused)", "systemctl start multihomed-prober.socket"
			for i := range s.failover.Uplinks {
				u := &s.failover.Uplinks[i]
				u.Report = health.Report{State: health.Unprobed}
				u.Unwatched, u.RouterOnly = "there is no prober", false
			}
			return s
		}, true},
		{"failover-tested", func() situation {
			s := deadUplink()
			u := &s.failover.Uplinks[0]
			u.Why, u.Evidence, u.Tested = "an administrator declared it dead for a test", health.Evidence{Kind: health.ByTest}, at(17, 5, 32)
			return s
		}, true},
		{"failover-shared", func() situation {
			s := watched()
			s.unbound[routing.IPv4] = status.Unbound{Interface: "enp2s0", Table: 10999}
			s.moves.Shares = map[int]uint8{2: 3, 3: 1}
			return s
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := c.make()
			v := s.view()
			shown := v.Status(check.Problems(v, s.files), "1.2.3")
			if shown.OK != c.ok {
				t.Errorf("ok is %t: %+v, %+v", shown.OK, shown.InForce, shown.Problems)
			}
			var text bytes.Buffer
			if err := cli.Render(&text, shown, false, 80, false); err != nil {
				t.Fatal(err)
			}
			golden.Compare(t, "situations/"+c.name+".txt", text.Bytes())
			fits(t, text.String(), false)
		})
	}
}

// TestVerboseSituation: what is only of interest to who looks closely is shown to nobody
// else, and is no fault; all rules of other programs are.
func TestVerboseSituation(t *testing.T) {
	s := laptop()
	s.cfg.Links = []config.Link{{Matcher: config.Matcher{Interface: "usb*"}, LastResort: new(true)}}
	for n := range 10 {
		s.rule(routing.IPv4, routing.ForeignRule{Rule: routing.Rule{Priority: routing.Priority(30000 + n), Mark: routing.Mark{Value: 1, Mask: 1}, Table: routing.TableID(200 + n), Unknown: true}})
	}
	v := s.view()
	shown := v.Status(check.Problems(v, s.files), "1.2.3")
	if !shown.OK {
		t.Errorf("problems %+v", shown.Problems)
	}
	for _, verbose := range []bool{false, true} {
		var text bytes.Buffer
		if err := cli.Render(&text, shown, false, 80, verbose); err != nil {
			t.Fatal(err)
		}
		if got := bytes.Contains(text.Bytes(), []byte(`[[link]] with interface = "usb*"`)); got != verbose {
			t.Errorf("verbose %t:\n%s", verbose, text.String())
		}
		for n := range 10 {
			if got := bytes.Contains(text.Bytes(), fmt.Appendf(nil, "    -4 %d: ", 30000+n)); got != (verbose || n < 6) {
				t.Errorf("verbose %t, rule %d:\n%s", verbose, n, text.String())
			}
		}
	}
}

// switchOff takes links away as the owners do.
func (s *situation) switchOff(names ...string) {
	for _, name := range names {
		why, _ := s.off.Of(name, "")
		i := slices.IndexFunc(s.links, func(l routing.Link) bool { return l.Name == name })
		l := s.links[i]
		s.links = slices.Delete(s.links, i, i+1)
		s.others = append(s.others, routing.Interface{Name: name, Index: l.Index, Up: true, Carrier: true, Addresses: l.Addresses})
		s.claims[name] = reconcile.Claim{Why: why, Profile: s.claims[name].Profile, Type: s.claims[name].Type}
	}
}
