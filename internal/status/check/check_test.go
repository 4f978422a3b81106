package check_test

import (
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"multihomed/internal/status"
	"multihomed/internal/status/check"
	"multihomed/internal/status/outcome"
	"multihomed/internal/status/view"
	"multihomed/internal/status/view/viewtest"
	"multihomed/internal/unitfile"
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

func planner(v *view.View) *routing.Planner { return v.Planner.(*routing.Planner) }

// others adds rules of somebody else to those of the kernel; all are of IPv4.
func others(v *view.View, rules ...routing.Rule) {
	var all []routing.ForeignRule
	for _, r := range rules {
		r.Family = routing.IPv4
		if r.Action == 0 {
			r.Action = routing.ActionLookup
		}
		all = append(all, routing.ForeignRule{Rule: r})
	}
	foreign(v, all...)
}

func foreign(v *view.View, rules ...routing.ForeignRule) {
	all := append(viewtest.Kernels(routing.IPv4), rules...)
	slices.SortStableFunc(all, func(a, b routing.ForeignRule) int { return int(a.Rule.Priority) - int(b.Rule.Priority) })
	planner(v).SetForeign(routing.IPv4, all)
}

// files are given as path and content in turn.
func files(pairs ...string) fstest.MapFS {
	root := fstest.MapFS{}
	for i := 0; i+1 < len(pairs); i += 2 {
		root[pairs[i]] = &fstest.MapFile{Data: []byte(pairs[i+1])}
	}
	return root
}

func conf(name, key, value string) []string {
	return []string{"proc/sys/net/ipv4/conf/" + name + "/" + key, value + "\n"}
}

// claim says of a link what its owner says.
func claim(v *view.View, name string, change func(*reconcile.Claim)) {
	c := v.Claims[name]
	change(&c)
	v.Claims[name] = c
}

// A want is one finding: words that its text and its fix must have.
type want struct {
	code     routing.Code
	severity routing.Severity
	link     string
	text     []string
	fix      string
}

func expect(t *testing.T, v *view.View, root fstest.MapFS, wants ...want) {
	t.Helper()
	found := check.Problems(v, root)
	for _, w := range wants {
		i := slices.IndexFunc(found, func(f routing.Problem) bool { return f.Code == w.code && f.Link == w.link })
		if i < 0 {
			t.Errorf("no %s of %q in %+v", w.code, w.link, found)
			continue
		}
		f := found[i]
		found = slices.Delete(found, i, i+1)
		if f.Severity != w.severity || !strings.Contains(f.Fix, w.fix) || (w.fix == "") != (f.Fix == "") {
			t.Errorf("%s is %v, fix %q, want %v, %q", w.code, f.Severity, f.Fix, w.severity, w.fix)
		}
		for _, text := range w.text {
			if !strings.Contains(f.Text, text) {
				t.Errorf("%s says %q, want %q in it", w.code, f.Text, text)
			}
		}
	}
	for _, f := range found {
		t.Errorf("not expected: %+v", f)
	}
}

func TestSoundHostHasNoFindings(t *testing.T) {
	expect(t, viewtest.Of(viewtest.WAN(0), viewtest.WAN(1)), files())
}

func TestDaemon(t *testing.T) {
	v := viewtest.Of(viewtest.WAN(0))
	v.Running = false
	expect(t, v, files(), want{code: "daemon", severity: routing.Warning, text: []string{"not running", "hooks follow"}, fix: "systemctl enable --now multihomed"})

	v = viewtest.Of(viewtest.WAN(0))
	v.Running, v.Unit = false, unitfile.Disabled
	expect(t, v, files(), want{code: "daemon", severity: routing.Warning, text: []string{"multihomed.service is disabled", "neither"}, fix: "multihomectl off"})
	v.Unit, v.Start = unitfile.Masked, "systemctl unmask multihomed"
	expect(t, v, files(), want{code: "daemon", severity: routing.Warning, text: []string{"multihomed.service is masked", "neither"}, fix: "systemctl unmask multihomed; or remove"})

	v = viewtest.Of(viewtest.WAN(0))
	v.Daemon.Problems = []routing.Problem{
		{Code: routing.NoTable, Severity: routing.Error, Link: "wan9", Text: "no routing table is left", Fix: "widen [tables]"},
		{Code: "repairs", Severity: routing.Warning, Text: "somebody takes our rules away"},
	}
	expect(t, v, files(),
		want{code: routing.NoTable, severity: routing.Error, link: "wan9", text: []string{"no routing table is left"}, fix: "widen [tables]"},
		want{code: "repairs", severity: routing.Warning, text: []string{"takes our rules"}})
}

// TestSilent: a daemon that hangs maintains nothing.
func TestSilent(t *testing.T) {
	v := viewtest.Of(viewtest.WAN(0))
	v.Silent, v.Daemon.Ready, v.Daemon.PID = true, false, 42
	expect(t, v, files(), want{code: "daemon", severity: routing.Error, text: []string{"process 42", "does not answer"}, fix: "systemctl restart multihomed"})
}

func TestNetworkManager(t *testing.T) {
	v := viewtest.Of(viewtest.WAN(0))
	v.NM.Status = nm.Status{Running: true, Reason: "it is starting"}
	expect(t, v, files(), want{code: "network-manager", severity: routing.Notice, text: []string{"not ready (it is starting)"}})
	v.NM.Status = nm.Status{}
	expect(t, v, files(), want{code: "network-manager", severity: routing.Warning, text: []string{"is not running"}, fix: "systemctl start NetworkManager"})
	v.ManagerUnread = "no bus"
	expect(t, v, files(), want{code: "network-manager", severity: routing.Warning, text: []string{"cannot be asked", "no bus"}})
}

func TestNotInForce(t *testing.T) {
	v := viewtest.Of(viewtest.WAN(0))
	rules := slices.Collect(v.Planner.Rules())
	v.Missing = []routing.Op{
		{Verb: routing.AddRule, Rule: rules[0].Rule, Reason: rules[0].Reason},
		{Verb: routing.DeleteRule, Rule: routing.Rule{Family: routing.IPv4, Priority: 10000, Action: routing.ActionLookup, Table: 10900, Protocol: routing.Multihomed}},
	}
	expect(t, v, files(), want{code: "not-in-force", severity: routing.Error, text: []string{"1 of 8", "although multihomed is running", "1 rule or route of multihomed belongs to no link"}, fix: "journalctl"})
	v.Daemon.Ready = false
	expect(t, v, files(), want{code: "not-in-force", severity: routing.Error, text: []string{"has just started"}})
	v.Running = false
	expect(t, v, files(), want{code: "not-in-force", severity: routing.Error, text: []string{"multihomed is not running, and 1 of 8"}, fix: "systemctl enable"})

	// A host on which it never ran: no table, so nothing can be planned.
	l := viewtest.WAN(0)
	l.Tables = map[routing.Key]routing.TableID{}
	l.Group = 0
	v = viewtest.Of(l)
	v.Running = false
	v.Missing = []routing.Op{{Verb: routing.SetGroup, Index: l.Index, Group: 28008}}
	expect(t, v, files(), want{code: "not-in-force", severity: routing.Error, text: []string{"no rule or route of it is in force"}, fix: "systemctl enable"})
}

func TestNoTable(t *testing.T) {
	l := viewtest.WAN(0)
	l.Tables = map[routing.Key]routing.TableID{}
	v := viewtest.Of(l)
	expect(t, v, files(), want{code: "no-table", severity: routing.Error, link: "wan0", text: []string{"198.51.100.0/24"}, fix: "journalctl"})
	v.LeasesUnread = "not for this user"
	expect(t, v, files(), want{code: "no-table", severity: routing.Error, link: "wan0", text: []string{"198.51.100.0/24"}, fix: "as root"})
}

func TestDuplicateAddress(t *testing.T) {
	l := viewtest.WAN(0)
	l.Addresses = append(l.Addresses, routing.Address{Prefix: netip.MustParsePrefix("198.51.100.8/24"), Failed: true})
	expect(t, viewtest.Of(l), files(), want{code: "duplicate-address", severity: routing.Error, link: "wan0", text: []string{"198.51.100.8 is used by another host"}, fix: "nmcli device reapply wan0"})
}

func TestForeignGroup(t *testing.T) {
	l := viewtest.WAN(0)
	l.Group = 7
	v := viewtest.Of(l)
	planner(v).SetGroups(map[uint32]int{7: 2})
	expect(t, v, files(), want{code: routing.ForeignGroup, severity: routing.Warning, link: "wan0", text: []string{"interface group 7"}, fix: "ip link set wan0 group default"})
	for _, p := range check.Problems(v, files()) {
		if p.Code == routing.ForeignGroup && p.Commands != "ip link set dev wan0 group default" {
			t.Errorf("the commands are %q", p.Commands)
		}
	}
	// It tells uplinks as well as ours where it holds nothing else.
	planner(v).SetGroups(map[uint32]int{7: 1})
	expect(t, v, files())
}

func TestDevices(t *testing.T) {
	v := viewtest.Of(viewtest.WAN(0))
	v.Claims["eth9"] = reconcile.Claim{Problems: []string{"State has the type s"}}
	expect(t, v, files(), want{code: routing.NotUnderstood, severity: routing.Warning, link: "eth9", text: []string{"State has the type s"}})
}

func TestReversePath(t *testing.T) {
	modem0 := viewtest.Uplink("usb0", 4, "192.168.8.100/24", "192.168.8.1")
	modem1 := viewtest.Uplink("usb1", 5, "192.168.8.100/24", "192.168.8.1")
	for _, c := range []struct {
		name  string
		files []string
		fix   string
	}{
		{"off", nil, ""},
		{"loose", conf("all", "rp_filter", "2"), ""},
		{"strict by all", conf("all", "rp_filter", "1"), "sysctl -w net.ipv4.conf.usb0.rp_filter=2 net.ipv4.conf.usb1.rp_filter=2"},
		{"strict on one", conf("usb1", "rp_filter", "1"), "sysctl -w net.ipv4.conf.usb1.rp_filter=2"},
		{"the larger counts", slices.Concat(conf("all", "rp_filter", "1"), conf("usb0", "rp_filter", "2"), conf("usb1", "rp_filter", "2")), ""},
		{"not a number", conf("usb1", "rp_filter", "yes"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var wants []want
			if c.fix != "" {
				wants = append(wants, want{code: "rp-filter", severity: routing.Warning, link: "usb1", text: []string{"usb0 has the address 192.168.8.100 too", "are dropped"}, fix: c.fix})
			}
			expect(t, viewtest.Of(modem0, modem1), files(c.files...), wants...)
		})
	}
	// Strictness alone does no harm: the rules by source make it pass.
	expect(t, viewtest.Of(viewtest.WAN(0), viewtest.WAN(1)), files(conf("all", "rp_filter", "1")...))
}

func TestARP(t *testing.T) {
	lan0, lan1 := viewtest.Uplink("lan0", 4, "192.168.1.10/24", ""), viewtest.Uplink("lan1", 5, "192.168.1.11/24", "")
	lan0.Group, lan1.Group = 0, 0
	right := slices.Concat(conf("all", "arp_ignore", "1"), conf("all", "arp_announce", "2"))
	finding := want{code: "arp", severity: routing.Warning, link: "lan0", text: []string{"lan0 and lan1 are in one network (192.168.1.0/24)"}, fix: "sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2"}
	arp := func(lines ...string) []string {
		text := "IP address       HW type     Flags       HW address            Mask     Device\n"
		return []string{"proc/net/arp", text + strings.Join(lines, "\n") + "\n"}
	}
	one := arp("192.168.1.1 0x1 0x2 52:54:00:00:00:01 * lan0", "192.168.1.1 0x1 0x2 52:54:00:00:00:01 * lan1")
	other := arp("192.168.1.11 0x1 0x2 52:54:00:00:00:11 * lan0")
	two := arp("192.168.1.1 0x1 0x2 52:54:00:00:00:01 * lan0", "192.168.1.1 0x1 0x2 52:54:00:00:00:02 * lan1")
	unresolved := arp("192.168.1.1 0x1 0x0 00:00:00:00:00:00 * lan0", "192.168.1.1 0x1 0x0 00:00:00:00:00:00 * lan1")
	expect(t, viewtest.Of(lan0, lan1), files(one...), finding)
	expect(t, viewtest.Of(lan0, lan1), files(other...), finding)
	expect(t, viewtest.Of(lan0, lan1), files(slices.Concat(one, right[:2])...), finding)
	expect(t, viewtest.Of(lan0, lan1), files(slices.Concat(one, right)...))
	// Two routers that use the same network are two networks.
	expect(t, viewtest.Of(lan0, lan1), files(two...))
	expect(t, viewtest.Of(lan0, lan1), files(unresolved...))
	expect(t, viewtest.Of(lan0, lan1), files())
	expect(t, viewtest.Of(lan0), files())
	// The same address twice: not one network, but two that look the same.
	expect(t, viewtest.Of(viewtest.Uplink("usb0", 4, "192.168.8.100/24", "192.168.8.1"), viewtest.Uplink("usb1", 5, "192.168.8.100/24", "192.168.8.1")), files())
	// Point to point there is no ARP.
	expect(t, viewtest.Of(viewtest.Uplink("ppp0", 4, "10.64.64.64/32", "10.64.64.65"), viewtest.Uplink("ppp1", 5, "10.64.64.66/32", "10.64.64.65")), files())
}

// TestSharedAddress: nothing can be done on this host, and what is said names the link that
// is reached by its device alone.
func TestSharedAddress(t *testing.T) {
	v := viewtest.Of(viewtest.WAN(0), viewtest.WAN(1))
	address := netip.MustParseAddr("192.168.8.100")
	v.Shared = []outcome.Shared{{Address: address, Links: []string{"wan0", "wan1"}, Device: "wan0"}}
	expect(t, v, files(), want{
		code: "shared-address", severity: routing.Warning, link: "wan1", fix: "curl --interface wan1",
		text: []string{"wan0 and wan1 have the same address 192.168.8.100", "leave by wan0 alone, also answers to what arrives by wan1"},
	})
	v.Shared[0].Device = "wan1"
	expect(t, v, files(), want{
		code: "shared-address", severity: routing.Warning, link: "wan0", fix: "curl --interface wan0", text: []string{"leave by wan1 alone, also answers to what arrives by wan0"},
	})
	v.Shared[0].Device = ""
	expect(t, v, files(), want{code: "shared-address", severity: routing.Warning, link: "wan0", fix: "curl --interface wan0", text: []string{"does not tell by which of them"}})
}

func TestNoDefault(t *testing.T) {
	l := viewtest.WAN(0)
	l.Routes[1].Destination = netip.MustParsePrefix("10.0.0.0/8")
	expect(t, viewtest.Of(l), files()) // a local link needs none
	l.WasUplink.Set(routing.IPv4, true)
	expect(t, viewtest.Of(l), files(), want{code: "no-default", severity: routing.Notice, link: "wan0", text: []string{"198.51.100.0/24", "table 10000", "unreachable"}, fix: "set gateway in [[link]]"})
	l.Up = false
	expect(t, viewtest.Of(l), files())
}

func TestMainRule(t *testing.T) {
	v := viewtest.Of(viewtest.WAN(0))
	planner(v).SetForeign(routing.IPv6, viewtest.Kernels(routing.IPv6)[:1])
	expect(t, v, files(), want{code: "main-rule", severity: routing.Warning, text: []string{"32766", "ipv6"}, fix: "ip -6 rule add from all lookup main priority 32766"})
	// A kernel without IPv6 has no rules of it.
	planner(v).SetForeign(routing.IPv6, nil)
	expect(t, v, files())
	// Another rule for main does the same.
	elsewhere := viewtest.Kernels(routing.IPv4)
	elsewhere[1].Rule.Priority, elsewhere[1].Rule.IIF = 30000, "lo"
	planner(v).SetForeign(routing.IPv4, elsewhere)
	expect(t, v, files())
}

// TestMainRuleReplaced: where others say who uses main, nobody is told to undo it, and nothing
// is said of rules of ours that do not stand.
func TestMainRuleReplaced(t *testing.T) {
	marked := routing.Mark{Value: 1, Mask: 1}
	for name, c := range map[string]struct {
		rule routing.Rule
		want string
	}{
		"a mark":        {routing.Rule{Priority: 32766, Table: routing.TableMain, Mark: marked}, "32766: from all fwmark 0x1/0x1 lookup main"},
		"no default":    {routing.Rule{Priority: 32766, Table: routing.TableMain, SuppressPrefixLength: routing.Some(0)}, "32766: from all lookup main suppress_prefixlength 0"},
		"all but one":   {routing.Rule{Priority: 100, Table: routing.TableMain, Invert: true, Mark: marked}, "100: not from all fwmark 0x1/0x1 lookup main"},
		"half":          {routing.Rule{Priority: 32766, Table: routing.TableMain, From: netip.MustParsePrefix("0.0.0.0/1")}, "32766: from 0.0.0.0/1 lookup main"},
		"a tunnel":      {routing.Rule{Priority: 32765, Table: 51, Invert: true, Mark: marked}, "32765: not from all fwmark 0x1/0x1 lookup 51"},
		"a full tunnel": {routing.Rule{Priority: 32765, Table: 51}, "32765: from all lookup 51"},
		"a refusal":     {routing.Rule{Priority: 33000, Action: routing.ActionUnreachable}, "33000: from all unreachable"},
	} {
		t.Run(name, func(t *testing.T) {
			v := viewtest.Of(viewtest.WAN(0))
			c.rule.Family = routing.IPv4
			if c.rule.Action == 0 {
				c.rule.Action = routing.ActionLookup
			}
			rules := viewtest.Kernels(routing.IPv4)
			planner(v).SetForeign(routing.IPv4, []routing.ForeignRule{rules[0], {Rule: c.rule}, rules[2]})
			expect(t, v, files(), want{code: "main-rule", severity: routing.Notice, text: []string{"ipv4", strconv.Quote(c.want), "as a kill switch intends"}})
			if p := check.Problems(v, files())[0]; p.Object != c.want || strings.Contains(p.Text, "91000") || strings.Contains(p.Text, "leaves") {
				t.Errorf("it says %+v", p)
			}
			// By a tunnel is as intended.
			v.Unbound = map[routing.Family]status.Unbound{routing.IPv4: {Interface: "tun0", Table: 51}}
			expect(t, v, files(), want{code: "main-rule", severity: routing.Notice})
			// By a table of ours is not.
			v.Unbound[routing.IPv4] = status.Unbound{Interface: "wan0", Table: 10000}
			expect(t, v, files(), want{code: "main-rule", severity: routing.Warning, text: []string{"leaves by wan0 all the same, by table 10000"}})
			claim(v, "wan0", func(c *reconcile.Claim) { c.LastResort = true })
			expect(t, v, files(), want{code: "main-rule", severity: routing.Warning, text: []string{"leaves by wan0 all the same"}, fix: "take last_resort out of the [[link]] of wan0"})
		})
	}
	// What selects has no say of the rest.
	v := viewtest.Of(viewtest.WAN(0))
	rules := viewtest.Kernels(routing.IPv4)
	planner(v).SetForeign(routing.IPv4, []routing.ForeignRule{rules[0], {Rule: routing.Rule{Family: routing.IPv4, Priority: 100, Action: routing.ActionLookup, Table: 51, Mark: marked}}, rules[2]})
	expect(t, v, files(), want{code: "main-rule", severity: routing.Warning, fix: "ip -4 rule add from all lookup main priority 32766"})
}

func TestTableInUse(t *testing.T) {
	v := viewtest.Of(viewtest.WAN(0))
	v.ForeignIn[10000] = "the route 10.9.0.0/16 dev if7 table 10000"
	expect(t, v, files(), want{code: "table-in-use", severity: routing.Warning, link: "wan0", text: []string{"table 10000", "10.9.0.0/16"}, fix: "[tables]"})
}

// TestUnknownRules: what nobody understands is not lifted, and said.
func TestUnknownRules(t *testing.T) {
	for _, c := range []struct {
		name  string
		rules []routing.Rule
		want  []want
	}{
		{"behind the ladder and inside of it", []routing.Rule{{Priority: 30000, Unknown: true, Table: 200}, {Priority: 9700, Unknown: true, Table: 201}}, []want{{
			code: "rule-unknown", severity: routing.Warning, fix: "below 7999",
			text: []string{"ipv4", `"30000: from all lookup 200 (and attributes that are unknown here)"`, `"9700: from all lookup 201`},
		}}},
		{"in front", []routing.Rule{{Priority: 100, Unknown: true, Table: 200}}, nil},
		{"for forwarded packets, or behind main", []routing.Rule{{Priority: 30000, IIF: "guest", Unknown: true, Table: 200}, {Priority: 32800, Unknown: true, Table: 200}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := viewtest.Of(viewtest.WAN(0), viewtest.Uplink("lan0", 9, "192.0.2.1/24", ""))
			others(v, c.rules...)
			expect(t, v, files(), c.want...)
		})
	}
}

func TestGotoThatOursResolve(t *testing.T) {
	leads := routing.Rule{Priority: 20, Action: routing.ActionGoto, Goto: routing.PrioritySource, Mark: routing.Mark{Value: 1, Mask: 1<<32 - 1}}
	behind, nowhere := leads, leads
	behind.Goto, nowhere.Goto = routing.PriorityAgain, 25000
	finding := want{
		code: "goto-resolved", severity: routing.Warning, fix: "ip -4 rule add priority 10000 nop",
		text: []string{`"20: from all fwmark 0x1 goto 10000"`, "only multihomed"},
	}
	for name, c := range map[string]struct {
		rules []routing.Rule
		want  []want
	}{
		"only ours stand there":         {[]routing.Rule{leads}, []want{finding}},
		"a rule of others stands there": {[]routing.Rule{leads, {Priority: routing.PrioritySource, Action: routing.ActionNop}}, nil},
		"ours stand elsewhere":          {[]routing.Rule{behind}, nil},
		"nothing stands there":          {[]routing.Rule{nowhere}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			v := viewtest.Of(viewtest.WAN(0), viewtest.WAN(1))
			others(v, c.rules...)
			expect(t, v, files(), c.want...)
		})
	}
}

// TestStrays: what takes bound traffic away is named; whoever only has a say is listed, and
// no finding.
func TestStrays(t *testing.T) {
	v := viewtest.Of(viewtest.WAN(0))
	tunnel := routing.Rule{Family: routing.IPv4, Priority: 9018, Action: routing.ActionLookup, Table: 51820, Invert: true, Mark: routing.Mark{Value: 51820, Mask: 0xffffffff}}
	known := routing.Rule{Family: routing.IPv4, Priority: 9017, Action: routing.ActionLookup, Table: routing.TableMain, SuppressPrefixLength: routing.Some(0)}
	ahead := routing.Rule{Family: routing.IPv4, Priority: 5270, Action: routing.ActionLookup, Table: 52}
	behind := routing.Rule{Family: routing.IPv4, Priority: 30000, Action: routing.ActionLookup, Table: 53}
	marked := routing.Rule{Family: routing.IPv4, Priority: 30001, Mark: routing.Mark{Value: 1, Mask: 1}, Action: routing.ActionLookup, Table: 200}
	guests := routing.Rule{Family: routing.IPv4, Priority: 100, IIF: "guest", Action: routing.ActionProhibit}
	foreign(v, routing.ForeignRule{Rule: guests}, routing.ForeignRule{Rule: known, Numbered: true}, routing.ForeignRule{Rule: tunnel, Numbered: true},
		routing.ForeignRule{Rule: ahead}, routing.ForeignRule{Rule: behind}, routing.ForeignRule{Rule: marked})
	expect(t, v, files())
	got := v.Status(nil, "1").OtherRules
	want0 := []status.OtherRule{
		{Family: "ipv4", Text: ahead.String(), Place: status.Ahead},
		{Family: "ipv4", Text: tunnel.String(), Place: status.SteppedOver},
		{Family: "ipv4", Text: behind.String(), Place: status.Behind},
		{Family: "ipv4", Text: marked.String(), Place: status.Selects},
	}
	if !slices.Equal(got, want0) {
		t.Errorf("rules of others are %+v", got)
	}
	v.Strays = []outcome.Stray{{
		Probe: outcome.Probe{From: netip.MustParseAddr("198.51.100.7"), To: netip.MustParseAddr("8.1.1.1")}, Family: routing.IPv4,
		Link: "wan0", Device: "tun0", Rule: ahead, Parts: 221, All: 221,
	}}
	expect(t, v, files(), want{code: outcome.RuleAhead, severity: routing.Error, link: "wan0", text: []string{"5270: from all lookup 52", "leaves by tun0"}, fix: "give that rule a priority"})
}

// TestLiftThatYields: who deletes a rule by its words may hit the lift of it. That is
// no fault, and does not last.
func TestLiftThatYields(t *testing.T) {
	v := viewtest.Of(viewtest.WAN(0))
	rule := routing.Rule{Priority: 30000, IIF: "lo", IPProto: 1, Table: 200}
	others(v, rule)
	var lift routing.PlannedRule
	for r := range v.Planner.Rules() {
		if r.Yields {
			lift = r
		}
	}
	if lift.Reason.Decision != routing.LiftForeign {
		t.Fatal("nothing yields")
	}
	expect(t, v, files())
	v.Missing = []routing.Op{{Verb: routing.AddRule, Rule: lift.Rule, Reason: lift.Reason}}
	expect(t, v, files(), want{
		code: "lift-yields", severity: routing.Notice, fix: "ip rule del priority 30000",
		text: []string{`"30000: from all iif lo ipproto icmp lookup 200"`, "10 seconds"},
	})
	for _, o := range v.Objects() {
		if lifts := "30000: from all iif lo ipproto icmp lookup 200"; o.Reason.Decision == routing.LiftForeign && (o.State != status.Yielding || o.Link != "" || o.Lifts() != lifts) {
			t.Errorf("the lift is %+v", o)
		} else if o.Reason.Decision != routing.LiftForeign && o.Lifts() != "" {
			t.Errorf("%+v lifts %q", o, o.Lifts())
		}
	}
	// What stands behind it moves when it is back, and is in its place until then.
	other := routing.Rule{Priority: 31000, IIF: "lo", IPProto: 17, Table: 200}
	others(v, rule, other)
	for r := range v.Planner.Rules() {
		if r.Reason.Decision == routing.LiftForeign && r.Rule.Goto == other.Priority {
			v.Missing = append(v.Missing, routing.Op{Verb: routing.MoveRule, Rule: r.Rule, Reason: r.Reason})
		}
	}
	if len(v.Missing) != 2 {
		t.Fatalf("missing: %v", v.Missing)
	}
	expect(t, v, files(), want{code: "lift-yields", severity: routing.Notice, fix: "ip rule del priority 30000", text: []string{"10 seconds"}})
	v.Missing = v.Missing[1:]
	expect(t, v, files(), want{code: "not-in-force", severity: routing.Error, text: []string{"1 of"}, fix: "journalctl"})
	v.Missing = []routing.Op{{Verb: routing.AddRule, Rule: lift.Rule, Reason: lift.Reason}}
	// Nobody puts it back.
	v.Running = false
	expect(t, v, files(), want{code: "not-in-force", severity: routing.Error, text: []string{"1 of"}, fix: "systemctl enable"})
}

// TestPutBackLater: what the daemon puts back later on purpose is no error: the reason and
// the time are said.
func TestPutBackLater(t *testing.T) {
	v := viewtest.Of(viewtest.WAN(0), viewtest.WAN(1))
	his := routing.Rule{Priority: 100, From: netip.MustParsePrefix("203.0.113.7/32"), Table: 200}
	others(v, his)
	until := time.Date(2026, 11, 28, 15, 4, 5, 0, time.Local)
	var again routing.Rule
	for r := range v.Planner.Rules() {
		switch {
		case r.Reason.Decision == routing.FollowSource && r.Reason.Link == "wan1":
			v.Missing = append(v.Missing, routing.Op{Verb: routing.AddRule, Rule: r.Rule})
			v.Daemon.Away = append(v.Daemon.Away, reconcile.Away{Family: routing.IPv4, Text: r.Rule.String(), Until: until, His: "100: from 203.0.113.7 lookup 200"})
		case r.Reason.Decision == routing.FollowDevice && r.Reason.Link == "wan0":
			again = r.Rule
			v.Missing = append(v.Missing, routing.Op{Verb: routing.AddRule, Rule: r.Rule})
			v.Daemon.Away = append(v.Daemon.Away, reconcile.Away{Family: routing.IPv4, Text: r.Rule.String(), Until: until})
		}
	}
	for r := range v.Planner.Routes() {
		if r.Route.Device == 2 && r.Route.IsDefault() {
			v.Missing = append(v.Missing, routing.Op{Verb: routing.AddRoute, Route: r.Route})
			v.Daemon.Away = append(v.Daemon.Away, reconcile.Away{Family: routing.IPv4, Text: r.Route.Text("wan0"), Until: until})
		}
	}
	if len(v.Missing) != 3 {
		t.Fatalf("%d missing: %v", len(v.Missing), v.Missing)
	}
	expect(t, v, files(),
		want{code: "put-back-later", severity: routing.Notice, link: "wan1", fix: "ip rule del priority 100", text: []string{`probably for the ipv4 rule "100: from 203.0.113.7 lookup 200"`, "15:04:05", "10000: from 203.0.113.7 lookup"}},
		want{code: "put-back-later", severity: routing.Warning, link: "wan0", fix: "journalctl", text: []string{"keeps deleting", "15:04:05", again.String(), "default via 198.51.100.1 dev wan0 table"}},
	)
	// The daemon that names the culprit has said it.
	v.Daemon.Problems = []routing.Problem{{Code: routing.Disputed, Severity: routing.Warning, Link: "wan0", Object: again.String(), Text: "iptables-save (process 7) keeps deleting it", Fix: "stop it"}}
	expect(t, v, files(),
		want{code: "put-back-later", severity: routing.Notice, link: "wan1", fix: "priority"},
		want{code: routing.Disputed, severity: routing.Warning, link: "wan0", text: []string{"iptables-save"}, fix: "stop it"},
	)
	v.Daemon.Problems = nil
	// What nobody puts back is missing.
	v.Daemon.Away = nil
	expect(t, v, files(), want{code: "not-in-force", severity: routing.Error, text: []string{"3 of"}, fix: "journalctl"})
}

func TestRoutedDNS(t *testing.T) {
	v := viewtest.Of(viewtest.WAN(0))
	others(v, routing.Rule{Priority: 20053, Table: 20053})
	expect(t, v, files(), want{code: "routed-dns", severity: routing.Notice, text: []string{"routed-dns"}})
}

func TestNetworkd(t *testing.T) {
	const runs = "sys/fs/cgroup/system.slice/systemd-networkd.service/cgroup.procs"
	const no = "[Network]\nManageForeignRoutingPolicyRules=no\nManageForeignRoutes = false\n"
	finding := func(fix string) []want {
		return []want{{code: "networkd", severity: routing.Warning, text: []string{"systemd-networkd is running"}, fix: fix}}
	}
	both := finding("ManageForeignRoutingPolicyRules=no and ManageForeignRoutes=no into /etc/systemd/networkd.conf.d/multihomed.conf")
	for _, c := range []struct {
		name  string
		files []string
		want  []want
	}{
		{"not there", []string{"sys/fs/cgroup/system.slice/cron.service/cgroup.procs", "", "run/systemd/netif/state", ""}, nil},
		{"running", []string{runs, ""}, both},
		{"without control groups", []string{"run/systemd/netif/state", ""}, both},
		{"allowed in the main file", []string{runs, "", "etc/systemd/networkd.conf", no}, nil},
		{"in a drop-in", []string{runs, "", "usr/lib/systemd/networkd.conf.d/50-us.conf", no}, nil},
		{"one of two", []string{runs, "", "etc/systemd/networkd.conf", "[Network]\nManageForeignRoutes=no\n"}, finding("with ManageForeignRoutingPolicyRules=no into")},
		{"a later drop-in wins", []string{runs, "", "run/systemd/networkd.conf.d/50-us.conf", no, "etc/systemd/networkd.conf.d/60-them.conf", "[Network]\nManageForeignRoutes=yes\nManageForeignRoutingPolicyRules=1\n"}, both},
		{"hidden by an empty one", []string{runs, "", "usr/lib/systemd/networkd.conf.d/50-us.conf", no, "etc/systemd/networkd.conf.d/50-us.conf", ""}, both},
		{"another section, a comment, another name", []string{runs, "", "etc/systemd/networkd.conf", "[DHCPv4]\nManageForeignRoutes=no\n[Network]\n#ManageForeignRoutes=no\n", "etc/systemd/networkd.conf.d/x.conf.off", no}, both},
	} {
		t.Run(c.name, func(t *testing.T) { expect(t, viewtest.Of(viewtest.WAN(0)), files(c.files...), c.want...) })
	}
}

// TestOwners are hosts whose interfaces somebody else manages.
func TestOwners(t *testing.T) {
	const runs = "sys/fs/cgroup/system.slice/systemd-networkd.service/cgroup.procs"
	const owned, foreign = "ADMIN_STATE=configured\nOPER_STATE=routable\n", "ADMIN_STATE=unmanaged\n"
	host := func(alone bool, claimed ...routing.Link) *view.View {
		v := viewtest.Of(claimed...)
		v.NoManager = alone
		v.NM.Status = nm.Status{Absent: true}
		for i, name := range []string{"ens3", "ens4"} {
			v.Links[name] = routing.Interface{Index: 70 + i, Name: name, Addresses: []routing.Address{{Prefix: netip.MustParsePrefix("192.0.2.5/24")}}}
		}
		v.Links["docker0"] = routing.Interface{Index: 80, Name: "docker0", Kind: "bridge", Addresses: []routing.Address{{Prefix: netip.MustParsePrefix("172.17.0.1/16")}}}
		return v
	}
	ours := want{code: "networkd", severity: routing.Warning, text: []string{"systemd-networkd is running"}, fix: "restart systemd-networkd"}
	for _, c := range []struct {
		name  string
		view  *view.View
		files []string
		want  []want
	}{
		{
			"networkd alone", host(true),
			[]string{runs, "", "run/systemd/netif/links/70", owned, "run/systemd/netif/links/71", owned},
			[]want{{code: "manager", severity: routing.Error, text: []string{"does nothing on this host", "systemd-networkd manages ens3 and ens4"}, fix: "RoutingPolicyRule"}},
		},
		{
			"with a NetworkManager that is not started", host(false),
			[]string{runs, "", "run/systemd/netif/links/70", owned, "run/systemd/netif/links/71", owned},
			[]want{{code: "manager", severity: routing.Error, text: []string{"systemd-networkd manages ens3 and ens4"}, fix: "RoutingPolicyRule"}},
		},
		{
			"one interface of networkd beside links of ours", host(true, viewtest.WAN(0)),
			[]string{runs, "", "run/systemd/netif/links/70", owned, "run/systemd/netif/links/71", foreign},
			[]want{{code: "manager", severity: routing.Notice, text: []string{"systemd-networkd manages ens3: "}}, ours},
		},
		{
			"ConnMan", host(true),
			[]string{"sys/fs/cgroup/system.slice/connman.service/cgroup.procs", ""},
			[]want{{code: "manager", severity: routing.Error, text: []string{"connman manages ens3 and ens4"}, fix: "lease -i ens3"}},
		},
		{"nobody", host(true), nil, []want{{code: "manager", severity: routing.Error, text: []string{"nobody it knows manages ens3 and ens4"}, fix: "lease -i ens3"}}},
		{"addresses by hand beside links of ours", host(true, viewtest.WAN(0)), nil, nil},
		{"NetworkManager is away", host(false), nil, []want{{code: "network-manager", severity: routing.Warning, text: []string{"not running"}, fix: "systemctl start NetworkManager"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			expect(t, c.view, files(c.files...), c.want...)
			for _, f := range check.Problems(c.view, files(c.files...)) {
				if strings.Contains(f.Fix, "NetworkManager") && len(c.files) > 0 {
					t.Errorf("a second manager is advised: %s", f.Fix)
				}
			}
		})
	}
}

func TestDispatcher(t *testing.T) {
	const etc, usr = "etc/NetworkManager/dispatcher.d/90-multihomed", "usr/lib/NetworkManager/dispatcher.d/90-multihomed"
	script := func(mode fs.FileMode, uid uint32) *fstest.MapFile {
		return &fstest.MapFile{Data: []byte("x"), Mode: mode, Sys: &syscall.Stat_t{Uid: uid}}
	}
	ignored := func(why, fix string) []want {
		return []want{{code: "dispatcher", severity: routing.Warning, text: []string{"ignores /", "because " + why}, fix: fix}}
	}
	unit := func(root fstest.MapFS) fstest.MapFS {
		root["run/systemd/system/x"] = script(0, 0)
		root["usr/lib/systemd/system/NetworkManager-dispatcher.service"] = script(0o644, 0)
		return root
	}
	good := script(0o755, 0)
	for name, test := range map[string]struct {
		root  fstest.MapFS
		wants []want
	}{
		"good":             {fstest.MapFS{usr: good}, nil},
		"in no-wait.d":     {fstest.MapFS{usr: {Mode: fs.ModeSymlink, Data: []byte("no-wait.d/90-multihomed")}, "usr/lib/NetworkManager/dispatcher.d/no-wait.d/90-multihomed": good}, nil},
		"dangling":         {fstest.MapFS{usr: {Mode: fs.ModeSymlink, Data: []byte("no-wait.d/90-multihomed")}}, ignored("it leads to nothing", "install")},
		"somebody's":       {fstest.MapFS{usr: script(0o755, 1000)}, ignored("it does not belong to root", "chown root:root /"+usr)},
		"group":            {fstest.MapFS{usr: script(0o775, 0)}, ignored("others than root may write", "chmod go-w /"+usr)},
		"others":           {fstest.MapFS{usr: script(0o757, 0)}, ignored("others than root may write", "chmod go-w /"+usr)},
		"setuid":           {fstest.MapFS{usr: script(0o755|fs.ModeSetuid, 0)}, ignored("it is setuid", "chmod u-s")},
		"not executable":   {fstest.MapFS{usr: script(0o644, 0)}, ignored("it is not executable", "chmod +x")},
		"directory":        {fstest.MapFS{usr + "/x": good}, ignored("it is no regular file", "install")},
		"etc is first":     {fstest.MapFS{etc: script(0o775, 0), usr: good}, ignored("others than root may write", "chmod go-w /"+etc)},
		"switched off":     {fstest.MapFS{etc: {Mode: 0o644}, usr: script(0o777, 0)}, nil},
		"enabled":          {unit(fstest.MapFS{usr: good, "etc/systemd/system/dbus-org.freedesktop.nm-dispatcher.service": good}), nil},
		"not enabled":      {unit(fstest.MapFS{usr: good}), ignored("its dispatcher is not enabled", "systemctl enable NetworkManager-dispatcher")},
		"not there at all": {unit(fstest.MapFS{}), nil},
	} {
		t.Run(name, func(t *testing.T) { expect(t, viewtest.Of(viewtest.WAN(0)), test.root, test.wants...) })
	}
}
