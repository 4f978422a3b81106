package nm_test

import (
	"context"
	"fmt"
	"log/slog"

	gnm "github.com/Wifx/gonetworkmanager/v2"

	"multihomed/nm"
)

func ExamplePolicy_Classify() {
	policy := nm.Policy{Exclude: []nm.Matcher{{Interface: "lab*"}}}
	for _, d := range []nm.Device{
		{Name: "wan0", ProfileID: "office", Type: gnm.NmDeviceTypeEthernet, State: gnm.NmDeviceStateActivated, Managed: true, Real: true, ProfileKnown: true},
		{Name: "lab0", Type: gnm.NmDeviceTypeEthernet, State: gnm.NmDeviceStateActivated, Managed: true, Real: true, ProfileKnown: true},
		{Name: "wg0", Type: gnm.NmDeviceTypeWireguard, State: gnm.NmDeviceStateActivated, Managed: true, Real: true, ProfileKnown: true},
	} {
		verdict, reason := policy.Classify(d, false)
		fmt.Printf("%s: %s (%s)\n", d.Name, verdict, reason)
	}
	// Output:
	// wan0: link (connected, profile "office")
	// lab0: no link (the configuration excludes interface lab*)
	// wg0: no link (it is a VPN (wireguard))
}

// A Watcher follows the NetworkManager of the system bus.
func ExampleWatcher() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w := nm.New(nm.Options{Logger: slog.Default()})
	go func() {
		for range w.Changed() {
			changes := w.TakeChanges()
			for name, d := range changes.Devices {
				fmt.Println(name, nm.StateName(d.State), d.ProfileID)
			}
			if changes.Status.Complete {
				cancel()
			}
		}
	}()
	if err := w.Run(ctx); err != nil {
		fmt.Println(err)
	}
}
