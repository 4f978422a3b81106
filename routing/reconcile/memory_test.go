package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"pgregory.net/rapid"

	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// spoken is what an owner may say of a link that it knows, or does not know well yet.
var spoken = []struct {
	name  string
	claim reconcile.Claim
	// early claims come only while knowledge is not complete; full ones tell the
	// whole of the link.
	early, full bool
}{
	{name: "draining, not read", claim: reconcile.Claim{Standing: reconcile.Draining, Watched: true}},
	{name: "draining", claim: reconcile.Claim{Standing: reconcile.Draining, Watched: true, Profile: "office", UUID: "1-2-3"}},
	{name: "brought up", claim: reconcile.Claim{Standing: reconcile.Link, Watched: true, Pending: true, Profile: "office", UUID: "1-2-3"}, full: true},
	{name: "link", claim: reconcile.Claim{Standing: reconcile.Link, Watched: true, Profile: "office", UUID: "1-2-3"}, full: true},
	{name: "profile renamed", claim: reconcile.Claim{Standing: reconcile.Link, Watched: true, Profile: "home", UUID: "1-2-3"}, full: true},
	{name: "a hook's", claim: reconcile.Claim{Standing: reconcile.Link, Watched: true}, full: true},
	{name: "leased", claim: reconcile.Claim{Standing: reconcile.Link, Watched: true, Only: []netip.Addr{netip.MustParseAddr("100.64.0.6")}}, early: true},
	{name: "no link", claim: reconcile.Claim{Standing: reconcile.NoLink, Watched: true}},
}

// TestFormerUplinkIsNeverLost does random things to a link and to who speaks of it. As
// long as it keeps its address, its profile and its interface, it keeps the role
// that it had by a default, whenever the daemon is ended or killed.
func TestFormerUplinkIsNeverLost(t *testing.T) {
	runtime.LockOSThread()
	rapid.Check(t, func(rt *rapid.T) {
		h := newHost(t)
		defer h.nl.Close()
		defer func() { h.stop() }()
		r := &roles{host: h, rt: rt, name: "wan0", said: -1}
		h.veth(r.name)
		h.address(r.name, "100.64.0.5/24")
		for _, step := range rapid.SliceOfN(rapid.IntRange(0, 99), 30, 90).Draw(rt, "steps") {
			r.step(step)
		}
	})
}

// roles is a link to which random things happen.
type roles struct {
	*host
	rt   *rapid.T
	name string
	log  []string
	// said is what the owner said last, -1 if nothing; whole that it said all.
	said         int
	whole        bool
	second, gate bool
	// was says that the link was an uplink by a default.
	was bool
}

func (r *roles) step(n int) {
	switch {
	case n < 15:
		r.gate = !r.gate
		r.do(fmt.Sprintf("default %t", r.gate), func() { r.setDefault(r.gate) })
	case n < 45:
		r.say1(n % len(spoken))
	case n < 55 && r.said >= 0 && !spoken[r.said].early:
		r.whole = !r.whole
		r.do(fmt.Sprintf("complete %t", r.whole), func() { r.owners.complete(r.whole) })
	case n < 60:
		r.second = !r.second
		r.do(fmt.Sprintf("second address %t", r.second), func() {
			if r.second {
				r.address(r.name, "100.64.0.6/24")
			} else {
				r.deleteAddress(r.name, "100.64.0.6/24")
			}
		})
	case n < 65:
		r.rename()
	case n < 70:
		r.do("restart", r.again)
	case n < 78:
		r.killed(n % 8)
	default:
		r.do("pass", func() { r.pass() })
		r.seen()
		r.check()
	}
}

func (r *roles) do(what string, how func()) {
	r.log = append(r.log, what)
	how()
}

func (r *roles) say1(n int) {
	if spoken[n].early && r.whole {
		return
	}
	r.said = n
	r.do("owner: "+spoken[n].name, func() { r.say(r.name, spoken[n].claim) })
}

func (r *roles) setDefault(is bool) {
	route := &netlink.Route{LinkIndex: r.named(r.name).Attrs().Index, Gw: []byte{100, 64, 0, 1}, Priority: 100}
	if is {
		must(r, r.nl.RouteAdd(route))
	} else {
		must(r, r.nl.RouteDel(route))
	}
}

// rename renames the interface; the owner says the same of the other name.
func (r *roles) rename() {
	old := r.name
	r.name = map[string]string{"wan0": "wan9", "wan9": "wan0"}[old]
	r.do("named "+r.name, func() {
		must(r, r.nl.LinkSetName(r.named(old), r.name))
		if r.said >= 0 {
			r.owners.next.Removed = append(r.owners.next.Removed, old)
			delete(r.owners.next.Changed, old)
			r.say(r.name, spoken[r.said].claim)
			r.owners.next.Removed = slices.DeleteFunc(r.owners.next.Removed, func(n string) bool { return n == r.name })
		}
	})
}

func (r *roles) again() {
	r.said, r.whole = -1, false
	r.restart()
}

// killed ends the daemon after some operations of a pass.
func (r *roles) killed(after int) {
	r.do(fmt.Sprintf("killed after %d operations", after), func() {
		ctx, cancel := context.WithCancel(r.Context())
		r.writer.swallow = func(routing.Op) bool {
			if after--; after < 0 {
				cancel()
			}
			return after < 0
		}
		err := r.loop.Reconcile(ctx)
		cancel()
		if err != nil && !errors.Is(err, context.Canceled) {
			r.rt.Fatal(err)
		}
		if r.stands() {
			r.seen()
		}
		r.again()
	})
}

func (r *roles) stands() bool { return r.has("10500: from 100.64.0.5 7") }

func (r *roles) seen() {
	r.was = r.was || r.gate && r.said >= 0 && spoken[r.said].full
}

// check wants the role as often as somebody says that it is a link.
func (r *roles) check() {
	if !r.was || r.said < 0 || spoken[r.said].claim.Standing != reconcile.Link {
		return
	}
	group, leased := r.named(r.name).Attrs().Group, spoken[r.said].early
	if (leased || r.stands()) && (leased && !r.second || group == policy.UplinkGroup) {
		return
	}
	r.rt.Fatalf("after\n%s\nthe role is lost, group %d:\n%s\nit remembers %+v\n%s",
		strings.Join(r.log, "\n"), group, strings.Join(r.rules(), "\n"), r.memory.kept, r.host.log.String())
}

// TestFormerUplinkEnds: the role goes with the profile, the addresses or the interface,
// and not before everything is known.
func TestFormerUplinkEnds(t *testing.T) {
	const stop = "10500: from 100.64.0.5 7"
	link := reconcile.Claim{Standing: reconcile.Link, Watched: true, Profile: "office", UUID: "1"}
	former := func(t *testing.T) *host {
		t.Helper()
		h := newHost(t)
		h.wan(0)
		h.say("wan0", link)
		h.owners.complete(true)
		h.pass()
		h.ip("route delete default dev wan0")
		h.pass()
		h.wants(stop)
		return h
	}
	for name, how := range map[string]func(h *host){
		"profile": func(h *host) {
			other := link
			other.UUID = "2"
			h.restart()
			h.say("wan0", other)
			h.pass()
			h.wants(stop) // NetworkManager has not said all yet.
			h.owners.complete(true)
		},
		"addresses": func(h *host) {
			h.address("wan0", "100.64.0.9/24")
			h.deleteAddress("wan0", "100.64.0.5/24")
			h.pass()
			h.address("wan0", "100.64.0.5/24")
		},
		"addresses, while it was none": func(h *host) {
			h.owners.claim("wan0", reconcile.NoLink)
			h.deleteAddress("wan0", "100.64.0.5/24")
			h.pass()
			h.say("wan0", link)
			h.address("wan0", "100.64.0.5/24")
		},
		"interface": func(h *host) {
			index := h.named("wan0").Attrs().Index
			must(h, h.nl.LinkDel(h.named("wan0")))
			h.restart()
			h.pass()
			must(h, h.nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wan0", Index: index}, PeerName: "p-wan0"}))
			h.setUp("wan0", true)
			h.address("wan0", "100.64.0.5/24")
			h.say("wan0", link)
			h.owners.complete(true)
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := former(t)
			how(h)
			h.pass()
			h.wants("!"+stop, "10000: from 100.64.0.5 lookup 10000")
			if len(h.memory.kept.Uplinks) > 0 {
				t.Errorf("it remembers %+v", h.memory.kept.Uplinks)
			}
		})
	}
}

// TestFormerUplinkEndsWithItsGateway: a profile that is changed in place (`nmcli device
// reapply`) and wants no default any more is another profile, also if the default goes after
// that is told, or while no daemon runs. One that wants a default as before is the same.
func TestFormerUplinkEndsWithItsGateway(t *testing.T) {
	const stop = "10500: from 100.64.0.5 7"
	wanting := func(is bool) reconcile.Claim {
		return reconcile.Claim{Standing: reconcile.Link, Watched: true, Profile: "office", UUID: "1", Intents: map[routing.Family]routing.Intent{
			routing.IPv4: {NoDefault: !is}, routing.IPv6: {NoDefault: !is},
		}}
	}
	lost := func(h *host) { h.ip("route delete default dev wan0"); h.pass() }
	say := func(h *host, c reconcile.Claim) { h.say("wan0", c); h.pass() }
	again := func(h *host, c reconcile.Claim) {
		h.restart()
		h.pass()
		h.wants(stop) // Nobody has spoken yet.
		say(h, c)
		h.wants(stop)
		h.owners.complete(true)
		h.pass()
	}
	for name, c := range map[string]struct {
		first bool
		how   func(h *host)
		stays bool
	}{
		"the default goes first":         {true, func(h *host) { lost(h); say(h, wanting(false)) }, false},
		"the profile changes first":      {true, func(h *host) { say(h, wanting(false)); h.wants(stop); lost(h) }, false},
		"while no daemon runs":           {true, func(h *host) { lost(h); again(h, wanting(false)) }, false},
		"both before a restart":          {true, func(h *host) { say(h, wanting(false)); again(h, wanting(false)); h.wants(stop); lost(h) }, false},
		"the router goes":                {true, func(h *host) { lost(h); say(h, wanting(true)); again(h, wanting(true)) }, true},
		"it is taken down":               {true, func(h *host) { lost(h); c := wanting(false); c.Standing = reconcile.Draining; say(h, c) }, true},
		"a default that nobody wanted":   {false, func(h *host) { lost(h); again(h, wanting(false)) }, true},
		"of a daemon that did not know":  {true, func(h *host) { lost(h); h.memory.kept.Uplinks[0].Families[0].Asked = false; again(h, wanting(false)) }, true},
		"an owner that says nothing now": {true, func(h *host) { lost(h); say(h, reconcile.Claim{Standing: reconcile.Link, Watched: true}) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.wan(0)
			h.say("wan0", wanting(c.first))
			h.owners.complete(true)
			h.pass()
			h.wants(stop)
			c.how(h)
			want := "!" + stop
			if c.stays {
				want = stop
			}
			h.wants(want)
			if remembers := len(h.memory.kept.Uplinks) > 0; remembers != c.stays {
				t.Errorf("it remembers %+v", h.memory.kept.Uplinks)
			}
		})
	}
}

// TestFormerUplinkSays when it lost its default, once and after a restart.
func TestFormerUplinkSays(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.owners.complete(true)
	h.memory.faults = 1
	h.pass()
	h.ip("route delete default dev wan0")
	h.pass()
	lost := h.clock.Format(time.DateTime)
	h.clock = h.clock.Add(time.Hour)
	for range 2 {
		if log := h.log.String(); !strings.Contains(log, "until "+lost) || !strings.Contains(log, "nmcli connection up") || !strings.Contains(log, "[[link]]") {
			t.Errorf("the log does not say why it is an uplink:\n%s", log)
		}
		h.log.Reset()
		h.restart()
		h.owners.claim("wan0", reconcile.Link)
		h.owners.complete(true)
		h.ip("rule flush proto 150")
		h.pass()
	}
	h.ip("route add default via 100.64.0.1 dev wan0")
	h.pass()
	h.clock = h.clock.Add(time.Hour)
	h.ip("route delete default dev wan0")
	h.pass()
	if until := h.memory.kept.Uplinks[0].Until; !until.Equal(h.clock) {
		t.Errorf("it had a default until %v", until)
	}
}

// TestMemoryIsWrittenBefore: a process that is killed while it writes its first rule has
// left word, and what could not be written is written with the next pass.
func TestMemoryIsWrittenBefore(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.owners.complete(true)
	h.memory.faults = 1000
	h.pass()
	if h.memory.any {
		t.Fatal("it was written all the same")
	}
	h.memory.faults = 0
	h.pass()
	if len(h.memory.kept.Uplinks) != 1 || len(h.appeared) != 1 || h.appeared[0].Code != routing.Forgetful || len(h.last.Problems) > 0 {
		t.Errorf("it remembers %+v\n%s", h.memory.kept, h.log.String())
	}
	h.memory = memory{}
	h.restart()
	h.owners.claim("wan0", reconcile.Link)
	h.ip("rule flush proto 150")
	h.writer.swallow = func(routing.Op) bool {
		if len(h.memory.kept.Uplinks) != 1 {
			t.Errorf("before anything is written it remembers %+v", h.memory.kept)
		}
		return false
	}
	h.pass()
}

// TestFormerUplinkComesBack: what was no link for a while, or nobody spoke of while nothing
// of ours stood, has its role again if it has its addresses still.
func TestFormerUplinkComesBack(t *testing.T) {
	const stop = "10500: from 100.64.0.5 7"
	for _, standing := range []reconcile.Standing{reconcile.NoLink, reconcile.Draining} {
		h := newHost(t)
		h.wan(0)
		h.owners.complete(true)
		h.pass()
		h.ip("route delete default dev wan0")
		h.pass()
		h.restart()
		h.ip("rule flush proto 150")
		h.owners.claim("wan0", standing)
		h.owners.complete(true)
		h.pass()
		h.wants("!" + stop)
		h.owners.claim("wan0", reconcile.Link)
		h.pass()
		h.wants(stop)
	}
}

// TestFormerUplinkOfAFamily: a router of a LAN advertises itself and goes. The LAN was an
// uplink for IPv6, and is one; for IPv4 it never was, whatever the daemon that starts next
// finds and whatever was written before families were.
func TestFormerUplinkOfAFamily(t *testing.T) {
	const stop4 = "10500: from 192.168.7.1 7"
	const open = "9022: from 100.64.0.5 lookup 10001 suppress_prefixlength 7"
	h := newHost(t)
	stops6 := func() {
		t.Helper()
		if rules := h.ip("-6 rule show priority 10500"); !strings.Contains(rules, "from 2001:db8:1::/64 iif lo unreachable") {
			t.Errorf("nothing stops what is bound to the IPv6 of lan0: %q", rules)
		}
	}
	h.wan(0)
	h.owners.complete(true)
	h.pass()
	h.veth("lan0")
	h.address("lan0", "192.168.7.1/24")
	h.owners.claim("lan0", reconcile.Link)
	h.pass()
	h.wants("!"+stop4, "!"+open)
	h.ip("-6 address add 2001:db8:1::1/64 dev lan0 nodad")
	h.ip("-6 route add default via fe80::99 dev lan0 metric 1024")
	// The kernel tells of an IPv6 address when it is done with it.
	for h.pass(); !strings.Contains(h.ip("-6 rule show priority 10500"), "2001:db8:1::"); h.pass() {
		if !h.changed() {
			t.Fatal("the daemon does not learn of the IPv6 address")
		}
	}
	h.wants("!"+stop4, open)
	stops6()
	if group := h.named("lan0").Attrs().Group; group != policy.UplinkGroup {
		t.Errorf("lan0 is in group %d", group)
	}
	h.ip("-6 route delete default dev lan0")
	h.pass()
	lost := h.clock
	h.wants("!"+stop4, open)
	stops6()
	h.clock = h.clock.Add(time.Hour)
	for _, standing := range []reconcile.Claim{
		{Standing: reconcile.Link, Watched: true},
		{Standing: reconcile.Link, Watched: true, Pending: true},
		{Standing: reconcile.Draining, Watched: true},
		{Standing: reconcile.Link, Watched: true},
	} {
		h.restart()
		h.owners.claim("wan0", reconcile.Link)
		h.say("lan0", standing)
		h.owners.complete(true)
		h.pass()
		h.wants("!"+stop4, open)
		stops6()
	}
	u := h.memory.kept.Uplinks
	if i := slices.IndexFunc(u, func(u reconcile.FormerUplink) bool { return u.Interface == "lan0" }); i < 0 ||
		len(u[i].Families) != 1 || u[i].Families[0].Family != "ipv6" || !u[i].Families[0].Until.Equal(lost) || !u[i].Until.Equal(lost) {
		t.Errorf("it remembers %+v", u)
	}
	// What a version before wrote counts for both, until there is a default of one.
	for i := range h.memory.kept.Uplinks {
		h.memory.kept.Uplinks[i].Families = nil
	}
	h.restart()
	h.owners.claim("wan0", reconcile.Link)
	h.owners.claim("lan0", reconcile.Link)
	h.owners.complete(true)
	h.pass()
	h.wants(stop4, "!"+open)
	stops6()
	h.ip("-6 route add default via fe80::99 dev lan0 metric 1024")
	h.pass()
	h.wants("!"+stop4, open)
	stops6()
}

// TestNumberedByHand: a rule just below ours that the kernel would have given another number was
// numbered by somebody, who wants it before us.
func TestNumberedByHand(t *testing.T) {
	for name, tt := range map[string]struct {
		before, rule string
		steps        bool
	}{
		"the kernel's":                        {"", "not fwmark 5 lookup 77", true},
		"by hand, where the kernel numbers":   {"", "pref 9019 not fwmark 5 lookup 77", true},
		"by hand, with a lower one before":    {"pref 100 fwmark 9 lookup 78", "pref 9019 not fwmark 5 lookup 77", false},
		"by hand, with one of ours before":    {"pref 32000 fwmark 9 lookup 78", "pref 9019 not fwmark 5 lookup 77", false},
		"the kernel's, with a higher one":     {"pref 32000 fwmark 9 lookup 78", "not fwmark 5 lookup 77", true},
		"the kernel's, with another in front": {"pref 9018 fwmark 9 lookup 78", "not fwmark 5 lookup 77", true},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.wan(0)
			h.owners.complete(true)
			h.pass()
			if tt.before != "" {
				h.ip("rule add " + tt.before)
				h.pass()
			}
			h.ip("rule add " + tt.rule)
			h.pass()
			if steps := strings.Contains(h.ip("rule"), "from 100.64.0.5 iif lo goto"); steps != tt.steps {
				t.Errorf("bound traffic steps over it: %t\n%s", steps, h.ip("rule"))
			}
		})
	}
}
