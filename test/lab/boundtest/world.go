// Package boundtest is a host with two uplinks for tests of bound processes: what they send is captured at both
// providers, and each has a cgroup of its own. Tests call Main in TestMain, so that their binary can be a process in a
// cgroup, too.
package boundtest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"multihomed/internal/cgroupbpf"
	"multihomed/test/lab/nettest"
)

// What the world holds. Each provider has the same internet and a DNS server of its own.
const (
	Internet4 = "203.0.113.1"
	Internet6 = "2001:db8:f::1"
	// Stub is where resolv.conf(5) sends queries: systemd-resolved's address. The one of this world says "stub".
	Stub = "127.0.0.53"
	// Elsewhere4 and Elsewhere6 are resolvers of the host that are not on its loopback, but at wan0's provider.
	Elsewhere4 = "192.0.2.1"
	Elsewhere6 = "2001:db8:a::1"
)

// Marks of the links' sockets.
var (
	Wan0 = cgroupbpf.Mark{Value: 0x81000000, Mask: 0xff000000}
	Wan1 = cgroupbpf.Mark{Value: 0x82000000, Mask: 0xff000000}
)

// DNS1 sends queries to wan1's servers.
var DNS1 = cgroupbpf.DNS{
	Server4: netip.MustParseAddr("198.51.100.53"), Server6: netip.MustParseAddr("2001:db8:b::53"),
	Resolvers: []netip.Addr{netip.MustParseAddr(Elsewhere4), netip.MustParseAddr(Elsewhere6)},
}

// Main runs the tests in a network of their own, or, in a process that Run started, what that is told to do.
func Main(m *testing.M) int {
	if os.Getenv(peerEnv) != "" {
		return peer(os.Args[1:])
	}
	return nettest.Main(m)
}

// A World is a host with two uplinks, and the test's thread in it.
//
//	wan0 192.0.2.10/24, 2001:db8:a::10/64      gateways .1, ::1, DNS .53, ::53
//	wan1 198.51.100.10/24, 2001:db8:b::10/64   gateways .1, ::1, DNS .53, ::53
//	br0  172.17.0.1/24, fd00:17::1/64          a container is .2, ::2
//
// Main's default goes by wan0. The rules of bindings stand as in reference/forwarding.md, and the fence.
type World struct {
	testing.TB
	host  netns.NsHandle
	sides map[string]netns.NsHandle
	root  string // of cgroup2
	wires map[string]int
}

// New makes a world. It ends with the test.
func New(tb testing.TB) *World {
	tb.Helper()
	runtime.LockOSThread() // The thread ends with the test.
	w := &World{TB: tb, sides: map[string]netns.NsHandle{}, wires: map[string]int{}}
	w.must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	for _, name := range []string{"wan0", "wan1", "br0"} {
		w.sides[name] = w.namespace()
	}
	w.host = w.namespace()
	w.sysctl("net/ipv4/ping_group_range", "0 2147483647")
	w.sysctl("net/ipv6/bindv6only", "0")
	lines := []string{"link set lo up"}
	for _, side := range []struct{ name, four, six, near, far string }{
		{"wan0", "192.0.2", "2001:db8:a", "10", "1"}, {"wan1", "198.51.100", "2001:db8:b", "10", "1"}, {"br0", "172.17.0", "fd00:17", "1", "2"},
	} {
		w.must(netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: side.name}, PeerName: "peer", PeerNamespace: netlink.NsFd(w.sides[side.name]),
		}))
		lines = append(lines,
			"addr add "+side.four+"."+side.near+"/24 dev "+side.name, "addr add "+side.six+"::"+side.near+"/64 dev "+side.name+" nodad",
			"link set "+side.name+" up")
		if side.name != "br0" {
			lines = append(lines, "link set "+side.name+" group 28008")
		}
		w.In(side.name, func() {
			there := []string{
				"link set lo up", "addr add " + side.four + "." + side.far + "/24 dev peer",
				"addr add " + side.six + "::" + side.far + "/64 dev peer nodad", "link set peer up",
			}
			if side.name == "br0" {
				there = append(there, "route add default via 172.17.0.1", "route add default via fd00:17::1")
			} else {
				there = append(there, "addr add "+Internet4+"/32 dev lo", "addr add "+Internet6+"/128 dev lo nodad",
					"addr add "+side.four+".53/24 dev peer", "addr add "+side.six+"::53/64 dev peer nodad")
			}
			w.ip(there...)
			w.wires[side.name] = w.listenWire()
		})
	}
	lines = append(lines,
		"route add default via 192.0.2.1 metric 100", "route add default via 198.51.100.1 metric 101",
		"route add default via 2001:db8:a::1 metric 100", "route add default via 2001:db8:b::1 metric 101")
	w.ip(lines...)
	w.Restore("wan0")
	w.Restore("wan1")
	w.rules(Wan0, "192.0.2.10", "2001:db8:a::", 10000)
	w.rules(Wan1, "198.51.100.10", "2001:db8:b::", 10001)
	w.run("nft", "-f", "-", `table inet fence {
		chain post { type filter hook postrouting priority srcnat + 50; oifgroup != 28008 accept;
			meta mark and 0xff000000 == 0x81000000 oifname != "wan0" counter drop
			meta mark and 0xff000000 == 0x82000000 oifname != "wan1" counter drop
		}
	}
`)
	w.await("IPv6 works", func() bool {
		_, err := netlink.RouteGetWithOptions(net.ParseIP(Internet6), &netlink.RouteGetOptions{SrcAddr: net.ParseIP("2001:db8:b::10")})
		return err == nil
	})
	w.serveAll()
	w.root = w.mountCgroups()
	return w
}

func (w *World) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *World) namespace() netns.NsHandle {
	w.Helper()
	ns, err := netns.New()
	w.must(err)
	w.Cleanup(func() { w.must(ns.Close()) })
	return ns
}

// In calls f with the thread in a namespace: "wan0" and "wan1" are the providers, "br0" is the container.
func (w *World) In(side string, f func()) {
	w.Helper()
	w.must(netns.Set(w.sides[side]))
	defer func() { w.must(netns.Set(w.host)) }()
	f()
}

// Here brings the thread of a subtest into the host.
func (w *World) Here() {
	w.Helper()
	runtime.LockOSThread()
	w.must(netns.Set(w.host))
}

// rules are those of a strict binding.
func (w *World) rules(m cgroupbpf.Mark, source, prefix string, table int) {
	w.Helper()
	mark := fmt.Sprintf("fwmark %#x/%#x", m.Value, m.Mask)
	for _, family := range []string{"-4", "-6"} {
		w.run("ip", family, "-batch", "-", strings.Join([]string{
			"rule add pref 9049 " + mark + " lookup main suppress_prefixlength 0 suppress_ifgroup 28008",
			"rule add pref 9051 " + mark + " unreachable",
		}, "\n")+"\n")
	}
	w.run("ip", "-4", "-batch", "-", fmt.Sprintf("rule add pref 9050 from 0.0.0.0/32 %s lookup %d\nrule add pref 9050 from %s %s lookup %d", mark, table, source, mark, table))
	// The kernel chooses the source among the prefix (FIB_RULE_FIND_SADDR), which ip(8) cannot say.
	const findSource = 0x10000
	request := nl.NewNetlinkRequest(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	request.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: unix.AF_INET6, Src_len: 64, Type: nl.FR_ACT_TO_TBL, Flags: findSource}})
	number := func(kind int, value uint32) {
		request.AddData(nl.NewRtAttr(kind, binary.NativeEndian.AppendUint32(nil, value)))
	}
	address := netip.MustParseAddr(prefix).As16()
	request.AddData(nl.NewRtAttr(nl.FRA_SRC, address[:]))
	number(nl.FRA_PRIORITY, 9050)
	number(nl.FRA_TABLE, uint32(table))
	number(nl.FRA_FWMARK, m.Value)
	number(nl.FRA_FWMASK, m.Mask)
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	w.must(err)
}

// Restore gives a link's table its routes.
func (w *World) Restore(link string) {
	w.Helper()
	four, six, table := "192.0.2", "2001:db8:a", "10000"
	if link == "wan1" {
		four, six, table = "198.51.100", "2001:db8:b", "10001"
	}
	w.ip("route replace "+four+".0/24 dev "+link+" table "+table, "route replace "+six+"::/64 dev "+link+" table "+table,
		"route replace default via "+four+".1 table "+table, "route replace default via "+six+"::1 table "+table)
}

// Down empties a link's table, as when it has gone: the interface stays, so that strays can be seen.
func (w *World) Down(link string) {
	w.Helper()
	table := map[string]string{"wan0": "10000", "wan1": "10001"}[link]
	w.run("ip", "-4", "route", "flush", "table", table, "")
	w.run("ip", "-6", "route", "flush", "table", table, "")
}

func (w *World) ip(lines ...string) {
	w.Helper()
	w.run("ip", "-batch", "-", strings.Join(lines, "\n"))
}

// run runs a program with its last argument as its input.
func (w *World) run(name string, args ...string) {
	w.Helper()
	cmd := exec.CommandContext(w.Context(), name, args[:len(args)-1]...)
	cmd.Stdin = strings.NewReader(args[len(args)-1])
	if out, err := cmd.CombinedOutput(); err != nil {
		w.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

func (w *World) sysctl(name, value string) {
	w.Helper()
	w.must(os.WriteFile("/proc/sys/"+name, []byte(value), 0o644))
}

func (w *World) await(what string, so func() bool) {
	w.Helper()
	for deadline := time.Now().Add(30 * time.Second); !so(); {
		if time.Now().After(deadline) {
			w.Fatalf("it never came that %s", what)
		}
	}
}

// serveAll answers at port 7000 and, where resolvers are, at port 53.
func (w *World) serveAll() {
	w.Helper()
	for _, link := range []string{"wan0", "wan1"} {
		w.In(link, func() {
			w.serve(link, Internet4+":7000", "["+Internet6+"]:7000")
			four, six := "192.0.2", "2001:db8:a"
			if link == "wan1" {
				four, six = "198.51.100", "2001:db8:b"
			}
			w.serve(link, Internet4+":53", "["+Internet6+"]:53", four+".53:53", "["+six+"::53]:53", four+".1:53", "["+six+"::1]:53")
		})
	}
	w.In("br0", func() { w.serve("container", "172.17.0.2:7000", "[fd00:17::2]:7000") })
	w.serve("localhost", "127.0.0.1:7000", "[::1]:7000")
	w.serve("stub", Stub+":53", "[::1]:53")
}

// serve answers each datagram and each line of a connection with a name, or a DNS query with an address that tells it.
func (w *World) serve(name string, addresses ...string) {
	w.Helper()
	for _, address := range addresses {
		network := "4"
		if strings.HasPrefix(address, "[") {
			network = "6"
		}
		packets, err := (&net.ListenConfig{}).ListenPacket(w.Context(), "udp"+network, address)
		w.must(err)
		listener, err := (&net.ListenConfig{}).Listen(w.Context(), "tcp"+network, address)
		w.must(err)
		done := make(chan struct{})
		go func() {
			defer close(done)
			serveStreams(name, listener)
		}()
		w.Cleanup(func() {
			_, _ = listener.Close(), packets.Close()
			<-done
		})
		go func() {
			b := make([]byte, 1500)
			for {
				n, from, err := packets.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = packets.WriteTo(reply(name, b[:n]), from)
			}
		}()
	}
}

func serveStreams(name string, l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		b := make([]byte, 1500)
		if n, err := c.Read(b); err == nil {
			_, _ = c.Write(reply(name, b[:n]))
		}
		_ = c.Close()
	}
}

// Numbers are the last byte of the address with which a DNS server answers.
var Numbers = map[string]byte{"wan0": 100, "wan1": 101, "stub": 102}

// reply is a name, or the answer to a DNS query for an IPv4 address (RFC 1035, 4.1).
func reply(name string, query []byte) []byte {
	const header = 12
	if len(query) < header+5 || query[0] == 'x' {
		return []byte(name)
	}
	end := header
	for end < len(query) && query[end] != 0 {
		end += 1 + int(query[end])
	}
	if end+5 > len(query) {
		return nil
	}
	answer := slices.Clone(query[:end+5])
	copy(answer[2:], []byte{0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0})
	if binary.BigEndian.Uint16(query[end+1:]) == 1 {
		answer[7] = 1
		answer = append(answer, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 0, 0, Numbers[name])
	}
	return answer
}

// mountCgroups mounts the hierarchy of cgroup v2 in a place of the test's own, and returns a cgroup in it.
func (w *World) mountCgroups() string {
	w.Helper()
	at := filepath.Join(w.TempDir(), "cgroup2")
	// Other users enter it, too.
	w.must(os.Chmod(filepath.Dir(filepath.Dir(at)), 0o755))
	w.must(os.Mkdir(at, 0o755))
	w.must(unix.Mount("none", at, "cgroup2", 0, ""))
	w.Cleanup(func() { w.must(unix.Unmount(at, unix.MNT_DETACH)) })
	root, err := os.MkdirTemp(at, "multihomed-test-")
	w.must(err)
	w.must(os.Chmod(root, 0o755))
	home, err := os.ReadFile("/proc/self/cgroup")
	w.must(err)
	_, path, found := strings.Cut("\n"+string(home), "\n0::")
	if !found {
		w.Fatalf("no cgroup v2 in %q", home)
	}
	path, _, _ = strings.Cut(path, "\n")
	w.Cleanup(func() {
		// If the test has joined one.
		w.must(os.WriteFile(filepath.Join(at, path, "cgroup.procs"), []byte("0"), 0))
		w.must(removed(root))
	})
	return root
}

// removed removes a cgroup when its last process has gone.
func removed(path string) error {
	for deadline := time.Now().Add(30 * time.Second); ; {
		err := unix.Rmdir(path)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
	}
}

// Cgroup makes a cgroup, inside of another or of the test's own, and opens it.
func (w *World) Cgroup(name string, above ...*os.File) *os.File {
	w.Helper()
	parent := w.root
	if len(above) > 0 {
		parent = above[0].Name()
	}
	path := filepath.Join(parent, name)
	w.must(os.Mkdir(path, 0o755))
	w.Cleanup(func() { w.must(removed(path)) })
	f, err := os.Open(path)
	w.must(err)
	w.Cleanup(func() { w.must(f.Close()) })
	return f
}

// Root is the cgroup that holds those of the test.
func (w *World) Root() string { return w.root }

// Run asks from a process in a cgroup, or where the test is if that is nil, and returns a line for each question; see peer.
func (w *World) Run(cgroup *os.File, questions ...string) []string {
	w.Helper()
	lines := strings.Split(strings.TrimSpace(w.output(cgroup, w.Command(w.Context(), questions...))), "\n")
	if len(lines) != len(questions) {
		w.Fatalf("%q: %q", questions, lines)
	}
	return lines
}

// Output is what a program writes that runs in a cgroup.
func (w *World) Output(cgroup *os.File, name string, args ...string) string {
	w.Helper()
	return w.output(cgroup, exec.CommandContext(w.Context(), name, args...))
}

func (w *World) output(cgroup *os.File, cmd *exec.Cmd) string {
	w.Helper()
	if cgroup != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.Fatalf("%q: %v\n%s", cmd.Args, err, out)
	}
	return string(out)
}

// Command is a process that asks.
func (w *World) Command(ctx context.Context, questions ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", questions...)
	cmd.Env = append(os.Environ(), peerEnv+"=1")
	return cmd
}

// Join moves this process into a cgroup; nil is that of the test.
func (w *World) Join(cgroup *os.File) {
	w.Helper()
	path := w.root
	if cgroup != nil {
		path = cgroup.Name()
	}
	w.must(os.WriteFile(filepath.Join(path, "cgroup.procs"), []byte("0"), 0))
}

// Resolver replaces resolv.conf(5), and has names looked up by DNS alone (nsswitch.conf(5)).
func (w *World) Resolver(conf string) {
	w.Helper()
	for path, content := range map[string]string{"/etc/resolv.conf": conf, "/etc/nsswitch.conf": "hosts: dns\n"} {
		file := filepath.Join(w.TempDir(), filepath.Base(path))
		w.must(os.WriteFile(file, []byte(content), 0o644))
		w.must(unix.Mount(file, path, "", unix.MS_BIND, ""))
		w.Cleanup(func() { w.must(unix.Unmount(path, unix.MNT_DETACH)) })
	}
}
