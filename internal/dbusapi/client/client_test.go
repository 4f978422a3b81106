package client_test

import (
	"context"
	"errors"
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
func serve(t *testing.T, bus *nmtest.Bus, document string) {
	t.Helper()
	conn := bus.Connect()
	if err := conn.Export(manager{document}, dbusapi.Path, dbusapi.ManagerInterface); err != nil {
		t.Fatal(err)
	}
	if reply, err := conn.RequestName(dbusapi.Name, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatalf("%v, %v", reply, err)
	}
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

// TestRuntimeDirectory: the daemon of another directory is not asked, nor one whose document is not one.
func TestRuntimeDirectory(t *testing.T) {
	for _, c := range []struct {
		document string
		is       bool
	}{
		{`{"schema": 1, "links": [{"daemon": {}}], "daemon": {"runtime_dir": "/run/multihomed"}}`, true},
		{`{"daemon": {"runtime_dir": "/run/other"}}`, false},
		{`{"links": {"daemon": {"runtime_dir": "/run/multihomed"}}}`, false},
		{`{"daemon": {}}`, false},
		{`{"daemon": 7}`, false},
		{`{"daemon"`, false},
		{`[]`, false},
		{``, false},
	} {
		bus := nmtest.NewBus(t)
		serve(t, bus, c.document)
		t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.Address)
		asked, err := client.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		document, err := asked.Describe(t.Context(), "/run/multihomed", true)
		asked.Close()
		if c.is && string(document) != c.document || c.is != (err == nil) || err != nil && !errors.Is(err, client.ErrNobody) {
			t.Errorf("%s: %s, %v", c.document, document, err)
		}
	}
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
