package dbus_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"multihomed/internal/dbusapi"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// alice is an ordinary user.
const alice = 1234

// connectAs connects to the system bus as an ordinary user.
func connectAs(t *testing.T, uid int) *dbus.Conn {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	none := ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, none, uintptr(uid), none); errno != 0 {
		t.Fatal(errno)
	}
	conn, err := dbus.Dial(lab.BusAddress)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, none, 0, none); errno != 0 {
		t.Fatal(errno)
	}
	if err == nil {
		err = conn.Auth([]dbus.Auth{dbus.AuthExternal(fmt.Sprint(uid))})
	}
	if err == nil {
		err = conn.Hello()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// startPolkit starts the real polkitd with the policy of the package, whose owner is the user that the
// daemon has here.
func (r *rig) startPolkit(rules string) {
	r.t.Helper()
	const actions = "/usr/share/polkit-1/actions"
	r.must(unix.Mount("tmpfs", actions, "tmpfs", 0, "mode=755"))
	r.t.Cleanup(func() { r.must(unix.Unmount(actions, unix.MNT_DETACH)) })
	policy, err := os.ReadFile("../../packaging/polkit/org.multihomed1.policy")
	r.must(err)
	owned := strings.ReplaceAll(string(policy), "unix-user:multihomed", "unix-user:nobody")
	r.must(os.WriteFile(filepath.Join(actions, "org.multihomed1.policy"), []byte(owned), 0o644))
	r.must(os.MkdirAll("/etc/polkit-1/rules.d", 0o755))
	r.must(os.WriteFile("/etc/polkit-1/rules.d/10-test.rules", []byte(rules), 0o644))
	_, err = r.Start(lab.ProcessConfig{Path: "/usr/lib/polkit-1/polkitd", Args: []string{"--no-debug"}})
	r.must(err)
	labtest.Eventually(r.t, func() error {
		var owned bool
		if err := r.connect().BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, "org.freedesktop.PolicyKit1").Store(&owned); err != nil || owned {
			return err
		}
		return fmt.Errorf("polkit has no name")
	})
}

// TestPolkit: everybody reads, root does everything, and others do what polkit allows; without polkit
// nothing. The daemon is a user with one capability, as its unit makes it.
func TestPolkit(t *testing.T) {
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/etc/passwd", append(passwd, fmt.Sprintf("alice:x:%d:%d::/:/bin/sh\n", alice, alice)...), 0o644); err != nil {
		t.Fatal(err)
	}
	r := newRigAs(t, nobody, lab.HostConfig{FastDAD: true}, 1)
	root, user := r.connect(), connectAs(t, alice)
	r.property(root, dbusapi.Path, manager+"LinksInForce", "1")
	// What root has written, the daemon changes later.
	for _, args := range [][]string{{"off", "wan0"}, {"on"}, {"bind", "add", "wan0", "user=1"}, {"bind", "remove", "user=1"}} {
		if out, err := r.ctl(args...); err != nil {
			t.Errorf("multihomectl %q: %v\n%s", args, err, out)
		}
	}
	call := func(conn *dbus.Conn, method string, args ...any) string {
		call := conn.Object(dbusapi.Name, dbusapi.Path).Call(method, 0, args...)
		if failure, is := call.Err.(dbus.Error); is { //nolint:errorlint // godbus returns it bare
			return failure.Name + ": " + fmt.Sprint(failure.Body...)
		}
		if call.Err != nil {
			return call.Err.Error()
		}
		return "done"
	}
	orders := []struct {
		method string
		args   []any
	}{
		{"Off", []any{[]string{}}},
		{"On", []any{[]string{}}},
		{"Reload", nil},
		{"Reconcile", nil},
		{"Bind", []any{map[string]dbus.Variant{"link": dbus.MakeVariant("wan0"), "user": dbus.MakeVariant("daemon")}}},
		{"Unbind", []any{"user=daemon"}},
		{"SetLogLevel", []any{"info"}},
		{"Diagnose", []any{map[string]dbus.Variant{}}},
	}
	all := func(when string, conn *dbus.Conn, want string) {
		t.Helper()
		for _, o := range orders {
			if got := call(conn, manager+o.method, o.args...); !strings.HasPrefix(got, want) {
				t.Errorf("%s, %s: %q, want %q", when, o.method, got, want)
			}
		}
	}
	all("without polkit, root", root, "done")
	if got := call(root, manager+"Bind", orders[4].args...); got != "done" {
		t.Error(got) // So that there is something to unbind.
	}
	// Words that mean nothing are told before anybody is asked for a password.
	for _, o := range []struct {
		method string
		arg    any
	}{
		{"Off", []string{"wan7"}},
		{"On", []string{"wan7"}},
		{"SetLogLevel", "loud"},
		{"FailoverTest", "wan7"},
		{"Unbind", "daemon"},
		{"Bind", map[string]dbus.Variant{"link": dbus.MakeVariant("wan0")}},
		{"Diagnose", map[string]dbus.Variant{"x": dbus.MakeVariant(1)}},
	} {
		if got := call(user, manager+o.method, o.arg); !strings.HasPrefix(got, dbusapi.InvalidArgs) {
			t.Errorf("a user who may not, and writes a wrong word for %s: %s", o.method, got)
		}
	}
	all("without polkit, a user", user, dbusapi.AccessDenied+": polkit does not run on this host, so only root may do this")
	for method, args := range map[string][]any{
		dbusapi.Properties + ".GetAll": {dbusapi.ManagerInterface}, dbusapi.ObjectManager + ".GetManagedObjects": nil,
		manager + "ListLinks": nil, manager + "Describe": {map[string]dbus.Variant{}}, manager + "Plan": {map[string]dbus.Variant{}},
		manager + "Explain": {map[string]dbus.Variant{"destination": dbus.MakeVariant("192.0.2.1")}}, manager + "Graph": {map[string]dbus.Variant{}},
	} {
		if got := call(user, method, args...); got != "done" {
			t.Errorf("a user who reads by %s: %s", method, got)
		}
	}
	if got := call(user, dbusapi.Properties+".Set", dbusapi.ManagerInterface, "LogLevel", dbus.MakeVariant("debug")); !strings.HasPrefix(got, dbusapi.PropertyReadOnly) {
		t.Errorf("a user who sets a property: %s", got)
	}
	r.startPolkit(`polkit.addRule(function(action, subject) {
	if (action.id == "org.multihomed1.switch" && subject.user == "alice") return polkit.Result.YES;
	if (action.id == "org.multihomed1.bind" && subject.user == "alice") return polkit.Result.NO;
});
`)
	all("with polkit, root", root, "done")
	for _, c := range [][2]string{
		{"Off", "done"}, {"On", "done"}, {"Reload", dbusapi.InteractionNeeded}, {"Bind", dbusapi.AccessDenied + ": polkit does not allow"},
	} {
		var args []any
		for _, o := range orders {
			if o.method == c[0] {
				args = o.args
			}
		}
		if got := call(user, manager+c[0], args...); !strings.HasPrefix(got, c[1]) {
			t.Errorf("a user whom a rule allows to switch, %s: %q, want %q", c[0], got, c[1])
		}
	}
	// Nobody can be asked for a password: there is no agent.
	out, err := r.Run(t.Context(), "setpriv", fmt.Sprint("--reuid=", alice), "--clear-groups", "busctl", "--system", "--allow-interactive-authorization=true",
		"call", dbusapi.Name, string(dbusapi.Path), dbusapi.ManagerInterface, "Reload")
	if err == nil || !strings.Contains(out, "Access denied") {
		t.Errorf("who may be asked, and has no agent: %v\n%s", err, out)
	}
	labtest.Eventually(t, func() error {
		if log := r.daemon.Log(); !strings.Contains(log, "by alice") {
			return fmt.Errorf("the log does not name who switched it off:\n%s", log)
		}
		return nil
	})
	r.commandLine(t)
	r.flood(t)
}

// flood has a user call much on many connections, and wait for nothing. Root is answered meanwhile: before, such
// a user took all the room that calls have, and its answers stood before root's.
func (r *rig) flood(t *testing.T) {
	t.Helper()
	const connections, calls, questions = 60, 8, 5
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var callers sync.WaitGroup
	defer callers.Wait()
	defer cancel()
	var refused atomic.Int64
	for n := range connections {
		conn := connectAs(t, alice)
		for k := range calls {
			callers.Go(func() {
				for uid := uint32(n)<<16 + uint32(k)<<8; ctx.Err() == nil; uid++ {
					packet := map[string]dbus.Variant{"destination": dbus.MakeVariant("192.0.2.1"), "uid": dbus.MakeVariant(uid)}
					if conn.Object(dbusapi.Name, dbusapi.Path).CallWithContext(ctx, manager+"Explain", 0, packet).Err != nil {
						refused.Add(1)
					}
				}
			})
		}
	}
	labtest.Eventually(t, func() error {
		if n := refused.Load(); n < connections {
			return fmt.Errorf("only %d calls of a flood are refused", n)
		}
		return nil
	})
	root := r.connect()
	longest := time.Duration(0)
	for range questions {
		began := time.Now()
		for method, args := range map[string][]any{manager + "Describe": {map[string]dbus.Variant{}}, manager + "ListLinks": nil} {
			// So long busctl waits.
			waiting, cancel := context.WithTimeout(t.Context(), lab.Stretched(25*time.Second))
			if err := root.Object(dbusapi.Name, dbusapi.Path).CallWithContext(waiting, method, 0, args...).Err; err != nil {
				t.Fatalf("%s of root while a user calls much: %v", method, err)
			}
			cancel()
		}
		longest = max(longest, time.Since(began))
	}
	t.Logf("of %d connections with %d calls each %d were refused; root was answered within %v", connections, calls, refused.Load(), longest)
}

// commandLine runs multihomectl as a user.
func (r *rig) commandLine(t *testing.T) {
	t.Helper()
	for _, c := range []struct {
		args []string
		want string
		done bool
	}{
		{[]string{"off", "wan0"}, "wan0 is switched off: removed ", true},
		{[]string{"on"}, "multihomed is switched on: 1 link with its routing", true},
		{[]string{"off", "wan7"}, `there is no interface or active profile "wan7"`, false},
		{[]string{"bind", "add", "wan0", "user=daemon"}, "polkit does not allow this user org.multihomed1.bind", false},
		{[]string{"reload"}, "polkit", false},
		{[]string{"log-level", "debug"}, "polkit", false},
		{[]string{"log-level", "loud"}, `the level is "loud"; it may be debug, info, warn, error`, false},
		{[]string{"status"}, "wan0", true},
	} {
		out, err := r.ctlAs(alice, c.args...)
		if !strings.Contains(out, c.want) || (err == nil) != c.done {
			t.Errorf("multihomectl %q of a user: %v\n%s", c.args, err, out)
		}
	}
	for _, args := range [][]string{{"reload"}, {"reconcile"}, {"log-level", "info"}} {
		if out, err := r.ctl(args...); err != nil {
			t.Errorf("multihomectl %q: %v\n%s", args, err, out)
		}
	}
}
