package e2e_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"multihomed/internal/handoff"
	"multihomed/internal/lockfile"
	"multihomed/routing"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// TestRenamedWhileNetworkManagerHangs: two uplinks get other names, and then each
// other's, while NetworkManager does not answer. Nothing strays, then or afterwards.
func TestRenamedWhileNetworkManagerHangs(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	var isps []*lab.ISP
	sources := map[string][]netip.Prefix{}
	var others []netip.Addr
	for n := range 2 {
		cfg := lab.DefaultISP(n)
		isps = append(isps, r.isp(cfg))
		sources[cfg.Link] = []netip.Prefix{cfg.IPv4.Masked(), cfg.IPv6.Masked()}
		others = append(others, cfg.IPv4.Addr(), cfg.IPv6.Addr())
	}
	r.up("wan0", "wan1")
	r.start()
	for _, link := range []string{"wan0", "wan1"} {
		r.address(link, lab.IPv6)
	}
	r.settled("wan0", "wan1")
	w := newWire(t, isps, sources, others...)
	hang := func(s syscall.Signal) { r.must(syscall.Kill(r.NMPid(), s)) }
	rename := func(from, to string) {
		t.Helper()
		if _, err := r.IP(t.Context(), "link", "set", from, "name", to); err != nil {
			t.Fatal(err)
		}
		labtest.Eventually(t, func() error { return r.stands("oif " + to + " lookup") })
	}
	for range 5 {
		hang(syscall.SIGSTOP)
		rename("wan1", "other")
		rename("wan0", "wan1")
		rename("other", "wan0")
		rename("wan1", "other")
		rename("wan0", "wan1")
		rename("other", "wan0")
		hang(syscall.SIGCONT)
	}
	w.judged(100)
	labtest.Eventually(t, func() error { return r.stands("oif wan0 lookup") })
	for _, line := range r.daemon.Lines() {
		if strings.Contains(line, "uplink removed (") || strings.Contains(line, "local link removed (") {
			t.Error(line)
		}
	}
	r.settled("wan0", "wan1")
}

// stands checks that a rule of ours has this text in both families.
func (r *rig) stands(words string) error {
	for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
		text, err := r.RulesText(r.t.Context(), f)
		if err != nil {
			return err
		}
		if !strings.Contains(text, words) {
			return fmt.Errorf("no rule has %q in\n%s", words, text)
		}
	}
	return nil
}

// TestNamesWithoutNetworkManager: while NetworkManager is away, and while the daemon
// starts without it, its links keep their DNS servers.
func TestNamesWithoutNetworkManager(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, dnsToml)
	isp := r.isp(withNames(0))
	names := r.nameserver(isp)
	r.start()
	r.up("wan0")
	r.settled("wan0")
	all := map[int][]netip.Addr{0: {isp.Config().IPv4.Addr(), isp.Config().IPv6.Addr()}}
	names.uses(all)
	before, err := os.ReadFile(serversFile)
	r.must(err)
	same := func(when string) {
		t.Helper()
		if now, err := os.ReadFile(serversFile); err != nil || string(now) != string(before) {
			t.Errorf("%s (%v):\n%swas:\n%s", when, err, now, before)
		}
	}
	r.must(r.StopNM(t.Context()))
	r.eventually(func() error {
		if !strings.Contains(r.daemon.Log(), "NetworkManager is not running") {
			return errors.New("the daemon has not noticed yet")
		}
		return nil
	})
	r.settled("wan0")
	same("while it is away")
	r.kill9()
	r.launch()
	r.eventually(func() error {
		if !strings.Contains(r.daemon.Log(), "NetworkManager is not running") {
			return errors.New("the daemon has not noticed yet")
		}
		return nil
	})
	r.eventually(func() error { _, err := r.look(); return err })
	same("after a restart without it")
	r.must(r.StartNM(t.Context()))
	r.ready()
	r.settled("wan0")
	names.uses(all)
}

// TestDispatcherReturnsWhenTheRulesStand: who is called back by the dispatcher may send
// bound packets at once, however often.
func TestDispatcherReturnsWhenTheRulesStand(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	r.install()
	r.isp(lab.DefaultISP(0))
	r.up("wan0")
	r.address("wan0", lab.IPv6)
	for i := range 20 {
		out, err := r.Run(t.Context(), "env", "DEVICE_IFACE=wan0", "DEVICE_IP_IFACE=wan0", "CONNECTION_ID=wan0", "/usr/sbin/multihomed-dispatcher", "wan0", "up")
		r.must(err)
		if err := r.stands("oif wan0 lookup"); err != nil {
			t.Fatalf("run %d: %v\n%s", i, err, out)
		}
		// The next one finds neither rules nor a stand-in.
		pid, held, err := lockfile.Holder(filepath.Join(r.cfg.RuntimeDir, lockfile.Name))
		if r.must(err); held {
			r.must(syscall.Kill(pid, syscall.SIGKILL))
			r.eventually(func() error {
				_, held, err := lockfile.Holder(filepath.Join(r.cfg.RuntimeDir, lockfile.Name))
				if err == nil && held {
					err = errors.New("it is still there")
				}
				return err
			})
		}
		for _, f := range []string{"-4", "-6"} {
			_, err := r.IP(t.Context(), f, "rule", "flush", "protocol", "150")
			r.must(err)
		}
	}
}

// nobody is the user of a daemon that is not root.
const nobody = 65534

// startAsUser starts the daemon as its unit does: a user with one capability.
func (r *rig) startAsUser() {
	r.t.Helper()
	program, err := labtest.Build("multihomed")
	r.must(err)
	for _, d := range []string{r.cfg.StateDir, r.cfg.RuntimeDir} {
		r.must(os.MkdirAll(d, 0o755))
		r.must(os.Chown(d, nobody, nobody))
	}
	for d := filepath.Dir(r.path); d != "/"; d = filepath.Dir(d) {
		r.must(os.Chmod(d, 0o755))
	}
	for d := r.cfg.StateDir; d != "/tmp" && d != "/"; d = filepath.Dir(d) {
		r.must(os.Chmod(d, 0o755))
	}
	r.must(os.Chmod(r.path, 0o644))
	r.daemon, err = r.Start(lab.ProcessConfig{Path: "setpriv", Args: []string{
		"--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=+net_admin", "--ambient-caps=+net_admin", "--bounding-set=-all,+net_admin",
		program, "-config", r.path,
	}})
	r.must(err)
	_, err = r.daemon.WaitLine(r.t.Context(), "every link is known")
	r.must(err)
}

// policy installs the bus policy of the package for the user of startAsUser, or none.
func (r *rig) policy(on bool) {
	r.t.Helper()
	text, err := os.ReadFile("../../packaging/dbus/multihomed.conf")
	r.must(err)
	words := strings.Replace(string(text), `user="multihomed"`, `user="65534"`, 1)
	if !on {
		words = strings.NewReplacer(`<deny receive_type="signal"/>`, "").Replace(words)
	}
	r.must(os.MkdirAll("/etc/dbus-1/system.d", 0o755))
	r.must(os.WriteFile("/etc/dbus-1/system.d/multihomed.conf", []byte(words), 0o644))
}

// connectAs connects to the system bus as an ordinary user.
func connectAs(uid int) (*dbus.Conn, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	none := ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, none, uintptr(uid), none); errno != 0 {
		return nil, errno
	}
	conn, err := dbus.Dial(lab.BusAddress)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, none, 0, none); errno != 0 {
		return nil, errno
	}
	if err != nil {
		return nil, err
	}
	if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(fmt.Sprint(uid))}); err != nil {
		return nil, err
	}
	return conn, conn.Hello()
}

// peakMemory is the most that a process has had in memory, in MiB (VmHWM in proc(5)).
func peakMemory(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	var kib int
	_, after, _ := strings.Cut(string(text), "VmHWM:")
	if _, err := fmt.Sscan(after, &kib); err != nil {
		return 0, err
	}
	return kib >> 10, nil
}

// hugeSignals sends the daemon as many signals as are asked for, of the size that the
// bus lets through, from an ordinary user. It returns the daemon's most memory.
func (r *rig) hugeSignals(count int) (peak int, err error) {
	conn, err := connectAs(1000)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	var names []string
	if err := conn.BusObject().Call("org.freedesktop.DBus.ListNames", 0).Store(&names); err != nil {
		return 0, err
	}
	target := ""
	for _, name := range names {
		var pid uint32
		if conn.BusObject().Call("org.freedesktop.DBus.GetConnectionUnixProcessID", 0, name).Store(&pid) == nil && int(pid) == r.daemon.Pid() {
			target = name
		}
	}
	if target == "" {
		return 0, fmt.Errorf("the daemon (process %d) is none of %q", r.daemon.Pid(), names)
	}
	body := strings.Repeat("x", 31<<20)
	for range count {
		m := &dbus.Message{Type: dbus.TypeSignal, Flags: dbus.FlagNoReplyExpected, Body: []any{body}, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldDestination: dbus.MakeVariant(target), dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath("/x")),
			dbus.FieldInterface: dbus.MakeVariant("org.freedesktop.DBus.Properties"), dbus.FieldMember: dbus.MakeVariant("PropertiesChanged"),
			dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(body)),
		}}
		if call := conn.Send(m, nil); call != nil && call.Err != nil {
			return 0, call.Err
		}
	}
	// The bus reads them in order.
	if err := conn.BusObject().Call("org.freedesktop.DBus.GetId", 0).Err; err != nil {
		return 0, err
	}
	return peakMemory(r.daemon.Pid())
}

// TestHugeSignals: an ordinary user who sends signals of 31 MiB costs the daemon
// nothing, and it follows its links meanwhile.
func TestHugeSignals(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	r.policy(true)
	r.must(r.StopNM(t.Context()))
	r.must(r.StopBus(t.Context()))
	r.must(r.StartBus(t.Context()))
	r.must(r.StartNM(t.Context()))
	r.isp(lab.DefaultISP(0))
	r.isp(lab.DefaultISP(1))
	r.startAsUser()
	r.up("wan0")
	r.settled("wan0")
	before, err := peakMemory(r.daemon.Pid())
	r.must(err)
	var after int
	done := make(chan error, 1)
	go func() {
		var err error
		after, err = r.hugeSignals(16)
		done <- err
	}()
	r.up("wan1")
	r.settled("wan0", "wan1")
	r.must(<-done)
	t.Logf("the daemon had at most %d MiB, after 16 signals of 31 MiB %d MiB", before, after)
	if after > before+16 {
		t.Errorf("%d MiB became %d MiB", before, after)
	}
	r.must(r.Down(t.Context(), "wan1"))
	labtest.Eventually(t, func() error { return r.lacks(lab.IPv4, "oif wan1") })
}

// TestSecondInstanceElsewhere: a daemon with another runtime directory finds the one that
// works in the network namespace, and leaves it alone; squatters change nothing.
func TestSecondInstanceElsewhere(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	r.isp(lab.DefaultISP(0))
	r.up("wan0")
	r.start()
	before := r.settled("wan0")
	program, err := labtest.Build("multihomed")
	r.must(err)
	other := filepath.Join(t.TempDir(), "other.toml")
	dir := t.TempDir()
	r.must(os.WriteFile(other, fmt.Appendf(nil, "state_dir = %q\nruntime_dir = %q\n", dir, filepath.Join(dir, "run")), 0o600))
	second, err := r.Start(lab.ProcessConfig{Path: program, Args: []string{"-config", other}})
	r.must(err)
	ctx, cancel := r.patience()
	defer cancel()
	if err := second.Wait(ctx); err == nil || ctx.Err() != nil || !strings.Contains(second.Log(), "another multihomed works in this network namespace") {
		t.Errorf("the second ends with %v and says:\n%s", err, second.Log())
	}
	if after := r.settled("wan0"); r.table(after, "wan0", routing.IPv4) != r.table(before, "wan0", routing.IPv4) {
		t.Error("the first is disturbed")
	}
}

// TestFloods: unrequested datagrams, and interfaces that change their names all the time, use
// bounded memory, and the daemon follows a link that comes up meanwhile.
func TestFloods(t *testing.T) {
	const datagrams, renames = 50_000, 100
	r := newRig(t, lab.HostConfig{FastDAD: true}, "[allocator]\nenabled = true\n")
	r.isp(lab.DefaultISP(0))
	r.isp(lab.DefaultISP(1))
	r.up("wan0")
	r.start()
	r.settled("wan0")
	before, err := peakMemory(r.daemon.Pid())
	r.must(err)
	done := make(chan error, 3)
	for _, to := range []string{filepath.Join(r.cfg.RuntimeDir, handoff.Name), "@" + r.cfg.Allocator.Socket} {
		go func() { done <- flood(to, datagrams) }()
	}
	go func() {
		var err error
		for i := 0; i < renames && err == nil; i++ {
			names := []string{"wan0", "moved0"}
			_, err = r.IP(t.Context(), "link", "set", names[i%2], "name", names[(i+1)%2])
		}
		done <- err
	}()
	r.up("wan1")
	labtest.Eventually(t, func() error { return r.stands("oif wan1 lookup") })
	for range 3 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	after, err := peakMemory(r.daemon.Pid())
	r.must(err)
	t.Logf("the daemon had at most %d MiB, after 2 x %d datagrams and %d renames %d MiB", before, datagrams, renames, after)
	// The race detector takes several times what the program has: 22 MiB after ten times
	// as many.
	if after > before+64 {
		t.Errorf("%d MiB became %d MiB", before, after)
	}
	r.settled("wan0", "wan1")
}

// flood sends datagrams, good ones and nonsense, as fast as they are taken.
func flood(to string, count int) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	address := &unix.SockaddrUnix{Name: to}
	texts := [][]byte{
		[]byte(`{"address":"192.0.2.9","ifname":"wan0","addr_family":2,"cmd":0,"version":1,"transaction":5}`),
		[]byte(`{"caller":"x","interface":"wan0"}`), []byte("nonsense"), make([]byte, 32<<10),
	}
	for i := range count {
		if err := unix.Sendto(fd, texts[i%len(texts)], 0, address); err != nil {
			return fmt.Errorf("sending to %s: %w", to, err)
		}
	}
	return nil
}
