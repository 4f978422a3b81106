// Package machinetest connects package machine to the testing package.
package machinetest

import (
	"context"
	"testing"
	"time"

	"multihomed/test/lab"
	"multihomed/test/machine"
)

// journalLines is how much of the journal a failed test shows.
const journalLines = 80

// Boot boots a machine for the rest of the test; a failed test shows the end of its
// journal.
func Boot(tb testing.TB, cfg machine.Config) *machine.Machine {
	tb.Helper()
	m := New(tb, cfg)
	if err := m.PowerOn(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return m
}

// New is Boot of a machine that stays off.
func New(tb testing.TB, cfg machine.Config) *machine.Machine {
	tb.Helper()
	m, err := machine.New(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() && m.Leader() != 0 {
			// The test's own context has ended by now.
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			journal, err := m.Journal(ctx, "")
			if err != nil {
				tb.Errorf("reading the journal: %v", err)
			}
			tb.Logf("the journal of %s ends:\n%s", m.Name(), lab.Tail(journal, journalLines))
		}
		if err := m.Close(); err != nil {
			tb.Error(err)
		}
	})
	return m
}
