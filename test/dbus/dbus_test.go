package dbus_test

import (
	"strings"
	"testing"

	"multihomed/internal/dbusapi"
	"multihomed/test/lab"
)

func TestOffAndOn(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, 2)
	conn := r.connect()
	manager := conn.Object(dbusapi.Name, dbusapi.Path)
	r.property(conn, dbusapi.Path, dbusapi.ManagerInterface+".State", "ready")
	r.property(conn, dbusapi.Path, dbusapi.ManagerInterface+".LinksInForce", "2")
	for _, c := range []struct {
		method string
		links  []string
		want   string
	}{
		{"Off", []string{"wan1"}, "wan1 is switched off: removed "},
		{"On", []string{"wan1"}, "wan1 switched on: 1 link with its routing"},
		{"Off", []string{}, "multihomed is switched off: removed "},
		{"On", []string{}, "multihomed is switched on: 2 links with their routing"},
	} {
		var text string
		if err := manager.Call(dbusapi.ManagerInterface+"."+c.method, 0, c.links).Store(&text); err != nil || !strings.HasPrefix(text, c.want) {
			t.Errorf("%s %q: %q, %v", c.method, c.links, text, err)
		}
	}
	for _, args := range [][]string{
		{"busctl", "--system", "tree", dbusapi.Name}, {"busctl", "--system", "introspect", dbusapi.Name, "/org/multihomed1"},
		{"busctl", "--system", "call", dbusapi.Name, "/org/multihomed1", dbusapi.ManagerInterface, "Describe", "a{sv}", "1", "objects", "b", "false"},
		{"busctl", "--system", "call", dbusapi.Name, "/org/multihomed1", dbusapi.ManagerInterface, "ListLinks"},
		{"gdbus", "introspect", "--system", "--dest", dbusapi.Name, "--object-path", "/org/multihomed1/link/_32", "--recurse"},
	} {
		out, err := r.Run(t.Context(), args[0], args[1:]...)
		t.Logf("%v: %v\n%s", args, err, out)
	}
}
