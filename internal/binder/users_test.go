package binder_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/internal/binder"
	"multihomed/internal/binder/client"
	"multihomed/internal/binder/wire"
	"multihomed/internal/cgroupbpf"
	"multihomed/test/lab/boundtest"
)

// askUsersEnv makes the test's program a client that asks to bind the user 1000.
const askUsersEnv = "MULTIHOMED_BINDER_TEST_USERS"

// wanted binds one user to wan1, with a new map.
func wanted() wire.Users {
	return wire.Users{First: 1000, Last: 1000, Value: boundtest.Wan1.Value, Mask: boundtest.Wan1.Mask, Names: wire.NewMap, DNS: wire.DNS(boundtest.DNS1)}
}

func askUsersMain(socket string) int {
	_, _, err := client.BindUsers(context.Background(), socket, wanted(), nil)
	if err != nil {
		os.Stdout.WriteString(err.Error())
		return 1
	}
	return 0
}

func closeFiles(t *testing.T, all ...*os.File) {
	t.Helper()
	for _, f := range all {
		must(t, f.Close())
	}
}

// asks runs questions as a user in a cgroup.
func asks(t *testing.T, w *boundtest.World, uid uint32, cgroup *os.File, questions ...string) []string {
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

func TestUsersAreBoundAsLongAsTheCallerHasTheLinks(t *testing.T) {
	w := boundtest.New(t)
	root := w.Cgroup("root")
	socket := start(t, w, &daemon{}, func(o *binder.Options) { o.Cgroups = root.Name() })
	questions := []string{"mark 4", "udp " + boundtest.Stub + ":53"}
	led, stub := "wan1 from "+boundtest.Stub+":53", "stub from "+boundtest.Stub+":53"
	first, dns, err := client.BindUsers(t.Context(), socket, wanted(), nil)
	must(t, err)
	if len(first) != wire.MaxLinks || dns == nil {
		t.Fatalf("%d links, the map %v", len(first), dns)
	}
	if got := asks(t, w, 1000, root, questions...); got[0] != "0x82000000" || got[1] != led {
		t.Errorf("bound: %q", got)
	}
	if got := asks(t, w, 1001, root, questions...); got[0] != "0x0" || got[1] != stub {
		t.Errorf("another user: %q", got)
	}
	// Another range needs no DNS programs of its own.
	other := wanted()
	other.First, other.Last, other.Names, other.DNS = 1001, 1002, wire.LeaveNames, wire.DNS{}
	second, none, err := client.BindUsers(t.Context(), socket, other, nil)
	must(t, err)
	if len(second) != 1 || none != nil {
		t.Fatalf("%d links, the map %v", len(second), none)
	}
	if got := asks(t, w, 1002, root, questions...); got[0] != "0x82000000" || got[1] != led {
		t.Errorf("the second range: %q", got)
	}
	// Attached anew with the map of before, which still follows; the old ones end afterwards.
	again := wanted()
	again.Names, again.DNS = wire.OldMap, wire.DNS{}
	third, none, err := client.BindUsers(t.Context(), socket, again, dns)
	must(t, err)
	if none != nil {
		t.Error("a second map")
	}
	closeFiles(t, first...)
	if got := asks(t, w, 1000, root, questions...); got[0] != "0x82000000" || got[1] != led {
		t.Errorf("attached anew: %q", got)
	}
	must(t, client.Change(t.Context(), socket, wire.DNS{}, dns))
	if got := asks(t, w, 1000, root, questions[1]); got[0] != "error: EPERM" {
		t.Errorf("without a server: %q", got)
	}
	closeFiles(t, append(append(second, third...), dns)...)
	// The helper closes its own copies when it has sent them.
	await(t, "the user is unbound again", func() bool {
		got := asks(t, w, 1000, root, questions...)
		return got[0] == "0x0" && got[1] == stub
	})
}

func TestOnlyTheDaemonBindsUsers(t *testing.T) {
	w := boundtest.New(t)
	root := w.Cgroup("root")
	socket := start(t, w, &daemon{}, func(o *binder.Options) { o.Cgroups, o.Trusted = root.Name(), []uint32{1234} })
	for uid, want := range map[uint32]string{0: "", 1234: "", 1000: "only multihomed and root may bind users; to fix", 65534: "only multihomed and root"} {
		ask := exec.CommandContext(t.Context(), "/proc/self/exe")
		ask.Env = append(os.Environ(), askUsersEnv+"="+socket)
		ask.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		if out, err := ask.CombinedOutput(); !strings.Contains(string(out), want) || (err == nil) != (want == "") {
			t.Errorf("user %d: %v, %s", uid, err, out)
		}
	}
	// They have gone, and with them what they bound.
	await(t, "nobody is bound", func() bool { return asks(t, w, 1000, root, "mark 4")[0] == "0x0" })
}

func TestWrongRequestsForUsersLeaveNothing(t *testing.T) {
	w := boundtest.New(t)
	root := w.Cgroup("root")
	socket := start(t, w, &daemon{}, func(o *binder.Options) { o.Cgroups = root.Name() })
	descriptors := func() int {
		names, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(names)
	}
	before := descriptors()
	plain, old := wanted(), wanted()
	plain.Names, old.Names = wire.LeaveNames, wire.OldMap
	for _, c := range []struct {
		name, datagram string
		fds            []int
	}{
		{"nothing", "\x01/", nil},
		{"too much", string(wire.EncodeUsers(nil, plain)) + strings.Repeat("x", 60000), nil},
		{"a descriptor too many", string(wire.EncodeUsers(nil, plain)), []int{int(root.Fd())}},
		{"two descriptors", string(wire.EncodeUsers(nil, old)), []int{int(root.Fd()), int(root.Fd())}},
		{"no map", string(wire.EncodeUsers(nil, old)), nil},
		{"another file as map", string(wire.EncodeUsers(nil, old)), []int{int(root.Fd())}},
	} {
		fd := dial(t, socket)
		must(t, unix.Sendmsg(fd, []byte(c.datagram), unix.UnixRights(c.fds...), nil, 0))
		if a := answer(t, fd); a.Code != wire.BadRequest || a.Text == "" {
			t.Errorf("%s: %+v", c.name, a)
		}
		must(t, unix.Close(fd))
	}
	for range 20 {
		// Who goes without the answer has bound nobody.
		fd := dial(t, socket)
		must(t, unix.Sendmsg(fd, wire.EncodeUsers(nil, wanted()), nil, nil, 0))
		must(t, unix.Close(fd))
	}
	// The helper may not have served all of them yet.
	await(t, "nobody is bound, and descriptors are closed", func() bool {
		return asks(t, w, 1000, root, "mark 4")[0] == "0x0" && descriptors() <= before
	})
	w.In("br0", func() {
		fd := dial(t, socket)
		defer func() { must(t, unix.Close(fd)) }()
		must(t, unix.Sendmsg(fd, wire.EncodeUsers(nil, plain), nil, nil, 0))
		if a := answer(t, fd); a.Code != wire.BadRequest || !strings.Contains(a.Text, "another network namespace") {
			t.Errorf("%+v", a)
		}
	})
}

func TestUsersNeedCgroupsAndRoom(t *testing.T) {
	w := boundtest.New(t)
	root := w.Cgroup("root")
	none := start(t, w, &daemon{}, func(o *binder.Options) { o.Cgroups = t.TempDir() })
	if _, _, err := client.BindUsers(t.Context(), none, wanted(), nil); !errors.Is(err, client.ErrUnable) || !strings.Contains(err.Error(), "to fix: ") {
		t.Errorf("without cgroups: %v", err)
	}
	for range 64 {
		must(t, cgroupbpf.Attach(root, boundtest.Wan0, nil))
	}
	full := start(t, w, &daemon{}, func(o *binder.Options) { o.Cgroups = root.Name() })
	if _, _, err := client.BindUsers(t.Context(), full, wanted(), nil); err == nil || !strings.Contains(err.Error(), "to fix: bind fewer ranges of users") {
		t.Errorf("without room: %v", err)
	}
}
