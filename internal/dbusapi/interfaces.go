package dbusapi

import (
	"strings"

	"github.com/godbus/dbus/v5"
)

// A Kind says what a method costs, and who may call it.
type Kind int

// Kinds of methods.
const (
	// Reading costs little, and everybody may do it.
	Reading Kind = iota
	// Costly reads the host or makes a long text: all such calls share a part of a processor.
	Costly
	// Changing does something for which polkit is asked.
	Changing
)

// An Arg is an argument of a method or of a signal, or a property.
type Arg struct {
	Name, Type string
}

// A Method is one of an interface.
type Method struct {
	Name string
	In   []Arg
	Out  []Arg
	Kind Kind
	// Action is the one of polkit that allows the call, empty for everybody.
	Action string
}

// Signature is that of the arguments of a call.
func (m Method) Signature() string { return signature(m.In) }

// OutSignature is that of its result.
func (m Method) OutSignature() string { return signature(m.Out) }

func signature(args []Arg) string {
	var b strings.Builder
	for _, a := range args {
		b.WriteString(a.Type)
	}
	return b.String()
}

// An Emits says whether a property announces its changes.
type Emits string

// What properties announce.
const (
	// Announces: PropertiesChanged brings each new value.
	Announces Emits = "true"
	// Constant never changes.
	Constant Emits = "const"
	// Silent changes without a signal.
	Silent Emits = "false"
)

// A Property is one of an interface; all are for reading.
type Property struct {
	Arg
	Emits Emits
}

// A Signal is one of an interface.
type Signal struct {
	Name string
	Args []Arg
}

// An Interface is one that objects have.
type Interface struct {
	Name       string
	Methods    []Method
	Properties []Property
	Signals    []Signal
}

// Method finds a method.
func (i *Interface) Method(name string) (Method, bool) {
	for _, m := range i.Methods {
		if m.Name == name {
			return m, true
		}
	}
	return Method{}, false
}

// Property finds a property.
func (i *Interface) Property(name string) (Property, bool) {
	for _, p := range i.Properties {
		if p.Name == name {
			return p, true
		}
	}
	return Property{}, false
}

func args(pairs ...string) []Arg {
	var out []Arg
	for i := 0; i+1 < len(pairs); i += 2 {
		out = append(out, Arg{Name: pairs[i], Type: pairs[i+1]})
	}
	return out
}

// Actions of polkit.
const (
	ActionDiagnose    = Name + ".diagnose"
	ActionReload      = Name + ".reload"
	ActionReconcile   = Name + ".reconcile"
	ActionSwitch      = Name + ".switch"
	ActionBind        = Name + ".bind"
	ActionFailover    = Name + ".failover"
	ActionSetLogLevel = Name + ".set-log-level"
)

// Manager is the interface of the daemon.
func Manager() *Interface {
	json := args("json", "s")
	sentence := args("sentence", "s")
	return &Interface{
		Name: ManagerInterface,
		Methods: []Method{
			{Name: "Describe", In: args("options", "a{sv}"), Out: json, Kind: Costly},
			{Name: "ListLinks", Out: args("links", "a(iso)")},
			{Name: "GetLinkByName", In: args("name", "s"), Out: args("ifindex", "i", "path", "o")},
			{Name: "Explain", In: args("packet", "a{sv}"), Out: json, Kind: Costly},
			{Name: "Plan", In: args("options", "a{sv}"), Out: json, Kind: Costly},
			{Name: "Graph", In: args("options", "a{sv}"), Out: args("text", "s"), Kind: Costly},
			{Name: "Diagnose", In: args("options", "a{sv}"), Out: json, Kind: Costly, Action: ActionDiagnose},
			{Name: "Reload", Kind: Changing, Action: ActionReload},
			{Name: "Reconcile", Kind: Changing, Action: ActionReconcile},
			{Name: "Off", In: args("links", "as"), Out: sentence, Kind: Changing, Action: ActionSwitch},
			{Name: "On", In: args("links", "as"), Out: sentence, Kind: Changing, Action: ActionSwitch},
			{Name: "Bind", In: args("binding", "a{sv}"), Out: sentence, Kind: Changing, Action: ActionBind},
			{Name: "Unbind", In: args("selector", "s"), Out: sentence, Kind: Changing, Action: ActionBind},
			{Name: "FailoverTest", In: args("link", "s"), Out: sentence, Kind: Changing, Action: ActionFailover},
			{Name: "FailoverReset", In: args("link", "s"), Out: sentence, Kind: Changing, Action: ActionFailover},
			{Name: "SetLogLevel", In: args("level", "s"), Kind: Changing, Action: ActionSetLogLevel},
		},
		Properties: []Property{
			{Arg{"Version", "s"}, Constant},
			{Arg{"RuntimeDirectory", "s"}, Constant},
			{Arg{"NetworkNamespace", "t"}, Constant},
			{Arg{"State", "s"}, Announces},
			{Arg{"StateReason", "s"}, Announces},
			{Arg{"Generation", "t"}, Silent},
			{Arg{"LinksTotal", "u"}, Announces},
			{Arg{"LinksInForce", "u"}, Announces},
			{Arg{"Unbound", "a{sa{sv}}"}, Announces},
			{Arg{"Problems", "aa{sv}"}, Announces},
			{Arg{"TableRange", "(uu)"}, Announces},
			{Arg{"UplinkGroup", "u"}, Announces},
			{Arg{"LogLevel", "s"}, Announces},
			{Arg{"Passes", "t"}, Silent},
			{Arg{"Repairs", "t"}, Silent},
		},
		Signals: []Signal{{Name: "Changed", Args: args("changes", "a(tissss)")}},
	}
}

// LinkOf is the interface of a link.
func LinkOf() *Interface {
	return &Interface{
		Name:    LinkInterface,
		Methods: []Method{{Name: "Describe", Out: args("json", "s")}},
		Properties: []Property{
			{Arg{"IfIndex", "i"}, Constant},
			{Arg{"Name", "s"}, Announces},
			{Arg{"Role", "s"}, Announces},
			{Arg{"RoleWhy", "s"}, Announces},
			{Arg{"State", "s"}, Announces},
			{Arg{"StateReason", "s"}, Announces},
			{Arg{"StateSince", "t"}, Announces},
			{Arg{"Why", "s"}, Announces},
			{Arg{"Type", "s"}, Announces},
			{Arg{"Profile", "s"}, Announces},
			{Arg{"Up", "b"}, Announces},
			{Arg{"Carrier", "b"}, Announces},
			{Arg{"Off", "b"}, Announces},
			{Arg{"Networks", "a(ssuasas)"}, Announces},
			{Arg{"ObjectsPlanned", "u"}, Announces},
			{Arg{"ObjectsInForce", "u"}, Announces},
			{Arg{"Health", "aa{sv}"}, Announces},
			{Arg{"Measurements", "aa{sv}"}, Silent},
		},
	}
}

func objectManager() *Interface {
	return &Interface{
		Name:    ObjectManager,
		Methods: []Method{{Name: "GetManagedObjects", Out: args("objects", "a{oa{sa{sv}}}")}},
		Signals: []Signal{
			{Name: "InterfacesAdded", Args: args("object", "o", "interfaces", "a{sa{sv}}")},
			{Name: "InterfacesRemoved", Args: args("object", "o", "interfaces", "as")},
		},
	}
}

// standard are the interfaces of every object.
func standard() []*Interface {
	return []*Interface{
		{
			Name:    Introspectable,
			Methods: []Method{{Name: "Introspect", Out: args("xml", "s")}},
		},
		{
			Name:    Peer,
			Methods: []Method{{Name: "Ping"}, {Name: "GetMachineId", Out: args("machine", "s")}},
		},
	}
}

func properties() *Interface {
	return &Interface{
		Name: Properties,
		Methods: []Method{
			{Name: "Get", In: args("interface", "s", "property", "s"), Out: args("value", "v")},
			{Name: "GetAll", In: args("interface", "s"), Out: args("properties", "a{sv}")},
			{Name: "Set", In: args("interface", "s", "property", "s", "value", "v")},
		},
		Signals: []Signal{{Name: "PropertiesChanged", Args: args("interface", "s", "changed", "a{sv}", "invalidated", "as")}},
	}
}

// Interfaces are those of an object that exists, false for a path that is only on the way to one.
func Interfaces(path dbus.ObjectPath) (all []*Interface, isObject bool) {
	switch _, isLink := IndexOf(path); {
	case path == Path:
		return append(standard(), properties(), objectManager(), Manager()), true
	case isLink:
		return append(standard(), properties(), LinkOf()), true
	default:
		return standard(), false
	}
}

const doctype = `<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
`

// Introspect describes an object in XML, with the names of the objects below it.
func Introspect(path dbus.ObjectPath, children []string) string {
	var b strings.Builder
	b.WriteString(doctype)
	b.WriteString("<node>\n")
	all, _ := Interfaces(path)
	for _, i := range all {
		i.write(&b)
	}
	for _, c := range children {
		b.WriteString("  <node name=\"" + c + "\"/>\n")
	}
	b.WriteString("</node>\n")
	return b.String()
}

func (i *Interface) write(b *strings.Builder) {
	b.WriteString("  <interface name=\"" + i.Name + "\">\n")
	for _, m := range i.Methods {
		b.WriteString("    <method name=\"" + m.Name + "\">\n")
		for _, a := range m.In {
			b.WriteString("      <arg name=\"" + a.Name + "\" type=\"" + a.Type + "\" direction=\"in\"/>\n")
		}
		for _, a := range m.Out {
			b.WriteString("      <arg name=\"" + a.Name + "\" type=\"" + a.Type + "\" direction=\"out\"/>\n")
		}
		if m.Action != "" {
			b.WriteString("      <annotation name=\"org.multihomed1.PolkitAction\" value=\"" + m.Action + "\"/>\n")
		}
		b.WriteString("    </method>\n")
	}
	for _, p := range i.Properties {
		b.WriteString("    <property name=\"" + p.Name + "\" type=\"" + p.Type + "\" access=\"read\"")
		if p.Emits == Announces {
			b.WriteString("/>\n")
			continue
		}
		b.WriteString(">\n      <annotation name=\"org.freedesktop.DBus.Property.EmitsChangedSignal\" value=\"" + string(p.Emits) + "\"/>\n    </property>\n")
	}
	for _, s := range i.Signals {
		b.WriteString("    <signal name=\"" + s.Name + "\">\n")
		for _, a := range s.Args {
			b.WriteString("      <arg name=\"" + a.Name + "\" type=\"" + a.Type + "\"/>\n")
		}
		b.WriteString("    </signal>\n")
	}
	b.WriteString("  </interface>\n")
}
