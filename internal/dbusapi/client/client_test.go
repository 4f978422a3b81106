package client_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"

	"multihomed/internal/dbusapi"
	"multihomed/internal/dbusapi/client"
	"multihomed/nm/nmtest"
)

// manager is a daemon of a runtime directory.
type manager struct{ document string }

func (m manager) Describe(map[string]dbus.Variant) (string, *dbus.Error) { return m.document, nil }

func (m manager) Reload() *dbus.Error { return nil }

func (m manager) Off(links []string) (string, *dbus.Error) {
	if len(links) != 1 {
		return "", &dbus.Error{Name: dbusapi.NoSuchLink, Body: []any{"there is no link"}}
	}
	return links[0] + " is off", nil
}

// serve gives a bus a daemon.
func serve(t *testing.T, bus *nmtest.Bus, document string) *dbus.Conn {
	t.Helper()
	conn := bus.Connect()
	if err := conn.Export(manager{document}, dbusapi.Path, dbusapi.ManagerInterface); err != nil {
		t.Fatal(err)
	}
	if reply, err := conn.RequestName(dbusapi.Name, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatalf("%v, %v", reply, err)
	}
	return conn
}

// TestNobody: no bus, an address that means nothing, and a bus without the name are nobody.
func TestNobody(t *testing.T) {
	bus := nmtest.NewBus(t)
	for _, address := range []string{"unix:path=/nonexistent", "garbage", "unix:", ";;", "tcp:host=x", bus.Address} {
		t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
		if c, err := client.Open(t.Context()); !errors.Is(err, client.ErrNobody) || c != nil {
			t.Errorf("%q: %v", address, err)
		}
	}
}

// TestPlace: the daemon of another directory or network namespace is not asked, and one of another version has no place.
func TestPlace(t *testing.T) {
	here := dbusapi.Place{RuntimeDirectory: "/run/multihomed", NetworkNamespace: 7}
	for _, c := range []struct {
		properties map[string]any
		want       string
		nobody     bool
	}{
		{map[string]any{"RuntimeDirectory": "/run/multihomed", "NetworkNamespace": uint64(7)}, "", false},
		{map[string]any{"RuntimeDirectory": "/run/other", "NetworkNamespace": uint64(7)}, "works in /run/other of network namespace 7", true},
		{map[string]any{"RuntimeDirectory": "/run/multihomed", "NetworkNamespace": uint64(8)}, "works in /run/multihomed of network namespace 8", true},
		{map[string]any{"RuntimeDirectory": []string{"x"}, "NetworkNamespace": uint64(7)}, "where it works", false},
		{nil, "another version; to fix: systemctl restart multihomed", false},
	} {
		bus := nmtest.NewBus(t)
		conn := serve(t, bus, "{}")
		if err := conn.Export(properties(c.properties), dbusapi.Path, dbusapi.Properties); err != nil {
			t.Fatal(err)
		}
		t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.Address)
		asked, err := client.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		err = asked.Works(t.Context(), here)
		asked.Close()
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || errors.Is(err, client.ErrNobody) != c.nobody) {
			t.Errorf("%v: %v", c.properties, err)
		}
	}
}

// properties are those of a daemon.
type properties map[string]any

func (p properties) Get(_, name string) (dbus.Variant, *dbus.Error) {
	if v, is := p[name]; is {
		return dbus.MakeVariant(v), nil
	}
	return dbus.Variant{}, &dbus.Error{Name: dbusapi.UnknownProperty, Body: []any{"there is no property"}}
}

// TestOrder: the sentence of the daemon, or its error with its name.
func TestOrder(t *testing.T) {
	bus := nmtest.NewBus(t)
	serve(t, bus, "{}")
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.Address)
	c, err := client.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if text, err := c.Order(t.Context(), "Off", []string{"wan1"}); text != "wan1 is off" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	if text, err := c.Order(t.Context(), "Reload"); text != "" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	_, err = c.Order(t.Context(), "Off", []string{})
	if refusal, is := errors.AsType[*dbusapi.Error](err); !is || refusal.Name != dbusapi.NoSuchLink || refusal.Text != "there is no link" {
		t.Errorf("%v", err)
	}
	late, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if _, err := c.Order(late, "Off", []string{"wan1"}); !errors.Is(err, why) && !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
