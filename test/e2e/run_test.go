package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// running is a host with two providers, of which wan0 is main's, the helper, and a cgroup for programs.
type running struct {
	*rig
	isps     []*lab.ISP
	captures []*lab.Capture
	cgroup   *lab.Cgroup
	ctl      string
	asker    string
	// user runs multihomectl; nil is root.
	user *syscall.Credential
	// outside is set for a shell that is not in the cgroup.
	outside bool
}

// somebody is a user without a name, and others the group of theirs.
const somebody, others = 4711, 4712

func newRunning(t *testing.T, toml string) *running {
	t.Helper()
	// All users may send pings by ping sockets.
	r := &running{rig: newRig(t, lab.HostConfig{FastDAD: true, Sysctls: []string{"net.ipv4.ping_group_range", "0 2147483647"}}, toml)}
	for n := range 2 {
		isp := r.isp(lab.DefaultISP(n))
		c, err := isp.Capture()
		r.must(err)
		r.isps, r.captures = append(r.isps, isp), append(r.captures, c)
	}
	var err error
	r.ctl, err = labtest.Build("multihomectl")
	r.must(err)
	dir, err := os.MkdirTemp("", "asker-") //nolint:usetesting // t.TempDir is closed to other users
	r.must(err)
	t.Cleanup(func() { r.must(os.RemoveAll(dir)) })
	r.must(os.Chmod(dir, 0o755))
	r.asker = filepath.Join(dir, "asker")
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", r.asker, "./testdata/asker")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r.cgroup, err = r.NewCgroup(0)
	r.must(err)
	r.must(r.ServeEcho())
	r.up("wan0", "wan1")
	r.start()
	r.settled("wan0", "wan1")
	return r
}

func (r *running) startBinder() {
	r.t.Helper()
	program, err := labtest.Build("multihomed-binder")
	r.must(err)
	_, err = r.StartBinder(r.t.Context(), program, r.cfg.RuntimeDir)
	r.must(err)
}

// command is multihomectl, in the cgroup.
func (r *running) command(args ...string) (*exec.Cmd, *bytes.Buffer, *bytes.Buffer) {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), r.ctl, args...)
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "DBUS_SESSION_BUS_ADDRESS=", "XDG_RUNTIME_DIR=/nowhere")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: r.user}
	if !r.outside {
		cgroup, err := os.Open(r.cgroup.Path)
		r.must(err)
		r.t.Cleanup(func() { _ = cgroup.Close() })
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(cgroup.Fd())
	}
	return cmd, &out, &errs
}

// run runs multihomectl run.
func (r *running) run(args ...string) (stdout, stderr string, status int) {
	r.t.Helper()
	cmd, out, errs := r.command(append([]string{"run"}, args...)...)
	err := cmd.Run()
	if exit, is := errors.AsType[*exec.ExitError](err); err != nil && !is {
		r.t.Fatal(err)
	} else if is && exit.Sys().(syscall.WaitStatus).Signaled() { //nolint:forcetypeassert // On Linux it is one.
		return out.String(), errs.String(), 128 + int(exit.Sys().(syscall.WaitStatus).Signal()) //nolint:forcetypeassert // see above
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// asks wants an answer to each question of a program that is bound to wan1, which contains a text.
func (r *running) asks(when string, questions ...[2]string) {
	r.t.Helper()
	args := []string{"--link", "wan1", "--", r.asker}
	for _, q := range questions {
		args = append(args, q[0])
	}
	out, errs, status := r.run(args...)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if status != 0 || len(lines) != len(questions) {
		r.t.Fatalf("%s: status %d\n%s\n%s", when, status, out, errs)
	}
	for n, q := range questions {
		if strings.HasPrefix(lines[n], "error:") || !strings.Contains(lines[n], q[1]) {
			r.t.Errorf("%s: %s: %s; want %s", when, q[0], lines[n], q[1])
		}
	}
}

// nothingAt0 wants no packet of a program at the first provider since the last call.
func (r *running) nothingAt0(when string) {
	r.t.Helper()
	packets, err := r.captures[0].Matching(func(k lab.Packet) bool {
		switch k.Proto {
		case unix.IPPROTO_TCP:
			return true
		case unix.IPPROTO_UDP:
			return k.DstPort == lab.EchoPort || k.DstPort == 53
		case unix.IPPROTO_ICMP:
			return k.ICMPType == 8
		case unix.IPPROTO_ICMPV6:
			return k.ICMPType == 128
		}
		return false
	})
	r.must(err)
	if len(packets) > 0 {
		r.t.Errorf("%s: wan0 got\n%s", when, lab.FormatPackets(packets))
	}
	r.captures[0].Reset()
}

func outside(f lab.Family) string {
	return netip.AddrPortFrom(lab.InternetAddr(f), lab.EchoPort).String()
}

// nameservers are the IPv4 servers of a device by NetworkManager's word.
func (r *running) nameservers(device string) (string, error) {
	out, err := r.NMCLI(r.t.Context(), "-g", "IP4.DNS", "device", "show", device)
	return strings.TrimSpace(out), err
}

// servers changes a profile and applies it, until NetworkManager says that the device has the servers want. NetworkManager 1.42.4
// goes on with the old servers, and says so, if the reapply brings a lease that equals the last one (seen in its trace). Leases
// begin at whole seconds, so that is for a second; what it has applied already, it does not apply again.
func (r *running) servers(device, want string, settings ...string) {
	r.t.Helper()
	tries := 0
	r.eventually(func() error {
		tries++
		r.must(r.Modify(r.t.Context(), device, append(settings, "ipv4.dhcp-timeout", strconv.Itoa(60+tries))...))
		r.must(r.Reapply(r.t.Context(), device))
		ctx, cancel := context.WithTimeout(r.t.Context(), lab.Stretched(time.Second))
		defer cancel()
		return lab.Eventually(ctx, func() error {
			now, err := r.nameservers(device)
			if err == nil && now != want {
				err = fmt.Errorf("NetworkManager says that the servers of %s are %q, want %s", device, now, want)
			}
			return err
		})
	})
}

// empty waits until no cgroup of a program is left.
func (r *running) empty() {
	r.t.Helper()
	r.eventually(func() error {
		children, err := r.cgroup.Children()
		if err == nil && len(children) > 0 {
			err = fmt.Errorf("there are the cgroups %q", children)
		}
		return err
	})
}

// pseudoterminal opens one (pty(7)).
func pseudoterminal(t *testing.T) (near, far *os.File) {
	t.Helper()
	near, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = near.Close() })
	raw, err := near.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var number int
	var failed error
	err = raw.Control(func(fd uintptr) {
		if failed = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); failed == nil {
			number, failed = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	})
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	far, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return near, far
}

// TestRun: a program that multihomectl runs leaves by its link, whatever it does, and only by it.
func TestRun(t *testing.T) {
	r := newRunning(t, fmt.Sprintf("[run]\ngroup = \"%d\"\n", others))
	r.startBinder()
	name := r.isps[1].Name()
	questions := [][2]string{
		{"tcp " + outside(lab.IPv4), name},
		{"tcp " + outside(lab.IPv6), name},
		{"udp " + outside(lab.IPv4), name},
		{"udp " + outside(lab.IPv6), name},
		{"ping " + lab.InternetAddr(lab.IPv4).String(), "pong"},
		{"ping " + lab.InternetAddr(lab.IPv6).String(), "pong"},
		// This host, and a local resolver, that does not exist: the link's server answers.
		{fmt.Sprintf("tcp 127.0.0.1:%d", lab.EchoPort), "127.0.0.1"},
		{fmt.Sprintf("tcp [::1]:%d", lab.EchoPort), "::1"},
		{"dns 127.0.0.53:53", "answer"},
	}
	r.captures[0].Reset()
	r.asks("bound", questions...)
	r.nothingAt0("bound")
	r.empty()

	t.Run("status", func(t *testing.T) {
		for _, c := range []struct {
			args   []string
			status int
			text   string
		}{
			{[]string{"sh", "-c", "exit 7"}, 7, ""},
			{[]string{"sh", "-c", "kill -TERM $$"}, 128 + 15, ""},
			{[]string{"no-such-program"}, 127, "there is no program"},
			{[]string{"/etc/passwd"}, 126, "cannot be run"},
		} {
			_, errs, status := r.run(append([]string{"-l", "wan1", "--"}, c.args...)...)
			if status != c.status || !strings.Contains(errs, c.text) {
				t.Errorf("%q: status %d, %q", c.args, status, errs)
			}
		}
		if _, errs, status := r.run("--link", "wan7", "true"); status != 125 || !strings.Contains(errs, "wan7 is no link now; to fix: bring it up, or name one of wan0, wan1") {
			t.Errorf("an unknown link: status %d, %q", status, errs)
		}
		r.empty()
	})

	t.Run("signals", func(t *testing.T) {
		// Who is signalled is the program itself: it has the process of multihomectl.
		cmd, out, errs := r.command("run", "--link", "wan1", "--", "sh", "-c", `trap 'echo got; exit 3' USR1; echo $$ >"$0"; while :; do sleep 0.01; done`, filepath.Join(t.TempDir(), "pid"))
		r.must(cmd.Start())
		r.eventually(func() error {
			b, err := os.ReadFile(cmd.Args[len(cmd.Args)-1])
			if err == nil && strings.TrimSpace(string(b)) != strconv.Itoa(cmd.Process.Pid) {
				err = fmt.Errorf("it is process %q, not %d", b, cmd.Process.Pid)
			}
			return err
		})
		r.must(cmd.Process.Signal(unix.SIGUSR1))
		_ = cmd.Wait()
		if cmd.ProcessState.ExitCode() != 3 || out.String() != "got\n" {
			t.Errorf("status %d, %q, %q", cmd.ProcessState.ExitCode(), out, errs)
		}
	})

	t.Run("terminal", func(t *testing.T) {
		// A shell with job control stops it, brings it back and ends it.
		near, far := pseudoterminal(t)
		cmd, _, _ := r.command()
		cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-i", "-m"}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = far, far, far
		cmd.Env = append(cmd.Env, "PS1=$ ", "ENV=")
		cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
		r.must(cmd.Start())
		r.must(far.Close())
		r.must(near.SetDeadline(time.Now().Add(lab.Stretched(30 * time.Second))))
		said := ""
		for _, step := range []struct{ typed, want string }{
			{r.ctl + " run --link wan1 -- sh -c 'echo ready-$((6*7)); read x; echo read-$x-$((6*7)); read x'\n", "ready-42"},
			{"\x1a", "Stopped"},
			{"fg\n", "fg"},
			{"word\n", "read-word-42"},
			// The terminal throws away what is typed before the signal: wait for the shell's prompt.
			{"\x03", "$ "},
			{"echo status-$?-$((6*7))\n", fmt.Sprintf("status-%d-42", 128+int(unix.SIGINT))},
		} {
			_, err := near.WriteString(step.typed)
			r.must(err)
			b := make([]byte, 4096)
			for !strings.Contains(said, step.want) {
				n, err := near.Read(b)
				if err != nil {
					t.Fatalf("no %q after %q: %v: %q", step.want, step.typed, err, said)
				}
				said += string(b[:n])
			}
			_, said, _ = strings.Cut(said, step.want)
		}
		_, err := near.WriteString("exit\n")
		r.must(err)
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		r.empty()
	})

	t.Run("daemons", func(t *testing.T) {
		// What a program leaves behind keeps the cgroup, and the binding.
		pipe := filepath.Join(t.TempDir(), "pipe")
		r.must(unix.Mkfifo(pipe, 0o600))
		_, errs, status := r.run("--link", "wan1", "--", "sh", "-c", fmt.Sprintf(`(read x <%s; %s "udp %s" >%s.out; mv %s.out %s.done) >/dev/null 2>&1 &`, pipe, r.asker, outside(lab.IPv4), pipe, pipe, pipe))
		if status != 0 {
			t.Fatalf("status %d, %q", status, errs)
		}
		if children, err := r.cgroup.Children(); err != nil || len(children) != 1 {
			t.Errorf("the cgroups are %q, %v", children, err)
		}
		r.must(os.WriteFile(pipe, []byte("x\n"), 0))
		r.eventually(func() error {
			b, err := os.ReadFile(pipe + ".done")
			if err == nil && !strings.Contains(string(b), name) {
				t.Errorf("it got %q", b)
			}
			return err
		})
		r.empty()
	})

	t.Run("users", func(t *testing.T) {
		was := r.cgroup
		defer func() { r.cgroup, r.user = was, nil }()
		var err error
		r.cgroup, err = r.NewCgroup(somebody)
		r.must(err)
		r.user = &syscall.Credential{Uid: somebody, Gid: somebody, Groups: []uint32{others}}
		r.asks("as a member of the group", questions...)
		r.nothingAt0("as a member of the group")
		r.user = &syscall.Credential{Uid: somebody, Gid: somebody}
		if out, errs, status := r.run("--link", "wan1", "--", "echo", "ran"); status != 125 || out != "" || !strings.Contains(errs, fmt.Sprintf("usermod -aG %d", others)) {
			t.Errorf("as somebody: status %d, %q, %q", status, out, errs)
		}
		r.empty()
	})

	t.Run("servers", func(t *testing.T) {
		// What is bound already follows the servers of its link: the map that all programs of wan1 read is the same.
		leases, err := r.nameservers("wan1")
		r.must(err)
		server := r.isps[1].Resolver4
		// Nobody answers there: the query shows where it went.
		r.servers("wan1", server.String(), "ipv4.ignore-auto-dns", "yes", "ipv4.dns", server.String())
		r.eventually(func() error {
			r.captures[1].Reset()
			out, errs, status := r.run("--link", "wan1", "--", r.asker, "dns 127.0.0.53:53")
			if status != 0 {
				t.Fatalf("status %d, %q", status, errs)
			}
			packets, err := r.captures[1].Matching(func(k lab.Packet) bool { return k.DstPort == 53 && k.Dst == server })
			if err == nil && len(packets) == 0 {
				err = fmt.Errorf("no query went to %v: %s", server, out)
			}
			return err
		})
		r.servers("wan1", leases, "ipv4.ignore-auto-dns", "no", "ipv4.dns", "")
		r.eventually(func() error {
			out, _, _ := r.run("--link", "wan1", "--", r.asker, "dns 127.0.0.53:53")
			if !strings.HasPrefix(out, "answer") {
				return fmt.Errorf("back at the first server: %s", out)
			}
			return nil
		})
		r.nothingAt0("with another server")
	})

	t.Run("down", func(t *testing.T) {
		first, second := filepath.Join(t.TempDir(), "first"), filepath.Join(t.TempDir(), "second")
		r.must(unix.Mkfifo(first, 0o600))
		r.must(unix.Mkfifo(second, 0o600))
		// waits returns when the program waits at a gate, and what lets it through.
		waits := func(gate string) (open func()) {
			t.Helper()
			var f *os.File
			r.eventually(func() (err error) {
				f, err = os.OpenFile(gate, os.O_WRONLY|unix.O_NONBLOCK, 0)
				return err // ENXIO until somebody reads (fifo(7)).
			})
			return func() {
				t.Helper()
				_, err := f.WriteString("x\n")
				r.must(errors.Join(err, f.Close()))
			}
		}
		ask := fmt.Sprintf(`%s "udp %s" "udp %s" "tcp %s" "tcp %s" "dns 127.0.0.53:53"`, r.asker, outside(lab.IPv4), outside(lab.IPv6), outside(lab.IPv4), outside(lab.IPv6))
		cmd, out, errs := r.command("run", "--link", "wan1", "--", "sh", "-c", fmt.Sprintf(`read x <%s; %s; read x <%s; %s`, first, ask, second, ask))
		r.must(cmd.Start())
		open := waits(first)
		r.must(r.Down(t.Context(), "wan1"))
		r.captures[0].Reset()
		open()
		// It has asked when it waits once more.
		open = waits(second)
		r.up("wan1")
		r.address("wan1", lab.IPv6)
		r.settled("wan0", "wan1")
		open()
		err := cmd.Wait()
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if err != nil || len(lines) != 10 {
			t.Fatalf("%v: %q, %q", err, out, errs)
		}
		for n, line := range lines {
			if failed := strings.HasPrefix(line, "error:"); failed != (n < 5) || !failed && n < 9 && !strings.Contains(line, name) {
				t.Errorf("question %d: %s", n, line)
			}
		}
		r.nothingAt0("while wan1 was down and back")
		r.empty()
	})
}

// TestRunWithoutHelper: without multihomed-binder the sockets of a program are bound to the device, which is said.
func TestRunWithoutHelper(t *testing.T) {
	r := newRunning(t, "")
	r.outside = true
	name := r.isps[1].Name()
	if out, errs, status := r.run("--link", "wan1", "--require-helper", "--", "echo", "ran"); status != 125 || out != "" || !strings.Contains(errs, "systemctl start multihomed-binder.socket") {
		t.Errorf("with --require-helper: status %d, %q, %q", status, out, errs)
	}
	if out, errs, status := r.run("--link", "wan7", "--", "echo", "ran"); status != 125 || out != "" || !strings.Contains(errs, "there is no interface wan7") {
		t.Errorf("of no interface: status %d, %q, %q", status, out, errs)
	}
	r.captures[0].Reset()
	for _, who := range []*syscall.Credential{nil, {Uid: somebody, Gid: somebody}} {
		r.user = who
		when := fmt.Sprintf("as %v", who)
		r.asks(when, [][2]string{
			{"tcp " + outside(lab.IPv4), name},
			{"tcp " + outside(lab.IPv6), name},
			{"udp " + outside(lab.IPv4), name},
			{"udp " + outside(lab.IPv6), name},
			{"ping " + lab.InternetAddr(lab.IPv4).String(), "pong"},
			{"ping " + lab.InternetAddr(lab.IPv6).String(), "pong"},
		}...)
		r.nothingAt0(when)
		_, errs, status := r.run("--link", "wan1", "--", "sh", "-c", "exit 7")
		for _, want := range []string{"warning: ", "localhost", "DNS", "fence"} {
			if status != 7 || !strings.Contains(errs, want) || strings.Contains(errs, "sudo: they get none") != (who != nil) {
				t.Errorf("%s: status %d, without %q:\n%s", when, status, want, errs)
			}
		}
	}
	// The attendants end with their programs.
	r.eventually(func() error {
		found, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			return err
		}
		for _, path := range found {
			if b, err := os.ReadFile(path); err == nil && slices.Contains(strings.Split(string(b), "\x00"), "attend") {
				return fmt.Errorf("%s is left", path)
			}
		}
		return nil
	})
}
