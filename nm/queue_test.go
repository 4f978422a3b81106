package nm_test

import (
	"testing"

	"github.com/godbus/dbus/v5"

	"multihomed/nm"
)

// TestQueue: what an attacker decides the number of does not pile up.
func TestQueue(t *testing.T) {
	t.Parallel()
	change := func(path, iface string, names ...string) *dbus.Signal {
		p := map[string]dbus.Variant{}
		for _, n := range names {
			p[n] = dbus.MakeVariant("x")
		}
		return &dbus.Signal{Name: "org.freedesktop.DBus.Properties.PropertiesChanged", Path: dbus.ObjectPath(path), Body: []any{iface, p}}
	}
	const ip6, device = "org.freedesktop.NetworkManager.IP6Config", "org.freedesktop.NetworkManager.Device"
	q := nm.NewQueue(false)
	for range 1000 {
		for _, s := range []*dbus.Signal{change("/1", ip6, "RouteData", "Routes"), change("/2", ip6, "AddressData"), change("/1", ip6)} {
			q.DeliverSignal("", "", s)
		}
	}
	q.DeliverSignal("", "", change("/1", device, "State"))
	q.DeliverSignal("", "", change("/1", ip6, "RouteData", "Nameservers"))
	q.DeliverSignal("", "", change("/1", ip6, "RouteData"))
	take := func() (path dbus.ObjectPath, left int) {
		t.Helper()
		s := q.Next()
		if s == nil {
			t.Fatal("it is empty")
		}
		return s.Path, len(s.Body[1].(map[string]dbus.Variant))
	}
	for i, want := range []struct {
		path dbus.ObjectPath
		left int
	}{{"/1", 0}, {"/2", 0}, {"/1", 1}, {"/1", 1}} {
		if path, left := take(); path != want.path || left != want.left {
			t.Errorf("%d: %s with %d properties, want %+v", i, path, left, want)
		}
	}
	if q.Next() != nil {
		t.Error("more is left")
	}
	// What comes after one was taken counts.
	q.DeliverSignal("", "", change("/1", ip6, "RouteData"))
	if path, left := take(); path != "/1" || left != 0 {
		t.Errorf("%s with %d properties", path, left)
	}
	whole := nm.NewQueue(true)
	whole.DeliverSignal("", "", change("/1", ip6, "RouteData"))
	if s := whole.Next(); len(s.Body[1].(map[string]dbus.Variant)) != 1 {
		t.Error("who looks once gets all")
	}
}
