package bindrun_test

import (
	"encoding/binary"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/internal/bindrun"
)

func TestWhereACgroupIs(t *testing.T) {
	t.Parallel()
	const (
		unified = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
		hybrid  = "29 23 0:25 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n31 29 0:27 / /sys/fs/cgroup/unified rw shared:1 - cgroup2 cgroup2 rw\n"
		part    = "30 23 0:26 /user.slice /mnt/a\\040b rw - cgroup2 none rw\n"
	)
	for name, c := range map[string]struct {
		own, mounts string
		want        []string
	}{
		"unified":       {"0::/user.slice/x.scope\n", unified, []string{"/sys/fs/cgroup/user.slice/x.scope"}},
		"root":          {"0::/\n", unified, []string{"/sys/fs/cgroup"}},
		"hybrid":        {"12:pids:/x\n0::/y\n", hybrid, []string{"/sys/fs/cgroup/unified/y"}},
		"a part":        {"0::/user.slice/x.scope\n", part + unified, []string{"/mnt/a b/x.scope", "/sys/fs/cgroup/user.slice/x.scope"}},
		"another part":  {"0::/user.slices/x\n", part, nil},
		"only v1":       {"12:pids:/x\n", unified, nil},
		"nothing":       {"", "", nil},
		"outside":       {"0::/../x\n", unified, nil},
		"unmounted":     {"0::/x\n", "29 23 0:25 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n", nil},
		"other mounts":  {"0::/x\n", "garbage\n1 2 - cgroup2\n\n" + unified, []string{"/sys/fs/cgroup/x"}},
		"no line break": {"0::/x", unified, []string{"/sys/fs/cgroup/x"}},
	} {
		got, err := bindrun.Homes(c.own, c.mounts)
		if (err == nil) != (c.want != nil) || !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func FuzzHomes(f *testing.F) {
	f.Add("0::/x\n", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
	f.Fuzz(func(t *testing.T, own, mounts string) {
		all, err := bindrun.Homes(own, mounts)
		if (err == nil) == (len(all) == 0) {
			t.Errorf("%q, %v", all, err)
		}
	})
}

func TestTheUsersBus(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ session, runtime, want string }{
		{"unix:path=/x", "/y", "unix:path=/x"},
		{"", "/y", "unix:path=/y/bus"},
		{"", "", "unix:path=/run/user/7/bus"},
		{"autolaunch:", "", "unix:path=/run/user/7/bus"},
		{"", "/a,b", "unix:path=/a%2cb/bus"},
	} {
		env := map[string]string{"DBUS_SESSION_BUS_ADDRESS": c.session, "XDG_RUNTIME_DIR": c.runtime}
		if got := bindrun.UserBus(func(k string) string { return env[k] }, 7); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

// judge runs the filter as the kernel does, on a struct seccomp_data.
func judge(t *testing.T, arch, number uint32, first uint64) uint32 {
	t.Helper()
	code, err := bindrun.Filter()
	if err != nil {
		t.Fatal(err)
	}
	data := binary.NativeEndian.AppendUint32(nil, number)
	data = binary.NativeEndian.AppendUint32(data, arch)
	data = binary.NativeEndian.AppendUint64(data, 0)
	data = binary.NativeEndian.AppendUint64(data, first)
	var a uint32
	for at := 0; ; at++ {
		in := code[at]
		take := false
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = binary.NativeEndian.Uint32(data[in.K:])
			continue
		case unix.BPF_RET | unix.BPF_K:
			return in.K
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			take = a == in.K
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			take = a >= in.K
		default:
			t.Fatalf("instruction %d is %+v", at, in)
		}
		if take {
			at += int(in.Jt)
		} else {
			at += int(in.Jf)
		}
	}
}

// TestTheFilter: it asks for IP sockets alone, and takes away the other ways to one.
func TestTheFilter(t *testing.T) {
	t.Parallel()
	here := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64, "386": unix.AUDIT_ARCH_I386}[runtime.GOARCH]
	if here == 0 {
		here = unix.AUDIT_ARCH_X86_64
	}
	const none = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	for _, c := range []struct {
		what         string
		arch, number uint32
		first        uint64
		want         uint32
	}{
		{"IPv4", here, unix.SYS_SOCKET, unix.AF_INET, unix.SECCOMP_RET_USER_NOTIF},
		{"IPv6", here, unix.SYS_SOCKET, unix.AF_INET6, unix.SECCOMP_RET_USER_NOTIF},
		{"IPv4 with rubbish above the int", here, unix.SYS_SOCKET, 7<<32 | unix.AF_INET, unix.SECCOMP_RET_USER_NOTIF},
		{"unix", here, unix.SYS_SOCKET, unix.AF_UNIX, unix.SECCOMP_RET_ALLOW},
		{"netlink", here, unix.SYS_SOCKET, unix.AF_NETLINK, unix.SECCOMP_RET_ALLOW},
		{"read", here, unix.SYS_READ, unix.AF_INET, unix.SECCOMP_RET_ALLOW},
		{"io_uring", here, unix.SYS_IO_URING_SETUP, 0, none},
		{"x32", here, 0x40000000 | unix.SYS_SOCKET, unix.AF_INET, none},
		{"no number", here, math.MaxUint32, 0, none},
		{"another architecture", unix.AUDIT_ARCH_PPC, unix.SYS_SOCKET, unix.AF_INET, none},
	} {
		if got := judge(t, c.arch, c.number, c.first); got != c.want {
			t.Errorf("%s: %#x", c.what, got)
		}
	}
}

func TestTheWarningSaysWhatIsNotCovered(t *testing.T) {
	t.Parallel()
	text := bindrun.Warning("wan1", bindrun.ErrNoCgroup, false)
	for _, want := range []string{"warning: no cgroup", "wan1", "localhost", "DNS", "fence", "sudo"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(bindrun.Warning("wan1", bindrun.ErrNoCgroup, true), "sudo") {
		t.Error("root gets no rights")
	}
}
