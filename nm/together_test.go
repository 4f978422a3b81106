package nm_test

import (
	"fmt"
	"testing"

	"github.com/godbus/dbus/v5"

	"multihomed/nm"
	"multihomed/nm/nmtest"
)

// TestTogether wants nothing to be published before every device that was there
// at the start has been read, and then all at once.
func TestTogether(t *testing.T) {
	const devices = 20
	bus := nmtest.NewBus(t)
	fake := bus.NewNM()
	for i := range devices {
		fake.AddEthernet(i+1, fmt.Sprintf("wan%d", i))
	}
	last := make(chan struct{})
	fake.Answer("GetAppliedConnection", func(path dbus.ObjectPath) (any, *dbus.Error) {
		if path == nmtest.DevicePath(devices) {
			<-last
		}
		return nmtest.Settings{}, nil
	})
	fake.Own()
	w := watch(t, nm.Options{Address: bus.Address})
	early := w.await(t, "the calls", func(nm.Snapshot) bool {
		return fake.Calls("GetAppliedConnection") == devices && fake.Calls("GetSettings") == devices
	})
	if len(early.Devices) > 0 || early.Complete {
		t.Errorf("published before all was read: %+v", early)
	}
	close(last)
	s := w.awaitComplete(t)
	if len(s.Devices) != devices {
		t.Errorf("%d devices", len(s.Devices))
	}
}
