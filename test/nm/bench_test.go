package nm_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	gnm "github.com/Wifx/gonetworkmanager/v2"
	"github.com/godbus/dbus/v5"

	"multihomed/nm"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// BenchmarkRead is what it costs to learn from the real NetworkManager what a Watcher
// keeps of ten active devices: through the objects of gonetworkmanager, which ask for each
// property by itself, and by nm.ReadOnce, which also connects, subscribes and reads the
// applied profiles. The last row is one device again, which the objects need after every
// signal; see BenchmarkSignal of package nm for ours. Calls are counted on the bus;
// allocations are those of the client alone.
func BenchmarkRead(b *testing.B) {
	const devices = 10
	ctx := b.Context()
	host := labtest.NewHost(b, lab.HostConfig{FastDAD: true})
	b.Setenv("DBUS_SYSTEM_BUS_ADDRESS", lab.BusAddress)
	check := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	for i := range devices {
		name := fmt.Sprintf("wan%d", i)
		_, err := host.NewLink(lab.LinkConfig{Name: name})
		check(err)
		check(host.AddProfile(ctx, name, name, static(i)...))
		check(host.Up(ctx, name))
	}
	manager, err := gnm.NewNetworkManager()
	check(err)
	one, err := manager.GetDeviceByIpIface("wan0")
	check(err)
	for _, way := range []struct {
		name string
		read func() error
	}{
		{"gonetworkmanager's objects", func() error { return byObjects(manager, devices) }},
		{"ReadOnce", func() error {
			s, err := nm.ReadOnce(ctx, nm.Options{})
			if n := activated(s); err == nil && n != devices {
				err = fmt.Errorf("%d active devices", n)
			}
			return err
		}},
		{"one device by gonetworkmanager's objects", func() error { _, err := readDevice(one); return err }},
	} {
		b.Run(way.name, func(b *testing.B) {
			calls, err := countCalls(way.read)
			check(err)
			b.ReportAllocs()
			for b.Loop() {
				check(way.read())
			}
			b.ReportMetric(float64(calls), "calls/op")
		})
	}
}

func activated(s nm.Snapshot) (n int) {
	for _, d := range s.Devices {
		if d.State == gnm.NmDeviceStateActivated && d.ProfileKnown && d.Type != nm.DeviceTypeLoopback {
			n++
		}
	}
	return n
}

// byObjects reads all devices, and the active ones with their activation and profile.
func byObjects(manager gnm.NetworkManager, want int) error {
	devices, err := manager.GetPropertyAllDevices()
	if err != nil {
		return err
	}
	active := 0
	for _, d := range devices {
		is, err := readDevice(d)
		if err != nil {
			return err
		}
		if is {
			active++
		}
	}
	if active != want {
		return fmt.Errorf("%d active devices", active)
	}
	return nil
}

// readDevice asks for what a Watcher keeps of a device.
func readDevice(d gnm.Device) (active bool, err error) {
	var errs []error
	ask := func(_ any, err error) { errs = append(errs, err) }
	for _, property := range []func() (string, error){d.GetPropertyInterface, d.GetPropertyIpInterface} {
		ask(property())
	}
	for _, property := range []func() (bool, error){d.GetPropertyManaged, d.GetPropertyReal} {
		ask(property())
	}
	kind, err := d.GetPropertyDeviceType()
	ask(kind, err)
	state, err := d.GetPropertyState()
	ask(state, err)
	ask(d.GetPropertyIP4Config())
	ask(d.GetPropertyIP6Config())
	ask(d.GetPropertyDHCP4Config())
	a, err := d.GetPropertyActiveConnection()
	ask(a, err)
	if err := errors.Join(errs...); err != nil || a == nil || kind == nm.DeviceTypeLoopback {
		return false, err
	}
	for _, property := range []func() (string, error){a.GetPropertyID, a.GetPropertyUUID, a.GetPropertyType} {
		ask(property())
	}
	ask(a.GetPropertyStateFlags())
	ask(a.GetPropertyVPN())
	profile, err := a.GetPropertyConnection()
	ask(profile, err)
	if err == nil {
		ask(profile.GetSettings())
	}
	return state == gnm.NmDeviceStateActivated, errors.Join(errs...)
}

// countCalls returns how many method calls NetworkManager gets meanwhile.
func countCalls(do func() error) (int, error) {
	client, err := dbus.Connect(lab.BusAddress)
	if err != nil {
		return 0, err
	}
	defer client.Close()
	var owner string
	if err := client.BusObject().Call("org.freedesktop.DBus.GetNameOwner", 0, gnm.NetworkManagerInterface).Store(&owner); err != nil {
		return 0, err
	}
	monitor, err := dbus.Connect(lab.BusAddress)
	if err != nil {
		return 0, err
	}
	defer monitor.Close()
	err = monitor.BusObject().Call("org.freedesktop.DBus.Monitoring.BecomeMonitor", 0, []string{"type='method_call'"}, uint32(0)).Err
	if err != nil {
		return 0, err
	}
	// Only now: an eavesdropping connection hands out the replies to its own calls, too.
	messages := make(chan *dbus.Message, 10_000)
	monitor.Eavesdrop(messages)
	if err := do(); err != nil {
		return 0, err
	}
	// The bus sends in order: what comes before this question came before it.
	const end = "end.of.count"
	if err := client.BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, end).Err; err != nil {
		return 0, err
	}
	calls := 0
	for m := range messages {
		if len(m.Body) == 1 && m.Body[0] == end {
			return calls, nil
		}
		to, _ := m.Headers[dbus.FieldDestination].Value().(string)
		if slices.Contains([]string{owner, gnm.NetworkManagerInterface}, to) {
			calls++
		}
	}
	return 0, errors.New("the monitor was closed")
}
