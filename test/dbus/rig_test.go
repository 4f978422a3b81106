// Package dbus_test asks the real daemon on a real bus, beside a real NetworkManager, with the tools
// that administrators use: busctl, gdbus, python3-dbus and godbus.
package dbus_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"multihomed/internal/dbusapi"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }

// A rig is a host in the lab with the daemon on it.
type rig struct {
	*lab.Host
	t      testing.TB
	path   string
	uid    int
	daemon *lab.Process
}

// nobody is the user of a daemon that is not root.
const nobody = 65534

// newRig makes a host with the policy of the package on its bus, and starts the daemon.
func newRig(tb testing.TB, host lab.HostConfig, links int) *rig {
	tb.Helper()
	return newRigAs(tb, 0, host, links)
}

// newRigAs is newRig with the daemon as a user: with the one capability that the unit gives it.
func newRigAs(tb testing.TB, uid int, host lab.HostConfig, links int) *rig {
	tb.Helper()
	policy, err := os.ReadFile("../../packaging/dbus/multihomed.conf")
	if err != nil {
		tb.Fatal(err)
	}
	dir := tb.TempDir()
	r := &rig{t: tb, uid: uid, path: filepath.Join(dir, "multihomed.toml")}
	r.Host = labtest.NewHost(tb, host)
	r.must(os.MkdirAll("/etc/dbus-1/system.d", 0o755))
	// The user of the unit does not exist here.
	r.must(os.WriteFile("/etc/dbus-1/system.d/multihomed.conf", []byte(strings.Replace(string(policy), `user="multihomed"`, `user="65534"`, 1)), 0o644))
	_, err = r.Run(tb.Context(), "dbus-send", "--system", "--print-reply", "--dest=org.freedesktop.DBus", "/", "org.freedesktop.DBus.ReloadConfig")
	r.must(err)
	tb.Cleanup(func() {
		if tb.Failed() && r.daemon != nil {
			tb.Logf("the daemon's log ends:\n%s", lab.Tail(r.daemon.Log(), 80))
		}
	})
	r.must(os.WriteFile(r.path, fmt.Appendf(nil, "state_dir = %q\nruntime_dir = %q\n", dir, filepath.Join(dir, "run")), 0o644))
	r.must(os.MkdirAll(filepath.Join(dir, "run"), 0o755))
	for _, d := range []string{dir, filepath.Join(dir, "run")} {
		r.must(os.Chown(d, uid, uid))
	}
	for d := dir; d != "/tmp" && d != "/"; d = filepath.Dir(d) {
		r.must(os.Chmod(d, 0o755))
	}
	for n := range links {
		isp := lab.DefaultISP(n)
		labtest.NewISP(tb, r.Host, isp)
		r.must(r.AddProfile(tb.Context(), isp.Link, isp.Link))
		r.must(r.Up(tb.Context(), isp.Link))
		// One family is enough for NetworkManager. What comes later would be news.
		for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
			_, err := r.WaitAddr(tb.Context(), isp.Link, f)
			r.must(err)
		}
	}
	r.start()
	return r
}

// start starts the daemon, and waits for its name.
func (r *rig) start() {
	r.t.Helper()
	program, err := labtest.Build("multihomed")
	r.must(err)
	path, args := program, []string{"-config", r.path}
	if r.uid != 0 {
		args = append([]string{
			fmt.Sprint("--reuid=", r.uid), fmt.Sprint("--regid=", r.uid), "--clear-groups", "--inh-caps=+net_admin", "--ambient-caps=+net_admin",
			"--bounding-set=-all,+net_admin", program,
		}, args...)
		path = "setpriv"
	}
	r.daemon, err = r.Start(lab.ProcessConfig{Path: path, Args: args, Notify: r.uid == 0, Env: []string{"GORACE=halt_on_error=1 atexit_sleep_ms=0"}})
	r.must(err)
	ctx, cancel := context.WithTimeout(r.t.Context(), lab.Stretched(30*time.Second))
	defer cancel()
	if r.uid != 0 { // The socket of systemd is root's here.
		_, err := r.daemon.WaitLine(ctx, "every link is known")
		r.must(err)
		return
	}
	if _, err := r.daemon.WaitNotify(ctx, "READY=1"); err != nil {
		r.t.Fatalf("%v; its log:\n%s", err, r.daemon.Log())
	}
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// connect connects to the bus as root.
func (r *rig) connect() *dbus.Conn {
	r.t.Helper()
	conn, err := dbus.Connect(lab.BusAddress)
	r.must(err)
	r.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// property waits until a property has a value, as text.
func (r *rig) property(conn *dbus.Conn, path dbus.ObjectPath, name, want string) {
	r.t.Helper()
	labtest.Eventually(r.t, func() error {
		v, err := conn.Object(dbusapi.Name, path).GetProperty(name)
		if err != nil {
			return err
		}
		if got := fmt.Sprint(v.Value()); got != want {
			return fmt.Errorf("%s is %s, want %s", name, got, want)
		}
		return nil
	})
}

// judged waits until links have been judged: no verdict comes any more.
func (r *rig) judged(conn *dbus.Conn, names ...string) {
	r.t.Helper()
	labtest.Eventually(r.t, func() error {
		for _, name := range names {
			v, err := conn.Object(dbusapi.Name, dbusapi.LinkPath(r.index(name))).GetProperty(dbusapi.LinkInterface + ".Health")
			if err != nil {
				return err
			}
			if s := v.String(); !strings.Contains(s, "State") || strings.Contains(s, "unknown") {
				return fmt.Errorf("health of %s is %s", name, s)
			}
		}
		return nil
	})
}

// index is the number of an interface.
func (r *rig) index(name string) int {
	r.t.Helper()
	i, err := net.InterfaceByName(name)
	r.must(err)
	return i.Index
}

// ctl runs multihomectl as root.
func (r *rig) ctl(args ...string) (string, error) { return r.ctlAs(0, args...) }

// ctlAs runs multihomectl as a user.
func (r *rig) ctlAs(uid int, args ...string) (string, error) {
	dir := filepath.Join(filepath.Dir(r.path), "bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	program, err := labtest.Build("multihomed")
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, "multihomectl")
	if err := os.Symlink(program, name); err != nil && !os.IsExist(err) {
		return "", err
	}
	args = append([]string{name}, append(args, "--config", r.path)...)
	if uid != 0 {
		args = append([]string{"setpriv", fmt.Sprint("--reuid=", uid), fmt.Sprint("--regid=", uid), "--clear-groups", "--bounding-set=-all"}, args...)
	}
	return r.Run(r.t.Context(), args[0], args[1:]...)
}
