package allocator_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"multihomed/allocator"
)

// alone is a host with one client, and an uptime that the test sets.
type alone struct {
	options allocator.Options
	a       *allocator.Allocator
	now     time.Duration
	demand  allocator.Demand
}

func newAlone(t *testing.T) *alone {
	t.Helper()
	h := &alone{options: options(t, 10000, 10009), now: 1000 * time.Second}
	h.options.Uptime = func() time.Duration { return h.now }
	h.demand = allocator.Demand{Key: allocator.ClientKey{Interface: "wan0", Address: "modem"}, Owner: 7, Lifetime: time.Hour}
	h.a = open(t, h.options)
	return h
}

func (h *alone) lease(t *testing.T) allocator.Outcome {
	t.Helper()
	got := h.a.Serve(t.Context(), []allocator.Demand{h.demand}, nil)[0]
	if got.Err != nil {
		t.Fatal(got.Err)
	}
	return got
}

// afterCrash must find the lease as it was acknowledged.
func (h *alone) afterCrash(t *testing.T, want allocator.Outcome) {
	t.Helper()
	h.options.Path = copyDatabase(t, h.options.Path)
	for _, l := range open(t, h.options).Clients() {
		if l.Key == h.demand.Key && l.Live && l.Table == want.Table && l.Expires == want.Expires {
			return
		}
	}
	t.Errorf("after a crash: %+v, want %+v", open(t, h.options).Clients(), want)
}

func TestRenewalIsDurableWhoeverChangedTheRow(t *testing.T) {
	t.Parallel()
	for name, statement := range map[string]string{
		"deleted":         "DELETE FROM tables",
		"somebody else's": "UPDATE tables SET subject = 'another modem'",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newAlone(t)
			h.lease(t)
			execute(t, raw(t, h.options.Path), statement)
			h.now += time.Minute
			h.afterCrash(t, h.lease(t))
		})
	}
}

func TestBackupPutInPlaceForgetsNoRenewal(t *testing.T) {
	t.Parallel()
	h := newAlone(t)
	h.lease(t)
	backup := copyDatabase(t, h.options.Path)
	h.now += 2 * time.Hour
	renewed := h.lease(t)
	if err := os.Remove(h.options.Path + "-wal"); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", "-wal"} {
		if err := os.Rename(backup+suffix, h.options.Path+suffix); err != nil {
			t.Fatal(err)
		}
	}
	acquire(t, h.a, key(1)) // Notices.
	h.afterCrash(t, renewed)
}

func TestLifetimes(t *testing.T) {
	t.Parallel()
	h := newAlone(t)
	const year = 365 * 24 * time.Hour
	for lifetime, good := range map[time.Duration]bool{
		0: false, -time.Second: false, time.Second - 1: false, time.Second: true,
		1500 * time.Millisecond: false, year: true, year + time.Second: false,
	} {
		h.demand.Lifetime = lifetime
		got := h.a.Serve(t.Context(), []allocator.Demand{h.demand}, nil)[0]
		if good != (got.Err == nil) {
			t.Errorf("%v: %v", lifetime, got.Err)
		}
		if got.Err != nil && !strings.Contains(got.Err.Error(), "whole number of seconds") {
			t.Errorf("%v: %v does not say what is allowed", lifetime, got.Err)
		}
	}
}

func TestRowOfAnImpossibleOwnerIsRefused(t *testing.T) {
	t.Parallel()
	o := seeded(t)
	execute(t, raw(t, o.Path), "UPDATE tables SET owner = -1 WHERE number = 10001")
	_, err := allocator.Open(t.Context(), o)
	refused(t, err, allocator.ErrCorrupt, o.Path)
}
