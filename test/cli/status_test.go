package cli_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"multihomed/internal/cli"
	"multihomed/internal/status"
	"multihomed/internal/status/socket"
	"multihomed/routing"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// TestStatus follows a host through what can happen to it, as root and as a
// user without any right.
func TestStatus(t *testing.T) {
	h := newHost(t)
	h.beforeTheDaemon()
	h.start()
	h.sound("with the daemon")
	h.everythingInForce()
	h.drawn()

	h.stop()
	h.drawn()
	s := h.status()
	if !s.OK || s.Daemon.Running || s.Daemon.PID != 0 || problem(s, "daemon") == nil {
		t.Errorf("without the daemon: ok %v, daemon %+v, problems %+v", s.OK, s.Daemon, s.Problems)
	}
	h.sameForNobody(s)

	h.ip("rule", "del", "priority", "10000", "from", h.addr("wan0").String())
	h.ip("route", "del", "default", "table", fmt.Sprint(network(link(t, s, "wan1"), "ipv4").Table))
	h.ip("link", "set", "wan1", "group", "7")
	h.ip("rule", "add", "priority", "10000", "from", "192.0.2.1", "table", "10900", "protocol", "150")
	h.damaged()
	h.sameForNobody(h.status())

	h.start()
	if s := h.status(); s.InForce.Unexpected != 0 {
		t.Errorf("the daemon left %+v", s.InForce)
	}
}

// beforeTheDaemon: nothing of ours has ever been on the host.
func (h *host) beforeTheDaemon() {
	h.t.Helper()
	s := h.status()
	p := problem(s, "not-in-force")
	switch {
	case s.OK || p == nil || p.Severity != routing.Error || !strings.Contains(p.Fix, "systemctl"):
		h.t.Errorf("before the daemon: ok %v, problems %+v", s.OK, s.Problems)
	case len(s.Links) != 2 || network(link(h.t, s, "wan0"), "ipv4").Table != 0:
		h.t.Errorf("before the daemon: links %+v", s.Links)
	}
	if left, err := h.Leftovers(); err != nil || len(left) > 0 {
		h.t.Errorf("status changed the kernel: %q, %v", left, err)
	}
}

func (h *host) everythingInForce() {
	h.t.Helper()
	s := h.status()
	if !s.OK || !s.Daemon.Running || !s.Daemon.Ready || s.Daemon.PID != h.daemon.Pid() || s.Daemon.Version == "" || s.Daemon.Started == nil {
		h.t.Errorf("with the daemon: ok %v, daemon %+v, problems %+v", s.OK, s.Daemon, s.Problems)
	}
	if s.By != "daemon" || s.Unchecked != 0 || s.Unbound["ipv4"].Interface != "wan0" || s.Unbound["ipv6"].Interface != "wan0" || link(h.t, s, "wan0").Since == nil {
		h.t.Errorf("by %s, unchecked %d, unbound %+v, wan0 since %v", s.By, s.Unchecked, s.Unbound, link(h.t, s, "wan0").Since)
	}
	if !s.NetworkManager.Running || !s.NetworkManager.Complete || s.NetworkManager.Version == "" {
		h.t.Errorf("NetworkManager is %+v", s.NetworkManager)
	}
	if len(s.Problems) != 0 || len(s.Unread) != 0 || s.InForce.Planned == 0 || s.InForce.Planned != s.InForce.Present {
		h.t.Errorf("problems %+v, unread %q, %+v", s.Problems, s.Unread, s.InForce)
	}
	tables := map[uint32]bool{}
	for n, name := range []string{"wan0", "wan1"} {
		l := link(h.t, s, name)
		isp := lab.DefaultISP(n)
		if l.Role != "uplink" || l.Profile != name || !l.Up || !l.Carrier || l.Group != 28008 || l.Draining {
			h.t.Errorf("%s is %+v", name, l)
		}
		v4, v6 := network(l, "ipv4"), network(l, "ipv6")
		if v4.Prefix != isp.IPv4.Masked() || v6.Prefix != isp.IPv6.Masked() {
			h.t.Errorf("%s has the networks %v and %v", name, v4.Prefix, v6.Prefix)
		}
		if len(v4.Gateways) != 1 || *v4.Gateways[0].Via != isp.IPv4.Addr() || len(v6.Gateways) != 1 || !v6.Gateways[0].Via.IsLinkLocalUnicast() {
			h.t.Errorf("%s has the gateways %+v and %+v", name, v4.Gateways, v6.Gateways)
		}
		if len(v4.Addresses) != 1 || v4.Addresses[0].Address != h.addr(name) || !slices.Contains(v4.Addresses[0].Flags, "dynamic") {
			h.t.Errorf("%s has the addresses %+v", name, v4.Addresses)
		}
		for _, table := range []uint32{v4.Table, v6.Table} {
			if table < s.Tables.First || table > s.Tables.Last || tables[table] {
				h.t.Errorf("%s has the table %d", name, table)
			}
			tables[table] = true
		}
		// The kernel confirms the syntax.
		rule := fmt.Sprintf("10000: from %s lookup %d", h.addr(name), v4.Table)
		if !slices.ContainsFunc(l.Objects, func(o cli.Object) bool { return o.Text == rule && o.State == "in force" }) {
			h.t.Errorf("%s has no rule %q in %+v", name, rule, l.Objects)
		}
		words := strings.Join(strings.Fields(strings.ReplaceAll(h.ip("rule", "show", "priority", "10000"), " proto 150", "")), " ")
		if words = strings.ReplaceAll(words, " proto multihomed", ""); !strings.Contains(words, rule) {
			h.t.Errorf("the kernel has no rule %q:\n%s", rule, words)
		}
	}
	h.sameForNobody(s)

	if r := h.ctl("status", "wan1"); r.status != 0 || strings.Contains(r.out, "wan0") || !strings.Contains(r.out, "wan1") || !strings.Contains(r.out, fmt.Sprintf("%d of %[1]d rules", link(h.t, s, "wan1").InForce.Planned)) {
		h.t.Errorf("status of wan1: %s", r)
	}
	if r := h.ctl("status", "wan9"); r.status != 2 || !strings.Contains(r.err, "no interface wan9 to show") || !strings.Contains(r.err, "there are wan0, wan1") {
		h.t.Errorf("status of an interface that is not there: %s", r)
	}
	if r := h.ctl("__complete", "status", ""); !strings.Contains(r.out, "wan0\nwan1\n") {
		h.t.Errorf("completion gave %s", r)
	}
}

// sameForNobody: a user without any right sees what root sees, and is told
// what could not be read.
func (h *host) sameForNobody(root cli.Status) {
	h.t.Helper()
	s := h.parse(h.as(nobody, "status", "--json"))
	if s.OK != root.OK || s.Daemon.Running != root.Daemon.Running || s.Daemon.PID != root.Daemon.PID || s.InForce != root.InForce {
		h.t.Errorf("nobody sees %v, %+v, %+v; root %v, %+v, %+v", s.OK, s.Daemon, s.InForce, root.OK, root.Daemon, root.InForce)
	}
	for i, l := range root.Links {
		if n := s.Links[i]; n.Interface != l.Interface || n.Role != l.Role || n.Profile != l.Profile || !slices.EqualFunc(n.Networks, l.Networks, sameNetwork) || !slices.Equal(n.Objects, l.Objects) {
			h.t.Errorf("nobody sees %+v; root %+v", n, l)
		}
	}
	// The daemon tells every user the same; without it, status reports unreadable parts.
	if told := len(s.Unread) == 1 && strings.Contains(s.Unread[0], "leases.db"); s.By != root.By || told != (s.By != "daemon") {
		h.t.Errorf("by %s nobody is told %q", s.By, s.Unread)
	}
}

func sameNetwork(a, b cli.Network) bool {
	return a.Prefix == b.Prefix && a.Table == b.Table && len(a.Addresses) == len(b.Addresses) && len(a.Gateways) == len(b.Gateways)
}

// damaged removes a rule and a route of ours, changes a group, and adds an unplanned rule.
func (h *host) damaged() {
	h.t.Helper()
	s := h.status()
	if s.OK || s.InForce.Planned-s.InForce.Present != 2 || s.InForce.Unexpected != 1 {
		h.t.Errorf("damaged: ok %v, %+v", s.OK, s.InForce)
	}
	state := func(objects []cli.Object, state status.State, text string) {
		h.t.Helper()
		if !slices.ContainsFunc(objects, func(o cli.Object) bool { return o.State == state && strings.Contains(o.Text, text) }) {
			h.t.Errorf("nothing is %s with %q in %+v", state, text, objects)
		}
	}
	state(link(h.t, s, "wan0").Objects, "missing", "10000: from "+h.addr("wan0").String()+" lookup ")
	state(link(h.t, s, "wan1").Objects, "missing", "default via "+lab.DefaultISP(1).IPv4.Addr().String()+" dev wan1 table ")
	state(s.Shared, "unexpected", "10000: from 192.0.2.1 lookup 10900")
	if p := problem(s, "not-in-force"); p == nil || p.Severity != routing.Error || !strings.Contains(p.Text, "2 of ") {
		h.t.Errorf("problems are %+v", s.Problems)
	}
	if p := problem(s, routing.ForeignGroup); p == nil || p.Link != "wan1" || !strings.Contains(p.Text, "interface group 7") {
		h.t.Errorf("problems are %+v", s.Problems)
	}
	r := h.ctl("status")
	for _, want := range []string{"  missing     -4 10000: from ", "  unexpected  -4 10000: from 192.0.2.1", "fix  systemctl enable --now multihomed"} {
		if r.status != 1 || !strings.Contains(r.out, want) {
			h.t.Errorf("no %q in %s", want, r)
		}
	}
}

// TestStatusWithoutNetworkManager: existing routing is shown although the links are unknown, and
// none of it as unexpected.
func TestStatusWithoutNetworkManager(t *testing.T) {
	h := newHost(t)
	h.start()
	before := h.status()
	h.must(h.StopNM(t.Context()))
	labtest.Eventually(t, func() error {
		if s := h.status(); s.NetworkManager.Running {
			return fmt.Errorf("NetworkManager is %+v", s.NetworkManager)
		}
		return nil
	})
	h.without(before, "network-manager")
	h.must(h.KillBus())
	labtest.Eventually(t, func() error {
		if s := h.status(); !strings.Contains(s.NetworkManager.Waiting, "bus") {
			return fmt.Errorf("without a bus NetworkManager is %+v, unread %q", s.NetworkManager, s.Unread)
		}
		return nil
	})
	h.without(before, "network-manager")
}

func (h *host) without(before cli.Status, code routing.Code) {
	h.t.Helper()
	s := h.status()
	if !s.OK || s.InForce.Present != before.InForce.Present || s.InForce.Unexpected != 0 || problem(s, code) == nil && problem(s, routing.WaitsForOwners) == nil {
		h.t.Errorf("ok %v, %+v (before: %+v), problems %+v", s.OK, s.InForce, before.InForce, s.Problems)
	}
	for _, l := range before.Links {
		now := link(h.t, s, l.Interface)
		if now.Role != l.Role || !slices.EqualFunc(now.Networks, l.Networks, sameNetwork) {
			h.t.Errorf("%s is %+v, was %+v", l.Interface, now, l)
		}
	}
}

// TestSecretProfile: what a profile says that is not for this user is not
// guessed. This one keeps IPv6 for itself.
func TestSecretProfile(t *testing.T) {
	h := newHost(t)
	h.must(h.Modify(t.Context(), "wan1", "connection.permissions", "user:root", "ipv6.route-table", "77"))
	h.must(h.Up(t.Context(), "wan1"))
	_, err := h.WaitAddr(t.Context(), "wan1", lab.IPv4)
	h.must(err)
	h.start()
	root := h.status()
	// With the daemon, every user sees all; without it, only what the user may read.
	h.stop()
	s := h.parse(h.as(nobody, "status", "--json"))
	if link(t, root, "wan1").LeftAlone["ipv6"] != `profile "wan1" sets ipv6.route-table=77` {
		t.Errorf("root sees %+v", link(t, root, "wan1"))
	}
	p := problem(s, routing.NotUnderstood)
	if !s.OK || s.InForce != root.InForce || p == nil || p.Link != "wan1" || !strings.Contains(p.Text, "permission") {
		t.Errorf("nobody sees ok %v, %+v (root: %+v), problems %+v", s.OK, s.InForce, root.InForce, s.Problems)
	}
	if !strings.Contains(link(t, s, "wan1").LeftAlone["ipv6"], "could not be read") {
		t.Errorf("nobody sees %+v", link(t, s, "wan1"))
	}
}

// TestStatusOfOthers: interfaces that are not links have a reason.
func TestStatusOfOthers(t *testing.T) {
	h := newHost(t)
	h.start()
	_, err := h.NewBridge("docker0", netip.MustParsePrefix("172.17.0.1/16"))
	h.must(err)
	h.must(h.Down(t.Context(), "wan1"))
	labtest.Eventually(t, func() error {
		s := h.status()
		why := map[string]string{}
		for _, o := range s.Others {
			why[o.Interface] = o.Why
		}
		if !s.OK || len(s.Links) != 1 || !strings.Contains(why["docker0"], "external") || why["wan1"] != "disconnected" || why["lo"] != "" {
			return fmt.Errorf("ok %v, %d links, others %+v", s.OK, len(s.Links), s.Others)
		}
		return nil
	})
}

func (h *host) addr(dev string) netip.Addr {
	h.t.Helper()
	addr, err := h.WaitAddr(h.t.Context(), dev, lab.IPv4)
	h.must(err)
	return addr
}

func link(t *testing.T, s cli.Status, name string) cli.Link {
	t.Helper()
	for _, l := range s.Links {
		if l.Interface == name {
			return l
		}
	}
	t.Fatalf("%s is not a link: %+v", name, s.Links)
	return cli.Link{}
}

func network(l cli.Link, family string) cli.Network {
	for _, n := range l.Networks {
		if n.Family == family {
			return n
		}
	}
	return cli.Network{}
}

func problem(s cli.Status, code routing.Code) *cli.Problem {
	for i := range s.Problems {
		if s.Problems[i].Code == code {
			return &s.Problems[i]
		}
	}
	return nil
}

// TestDaemonThatHangs: status does not wait for it, and reports it.
func TestDaemonThatHangs(t *testing.T) {
	h := newHost(t)
	h.start()
	h.must(syscall.Kill(h.daemon.Pid(), syscall.SIGSTOP))
	began := time.Now()
	s := h.status()
	took := time.Since(began)
	h.must(syscall.Kill(h.daemon.Pid(), syscall.SIGCONT))
	p := problem(s, "daemon")
	if s.OK || s.By != "multihomectl" || p == nil || p.Severity != routing.Error || !strings.Contains(p.Text, "does not answer") || len(s.Links) != 2 {
		t.Errorf("by %s after %v: %+v", s.By, took, s.Problems)
	}
	h.settle()
	if s := h.status(); s.By != "daemon" {
		t.Errorf("by %s", s.By)
	}
}

// TestManyAsk: clients that connect and do not read, and many requests, delay neither links nor status.
func TestManyAsk(t *testing.T) {
	h := newHost(t)
	h.start()
	path := filepath.Join("/run/multihomed", socket.Name)
	for range 100 { // they read nothing
		conn, err := new(net.Dialer).DialContext(t.Context(), "unix", path)
		h.must(err)
		defer conn.Close()
	}
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	var answers atomic.Int64
	for range 200 {
		clients.Go(func() {
			for ctx.Err() == nil {
				// They do not read what it says: that would cost more than the answer.
				if _, err := socket.Fetch(ctx, "/run/multihomed"); err == nil {
					answers.Add(1)
				}
			}
		})
	}
	var longest time.Duration
	for n := range 20 {
		address := fmt.Sprintf("198.51.100.%d", n+1)
		began := time.Now()
		h.ip("address", "add", address+"/24", "dev", "wan0")
		labtest.Eventually(t, func() error {
			if rules := h.ip("rule", "show", "priority", "10000"); !strings.Contains(rules, "from "+address+" ") {
				return fmt.Errorf("no rule for %s in %s", address, rules)
			}
			return nil
		})
		longest = max(longest, time.Since(began))
	}
	s := h.status()
	stop()
	clients.Wait()
	t.Logf("%d answers meanwhile; the slowest address had its rule after %v", answers.Load(), longest)
	if !s.OK || answers.Load() == 0 {
		t.Errorf("ok %t by %s, %d answers; %+v", s.OK, s.By, answers.Load(), s.Problems)
	}
}

// TestRoutesOfMain: whatever main has through a link is counted, and listed with its reason
// as long as it is not very much.
func TestRoutesOfMain(t *testing.T) {
	h := newHost(t)
	h.start()
	before := link(t, h.status(), "wan0")
	table := network(before, "ipv4").Table
	gateway := lab.DefaultISP(0).IPv4.Addr().String()
	grown := func(routes int) error {
		s := h.status()
		l := link(t, s, "wan0")
		if want := before.InForce.Planned + routes; l.InForce.Planned != want || l.InForce.Present != want || !s.OK {
			return fmt.Errorf("%d routes: %+v of %+v before, ok %t", routes, l.InForce, before.InForce, s.OK)
		}
		return nil
	}
	h.ip("route", "add", "198.51.100.0/24", "via", gateway, "dev", "wan0")
	labtest.Eventually(t, func() error { return grown(1) })
	l := link(t, h.status(), "wan0")
	isIt := func(o cli.Object) bool {
		return o.Kind == "route" && o.State == "in force" && o.Reason == string(routing.Copied) && strings.Contains(o.Text, "198.51.100.0/24 via "+gateway)
	}
	if !slices.ContainsFunc(l.Objects, isIt) || network(l, "ipv4").Routes != 0 {
		t.Errorf("the route is not listed: %+v", l)
	}
	r := h.ctl("status", "wan0", "-v")
	if r.status != 0 || !strings.Contains(r.out, "198.51.100.0/24 via") || strings.Contains(r.out, "not listed") {
		t.Errorf("%+v", r)
	}

	for i := range 110 {
		h.ip("route", "add", fmt.Sprintf("198.18.%d.0/24", i), "via", gateway, "dev", "wan0", "src", h.addr("wan0").String(), "mtu", fmt.Sprint(1300+i))
	}
	labtest.Eventually(t, func() error { return grown(111) })
	l = link(t, h.status(), "wan0")
	if slices.ContainsFunc(l.Objects, isIt) || network(l, "ipv4").Routes != 111 {
		t.Errorf("many routes: %d, listed %t", network(l, "ipv4").Routes, slices.ContainsFunc(l.Objects, isIt))
	}
	further := fmt.Sprintf("and 111 routes that main has through the link, not listed: ip -4 route show table %d", table)
	if r := h.ctl("status", "wan0", "-v"); r.status != 0 || !strings.Contains(r.out, further) {
		t.Errorf("%+v\nwant %s", r, further)
	}
	h.stop()
	if err := grown(111); err != nil {
		t.Errorf("without the daemon: %v", err)
	}
	h.ip("route", "del", "198.18.7.0/24", "table", fmt.Sprint(table))
	if l := link(t, h.status(), "wan0"); l.InForce.Planned-l.InForce.Present != 1 || l.InForce.Planned != before.InForce.Planned+111 {
		t.Errorf("one is missing: %+v of %+v before", l.InForce, before.InForce)
	}
}
