package nm_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	gnm "github.com/Wifx/gonetworkmanager/v2"
	"github.com/godbus/dbus/v5"

	"multihomed/nm"
	"multihomed/nm/nmtest"
)

// BenchmarkSignal is what one change of a device costs from the bytes on the bus to the
// new Device. No call is made: the signal carries the values. What it costs to read the
// device again through the objects of gonetworkmanager is in BenchmarkRead of test/nm.
func BenchmarkSignal(b *testing.B) {
	tree := nm.NewTree()
	tree.Update(nmtest.DevicePath(1), gnm.DeviceInterface, variants(nmtest.Properties{
		"Interface": "wan0", "IpInterface": "wan0", "DeviceType": uint32(gnm.NmDeviceTypeEthernet),
		"State": uint32(gnm.NmDeviceStateActivated), "Managed": true, "Real": true,
		"ActiveConnection": dbus.ObjectPath("/"), "Ip4Config": dbus.ObjectPath("/"),
		"Ip6Config": dbus.ObjectPath("/"), "Dhcp4Config": dbus.ObjectPath("/"),
	}), true)
	states := []gnm.NmDeviceState{gnm.NmDeviceStateIpConfig, gnm.NmDeviceStateActivated}
	messages := make([][]byte, len(states))
	for i, state := range states {
		messages[i] = changed(b, nmtest.DevicePath(1), gnm.DeviceInterface, nmtest.Properties{
			"State": uint32(state), "StateReason": struct{ State, Reason uint32 }{uint32(state), 0},
		})
	}
	device, _ := tree.Describe("wan0", nm.Device{})
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		m, err := dbus.DecodeMessage(bytes.NewReader(messages[i%2]))
		if err != nil {
			b.Fatal(err)
		}
		values, is := m.Body[1].(map[string]dbus.Variant)
		if !is {
			b.Fatalf("the signal carries a %T", m.Body[1])
		}
		tree.Update(nmtest.DevicePath(1), gnm.DeviceInterface, values, false)
		if device, _ = tree.Describe("wan0", device); device.State != states[i%2] {
			b.Fatalf("state is %s", nm.StateName(device.State))
		}
	}
	b.ReportMetric(0, "calls/op")
}

func variants(p nmtest.Properties) map[string]dbus.Variant {
	out := map[string]dbus.Variant{}
	for name, v := range p {
		out[name] = dbus.MakeVariant(v)
	}
	return out
}

// changed is a PropertiesChanged as the bus sends it.
func changed(b *testing.B, path dbus.ObjectPath, iface string, p nmtest.Properties) []byte {
	b.Helper()
	m := &dbus.Message{
		Type: dbus.TypeSignal,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath:      dbus.MakeVariant(path),
			dbus.FieldInterface: dbus.MakeVariant("org.freedesktop.DBus.Properties"),
			dbus.FieldMember:    dbus.MakeVariant("PropertiesChanged"),
			dbus.FieldSender:    dbus.MakeVariant(":1.7"),
			dbus.FieldSignature: dbus.MakeVariant(dbus.ParseSignatureMust("sa{sv}as")),
		},
		Body: []any{iface, variants(p), []string{}},
	}
	var out bytes.Buffer
	if err := m.EncodeTo(&out, binary.LittleEndian); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}
