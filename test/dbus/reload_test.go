package dbus_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"multihomed/internal/dbusapi"
	"multihomed/test/lab"
)

// TestOrdersOverReloads: while the configuration changes again and again, orders and questions are
// answered soon: by a result, or by an error that says so. Before, they waited for parts that had ended.
func TestOrdersOverReloads(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, 2)
	conn := r.connect()
	r.property(conn, dbusapi.Path, manager+"LinksInForce", "2")
	before, err := os.ReadFile(r.path)
	r.must(err)
	// What waits for parts that have ended waits for 15 seconds at least.
	soon := func(conn *dbus.Conn, method string, args ...any) error {
		ctx, cancel := context.WithTimeout(t.Context(), lab.Stretched(10*time.Second))
		defer cancel()
		call := conn.Object(dbusapi.Name, dbusapi.Path).CallWithContext(ctx, manager+method, 0, args...)
		if call.Err == nil || strings.Contains(call.Err.Error(), "the configuration was read again") {
			return nil
		}
		return fmt.Errorf("%s %v: %w", method, args, call.Err)
	}
	none := map[string]dbus.Variant{}
	var callers sync.WaitGroup
	done := make(chan struct{})
	for _, calls := range [][]func(*dbus.Conn) error{
		{
			func(c *dbus.Conn) error { return soon(c, "Off", []string{"wan1"}) },
			func(c *dbus.Conn) error { return soon(c, "On", []string{}) },
			func(c *dbus.Conn) error {
				return soon(c, "Bind", map[string]dbus.Variant{"link": dbus.MakeVariant("wan0"), "user": dbus.MakeVariant("daemon")})
			},
		},
		{func(c *dbus.Conn) error { return soon(c, "Reconcile") }, func(c *dbus.Conn) error { return soon(c, "Describe", none) }},
	} {
		conn := r.connect()
		callers.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				if err := calls[n%len(calls)](conn); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for n := range 12 {
		r.must(os.WriteFile(r.path, append(slices.Clip(before), fmt.Sprintf("uplink_group = %d\n", 40+n)...), 0o644))
		if err := soon(conn, "Reload"); err != nil {
			t.Error(err)
		}
	}
	close(done)
	callers.Wait()
	if err := soon(conn, "On", []string{}); err != nil {
		t.Error(err)
	}
	r.property(conn, dbusapi.Path, manager+"LinksInForce", "2")
}
