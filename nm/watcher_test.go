package nm_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gnm "github.com/Wifx/gonetworkmanager/v2"
	"github.com/godbus/dbus/v5"
	"go.uber.org/goleak"

	"multihomed/nm"
	"multihomed/nm/nmtest"
	"multihomed/routing"
)

// timeout bounds every wait. Only a failure takes it.
const timeout = 10 * time.Second

// A lines collects the lines of a log.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, strings.TrimSpace(string(p)))
	return len(p), nil
}

func (l *lines) count(part string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, line := range l.all {
		if strings.Contains(line, part) {
			n++
		}
	}
	return n
}

type watcher struct {
	*nm.Watcher
	log *lines
}

// watch runs a Watcher for the rest of the test.
func watch(t *testing.T, opts nm.Options) *watcher {
	t.Helper()
	w := &watcher{log: &lines{}}
	opts.Logger = slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.Watcher = nm.New(opts)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(timeout):
			t.Error("Run does not return")
		}
		if t.Failed() {
			t.Logf("log:\n%s", strings.Join(w.log.all, "\n"))
		}
	})
	return w
}

// await waits until a condition holds.
func (w *watcher) await(t *testing.T, what string, ok func(nm.Snapshot) bool) nm.Snapshot {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		s := w.Snapshot()
		if ok(s) {
			return s
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain for: %s\nstatus: %+v\ndevices: %+v", what, s.Status, s.Devices)
		}
	}
}

func (w *watcher) awaitComplete(t *testing.T) nm.Snapshot {
	t.Helper()
	return w.await(t, "complete knowledge", func(s nm.Snapshot) bool { return s.Complete })
}

func (w *watcher) awaitDevice(t *testing.T, name, what string, ok func(nm.Device) bool) nm.Device {
	t.Helper()
	s := w.await(t, name+" "+what, func(s nm.Snapshot) bool {
		d, known := s.Devices[name]
		return known && ok(d)
	})
	return s.Devices[name]
}

// start returns a bus with a NetworkManager that has one link, eth0.
func start(t *testing.T) (*nmtest.Bus, *nmtest.NM) {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
	bus := nmtest.NewBus(t)
	fake := bus.NewNM()
	fake.AddEthernet(1, "eth0")
	fake.Own()
	return bus, fake
}

func TestWrongAndMissingProperties(t *testing.T) {
	bus, fake := start(t)
	fake.Set(nmtest.DevicePath(1), nmtest.Device, nmtest.Properties{"Real": nil, "Dhcp4Config": 5})
	fake.Set(nmtest.ActivePath(1), nmtest.Active, nmtest.Properties{"Vpn": "no"})
	w := watch(t, nm.Options{Address: bus.Address})
	d := w.awaitComplete(t).Devices["eth0"]
	want := []string{
		"Dhcp4Config has the type i, expected o",
		"Real is missing",
		"active connection: Vpn has the type s, expected b",
	}
	if !slices.Equal(d.Problems, want) {
		t.Errorf("problems are %q", d.Problems)
	}
	if v, reason := (nm.Policy{}).Classify(d, false); v != nm.Link {
		t.Errorf("it is a %s: %s", v, reason)
	}

	// What becomes wrong keeps its value.
	fake.Change(nmtest.DevicePath(1), nmtest.Device, nmtest.Properties{
		"State": "activated", "DeviceType": int64(1), "Managed": uint32(0), "ActiveConnection": "x", "Interface": 7, "IpInterface": []string{},
	})
	d = w.awaitDevice(t, "eth0", "has more problems", func(d nm.Device) bool { return len(d.Problems) > 3 })
	if d.State != gnm.NmDeviceStateActivated || d.Type != gnm.NmDeviceTypeEthernet || !d.Managed || !d.ProfileKnown {
		t.Errorf("device is %+v", d)
	}
	fake.Change(nmtest.DevicePath(1), nmtest.Device, nmtest.Properties{"State": "again"})
	// What becomes right is no problem any more.
	fake.Change(nmtest.DevicePath(1), nmtest.Device, nmtest.Properties{
		"State": uint32(110), "DeviceType": uint32(1), "Managed": true, "Real": true, "Interface": "eth0", "IpInterface": "eth0",
		"Dhcp4Config": nmtest.DHCP4Path(1), "ActiveConnection": nmtest.ActivePath(1),
	})
	fake.Change(nmtest.ActivePath(1), nmtest.Active, nmtest.Properties{"Vpn": false})
	d = w.awaitDevice(t, "eth0", "has no problems", func(d nm.Device) bool { return len(d.Problems) == 0 })
	if d.State != gnm.NmDeviceStateDeactivating || d.Intents[routing.IPv4].Gateway.String() != "192.0.2.1" {
		t.Errorf("device is %+v", d)
	}
	if n := w.log.count("State has the type s"); n != 1 {
		t.Errorf("a problem was logged %d times", n)
	}
}

func TestGarbage(t *testing.T) {
	bus, fake := start(t)
	w := watch(t, nm.Options{Address: bus.Address})
	before := w.awaitComplete(t)

	const changed = "org.freedesktop.DBus.Properties.PropertiesChanged"
	const manager = "org.freedesktop.DBus.ObjectManager."
	none := map[string]dbus.Variant{}
	for _, body := range [][]any{
		{},
		{uint32(1)},
		{nmtest.Device},
		{nmtest.Device, "x"},
		{nmtest.Device, none},
		{"", none, []string{}},
		{nmtest.Device, map[string]string{"State": "10"}, []string{}},
		{nmtest.Device, map[string]dbus.Variant{"State": dbus.MakeVariant(dbus.MakeVariant(uint32(10)))}, []string{}},
	} {
		fake.Emit(nmtest.DevicePath(1), changed, body...)
	}
	// An object that was never announced.
	fake.Change(nmtest.DevicePath(99), nmtest.Device, nmtest.Properties{"Interface": "eth99", "State": uint32(100)})
	for _, body := range [][]any{
		{},
		{"x"},
		{dbus.ObjectPath("/x"), "y"},
		{uint32(1), uint32(2)},
		{nmtest.DevicePath(1), []uint32{1}},
		{dbus.ObjectPath("/"), map[string]map[string]dbus.Variant{nmtest.Device: {}}},
		{dbus.ObjectPath("/y"), map[string]map[string]dbus.Variant{nmtest.Active: {}, nmtest.DHCP4: {"Options": dbus.MakeVariant("x")}, nmtest.IP4: {}}},
	} {
		fake.Emit("/org/freedesktop", manager+"InterfacesAdded", body...)
		fake.Emit("/org/freedesktop", manager+"InterfacesRemoved", body...)
	}
	for _, body := range [][]any{{}, {"x", "y", "z"}, {uint32(1), uint32(2)}} {
		fake.Emit(nmtest.DevicePath(1), nmtest.Device+".StateChanged", body...)
		fake.Emit(nmtest.SettingsPath(7), nmtest.Connection+".Updated", body...)
	}
	// Somebody who is not NetworkManager, on the same bus.
	impostor := bus.Connect()
	lie := map[string]dbus.Variant{"IpInterface": dbus.MakeVariant("evil0")}
	for range 10 {
		if err := impostor.Emit(nmtest.DevicePath(1), changed, nmtest.Device, lie, []string{}); err != nil {
			t.Fatal(err)
		}
		// Sent to the Watcher alone, a signal needs no subscription.
		for _, name := range bus.Names() {
			if !strings.HasPrefix(name, ":") {
				continue
			}
			impostor.Send(&dbus.Message{
				Type: dbus.TypeSignal,
				Headers: map[dbus.HeaderField]dbus.Variant{
					dbus.FieldDestination: dbus.MakeVariant(name), dbus.FieldPath: dbus.MakeVariant(nmtest.DevicePath(1)),
					dbus.FieldInterface: dbus.MakeVariant("org.freedesktop.DBus.Properties"), dbus.FieldMember: dbus.MakeVariant("PropertiesChanged"),
					dbus.FieldSignature: dbus.MakeVariant(dbus.ParseSignatureMust("sa{sv}as")),
				},
				Body: []any{nmtest.Device, lie, []string{}},
			}, nil)
		}
		if err := impostor.Emit("/org/freedesktop/DBus", "org.freedesktop.DBus.NameOwnerChanged", nmtest.Name, "", ""); err != nil {
			t.Fatal(err)
		}
	}

	fake.Change(nmtest.DevicePath(1), nmtest.Device, nmtest.Properties{"State": uint32(110)})
	after := w.await(t, "the end", func(s nm.Snapshot) bool { return s.Devices["eth0"].State == gnm.NmDeviceStateDeactivating })
	if !after.Complete || len(after.Devices) != len(before.Devices) {
		t.Errorf("snapshot is %+v", after)
	}
	if _, heard := after.Devices["evil0"]; heard {
		t.Error("the impostor was heard")
	}
}

// NetworkManager takes the active connection away before the device leaves
// "deactivating" (measured on 1.42.4).
func TestDeactivating(t *testing.T) {
	bus, fake := start(t)
	w := watch(t, nm.Options{Address: bus.Address})
	w.awaitComplete(t)
	fake.Change(nmtest.DevicePath(1), nmtest.Device, nmtest.Properties{"State": uint32(110)})
	fake.Change(nmtest.DevicePath(1), nmtest.Device, nmtest.Properties{"ActiveConnection": dbus.ObjectPath("/")})
	fake.Remove(nmtest.ActivePath(1))
	// The last signal of a row that is only complete when it was heard.
	fake.Change(nmtest.DevicePath(1), nmtest.Device, nmtest.Properties{"Real": "?"})
	d := w.awaitDevice(t, "eth0", "has a problem", func(d nm.Device) bool { return len(d.Problems) > 0 })
	if v, reason := (nm.Policy{}).Classify(d, true); v != nm.Link || d.Intents[routing.IPv4].Gateway.String() != "192.0.2.1" {
		t.Errorf("it is a %s: %s; %+v", v, reason, d)
	}
}

// A NetworkManager that does not answer keeps nobody from hearing its signals.
func TestHungProfile(t *testing.T) {
	bus, fake := start(t)
	release := make(chan struct{})
	previous := fake.Answer("GetAppliedConnection", func(dbus.ObjectPath) (any, *dbus.Error) {
		<-release
		return nmtest.Settings{}, nil
	})
	w := watch(t, nm.Options{Address: bus.Address, CallTimeout: 100 * time.Millisecond})
	d := w.awaitDevice(t, "eth0", "has a problem", func(d nm.Device) bool { return len(d.Problems) == 1 })
	if d.ProfileKnown || !strings.Contains(d.Problems[0], "deadline exceeded") {
		t.Errorf("device is %+v", d)
	}
	if s := w.Snapshot(); s.Complete || s.Reason != "reading the profiles of the active devices" {
		t.Errorf("status is %+v", s.Status)
	}
	if v, reason := (nm.Policy{}).Classify(d, true); v != nm.Draining {
		t.Errorf("a link becomes %s: %s", v, reason)
	}
	fake.Change(nmtest.DevicePath(1), nmtest.Device, nmtest.Properties{"State": uint32(110)})
	w.awaitDevice(t, "eth0", "deactivates", func(d nm.Device) bool { return d.State == gnm.NmDeviceStateDeactivating })
	fake.Change(nmtest.DevicePath(1), nmtest.Device, nmtest.Properties{"State": uint32(100)})

	fake.Answer("GetAppliedConnection", previous)
	close(release)
	w.awaitComplete(t)
	w.awaitDevice(t, "eth0", "is known", func(d nm.Device) bool { return d.ProfileKnown && len(d.Problems) == 0 })
	if n := w.log.count("device not understood"); n != 1 {
		t.Errorf("%d lines", n)
	}
}

func TestHungObjects(t *testing.T) {
	bus, fake := start(t)
	release := make(chan struct{})
	previous := fake.Answer("GetManagedObjects", func(dbus.ObjectPath) (any, *dbus.Error) {
		<-release
		return map[string]string{}, nil
	})
	w := watch(t, nm.Options{Address: bus.Address, CallTimeout: 50 * time.Millisecond})
	s := w.await(t, "the reason", func(s nm.Snapshot) bool { return strings.HasPrefix(s.Reason, "NetworkManager does not answer") })
	if !s.Running || s.Complete {
		t.Errorf("status is %+v", s.Status)
	}
	// Another type than documented is as good as no answer.
	close(release)
	w.await(t, "the other reason", func(s nm.Snapshot) bool { return strings.Contains(s.Reason, "unexpected type") })
	fake.Answer("GetManagedObjects", previous)
	w.awaitComplete(t)
}

// A profile that must not be read may say everything: its link is left alone. What is
// none does not disable the link.
func TestUnreadableProfile(t *testing.T) {
	bus, fake := start(t)
	denied := func(dbus.ObjectPath) (any, *dbus.Error) {
		return nil, dbus.NewError("org.freedesktop.NetworkManager.PermissionDenied", []any{"no"})
	}
	fake.Answer("GetAppliedConnection", denied)
	stored := fake.Answer("GetSettings", func(dbus.ObjectPath) (any, *dbus.Error) {
		return nmtest.Settings{"ipv4": {"gateway": dbus.MakeVariant("192.0.2.77")}}, nil
	})
	var passed atomic.Pointer[nm.Passed]
	w := watch(t, nm.Options{Address: bus.Address, Passed: func(name string) (nm.Passed, bool) {
		p := passed.Load()
		if p == nil || name != "eth0" {
			return nm.Passed{}, false
		}
		return *p, true
	}})
	d := w.awaitComplete(t).Devices["eth0"]
	if !d.ProfileKnown || d.Intents[routing.IPv4].Gateway.String() != "192.0.2.77" || len(d.Problems) != 1 {
		t.Errorf("with the stored profile: %+v", d)
	}
	fake.Answer("GetSettings", denied)
	w.Recheck("eth0")
	d = w.awaitDevice(t, "eth0", "is not for us", func(d nm.Device) bool { return d.Denied })
	if v, reason := (nm.Policy{}).Classify(d, false); v != nm.NotLink || !w.Snapshot().Complete || !strings.Contains(strings.Join(d.Problems, ""), "not for multihomed to read") {
		t.Errorf("it is a %s: %s; %+v", v, reason, d)
	}
	// What somebody passed on counts, if it is of this profile and makes sense.
	router := netip.MustParseAddr("192.0.2.88")
	for _, bad := range []nm.Passed{
		{UUID: "another", IPv4: nm.PassedFamily{Gateway: router}},
		{UUID: d.ProfileUUID, IPv6: nm.PassedFamily{Gateway: router}},
	} {
		passed.Store(&bad)
		w.Recheck("eth0")
	}
	passed.Store(&nm.Passed{UUID: d.ProfileUUID, IPv4: nm.PassedFamily{Gateway: router, NeverDefault: true}, IPv6: nm.PassedFamily{Table: 77}, Tables: []routing.TableID{77}})
	w.Recheck("eth0")
	d = w.awaitDevice(t, "eth0", "was passed on", func(d nm.Device) bool { return !d.Denied })
	if in := d.Intents[routing.IPv4]; in.Gateway != router || !in.NeverDefault || d.Intents[routing.IPv6].LeaveAlone == "" || len(d.Problems) > 0 || !slices.Equal(d.RouteTables, []routing.TableID{77}) {
		t.Errorf("what was passed on: %+v", d)
	}
	if v, reason := (nm.Policy{}).Classify(d, false); v != nm.Link {
		t.Errorf("it is a %s: %s", v, reason)
	}
	fake.Answer("GetSettings", stored)
	fake.Answer("GetAppliedConnection", func(dbus.ObjectPath) (any, *dbus.Error) { return "a profile", nil })
	w.Recheck("eth0")
	d = w.awaitDevice(t, "eth0", "has another problem", func(d nm.Device) bool { return strings.Contains(strings.Join(d.Problems, ""), "unexpected type") })
	if !d.ProfileKnown {
		t.Errorf("device is %+v", d)
	}
}

// NetworkManager takes its devices away before it leaves, and walks them up
// again when it is back. Neither is news about the links.
func TestExitAndStart(t *testing.T) {
	// The signals of the exit are seen one by one, or all at once.
	t.Run("seen", func(t *testing.T) { exitAndStart(t, true) })
	t.Run("folded", func(t *testing.T) { exitAndStart(t, false) })
}

func exitAndStart(t *testing.T, seen bool) {
	t.Helper()
	// What happens within it takes milliseconds.
	const grace = time.Second
	bus, fake := start(t)
	fake.AddEthernet(2, "eth1")
	w := watch(t, nm.Options{Address: bus.Address, Grace: grace})
	before := w.awaitComplete(t)
	for i := 1; i <= 2; i++ {
		fake.Change(nmtest.DevicePath(i), nmtest.Device, nmtest.Properties{"Dhcp4Config": dbus.ObjectPath("/")})
		fake.Change(nmtest.DevicePath(i), nmtest.Device, nmtest.Properties{"State": uint32(10), "ActiveConnection": dbus.ObjectPath("/")})
		if seen {
			w.awaitDevice(t, fmt.Sprintf("eth%d", i-1), "is unmanaged", func(d nm.Device) bool { return d.State == gnm.NmDeviceStateUnmanaged && d.Settling })
		}
		fake.Remove(nmtest.DevicePath(i))
	}
	if seen {
		w.awaitDevice(t, "eth1", "is gone", func(d nm.Device) bool { return d.Gone })
	}
	fake.Disown()
	s := w.await(t, "the exit", func(s nm.Snapshot) bool { return !s.Running })
	for _, name := range []string{"eth0", "eth1"} {
		d := s.Devices[name]
		if v, reason := (nm.Policy{}).Classify(d, true); v == nm.NotLink || d.Gone {
			t.Errorf("%s becomes %s: %s", name, v, reason)
		}
		if d.Intents[routing.IPv4] != before.Devices[name].Intents[routing.IPv4] || d.ProfileID != before.Devices[name].ProfileID {
			t.Errorf("%s forgot its profile: %+v", name, d)
		}
	}

	next := bus.NewNM()
	next.Set(nmtest.ManagerPath, nmtest.Manager, nmtest.Properties{"Startup": true})
	next.AddEthernet(11, "eth0")
	idle := nmtest.Properties{"State": uint32(10), "ActiveConnection": dbus.ObjectPath("/"), "Dhcp4Config": dbus.ObjectPath("/")}
	next.Set(nmtest.DevicePath(11), nmtest.Device, idle)
	next.Own()
	s = w.await(t, "the start", func(s nm.Snapshot) bool { return s.Running && s.Reason == "NetworkManager is starting" })
	if s.Complete {
		t.Error("complete while starting")
	}
	deadline := time.Now().Add(2 * grace)
	for _, state := range []uint32{10, 20, 30} {
		next.Change(nmtest.DevicePath(11), nmtest.Device, nmtest.Properties{"State": state})
		d := w.awaitDevice(t, "eth0", "walks up", func(d nm.Device) bool { return uint32(d.State) == state && time.Now().After(deadline) })
		if v, reason := (nm.Policy{}).Classify(d, true); v != nm.Draining {
			t.Errorf("eth0 becomes %s: %s", v, reason)
		}
	}
	if _, ok := w.Device("eth1"); !ok {
		t.Error("eth1 is forgotten while NetworkManager is starting")
	}
	// The lease is announced before the server has answered.
	next.Set(nmtest.DHCP4Path(12), nmtest.DHCP4, nmtest.Properties{"Options": map[string]dbus.Variant{}})
	next.Announce(nmtest.DHCP4Path(12))
	next.Change(nmtest.DevicePath(11), nmtest.Device, nmtest.Properties{"State": uint32(70), "ActiveConnection": nmtest.ActivePath(11), "Dhcp4Config": nmtest.DHCP4Path(12)})
	d := w.awaitDevice(t, "eth0", "is active", func(d nm.Device) bool { return d.ProfileKnown })
	if d.Intents[routing.IPv4].Gateway.String() != "192.0.2.1" {
		t.Errorf("eth0 lost its gateway: %+v", d)
	}
	next.Change(nmtest.DHCP4Path(12), nmtest.DHCP4, nmtest.Properties{"Options": map[string]dbus.Variant{"ip_address": dbus.MakeVariant("192.0.2.10")}})
	w.awaitDevice(t, "eth0", "has no gateway", func(d nm.Device) bool { return !d.Intents[routing.IPv4].Gateway.IsValid() })
	next.Change(nmtest.ManagerPath, nmtest.Manager, nmtest.Properties{"Startup": false})
	w.await(t, "eth1 is the kernel's matter", func(s nm.Snapshot) bool { d := s.Devices["eth1"]; return s.Complete && d.Gone && !d.Settling })
	if _, ok := w.Device("eth0"); !ok {
		t.Error("eth0 is forgotten")
	}
}

// TestBefore: who follows NetworkManager after another Watcher begins with what that one knew, whether
// NetworkManager runs or not, and forgets what went meanwhile.
func TestBefore(t *testing.T) {
	bus, fake := start(t)
	fake.AddEthernet(2, "eth1")
	first := watch(t, nm.Options{Address: bus.Address})
	known := first.awaitComplete(t)
	inherits := func(before *nm.Watcher, absent bool) *watcher {
		t.Helper()
		c := nm.New(nm.Options{Before: before}).TakeChanges()
		if d := c.Devices["eth0"]; len(c.Devices) != len(known.Devices) || !d.ProfileKnown || d.Settling || c.Status.Complete || !c.StatusChanged || c.Status.Absent != absent {
			t.Errorf("it begins with %+v", c)
		}
		return watch(t, nm.Options{Address: bus.Address, Grace: time.Millisecond, Before: before})
	}
	fake.Remove(nmtest.DevicePath(2))
	next := inherits(first.Watcher, false)
	next.await(t, "eth1 is gone", func(s nm.Snapshot) bool { return s.Complete && s.Devices["eth1"].Gone && !s.Devices["eth0"].Gone })
	fake.Disown()
	next.await(t, "the exit", func(s nm.Snapshot) bool { return s.Absent })
	inherits(next.Watcher, true).await(t, "NetworkManager was asked", func(s nm.Snapshot) bool {
		return s.Absent && s.Reason == "NetworkManager is not running" && s.Devices["eth0"].ProfileKnown
	})
}

// A NetworkManager that is replaced without a pause.
func TestReplaced(t *testing.T) {
	bus, _ := start(t)
	w := watch(t, nm.Options{Address: bus.Address})
	w.awaitComplete(t)
	next := bus.NewNM()
	next.AddEthernet(5, "eth0")
	next.Set(nmtest.ActivePath(5), nmtest.Active, nmtest.Properties{"Id": "other"})
	next.Own()
	w.awaitDevice(t, "eth0", "has the other profile", func(d nm.Device) bool { return d.ProfileKnown && d.ProfileID == "other" })
	w.awaitComplete(t)
}

func TestGone(t *testing.T) {
	bus, fake := start(t)
	fake.AddEthernet(2, "eth1")
	w := watch(t, nm.Options{Address: bus.Address, Grace: 2 * time.Second})
	w.awaitComplete(t)
	w.TakeChanges()
	fake.Remove(nmtest.DevicePath(1))
	fake.Remove(nmtest.DevicePath(2))
	w.awaitDevice(t, "eth0", "is gone", func(d nm.Device) bool { return d.Gone && d.Settling })
	w.awaitDevice(t, "eth1", "is gone", func(d nm.Device) bool { return d.Gone && d.Settling })
	// One is confirmed by the kernel, one comes back under another path.
	w.Forget("eth0")
	if _, ok := w.Device("eth0"); ok {
		t.Error("eth0 is still known")
	}
	fake.AddEthernet(3, "eth1")
	for _, path := range []dbus.ObjectPath{nmtest.DHCP4Path(3), nmtest.IP4Path(3), nmtest.ActivePath(3), nmtest.DevicePath(3)} {
		fake.Announce(path)
	}
	w.awaitDevice(t, "eth1", "is back", func(d nm.Device) bool { return !d.Gone && d.ProfileKnown && !d.Settling })
	w.Forget("eth1")
	if _, ok := w.Device("eth1"); !ok {
		t.Error("what is not gone was forgotten")
	}
	fake.Remove(nmtest.DevicePath(3))
	// However long that takes, an interface is there until the kernel says otherwise.
	w.awaitDevice(t, "eth1", "has settled", func(d nm.Device) bool { return d.Gone && !d.Settling })
	if gone := w.Gone(); !slices.Equal(gone, []string{"eth1"}) {
		t.Errorf("gone: %q", gone)
	}
	w.Forget("eth1")
	if c := w.TakeChanges(); !slices.Equal(slices.Sorted(slices.Values(c.Removed)), []string{"eth0", "eth1"}) || len(c.Devices) != 0 {
		t.Errorf("changes are %+v", c)
	}
}

// A device that gets another name is the same one, and what is known of it stays.
func TestRenamed(t *testing.T) {
	bus, fake := start(t)
	fake.AddEthernet(2, "eth1")
	w := watch(t, nm.Options{Address: bus.Address})
	before := w.awaitComplete(t).Devices["eth0"]
	w.TakeChanges()
	fake.Change(nmtest.DevicePath(1), nmtest.Device, nmtest.Properties{"Interface": "new0", "IpInterface": "new0"})
	now := w.awaitDevice(t, "new0", "is there", func(d nm.Device) bool { return d.Name == "new0" })
	if !now.ProfileKnown || now.ID != before.ID || now.ID == "" || now.State != before.State || now.Gone || now.Settling {
		t.Errorf("it is %+v, was %+v", now, before)
	}
	w.await(t, "the old name is dropped", func(s nm.Snapshot) bool { _, known := s.Devices["eth0"]; return !known && len(s.Devices) == 2 })
}

// The name of a modem's interface is known only while it is active, and a
// PPPoE link has two objects.
func TestInterfaceNames(t *testing.T) {
	bus, fake := start(t)
	fake.AddEthernet(2, "cdc-wdm0")
	fake.Set(nmtest.DevicePath(2), nmtest.Device, nmtest.Properties{"IpInterface": "wwan0", "DeviceType": uint32(8)})
	fake.AddEthernet(3, "eth1")
	fake.Set(nmtest.DevicePath(3), nmtest.Device, nmtest.Properties{"IpInterface": "ppp0"})
	fake.AddEthernet(4, "ppp0")
	fake.Set(nmtest.DevicePath(4), nmtest.Device, nmtest.Properties{"DeviceType": uint32(23), "State": uint32(10), "ActiveConnection": dbus.ObjectPath("/")})
	fake.AddEthernet(5, `w\303\244n`)
	w := watch(t, nm.Options{Address: bus.Address, Grace: 2 * time.Second})
	s := w.awaitComplete(t)
	if s.Devices["wwan0"].Type != gnm.NmDeviceTypeModem || s.Devices["ppp0"].ProfileID != "profile-eth1" || s.Devices["wän"].Name == "" || len(s.Devices) != 4 {
		t.Errorf("devices are %+v", s.Devices)
	}
	fake.Change(nmtest.DevicePath(2), nmtest.Device, nmtest.Properties{"State": uint32(30), "IpInterface": "", "ActiveConnection": dbus.ObjectPath("/")})
	d := w.awaitDevice(t, "wwan0", "is disconnected", func(d nm.Device) bool { return d.State == gnm.NmDeviceStateDisconnected })
	if v, reason := (nm.Policy{}).Classify(d, true); v != nm.Draining {
		t.Errorf("wwan0 becomes %s: %s", v, reason)
	}
	// The next activation brings another interface.
	fake.Change(nmtest.DevicePath(2), nmtest.Device, nmtest.Properties{"ActiveConnection": nmtest.ActivePath(2), "State": uint32(40)})
	w.awaitDevice(t, "wwan0", "is released", func(d nm.Device) bool { return d.Gone })
	fake.Change(nmtest.DevicePath(2), nmtest.Device, nmtest.Properties{"IpInterface": "wwan1", "State": uint32(80)})
	w.awaitDevice(t, "wwan1", "is active", func(d nm.Device) bool { return d.ProfileKnown && d.State == 80 })
	w.await(t, "wwan0 is dropped", func(s nm.Snapshot) bool { _, ok := s.Devices["wwan0"]; return !ok })
}

// A bus that hangs is left, and taken up again when it answers.
func TestHungBus(t *testing.T) {
	bus, _ := start(t)
	w := watch(t, nm.Options{Address: bus.Address, CallTimeout: 100 * time.Millisecond})
	before := w.awaitComplete(t)
	bus.Freeze()
	w.Recheck("eth0")
	s := w.await(t, "the hung bus", func(s nm.Snapshot) bool { return strings.HasPrefix(s.Reason, "system bus: ") })
	if s.Running || s.Devices["eth0"].ProfileID != before.Devices["eth0"].ProfileID {
		t.Errorf("snapshot is %+v", s)
	}
	w.await(t, "an attempt to connect", func(s nm.Snapshot) bool { return strings.Contains(s.Reason, "connecting: no answer") })
	bus.Thaw()
	w.awaitComplete(t)
}

func TestBusRestart(t *testing.T) {
	bus, _ := start(t)
	var losses atomic.Int64
	w := watch(t, nm.Options{Address: bus.Address, Lost: func() { losses.Add(1) }})
	w.awaitComplete(t)
	bus.Stop()
	w.await(t, "the missing bus", func(s nm.Snapshot) bool { return strings.HasPrefix(s.Reason, "system bus: ") })
	bus.Start()
	w.await(t, "the missing NetworkManager", func(s nm.Snapshot) bool { return s.Reason == "NetworkManager is not running" })
	next := bus.NewNM()
	next.AddEthernet(1, "eth0")
	next.Own()
	w.awaitComplete(t)
	if n := losses.Load(); n != 1 {
		t.Errorf("the connection was lost %d times", n)
	}
}

func TestReadOnce(t *testing.T) {
	bus, fake := start(t)
	s, err := nm.ReadOnce(t.Context(), nm.Options{Address: bus.Address})
	if err != nil || !s.Complete || !s.Devices["eth0"].ProfileKnown || s.Devices["eth0"].Views[routing.IPv4].Gateway.String() != "192.0.2.1" {
		t.Errorf("%+v, %v", s, err)
	}
	// What cannot be read in time is an error, and the rest is there.
	fake.Answer("GetManagedObjects", func(dbus.ObjectPath) (any, *dbus.Error) { return "x", nil })
	if s, err := nm.ReadOnce(t.Context(), nm.Options{Address: bus.Address}); err == nil || !s.Running {
		t.Errorf("%+v, %v", s, err)
	}
	fake.Disown()
	if s, err := nm.ReadOnce(t.Context(), nm.Options{Address: bus.Address}); err != nil || s.Running || s.Reason != "NetworkManager is not running" {
		t.Errorf("%+v, %v", s, err)
	}
	bus.Stop()
	if _, err := nm.ReadOnce(t.Context(), nm.Options{Address: bus.Address}); err == nil || !strings.Contains(err.Error(), "system bus: connecting") {
		t.Errorf("%v", err)
	}
	if _, err := nm.ReadOnce(t.Context(), nm.Options{Address: "garbage"}); err == nil {
		t.Error("no error")
	}
}

// A storm of signals ends with what the last one said, and is folded.
func TestStorm(t *testing.T) {
	bus, fake := start(t)
	w := watch(t, nm.Options{Address: bus.Address})
	w.awaitComplete(t)
	const signals = 20_000
	for i := range signals {
		fake.Emit(nmtest.IP4Path(1), "org.freedesktop.DBus.Properties.PropertiesChanged", nmtest.IP4,
			map[string]dbus.Variant{"Gateway": dbus.MakeVariant(fmt.Sprint(i))}, []string{})
	}
	fake.Answer("GetAppliedConnection", func(dbus.ObjectPath) (any, *dbus.Error) {
		return nmtest.Settings{"ipv4": {"gateway": dbus.MakeVariant("192.0.2.99")}}, nil
	})
	fake.Emit(nmtest.IP4Path(1), "org.freedesktop.DBus.Properties.PropertiesChanged", nmtest.IP4, map[string]dbus.Variant{}, []string{})
	w.awaitDevice(t, "eth0", "has the last gateway", func(d nm.Device) bool { return d.Intents[routing.IPv4].Gateway.String() == "192.0.2.99" })
	if n := fake.Calls("GetAppliedConnection"); n > signals/2 {
		t.Errorf("%d signals led to %d calls", signals, n)
	} else {
		t.Logf("%d signals led to %d calls", signals, n)
	}
}

// With many devices, the one that changes is the one that is told.
func TestManyDevices(t *testing.T) {
	bus, fake := start(t)
	for i := 2; i <= 1000; i++ {
		fake.AddEthernet(i, fmt.Sprintf("eth%d", i-1))
	}
	begin := time.Now()
	w := watch(t, nm.Options{Address: bus.Address})
	w.awaitComplete(t)
	t.Logf("1000 devices and their profiles were read in %s", time.Since(begin).Round(time.Millisecond))
	c := w.TakeChanges()
	if len(c.Devices) != 1000 || !c.StatusChanged {
		t.Errorf("%d devices", len(c.Devices))
	}
	calls := fake.Calls("GetAppliedConnection")
	<-w.Changed()
	for i := range 100 {
		state := uint32(100 + 10*(i%2))
		fake.Change(nmtest.DevicePath(500), nmtest.Device, nmtest.Properties{"State": 210 - state})
		w.awaitDevice(t, "eth499", "flaps", func(d nm.Device) bool { return uint32(d.State) == 210-state })
		c := w.TakeChanges()
		for name := range c.Devices {
			if name != "eth499" {
				t.Errorf("%s changed too", name)
			}
		}
		if c.StatusChanged {
			t.Errorf("status changed to %+v", c.Status)
		}
	}
	if n := fake.Calls("GetAppliedConnection") - calls; n > 101 {
		t.Errorf("%d profiles were read", n)
	}
}
