package cgroupbpf_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/internal/cgroupbpf"
	"multihomed/test/lab/boundtest"
)

const (
	server4 = boundtest.Internet4 + ":7000"
	server6 = "[" + boundtest.Internet6 + "]:7000"
)

// everyKind asks the internet by everything that a program can send.
var everyKind = []string{
	"tcp " + server4, "tcp " + server6, "udp " + server4, "udp " + server6, "udpu " + server4, "udpu " + server6,
	"udp64 " + server4, "ping " + boundtest.Internet4, "ping " + boundtest.Internet6,
}

// sent is what a provider sees of it.
var sent = []string{
	"icmp " + boundtest.Internet6, "icmp " + boundtest.Internet4, "tcp " + boundtest.Internet6, "tcp " + boundtest.Internet4,
	"udp " + boundtest.Internet6, "udp " + boundtest.Internet4,
}

func bind(t *testing.T, cgroup *os.File, m cgroupbpf.Mark, dns *cgroupbpf.DNSMap) {
	t.Helper()
	if err := cgroupbpf.Attach(cgroup, m, dns); err != nil {
		t.Fatal(err)
	}
}

func newMap(t *testing.T, d cgroupbpf.DNS) *cgroupbpf.DNSMap {
	t.Helper()
	m, err := cgroupbpf.NewDNSMap(d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// same compares what was asked and answered, line by line.
func same(t *testing.T, questions, got []string, want func(question string) string) {
	t.Helper()
	for n, q := range questions {
		if w := want(q); got[n] != w {
			t.Errorf("%s: %q, want %q", q, got[n], w)
		}
	}
}

// noneSeen fails for packets that a provider got.
func noneSeen(t *testing.T, w *boundtest.World, link string) {
	t.Helper()
	if seen := w.Seen(link); len(seen) > 0 {
		t.Errorf("packets at %s: %q", link, seen)
	}
}

// answered is the answer of who serves at a provider.
func answered(who string) func(string) string {
	return func(q string) string {
		kind, address, _ := strings.Cut(q, " ")
		if kind == "ping" {
			return "pong"
		}
		return who + " from " + address
	}
}

func TestBoundProcessesLeaveByTheLink(t *testing.T) {
	w := boundtest.New(t)
	same(t, everyKind, w.Run(nil, everyKind...), answered("wan0"))
	if seen := w.Seen("wan0"); !slices.Equal(seen, sent) {
		t.Errorf("unbound, at wan0: %q", seen)
	}
	noneSeen(t, w, "wan1")
	cgroup := w.Cgroup("bound")
	bind(t, cgroup, boundtest.Wan1, nil)
	same(t, everyKind, w.Run(cgroup, everyKind...), answered("wan1"))
	if seen := w.Seen("wan1"); !slices.Equal(seen, sent) {
		t.Errorf("bound, at wan1: %q", seen)
	}
	noneSeen(t, w, "wan0")
}

func TestBoundProcessesReachThisHostAndContainers(t *testing.T) {
	w := boundtest.New(t)
	cgroup := w.Cgroup("bound")
	bind(t, cgroup, boundtest.Wan1, newMap(t, boundtest.DNS1))
	local := []string{"tcp 127.0.0.1:7000", "tcp [::1]:7000", "udp 127.0.0.1:7000", "udpu [::1]:7000"}
	same(t, local, w.Run(cgroup, local...), answered("localhost"))
	container := []string{"tcp 172.17.0.2:7000", "tcp [fd00:17::2]:7000", "udpu 172.17.0.2:7000"}
	same(t, container, w.Run(cgroup, container...), answered("container"))
	noneSeen(t, w, "wan0")
	noneSeen(t, w, "wan1")
}

func TestNothingLeavesWhileTheLinkIsAway(t *testing.T) {
	w := boundtest.New(t)
	cgroup := w.Cgroup("bound")
	bind(t, cgroup, boundtest.Wan1, newMap(t, boundtest.DNS1))
	questions := slices.Concat(everyKind, []string{
		"udpu 198.51.100.53:53", "udp " + boundtest.Stub + ":53", "tcp [::1]:53", "bind " + server4 + "@wan0", "bind " + server6 + "@wan0",
	})
	w.Down("wan1")
	for n, line := range w.Run(cgroup, questions...) {
		if !strings.HasPrefix(line, "error: ") {
			t.Errorf("%s: %q", questions[n], line)
		}
	}
	noneSeen(t, w, "wan0")
	noneSeen(t, w, "wan1")
	w.Restore("wan1")
	same(t, everyKind, w.Run(cgroup, everyKind...), answered("wan1"))
	noneSeen(t, w, "wan0")
}

func TestInnermostCgroupDecides(t *testing.T) {
	w := boundtest.New(t)
	outer := w.Cgroup("outer")
	inner := w.Cgroup("inner", outer)
	plain := w.Cgroup("plain", outer)
	bind(t, outer, boundtest.Wan1, newMap(t, boundtest.DNS1))
	bind(t, inner, boundtest.Wan0, nil)
	marks := []string{"mark 4", "mark 6"}
	same(t, marks, w.Run(inner, marks...), func(string) string { return "0x81000000" })
	same(t, marks, w.Run(plain, marks...), func(string) string { return "0x82000000" })
	same(t, marks, w.Run(nil, marks...), func(string) string { return "0x0" })
	stub := []string{"udp " + boundtest.Stub + ":53"}
	same(t, stub, w.Run(inner, stub...), answered("stub"))
	same(t, stub, w.Run(plain, stub...), answered("wan1"))
}

func TestQueriesGoToTheLinksServerAndAnswersSeemToComeFromWhoWasAsked(t *testing.T) {
	w := boundtest.New(t)
	cgroup := w.Cgroup("bound")
	bind(t, cgroup, boundtest.Wan1, newMap(t, boundtest.DNS1))
	var redirected []string
	for _, address := range []string{boundtest.Stub + ":53", "127.0.0.1:53", "[::1]:53", boundtest.Elsewhere4 + ":53", "[" + boundtest.Elsewhere6 + "]:53"} {
		redirected = append(redirected, "udp "+address, "udpu "+address, "tcp "+address)
	}
	redirected = append(redirected, "udp64 "+boundtest.Stub+":53")
	same(t, redirected, w.Run(cgroup, redirected...), answered("wan1"))
	noneSeen(t, w, "wan0")
	if seen, want := w.Seen("wan1"), []string{"tcp 198.51.100.53", "tcp 2001:db8:b::53", "udp 198.51.100.53", "udp 2001:db8:b::53"}; !slices.Equal(seen, want) {
		t.Errorf("at wan1: %q, want %q", seen, want)
	}
	chosen := []string{"udp " + boundtest.Internet4 + ":53", "udpu [" + boundtest.Internet6 + "]:53", "tcp " + boundtest.Internet4 + ":53"}
	same(t, chosen, w.Run(cgroup, chosen...), answered("wan1"))
	if seen, want := w.Seen("wan1"), []string{"tcp " + boundtest.Internet4, "udp " + boundtest.Internet6, "udp " + boundtest.Internet4}; !slices.Equal(seen, want) {
		t.Errorf("at wan1: %q, want %q", seen, want)
	}
	noneSeen(t, w, "wan0")
}

// The kernel opens the sockets by which MPTCP sends, and asks no program.
func TestMultipathTCPTakesTCP(t *testing.T) {
	w := boundtest.New(t)
	questions := []string{"socket " + strconv.Itoa(unix.IPPROTO_MPTCP), "mptcp " + server4, "mptcp " + server6}
	if got := w.Run(nil, questions...); got[0] != "ok" {
		t.Fatalf("unbound: %q", got)
	}
	_ = w.Seen("wan0")
	cgroup := w.Cgroup("bound")
	bind(t, cgroup, boundtest.Wan1, nil)
	got := w.Run(cgroup, questions...)
	if want := "error: ENOPROTOOPT"; got[0] != want {
		t.Errorf("a socket of MPTCP: %q, want %q", got[0], want)
	}
	same(t, questions[1:], got[1:], answered("wan1"))
	noneSeen(t, w, "wan0")
}

func TestNamesAreFoundByTheLinksServer(t *testing.T) {
	w := boundtest.New(t)
	w.Resolver("nameserver " + boundtest.Stub + "\nnameserver " + boundtest.Elsewhere4 + "\n")
	cgroup := w.Cgroup("bound")
	bind(t, cgroup, boundtest.Wan1, newMap(t, boundtest.DNS1))
	for _, c := range []struct {
		cgroup *os.File
		who    string
	}{{nil, "stub"}, {cgroup, "wan1"}} {
		address := "10.0.0." + strconv.Itoa(int(boundtest.Numbers[c.who]))
		if got := w.Run(c.cgroup, "name host.example"); got[0] != "["+address+"]" {
			t.Errorf("Go's resolver, which should ask %s: %q", c.who, got)
		}
		// It ignores answers from servers that it did not ask (res_ourserver_p).
		if got := w.Output(c.cgroup, "getent", "ahostsv4", "host.example"); !strings.HasPrefix(got, address+" ") {
			t.Errorf("glibc's resolver, which should ask %s: %q", c.who, got)
		}
	}
	noneSeen(t, w, "wan0")
}

func TestAMapChangesWhereQueriesGo(t *testing.T) {
	w := boundtest.New(t)
	cgroup := w.Cgroup("bound")
	dns := newMap(t, boundtest.DNS1)
	bind(t, cgroup, boundtest.Wan1, dns)
	questions := []string{
		"udp " + boundtest.Stub + ":53", "udpu " + boundtest.Stub + ":53", "udp64 " + boundtest.Stub + ":53", "udp [::1]:53", "udpu [::1]:53",
	}
	refused := "error: EPERM"
	own, four, six := "wan1", boundtest.DNS1, boundtest.DNS1
	four.Server6, six.Server4 = netip.Addr{}, netip.Addr{}
	for _, c := range []struct {
		name string
		dns  cgroupbpf.DNS
		want [5]string // who answers each question
	}{
		{"both", boundtest.DNS1, [5]string{own, own, own, own, own}},
		// A connected socket of IPv6 may ask either; the kernel takes no IPv4 address from a program for one datagram.
		{"IPv4 alone", four, [5]string{own, own, own, own, refused}},
		{"IPv6 alone", six, [5]string{refused, refused, refused, own, own}},
		{"none", cgroupbpf.DNS{}, [5]string{refused, refused, refused, refused, refused}},
		{"both again", boundtest.DNS1, [5]string{own, own, own, own, own}},
	} {
		if err := dns.Set(c.dns); err != nil {
			t.Fatal(err)
		}
		got := w.Run(cgroup, questions...)
		for n, q := range questions {
			want := c.want[n]
			if want != refused {
				want = answered(want)(q)
			}
			if got[n] != want {
				t.Errorf("servers: %s; %s: %q, want %q", c.name, q, got[n], want)
			}
		}
	}
	noneSeen(t, w, "wan0")
}

func TestAProcessWithoutRightsMayChangeAMapThatItHas(t *testing.T) {
	dns := newMap(t, boundtest.DNS1)
	withoutRights(t, func() {
		m, err := cgroupbpf.OpenDNSMap(dns.File())
		if err == nil {
			err = m.Set(cgroupbpf.DNS{})
		}
		if err != nil {
			t.Error(err)
		}
		if _, err := cgroupbpf.NewDNSMap(cgroupbpf.DNS{}); !errors.Is(err, cgroupbpf.ErrRights) {
			t.Errorf("making one: %v", err)
		}
	})
}

func TestWithoutRightsNothingIsAttached(t *testing.T) {
	w := boundtest.New(t)
	cgroup := w.Cgroup("bound")
	dns := newMap(t, boundtest.DNS1)
	withoutRights(t, func() {
		for _, dns := range []*cgroupbpf.DNSMap{nil, dns} {
			if err := cgroupbpf.Attach(cgroup, boundtest.Wan1, dns); !errors.Is(err, cgroupbpf.ErrRights) {
				t.Errorf("attaching: %v", err)
			}
		}
	})
	if got := w.Run(cgroup, "mark 4"); got[0] != "0x0" {
		t.Errorf("a socket has the mark %q", got)
	}
}

// Exactly these two rights are in the helper's unit.
func TestTwoCapabilitiesAreEnough(t *testing.T) {
	w := boundtest.New(t)
	cgroup := w.Cgroup("bound")
	withRights(t, 1<<unix.CAP_BPF|1<<unix.CAP_NET_ADMIN, func() { bind(t, cgroup, boundtest.Wan1, newMap(t, boundtest.DNS1)) })
	if got := w.Run(cgroup, "mark 4", "udp "+boundtest.Stub+":53"); got[0] != "0x82000000" || !strings.HasPrefix(got[1], "wan1 ") {
		t.Errorf("%q", got)
	}
}

func TestAllProgramsAreAttachedOrNone(t *testing.T) {
	w := boundtest.New(t)
	cgroup := w.Cgroup("full")
	dns := newMap(t, boundtest.DNS1)
	// A cgroup takes 64 programs of a type.
	for range 64 {
		bind(t, cgroup, boundtest.Wan0, nil)
	}
	if err := cgroupbpf.Attach(cgroup, boundtest.Wan1, dns); !errors.Is(err, unix.E2BIG) {
		t.Fatalf("the 65th: %v", err)
	}
	if got, want := w.Run(cgroup, "mark 4", "udp "+boundtest.Stub+":53"), []string{"0x81000000", answered("stub")("udp " + boundtest.Stub + ":53")}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestWhatIsNoCgroupIsRefused(t *testing.T) {
	t.Parallel()
	directory, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = directory.Close() }()
	if err := cgroupbpf.Attach(directory, boundtest.Wan1, nil); !errors.Is(err, unix.EBADF) {
		t.Errorf("a directory of another file system: %v", err)
	}
	for _, m := range []cgroupbpf.Mark{{}, {Value: 0, Mask: 0xff000000}, {Value: 0x100, Mask: 0xff000000}, {Value: 1}} {
		if err := cgroupbpf.Attach(directory, m, nil); err == nil || errors.Is(err, unix.EBADF) {
			t.Errorf("the mark %+v: %v", m, err)
		}
	}
	if _, err := cgroupbpf.OpenDNSMap(directory); err == nil {
		t.Error("a directory is taken for a map")
	}
}

// withoutRights calls f on this thread without any capability.
func withoutRights(t *testing.T, f func()) {
	t.Helper()
	withRights(t, 0, f)
}

func withRights(t *testing.T, rights uint64, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var all, few [2]unix.CapUserData
	if err := unix.Capget(&header, &all[0]); err != nil {
		t.Fatal(err)
	}
	few = all
	few[0].Effective, few[1].Effective = uint32(rights), uint32(rights>>32)
	if err := unix.Capset(&header, &few[0]); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Capset(&header, &all[0]); err != nil {
			t.Fatal(err)
		}
	}()
	f()
}

// BenchmarkSocket is what a program pays for a socket, and for one with which it connects to port 53: one socket of
// UDP is made and closed.
func BenchmarkSocket(b *testing.B) {
	w := boundtest.New(b)
	bound, named := w.Cgroup("bound"), w.Cgroup("named")
	dns, err := cgroupbpf.NewDNSMap(boundtest.DNS1)
	if err == nil {
		err = errors.Join(cgroupbpf.Attach(bound, boundtest.Wan1, nil), cgroupbpf.Attach(named, boundtest.Wan1, dns))
	}
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		cgroup *os.File
	}{{"unbound", nil}, {"bound", bound}, {"bound with DNS", named}} {
		for _, to := range []uint16{0, 9, 53} {
			name := map[uint16]string{0: "socket", 9: "connect", 53: "connect to DNS"}[to]
			b.Run(c.name+"/"+name, func(b *testing.B) {
				w.Here()
				if c.cgroup != nil {
					w.Join(c.cgroup)
					defer w.Join(nil)
				}
				for b.Loop() {
					fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
					if err == nil && to != 0 {
						err = unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 53}, Port: int(to)})
					}
					if err = errors.Join(err, unix.Close(fd)); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
	if err := dns.Close(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkAttach is what binding a cgroup costs: all programs are verified, compiled and attached.
func BenchmarkAttach(b *testing.B) {
	w := boundtest.New(b)
	dns, err := cgroupbpf.NewDNSMap(boundtest.DNS1)
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	for b.Loop() {
		b.StopTimer()
		n++
		path := filepath.Join(w.Root(), "bound"+strconv.Itoa(n))
		err := os.Mkdir(path, 0o755)
		cgroup, err2 := os.Open(path)
		if err = errors.Join(err, err2); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		err = cgroupbpf.Attach(cgroup, boundtest.Wan1, dns)
		b.StopTimer()
		if err = errors.Join(err, cgroup.Close(), os.Remove(path)); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	if err := dns.Close(); err != nil {
		b.Fatal(err)
	}
}
