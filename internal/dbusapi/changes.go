package dbusapi

import (
	"reflect"
	"strconv"

	"github.com/godbus/dbus/v5"
)

// A Message is a signal.
type Message struct {
	Path      dbus.ObjectPath
	Interface string
	Member    string
	Body      []any
}

// Changes are the signals that tell who knows the last model what the next one has: links that came
// and went, and for each other object at most one signal. Nothing is told of what is only measured.
func Changes(last, next *Model, now Measured) []Message {
	var out []Message
	manager, link := Manager(), LinkOf()
	for _, l := range last.Links {
		if _, still := next.Link(l.Index); !still {
			out = append(out, Message{Path, ObjectManager, "InterfacesRemoved", []any{LinkPath(l.Index), []string{LinkInterface}}})
		}
	}
	for _, l := range next.Links {
		was, known := last.Link(l.Index)
		switch {
		case known && was == l:
		case !known:
			out = append(out, Message{Path, ObjectManager, "InterfacesAdded", []any{LinkPath(l.Index), map[string]map[string]dbus.Variant{LinkInterface: l.All(now)}}})
		default:
			if differ := changed(was.Values, l.Values, link); len(differ) > 0 {
				out = append(out, propertiesChanged(LinkPath(l.Index), link, differ))
			}
		}
	}
	if differ := changed(last.Manager, next.Manager, manager); len(differ) > 0 {
		out = append(out, propertiesChanged(Path, manager, differ))
	}
	return out
}

func propertiesChanged(path dbus.ObjectPath, i *Interface, differ map[string]dbus.Variant) Message {
	return Message{path, Properties, "PropertiesChanged", []any{i.Name, differ, []string{}}}
}

// changed are the properties that announce their changes, and have changed.
func changed(last, next Values, i *Interface) map[string]dbus.Variant {
	out := map[string]dbus.Variant{}
	for _, p := range i.Properties {
		if p.Emits == Announces && !reflect.DeepEqual(last[p.Name], next[p.Name]) {
			out[p.Name] = dbus.MakeVariant(next[p.Name])
		}
	}
	return out
}

// A Change is something that a pass wrote into the kernel.
type Change struct {
	// Time is in microseconds since 1970.
	Time uint64
	// Index is the interface, 0 for none.
	Index int32
	// Verb is what was done, Object the rule, route or group in the words of iproute2.
	Verb, Object string
	// Reason says why it exists, empty for a deletion.
	Reason string
	// Family is "ipv4" or "ipv6", empty for a group.
	Family string
}

// MostChanges bounds the changes in one signal.
const MostChanges = 1000

// Wrote is the signal of what passes wrote, of which left are left out.
func Wrote(changes []Change, left int) Message {
	if left > 0 {
		changes = append(changes, Change{Time: changes[len(changes)-1].Time, Verb: "more", Object: strconv.Itoa(left)})
	}
	return Message{Path, ManagerInterface, "Changed", []any{changes}}
}
