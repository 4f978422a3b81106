package cgroupbpf_test

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/internal/cgroupbpf"
	"multihomed/test/lab/boundtest"
)

// runAs is World.Run as a user.
func runAs(t *testing.T, w *boundtest.World, uid uint32, cgroup *os.File, questions ...string) []string {
	t.Helper()
	c := w.Command(t.Context(), questions...)
	c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd()), Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := c.CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if err != nil || len(lines) != len(questions) {
		t.Fatalf("%q as %d: %v, %q", questions, uid, err, lines)
	}
	return lines
}

func bindUsers(t *testing.T, cgroup *os.File, u cgroupbpf.Users, m cgroupbpf.Mark, dns *cgroupbpf.DNSMap) *cgroupbpf.Links {
	t.Helper()
	links, err := cgroupbpf.AttachUsers(cgroup, u, network(t), m, dns)
	if err != nil {
		t.Fatal(err)
	}
	return links
}

// network is the cookie of the thread's network namespace.
func network(t *testing.T) uint64 {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
	return cookie
}

func TestUsersAreBoundWithTheirDNSUntilTheLinksEnd(t *testing.T) {
	w := boundtest.New(t)
	root := w.Cgroup("root")
	session := w.Cgroup("session", root)
	links := bindUsers(t, root, cgroupbpf.Users{First: 1000, Last: 1001}, boundtest.Wan1, newMap(t, boundtest.DNS1))
	for uid, want := range map[uint32]string{0: "0x0", 999: "0x0", 1000: "0x82000000", 1001: "0x82000000", 1002: "0x0", 0x80000000: "0x0"} {
		same(t, []string{"mark 4", "mark 6"}, runAs(t, w, uid, session, "mark 4", "mark 6"), func(string) string { return want })
	}
	same(t, everyKind, runAs(t, w, 1000, session, everyKind...), answered("wan1"))
	if seen := w.Seen("wan1"); !slices.Equal(seen, sent) {
		t.Errorf("bound, at wan1: %q", seen)
	}
	names := []string{"udp " + boundtest.Stub + ":53", "udpu [::1]:53", "tcp " + boundtest.Elsewhere4 + ":53"}
	same(t, names, runAs(t, w, 1000, session, names...), answered("wan1"))
	noneSeen(t, w, "wan0")
	same(t, names[:1], runAs(t, w, 1002, session, names[:1]...), answered("stub"))
	if err := links.Close(); err != nil {
		t.Fatal(err)
	}
	questions := []string{"mark 4", "udp " + boundtest.Stub + ":53"}
	if got := runAs(t, w, 1000, session, questions...); got[0] != "0x0" || !strings.HasPrefix(got[1], "stub ") {
		t.Errorf("unbound again: %q", got)
	}
}

// A container has other users with the same numbers, and names of its own.
func TestUsersOfOtherNetworksAreLeftAlone(t *testing.T) {
	w := boundtest.New(t)
	root := w.Cgroup("root")
	links := bindUsers(t, root, cgroupbpf.Users{First: 1000, Last: 1000}, boundtest.Wan1, newMap(t, boundtest.DNS1))
	w.In("br0", func() {
		if got := runAs(t, w, 1000, root, "mark 4", "mark 6"); !slices.Equal(got, []string{"0x0", "0x0"}) {
			t.Errorf("in a container: %q", got)
		}
	})
	if got := runAs(t, w, 1000, root, "mark 4"); got[0] != "0x82000000" {
		t.Errorf("on the host: %q", got)
	}
	if err := links.Close(); err != nil {
		t.Fatal(err)
	}
}

// A unit that is bound keeps its link, whoever runs in it; other users' ranges keep theirs.
func TestTheInnermostDecidesForUsersToo(t *testing.T) {
	w := boundtest.New(t)
	root := w.Cgroup("root")
	unit := w.Cgroup("unit", root)
	first := bindUsers(t, root, cgroupbpf.Users{First: 1000, Last: 1000}, boundtest.Wan1, newMap(t, boundtest.DNS1))
	second := bindUsers(t, root, cgroupbpf.Users{First: 1001, Last: 0xfffffffe}, boundtest.Wan0, nil)
	bind(t, unit, boundtest.Wan0, nil)
	for _, c := range []struct {
		uid    uint32
		cgroup *os.File
		want   string
	}{{1000, unit, "0x81000000"}, {1000, root, "0x82000000"}, {1001, root, "0x81000000"}, {0xfffffffd, root, "0x81000000"}, {999, root, "0x0"}} {
		if got := runAs(t, w, c.uid, c.cgroup, "mark 4"); got[0] != c.want {
			t.Errorf("user %d in %s: %s, want %s", c.uid, c.cgroup.Name(), got[0], c.want)
		}
	}
	if err := errors.Join(first.Close(), second.Close()); err != nil {
		t.Fatal(err)
	}
}

// Whoever holds a copy holds the binding, and a process that is killed holds none.
func TestLinksEndWithTheLastProcessThatHoldsThem(t *testing.T) {
	w := boundtest.New(t)
	root := w.Cgroup("root")
	links := bindUsers(t, root, cgroupbpf.Users{First: 1000, Last: 1000}, boundtest.Wan1, newMap(t, boundtest.DNS1))
	holder := exec.CommandContext(t.Context(), "sleep", "1000")
	holder.ExtraFiles = links.Files()
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if err := links.Close(); err != nil {
		t.Fatal(err)
	}
	if got := runAs(t, w, 1000, root, "mark 4"); got[0] != "0x82000000" {
		t.Errorf("while another process holds them: %q", got)
	}
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = holder.Wait()
	if got := runAs(t, w, 1000, root, "mark 4"); got[0] != "0x0" {
		t.Errorf("after it was killed: %q", got)
	}
}

func TestUsersAreBoundWithAllProgramsOrNone(t *testing.T) {
	w := boundtest.New(t)
	root := w.Cgroup("root")
	dns := newMap(t, boundtest.DNS1)
	for range 64 {
		bind(t, root, boundtest.Wan0, nil)
	}
	if _, err := cgroupbpf.AttachUsers(root, cgroupbpf.Users{First: 1000, Last: 1000}, network(t), boundtest.Wan1, dns); !errors.Is(err, unix.E2BIG) {
		t.Fatalf("the 65th: %v", err)
	}
	if got := runAs(t, w, 1000, root, "mark 4", "udp "+boundtest.Stub+":53"); got[0] != "0x81000000" || !strings.HasPrefix(got[1], "stub ") {
		t.Errorf("%q", got)
	}
	withoutRights(t, func() {
		if _, err := cgroupbpf.AttachUsers(root, cgroupbpf.Users{First: 1000, Last: 1000}, network(t), boundtest.Wan1, dns); !errors.Is(err, cgroupbpf.ErrRights) {
			t.Errorf("without rights: %v", err)
		}
	})
	other := w.Cgroup("other")
	withRights(t, 1<<unix.CAP_BPF|1<<unix.CAP_NET_ADMIN, func() {
		if err := bindUsers(t, other, cgroupbpf.Users{First: 1000, Last: 1000}, boundtest.Wan1, dns).Close(); err != nil {
			t.Error(err)
		}
	})
	for _, u := range []cgroupbpf.Users{{}, {0, 1000}, {2, 1}} {
		if _, err := cgroupbpf.AttachUsers(other, u, network(t), boundtest.Wan1, nil); err == nil || !strings.Contains(err.Error(), "to fix: ") {
			t.Errorf("%v: %v", u, err)
		}
	}
}
