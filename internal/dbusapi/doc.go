// Package dbusapi is what programs see of multihomed on D-Bus, as values: the interfaces with their
// methods, properties and signals ([Interfaces], [Introspect]), the objects that a status makes
// ([Of]), and what has changed between two of them ([Changes]). Package server answers with them
// on the bus, client asks there.
package dbusapi

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/godbus/dbus/v5"
)

// Names on the bus.
const (
	// Name is the name of the daemon. Its number changes when the interfaces change their meaning.
	Name = "org.multihomed1"
	// Path is the object of the daemon, LinksPath the parent of those of links.
	Path      dbus.ObjectPath = "/org/multihomed1"
	LinksPath dbus.ObjectPath = "/org/multihomed1/link"

	ManagerInterface = "org.multihomed1.Manager"
	LinkInterface    = "org.multihomed1.Link"

	ObjectManager  = "org.freedesktop.DBus.ObjectManager"
	Properties     = "org.freedesktop.DBus.Properties"
	Introspectable = "org.freedesktop.DBus.Introspectable"
	Peer           = "org.freedesktop.DBus.Peer"
)

// Names of errors.
const (
	NoSuchLink        = "org.multihomed1.Error.NoSuchLink"
	Failed            = "org.multihomed1.Error.Failed"
	AccessDenied      = "org.freedesktop.DBus.Error.AccessDenied"
	InvalidArgs       = "org.freedesktop.DBus.Error.InvalidArgs"
	LimitsExceeded    = "org.freedesktop.DBus.Error.LimitsExceeded"
	UnknownMethod     = "org.freedesktop.DBus.Error.UnknownMethod"
	UnknownObject     = "org.freedesktop.DBus.Error.UnknownObject"
	UnknownInterface  = "org.freedesktop.DBus.Error.UnknownInterface"
	UnknownProperty   = "org.freedesktop.DBus.Error.UnknownProperty"
	PropertyReadOnly  = "org.freedesktop.DBus.Error.PropertyReadOnly"
	InteractionNeeded = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
)

// An Error is what a caller gets in place of a result.
type Error struct{ Name, Text string }

func (e *Error) Error() string { return e.Text }

// Errorf makes an error.
func Errorf(name, format string, args ...any) *Error {
	return &Error{Name: name, Text: fmt.Sprintf(format, args...)}
}

// LinkPath is the object of an interface: its index, escaped as by sd_bus_path_encode(3), which
// writes a leading digit as _ and its number in hex.
func LinkPath(index int) dbus.ObjectPath {
	digits := strconv.Itoa(index)
	return dbus.ObjectPath(fmt.Sprintf("%s/_%02x%s", LinksPath, digits[0], digits[1:]))
}

// IndexOf is the interface of an object.
func IndexOf(path dbus.ObjectPath) (int, bool) {
	label, is := strings.CutPrefix(string(path), string(LinksPath)+"/")
	if !is || len(label) < 3 || label[0] != '_' {
		return 0, false
	}
	first, err := strconv.ParseUint(label[1:3], 16, 8)
	if err != nil {
		return 0, false
	}
	index, err := strconv.ParseInt(string(byte(first))+label[3:], 10, 32)
	if err != nil || LinkPath(int(index)) != path {
		return 0, false // Only one path is that of an interface.
	}
	return int(index), true
}
