package e2e_test

import (
	"context"
	"database/sql"
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

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
	_ "modernc.org/sqlite"

	"multihomed/allocator"
	"multihomed/internal/config"
	"multihomed/internal/lastgood"
	"multihomed/internal/status"
	"multihomed/internal/status/socket"
	"multihomed/nm/nmtest"
	"multihomed/routing"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// These tests are promise 7: bad input gets a clear error and costs nothing.

// ours is every object of ours in the kernel.
func (r *rig) ours() string {
	r.t.Helper()
	objects, err := r.Leftovers()
	r.must(err)
	slices.Sort(objects)
	return strings.Join(objects, "\n")
}

// unharmed fails the test if our objects have changed.
func (r *rig) unharmed(before, after string) {
	r.t.Helper()
	if d := difference(before, r.ours()); d != "" {
		r.t.Errorf("%s cost routing:\n%s", after, d)
	}
}

// refusesToStart starts the daemon, which must end with an error that holds all
// the texts, and must not touch the routing.
func (r *rig) refusesToStart(what string, texts ...string) {
	r.t.Helper()
	before := r.ours()
	r.launch()
	ctx, cancel := r.patience()
	defer cancel()
	err := r.daemon.Wait(ctx)
	if err == nil || ctx.Err() != nil {
		r.t.Fatalf("%s: the daemon does not end with an error: %v\n%s", what, err, r.daemon.Log())
	}
	for _, text := range texts {
		if !strings.Contains(r.daemon.Log(), text) {
			r.t.Errorf("%s: the log does not say %q:\n%s", what, text, r.daemon.Log())
		}
	}
	if strings.Contains(r.daemon.Log(), "panic") || strings.Contains(r.daemon.Log(), "goroutine ") {
		r.t.Errorf("%s: a panic:\n%s", what, r.daemon.Log())
	}
	r.unharmed(before, what)
}

// reported waits until the daemon reports a problem of a link that holds the
// text, or none with it any more.
func (r *rig) reported(want bool, link, text string) {
	r.t.Helper()
	labtest.Eventually(r.t, func() error {
		state, err := socket.Ask(r.t.Context(), r.cfg.RuntimeDir, true)
		if err != nil {
			return err
		}
		has := slices.ContainsFunc(state.Problems, func(p status.Problem) bool {
			return p.Link == link && strings.Contains(p.Text, text)
		})
		if has != want {
			return fmt.Errorf("a problem %q of %s is reported: %t; all are %+v", text, link, has, state.Problems)
		}
		return nil
	})
}

// staticRig is a host with links of static addresses in IPv4, of which the first
// two are up.
func staticRig(t *testing.T, links int, toml string) *rig {
	t.Helper()
	return staticRigOn(t, lab.HostConfig{FastDAD: true}, links, toml)
}

func staticRigOn(t *testing.T, host lab.HostConfig, links int, toml string) *rig {
	t.Helper()
	r := newRig(t, host, toml)
	for n := range links {
		cfg, settings := static(n)
		r.isp(cfg, settings...)
	}
	r.start()
	for n := range 2 {
		r.up(fmt.Sprintf("wan%d", n))
		r.standing(staticAddr(n), true)
	}
	r.settled()
	return r
}

func staticAddr(n int) netip.Addr { return netip.AddrFrom4([4]byte{100, 64, byte(n), 50}) }

// works proves that a link's bound traffic is answered by its provider.
func (r *rig) works(n int) {
	r.t.Helper()
	r.answeredBy(fmt.Sprintf("isp%d", n), lab.From{Addr: staticAddr(n)}, lab.InternetAddr4)
}

func TestBadConfiguration(t *testing.T) {
	r := staticRig(t, 2, "")
	good, err := os.ReadFile(r.path)
	r.must(err)
	bad := []struct{ name, text, says string }{
		{"an unknown key", "tabels = 1\n", "tabels"},
		{"a wrong type", "uplink_group = \"x\"\n", "uplink_group"},
		{"no TOML", "[tables\nfirst = 1\n", "multihomed.toml"},
		{"a range that is reserved", "[tables]\nfirst = 20000\nlast = 20100\n", "20053"},
		{"a range that is backwards", "[tables]\nfirst = 10\nlast = 5\n", "tables"},
		{"a glob that is none", "[[exclude]]\ninterface = \"wan[\"\n", "exclude"},
		{"an empty matcher", "[[exclude]]\n", "exclude"},
		{"an unknown level", "log_level = \"loud\"\n", "log_level"},
		{"no text", "\xff\xfe\x00", "multihomed.toml"},
		{"too big a number", "uplink_group = 99999999999999999999\n", "multihomed.toml"},
	}
	for _, b := range bad {
		// A running daemon keeps the old one.
		r.must(os.WriteFile(r.path, []byte(string(good)+b.text), 0o600))
		before, lines := r.ours(), len(r.daemon.Lines())
		r.must(r.daemon.Signal(syscall.SIGHUP))
		line, err := r.daemon.WaitLineAfter(t.Context(), lines, "configuration is refused")
		if err != nil || !strings.Contains(line, b.says) {
			t.Errorf("%s: %q, %v, want %q", b.name, line, err, b.says)
		}
		r.unharmed(before, b.name)
	}
	r.refused("99999999999999999999 is not allowed")
	// A reload that is refused for the same reason says so again.
	lines := len(r.daemon.Lines())
	r.must(r.daemon.Signal(syscall.SIGHUP))
	_, err = r.daemon.WaitLineAfter(t.Context(), lines, "configuration is refused")
	r.must(err)
	r.must(os.WriteFile(r.path, good, 0o600))
	r.must(r.daemon.Signal(syscall.SIGHUP))
	r.settled()
	r.refused("")

	// A starting daemon uses the last active configuration.
	changed := append(slices.Clone(good), "uplink_group = 4711\n"...)
	r.writeConfig(string(changed))
	r.must(r.daemon.Signal(syscall.SIGHUP))
	r.settled()
	labtest.Eventually(t, func() error {
		text, err := os.ReadFile(filepath.Join(r.cfg.StateDir, lastgood.Name))
		if err == nil && !strings.HasSuffix(string(text), string(changed)) {
			err = fmt.Errorf("kept is\n%s", text)
		}
		return err
	})
	for _, b := range bad {
		r.must(r.daemon.Stop(t.Context()))
		before := r.ours()
		r.must(os.WriteFile(r.path, []byte(string(changed)+b.text), 0o600))
		r.start()
		r.refused(b.says)
		r.unharmed(before, b.name)
		isNote := func(n string) bool {
			return strings.HasPrefix(n, "STATUS=the configuration is refused: ") && strings.Count(n, r.path) == 1 && strings.Contains(n, "last good")
		}
		r.eventually(func() error {
			if !slices.ContainsFunc(r.daemon.Notes(), isNote) {
				return fmt.Errorf("%s: systemd was told %q", b.name, r.daemon.Notes())
			}
			return nil
		})
	}
	// However strange the file.
	for name, do := range map[string]func() error{
		"a directory": func() error { return os.Mkdir(r.path, 0o700) },
		"a pipe":      func() error { return unix.Mkfifo(r.path, 0o600) },
		"too large":   func() error { return os.WriteFile(r.path, make([]byte, 2<<20), 0o600) },
	} {
		r.must(r.daemon.Stop(t.Context()))
		before := r.ours()
		r.must(os.Remove(r.path))
		r.must(do())
		r.start()
		r.refused(r.path)
		r.unharmed(before, name)
		r.works(1)
	}
	r.must(r.daemon.Stop(t.Context()))
	r.must(os.Remove(r.path))
	r.must(os.WriteFile(r.path, changed, 0o600))
	r.start()
	r.settled()
	r.refused("")
	// A second daemon does not get in the way of the first.
	first := r.daemon
	r.refusesToStart("a second daemon", "lock")
	if err := first.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the first daemon has ended: %v", err)
	}
	r.works(0)
}

// refused checks that the daemon reports an invalid configuration, with a text, or
// that it is not, and status to exit as it should.
func (r *rig) refused(says string) {
	r.t.Helper()
	labtest.Eventually(r.t, func() error {
		state, err := socket.Ask(r.t.Context(), r.cfg.RuntimeDir, true)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(state.Problems, func(p status.Problem) bool { return p.Code == config.FaultCode })
		switch {
		case says == "" && i < 0:
			return nil
		case says == "":
			return fmt.Errorf("still refused: %v", state.Problems[i])
		case i < 0:
			return fmt.Errorf("no problem reports it: %v", state.Problems)
		}
		p := state.Problems[i]
		if p.Severity != routing.Error || !strings.HasPrefix(p.Object, r.path) || p.Fix == "" || !strings.Contains(p.Object+p.Text, says) {
			return fmt.Errorf("the problem is %+v, want %q", p, says)
		}
		return nil
	})
	out, err := r.ctl("status")
	if exit, is := errors.AsType[*exec.ExitError](err); says != "" && (!is || exit.ExitCode() != 1 || !strings.Contains(out, "configuration")) {
		r.t.Errorf("status: %v\n%s", err, out)
	}
}

// TestNeverGood: without a valid configuration ever, and without existing routing, the host runs
// without us; with existing routing the daemon uses the defaults. TestKeptWhenEndedEarly: a
// configuration that was in use is the last good one, however soon the daemon is restarted.
func TestKeptWhenEndedEarly(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	good, err := os.ReadFile(r.path)
	r.must(err)
	for n := range 8 {
		text := fmt.Sprintf("uplink_group = %d\n%s", 5000+n, good)
		r.writeConfig(text)
		r.launch()
		ctx, cancel := r.patience()
		_, err := r.daemon.WaitLine(ctx, " started")
		cancel()
		r.must(err)
		r.must(r.daemon.Stop(t.Context()))
		if kept, err := os.ReadFile(filepath.Join(r.cfg.StateDir, lastgood.Name)); err != nil || !strings.HasSuffix(string(kept), text) {
			t.Fatalf("kept is %v\n%s\nwant\n%s\nthe daemon said:\n%s", err, kept, text, r.daemon.Log())
		}
	}
}

func TestNeverGood(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	good, err := os.ReadFile(r.path)
	r.must(err)
	bad := string(good) + "uplink_grup = 1\n"
	r.must(os.WriteFile(r.path, []byte(bad), 0o600))
	r.refusesToStart("a bad configuration from the start", "uplink_grup", "no rule of multihomed in the kernel")
	ctx, cancel := r.patience()
	defer cancel()
	if exit, is := errors.AsType[*exec.ExitError](r.daemon.Wait(ctx)); !is || exit.ExitCode() != 78 {
		t.Errorf("it ends with %v", exit)
	}
	if log := r.daemon.Log(); strings.Contains(log, "systemctl reload") {
		t.Errorf("a reload of a daemon that has ended: %s", log)
	}

	// What looks at the host says the same as the daemon, and prints no configuration.
	out, err := r.ctl("status")
	flat := strings.Join(strings.Fields(out), " ")
	for _, want := range []string{"its configuration is refused, hooks do nothing", "uplink_grup", "in use instead: nothing", "fix correct " + r.path + ":", "then: systemctl "} {
		if !strings.Contains(flat, want) {
			t.Errorf("status does not say %q:\n%s", want, out)
		}
	}
	if err == nil || strings.Contains(flat, "hooks follow") || strings.Contains(flat, "the defaults") || strings.Contains(flat, "systemctl reload") {
		t.Errorf("status: %v\n%s", err, out)
	}
	if out, err := r.ctl("config"); err == nil || strings.Contains(out, "uplink_group") && !strings.Contains(out, "did you mean uplink_group") || !strings.Contains(out, "in use instead: nothing") {
		t.Errorf("config: %v\n%s", err, out)
	}
}

func TestBrokenDatabase(t *testing.T) {
	r := staticRig(t, 3, "")
	path := filepath.Join(r.cfg.StateDir, allocator.DefaultName)
	r.must(r.daemon.Stop(t.Context()))
	good, err := os.ReadFile(path)
	r.must(err)
	restore := func() {
		t.Helper()
		for _, name := range []string{path, path + "-wal", path + "-shm"} {
			r.must(os.RemoveAll(name))
		}
		r.must(os.WriteFile(path, good, 0o600))
	}
	half := slices.Clone(good)
	for i := len(half) / 3; i < len(half); i++ {
		half[i] ^= 0x5a
	}
	before := r.ours()
	for _, b := range []struct {
		name string
		do   func() error
		// aside says that it is moved, not only reported.
		aside bool
	}{
		{"garbage", func() error { return os.WriteFile(path, []byte(strings.Repeat("garbage ", 1000)), 0o600) }, true},
		{"a damaged file", func() error { return os.WriteFile(path, half, 0o600) }, true},
		{"a file cut off", func() error { return os.WriteFile(path, good[:len(good)/2], 0o600) }, true},
		{"a directory", func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) }, true},
		{"somebody else's database", func() error {
			if err := os.Remove(path); err != nil {
				return err
			}
			return sqlite(path, "create table songs (title text)")
		}, true},
		{"a later release's", func() error { return sqlite(path, "pragma user_version = 4711") }, true},
		{"a directory that everybody may write to", func() error { return os.Chmod(r.cfg.StateDir, 0o777) }, false},
	} {
		r.must(b.do())
		r.start()
		r.settled()
		r.unharmed(before, b.name)
		r.works(0)
		r.works(1)
		if b.aside {
			var to string
			for _, line := range r.daemon.Lines() {
				if _, rest, is := strings.Cut(line, "(moved to "); is && strings.Contains(line, "notice: lease database moved aside") {
					to, _, _ = strings.Cut(rest, ")")
				}
			}
			if _, err := os.Lstat(to); err != nil {
				t.Errorf("%s: moved to %q: %v\n%s", b.name, to, err, r.daemon.Log())
			}
		} else {
			r.reported(true, "", "everybody may write")
		}
		// A new network works too.
		r.up("wan2")
		r.standing(staticAddr(2), true)
		r.works(2)
		r.must(r.Down(t.Context(), "wan2"))
		r.standing(staticAddr(2), false)
		r.must(r.daemon.Stop(t.Context()))
		r.must(os.Chmod(r.cfg.StateDir, 0o750))
		restore()
	}
	r.start()
	r.settled()
	r.unharmed(before, "all that")

	// Somebody holds the writers' lock: new links get their tables in memory, which is
	// reported until they are written.
	unlock := lockDatabase(t, path, "begin immediate")
	r.up("wan2")
	r.standing(staticAddr(2), true)
	r.reported(true, "", "locked")
	r.works(0)
	r.works(2)
	unlock()
	r.reported(false, "", "locked")
	before = r.ours()

	// A database that cannot even be read.
	r.must(r.daemon.Stop(t.Context()))
	unlock = lockDatabase(t, path, "pragma locking_mode = exclusive", "begin exclusive")
	r.start()
	r.unharmed(before, "a database that is locked for readers")
	r.reported(true, "", "locked")
	unlock()
	r.reported(false, "", "locked")
	r.works(2)
}

func sqlite(path, statement string) error {
	db, err := sql.Open("sqlite", path)
	if err != nil {
		return err
	}
	_, err = db.ExecContext(context.Background(), statement)
	return errors.Join(err, db.Close())
}

// lockDatabase takes a lock of a database until the function that it returns is
// called.
func lockDatabase(t *testing.T, path string, statements ...string) func() {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, statement := range statements {
		if _, err := conn.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		t.Helper()
		_, err := conn.ExecContext(t.Context(), "rollback")
		if err := errors.Join(err, conn.Close(), db.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDiskTrouble fills the disk and makes it read-only while there are leases to
// write.
func TestDiskTrouble(t *testing.T) {
	state := t.TempDir()
	if err := unix.Mount("tmpfs", state, "tmpfs", 0, "size=1m,mode=750"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(state, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Error(err) // Where it is a mount still.
		}
	})
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	r.writeConfig(fmt.Sprintf("state_dir = %q\nruntime_dir = %q\n", state, r.cfg.RuntimeDir))
	for n := range 4 {
		cfg, settings := static(n)
		r.isp(cfg, settings...)
	}
	r.start()
	r.up("wan0")
	r.standing(staticAddr(0), true)
	r.settled()

	// The disk is full.
	filler := filepath.Join(state, "filler")
	fill := func() {
		f, err := os.Create(filler)
		r.must(err)
		block := make([]byte, 4096)
		for err == nil {
			_, err = f.Write(block)
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		r.must(f.Close())
	}
	fill()
	r.reported(true, "", "disk is full")
	r.up("wan1")
	r.standing(staticAddr(1), true)
	r.works(0)
	r.works(1)
	// A restart finds the disk full, and the tables in the kernel.
	before := r.ours()
	r.must(r.daemon.Kill())
	r.start()
	r.settled()
	r.unharmed(before, "a restart on a full disk")
	r.reported(true, "", "disk is full")
	r.must(os.Remove(filler))
	r.reported(false, "", "disk is full")
	r.works(1)

	// The disk cannot be written, from the start.
	r.must(r.daemon.Stop(t.Context()))
	r.must(unix.Mount("", state, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	before = r.ours()
	r.start()
	r.unharmed(before, "a read-only disk")
	r.reported(true, "", "cannot be written")
	r.up("wan2")
	r.standing(staticAddr(2), true)
	r.works(0)
	r.works(1)
	r.works(2)
	r.must(unix.Mount("", state, "", unix.MS_REMOUNT, "size=1m"))
	r.reported(false, "", "cannot be written")

	// The directory goes from under the daemon.
	r.must(unix.Unmount(state, unix.MNT_DETACH))
	r.must(os.Remove(state))
	r.must(os.WriteFile(state, nil, 0o600))
	r.reported(true, "", state)
	r.up("wan3")
	r.standing(staticAddr(3), true)
	r.works(3)
	before = r.ours()
	r.must(os.Remove(state))
	r.reported(false, "", state)
	r.must(r.daemon.Kill())
	r.start()
	r.settled()
	r.unharmed(before, "a new state directory")
}

// TestExhaustedRange: a link without a table stays on main and is reported, the
// others go on; it gets a table as soon as there is one.
func TestExhaustedRange(t *testing.T) {
	r := staticRig(t, 3, "[tables]\nfirst = 10000\nlast = 10002\n")
	before := r.ours()
	r.up("wan2")
	r.reported(true, "wan2", "")
	rules, err := r.RulesText(t.Context(), lab.IPv4)
	r.must(err)
	if strings.Contains(rules, staticAddr(2).String()) {
		t.Errorf("wan2 has no table, and rules:\n%s", rules)
	}
	r.unharmed(before, "an exhausted range")
	r.works(0)
	r.works(1)
	if _, err := lab.DialUDP(t.Context(), lab.From{Device: "wan2"}, lab.InternetAddr4); err != nil {
		t.Errorf("wan2 does not even follow main: %v", err)
	}
	// The others still change.
	r.must(r.ModifyDevice(t.Context(), "wan0", "+ipv4.addresses", "100.64.0.51/24"))
	r.standing(netip.MustParseAddr("100.64.0.51"), true)

	for range 3 {
		r.must(r.Down(t.Context(), "wan0"))
		r.standing(staticAddr(2), true)
		r.reported(false, "wan2", "")
		r.works(2)
		r.works(1)
		r.up("wan0")
		r.reported(true, "wan0", "")
		r.must(r.Down(t.Context(), "wan2"))
		r.standing(staticAddr(0), true)
		r.reported(false, "wan0", "")
		r.works(0)
		r.up("wan2")
		r.reported(true, "wan2", "")
	}
	r.works(1)
}

// TestHostileBus: a NetworkManager that says nonsense costs no routing.
func TestHostileBus(t *testing.T) {
	r := staticRig(t, 2, "")
	r.must(r.daemon.Stop(t.Context()))
	before := r.ours()

	bus := nmtest.NewBus(t)
	nm := bus.NewNM()
	nm.AddEthernet(1, "wan0")
	nm.AddEthernet(2, "wan1")
	nm.Own()
	r.env = []string{"DBUS_SYSTEM_BUS_ADDRESS=" + bus.Address}
	r.start()
	r.unharmed(before, "another NetworkManager")

	nonsense := []any{
		"", "nonsense", strings.Repeat("x", 1<<16), uint32(1 << 31), int32(-1), uint64(1 << 63), true, 3.14,
		[]byte{0xff, 0},
		[]string{"a"},
		map[string]dbus.Variant{"a": dbus.MakeVariant("b")},
		[]map[string]dbus.Variant{{"dest": dbus.MakeVariant(1)}, {}},
		dbus.ObjectPath("/"), dbus.ObjectPath("/no/such/object"),
		[]dbus.ObjectPath{"/x"},
		dbus.MakeVariant(dbus.MakeVariant("deep")),
		[]any{},
	}
	objects := []struct {
		path  dbus.ObjectPath
		iface string
		// names and the types that are right: what is of that type is no nonsense
		// but another state.
		names map[string]string
	}{
		{nmtest.DevicePath(1), nmtest.Device, map[string]string{
			"State": "u", "DeviceType": "u", "Managed": "b", "Real": "b", "Interface": "s", "IpInterface": "s",
			"Ip4Config": "o", "Ip6Config": "o", "Dhcp4Config": "o",
		}},
		{nmtest.ActivePath(1), nmtest.Active, map[string]string{"Connection": "o", "Id": "s", "Uuid": "s", "StateFlags": "u", "Vpn": "b", "Master": "o", "Type": "s"}},
		{nmtest.DHCP4Path(1), nmtest.DHCP4, map[string]string{"Options": "-"}},
		{nmtest.IP4Path(1), nmtest.IP4, map[string]string{"Gateway": "-", "Addresses": "-", "AddressData": "-", "RouteData": "-"}},
		{nmtest.ManagerPath, nmtest.Manager, map[string]string{"Startup": "b", "State": "u", "Version": "s", "Devices": "ao"}},
	}
	said := 0
	for _, o := range objects {
		for name, right := range o.names {
			for _, value := range nonsense {
				if dbus.SignatureOf(value).String() == right {
					continue
				}
				nm.Change(o.path, o.iface, nmtest.Properties{name: value})
				said++
			}
		}
		nm.AddEthernet(1, "wan0") // as it was, for those who ask
		nm.Announce(nmtest.DevicePath(1))
	}
	for _, values := range [][]any{{}, {"x"}, {uint32(5), uint32(5), uint32(5), uint32(5)}, {nmtest.DevicePath(77)}} {
		for _, signal := range []string{
			nmtest.Device + ".StateChanged", nmtest.Manager + ".DeviceAdded", nmtest.Manager + ".DeviceRemoved",
			"org.freedesktop.DBus.ObjectManager.InterfacesAdded", "org.freedesktop.DBus.ObjectManager.InterfacesRemoved", "org.freedesktop.DBus.Properties.PropertiesChanged",
		} {
			nm.Emit(nmtest.DevicePath(1), signal, values...)
			nm.Emit("/org/freedesktop", signal, values...)
			said++
		}
	}
	// Something true after all that: the daemon has read so far.
	nm.AddEthernet(1, "wan0")
	lines := len(r.daemon.Lines())
	nm.AddEthernet(9, "wan9")
	nm.Announce(nmtest.DevicePath(9))
	nm.Change(nmtest.DevicePath(9), nmtest.Device, nmtest.Properties{"Managed": "the last word"})
	if err := r.daemon.Signal(syscall.Signal(0)); err != nil {
		t.Fatalf("the daemon has ended: %v\n%s", err, r.daemon.Log())
	}
	r.logged(lines, "wan9")
	if s, ok := look("wan0", lab.IPv4); !ok || !s.stands(staticAddr(0), 10000) || !s.stands(staticAddr(0), 10500) {
		t.Errorf("nonsense cost wan0 its rules")
	}
	r.works(0)
	t.Logf("%d pieces of nonsense, %d lines of log", said, len(r.daemon.Lines()))

	// The bus goes and the real NetworkManager is asked again.
	r.must(r.daemon.Stop(t.Context()))
	r.env = nil
	r.start()
	r.settled()
	r.unharmed(before, "all that")
}

// TestReloadNeedsRestart: the check that a reload makes refuses what the daemon refuses, with the
// same words, whichever directory changes.
func TestReloadNeedsRestart(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, "")
	r.start()
	works := r.cfg
	program, err := labtest.Build("multihomed")
	r.must(err)
	check := func(args ...string) (string, int) {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), program, append([]string{"--config", r.path}, args...)...).CombinedOutput()
		exit, failed := errors.AsType[*exec.ExitError](err)
		switch {
		case failed:
			return string(out), exit.ExitCode()
		case err != nil:
			t.Fatal(err)
		}
		return string(out), 0
	}
	const restart = "; to fix: systemctl restart multihomed, or set "
	other := t.TempDir()
	for _, c := range []struct{ name, state, runtime, says string }{
		{"state", other, works.RuntimeDir, fmt.Sprintf(":2: state_dir changes from %q to %q, which needs a restart%sstate_dir = %[1]q again", works.StateDir, other, restart)},
		{"runtime", works.StateDir, other, fmt.Sprintf(":3: runtime_dir changes from %q to %q, which needs a restart%sruntime_dir = %[1]q again", works.RuntimeDir, other, restart)},
		{"nothing", works.StateDir, works.RuntimeDir, ""},
	} {
		r.must(os.WriteFile(r.path, fmt.Appendf(nil, "# %s\nstate_dir = %q\nruntime_dir = %q\n", c.name, c.state, c.runtime), 0o600))
		status := 0
		if c.says != "" {
			status = 78
		}
		if out, got := check("--check", "--reload"); got != status || !strings.Contains(out, c.says) || status == 0 && out != "" {
			t.Errorf("%s: exit status %d: %s", c.name, got, out)
		}
		if out, got := check("--check"); got != 0 {
			t.Errorf("%s: the file alone: %d: %s", c.name, got, out)
		}
		if out, err := r.ctl("config", "check"); err != nil || !strings.Contains(out, "is sound") || strings.Contains(out, "a reload is refused") != (c.says != "") {
			t.Errorf("%s: multihomectl config check: %v: %s", c.name, err, out)
		}
		lines := len(r.daemon.Lines())
		r.must(r.daemon.Signal(syscall.SIGHUP))
		want := "configuration unchanged"
		if c.says != "" {
			want = c.says[strings.Index(c.says, " to "):strings.Index(c.says, ";")]
		}
		ctx, cancel := r.patience()
		line, err := r.daemon.WaitLineAfter(ctx, lines, want)
		cancel()
		r.must(err)
		if strings.Contains(line, "systemctl reload") {
			t.Errorf("%s: a reload does not help: %s", c.name, line)
		}
	}
	// Names that nothing has are no mistake, and said.
	r.isp(lab.DefaultISP(0))
	r.up("wan0")
	r.must(os.WriteFile(r.path, fmt.Appendf(nil, "state_dir = %q\nruntime_dir = %q\n[failover]\nprefer = [\"wna0\"]\n[[exclude]]\ninterface = \"tun7\"\n", works.StateDir, works.RuntimeDir), 0o600))
	out, err := r.ctl("config", "check")
	for _, want := range []string{"is sound\n", `notice: "wna0" in prefer of [failover] in the configuration matches no interface of this host at present; did you mean "wan0"?`, `notice: [[exclude]] with interface = "tun7" `} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("config check: %v: %s\nwant %s", err, out, want)
		}
	}
	r.must(r.daemon.Stop(t.Context()))
	r.must(os.WriteFile(r.path, fmt.Appendf(nil, "state_dir = %q\nruntime_dir = %q\n", other, other), 0o600))
	if out, got := check("--check", "--reload"); got != 0 {
		t.Errorf("no daemon runs: %d: %s", got, out)
	}
	if out, got := check("--reload"); got != 64 || !strings.Contains(out, "systemctl reload multihomed") {
		t.Errorf("--reload alone: %d: %s", got, out)
	}
}
