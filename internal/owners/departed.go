package owners

import (
	"context"
	"log/slog"
	"sync/atomic"

	"multihomed/internal/event"
	"multihomed/internal/hookstate"
	"multihomed/internal/news"
	"multihomed/routing/kernel"
	"multihomed/routing/reconcile"
)

// Attendance is what a [nm.Watcher] knows of devices that NetworkManager no longer has.
type Attendance interface {
	// Gone names the devices that NetworkManager removed. While NetworkManager is away,
	// Unattended names all devices.
	Gone() []string
	Unattended() []string
	// Forget drops a device whose interface is gone, too.
	Forget(name string)
}

// Departed drops reports on interfaces that have gone unannounced. Its cost is that of the new
// reports, and if interfaces have gone, that of all reports.
type Departed struct {
	log        *slog.Logger
	hooks      *hookstate.Store
	attendance Attendance
	interfaces Kernel
	// said are the interfaces with new reports of hooks since the last Forget.
	said *news.Set
	// departures is the kernel's count at the last Forget.
	departures atomic.Uint64
}

// NewDeparted returns a Departed without reports.
func NewDeparted(log *slog.Logger, hooks *hookstate.Store, attendance Attendance, interfaces Kernel) *Departed {
	return &Departed{log: log, hooks: hooks, attendance: attendance, interfaces: interfaces, said: news.NewSet()}
}

// Touch notes a report of a hook on an interface.
func (d *Departed) Touch(name string) { d.said.Touch(name) }

// IsDue reports whether Forget may have something to do. It costs next to nothing.
func (d *Departed) IsDue() bool {
	due := !d.said.IsEmpty()
	gone := d.attendance.Gone()
	d.interfaces.View(func(k *kernel.State) {
		due = due || k.Departures() != d.departures.Load()
		for _, name := range gone {
			_, exists := k.IndexOf(name)
			due = due || !exists
		}
	})
	return due
}

// Forget drops reports on interfaces that the kernel does not have. Now is the snapshot of a
// pass.
func (d *Departed) Forget(ctx context.Context, now *reconcile.Snapshot) {
	names := d.said.Take()
	var departures uint64
	d.interfaces.View(func(k *kernel.State) { departures = k.Departures() })
	gone := d.attendance.Gone()
	isMore := departures != d.departures.Swap(departures)
	if isMore {
		names, gone = d.hooks.Interfaces(), d.attendance.Unattended()
	}
	interfaces := now.Bound()
	exists := func(name string) (exists bool) {
		index, bound := interfaces[name]
		d.interfaces.View(func(k *kernel.State) {
			_, named := k.IndexOf(name)
			_, stands := k.NameOf(index)
			exists = named || bound && stands || !k.Complete()
		})
		return exists
	}
	if isMore {
		d.hooks.KeepReleased(exists)
	}
	for _, name := range gone {
		if !exists(name) {
			d.attendance.Forget(name)
		}
	}
	if len(names) == 0 {
		return
	}
	dropped, err := d.hooks.Keep(names, func(index int) (exists bool, err error) {
		d.interfaces.View(func(k *kernel.State) { _, exists = k.NameOf(index) })
		if !exists {
			// A hook may know of an interface before the mirror does.
			return hookstate.Exists(index)
		}
		return exists, nil
	})
	if err != nil {
		d.log.LogAttrs(ctx, event.LevelNotice, "report of a hook on a removed interface kept", slog.String("error", err.Error()))
	}
	for _, c := range dropped {
		d.log.LogAttrs(ctx, slog.LevelInfo, "report of a hook dropped, because the interface is gone", slog.String("interface", c.Interface), slog.String("caller", c.Caller), slog.String("family", c.Family.String()))
	}
}
