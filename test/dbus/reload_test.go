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

// TestReloadsSayNothing: to read the configuration again is no news of the links: nobody is told that
// they have gone, and what is asked meanwhile is answered with them.
func TestReloadsSayNothing(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, 2)
	conn := r.connect()
	r.property(conn, dbusapi.Path, manager+"LinksInForce", "2")
	r.judged(conn, "wan0", "wan1")
	before, err := os.ReadFile(r.path)
	r.must(err)
	r.must(conn.AddMatchSignal(dbus.WithMatchPathNamespace(dbusapi.Path)))
	signals := make(chan *dbus.Signal, 1000)
	conn.Signal(signals)
	for n := range 10 {
		level := []string{"debug", "info"}[n%2]
		r.must(os.WriteFile(r.path, append(slices.Clip(before), fmt.Sprintf("log_level = %q\n", level)...), 0o644))
		r.must(conn.Object(dbusapi.Name, dbusapi.Path).Call(manager+"Reload", 0).Err)
		var links [][]any
		r.must(conn.Object(dbusapi.Name, dbusapi.Path).Call(manager+"ListLinks", 0).Store(&links))
		if len(links) != 2 {
			t.Errorf("after a reload there are the links %v", links)
		}
		r.property(conn, dbusapi.Path, manager+"LogLevel", level)
	}
	r.must(conn.Object(dbusapi.Name, dbusapi.Path).Call(manager+"Reconcile", 0).Err)
	for len(signals) > 0 {
		s := <-signals
		if len(s.Body) < 2 {
			continue // It is what passes wrote.
		}
		changed, _ := s.Body[1].(map[string]dbus.Variant)
		isGone := strings.Contains(s.Name, ".Interfaces")
		for _, name := range []string{"LinksInForce", "LinksTotal", "State"} {
			_, is := changed[name]
			isGone = isGone || is
		}
		// An IPv6 address may just have come, which is news.
		if health, is := changed["Health"].Value().([]map[string]dbus.Variant); is {
			isGone = isGone || len(health) == 0
		}
		if isGone {
			t.Errorf("a reload makes the signal %v", s)
		}
	}
}
