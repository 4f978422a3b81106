package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/routing"
	"multihomed/routing/reconcile"
)

func TestIncompleteKnowledgeDeletesNothing(t *testing.T) {
	h := newHost(t)
	// What a daemon before this one left: a link that is still one, and one
	// that is none any more.
	h.wan(0)
	h.wan(1)
	h.owners.complete(true)
	h.pass()
	h.wants("10000: from 100.64.0.5 lookup 10000", "10000: from 100.64.1.5 lookup 10001")
	before := h.rules()

	h.restart()
	h.quiet()
	if h.readies > 0 {
		t.Error("ready without knowledge")
	}
	h.owners.claim("wan0", reconcile.Link)
	h.quiet()
	if now := h.rules(); !slices.Equal(now, before) {
		t.Errorf("before:\n%s\nnow:\n%s", strings.Join(before, "\n"), strings.Join(now, "\n"))
	}
	// What a known link gives up goes all the same.
	h.address("wan0", "100.64.0.6/24")
	h.pass()
	h.wants("10000: from 100.64.0.6 lookup 10000")
	h.deleteAddress("wan0", "100.64.0.6/24")
	h.pass()
	h.wants("!10000: from 100.64.0.6 lookup 10000", "!10500: from 100.64.0.6 7", "10000: from 100.64.1.5 lookup 10001")

	h.owners.complete(true)
	h.pass()
	if h.readies != 1 {
		t.Errorf("ready %d times", h.readies)
	}
	h.wants("10000: from 100.64.0.5 lookup 10000", "!10000: from 100.64.1.5 lookup 10001", "!9500: from all oif wan1 lookup 10001")
	if group := h.named("wan1").Attrs().Group; group != 0 {
		t.Errorf("wan1 is left in group %d", group)
	}
	if routes := h.ip("-N route show table all proto 150"); strings.Contains(routes, "wan1") {
		t.Errorf("routes of wan1 are left:\n%s", routes)
	}
	h.quiet()

	// The owner goes away: nothing happens. A link that the kernel takes away
	// is known to be gone.
	h.owners.complete(false)
	h.quiet()
	must(t, h.nl.LinkDel(h.named("wan0")))
	h.pass()
	if rules := h.rules(); len(rules) > 0 {
		t.Errorf("left:\n%s", strings.Join(rules, "\n"))
	}
	h.owners.complete(true)
	h.quiet()
	if h.readies != 1 {
		t.Errorf("ready %d times", h.readies)
	}
}

func TestDraining(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.owners.complete(true)
	h.pass()

	h.owners.claim("wan0", reconcile.Draining)
	h.quiet()
	h.wants("10500: from 100.64.0.5 7")
	// So does the next daemon, which knows it from the rules.
	h.restart()
	h.owners.claim("wan0", reconcile.Draining)
	h.owners.complete(true)
	h.quiet()
	h.deleteAddress("wan0", "100.64.0.5/24")
	h.pass()
	if rules := h.rules(); len(rules) > 0 {
		t.Errorf("left:\n%s", strings.Join(rules, "\n"))
	}
	// What was none does not become one by draining.
	h.address("wan0", "100.64.0.7/24")
	h.quiet()
	h.owners.claim("wan0", reconcile.Link)
	h.pass()
	h.wants("10000: from 100.64.0.7 lookup 10000")
	h.owners.claim("wan0", reconcile.NoLink)
	h.pass()
	if rules := h.rules(); len(rules) > 0 {
		t.Errorf("left:\n%s", strings.Join(rules, "\n"))
	}
}

func TestRepairsAreLimited(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.owners.complete(true)
	h.pass()
	const rule = "9500: from all oif wan0 lookup 10000"
	steal := func() { h.ip("-4 rule delete priority 9500 oif wan0") }
	// Two at once, as the limiter says.
	for range 2 {
		steal()
		h.pass()
		h.wants(rule)
	}
	steal()
	h.quiet()
	h.wants("!" + rule)
	// Other things are not held up, nor do they hasten it.
	h.address("wan0", "100.64.0.6/24")
	h.pass()
	h.wants("10000: from 100.64.0.6 lookup 10000", "!"+rule)
	h.ip("-4 rule delete priority 19000")
	h.pass()
	h.wants("19000: from all to 100.64.0.0/24 lookup 254 suppress_prefixlength 23", "!"+rule)
	if d := h.loop.UntilNext(); d <= 0 || d > time.Second {
		t.Errorf("next in %v", d)
	}
	h.wait()
	h.pass()
	h.wants(rule)
	if n := strings.Count(h.log.String(), "deleted by"); n != 2 {
		t.Errorf("%d lines:\n%s", n, h.log.String())
	}
	// The quarrel is a problem until it is over.
	if p := h.last.Problems; len(p) != 1 || p[0].Code != routing.Disputed || p[0].Link != "wan0" || p[0].Object != `ipv4 rule "`+rule+`"` {
		t.Errorf("problems are %+v", p)
	}
	h.clock = h.clock.Add(20 * time.Second)
	h.pass()
	if len(h.last.Problems) > 0 || len(h.appeared) != 1 {
		t.Errorf("problems are %+v, there were %+v", h.last.Problems, h.appeared)
	}
	steal()
	h.pass()
	steal()
	h.pass()
	// A repair that became pointless is not made.
	steal()
	h.quiet()
	h.owners.claim("wan0", reconcile.NoLink)
	h.pass()
	h.wait()
	h.quiet()
}

// TestFlushIsRepaired takes away every rule once, with a pass after each, as
// `ip rule flush` may: that is no quarrel.
func TestFlushIsRepaired(t *testing.T) {
	h := newHost(t)
	for n := range 3 {
		h.wan(n)
	}
	h.owners.complete(true)
	h.pass()
	rules := h.rules()
	for _, rule := range rules {
		h.ip("-4 rule delete priority " + strings.NewReplacer(": ", " ", "100.64.0.5 7", "100.64.0.5 type unreachable", "100.64.1.5 7", "100.64.1.5 type unreachable", "100.64.2.5 7", "100.64.2.5 type unreachable").Replace(rule))
		h.pass()
		h.wants(rule)
	}
	if len(rules) < 15 || h.loop.UntilNext() < time.Minute {
		t.Errorf("%d rules, next in %v", len(rules), h.loop.UntilNext())
	}
	// One line for each that the log's budget allows, not one for each rule.
	if n := strings.Count(h.log.String(), "deleted by"); n != 2 {
		t.Errorf("%d lines:\n%s", n, h.log.String())
	}
	h.clock = h.clock.Add(time.Hour)
	h.ip("-4 rule delete priority 9020")
	h.pass()
	if want := fmt.Sprintf("restored, with %d more", len(rules)-2); !strings.Contains(h.log.String(), want) {
		t.Errorf("no %s:\n%s", want, h.log.String())
	}
	if n := h.loop.Disputes(); n != 1 {
		t.Errorf("%d budgets are kept", n)
	}
}

func TestRefusedOnceIsNoNews(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.owners.complete(true)
	refusals := 0
	h.writer.refuse = func(op routing.Op) error {
		if op.Verb == routing.AddRule && op.Rule.Priority == routing.PrioritySource && refusals == 0 {
			refusals++
			return unix.EBUSY
		}
		return nil
	}
	h.pass()
	h.wants("10000: from 100.64.0.5 lookup 10000")
	if len(h.last.Problems) > 0 || len(h.appeared) > 0 {
		t.Errorf("reported: %+v\n%s", h.last, h.log.String())
	}
}

// TestProblemsNameInterfaces: who reads of a problem knows no indexes.
func TestProblemsNameInterfaces(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.owners.complete(true)
	h.writer.refuse = func(op routing.Op) error {
		if op.Verb == routing.AddRoute && op.Route.IsDefault() || op.Verb == routing.SetGroup {
			return unix.EPERM
		}
		return nil
	}
	h.pass()
	for _, want := range []string{"add route default via 100.64.0.1 dev wan0 table 10000", "set group of wan0 to 28008: operation not permitted"} {
		if !slices.ContainsFunc(h.last.Problems, func(p routing.Problem) bool { return strings.HasPrefix(p.Text, want) }) {
			t.Errorf("no %q in %+v", want, h.last.Problems)
		}
	}
}

func TestRefusedIsRetriedLater(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.wan(1)
	h.owners.complete(true)
	asked := 0
	h.writer.refuse = func(op routing.Op) error {
		if op.Verb == routing.AddRule && op.Rule.Priority == routing.PrioritySource && op.Rule.From.Addr().String() == "100.64.0.5" {
			asked++
			return unix.EPERM
		}
		return nil
	}
	h.pass()
	h.wants("10000: from 100.64.1.5 lookup 10001", "10500: from 100.64.0.5 7", "!10000: from 100.64.0.5 lookup 10000")
	reported := func() bool {
		return len(h.last.Problems) == 1 && h.last.Problems[0].Link == "wan0" && strings.Contains(h.last.Problems[0].Text, "operation not permitted")
	}
	if !reported() {
		t.Errorf("reported: %+v", h.last)
	}
	// Other events do not hasten it.
	h.address("wan1", "100.64.1.6/24")
	h.pass()
	h.wants("10000: from 100.64.1.6 lookup 10001")
	var waits []time.Duration
	for range 12 {
		before := asked
		waits = append(waits, h.wait())
		h.pass()
		if asked == before || asked > before+2 {
			t.Errorf("asked %d times", asked-before)
		}
		if !reported() {
			t.Errorf("reported: %+v", h.last)
		}
	}
	want := []time.Duration{
		100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, 1600 * time.Millisecond, 3200 * time.Millisecond,
		6400 * time.Millisecond, 12800 * time.Millisecond, 25600 * time.Millisecond, 51200 * time.Millisecond, time.Minute, time.Minute,
	}
	if !slices.Equal(waits, want) {
		t.Errorf("waits %v", waits)
	}
	if len(h.appeared) != 1 {
		t.Errorf("reported: %+v", h.appeared)
	}
	// A new trouble does not have to wait for the old one's minute.
	h.writer.refuse = func(op routing.Op) error {
		if op.Verb == routing.AddRule && op.Rule.Priority == routing.PrioritySource {
			return unix.EPERM
		}
		return nil
	}
	h.address("wan1", "100.64.1.7/24")
	h.pass()
	if d := h.loop.UntilNext(); d != 100*time.Millisecond {
		t.Errorf("next in %v", d)
	}
	h.writer.refuse = nil
	h.wait()
	h.pass()
	h.wants("10000: from 100.64.1.7 lookup 10001", "!10000: from 100.64.0.5 lookup 10000")
	h.wait()
	h.pass()
	h.wants("10000: from 100.64.0.5 lookup 10000")
	if len(h.last.Problems) > 0 {
		t.Errorf("still reported: %+v", h.last)
	}
	h.quiet()
}

func TestRefusedAndNoLongerWanted(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.owners.complete(true)
	h.writer.refuse = func(op routing.Op) error {
		if op.Verb == routing.AddRoute && op.Route.IsDefault() {
			return unix.ENETUNREACH
		}
		return nil
	}
	h.pass()
	if len(h.last.Problems) != 1 {
		t.Errorf("reported: %+v", h.last)
	}
	must(t, h.nl.LinkDel(h.named("wan0")))
	h.pass()
	if len(h.last.Problems) > 0 || h.loop.UntilNext() < time.Minute {
		t.Errorf("reported: %+v, next in %v", h.last, h.loop.UntilNext())
	}
}

// TestUndone wants an end where the kernel says yes and does nothing.
func TestUndone(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.owners.complete(true)
	asked := 0
	h.writer.swallow = func(op routing.Op) bool {
		if op.Verb != routing.AddRule || op.Rule.Priority != routing.PriorityNetwork {
			return false
		}
		asked++
		return true
	}
	h.pass()
	if asked == 0 || asked > 5 {
		t.Errorf("asked %d times", asked)
	}
	if len(h.last.Problems) != 1 || !strings.Contains(h.last.Problems[0].Text, "undone") {
		t.Errorf("reported: %+v", h.last)
	}
	h.writer.swallow = nil
	h.wait()
	h.pass()
	h.wants("20000: from all to 100.64.0.0/24 lookup 10000")
	if len(h.last.Problems) > 0 {
		t.Errorf("still reported: %+v", h.last)
	}
}

func TestNoTableLeft(t *testing.T) {
	h := newHost(t)
	h.leases = newLeases(routing.TableRange{First: 10000, Last: 10001})
	h.restart()
	for n := range 3 {
		h.wan(n)
	}
	h.owners.complete(true)
	h.pass()
	h.wants("10000: from 100.64.0.5 lookup 10000", "10000: from 100.64.1.5 lookup 10001")
	if h.readies != 1 {
		t.Error("one link without a table keeps the daemon from being ready")
	}
	if !slices.ContainsFunc(h.last.Problems, func(p routing.Problem) bool {
		return p.Link == "wan2" && p.Severity == routing.Error && strings.Contains(p.Text, errFull.Error())
	}) {
		t.Errorf("reported: %+v", h.last)
	}
	for range 20 {
		h.wait()
		h.quiet()
	}
	// A trouble of the kernel must not keep the table from being given on.
	h.writer.refuse = func(op routing.Op) error {
		if op.Verb == routing.AddRule && op.Rule.From.IsValid() && op.Rule.From.Addr().String() == "100.64.1.9" {
			return unix.EPERM
		}
		return nil
	}
	h.address("wan1", "100.64.1.9/24")
	h.pass()
	h.owners.claim("wan0", reconcile.NoLink)
	h.pass()
	h.wait() // at once: somebody was waiting for it
	h.pass()
	h.wants("10000: from 100.64.2.5 lookup 10000", "10000: from 100.64.1.5 lookup 10001", "!10000: from 100.64.0.5 lookup 10000")
	h.writer.refuse = nil
	for range 3 {
		h.wait()
		h.pass()
	}
	if len(h.last.Problems) > 0 {
		t.Errorf("still reported: %+v", h.last)
	}
}

func TestLeasesAreReleased(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.owners.complete(true)
	h.pass()
	// An interface that is created again keeps its table.
	for range 3 {
		must(t, h.nl.LinkDel(h.named("wan0")))
		h.wan(0)
		h.pass()
		h.wants("10000: from 100.64.0.5 lookup 10000")
	}
	if len(h.leases.given) > 0 {
		t.Errorf("given back: %v", h.leases.given)
	}
	remembered := h.loop.Remembered()
	for range 20 {
		must(t, h.nl.LinkDel(h.named("wan0")))
		h.pass()
		h.wan(0)
		h.pass()
	}
	if len(h.leases.given) != 1 {
		t.Errorf("given back: %v", h.leases.given)
	}
	if now := h.loop.Remembered(); now > remembered {
		t.Errorf("the loop remembers %d things, %d at first", now, remembered)
	}
}

// TestRotatingAddresses wants nothing to be kept of addresses that came and went
// while knowledge was incomplete, once it is complete.
func TestRotatingAddresses(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.owners.complete(true)
	h.pass()
	remembered := h.loop.Remembered()
	h.owners.complete(false)
	for n := range 40 {
		h.address("wan0", fmt.Sprintf("10.7.%d.5/24", n))
		h.pass()
		h.deleteAddress("wan0", fmt.Sprintf("10.7.%d.5/24", n))
		h.pass()
	}
	h.owners.complete(true)
	h.pass()
	if now := h.loop.Remembered(); now > remembered {
		t.Errorf("the loop remembers %d things, %d at first", now, remembered)
	}
	h.wants("10000: from 100.64.0.5 lookup 10000")
}

// TestKernelUnreadable wants the loop to wait, longer and longer, and to touch
// nothing while the kernel does not answer.
func TestKernelUnreadable(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.owners.complete(true)
	h.pass()
	h.mirror.fault = errors.New("no memory")
	h.address("wan0", "100.64.0.6/24")
	var waits []time.Duration
	for range 5 {
		h.quiet()
		if len(h.last.Problems) != 1 || !strings.Contains(h.last.Problems[0].Text, "no memory") {
			t.Errorf("reported: %+v", h.last)
		}
		waits = append(waits, h.wait())
	}
	if !slices.Equal(waits, []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, 1600 * time.Millisecond}) {
		t.Errorf("waits %v", waits)
	}
	if len(h.appeared) != 1 {
		t.Errorf("reported: %+v", h.appeared)
	}
	h.mirror.fault = nil
	h.pass()
	h.wants("10000: from 100.64.0.6 lookup 10000")
	if len(h.last.Problems) > 0 {
		t.Errorf("still reported: %+v", h.last)
	}
	h.quiet()

	// It is not ready while the kernel was never read.
	h.restart()
	h.mirror.fault = errors.New("no memory")
	h.owners.claim("wan0", reconcile.Link)
	h.owners.complete(true)
	h.quiet()
	if h.readies > 0 {
		t.Error("ready without the kernel")
	}
	h.mirror.fault = nil
	h.pass()
	if h.readies != 1 {
		t.Errorf("ready %d times", h.readies)
	}
}

func TestInterest(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.veth("lan0")
	h.address("lan0", "10.1.0.1/24")
	h.owners.claim("lan0", reconcile.NoLink)
	h.pass()
	interested := func(name string) bool {
		index := h.named(name).Attrs().Index
		var is bool
		h.mirror.View(func(k reconcile.State) { is = k.Interested(index) })
		return is
	}
	if !interested("wan0") || interested("lan0") || !interested("p-wan0") {
		t.Error("while knowledge is incomplete, the routes of what nobody spoke of matter, and those of what is no link do not")
	}
	h.owners.complete(true)
	h.pass()
	if !interested("wan0") || interested("lan0") || interested("p-wan0") {
		t.Error("with complete knowledge, only the routes of links matter")
	}
	h.owners.claim("lan0", reconcile.Link)
	h.pass()
	h.wants("10000: from 10.1.0.1 lookup 10001")
	h.owners.next.Removed = []string{"lan0"}
	h.pass()
	h.wants("!10000: from 10.1.0.1 lookup 10001")
	if interested("lan0") {
		t.Error("the routes of what is no link any more are kept")
	}
}

// TestPoke wants the owner to be asked when a link loses its way.
func TestPoke(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.owners.complete(true)
	h.pass()
	h.ip("route delete default dev wan0")
	h.pass()
	if !slices.Equal(h.owners.rechecked, []string{"wan0"}) {
		t.Errorf("rechecked: %v", h.owners.rechecked)
	}
}

// TestClaimsTables wants a table that a profile names not to be handed out.
func TestClaimsTables(t *testing.T) {
	h := newHost(t)
	h.owners.next.Changed = map[string]reconcile.Claim{"other": {Tables: []routing.TableID{10000}}}
	h.ip("rule add priority 77 from 192.0.2.1 lookup 10001")
	h.ip("route add 192.0.2.0/24 dev lo table 10002 proto static")
	h.pass()
	h.wan(0)
	h.owners.complete(true)
	h.pass()
	h.wants("10000: from 100.64.0.5 lookup 10003")
}

// TestFormerUplinkOverRestart wants a link whose default went to stay an uplink, also
// when the daemon starts anew and passes before anybody speaks of the link.
func TestFormerUplinkOverRestart(t *testing.T) {
	const stop = "10500: from 100.64.0.5 7"
	h := newHost(t)
	h.wan(0)
	office := reconcile.Claim{Standing: reconcile.Link, Watched: true, Profile: "office"}
	h.say("wan0", office)
	h.owners.complete(true)
	h.pass()
	h.ip("route delete default dev wan0")
	h.pass()
	h.wants(stop)
	h.restart()
	h.pass()
	h.say("wan0", office)
	h.pass()
	h.owners.complete(true)
	h.pass()
	h.wants(stop)
	// With another profile it is another link.
	h.say("wan0", reconcile.Claim{Standing: reconcile.Link, Watched: true, Profile: "other"})
	h.pass()
	h.wants("!" + stop)
}

// TestStandsTwice wants one of two equal rules to go, however little is known: a
// daemon was killed between the two halves of a move.
func TestStandsTwice(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.pass()
	h.ip("rule add priority 19000 to 100.64.0.0/24 lookup main suppress_prefixlength 23 protocol 151")
	h.pass()
	h.quiet()
	twice(t)
	count := func() int { return strings.Count(strings.Join(h.rules(), "\n"), "19000: ") }
	if n := count(); n != 2 {
		t.Fatalf("it stands %d times", n)
	}
	h.pass()
	if n := count(); n != 1 {
		t.Errorf("it stands %d times", n)
	}
	if !strings.Contains(h.ip("-N -d rule"), "proto 151") {
		t.Error("the rule of somebody else is gone")
	}
}

// TestStorm wants the loop to come up for air while events do not end, and to go
// on by itself afterwards.
func TestStorm(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.owners.complete(true)
	n := 0
	h.writer.refuse = func(op routing.Op) error {
		if op.Verb == routing.AddRule && op.Rule.Priority == routing.PrioritySource && n < 140 {
			n++
			h.address("wan0", fmt.Sprintf("100.64.0.%d/24", 10+n))
		}
		return nil
	}
	rounds := 0
	for h.pass(); h.loop.UntilNext() == 0; h.pass() {
		rounds++
	}
	if rounds == 0 || rounds > 20 {
		t.Errorf("%d rounds", rounds)
	}
	h.wants("10000: from 100.64.0.150 lookup 10000", "10500: from 100.64.0.11 7")
	h.quiet()
	if len(h.last.Problems) > 0 {
		t.Errorf("reported: %+v", h.last)
	}
}

// TestEnd wants a loop that is told to end to end without complaints.
func TestEnd(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.owners.complete(true)
	ctx, cancel := context.WithCancel(t.Context())
	h.writer.swallow = func(routing.Op) bool { cancel(); return false }
	if err := h.loop.Reconcile(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("it ends with %v", err)
	}
	if log := h.log.String(); len(h.appeared) > 0 {
		t.Errorf("complaints:\n%s", log)
	}
}

// TestRun lets the loop run by itself.
func TestRun(t *testing.T) {
	h := newHost(t)
	h.wan(0)
	h.owners.complete(true)
	ready, alive, ended := make(chan struct{}), make(chan struct{}, 1), make(chan error, 2)
	h.loop.SetClock(time.Now)
	h.loop.Hooks.Ready = func() { close(ready) }
	h.loop.Hooks.Beat = time.Millisecond
	h.loop.Hooks.Alive = func() {
		select {
		case alive <- struct{}{}:
		default:
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { ended <- h.source.Run(ctx) }()
	go func() { ended <- h.loop.Run(ctx) }()
	<-ready
	h.wants("10000: from 100.64.0.5 lookup 10000")
	h.address("wan0", "100.64.0.6/24")
	deadline := time.Now().Add(20 * time.Second)
	for !h.has("10000: from 100.64.0.6 lookup 10000") {
		if time.Now().After(deadline) {
			t.Fatal("an address is not seen")
		}
	}
	// The beat is kept although nothing happens.
	for range 5 {
		<-alive
	}
	cancel()
	must(t, errors.Join(<-ended, <-ended))
}
