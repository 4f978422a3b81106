// Package nmtest is a NetworkManager made of paper on a private bus, for what
// the real one never does: values of the wrong type, replies that do not come,
// objects that vanish. What the real one does is tested with the real one.
package nmtest

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/godbus/dbus/v5"
)

// Names of NetworkManager's interfaces.
const (
	Name       = "org.freedesktop.NetworkManager"
	Manager    = Name
	Device     = Name + ".Device"
	Active     = Name + ".Connection.Active"
	Connection = Name + ".Settings.Connection"
	DHCP4      = Name + ".DHCP4Config"
	IP4        = Name + ".IP4Config"
	IP6        = Name + ".IP6Config"

	root = dbus.ObjectPath("/org/freedesktop")
	// ManagerPath is the manager's object.
	ManagerPath = dbus.ObjectPath("/org/freedesktop/NetworkManager")
)

// Properties are those of one interface.
type Properties = map[string]any

// A Bus is a dbus-daemon that nobody else uses.
type Bus struct {
	t       testing.TB
	Address string
	cmd     *exec.Cmd
}

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <auth>EXTERNAL</auth>
  <listen>unix:path=%s</listen>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
  <limit name="max_replies_per_connection">50000</limit>
</busconfig>
`

// NewBus starts a bus for the rest of the test.
func NewBus(tb testing.TB) *Bus {
	tb.Helper()
	b := &Bus{t: tb, Address: "unix:path=" + filepath.Join(tb.TempDir(), "bus")}
	b.Start()
	tb.Cleanup(b.Stop)
	return b
}

// Start starts the bus again after Stop, at the same address.
func (b *Bus) Start() {
	b.t.Helper()
	socket := strings.TrimPrefix(b.Address, "unix:path=")
	config := socket + ".conf"
	if err := os.WriteFile(config, fmt.Appendf(nil, busConfig, socket), 0o600); err != nil {
		b.t.Fatal(err)
	}
	_ = os.Remove(socket) // what is in the way will be named below
	program, err := exec.LookPath("dbus-daemon")
	if err != nil {
		b.t.Fatalf("%v: apt-get install dbus", err)
	}
	//nolint:noctx // it ends in Stop
	b.cmd = exec.Command(program, "--config-file="+config, "--nofork", "--nopidfile", "--print-address=1")
	out, err := b.cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.cmd.Start(); err != nil {
		b.t.Fatalf("starting the bus: %v", err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		b.t.Fatalf("waiting for the bus: %v", err)
	}
}

// Stop kills the bus.
func (b *Bus) Stop() {
	if b.cmd == nil {
		return
	}
	_ = b.cmd.Process.Kill() // it may have ended
	_ = b.cmd.Wait()         // says that it was killed
	b.cmd = nil
}

// Freeze stops the bus from running, Thaw lets it go on.
func (b *Bus) Freeze() { b.signal(syscall.SIGSTOP) }

// Thaw undoes Freeze.
func (b *Bus) Thaw() { b.signal(syscall.SIGCONT) }

func (b *Bus) signal(s syscall.Signal) {
	b.t.Helper()
	if err := b.cmd.Process.Signal(s); err != nil {
		b.t.Fatalf("signalling the bus: %v", err)
	}
}

// Connect connects to the bus for the rest of the test.
func (b *Bus) Connect() *dbus.Conn {
	b.t.Helper()
	conn, err := dbus.Connect(b.Address)
	if err != nil {
		b.t.Fatalf("connecting to the bus: %v", err)
	}
	b.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// Names lists who is on the bus.
func (b *Bus) Names() []string {
	b.t.Helper()
	conn, err := dbus.Connect(b.Address)
	if err != nil {
		b.t.Fatalf("connecting to the bus: %v", err)
	}
	defer func() { _ = conn.Close() }()
	var names []string
	if err := conn.BusObject().Call("org.freedesktop.DBus.ListNames", 0).Store(&names); err != nil {
		b.t.Fatalf("asking the bus: %v", err)
	}
	return names
}

// A NM is a fake NetworkManager. Its methods may be used from any goroutine.
type NM struct {
	t    testing.TB
	conn *dbus.Conn

	mu      sync.Mutex
	objects map[dbus.ObjectPath]map[string]map[string]dbus.Variant
	answers map[string]Answer
	calls   map[string]int
}

// An Answer is what a method replies with, whatever it is, for the object at a
// path. It may wait.
type Answer func(dbus.ObjectPath) (any, *dbus.Error)

// NewNM returns a NetworkManager that has finished starting and has no
// devices. It is on the bus, and gets its name with Own.
func (b *Bus) NewNM() *NM {
	b.t.Helper()
	n := &NM{
		t: b.t, conn: b.Connect(),
		objects: map[dbus.ObjectPath]map[string]map[string]dbus.Variant{},
		calls:   map[string]int{},
	}
	none := func(dbus.ObjectPath) (any, *dbus.Error) { return Settings{}, nil }
	n.answers = map[string]Answer{
		"GetAppliedConnection": none, "GetSettings": none,
		"GetManagedObjects": func(dbus.ObjectPath) (any, *dbus.Error) { return n.snapshot(), nil },
	}
	n.Set(ManagerPath, Manager, Properties{"Startup": false, "Version": "1.42.4"})

	n.export(Device, "GetAppliedConnection", func(msg dbus.Message, _ uint32) (any, uint64, *dbus.Error) {
		v, err := n.answer("GetAppliedConnection", msg)
		return v, 1, err
	})
	n.export(Connection, "GetSettings", func(msg dbus.Message) (any, *dbus.Error) {
		return n.answer("GetSettings", msg)
	})
	n.export("org.freedesktop.DBus.ObjectManager", "GetManagedObjects", func(msg dbus.Message) (any, *dbus.Error) {
		return n.answer("GetManagedObjects", msg)
	})
	return n
}

// Settings is a profile.
type Settings = map[string]map[string]dbus.Variant

func path(msg dbus.Message) dbus.ObjectPath {
	p, _ := msg.Headers[dbus.FieldPath].Value().(dbus.ObjectPath)
	return p
}

func (n *NM) export(iface, method string, f any) {
	n.t.Helper()
	if err := n.conn.ExportSubtreeMethodTable(map[string]any{method: f}, root, iface); err != nil {
		n.t.Fatalf("exporting %s: %v", method, err)
	}
}

func (n *NM) answer(method string, msg dbus.Message) (any, *dbus.Error) {
	n.mu.Lock()
	n.calls[method]++
	f := n.answers[method]
	n.mu.Unlock()
	return f(path(msg))
}

// Answer has a method answer otherwise: GetManagedObjects,
// GetAppliedConnection or GetSettings. It returns the previous answer.
func (n *NM) Answer(method string, a Answer) Answer {
	n.mu.Lock()
	defer n.mu.Unlock()
	previous := n.answers[method]
	n.answers[method] = a
	return previous
}

// Calls returns how often a method was called.
func (n *NM) Calls(method string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.calls[method]
}

func (n *NM) snapshot() map[dbus.ObjectPath]map[string]map[string]dbus.Variant {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make(map[dbus.ObjectPath]map[string]map[string]dbus.Variant, len(n.objects))
	for path := range n.objects {
		out[path] = n.object(path)
	}
	return out
}

func (n *NM) object(path dbus.ObjectPath) map[string]map[string]dbus.Variant {
	out := map[string]map[string]dbus.Variant{}
	for iface, p := range n.objects[path] {
		out[iface] = maps.Clone(p)
	}
	return out
}

// Own takes NetworkManager's name, Disown gives it back.
func (n *NM) Own() {
	n.t.Helper()
	reply, err := n.conn.RequestName(Name, dbus.NameFlagDoNotQueue|dbus.NameFlagReplaceExisting|dbus.NameFlagAllowReplacement)
	if err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		n.t.Fatalf("taking the name: %v, %v", reply, err)
	}
}

// Disown gives the name back.
func (n *NM) Disown() {
	n.t.Helper()
	if _, err := n.conn.ReleaseName(Name); err != nil {
		n.t.Fatalf("giving the name back: %v", err)
	}
}

// Set stores properties of an object and says nothing.
func (n *NM) Set(path dbus.ObjectPath, iface string, p Properties) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.objects[path] == nil {
		n.objects[path] = map[string]map[string]dbus.Variant{}
	}
	if n.objects[path][iface] == nil {
		n.objects[path][iface] = map[string]dbus.Variant{}
	}
	for name, v := range p {
		if v == nil {
			delete(n.objects[path][iface], name)
			continue
		}
		n.objects[path][iface][name] = dbus.MakeVariant(v)
	}
}

// Change stores properties and signals them.
func (n *NM) Change(path dbus.ObjectPath, iface string, p Properties) {
	n.t.Helper()
	n.Set(path, iface, p)
	changed := map[string]dbus.Variant{}
	for name, v := range p {
		changed[name] = dbus.MakeVariant(v)
	}
	n.Emit(path, "org.freedesktop.DBus.Properties.PropertiesChanged", iface, changed, []string{})
}

// Announce signals that an object is there.
func (n *NM) Announce(path dbus.ObjectPath) {
	n.t.Helper()
	n.mu.Lock()
	object := n.object(path)
	n.mu.Unlock()
	n.Emit(root, "org.freedesktop.DBus.ObjectManager.InterfacesAdded", path, object)
}

// Remove takes an object away and signals it.
func (n *NM) Remove(path dbus.ObjectPath) {
	n.t.Helper()
	n.mu.Lock()
	interfaces := slices.Collect(maps.Keys(n.objects[path]))
	delete(n.objects, path)
	n.mu.Unlock()
	n.Emit(root, "org.freedesktop.DBus.ObjectManager.InterfacesRemoved", path, interfaces)
}

// Emit sends a signal.
func (n *NM) Emit(path dbus.ObjectPath, name string, values ...any) {
	n.t.Helper()
	if err := n.conn.Emit(path, name, values...); err != nil {
		n.t.Fatalf("emitting %s: %v", name, err)
	}
}

// DevicePath and the others are where AddEthernet puts objects.
func DevicePath(i int) dbus.ObjectPath { return at("Devices", i) }

// ActivePath is the active connection's.
func ActivePath(i int) dbus.ObjectPath { return at("ActiveConnection", i) }

// SettingsPath is the profile's.
func SettingsPath(i int) dbus.ObjectPath { return at("Settings", i) }

// IP4Path is the IPv4 configuration's.
func IP4Path(i int) dbus.ObjectPath { return at("IP4Config", i) }

// IP6Path is the IPv6 configuration's; AddEthernet has none.
func IP6Path(i int) dbus.ObjectPath { return at("IP6Config", i) }

// DHCP4Path is the DHCP configuration's.
func DHCP4Path(i int) dbus.ObjectPath { return at("DHCP4Config", i) }

func at(kind string, i int) dbus.ObjectPath {
	return dbus.ObjectPath(fmt.Sprintf("%s/%s/%d", ManagerPath, kind, i))
}

// AddEthernet stores a device with everything that an active one has, and says
// nothing.
func (n *NM) AddEthernet(i int, iface string) {
	n.Set(DevicePath(i), Device, Properties{
		"Interface": iface, "IpInterface": iface, "DeviceType": uint32(1), "State": uint32(100),
		"Managed": true, "Real": true, "ActiveConnection": ActivePath(i),
		"Ip4Config": IP4Path(i), "Ip6Config": dbus.ObjectPath("/"), "Dhcp4Config": DHCP4Path(i),
	})
	n.Set(ActivePath(i), Active, Properties{
		"Connection": SettingsPath(i), "Id": "profile-" + iface, "Uuid": "uuid-" + iface,
		"Type": "802-3-ethernet", "StateFlags": uint32(0x1c), "Vpn": false, "Master": dbus.ObjectPath("/"),
	})
	n.Set(DHCP4Path(i), DHCP4, Properties{"Options": map[string]dbus.Variant{
		"routers": dbus.MakeVariant("192.0.2.1 192.0.2.2"), "ip_address": dbus.MakeVariant("192.0.2.10"),
	}})
	n.Set(IP4Path(i), IP4, Properties{"Gateway": "192.0.2.1"})
}
