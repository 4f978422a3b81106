package cli_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"multihomed/internal/escape"
	"multihomed/internal/preview"
	"multihomed/internal/status"
	"multihomed/routing"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
	"multihomed/test/schematest"
)

// Names of interfaces that a shell, a terminal, JSON and nft(8) may each misread. nft(8) cannot
// write the first, which is that of a link without a gateway.
const (
	unwritable = "q;$(id)'\"\\\x1b\xff"
	hostile    = "p;`id`$\x1b\xff*"
)

// TestPlan runs the plan of a host by sh in a copy of its network namespace, and compares the copy with
// what the daemon makes on the host. Then the daemon converges with plans for another configuration.
func TestPlan(t *testing.T) {
	h := newPlanned(t)
	const file = "/etc/multihomed/multihomed.toml"
	h.must(os.WriteFile(file, []byte("[answers]\nforwarded = \"yes\"\nfence = \"yes\"\n"), 0o600))

	// Nothing of ours has ever been here: table numbers are chosen.
	fresh := h.copy("fresh", "main", "200", "51820")
	script := h.plan(nil, 1)
	h.run(fresh, script, "sh")
	h.nothing(fresh)
	h.start()
	h.alike(fresh, "after the start of the daemon")
	h.nothing(nil)

	// Links of clients, with names that no program expects.
	for i, gateway := range []string{"", "198.51.100.65"} {
		// NetworkManager finds the device by its address.
		profile := fmt.Sprint("odd", i)
		h.must(h.AddProfile(t.Context(), profile, "*", "802-3-ethernet.mac-address", oddMAC(i).String(), "ipv4.method", "manual",
			"ipv4.addresses", fmt.Sprintf("198.51.100.%d/26", 64*i+9), "ipv4.gateway", gateway, "ipv4.route-metric", fmt.Sprint(900+i), "ipv6.method", "disabled"))
		h.must(h.Up(t.Context(), profile))
	}
	if r := h.ctl("lease", "-i", alien, "-a", "192.0.2.7"); r.status != 0 {
		t.Fatal(r)
	}
	h.settled()
	named := h.copy("named", "main", "200", "51820")
	script = h.plan(named, 1)
	if strings.Contains(script, "\x1b") || !utf8.ValidString(script) {
		t.Errorf("the script controls the terminal: %q", script)
	}
	h.run(named, script, "sh")
	h.nothing(named)
	h.same(named, "with hostile names")
	h.distinct(named)

	// What goes missing while the daemon is away comes back as it was.
	before := h.state(nil)
	h.stop()
	h.damage()
	h.run(nil, h.plan(nil, 1), "sh")
	h.nothing(nil)
	h.differ("after the plan repaired what was damaged", sorted(before), sorted(h.state(nil)))
	h.start()

	// Another configuration: other tables, another group, no answers.
	other := filepath.Join(t.TempDir(), "other.toml")
	h.must(os.WriteFile(other, []byte("uplink_group = 77\n[tables]\nfirst = 31000\nlast = 31200\n[answers]\nforwarded = \"no\"\nfence = \"no\"\n"), 0o600))
	moved := h.copy("moved", "all")
	script = h.plan(nil, 1, "--config", other)
	if strings.Contains(h.plan(nil, 0), "table 31") || !strings.Contains(script, "table 31") {
		t.Errorf("the plan of another configuration is\n%s", script)
	}
	h.run(moved, script, "sh")
	text, err := os.ReadFile(other)
	h.must(err)
	h.stop()
	h.must(os.WriteFile(file, text, 0o600))
	h.start()
	h.alike(moved, "with another configuration")

	h.silence("wan0")
	h.settled()
	dead := h.copy("dead", "main", "200", "51820")
	h.run(dead, h.plan(dead, 1), "sh")
	h.nothing(dead)
	h.same(dead, "with a dead uplink")
	if out := h.ip("-4", "route", "show", "table", "31200"); !strings.Contains(out, "default via ") {
		t.Errorf("the table of failover has %q", out)
	}
	h.refused()
}

// oddMAC is the hardware address of an interface with a hostile name.
func oddMAC(i int) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 7, byte(i)} }

// A plannedHost is a host whose plans are run.
type plannedHost struct {
	*host
	isp *lab.ISP
}

// newPlanned is a host with two providers, a tunnel that takes all traffic, and rules of others.
func newPlanned(t *testing.T) *plannedHost {
	t.Helper()
	h := &host{Host: labtest.NewHost(t, lab.HostConfig{
		FastDAD: true, NMConfig: "[keyfile]\nunmanaged-devices=interface-name:" + alien + ";interface-name:tun0\n",
	}), t: t}
	var first *lab.ISP
	for n, name := range []string{"wan0", "wan1"} {
		isp := labtest.NewISP(t, h.Host, lab.DefaultISP(n))
		first = cmp.Or(first, isp)
		h.must(h.AddProfile(t.Context(), name, name))
		h.up(name)
	}
	// A second network: the table of each has a route to the other.
	h.must(h.AddAddr("wan0", "192.0.2.130/26"))
	_, err := h.NewTun("tun0")
	h.must(err)
	h.must(h.AddAddr("tun0", "10.7.0.2/32"))
	for i, name := range []string{unwritable, hostile} {
		_, err := h.NewLink(lab.LinkConfig{Name: name, Peer: fmt.Sprint("end", i), MAC: oddMAC(i), Up: true})
		h.must(err)
	}
	_, err = h.NewLink(lab.LinkConfig{Name: alien, Peer: "end2", Up: true})
	h.must(err)
	for _, words := range []string{
		"addr add 192.0.2.7/28 dev " + alien,
		"-4 route add default dev tun0 table 51820", "-4 rule add not fwmark 0xca6c lookup 51820 pref 32764",
		"-4 rule add lookup main suppress_prefixlength 0 pref 32763",
		"-4 route add 203.0.113.0/24 dev tun0 table 200", "-4 rule add fwmark 0x7 lookup 200 pref 31000",
		"-6 rule add to 2001:db8:77::/48 lookup 200 pref 31000", "-6 route add 2001:db8:77::/48 dev tun0 table 200",
	} {
		h.ip(strings.Fields(words)...)
	}
	return &plannedHost{h, first}
}

// run runs a program with an input, in a namespace or on the host, and returns its output.
func (h *plannedHost) run(ns *lab.Namespace, input, program string, args ...string) string {
	h.t.Helper()
	r := h.try(ns, input, program, args...)
	if r.status != 0 {
		h.t.Fatalf("%s %q: %s\n%q", program, args, r, input)
	}
	return r.out
}

func (h *plannedHost) try(ns *lab.Namespace, input, name string, args ...string) result {
	h.t.Helper()
	cmd := exec.CommandContext(h.t.Context(), name, args...)
	var out, stderr bytes.Buffer
	// ip-route(8) restores from a file alone.
	stdin := filepath.Join(h.t.TempDir(), "stdin")
	h.must(os.WriteFile(stdin, []byte(input), 0o600))
	in, err := os.Open(stdin)
	h.must(err)
	defer in.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Dir = in, &out, &stderr, "/"
	cmd.Env = append(os.Environ(), "TZ=UTC", "HOME=/", "GORACE=atexit_sleep_ms=0")
	err = func() error {
		if ns == nil {
			return cmd.Start()
		}
		return ns.Do(cmd.Start)
	}()
	h.must(err)
	err = cmd.Wait()
	if _, ended := errors.AsType[*exec.ExitError](err); err != nil && !ended {
		h.t.Fatal(err)
	}
	return result{out.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// plan is the script of the plan, which must end with a status.
func (h *plannedHost) plan(ns *lab.Namespace, status int, args ...string) string {
	h.t.Helper()
	r := h.try(ns, "", program(h.t, "multihomectl"), append([]string{"plan"}, args...)...)
	if r.status != status || r.err != "" {
		h.t.Fatalf("plan %q, want status %d: %s", args, status, r)
	}
	return r.out
}

func (h *plannedHost) nothing(ns *lab.Namespace) {
	h.t.Helper()
	if out := h.plan(ns, 0); out != "# multihomed would change nothing.\n# Not shown: endpoints of Multipath TCP on uplinks that NetworkManager does not serve\n" {
		h.t.Errorf("a second plan is\n%s", out)
	}
}

// silence lets the first provider drop everything, and waits until the daemon says that its uplink is dead.
func (h *plannedHost) silence(uplink string) {
	h.t.Helper()
	h.run(h.isp.Namespace(), "add table inet dead\nadd chain inet dead drops { type filter hook prerouting priority -300; policy drop; }\n", "nft", "-f", "-")
	labtest.Eventually(h.t, func() error {
		f := h.status().Failover
		if f == nil || !slices.ContainsFunc(f.Uplinks, func(u status.Health) bool { return u.Interface == uplink && u.State.Dead() }) {
			return fmt.Errorf("%s is not dead: %+v", uplink, f)
		}
		return nil
	})
}

// settled waits until the daemon has nothing left to do.
func (h *plannedHost) settled() {
	h.t.Helper()
	labtest.Eventually(h.t, func() error {
		if r := h.try(nil, "", program(h.t, "multihomectl"), "plan"); r.status != 0 {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
}

// twin begins the names of the other ends of cables in a copy.
const twin = "twin"

// copy makes a namespace with the interfaces of the host, their numbers and addresses, the rules, and
// the routes of some tables. With "all" it has what is ours, too.
func (h *plannedHost) copy(name string, tables ...string) *lab.Namespace {
	h.t.Helper()
	whole := slices.Contains(tables, "all")
	ns, err := h.NewNamespace(name)
	h.must(err)
	h.must(ns.Sysctl("net.ipv6.conf.default.addr_gen_mode", "1"))
	for _, a := range h.interfaces(nil) {
		if a.Name == "lo" {
			if slices.Contains(a.AltNames, routing.LoopbackAlias) && whole {
				h.run(ns, "", "ip", "link", "property", "add", "dev", "lo", "altname", routing.LoopbackAlias)
			}
			continue
		}
		h.run(ns, "", "ip", "link", "add", "name", a.Name, "index", fmt.Sprint(a.Index), "mtu", fmt.Sprint(a.MTU), "type", "veth", "peer", "name", fmt.Sprint(twin, a.Index), "index", fmt.Sprint(1000+a.Index))
		h.run(ns, "", "ip", "link", "set", "dev", fmt.Sprint(twin, a.Index), "up")
		if whole {
			h.run(ns, "", "ip", "link", "set", "dev", a.Name, "group", fmt.Sprint(a.Group))
		}
		if a.Flags&net.FlagUp != 0 {
			h.run(ns, "", "ip", "link", "set", "dev", a.Name, "up")
		}
	}
	for _, f := range []string{"-4", "-6"} {
		h.run(ns, h.run(nil, "", "ip", f, "addr", "save"), "ip", f, "addr", "restore")
	}
	for _, f := range []string{"-4", "-6"} {
		for _, table := range tables {
			if r := h.try(nil, "", "ip", f, "route", "save", "table", table); r.status == 0 {
				h.run(ns, r.out, "ip", f, "route", "restore")
			}
		}
		h.run(ns, "", "ip", f, "rule", "flush")
		h.try(ns, "", "ip", f, "rule", "del", "pref", "0")
		h.run(ns, h.run(nil, "", "ip", f, "rule", "save"), "ip", f, "rule", "restore")
		if !whole {
			h.run(ns, "", "ip", f, "rule", "flush", "protocol", "150")
		}
	}
	if r := h.try(nil, "", "nft", "list", "table", "inet", "multihomed"); whole && r.status == 0 {
		h.run(ns, strings.ReplaceAll(r.out, `*"`, `\*"`), "nft", "-f", "-") // nft lists an asterisk as it does not take it.
	}
	return ns
}

// counted are the counters of nft, which count in one namespace alone.
var counted = regexp.MustCompile(`counter packets \d+ bytes \d+`)

// state is everything that we may change: all rules, our routes, groups of interfaces and the nft table.
func (h *plannedHost) state(ns *lab.Namespace) []string {
	h.t.Helper()
	var all []string
	for _, f := range []string{"-4", "-6"} {
		for line := range strings.Lines(h.run(ns, "", "ip", "-N", "-d", f, "rule", "show")) {
			all = append(all, f+" rule "+strings.TrimSpace(line))
		}
		var routes []string
		for line := range strings.Lines(h.run(ns, "", "ip", "-N", "-d", "-o", f, "route", "show", "table", "all", "proto", "150")) {
			routes = append(routes, f+" route "+strings.TrimSpace(line))
		}
		slices.Sort(routes)
		all = append(all, routes...)
	}
	for _, a := range h.interfaces(ns) {
		if !strings.HasPrefix(a.Name, twin) {
			all = append(all, fmt.Sprintf("link %q group %d names %q", a.Name, a.Group, a.AltNames))
		}
	}
	if r := h.try(ns, "", "nft", "list", "table", "inet", "multihomed"); r.status == 0 {
		// The order of sets and chains is that in which they were made.
		text := strings.TrimSuffix(strings.TrimPrefix(counted.ReplaceAllString(r.out, "counter"), "table inet multihomed {\n"), "}\n")
		blocks := strings.Split(text+"\n", "\n\n")
		slices.Sort(blocks)
		all = append(all, blocks...)
	}
	return all
}

// interfaces lists those of a namespace or of the host.
func (h *plannedHost) interfaces(ns *lab.Namespace) (all []*netlink.LinkAttrs) {
	h.t.Helper()
	list := func() error {
		found, err := net.Interfaces()
		for _, i := range found {
			l, gone := netlink.LinkByIndex(i.Index)
			if gone != nil {
				return gone
			}
			all = append(all, l.Attrs())
		}
		return err
	}
	if ns == nil {
		h.must(list())
	} else {
		h.must(ns.Do(list))
	}
	return all
}

func (h *plannedHost) differ(when string, want, got []string) {
	h.t.Helper()
	if diff := gocmp.Diff(want, got); diff != "" {
		h.t.Errorf("%s (-want +got):\n%s", when, diff)
	}
}

// same compares the host, where the daemon works, with a copy, where a plan was run. Rules of one
// priority that links have for themselves stand in the order in which the links came.
func (h *plannedHost) same(ns *lab.Namespace, when string) {
	h.t.Helper()
	h.settled()
	h.differ(when+": the daemon's, and the plan's", sorted(h.state(nil)), sorted(h.state(ns)))
}

// alike is same where networks get new table numbers: the daemon gives these to links in the order in which
// it hears of them. Tables are compared by their networks then.
func (h *plannedHost) alike(ns *lab.Namespace, when string) {
	h.t.Helper()
	h.settled()
	h.differ(when+": the daemon's, and the plan's", named(h.state(nil)), named(h.state(ns)))
}

func sorted(lines []string) []string { return slices.Sorted(slices.Values(lines)) }

var (
	onLink = regexp.MustCompile(`^(-[46]) route 1 (\S+) dev (\S+) table (\d+) `)
	marked = regexp.MustCompile(`fwmark 0x(\d)000000/0xff000000 lookup (\S+)`)
	tables = regexp.MustCompile(`\b(table|lookup) (\d+)`)
	links  = regexp.MustCompile(`\b(?:link(\d+)\b|0x0?(\d)000000)`)
	// nft(8) shows the bits that are set among those that are kept.
	kept = regexp.MustCompile(`& 0x0\dffffff`)
)

// named has networks instead of table numbers, and instead of the numbers of answers.
func named(lines []string) (out []string) {
	networks, answers := map[string]string{}, map[string]string{}
	for _, line := range lines {
		if f := onLink.FindStringSubmatch(line); f != nil && networks[f[4]] == "" && f[2] != "default" {
			networks[f[4]] = f[1] + f[3]
		}
	}
	for _, line := range lines {
		out = append(out, tables.ReplaceAllStringFunc(line, func(found string) string {
			word, number, _ := strings.Cut(found, " ")
			return word + " " + cmp.Or(networks[number], number)
		}))
	}
	for _, line := range out {
		if f := marked.FindStringSubmatch(line); f != nil {
			answers[f[1]] = f[2]
		}
	}
	for i, line := range out {
		line = kept.ReplaceAllString(line, "& kept")
		out[i] = links.ReplaceAllStringFunc(line, func(found string) string {
			f := links.FindStringSubmatch(found)
			return cmp.Or(answers[f[1]+f[2]], found)
		})
	}
	return sorted(out)
}

// damage takes away, alters and adds.
func (h *plannedHost) damage() {
	h.t.Helper()
	s := h.status()
	table := fmt.Sprint(network(link(h.t, s, "wan1"), "ipv4").Table)
	for _, words := range []string{
		"-4 rule del pref 10000 from " + h.addr("wan0").String(),
		"-4 route change " + h.ip("-N", "-4", "route", "show", "default", "table", table) + " mtu 1300 table " + table,
		"-6 rule add pref 10000 from 2001:db8:5::/64 lookup " + table + " protocol 150",
		"-4 route add 192.0.2.0/24 dev wan1 table " + table + " proto 150",
		"link set dev wan1 group 0",
	} {
		h.ip(strings.Fields(words)...)
	}
	h.run(nil, "", "nft", "delete", "table", "inet", "multihomed")
}

// distinct: JSON keeps two names apart, and has the commands of the script.
func (h *plannedHost) distinct(ns *lab.Namespace) {
	h.t.Helper()
	h.run(ns, "", "ip", "-4", "rule", "flush", "protocol", "150")
	r := h.try(ns, "", program(h.t, "multihomectl"), "plan", "--json")
	var d preview.Document
	if err := json.Unmarshal([]byte(r.out), &d); err != nil || r.status != 1 || d.Schema != 1 || !d.Changes || !d.Complete {
		h.t.Fatalf("%v: %s", err, r)
	}
	h.must(schematest.Check("plan", []byte(r.out)))
	for _, name := range []string{unwritable, hostile} {
		if !slices.ContainsFunc(d.Steps, func(s preview.DocumentStep) bool { return s.Interface == escape.Name(name) && len(s.Commands) > 0 }) {
			h.t.Errorf("JSON has no step for %q: %s", name, r)
		}
	}
	for _, s := range d.Steps {
		h.run(ns, strings.Join(s.Commands, "\n"), "sh")
	}
	h.nothing(ns)
}

// refused: what is not known is said, and nothing is deleted for it.
func (h *plannedHost) refused() {
	h.t.Helper()
	for _, c := range []struct{ args, want string }{
		{"/nonexistent/plan.toml", "no such file"}, {"/etc/passwd", "/etc/passwd"},
	} {
		if r := h.ctl("plan", "--config", c.args); r.status != 2 || r.out != "" || !strings.Contains(r.err, c.want) {
			h.t.Errorf("with the configuration %s: %s", c.args, r)
		}
	}
	if r := h.as(nobody, "plan"); r.status != 2 || !strings.Contains(r.out, "to fix: run it as root") || strings.Contains(r.out, " del ") {
		h.t.Errorf("nobody's plan: %s", r)
	}
	h.must(h.StopNM(h.t.Context()))
	if r := h.ctl("plan"); r.status != 2 || !strings.Contains(r.out, "# Not read: all links: NetworkManager") || strings.Contains(r.out, " del ") {
		h.t.Errorf("without NetworkManager: %s", r)
	}
}
