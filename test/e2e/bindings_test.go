package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/explain"
	"multihomed/internal/status"
	"multihomed/routing"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
	"multihomed/test/schematest"
)

// A bound thing is something that is bound, and how it asks.
type bound struct {
	name string
	ask  func(ctx context.Context, network string, to netip.Addr) (lab.Answer, error)
}

// local are the two kinds of local bindings of these tests.
func local(from lab.From) func(context.Context, string, netip.Addr) (lab.Answer, error) {
	return func(ctx context.Context, network string, to netip.Addr) (lab.Answer, error) {
		if network == "tcp" {
			return lab.DialTCP(ctx, from, to)
		}
		return lab.DialUDP(ctx, from, to)
	}
}

// answeredBy wants each to be answered by a provider, by TCP and UDP, IPv4 and IPv6.
func (p *publishing) answeredBy(isp, when string, all ...bound) {
	p.t.Helper()
	for _, b := range all {
		for _, to := range []netip.Addr{lab.InternetAddr4, lab.InternetAddr6} {
			for _, network := range []string{"tcp", "udp"} {
				p.eventually(func() error {
					ctx, cancel := context.WithTimeout(p.t.Context(), lab.Stretched(2*time.Second))
					defer cancel()
					a, err := b.ask(ctx, network, to)
					if err == nil && a.ISP != isp {
						err = fmt.Errorf("answered by %s", a.ISP)
					}
					if err != nil {
						return fmt.Errorf("%s: %s by %s to %v: %w", when, b.name, network, to, err)
					}
					return nil
				})
			}
		}
	}
}

// silent wants nothing of them to be answered, nor to leave at all: no provider sees a packet to
// the internet.
func (p *publishing) silent(when string, all ...bound) {
	p.t.Helper()
	for _, c := range p.captures {
		c.Reset()
	}
	for _, b := range all {
		for _, to := range []netip.Addr{lab.InternetAddr4, lab.InternetAddr6} {
			for _, network := range []string{"tcp", "udp"} {
				ctx, cancel := context.WithTimeout(p.t.Context(), lab.Stretched(300*time.Millisecond))
				if a, err := b.ask(ctx, network, to); err == nil {
					p.t.Errorf("%s: %s by %s to %v is answered by %s", when, b.name, network, to, a.ISP)
				}
				cancel()
			}
		}
	}
	for n, c := range p.captures {
		packets, err := c.Matching(func(k lab.Packet) bool {
			// What ends a connection of before may come late.
			begins := k.Opens || k.Proto != unix.IPPROTO_TCP
			return (k.Dst == lab.InternetAddr4 || k.Dst == lab.InternetAddr6) && k.DstPort == lab.EchoPort && begins
		})
		p.must(err)
		if len(packets) > 0 {
			p.t.Errorf("%s: %s saw what must not leave:\n%s", when, p.isps[n].Name(), lab.FormatPackets(packets))
		}
	}
}

// bindingIs wants a binding to be in a state.
func (r *rig) bindingIs(selector, value, state string) {
	r.t.Helper()
	r.eventually(func() error {
		s, err := r.json()
		if err != nil {
			return err
		}
		at := slices.IndexFunc(s.Bindings, func(b status.Binding) bool { return b.Selector == selector && b.Value == value })
		if at < 0 {
			return fmt.Errorf("no binding of %s=%s in %+v", selector, value, s.Bindings)
		}
		if s.Bindings[at].State != state {
			return fmt.Errorf("%+v is not %s", s.Bindings[at], state)
		}
		return nil
	})
}

// TestBindings: what is bound to a link leaves by it and by nothing else, whatever happens to the
// link, the daemon, the table of nftables and the rules of others; a published port of a bound
// container is answered where it was asked.
func TestBindings(t *testing.T) {
	const toml = `
[[bind]]
link = "wan1"
user = "1500-1501"

[[bind]]
link = "wan1"
mark = "0x10/0xff"

[[bind]]
link = "wan1"
interface = "docker0"

[[bind]]
link = "wan1"
source = "172.18.0.0/24"

[[bind]]
link = "wan1"
source = "fd18::/64"

[[bind]]
link = "wan9"
user = "1600"
`
	p := newPublishing(t, forwards(), toml)
	other, err := p.NewBridge("br-shared", netip.MustParsePrefix("172.18.0.1/16"))
	p.must(err)
	p.must(other.AddAddr(netip.MustParsePrefix("fd18::1/64")))
	inside, err := other.Container("inside", netip.MustParsePrefix("172.18.0.2/16"))
	p.must(err)
	p.must(inside.AddAddr("eth0", netip.MustParsePrefix("fd18::2/64")))
	p.must(inside.AddRoute(lab.DefaultVia(netip.MustParseAddr("fd18::1")), "eth0"))
	p.nft("add rule ip nat post ip saddr 172.18.0.0/16 oifname != br-shared masquerade\nadd rule ip6 nat post ip6 saddr fd18::/64 oifname != br-shared masquerade\n")
	p.start()
	for _, link := range []string{"wan0", "wan1"} {
		_, err := p.WaitAddr(t.Context(), link, lab.IPv6)
		p.must(err)
	}
	p.marks(lab.IPv6, 2)
	all := []bound{
		{"user 1500", local(lab.From{User: 1500})},
		{"user 1501", local(lab.From{User: 1501})},
		{"mark 0x10", local(lab.From{Mark: 0x10})},
		{"mark 0x110", local(lab.From{Mark: 0x110})},
		{"the container", func(ctx context.Context, network string, to netip.Addr) (lab.Answer, error) {
			return p.container.Call(ctx, lab.From{}, network, to)
		}},
		{"the network inside", func(ctx context.Context, network string, to netip.Addr) (lab.Answer, error) {
			return inside.Call(ctx, lab.From{}, network, to)
		}},
	}
	nobody := bound{"user 1600", local(lab.From{User: 1600})}
	unbound := bound{"user 1502", local(lab.From{User: 1502})}
	p.answeredBy("isp1", "at first", all...)
	p.answeredBy("isp0", "at first", unbound)
	p.silent("without its link", nobody)
	p.bindingIs("user", "1600", status.BindingDown)
	p.asked("at first", lab.IPv4, lab.IPv6)
	p.strays("at first")
	p.explainsBindings()
	// What is bound reaches the networks of the host, and is answered from there.
	near := func(when string) {
		t.Helper()
		for _, c := range []struct {
			from bound
			to   string
			want string
		}{
			{all[0], "172.17.0.2", "container"},
			{all[2], "172.17.0.2", "container"},
			{all[0], "fd17::2", "container"},
			{all[4], "172.18.0.2", "inside"},
			{all[4], "fd18::2", "inside"},
			{all[5], "172.17.0.2", "container"},
			{unbound, "172.17.0.2", "container"},
		} {
			ctx, cancel := p.patience()
			if a, err := c.from.ask(ctx, "udp", netip.MustParseAddr(c.to)); err != nil || a.ISP != c.want {
				t.Errorf("%s: %s asks %s: %q, %v", when, c.from.name, c.to, a.ISP, err)
			}
			cancel()
		}
	}
	near("at first")

	p.must(p.Down(t.Context(), "wan1"))
	p.bindingIs("interface", "docker0", status.BindingDown)
	p.silent("without the link", all...)
	near("without the link")
	p.answeredBy("isp0", "without the link", unbound)
	p.up("wan1")
	p.bindingIs("interface", "docker0", status.BindingActive)
	p.answeredBy("isp1", "with the link again", all...)
	p.strays("while the link went and came")

	// A rule of somebody else takes the packets: they are dropped, and status names it.
	p.ip("rule", "add", "uidrange", "1500-1500", "lookup", "main", "priority", "100")
	p.reported(true, "wan1", `uidrange 1500-1500 lookup main" of another program comes before the binding of user 1500-1501`)
	for range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), lab.Stretched(300*time.Millisecond))
		if a, err := all[0].ask(ctx, "udp", lab.InternetAddr4); err == nil {
			t.Errorf("by the rule of somebody else: answered by %s", a.ISP)
		}
		cancel()
	}
	p.eventually(func() error {
		s, err := p.json()
		if err == nil && s.Bindings[0].Dropped == 0 {
			err = errors.New("nothing was dropped")
		}
		return err
	})
	p.ip("rule", "del", "priority", "100")
	p.answeredBy("isp1", "without the rule", all[0])

	_, err = p.Run(t.Context(), "nft", "delete", "table", "inet", "multihomed")
	p.must(err)
	p.answeredBy("isp1", "without the table", all...)
	p.kill9()
	p.answeredBy("isp1", "without the daemon", all...)
	p.ip("link", "set", "wan1", "down")
	p.silent("without the daemon and the link", all...)
	p.ip("link", "set", "wan1", "up")
	p.start()
	// NetworkManager may not have seen yet that it is up.
	p.eventually(func() error { return p.Up(t.Context(), "wan1") })
	p.answeredBy("isp1", "after a start", all...)
	p.strays("to the end")
	if out, err := p.ctl("off"); err != nil {
		t.Errorf("off: %v: %s", err, out)
	}
	p.answeredBy("isp0", "switched off", all[0])
	if out, err := p.ctl("on"); err != nil {
		t.Errorf("on: %v: %s", err, out)
	}
	p.answeredBy("isp1", "switched on", all...)
	p.must(p.daemon.Stop(t.Context()))
	p.answeredBy("isp1", "after a stop", all...)
	p.flush()
}

// TestBind: multihomectl binds and unbinds at once, also users and links that do not exist yet; what
// it keeps until the next boot does not last longer; the configuration wins.
func TestBind(t *testing.T) {
	p := newPublishing(t, forwards(), "[[bind]]\nlink = \"wan1\"\nuser = \"1500\"\ndns = false\n")
	p.start()
	bind := func(want string, args ...string) {
		t.Helper()
		out, err := p.ctl(append([]string{"bind"}, args...)...)
		if !strings.Contains(out, want) {
			t.Errorf("bind %v: %v: %s, want %s", args, err, out, want)
		}
	}
	user := func(uid int) bound { return bound{fmt.Sprintf("user %d", uid), local(lab.From{User: uid})} }
	bind("the configuration binds user=1500", "add", "wan0", "user=1400-1600")
	bind("user=1700 is bound to wan1, but its DNS queries go where the host's resolver sends them\n", "add", "wan1", "user=1700")
	p.answeredBy("isp1", "added", user(1700))
	bind("user=1700 is bound to wan0\n", "add", "wan0", "user=1700", "--dns=false")
	p.answeredBy("isp0", "with another link", user(1700))
	bind("user=1700 is bound to wan0 already; to fix: multihomectl bind remove user=1700", "add", "wan1", "user=1700", "--runtime")
	bind("user=1701 is bound to later, which is down: there is no link later, and nothing of it leaves", "add", "later", "user=1701", "--runtime")
	p.silent("bound to what does not exist", user(1701))
	bind("and waits: there is no user bonita", "add", "wan1", "user=bonita")
	bind("and waits: there is no interface br-later", "add", "wan1", "interface=br-later")
	bind(`interface: "lo" is not allowed`, "add", "wan1", "interface=lo")
	bind(`there is no command "bind wan1"`, "wan1")
	bind(`user: "root" is not allowed`, "add", "wan1", "user=root")
	bind(`"usr=1" is no selector; did you mean user?`, "add", "wan1", "usr=1")
	bind("the configuration binds user=1500; to fix: remove its [[bind]]", "remove", "user=1500")
	bind("user=9 is not bound", "remove", "user=9")
	bind("mark=0x20 is bound to wan1", "add", "wan1", "mark=32", "--strict=false")
	p.answeredBy("isp1", "by its mark", bound{"mark 0x20", local(lab.From{Mark: 0x20})})

	// What is forwarded may have the mark of somebody else.
	bind("mark=0x40/0x40 is bound to wan1", "add", "wan1", "mark=0x40/0x40")
	p.nft("table inet marking {\n\tchain pre {\n\t\ttype filter hook prerouting priority mangle\n\t\tiifname docker0 meta mark set meta mark | 0x40\n\t}\n}\n")
	p.answeredBy("isp0", "forwarded with a bound mark", bound{"the container", func(ctx context.Context, network string, to netip.Addr) (lab.Answer, error) {
		return p.container.Call(ctx, lab.From{}, network, to)
	}})
	p.asked("with a bound mark", lab.IPv4, lab.IPv6)
	p.answeredBy("isp1", "by its mark", bound{"mark 0x40", local(lab.From{Mark: 0x40})})
	// The host's own address is no container's.
	bind("which has no effect: 100.64.0.", "add", "wan1", "source=100.64.0.0/16")
	p.answeredBy("isp0", "beside a network with own addresses", user(1710))

	passwd, err := os.ReadFile("/etc/passwd")
	p.must(err)
	p.must(os.WriteFile("/etc/passwd", append(passwd, "bonita:x:1702:1702::/:/bin/false\n"...), 0o644))
	p.answeredBy("isp1", "there is the user", user(1702))
	p.bindingIs("user", "bonita", status.BindingActive)
	p.must(os.WriteFile("/etc/passwd", passwd, 0o644))

	_, err = p.NewBridge("br-later", netip.MustParsePrefix("172.19.0.1/24"))
	p.must(err)
	p.bindingIs("interface", "br-later", status.BindingActive)

	// The profile of a link is a name of it, too.
	p.must(p.AddProfile(t.Context(), "provider two", "wan1", "ipv6.addr-gen-mode", "eui64"))
	bind("user=1703 is bound to provider two, which is down", "add", "provider two", "user=1703", "--dns=false")
	p.up("provider two")
	p.bindingIs("user", "1703", status.BindingActive)
	p.answeredBy("isp1", "by its profile", user(1703))

	p.must(p.daemon.Stop(t.Context()))
	bind("it takes effect when multihomed runs: systemctl", "add", "wan1", "user=1704")
	p.must(os.RemoveAll(p.cfg.RuntimeDir)) // As a boot does.
	p.start()
	p.answeredBy("isp1", "after a boot", user(1704))
	p.answeredBy("isp0", "after a boot", user(1701))
	bind("user=1704 is no longer bound to wan1\n", "remove", "user=1704")
	p.answeredBy("isp0", "removed", user(1704))
	text, err := p.ctl("bind", "list", "--json")
	p.must(err)
	p.must(schematest.Check("bind-list", []byte(text)))
	out, err := p.ctl("bind", "list")
	p.must(err)
	for _, want := range []string{"user=1500 by wan1: in the configuration\n", "user=1700 by wan0\n", "user=1703 by provider two (wan1)\n", "mark=0x20 by wan1: not strict\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("bind list has no %q:\n%s", want, out)
		}
	}
	p.must(os.WriteFile(p.cfg.StateDir+"/bindings.toml", []byte("[[bind]\n"), 0o644))
	if out, err := p.ctl("bind", "add", "wan1", "user=1705"); err == nil || !strings.Contains(out, "correct or remove the file") {
		t.Errorf("with a damaged file: %v: %s", err, out)
	}
	p.kill9()
	p.start()
	p.reported(true, "", "reading what is bound")
	p.answeredBy("isp1", "with a damaged file", user(1703))
}

// TestBoundLater: what a container has open when it is bound begins anew by its link: TCP is told, and
// UDP goes on. It would hang otherwise, for the fence drops what has the address of another link.
func TestBoundLater(t *testing.T) {
	p := newPublishing(t, forwards(), "")
	p.start()
	for _, link := range []string{"wan0", "wan1"} {
		_, err := p.WaitAddr(t.Context(), link, lab.IPv6)
		p.must(err)
	}
	p.marks(lab.IPv6, 2)
	open := map[string]*conversation{}
	for _, to := range []netip.Addr{lab.InternetAddr4, lab.InternetAddr6} {
		for _, network := range []string{"tcp", "udp"} {
			open[network+" to "+to.String()] = converse(t, p.container, network, to)
		}
	}
	// answered waits until somebody answers, or says that the conversation has ended.
	answered := func(c *conversation, isp string) error {
		var ended error
		p.eventually(func() error {
			line, err := c.ask()
			switch {
			case err == nil && !strings.Contains(line, `"`+isp+`"`):
				return fmt.Errorf("%s answers, not %s", line, isp)
			case errors.Is(err, errQuiet):
				return err
			}
			ended = err
			return nil
		})
		return ended
	}
	for name, c := range open {
		if err := answered(c, "isp0"); err != nil {
			t.Errorf("before: %s: %v", name, err)
		}
	}
	if out, err := p.ctl("bind", "add", "wan1", "interface=docker0"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, c := range open {
		if err := answered(c, "isp1"); err != nil != strings.HasPrefix(name, "tcp") {
			t.Errorf("bound: %s: %v", name, err)
		}
	}
	p.strays("after it was bound")
}

// TestBoundProfile: a shared connection is bound by its own profile.
func TestBoundProfile(t *testing.T) {
	p := newPublishing(t, forwards(), "")
	p.must(p.WriteProfile("guests", "docker0", "connection.type=bridge", "bridge.stp=false", "ipv4.method=manual", "ipv4.address1=172.17.0.1/16", "ipv6.method=manual", "ipv6.address1=fd17::1/64", "user.multihomed.bind=wan1"))
	p.must(p.ReloadProfiles(t.Context()))
	p.start()
	container := bound{"the container", func(ctx context.Context, network string, to netip.Addr) (lab.Answer, error) {
		return p.container.Call(ctx, lab.From{}, network, to)
	}}
	p.up("guests")
	// NetworkManager takes the ports of a bridge for its own.
	p.ip("link", "set", "docker0.1", "master", "docker0")
	p.bindingIs("interface", "docker0", status.BindingActive)
	p.answeredBy("isp1", "by the profile", container)
	p.must(p.Down(t.Context(), "wan1"))
	p.bindingIs("interface", "docker0", status.BindingDown)
	p.silent("without the link", container)
}

// TestBoundCgroup: a control group that is bound by its path waits, is bound when it is made, and when it
// is made anew; its programs leave by the link alone, also without the daemon.
func TestBoundCgroup(t *testing.T) {
	r := newRunning(t, "")
	r.outside = true
	r.startBinder()
	const mount = "/sys/fs/cgroup"
	r.must(unix.Mount(filepath.Dir(r.cgroup.Path), mount, "", unix.MS_BIND, ""))
	t.Cleanup(func() { r.must(unix.Unmount(mount, unix.MNT_DETACH)) })
	group := filepath.Join(mount, filepath.Base(r.cgroup.Path), "service")
	if out, err := r.rig.ctl("bind", "add", "wan1", "cgroup="+group); err != nil || !strings.Contains(out, "and waits: ") {
		t.Fatalf("%v: %s", err, out)
	}
	// within runs a program in the group.
	within := func(args ...string) string {
		t.Helper()
		dir, err := os.Open(group)
		r.must(err)
		defer dir.Close()
		cmd := exec.CommandContext(t.Context(), r.asker, args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	ask := []string{"tcp " + outside(lab.IPv4), "tcp " + outside(lab.IPv6), "udp " + outside(lab.IPv4), "udp " + outside(lab.IPv6), "dns 127.0.0.53:53"}
	answered := func(when string) {
		t.Helper()
		lines := strings.Split(strings.TrimSpace(within(ask...)), "\n")
		for n, line := range lines {
			if strings.HasPrefix(line, "error:") || n < 4 && !strings.Contains(line, r.isps[1].Name()) {
				t.Errorf("%s: %s: %s", when, ask[n], line)
			}
		}
		r.nothingAt0(when)
	}
	r.captures[0].Reset()
	for _, when := range []string{"made", "made anew"} {
		r.must(os.Mkdir(group, 0o755))
		r.bindingIs("cgroup", group, status.BindingActive)
		answered(when)
		if when == "made" {
			r.must(unix.Rmdir(group))
			r.bindingIs("cgroup", group, status.BindingWaits)
		}
	}
	r.kill9()
	answered("without the daemon")
	r.must(r.Down(t.Context(), "wan1"))
	r.start()
	r.bindingIs("cgroup", group, status.BindingDown)
	r.captures[0].Reset()
	for line := range strings.Lines(within(ask...)) {
		if !strings.HasPrefix(line, "error:") {
			t.Errorf("without the link: %s", line)
		}
	}
	r.nothingAt0("without the link")
	r.up("wan1")
	// The binding is active as soon as one family is there.
	r.address("wan1", lab.IPv6)
	r.settled("wan0", "wan1")
	r.bindingIs("cgroup", group, status.BindingActive)
	answered("with the link again")
	if out, err := r.rig.ctl("bind", "remove", "cgroup="+group); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	answered("no longer, for as long as the group exists")
	r.must(unix.Rmdir(group))
	r.must(os.Mkdir(group, 0o755))
	if out := within("tcp " + outside(lab.IPv4)); !strings.Contains(out, r.isps[0].Name()) {
		t.Errorf("no longer bound: %s", out)
	}
	r.must(unix.Rmdir(group))
}

// explainsBindings wants explain to say what the providers have just seen, and why.
func (p *publishing) explainsBindings() {
	p.t.Helper()
	program, err := labtest.Build("multihomectl")
	p.must(err)
	ask := func(args ...string) (d explain.Document, by explain.Rule) {
		p.t.Helper()
		out, err := exec.CommandContext(p.t.Context(), program, append([]string{"explain", "203.0.113.1", "--json", "--config", p.path}, args...)...).Output()
		if _, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed {
			p.t.Fatal(err)
		}
		p.must(json.Unmarshal(out, &d))
		p.must(schematest.Check("explain", out))
		if !d.Agrees {
			p.t.Errorf("%q: the kernel says something else: %s", args, out)
		}
		lookups := slices.DeleteFunc(slices.Clone(d.Lookups), func(l explain.Lookup) bool { return l.Purpose == explain.ForReverse })
		rules := lookups[len(lookups)-1].Rules
		if at := slices.IndexFunc(rules, func(r explain.Rule) bool { return r.Result == explain.Answers }); at >= 0 {
			by = rules[at]
		}
		return d, by
	}
	inside := []string{"--iif", "docker0", "--from", "172.17.0.2"}
	for _, c := range []struct {
		args         []string
		link, reason string
		binding      string
	}{
		{[]string{"--uid", "1500"}, "wan1", string(routing.Bind), "user 1500-1501 is bound to wan1 by configuration"},
		{[]string{"--uid", "1502"}, "wan0", "", ""},
		{[]string{"--uid", "1600"}, "", string(routing.BindNever), "user 1600 is bound to wan9 by configuration"},
		{[]string{"--mark", "0x110"}, "wan1", string(routing.Bind), "mark 0x10/0xff is bound to wan1 by configuration"},
		{inside, "wan1", string(routing.Bind), "interface docker0 is bound to wan1 by configuration"},
		{[]string{"--iif", "br-shared", "--from", "172.18.0.2"}, "wan1", string(routing.Bind), "source 172.18.0.0/24 is bound to wan1 by configuration"},
	} {
		d, by := ask(c.args...)
		if d.Interface != c.link || c.reason != "" && by.Reason != c.reason || c.binding != "" && by.Binding != c.binding {
			p.t.Errorf("%q: %s by %+v, want %s by %s (%s)", c.args, d.Summary, by, c.link, c.reason, c.binding)
		}
	}
	// An answer has the mark of the link that was asked, here the first one, which goes before what is bound.
	if d, by := ask(append([]string{"--mark", "0x1000000"}, inside...)...); d.Interface != "wan0" || by.Reason != string(routing.AnswerLink) || by.Link != "wan0" {
		p.t.Errorf("an answer: %s by %+v", d.Summary, by)
	}
}
