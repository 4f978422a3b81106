package check_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"multihomed/internal/config"
	"multihomed/internal/offswitch"
	"multihomed/internal/status"
	"multihomed/internal/status/check"
	"multihomed/internal/status/view"
	"multihomed/internal/status/view/viewtest"
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// TestWhatComesUp: a link that is being brought up gets its addresses before its gateway.
// That is no finding, whichever family is first and whatever the router says: a router
// advertisement with lifetime 0 brings no default at all.
func TestWhatComesUp(t *testing.T) {
	dhcp := routing.Intent{Automatic: true}
	for name, prefix := range map[string]string{"DHCP is pending": "2001:db8::7/64", "the router is pending": "198.51.100.7/24"} {
		for _, group := range []uint32{0, 28008} {
			l := viewtest.Uplink("wan0", 2, prefix, "")
			l.Pending, l.Group = true, group
			l.Intents = map[routing.Family]routing.Intent{routing.IPv4: dhcp, routing.IPv6: dhcp}
			v := viewtest.Of(l, viewtest.WAN(1))
			claim(v, "wan0", func(c *reconcile.Claim) { c.Pending = true })
			expect(t, v, files())
			if s := v.Status(nil, "1"); !s.Links[0].Pending || s.Links[1].Pending {
				t.Errorf("%s, group %d: %+v", name, group, s.Links)
			}
		}
	}
	// It is up, and one family has no default: in that it is a local link, and needs none,
	// unless it had one.
	l := viewtest.Uplink("wan0", 2, "198.51.100.7/24", "198.51.100.1")
	l.Addresses = append(l.Addresses, routing.Address{Prefix: netip.MustParsePrefix("fd00:1::7/64"), Dynamic: true})
	l.Routes = append(l.Routes, routing.Route{Family: routing.IPv6, Table: routing.TableMain, Destination: netip.MustParsePrefix("fd00:1::/64"), Type: routing.RouteUnicast, Device: 2, Scope: routing.ScopeLink})
	expect(t, viewtest.Of(l), files())
	if got := viewtest.Of(l).Status(nil, "1").Links[0]; got.Role != "uplink" || got.Roles["ipv4"].Role != "uplink" || got.Roles["ipv6"].Role != "local" || got.Roles["ipv6"].Why == "" {
		t.Errorf("the roles of %+v", got)
	}
	l.WasUplink.Set(routing.IPv6, true)
	expect(t, viewtest.Of(l), files(), want{code: "no-default", severity: routing.Notice, link: "wan0", text: []string{"fd00:1::/64"}, fix: "set gateway in [[link]]"})
}

// TestWaiting: the daemon gives NetworkManager some time before it is a problem that
// nobody knows the links. There is one problem then, and not one more of status.
func TestWaiting(t *testing.T) {
	look := func(problems ...routing.Problem) *view.View {
		state := view.Daemon{Ready: true, Waiting: "NetworkManager is not running", Problems: problems}
		return view.FromSnapshot(config.Default(), &reconcile.Snapshot{Policy: routing.DefaultPolicy()}, state, nm.Status{}, false, offswitch.State{})
	}
	expect(t, look(), files(), want{code: "network-manager", severity: routing.Notice, text: []string{"waiting: NetworkManager is not running"}})
	expect(t, look(routing.Problem{Code: routing.WaitsForOwners, Severity: routing.Warning, Text: "multihomed is waiting"}), files(),
		want{code: routing.WaitsForOwners, severity: routing.Warning, fix: "systemctl start NetworkManager"})
}

// TestOwnGateway: a gateway that is the link's own address leads nowhere.
func TestOwnGateway(t *testing.T) {
	own := netip.MustParseAddr("198.51.100.7")
	set := func(c *reconcile.Claim) {
		c.Profile, c.Intents = "Fibre", map[routing.Family]routing.Intent{routing.IPv4: {Gateway: own}}
	}
	cfg := config.Default()
	for name, c := range map[string]struct {
		links []config.Link
		fix   string
	}{
		"by the configuration": {[]config.Link{{Matcher: config.Matcher{Interface: "wan*"}, Gateways: []netip.Addr{own}}}, "[[link]]"},
		"by the profile":       {nil, "nmcli connection edit Fibre"},
	} {
		cfg.Links = c.links
		v := view.FromSnapshot(cfg, viewtest.Snapshot(viewtest.WAN(0)), view.Daemon{Ready: true}, nm.Status{Running: true, Complete: true}, false, offswitch.State{})
		claim(v, "wan0", set)
		t.Run(name, func(t *testing.T) {
			expect(t, v, files(), want{code: routing.OwnGateway, severity: routing.Error, link: "wan0", text: []string{"198.51.100.7, is an address of wan0 itself"}, fix: c.fix})
		})
	}
}

// TestEntriesThatMatchNothing are said, and are no fault: a modem may be unplugged.
func TestEntriesThatMatchNothing(t *testing.T) {
	cfg := config.Default()
	cfg.Links = []config.Link{
		{Matcher: config.Matcher{Interface: "wan0"}},
		{Matcher: config.Matcher{Profile: "Fibre"}},
		{Matcher: config.Matcher{Type: "ethernet"}},
		{Matcher: config.Matcher{Interface: "wan9"}},
		{Matcher: config.Matcher{Interface: "wan0", Type: "gsm"}},
	}
	cfg.Exclude = []config.Matcher{{Interface: "w?n1"}, {Profile: "LTE"}}
	cfg.Failover.Prefer = []config.Name{"wan1", "Fibre", "wlan*"}
	cfg.Share.Weights = []config.Weight{{Name: "usb0", Weight: 1}, {Name: "w*", Weight: 2}}
	s := viewtest.Snapshot(viewtest.WAN(0), viewtest.WAN(1))
	s.Claims["wan0"] = reconcile.Claim{Standing: reconcile.Link, Profile: "Fibre", Type: "veth"}
	v := view.FromSnapshot(cfg, s, view.Daemon{Ready: true}, nm.Status{Running: true, Complete: true}, false, offswitch.State{})
	notice := func(text string) want {
		return want{code: routing.MatchesNothing, severity: routing.Notice, text: []string{text, "matches no interface"}}
	}
	expect(t, v, files(), notice(`[[link]] with interface = "wan9"`), notice(`[[link]] with interface = "wan0", type = "gsm"`), notice(`[[exclude]] with profile = "LTE"`),
		notice(`"wlan*" in prefer of [failover]`), notice(`"usb0" in weights of [share]`))
	if got := v.Status(check.Problems(v, files()), "1"); !got.OK {
		t.Errorf("not ok: %+v", got.Problems)
	}
	// Not knowing is not emptiness.
	v.NM.Complete = false
	expect(t, v, files(), want{code: "network-manager", severity: routing.Notice})
}

// TestEntriesThatAreMisspelt: what exists and is near is proposed, whatever the list, unless the
// list has it already; a pattern is no misspelling.
func TestEntriesThatAreMisspelt(t *testing.T) {
	s := viewtest.Snapshot(viewtest.WAN(0), viewtest.WAN(1))
	s.Claims["wan0"] = reconcile.Claim{Standing: reconcile.Link, Profile: "Fibre", Type: "ethernet"}
	s.Claims["wan1"] = reconcile.Claim{Standing: reconcile.Link, Profile: "Cable", Type: "ethernet"}
	matchers := func(names ...string) (all []config.Matcher) {
		for _, n := range names {
			all = append(all, config.Matcher{Interface: n})
		}
		return all
	}
	for name, c := range map[string]struct {
		set  func(*config.Config)
		says string
	}{
		"link by interface": {func(c *config.Config) { c.Links = []config.Link{{Matcher: config.Matcher{Interface: "wn0"}}} }, `interface = "wn0" in the configuration matches no interface of this host at present; did you mean "wan0"?`},
		"link by profile":   {func(c *config.Config) { c.Links = []config.Link{{Matcher: config.Matcher{Profile: "fiber"}}} }, `profile = "fiber" in the configuration matches no interface of this host at present; did you mean "Fibre"?`},
		"link by both": {func(c *config.Config) {
			c.Links = []config.Link{{Matcher: config.Matcher{Interface: "wan0", Profile: "Cabel"}}}
		}, `did you mean "Cable"?`},
		"link of another one": {func(c *config.Config) {
			c.Links = []config.Link{{Matcher: config.Matcher{Interface: "wan0", Profile: "Cable"}}}
		}, "at present"},
		"include":             {func(c *config.Config) { c.Include = matchers("Wann1") }, `did you mean "wan1"?`},
		"exclude":             {func(c *config.Config) { c.Exclude = matchers("wan1x") }, `did you mean "wan1"?`},
		"prefer by interface": {func(c *config.Config) { c.Failover.Prefer = []config.Name{"wna1"} }, `did you mean "wan1"?`},
		"prefer by profile":   {func(c *config.Config) { c.Failover.Prefer = []config.Name{"Fibr"} }, `did you mean "Fibre"?`},
		"share":               {func(c *config.Config) { c.Share.Weights = []config.Weight{{Name: "wan", Weight: 1}} }, `did you mean "wan0"?`},
		"all are there":       {func(c *config.Config) { c.Failover.Prefer = []config.Name{"wan0", "wan1", "wan2"} }, "at present"},
		"a pattern":           {func(c *config.Config) { c.Exclude = matchers("wn*") }, "at present"},
		"nothing near":        {func(c *config.Config) { c.Exclude = matchers("wlp3s0") }, "at present"},
	} {
		cfg := config.Default()
		c.set(&cfg)
		v := view.FromSnapshot(cfg, s, view.Daemon{Ready: true}, nm.Status{Running: true, Complete: true}, false, offswitch.State{})
		if got := check.Entries(v); len(got) != 1 || got[0].Severity != routing.Notice || !strings.HasSuffix(got[0].Text, c.says) {
			t.Errorf("%s: %+v, want %q", name, got, c.says)
		}
	}
}

// TestRuleAtOurPriorityIsShown: whether a rule of somebody else at a priority of ours is for
// bound traffic, too, is a matter of their order.
func TestRuleAtOurPriorityIsShown(t *testing.T) {
	his := routing.Rule{Family: routing.IPv4, Priority: routing.PrioritySource, Action: routing.ActionLookup, Table: 77}
	for place, behind := range map[string]bool{status.Ahead: false, status.Behind: true} {
		s := viewtest.Snapshot(viewtest.WAN(0))
		order := []routing.Rule{his}
		for r := range s.Rules() {
			if r.Rule.Family == his.Family && r.Rule.Priority == his.Priority {
				order = append(order, r.Rule)
			}
		}
		if behind {
			slices.Reverse(order)
		}
		s.Others[0] = slices.Insert(s.Others[0], 1, routing.ForeignRule{Rule: his})
		s.Mixed[0] = map[routing.Priority][]routing.Rule{his.Priority: order}
		v := view.FromSnapshot(config.Default(), s, view.Daemon{Ready: true}, nm.Status{Running: true, Complete: true}, false, offswitch.State{})
		want := []status.OtherRule{{Family: "ipv4", Text: his.String(), Place: place}}
		if got := v.Status(nil, "1").OtherRules; len(order) < 2 || !slices.Equal(got, want) {
			t.Errorf("rules of others are %+v, want %+v", got, want)
		}
	}
}
